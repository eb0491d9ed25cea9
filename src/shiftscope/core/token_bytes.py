"""The bytes of every token of a real tokenizer, in sorted order: tokens that begin alike are one interval.

Byte-level BPE, SentencePiece BPE with byte fallback, Unigram, WordPiece and word-level vocabularies are read from the
tokenizer's own description (`tokenizer.json`), not from what it decodes: a token that is a part of a character would come
back as U+FFFD. Which sequences of tokens its encoder can produce is the matter of `core/canonical.py`.

Source: arXiv 2410.09303 (tokens as byte strings; special tokens are never spelt).
"""

# V ids of the model, J tokens that have bytes, in sorted order

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

MARK = "▁"


@dataclass(frozen=True, eq=False)
class TokenBytes:
    """A vocabulary as bytes.

    spelled: for each id of the model its bytes, None for special tokens and padding, which are never spelt.
    lead: bytes that the tokenizer puts in front of every text (a dummy space). family: of the tokenizer.
    plain: the tokenizer without that lead. backend: the tokenizer's own.
    """

    spelled: tuple[bytes | None, ...] = field(repr=False)
    lead: bytes
    family: Literal["BPE", "Unigram", "WordPiece", "WordLevel"]
    byte_level: bool
    plain: Tokenizer = field(repr=False)
    backend: Tokenizer = field(repr=False)
    sorted_bytes: list[bytes] = field(repr=False)
    ids_J: NDArray[np.int64] = field(repr=False)

    @property
    def size(self) -> int:
        """V: ids of the model."""
        return len(self.spelled)

    @property
    def longest(self) -> int:
        """Bytes of the longest token."""
        return int(self._lengths_J.max())

    @cached_property
    def spelled_V(self) -> NDArray[np.bool_]:
        """Which ids have bytes."""
        return np.array([text is not None for text in self.spelled])

    @cached_property
    def _lengths_J(self) -> NDArray[np.int64]:
        return np.array([len(text) for text in self.sorted_bytes])

    @cached_property
    def _columns(self) -> dict[int, NDArray[np.int64]]:
        return {}

    def interval(self, prefix: bytes) -> tuple[int, int]:
        """First and last-plus-one place of the tokens that begin with prefix."""
        if not prefix:
            return 0, len(self.sorted_bytes)
        low = bisect_left(self.sorted_bytes, prefix)
        stem = prefix.rstrip(b"\xff")
        after = stem[:-1] + bytes([stem[-1] + 1]) if stem else None
        return low, len(self.sorted_bytes) if after is None else bisect_left(self.sorted_bytes, after, low)

    def longer(self, prefix: bytes) -> tuple[int, int]:
        """The part of `interval` whose tokens are longer than prefix: those equal to it sort first."""
        low, high = self.interval(prefix)
        return low + len(self.equal(prefix)), high

    def equal(self, text: bytes) -> list[int]:
        """All ids with exactly these bytes: more than one where a byte token and a piece say the same."""
        low, found = bisect_left(self.sorted_bytes, text), []
        while low < len(self.sorted_bytes) and self.sorted_bytes[low] == text:
            found.append(int(self.ids_J[low]))
            low += 1
        return found

    def column(self, place: int) -> NDArray[np.int64]:
        """Byte number `place` of every token [J]; 256 for tokens that are not that long."""
        if place not in self._columns:
            values = [text[place] if place < len(text) else 256 for text in self.sorted_bytes]
            self._columns[place] = np.array(values, dtype=np.int64)
        return self._columns[place]

    def encode(self, text: str) -> list[int]:
        """Canonical ids of a text, without special tokens."""
        return self.backend.encode(text, add_special_tokens=False).ids

    def normalised(self, text: str | bytes) -> bytes:
        """The bytes that the tokens of a text spell, without the lead; an incomplete last character is left as it is.

        Raises ValueError where they are not the text: it holds something the tokenizer drops, changes or does not know.
        """
        given = text.encode() if isinstance(text, str) else text
        whole, rest = complete(given)
        pieces = [self.spelled[token] for token in self.encode(whole.decode())]
        if None in pieces:
            raise ValueError(f"the text {_short(given)} holds what the tokenizer reads as a special or unknown token")
        found = b"".join(pieces)  # type: ignore[arg-type]
        if found.removeprefix(self.lead) != whole:
            at = next(
                (i for i, (a, b) in enumerate(zip(found.removeprefix(self.lead), whole, strict=False)) if a != b),
                min(len(found), len(whole)),
            )
            raise ValueError(
                f"the tokenizer changes the text from byte {at} on (it spells {_short(found[at : at + 20])}, given is "
                f"{_short(whole[at : at + 20])}): give the text as the tokenizer normalises it"
            )
        return whole + rest


def _short(text: bytes) -> str:
    return repr(text[:40].decode("utf-8", "replace"))


def complete(text: bytes) -> tuple[bytes, bytes]:
    """A byte string cut into whole characters and the begun last one.

    Raises ValueError where it is no UTF-8, with the place.
    """
    try:
        text.decode()
    except UnicodeDecodeError as error:
        if error.reason == "unexpected end of data":
            return text[: error.start], text[error.start :]
        raise ValueError(f"the text is not UTF-8: byte {error.start} is {text[error.start]:#04x}") from error
    return text, b""


def read(tokenizer: PreTrainedTokenizerBase, size: int | None = None) -> TokenBytes:
    """The bytes of every token. size: ids of the model (default: the tokenizer's); ids beyond the tokenizer have none.

    Raises ValueError for a tokenizer whose tokens are not made of bytes in a way that is known, naming what it is.
    """
    if not tokenizer.is_fast:
        raise ValueError(
            f"{type(tokenizer).__name__} is no `tokenizers` tokenizer, so its pieces cannot be read: load the checkpoint "
            f"with its tokenizer.json"
        )
    backend: Tokenizer = tokenizer.backend_tokenizer
    spec = json.loads(backend.to_str())
    family = spec["model"]["type"]
    special = set(tokenizer.all_special_ids) | {t["id"] for t in spec["added_tokens"] if t["special"]}
    added = {t["id"]: t["content"].encode() for t in spec["added_tokens"] if not t["special"]}
    spell = _speller(spec)
    table: dict[int, bytes] = {}
    for piece, token in backend.get_vocab(with_added_tokens=True).items():
        if token not in special and piece != spec["model"].get("unk_token"):
            table[token] = added.get(token) or spell(piece)
    size = max(table) + 1 if size is None else size
    spelled = tuple(table.get(token) or None for token in range(size))
    order = sorted((text, token) for token, text in enumerate(spelled) if text is not None)
    return TokenBytes(
        spelled, _lead(backend, spelled, table), family, "ByteLevel" in step_types(spec, "decoder", "pre_tokenizer"),
        _without_lead(spec), backend, [text for text, _ in order], np.array([token for _, token in order]),
    )  # fmt: skip


def _speller(spec: dict[str, Any]) -> Any:
    """The function from a piece of the vocabulary to its bytes."""
    model, steps = spec["model"], step_types(spec, "decoder")
    if model.get("end_of_word_suffix"):
        raise ValueError(
            f"the tokenizer marks ends of words ({model['end_of_word_suffix']!r}), so its pieces do not spell a text: a "
            f"byte-level, SentencePiece, Unigram, WordPiece or word-level tokenizer is needed"
        )
    if "ByteLevel" in step_types(spec, "decoder", "pre_tokenizer"):
        from transformers.convert_slow_tokenizer import bytes_to_unicode

        back = {character: byte for byte, character in bytes_to_unicode().items()}
        return lambda piece: bytes(back[c] for c in piece) if all(c in back for c in piece) else piece.encode()
    if model["type"] == "WordPiece":
        prefix = model["continuing_subword_prefix"]
        return lambda piece: piece.removeprefix(prefix).encode() if piece.startswith(prefix) else b" " + piece.encode()
    if model["type"] == "WordLevel" and not steps:
        return lambda piece: b" " + piece.encode()
    if model["type"] not in ("BPE", "Unigram", "WordLevel"):
        raise ValueError(
            f"a tokenizer of type {model['type']} is not known: BPE, Unigram, WordPiece or WordLevel is needed"
        )
    hexadecimal = {f"<0x{byte:02X}>": bytes([byte]) for byte in range(256)} if model.get("byte_fallback") else {}
    marked = bool({"Metaspace", "Replace"} & set(steps))
    return lambda piece: hexadecimal.get(piece) or (piece.replace(MARK, " ") if marked else piece).encode()


def step_types(spec: dict[str, Any], *parts: str) -> list[str]:
    """Types of the steps of a tokenizer's parts, sequences opened."""
    found: list[str] = []
    for part in parts:
        step = spec.get(part) if isinstance(part, str) else part
        if step:
            inner = [value for key in ("decoders", "pretokenizers", "normalizers") for value in step.get(key, [])]
            found += [step["type"], *(name for value in inner for name in step_types({"step": value}, "step"))]
    return found


def _without_lead(spec: dict[str, Any]) -> Tokenizer:
    """The same tokenizer that puts nothing in front of a text, adds no special token and reads none."""
    from tokenizers import Tokenizer

    blanks_go = any(
        name.startswith("Whitespace") for name in step_types(spec, "pre_tokenizer")
    )  # each word gets its own mark

    def edited(step: Any) -> Any:
        if isinstance(step, list):
            return [edited(value) for value in step if not (isinstance(value, dict) and value.get("type") == "Prepend")]
        if not isinstance(step, dict):
            return step
        step = {key: edited(value) for key, value in step.items()}
        if step.get("type") == "Prepend":
            return None
        if "prepend_scheme" in step and not blanks_go:
            step["prepend_scheme"] = "never"
        if "add_prefix_space" in step:
            step["add_prefix_space"] = False
        return step

    parts = {name: edited(spec[name]) for name in ("normalizer", "pre_tokenizer")}
    plain = {**spec, **parts, "post_processor": None, "truncation": None, "padding": None}
    plain["added_tokens"] = [token for token in spec["added_tokens"] if not token["special"]]
    model = dict(spec["model"])
    return Tokenizer.from_str(json.dumps({**plain, "model": model}))


def _lead(backend: Tokenizer, spelled: Sequence[bytes | None], table: dict[int, bytes]) -> bytes:
    """What stands in front of a text: found on a text that begins with a letter the tokenizer knows."""
    letters = [text.strip() for text in table.values() if text.strip()[:1].isalnum()]
    for probe in [b"a", *letters[:200]]:
        try:
            pieces = [spelled[token] for token in backend.encode(probe.decode(), add_special_tokens=False).ids]
        except UnicodeDecodeError:
            continue
        if pieces and None not in pieces:
            found = b"".join(pieces)  # type: ignore[arg-type]
            if found.endswith(probe):
                return found.removesuffix(probe)
    return b""
