"""canonical: what it lets follow is just what an encoder can produce, by enumeration of texts; and the law that stands on it."""

import contextlib
import itertools
import json

import numpy as np
import pytest
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from shiftscope.core import checkpoints
from shiftscope.core.bytes import byte_law, canonical, token_bytes
from shiftscope.core.bytes.byte_law import ByteLaw

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CLIP = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
WIDE = "abA1 \n.'é"


def drawn(letters, last=""):
    """Random texts of some letters, ending in given ones."""
    generator = np.random.default_rng(0)
    return ["".join(generator.choice(list(letters), size=30)) + last for _ in range(400)]


def byte_level(rule, letters, normalizer=None):
    tokenizer = Tokenizer(models.BPE())
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(rule), "isolated"), to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    size = len({byte for letter in letters for byte in letter.encode()}) + 25
    tokenizer.train_from_iterator(drawn(letters), trainers.BpeTrainer(vocab_size=size, show_progress=False))
    return tokenizer


def ended_words(letters):
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(CLIP), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    size = 2 * len(letters) + 25
    trainer = trainers.BpeTrainer(vocab_size=size, show_progress=False, end_of_word_suffix="</w>")
    tokenizer.train_from_iterator(drawn(letters), trainer)
    return tokenizer


def sentencepiece(letters, marked_by=None):
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    if marked_by is None:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    else:
        scheme, split = marked_by
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=split)
        tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme, split=split)
    trainer = trainers.BpeTrainer(vocab_size=len(letters) + 25, show_progress=False, special_tokens=["<unk>"])
    tokenizer.train_from_iterator(drawn(letters, "bz"), trainer)
    return tokenizer


def words(letters, unigram):
    if unigram:
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=40, show_progress=False, special_tokens=["<unk>"], unk_token="<unk>"
        )
    else:
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.WhitespaceSplit()
        tokenizer.decoder = decoders.WordPiece(cleanup=False)
        trainer = trainers.WordPieceTrainer(vocab_size=40, show_progress=False, special_tokens=["[UNK]"])
    tokenizer.train_from_iterator(drawn(letters), trainer)
    return tokenizer


def with_added(rule, letters, *contents):
    """A byte-level BPE that looks for these texts before it cuts."""
    tokenizer = byte_level(rule, letters)
    tokenizer.add_tokens([AddedToken(content, normalized=False) for content in contents])
    return tokenizer


def taking_whole(rule, letters, *pieces):
    """A byte-level BPE that takes a pre-token which is in its vocabulary as it is; no merge makes these pieces."""
    spec = json.loads(byte_level(rule, letters).to_str())
    vocabulary = spec["model"]["vocab"]
    assert not set(pieces) & set(vocabulary)
    vocabulary |= {piece: len(vocabulary) + number for number, piece in enumerate(pieces)}
    spec["model"]["ignore_merges"] = True
    return Tokenizer.from_str(json.dumps(spec))


# name -> (tokenizer, letters of the texts that are enumerated, letters that may follow them)
FAMILIES = {
    "gpt2, blanks": (lambda: byte_level(GPT2, WIDE), "ab \n1", WIDE),
    "gpt2, contractions": (lambda: byte_level(GPT2, WIDE + "s"), "as '\n", WIDE + "s"),
    "gpt2, characters of two bytes": (lambda: byte_level(GPT2, WIDE), "1.é ", WIDE),
    "llama3, blanks": (lambda: byte_level(LLAMA3, WIDE), "a \n1.", WIDE),
    "llama3, contractions": (lambda: byte_level(LLAMA3, WIDE + "s"), "aAs' ", WIDE + "s"),
    "o200k, blanks": (lambda: byte_level(O200K, WIDE), "aA \n.", WIDE),
    "o200k, contractions": (lambda: byte_level(O200K, WIDE + "s"), "aAs'", WIDE + "s"),
    "added tokens": (lambda: with_added(LLAMA3, WIDE, "a1", "a1b", "bb", "1 a"), "ab1 ", WIDE),
    "added blanks": (lambda: with_added(GPT2, WIDE, "  ", "    ", "\n\n"), "a \n", WIDE),
    "taken whole": (lambda: taking_whole(LLAMA3, WIDE, "Aba", "Ġbab", "11.", "Ċ1", "aab"), "abA1 ", WIDE),
    "taken whole, blanks": (lambda: taking_whole(GPT2, WIDE, "ĊĠĠ", "ĠĊĠ", "Ġaa", "bĊ"), "ab \n", WIDE),
    "composed characters": (lambda: byte_level(LLAMA3, "ae é\u0301\u0303.1", normalizers.NFC()), "ae\u0301", "ae é\u0301.1"),
    "kana and their signs": (lambda: byte_level(LLAMA3, "カー・゠a1 ."), "カ・. ", "カ・a1 ."),
    "sentencepiece": (lambda: sentencepiece(WIDE), "ab 1\n", WIDE + "z"),
    "marked once": (lambda: sentencepiece("ab 1\n", ("first", False)), "ab \n", "ab 1\nz"),
    "marked by word": (lambda: sentencepiece("ab 1\n", ("always", True)), "ab \n", "ab 1\nz"),
    "ends of words": (lambda: ended_words("abs '1.é"), "as '1.", "abs '1.é"),
    "ends of words, capitals": (lambda: ended_words("aAé bß"), "aAé ", "aAé bß"),
    "wordpiece": (lambda: words("abc 1", unigram=False), "ab 1", "abc 1"),
    "unigram": (lambda: words("abc 1", unigram=True), "ab 1", "abc 1"),
}  # fmt: skip


def produced(tokens, letters, wide, length):
    """All beginnings of encodings of texts up to a length with up to two letters behind, and all whole encodings."""
    texts = ["".join(some) for count in range(length + 1) for some in itertools.product(letters, repeat=count)]
    behind = ["", *wide, *map("".join, itertools.product(wide, repeat=2))]
    whole, begun, closed = set(texts), set(), set()
    every = [text + end for text in texts for end in behind]
    for text, encoding in zip(every, tokens.backend.encode_batch(every, add_special_tokens=False), strict=True):
        spelled = [tokens.spelled[token] for token in encoding.ids]
        if None in spelled:
            continue
        back = b"".join(spelled).removeprefix(tokens.lead)
        if back in (text.encode(), text.encode() + tokens.trail):
            begun.update(tuple(encoding.ids[:count]) for count in range(1, len(encoding.ids) + 1))
            if text in whole:
                closed.add(tuple(encoding.ids))
    return begun, closed


@pytest.mark.parametrize("name", list(FAMILIES))
def test_what_may_follow_is_what_some_text_is_encoded_to(name):
    make, letters, wide = FAMILIES[name]
    tokens, length = token_bytes.read(make()), 3
    begun, closed = produced(tokens, letters, wide, length)
    rules = canonical.validity(tokens)
    assert rules.exact
    alphabet = set("".join(letters).encode()) | set(tokens.lead + tokens.trail)
    judged, waiting = {True: 0, False: 0}, [((), rules.start)]
    while waiting:
        before, state = waiting.pop()
        row = rules.row(state)
        for token in range(tokens.size):
            path = (*before, token)
            text = b"".join(tokens.spelled[each] or b"" for each in path).removeprefix(tokens.lead)
            if not tokens.spelled[token] or not set(text) <= alphabet or canonical.begun_character(text):
                continue  # other letters, or a character that only unseen ones could end
            if len(text.removesuffix(tokens.trail).decode("utf-8", "replace")) > length:
                continue
            assert rules.allows(state, token) == row[token] == (path in begun), [tokens.spelled[t] for t in path]
            judged[bool(row[token])] += 1
            after = rules.step(state, token)
            if after is not None:
                assert rules.closes(after) == (path in closed)
                waiting.append((path, after))
    assert min(judged.values()) > 10


def test_a_character_composed_by_the_normaliser_never_comes_in_parts():
    tokens = token_bytes.read(byte_level(LLAMA3, "ae é\u0301\u0303.1", normalizers.NFC()))
    rules = canonical.validity(tokens)
    after = rules.step(rules.start, tokens.equal(b"e")[0])
    mark = [token for token in tokens.equal("\u0301".encode()) if rules.step(rules.start, token) is not None]
    assert mark  # alone, it stays as it is
    assert all(rules.step(after, token) is None for token in mark)


def test_a_text_that_is_only_the_dummy_space_is_no_encoding():
    tokens = token_bytes.read(sentencepiece("ab 1\n"))
    rules = canonical.validity(tokens)
    assert rules.closes(rules.start)
    space = tokens.equal(b" ")[0]
    assert not rules.closes(rules.step(rules.start, space))
    assert tokens.encode("") == []


WITNESSES = ("", "a", "A", "1", ".", " ", "\n", " a", "\na", "s")


class BruteForce:
    """The next-byte law of a prompt by its definition: every segmentation, every last token, encoded again."""

    def __init__(self, checkpoint):
        self.checkpoint, self.tokens = checkpoint, token_bytes.read(checkpoint.tokenizer, checkpoint.vocabulary_size)
        self.opening, self.end = byte_law.opening_ids(checkpoint), byte_law.end_ids(checkpoint)[0]

    def segmentations(self, text):
        """Token sequences that end exactly at the end of text."""
        if not text:
            return [()]
        return [
            (*before, token)
            for start in range(len(text))
            for token in self.tokens.equal(text[start:])
            for before in self.segmentations(text[:start])
        ]

    @torch.no_grad()
    def logp(self, context):
        """log P of the context's own tokens, and the law of what follows."""
        ids = torch.tensor([[*self.opening, *context]])
        logp = self.checkpoint.model(ids).logits[0].double().log_softmax(-1)
        own = sum(float(logp[len(self.opening) - 1 + place, token]) for place, token in enumerate(context))
        return own, logp[-1].exp().numpy()

    def canonical(self, context, candidates):
        """Which candidates go on with the context in the encoding of some continued text."""
        found = np.zeros(len(candidates), dtype=bool)
        spelled = b"".join(self.tokens.spelled[token] for token in context)
        texts = [
            (place, text) for place, t in enumerate(candidates) for text in ended(spelled + self.tokens.spelled[t])
        ]
        for witness in WITNESSES:
            encodings = self.tokens.backend.encode_batch([text + witness for _, text in texts])
            for (place, _), encoding in zip(texts, encodings, strict=True):
                found[place] |= encoding.ids[: len(context) + 1] == [*context, candidates[place]]
        return found

    def law(self, text, contexts=None):
        """P of each byte and of the end after text, from these contexts (default: all segmentations), normalised.

        Contexts that together weigh less than 1e-6 of all are not encoded again.
        """
        outcomes, ways = np.zeros(257), []
        for context in contexts or [c for stop in range(len(text) + 1) for c in self.segmentations(text[:stop])]:
            own, law_V = self.logp(context)
            rest = text[sum(len(self.tokens.spelled[token]) for token in context) :]
            low, high = self.tokens.longer(rest)
            candidates = self.tokens.ids_J[low:high]
            ways.append(
                (np.exp(own) * law_V[candidates].sum(), context, rest, candidates.tolist(), np.exp(own) * law_V)
            )
        ways.sort(key=lambda way: way[0])
        light = np.cumsum([way[0] for way in ways]) < 1e-6 * sum(way[0] for way in ways)
        for _, context, rest, candidates, mass_V in itertools.compress(ways, ~light):
            for token in itertools.compress(candidates, self.canonical(context, candidates)):
                outcomes[self.tokens.spelled[token][len(rest)]] += mass_V[token]
            if not rest and self.tokens.encode(text.decode()) == list(context):
                outcomes[256] += mass_V[self.end]
        return outcomes / outcomes.sum()


def ended(text):
    """The text; where it ends inside a character, the text with every third character that may begin so."""
    with contextlib.suppress(UnicodeDecodeError):
        return [text.decode()]
    rests = [
        b"".join(bytes([b]) for b in rest) for n in (1, 2) for rest in itertools.product(range(0x80, 0xC0, 3), repeat=n)
    ]
    found = []
    for rest in rests:
        with contextlib.suppress(UnicodeDecodeError):
            found.append((text + rest).decode())
    return [character for character in found if character[-1:].isprintable()][:40]


@pytest.mark.slow
def test_the_law_is_that_of_every_segmentation_encoded_again():
    checkpoint = checkpoints.load("docs-base")
    truth, engine = BruteForce(checkpoint), byte_law.engine_of(checkpoint)
    apart, naive = {}, {}
    for prompt in (b"if a\n\n", b" the ", b"x = 0", b"self."):
        expected, law = truth.law(prompt), ByteLaw(engine, prompt).law()
        apart[prompt] = 0.5 * np.abs(np.append(law.p, law.end) - expected).sum()
        plain = [tuple(truth.tokens.encode(prompt[:stop].decode())) for stop in range(len(prompt) + 1)]
        naive[prompt] = 0.5 * np.abs(truth.law(prompt, plain) - expected).sum()
    # total variation: the model in float32 on both sides, tokens that end inside a character with some of its endings
    assert max(apart.values()) <= 1e-4, apart
    assert naive[b"if a\n\n"] > 1000 * apart[b"if a\n\n"]  # contexts that are encodings of the prompt's own beginnings
