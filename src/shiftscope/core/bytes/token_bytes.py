"""The bytes of every token of a real tokenizer, in sorted order: tokens that begin alike are one interval.

Byte-level BPE, SentencePiece BPE with byte fallback, Unigram, WordPiece, word-level vocabularies and BPE that marks ends
of words are read from the tokenizer's own description (`tokenizer.json`, tekken.json, a SentencePiece model), not from what
it decodes: a token that is a part of a character would come back as U+FFFD. Which sequences of tokens its encoder can
produce is the matter of `core/bytes/canonical.py`.

Source: arXiv 2410.09303 (tokens as byte strings; special tokens are never spelt).
"""

# V ids of the model, J tokens that have bytes, in sorted order

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from shiftscope.core.bytes import tokenizer_files
from shiftscope.core.bytes.tokenizer_files import MARK

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, eq=False)
class TokenBytes:
    """A vocabulary as bytes.

    spelled: for each id of the model its bytes, None for special tokens and padding, which are never spelt.
    lead: bytes that the tokenizer puts in front of every text (a dummy space); trail: those behind every word (a blank,
    where tokens mark ends of words). probe: a letter that it knows. family: of the tokenizer.
    plain: the tokenizer without that lead. backend: the tokenizer's own. added: the ids that it finds in a text before it cuts
    the rest, with the bytes it looks for.
    """

    spelled: tuple[bytes | None, ...] = field(repr=False)
    lead: bytes
    family: Literal["BPE", "Unigram", "WordPiece", "WordLevel"]
    byte_level: bool
    plain: Tokenizer = field(repr=False)
    backend: Tokenizer = field(repr=False)
    sorted_bytes: list[bytes] = field(repr=False)
    ids_J: NDArray[np.int64] = field(repr=False)
    trail: bytes = b""
    probe: str = "a"
    added: Mapping[int, bytes] = field(default_factory=dict, repr=False)

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
        """The text itself, as bytes, where it is the beginning of a text that comes back from its tokens unchanged.

        A begun last character stays, so does a blank at the end where the next word brings it, and, where tokens are made
        word by word, a begun last word.
        Raises ValueError, with the place, where it is not: it holds something the tokenizer drops, changes or does not know.
        """
        given = text.encode() if isinstance(text, str) else text
        whole, _ = complete(given)
        stem, blank, begun = whole.rpartition(b" ")
        if self._begins_a_word(begun) and (not blank or self._returns(stem + blank)):
            return given
        if not self._returns(whole):
            found = self._spelt(whole)
            same = (a == b for a, b in zip(found, whole, strict=False))
            at = next((place for place, equal in enumerate(same) if not equal), min(len(found), len(whole)))
            raise ValueError(
                f"the tokenizer changes the text from byte {at} on (it spells {_short(found[at : at + 20])}, given is "
                f"{_short(whole[at : at + 20])}): give the text as the tokenizer normalises it"
            )
        return given

    def _returns(self, text: bytes) -> bool:
        """Whether a text comes back from its tokens, by itself or with a letter behind its last blank."""
        letter = self.probe.encode()
        return self._spelt(text) in (text, text + self.trail) or (
            text[-1:].isspace() and self._spelt(text + letter) in (text + letter, text + letter + self.trail)
        )

    def _begins_a_word(self, begun: bytes) -> bool:
        """Whether a last word may be cut anywhere: tokens are made word by word, and the normaliser keeps these letters."""
        if not begun or not (self.trail or self.family in ("WordPiece", "WordLevel")):
            return False
        normalizer, text = self.plain.normalizer, begun.decode()
        if normalizer is not None and normalizer.normalize_str(text).strip() != text:
            return False
        low, high = self.interval(b" " + begun)
        return self.family != "WordLevel" or low < high

    def _spelt(self, text: bytes) -> bytes:
        """What the tokens of a text spell, without the lead."""
        encoding = self.backend.encode(text.decode(), add_special_tokens=False)
        pieces = [self.spelled[token] if token < self.size else None for token in encoding.ids]
        if None in pieces:
            at = len(text.decode()[: encoding.offsets[pieces.index(None)][0]].encode())
            raise ValueError(
                f"the text {_short(text)} holds at byte {at} what the tokenizer reads as a special or unknown token: "
                f"leave it out (`generate bytes --spelt` reads special tokens that are named there)"
            )
        return b"".join(pieces).removeprefix(self.lead)  # type: ignore[arg-type]


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


def read(
    tokenizer: PreTrainedTokenizerBase | Tokenizer | str | Path,
    size: int | None = None,
    *,
    spelt: Collection[str] = (),
    ends: Collection[int] = (),
) -> TokenBytes:
    """The bytes of every token. size: ids of the model (default: the tokenizer's); ids beyond the tokenizer have none.

    tokenizer: of `transformers` or `tokenizers`, or the path of a tokenizer.json, a tekken.json or a SentencePiece model.
    spelt: special tokens that a text may name, so that their names stand for them; all others are never spelt. ends: ids that
    are special too, because they end a text.
    Raises ValueError for a tokenizer whose tokens are not made of bytes in a way that is known, naming what it is, and for
    names that are no special tokens it reads in a text.
    """
    backend, special = backend_of(tokenizer)
    spec = json.loads(backend.to_str())
    family, pieces = spec["model"]["type"], backend.get_vocab(with_added_tokens=True)
    special |= {t["id"] for t in spec["added_tokens"] if t["special"]} | set(ends)
    _check_names(spelt, spec, backend)
    special -= {t["id"] for t in spec["added_tokens"] if t["content"] in spelt}
    added = {t["id"]: t["content"].encode() for t in spec["added_tokens"] if t["id"] not in special}
    spell = _speller(spec)
    table: dict[int, bytes] = {}
    for piece, token in pieces.items():
        if token not in special and piece != spec["model"].get("unk_token"):
            # runs of blanks that are added tokens written as marks are decoded like any other piece
            own = token not in added or (MARK in piece and piece in spec["model"]["vocab"])
            table[token] = spell(piece) if own else added[token]
    size = max(pieces.values()) + 1 if size is None else size
    spelled = tuple(table.get(token) or None for token in range(size))
    order = sorted((text, token) for token, text in enumerate(spelled) if text is not None)
    trail = b" " if spec["model"].get("end_of_word_suffix") else b""
    lead, probe = _lead(backend, spelled, table, trail)
    read_in_texts = {token: text for token, text in added.items() if token < size}
    return TokenBytes(
        spelled, lead, family, "ByteLevel" in step_types(spec, "decoder", "pre_tokenizer"),
        _without_lead(spec, backend, special), backend, [text for text, _ in order],
        np.array([token for _, token in order]), trail, probe, read_in_texts,
    )  # fmt: skip


def _check_names(spelt: Collection[str], spec: dict[str, Any], backend: Tokenizer) -> None:
    """Raise ValueError where a name is none of a special token that the tokenizer finds in a text."""
    known = [token["content"] for token in spec["added_tokens"] if token["special"]]
    for name in spelt:
        if name not in known:
            some = ", ".join(known[:8]) or "none"
            raise ValueError(f"{name!r} is no special token of the tokenizer (it has {some}{', …' * (len(known) > 8)})")
    if spelt and backend.encode_special_tokens:
        raise ValueError(
            f"the tokenizer never reads special tokens in a text, so that {next(iter(spelt))!r} cannot be spelt: leave it out"
        )


def backend_of(given: PreTrainedTokenizerBase | Tokenizer | str | Path) -> tuple[Tokenizer, set[int]]:
    """The tokenizer of `tokenizers` behind one of `transformers`, or in a file, and the special ids its wrapper knows.

    Raises ValueError for one that has none and names no file of a known kind.
    """
    from tokenizers import Tokenizer

    if isinstance(given, Tokenizer):
        return given, set()
    if isinstance(given, str | Path):
        return tokenizer_files.read(given), set()
    if given.is_fast:
        return given.backend_tokenizer, set(given.all_special_ids)
    path = given.init_kwargs.get("tokenizer_path")  # a wrapper of mistral-common names its file
    if path is None:
        raise ValueError(
            f"{type(given).__name__} is no `tokenizers` tokenizer, so its pieces cannot be read: load the checkpoint with "
            f"its tokenizer.json, tekken.json or SentencePiece model"
        )
    return tokenizer_files.read(path), set(given.all_special_ids)


def _speller(spec: dict[str, Any]) -> Any:
    """The function from a piece of the vocabulary to its bytes."""
    model, steps = spec["model"], step_types(spec, "decoder")
    if model["type"] == "BPE" and model.get("continuing_subword_prefix"):
        raise ValueError(
            f"the tokenizer is a BPE that marks pieces inside a word ({model['continuing_subword_prefix']!r}), which is not "
            f"known here: a BPE without such marks or with marks at ends of words is needed"
        )
    if model.get("end_of_word_suffix"):
        suffix, inner = model["end_of_word_suffix"], _speller({**spec, "model": {**model, "end_of_word_suffix": None}})
        return lambda piece: inner(piece.removesuffix(suffix)) + (b" " if piece.endswith(suffix) else b"")
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


def _without_lead(spec: dict[str, Any], backend: Tokenizer, special: Collection[int]) -> Tokenizer:
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
    plain["added_tokens"] = [
        {**token, "special": False} for token in spec["added_tokens"] if token["id"] not in special
    ]
    if backend.encode_special_tokens and plain == {**spec, "added_tokens": plain["added_tokens"]}:
        return backend
    return Tokenizer.from_str(json.dumps(plain))


def _lead(
    backend: Tokenizer, spelled: Sequence[bytes | None], table: dict[int, bytes], trail: bytes
) -> tuple[bytes, str]:
    """What stands in front of a text, and the letter that showed it: the first that the tokenizer knows."""
    letters = [text.strip() for text in table.values() if text.strip()[:1].isalnum()]
    for probe in [b"a", *letters[:200]]:
        try:
            pieces = [spelled[token] for token in backend.encode(probe.decode(), add_special_tokens=False).ids]
        except UnicodeDecodeError:
            continue
        if pieces and None not in pieces:
            found = b"".join(pieces).removesuffix(trail)  # type: ignore[arg-type]
            if found.endswith(probe):
                return found.removesuffix(probe), probe.decode()
    return b"", "a"
