"""character_classes: what stands for a class of characters is treated like each of them, by real pre-tokenizers and all of Unicode."""

import itertools
import random
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, pre_tokenizers

from shiftscope.core.bytes.character_classes import completions, compressed, pattern, representative

LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def split(rule):
    return pre_tokenizers.Split(Regex(rule), "isolated")


CUTTERS = {
    "gpt2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "llama3": split(LLAMA3),
    "o200k": split(O200K),
    "ranges of kana and ideographs": split("[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"),
    "ideographs by script": split(r"\p{Han}+"),
    "words": pre_tokenizers.Whitespace(),
    "signs": pre_tokenizers.Punctuation(),
    "digits": pre_tokenizers.Digits(individual_digits=True),
    "bert": pre_tokenizers.BertPreTokenizer(),
}
ALL = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
DRAWN = random.Random(0).sample([one for one in ALL if unicodedata.category(one) not in ("Cn", "Co")], 3000)
FEW = [*map(chr, range(0x180)), *map(chr, range(0x2000, 0x2100)), *map(chr, range(0x3000, 0x3130)), *DRAWN]
EDGES = [*"\u3400\u4dbf\u4e00\u9fa5\u9fa6\u9fff\uf900\ufaff\U00020000\U0002a6df\U00030000"]


def classed(character):
    """The class by which completions are told apart: letters by category, others by its first letter."""
    category = unicodedata.category(character)
    return category if category[0] == "L" else category[0]


@pytest.mark.parametrize("name", list(CUTTERS))
def test_a_pre_tokenizer_cuts_a_character_and_its_representative_alike(name):
    for character in [*FEW, *EDGES]:
        other = representative(character)
        if other == character:
            continue
        for frame in ("a{0}{0}A", "1{0}1", "中{0}.", " {0} ", "あ{0}\u0301"):
            spans = [
                [span for _, span in CUTTERS[name].pre_tokenize_str(frame.format(each))] for each in (character, other)
            ]
            assert spans[0] == spans[1], (hex(ord(character)), other, frame)


def test_a_representative_stands_for_itself_and_whole_classes_have_one():
    found = {character: representative(character) for character in FEW}
    assert all(representative(one) == one for one in found.values())
    assert len({representative(one) for one in ALL if unicodedata.category(one) == "Ll"}) == 2  # ASCII and the rest
    assert {representative(one) for one in "0123456789"} == {"1"}
    assert [representative(one) for one in "zZ \n'_"] == ["a", "A", " ", "\n", "'", "_"]


@pytest.mark.parametrize("width", [2, 3, 4])
def test_completions_of_a_begun_character_have_every_class_that_unicode_has_there(width):
    expected = {}
    for character in ALL:
        text = character.encode()
        if len(text) == width:
            for count in range(1, width):
                expected.setdefault(text[:count], set()).add(classed(character))
    chosen = [begun for begun in expected if len(begun) < 3 or begun[-1] % 16 == 0]
    for begun in chosen:
        found = [classed((begun + ending).decode()) for ending in completions(begun)]
        assert len(found) == len(set(found))
        assert set(found) == expected[begun], begun


def test_what_is_whole_needs_no_completion_and_what_is_no_beginning_has_none():
    assert completions(b"") == completions("aé中😀".encode()) == (b"",)
    for text in (
        b"\x80",
        b"\xc0",
        b"\xc1",
        b"\xff",
        b"\xf5",
        b"\xed\xa0",
        b"\xe0\x80",
        b"\xf4\x90",
        b"\xc3a",
        b"a\xc3",
    ):
        assert completions(text) is None, text


def test_patterns_keep_what_pre_tokenizers_can_tell_apart():
    assert pattern(b" hello") == pattern(b" the")
    assert pattern(b"123") != pattern(b"12")
    assert pattern(b"'s") != pattern(b"'x")
    assert pattern(b"\x80ab") == b"\x80aa"


def test_letters_after_an_apostrophe_are_kept_and_two_more_where_one_may_stand_before():
    assert pattern(b"it's") == b"aa's"
    assert pattern("it’re on".encode()) == "aa’re aa".encode()
    assert pattern(b"'llama") == b"'llaa"
    assert (pattern(b"sting"), pattern(b"sting", True)) == (b"aa", b"staa")


@given(st.text("aBé中 1.'\n", max_size=12))
def test_a_pattern_has_no_runs_of_three_letters_and_is_its_own_pattern(text):
    found = pattern(text.encode())
    assert pattern(found) == found
    assert b"''" not in text.encode() or b"''" in found
    if "'" not in text:
        assert not any(c.isalpha() and found.decode()[n : n + 3] == 3 * c for n, c in enumerate(found.decode()))


SPLITTERS = ["gpt2", "o200k"]


@given(st.text("abBé中1. '\ns", max_size=10))
def test_a_text_has_as_many_pre_tokens_as_its_pattern(text):
    for name in SPLITTERS:
        cuts = [CUTTERS[name].pre_tokenize_str(each) for each in (text, pattern(text.encode()).decode())]
        assert len(cuts[0]) == len(cuts[1])


@given(
    st.lists(st.tuples(st.text("abé 1.'", min_size=1, max_size=5), st.booleans()), max_size=4),
    st.text("ab1", max_size=3),
)
def test_a_compressed_tail_is_its_tokens_patterns_with_the_cuts_between_them(pieces, last):
    place, cuts = 0, []
    for text, joins in pieces:
        place += len(text.encode())
        cuts.append((place, joins))
    tail = "".join(text for text, _ in pieces).encode() + last.encode()
    short, moved = compressed(tail, tuple(cuts))
    assert [joins for _, joins in moved] == [joins for _, joins in cuts]
    places, before = [0, *(place for place, _ in moved), len(short)], b""
    for (low, high), text in zip(
        itertools.pairwise(places), [*(text.encode() for text, _ in pieces), last.encode()], strict=True
    ):
        assert short[low:high] == pattern(text, b"'" in before[-3:])
        before += text
