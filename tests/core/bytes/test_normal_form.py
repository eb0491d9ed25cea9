"""normal_form: what a normaliser leaves alone, against the normaliser itself over every character that can end a text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from shiftscope.core.bytes import token_bytes
from shiftscope.core.bytes.normal_form import NormalForm, begun_character, last_character

LETTERS = "aeE \n.é\u0301\u0303ﬁ中Å"
MARKED = {
    "none": None,
    "composed": normalizers.NFC(),
    "compatible": normalizers.NFKC(),
    "lower case": normalizers.Lowercase(),
    "blanks": normalizers.Replace(Regex(r"\s+"), " "),
}


def vocabulary(normalizer):
    """A byte-level BPE whose tokens may also begin or end inside a character."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330, show_progress=False, special_tokens=["<end>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator([LETTERS * 3, "ae\u0301 éeÅ\u0303.a" * 9, "Ee中é"], trainer)
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    return token_bytes.read(tokenizer)


@pytest.fixture(scope="module", params=list(MARKED))
def form(request):
    tokens = vocabulary(MARKED[request.param])
    return NormalForm(tokens), tokens, MARKED[request.param]


def whole_ends(rest):
    """Every character that begins with these bytes, as bytes."""
    width = 2 if rest[0] < 0xE0 else 3 if rest[0] < 0xF0 else 4
    chosen = range(0x80, 0x10000) if width < 4 else range(0x10000, 0x110000)
    return [c for c in (chr(n).encode() for n in chosen if not 0xD800 <= n < 0xE000) if c.startswith(rest)]


TEXTS = st.text(LETTERS, max_size=6)


def test_a_text_is_kept_where_the_normaliser_gives_it_back_blanks_at_the_end_aside(form):
    own, _, normalizer = form

    @given(TEXTS)
    def compare(text):
        back = text if normalizer is None else normalizer.normalize_str(text)
        assert own.keeps(text.encode()) == (back.rstrip() == text.rstrip())

    compare()


@pytest.mark.parametrize("stem", ["", "a", "e", "E", "a\n "])
@pytest.mark.parametrize(
    "rest", ["\u0301".encode()[:1], "é".encode()[:1], "中".encode()[:2], "ﬁ".encode()[:2], b"\xcd"]
)
def test_a_begun_character_is_kept_where_one_that_can_end_it_is(form, stem, rest):
    own, _, normalizer = form
    ways = [stem + end.decode() for end in whole_ends(rest)]
    kept = [way for way in ways if normalizer is None or normalizer.normalize_str(way).rstrip() == way.rstrip()]
    assert own.keeps(stem.encode() + rest) == bool(kept)


def test_what_is_no_utf8_is_never_kept(form):
    own, _, _ = form
    assert not own.keeps(b"a\xff")
    assert not own.keeps(b"\x80")
    assert not own.keeps(b"\xc3a")


def test_a_seam_is_judged_by_the_characters_at_both_sides_of_it(form):
    own, _, _ = form

    @given(TEXTS, TEXTS)
    def compare(before, text):
        if own.keeps(before.encode()) and text:
            seam, whole = own.after(before.encode(), text.encode()), own.keeps((before + text).encode())
            blanks = before[-1:].isspace() or text[:1].isspace()  # runs of blanks may change at a seam of ASCII
            assert seam == whole or blanks

    compare()


def test_a_row_says_of_every_token_what_after_says(form):
    own, tokens, _ = form
    ends = (b"", b"a", b"e", "é".encode(), b"\xc3", "中".encode()[:2], b"\xcc", "Å".encode())
    for before, row in [(before, own.row(before)) for before in ends]:
        for token, text in enumerate(tokens.spelled):
            assert row[token] == (text is not None and own.after(before, text)), (before, text)


def test_a_mark_stays_alone_and_changes_what_it_follows():
    own = NormalForm(vocabulary(normalizers.NFC()))
    mark = "\u0301".encode()
    assert own.keeps(mark)
    assert not own.after(b"e", mark)
    assert own.after(b".", mark)
    assert not own.keeps("e\u0301".encode())
    assert NormalForm(vocabulary(None)).after(b"e", mark)
    assert own.after(b"e", mark[:1])  # an overline begins so too, and no letter is composed with it


@given(st.text(max_size=4), st.integers(0, 3))
def test_the_last_character_of_a_text_cut_anywhere(text, cut):
    given_bytes = text.encode()
    part = given_bytes[: len(given_bytes) - cut] if cut else given_bytes
    whole = part.decode("utf-8", "ignore")
    begun = part[len(whole.encode()) :]
    assert last_character(part) == (begun or whole[-1:].encode())
    assert begun_character(part) == begun


@given(st.characters(exclude_categories=("Cs",)), st.text(max_size=3))
def test_a_token_that_begins_inside_a_character_has_the_same_end(character, text):
    for place in range(1, len(character.encode())):
        piece = character.encode()[place:] + text.encode()
        assert begun_character(piece) == b""
        if text:
            assert last_character(piece) == text[-1].encode()
        assert begun_character(piece + "中".encode()[:2]) == "中".encode()[:2]


def test_bytes_that_no_character_begins_with_have_no_end():
    assert last_character(b"") == begun_character(b"") == b""
    assert last_character(b"\x80\x80") == b""
    assert begun_character(b"\x80\x80\x80") == b""
    assert begun_character(b"a\xf0\x9f\x98") == b"\xf0\x9f\x98"
