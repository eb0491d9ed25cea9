"""Tokenizers in files of their makers' own: a tekken.json (Mistral) and a SentencePiece .model, read without their libraries.

Both become a tokenizer of `tokenizers`, whose description every other file here reads. Special tokens are never read from
a text, as in the makers' own libraries.

Source: arXiv 1808.06226 (SentencePiece); byte-level BPE by ranks, where the pair whose union has the lowest rank merges
first and a whole pre-token that is in the vocabulary is taken as it is.
Deviation: merges are listed as pairs of pieces, so that a tie between two ways to the same piece falls to the pair of
lower ids, not to the leftmost one.
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

MARK = "▁"
TEKKEN_SPECIAL = (
    "<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]", "[SUFFIX]",
    "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]",
)  # fmt: skip  # of files that name none
NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # kinds of SentencePiece pieces
UNIGRAM, BPE = 1, 2


def of_folder(path: str | Path) -> Path | None:
    """The tekken.json or SentencePiece model of a folder that has no tokenizer.json; None where there is none."""
    folder = Path(path)
    if (folder / "tokenizer.json").is_file():
        return None
    names = ("tekken.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
    return next((folder / name for name in names if (folder / name).is_file()), None)


def is_named(name: str) -> bool:
    """Whether a name is that of a tokenizer's file: a .json or a .model, with a version behind it or not."""
    return name.endswith(".json") or (".model" in Path(name).name and Path(name).is_file())


def read(path: str | Path) -> Tokenizer:
    """A tekken.json or a SentencePiece model as a tokenizer of `tokenizers`.

    A tokenizer.json is read too.
    Raises ValueError, in one sentence, for a file that is none of them, or a SentencePiece model of another kind than BPE
    and Unigram.
    """
    from tokenizers import Tokenizer

    if not Path(path).is_file():
        raise ValueError(f"{str(path)!r} is no file: a tokenizer.json, tekken.json or SentencePiece model is needed")
    content = Path(path).read_bytes()
    if content.lstrip()[:1] != b"{":
        return _sentencepiece(content, str(path))
    try:
        described = json.loads(content)
    except ValueError as error:
        raise ValueError(
            f"{str(path)!r} begins like JSON and is none ({error}): it is cut off or damaged; get it again"
        ) from error
    tekken = "config" in described and "vocab" in described
    try:
        return _tekken(described) if tekken else Tokenizer.from_str(content.decode())
    except Exception as error:  # the library raises bare Exception
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"{str(path)!r} is no tekken.json: its config (with a pattern) and vocab (with token_bytes) are needed ({reason})"
            if tekken
            else f"{str(path)!r} is a tokenizer of an unknown kind ({reason}): a tokenizer.json, a tekken.json or a "
            f"SentencePiece model is needed"
        ) from error


def wrapped(path: str | Path) -> PreTrainedTokenizerBase:
    """The same as a tokenizer of `transformers`, which opens a text with the beginning-of-text token."""
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    backend = read(path)
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    found = {name: token for name, token in named.items() if backend.token_to_id(token) is not None}
    if "bos_token" in found:
        first = found["bos_token"]
        backend.post_processor = TemplateProcessing(
            single=f"{first} $A", pair=f"{first} $A {first} $B", special_tokens=[(first, backend.token_to_id(first))]
        )
    return PreTrainedTokenizerFast(tokenizer_object=backend, split_special_tokens=True, **found)


def _tekken(described: Mapping[str, Any]) -> Tokenizer:
    """Ids are the special tokens, then the pieces in the order of their ranks, up to the size that the file names."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    config, shown = described["config"], bytes_to_unicode()
    specials = [str(entry["token_str"]) for entry in sorted(described.get("special_tokens") or (), key=_rank)]
    specials = specials or list(TEKKEN_SPECIAL)
    reserved = config.get("default_num_special_tokens") or len(specials)
    specials += [f"<SPECIAL_{number}>" for number in range(len(specials), reserved)]
    size = config.get("default_vocab_size") or reserved + len(described["vocab"])
    pieces = [base64.b64decode(entry["token_bytes"]) for entry in described["vocab"][: size - reserved]]
    spelled = ["".join(shown[byte] for byte in piece) for piece in pieces]
    vocabulary = {token: number for number, token in enumerate((*specials, *spelled))}
    model = models.BPE(vocabulary, list(_merges(spelled)), ignore_merges=True)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(config["pattern"]), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(specials)
    tokenizer.encode_special_tokens = True
    return tokenizer


def _rank(entry: Mapping[str, Any]) -> int:
    return int(entry["rank"])


def _merges(pieces: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Every pair of pieces that makes a third one, in the order of the pieces made, then of their parts."""
    ordered = list(pieces)
    place = {piece: number for number, piece in enumerate(ordered)}
    for piece in ordered:
        cuts = ((piece[:at], piece[at:]) for at in range(1, len(piece)))
        yield from sorted(
            (pair for pair in cuts if pair[0] in place and pair[1] in place), key=lambda p: (place[p[0]], place[p[1]])
        )


@dataclass(frozen=True)
class _Model:
    """A SentencePiece model: its pieces with their scores and kinds, and how it treats a text."""

    pieces: tuple[tuple[str, float, int], ...] = field(repr=False)
    kind: int
    byte_fallback: bool
    suffix: bool
    dummy_prefix: bool
    squeezes: bool
    charsmap: bytes = field(repr=False)


def _fields(content: bytes) -> Iterator[tuple[int, Any]]:
    """Number and value of each field of a protocol buffer: int, 4 raw bytes, or the bytes of a string or message."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = content[at]
            at, value, shift = at + 1, value | (byte & 0x7F) << shift, shift + 7
            if byte < 0x80:
                return value

    while at < len(content):
        key = varint()
        number, wire = key >> 3, key & 7
        if wire == 0:
            yield number, varint()
            continue
        if wire not in (1, 2, 5):
            raise ValueError(f"field {number} has the unknown wire type {wire}")
        length = varint() if wire == 2 else 8 if wire == 1 else 4
        if at + length > len(content):
            raise ValueError(f"field {number} is cut off")
        yield number, content[at : at + length]
        at += length


def _parsed(content: bytes) -> _Model:
    """The fields of a SentencePiece model that decide how it cuts; absent ones have the format's own defaults."""
    pieces: list[tuple[str, float, int]] = []
    parts: dict[int, dict[int, Any]] = {2: {}, 3: {}}
    for number, value in _fields(content):
        if number == 1:
            piece = dict(_fields(value))
            pieces.append((piece[1].decode(), struct.unpack("<f", piece.get(2, bytes(4)))[0], piece.get(3, NORMAL)))
        elif number in parts:
            parts[number] = dict(_fields(value))
    if not pieces:
        raise ValueError("it has no pieces")
    trainer, normalizer = parts[2], parts[3]
    return _Model(
        tuple(pieces), trainer.get(3, UNIGRAM), bool(trainer.get(35, 0)), bool(trainer.get(24, 0)),
        bool(normalizer.get(3, 1)), bool(normalizer.get(4, 1)), normalizer.get(2, b""),
    )  # fmt: skip


def _sentencepiece(content: bytes, path: str) -> Tokenizer:
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    try:
        model = _parsed(content)
    except (ValueError, IndexError, KeyError, AttributeError, TypeError, struct.error) as error:
        raise ValueError(
            f"{path!r} is a tokenizer of an unknown kind: a tokenizer.json, a tekken.json or a SentencePiece model is "
            f"needed"
        ) from error
    if model.kind not in (UNIGRAM, BPE) or model.suffix:
        found = "marks words at their ends" if model.suffix else f"is of kind {model.kind}"
        raise ValueError(
            f"{path!r} is a SentencePiece model that {found}: a BPE or Unigram one that marks beginnings of words is needed"
        )
    unknown = next((number for number, piece in enumerate(model.pieces) if piece[2] == UNKNOWN), None)
    if model.kind == BPE:
        ordered = sorted((p for p in model.pieces if p[2] in (NORMAL, USER)), key=lambda piece: -piece[1])
        tokenizer = Tokenizer(
            models.BPE(
                {piece: number for number, (piece, _, _) in enumerate(model.pieces)},
                list(_merges(piece for piece, _, _ in ordered)),
                unk_token=None if unknown is None else model.pieces[unknown][0],
                fuse_unk=True,
                byte_fallback=model.byte_fallback,
            )
        )
    else:
        scores = [(piece, score) for piece, score, _ in model.pieces]
        tokenizer = Tokenizer(models.Unigram(scores, unk_id=unknown, byte_fallback=model.byte_fallback))
    steps: list[Any] = [normalizers.Precompiled(model.charsmap)] if model.charsmap else []
    if model.squeezes:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    steps += [normalizers.Prepend(MARK)] if model.dummy_prefix else []
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", MARK)])
    if model.kind == UNIGRAM and model.squeezes and not any(MARK in piece[1:] for piece, _, _ in model.pieces):
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")  # no piece lies across words
    ends = [decoders.Strip(" ", 1, 0)] if model.dummy_prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(MARK, " "), decoders.ByteFallback(), decoders.Fuse(), *ends]
    )
    tokenizer.add_special_tokens([piece for piece, _, kind in model.pieces if kind in (CONTROL, UNKNOWN)])
    tokenizer.add_tokens([AddedToken(piece, normalized=False) for piece, _, kind in model.pieces if kind == USER])
    tokenizer.encode_special_tokens = True
    return tokenizer
