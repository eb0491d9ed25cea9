"""token_bytes and canonical: every family spells its texts, validity agrees with encoding again."""

import json

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from shiftscope.core import checkpoints
from shiftscope.core.bytes import canonical, token_bytes

TEXT = (
    "def value(self, other):\n    return self.value + other  # the sum\n\n\nIt's the value's owner; they'll read 1234567 "
    "values,\r\n\tnaïve café 中文字 — 1.5e10 and HTMLParser x==y...\n"
)
CORPUS = [TEXT, TEXT.replace("value", "name"), "The quick brown fox isn't over the lazy dogs, 2024-01-31.\n" * 3]
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def byte_level(rule):
    tokenizer = Tokenizer(models.BPE())
    split = [pre_tokenizers.Split(Regex(rule), "isolated")] if rule else []
    digits = [] if rule else [pre_tokenizers.Digits(individual_digits=True)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [*split, *digits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not rule)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        show_progress=False,
        special_tokens=["<end>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def sentencepiece_bpe():
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>"]
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=440, show_progress=False, special_tokens=[*special, *fallback])
    tokenizer.train_from_iterator([text.encode("ascii", "ignore").decode() for text in CORPUS], trainer)
    spec = json.loads(tokenizer.to_str())
    spec["added_tokens"] = [token for token in spec["added_tokens"] if token["content"] in special]
    return Tokenizer.from_str(json.dumps(spec))


def unigram():
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=150, show_progress=False, special_tokens=["<unk>", "<end>"], unk_token="<unk>",
        initial_alphabet=[chr(code) for code in range(33, 127)],
    )  # fmt: skip
    tokenizer.train_from_iterator([" ".join(text.split()) for text in CORPUS], trainer)
    return tokenizer


def wordpiece():
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    tokenizer.train_from_iterator(
        CORPUS, trainers.WordPieceTrainer(vocab_size=200, show_progress=False, special_tokens=["[UNK]", "[SEP]"])
    )
    return tokenizer


FAMILIES = {
    "gpt2": lambda: byte_level(GPT2), "llama3": lambda: byte_level(LLAMA3), "o200k": lambda: byte_level(O200K),
    "digits": lambda: byte_level(""), "sentencepiece": sentencepiece_bpe, "unigram": unigram, "wordpiece": wordpiece,
}  # fmt: skip


def wrapped(backend):
    names = [t for t in ("<end>", "</s>", "[SEP]") if backend.token_to_id(t) is not None]
    unknown = [t for t in ("<unk>", "[UNK]") if backend.token_to_id(t) is not None]
    special = {"eos_token": names[0]} | ({"unk_token": unknown[0]} if unknown else {})
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


@pytest.fixture(scope="module", params=list(FAMILIES))
def family(request):
    return request.param, token_bytes.read(wrapped(FAMILIES[request.param]()))


@pytest.fixture(scope="module")
def docs_bytes():
    return token_bytes.read(checkpoints.load("docs-base").tokenizer)


def text_for(name):
    if name == "wordpiece":
        return " ".join(TEXT.encode("ascii", "ignore").decode().lower().split())
    if name == "unigram":
        return " ".join(TEXT.encode("ascii", "ignore").decode().split())
    return TEXT


def test_the_tokens_of_a_text_spell_its_bytes(family):
    name, tokens = family
    text = text_for(name)
    assert b"".join(tokens.spelled[token] for token in tokens.encode(text)) == tokens.lead + text.encode()
    assert tokens.normalised(text) == text.encode()
    assert tokens.lead == (b" " if name in ("sentencepiece", "unigram", "wordpiece") else b"")


def test_special_tokens_have_no_bytes_and_padding_ids_have_none(family):
    _, tokens = family
    special = [token for token, text in enumerate(tokens.spelled) if text is None]
    assert {tokens.backend.id_to_token(token) for token in special} & {"<end>", "</s>", "[SEP]"}
    assert len(tokens.ids_J) == int(tokens.spelled_V.sum()) == tokens.size - len(special)


def test_an_interval_holds_exactly_the_tokens_that_begin_with_a_prefix(docs_bytes):
    prefixes = [b"", b" ", b" re", b"\xff", b"\xc3", b"self", b"\n   ", b"zzz", *docs_bytes.sorted_bytes[::200]]
    for prefix in prefixes:
        low, high = docs_bytes.interval(prefix)
        assert docs_bytes.sorted_bytes[low:high] == [t for t in docs_bytes.sorted_bytes if t.startswith(prefix)]
        longer, _ = docs_bytes.longer(prefix)
        assert docs_bytes.sorted_bytes[longer:high] == [
            t for t in docs_bytes.sorted_bytes if t.startswith(prefix) and t != prefix
        ]
        column = docs_bytes.column(len(prefix))[longer:high]
        assert (column < 256).all()


def test_the_fuzz_finds_the_validity_of_every_family_exact_and_says_its_mode(family):
    name, tokens = family
    found = canonical.stability(tokens, texts=25, seed=3)
    modes = {"unigram": "words", "wordpiece": "words"}
    assert (found.mode, found.rejected, found.unsound) == (modes.get(name, "merges"), 0, 0)
    assert found.exact
    assert found.tried > 20
    assert found.boundaries > 40


def test_rules_that_look_ahead_make_prefixes_unstable_and_are_followed_nonetheless(docs_bytes):
    rules, ids = canonical.validity(docs_bytes), docs_bytes.encode("None\n\nb")
    newlines = [token for token in ids if docs_bytes.spelled[token] == b"\n"]
    assert len(newlines) == 2
    assert len(docs_bytes.encode("None\n\n")) == 2  # alone, the two newlines are one token
    state = rules.start
    for token in ids:
        assert rules.row(state)[token]
        state = rules.step(state, token)
        assert state is not None


def test_after_two_newlines_cut_apart_no_blank_can_follow(docs_bytes):
    rules, state = canonical.validity(docs_bytes), canonical.validity(docs_bytes).start
    newline = docs_bytes.equal(b"\n")[0]
    for token in (docs_bytes.encode("x")[0], newline, newline):
        state = rules.step(state, token)
    follow = {text: rules.row(state)[docs_bytes.equal(text)[0]] for text in (b"b", b" the", b"\n", b" ")}
    assert follow == {b"b": True, b" the": False, b"\n": False, b" ": False}


def test_row_and_step_agree(family):
    name, tokens = family
    rules = canonical.validity(tokens)
    state = rules.start
    for token in tokens.encode(text_for(name))[:12]:
        row = rules.row(state)
        for other in range(0, tokens.size, 7):
            assert row[other] == (rules.step(state, other) is not None)
        state = rules.step(state, token)


def test_a_byte_token_never_spells_a_character_that_has_a_piece():
    tokens = token_bytes.read(wrapped(sentencepiece_bpe()))
    rules = canonical.validity(tokens)
    first = rules.step(rules.start, tokens.encode("a")[0])
    byte = {
        int(piece[3:5], 16): token for piece, token in tokens.backend.get_vocab().items() if piece.startswith("<0x")
    }
    assert rules.step(first, byte[ord("e")]) is None
    opened = rules.step(first, byte[0xC3])
    assert opened is not None
    assert rules.step(opened, byte[0xA9]) is not None  # é has no piece here
    assert rules.step(opened, tokens.encode("e")[0]) is None  # a begun character must be ended
    assert rules.step(opened, byte[0x41]) is None


@pytest.mark.parametrize(
    ("text", "sentence"),
    [(b"ab\xffcd", "byte 2 is 0xff"), ("a<|endoftext|>b", "special or unknown token")],
)
def test_text_that_cannot_be_spelt_is_refused_in_a_sentence(docs_bytes, text, sentence):
    with pytest.raises(ValueError, match=sentence):
        docs_bytes.normalised(text)


def test_text_that_the_tokenizer_changes_is_refused_with_the_place():
    tokens = token_bytes.read(wrapped(wordpiece()))
    with pytest.raises(ValueError, match="from byte 4 on"):
        tokens.normalised("the Quick fox")


def test_an_incomplete_last_character_is_kept(docs_bytes):
    assert docs_bytes.normalised("café".encode()[:-1]) == "café".encode()[:-1]


def ended_words():
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Lowercase()
    rule = Regex(r"'s|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(rule, "removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=300, show_progress=False, end_of_word_suffix="</w>")
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def test_a_mark_at_the_end_of_a_word_is_a_blank():
    tokens = token_bytes.read(ended_words())
    assert tokens.trail == b" "
    text = "the quick fox , 2 0 2 4 naïve"
    ids = tokens.encode(text)
    assert b"".join(tokens.spelled[token] for token in ids) == text.encode() + b" "
    assert tokens.encode(text + " ") == ids


@pytest.mark.parametrize(
    ("text", "place"),
    [("the fox, quick", 7), ("the  fox", 4), ("The fox", 0), ("the fox's tail", 7), ("fox1 dogs", 3), (" the fox", 0)],
)
def test_a_text_that_comes_back_otherwise_from_marked_words_is_refused_with_the_place(text, place):
    tokens = token_bytes.read(ended_words())
    with pytest.raises(ValueError, match=f"from byte {place} on"):
        tokens.normalised(text)


@pytest.mark.parametrize("make", [wordpiece, ended_words])
@pytest.mark.parametrize("text", ["", "the", "the ", "the quick", "the quick ", "the qui", "the quick f"])
def test_a_text_of_words_may_be_cut_anywhere(make, text):
    tokens = token_bytes.read(wrapped(make()) if make is wordpiece else make())
    assert tokens.normalised(text) == text.encode()


def test_a_tokenizer_that_marks_the_inside_of_words_is_refused():
    tokenizer = Tokenizer(models.BPE(vocab={"##a": 0, "a": 1}, merges=[], continuing_subword_prefix="##"))
    with pytest.raises(ValueError, match="marks pieces inside a word"):
        token_bytes.read(PreTrainedTokenizerFast(tokenizer_object=tokenizer))
