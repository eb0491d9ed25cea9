"""Training of tokenizers: by the trainers of `tokenizers`, and byte merges chosen by a compressor, exported to its format.

Source: arXiv 2601.09039 (compression-aware merges).
"""

# N symbols

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from shiftscope.core.settings import unread
from shiftscope.core.tokenizers import coding, merging
from shiftscope.core.tokenizers.coding import Coder, Ints
from shiftscope.core.tokenizers.merging import Merge

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())  # one character for each byte
UNKNOWN = {"wordpiece": "[UNK]", "unigram": "<unk>"}


@dataclass(frozen=True)
class Compressing:
    """Compression-aware merges.

    objective: the code to be shortened: deflate, xz or lz78. packing: how ids become bytes for deflate and xz: rank (varints
    of frequency ranks) or two_bytes. candidates: most frequent pairs that are tried for each merge; 1 is plain BPE.
    patience: stop after so many merges in a row that shorten nothing (default: go on). across_words: merges may cross words.
    train_bytes, valid_bytes: how much text merges are counted on and codes are measured on, whole documents.
    """

    objective: Coder = "deflate"
    packing: Literal["rank", "two_bytes"] = "rank"
    candidates: int = 32
    patience: int | None = None
    across_words: bool = False
    train_bytes: int = 1_000_000
    valid_bytes: int = 60_000

    def __post_init__(self) -> None:
        if self.objective == "lz78":
            unread(self, type(self), "--objective deflate or xz", "packing")
        for name in ("candidates", "patience", "train_bytes", "valid_bytes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}: it must be at least 1")


def symbols(texts: Sequence[str], *, across_words: bool = False) -> Ints:
    """Bytes of texts as symbols 0..255 in the order of ALPHABET, with a BORDER before each word and text.

    Words are those of GPT-2's pre-tokenizer; across_words: a text is one word.
    """
    cutter = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not across_words)
    number = np.full(ord(ALPHABET[-1]) + 1, merging.BORDER, dtype=np.int64)  # the newline, no letter of it, is a border
    number[[ord(letter) for letter in ALPHABET]] = np.arange(len(ALPHABET))
    joined = "".join("\n" + piece for text in texts for piece, _ in cutter.pre_tokenize_str(text))
    return number[np.frombuffer(joined.encode("utf-32-le"), dtype="<u4")]


def compression_merges(
    train: Sequence[str], valid: Sequence[str], n: int, compressing: Compressing = Compressing()
) -> list[Merge]:
    """Merges until there are n new symbols over the 256 bytes, chosen by the code length of the validation texts."""
    sides = [symbols(side, across_words=compressing.across_words) for side in (train, valid)]

    def bits(ids_N: Ints, size: int) -> float:
        return coding.code_bits(ids_N, size, compressing.objective, compressing.packing)

    return list(
        merging.learn(
            sides[0], n, first_new=len(ALPHABET), pieces=ALPHABET, valid_N=sides[1], code_bits=bits,
            candidates=compressing.candidates, patience=compressing.patience,
        )
    )  # fmt: skip


def exported(merges: Sequence[Merge], special: Sequence[str], *, across_words: bool = False) -> Tokenizer:
    """Merges over bytes as a byte-level BPE of `tokenizers`: special tokens, the 256 bytes, the new pieces."""
    pieces = list(ALPHABET)
    for merge in merges:
        if merge.new == len(pieces):
            pieces.append(pieces[merge.left] + pieces[merge.right])
    vocabulary = {piece: number for number, piece in enumerate([*special, *pieces])}
    pairs = [(pieces[merge.left], pieces[merge.right]) for merge in merges]
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not across_words)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(list(special))
    return made


def trained(
    kind: Literal["bpe", "wordpiece", "unigram"], texts: Sequence[str], size: int, special: Sequence[str]
) -> Tokenizer:
    """A tokenizer of `size` ids by the trainers of `tokenizers`.

    bpe: byte-level with GPT-2's pre-tokenizer. unigram: blanks as ▁, without a dummy one, and a token for every byte.
    wordpiece: words split at blanks and punctuation, cased.
    """
    if kind == "unigram":
        return _unigram(texts, size, special)
    if kind == "wordpiece":
        made = Tokenizer(models.WordPiece(unk_token=UNKNOWN[kind]))
        made.pre_tokenizer, made.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece(cleanup=False)
        trainer: Any = trainers.WordPieceTrainer(
            vocab_size=size, special_tokens=[UNKNOWN[kind], *special], show_progress=False
        )
    else:
        made = Tokenizer(models.BPE())
        made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=size, special_tokens=list(special), initial_alphabet=ALPHABET, show_progress=False
        )
    made.train_from_iterator(texts, trainer)
    return made


def _unigram(texts: Sequence[str], size: int, special: Sequence[str]) -> Tokenizer:
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    trainer = trainers.UnigramTrainer(
        vocab_size=size, unk_token=UNKNOWN["unigram"], special_tokens=[UNKNOWN["unigram"], *special, *fallback],
        show_progress=False,
    )  # fmt: skip
    made.train_from_iterator(texts, trainer)
    spec = json.loads(made.to_str())
    spec["model"]["byte_fallback"] = True
    spec["added_tokens"] = [token for token in spec["added_tokens"] if token["content"] not in fallback]
    return Tokenizer.from_str(json.dumps(spec))


def spelled(merges: Sequence[Merge]) -> list[tuple[str, str]]:
    """The two sides of each merge, as text; bytes that are no character as U+FFFD."""
    decoder, pieces, found = decoders.ByteLevel(), list(ALPHABET), []
    for merge in merges:
        if merge.new == len(pieces):
            pieces.append(pieces[merge.left] + pieces[merge.right])
        found.append((decoder.decode([pieces[merge.left]]), decoder.decode([pieces[merge.right]])))
    return found
