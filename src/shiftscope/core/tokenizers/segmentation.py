"""Texts cut into tokens by any tokenizer: streams with their places in the text, and what is lost on the way.

A tokenizer is named by a checkpoint (zoo name, folder, hub id, `@revision`) or by a file: a tokenizer.json, a tekken.json or
a SentencePiece model.
"""

# N tokens, D documents

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from shiftscope.core import checkpoints
from shiftscope.core.bytes import token_bytes, tokenizer_files
from shiftscope.core.tokenizers.coding import Stream

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Ints = NDArray[np.int64]
SAYS_LITTLE = ("tokenizer.json", "tokenizer", "checkpoint")  # names of files and folders that many tokenizers have
BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")


@dataclass(frozen=True)
class Tokens:
    """A tokenizer to be measured, a private copy without truncation, padding or tokens around a text.

    name: as given, of a path its last part; label: for figures, letters and digits. size: ids it has, special and added
    ones included.
    """

    name: str
    label: str
    backend: Tokenizer
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return int(self.backend.get_vocab_size(with_added_tokens=True))

    @property
    def kind(self) -> str:
        """BPE, Unigram, WordPiece or WordLevel."""
        return type(self.backend.model).__name__


def opened(names: Sequence[str] | Mapping[str, Any]) -> list[Tokens]:
    """Tokenizers by name, or given ones (of `tokenizers` or `transformers`) under the names of a mapping.

    Raises ValueError, in one sentence, for a name that is no tokenizer, one given twice or a tokenizer of unknown kind.
    """
    twice = [name for name in dict.fromkeys(names) if list(names).count(name) > 1]
    if twice:
        raise ValueError(f"{twice[0]} is given twice: name each tokenizer once")
    given = names if isinstance(names, Mapping) else {name: name for name in names}
    shown = {} if isinstance(names, Mapping) else _short(list(given))
    found: list[Tokens] = []
    for name, tokenizer in given.items():
        label = (
            re.sub(r"\W+", "_", Path(name).stem if tokenizer_files.is_named(name) else name).strip("_") or "tokenizer"
        )
        taken, number, free = {other.label for other in found}, 1, label
        while free in taken:
            number += 1
            free = f"{label}_{number}"
        backend = _backend(name, tokenizer)
        text = backend.to_str()
        provenance = {
            "name": name, "kind": type(backend.model).__name__, "sha256": hashlib.sha256(text.encode()).hexdigest()
        }  # fmt: skip
        found.append(Tokens(shown.get(name, name), free, _bare(text, backend.encode_special_tokens), provenance))
    return found


def _short(names: Sequence[str]) -> dict[str, str]:
    """The last part of every name that is a path, or two where one would say little; whole names where they are not unique."""
    last = {}
    for name in names:
        path = Path(name)
        parts = path.parts[-2:] if path.name in SAYS_LITTLE else path.parts[-1:]
        last[name] = "/".join(parts) if path.exists() and parts else name
    return last if len(set(last.values())) == len(last) else {}


def _backend(name: str, given: Any) -> Tokenizer:
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer, PreTrainedTokenizerBase

    if isinstance(given, Tokenizer):
        return given
    if isinstance(given, str | Path):
        path = Path(given)
        file = path if path.is_file() else path / "tokenizer.json"
        own = file if file.is_file() else tokenizer_files.of_folder(path)
        if own is not None:
            return tokenizer_files.read(own)
        source = checkpoints.parse(str(given))
        try:
            given = AutoTokenizer.from_pretrained(source.path, revision=source.revision)
        except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
            reason = str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
            raise ValueError(f"{name!r} cannot be loaded as a tokenizer: {reason}") from error
    if not isinstance(given, PreTrainedTokenizerBase):
        raise ValueError(
            f"{name!r} is a {type(given).__name__}: a tokenizer of an unknown kind; a `tokenizers` one (with a tokenizer.json: "
            f"BPE, Unigram, WordPiece or WordLevel) is needed"
        )
    return token_bytes.backend_of(given)[0]


def _bare(text: str, spells_special: bool) -> Tokenizer:
    """A copy whose offsets are untrimmed and that adds nothing to a text.

    spells_special: a special token's name in a text is text, as the original has it.
    """
    from tokenizers import Tokenizer

    bare = Tokenizer.from_str(
        json.dumps({**json.loads(text), "post_processor": None, "truncation": None, "padding": None})
    )
    bare.encode_special_tokens = spells_special
    return bare


@dataclass(frozen=True)
class Cut:
    """Texts as one tokenizer cuts them.

    stream: ids with document lengths. begin_N, end_N: characters of each token, counted from the start of the first
    document (tokens within one character share both). word_N: whether a token starts a pre-token; merges stay within them.
    lossy_D: documents that do not come back from their ids. unknown_id: id for what cannot be spelt, -1 where there is none;
    byte_ids: ids of <0x..> tokens.
    """

    stream: Stream
    begin_N: Ints
    end_N: Ints
    word_N: NDArray[np.bool_]
    lossy_D: NDArray[np.bool_]
    unknown_id: int
    byte_ids: tuple[int, ...]


def cut(tokens: Tokens, texts: Sequence[str]) -> Cut:
    """Encode texts without special tokens. Raises ValueError where nothing of them is left after normalisation."""
    ids, begins, ends, words, lengths, lossy = [], [], [], [], [], []
    unit = 0
    for start in range(0, len(texts), 256):
        some = list(texts[start : start + 256])
        encodings = tokens.backend.encode_batch(some, add_special_tokens=False)
        decoded = tokens.backend.decode_batch([e.ids for e in encodings], skip_special_tokens=False)
        for text, encoding, back in zip(some, encodings, decoded, strict=True):
            offsets = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2) + unit
            numbers = np.array([-1 if word is None else word for word in encoding.word_ids], dtype=np.int64)
            ids.append(np.array(encoding.ids, dtype=np.int64))
            begins.append(offsets[:, 0])
            ends.append(offsets[:, 1])
            words.append((np.diff(numbers, prepend=-2) != 0) | (numbers < 0))
            lengths.append(len(encoding.ids))
            lossy.append(back != text)
            unit += len(text)
    stream = Stream(np.concatenate(ids), np.array(lengths, dtype=np.int64))
    if not len(stream.ids_N):
        raise ValueError(
            f"{tokens.name} turns all {len(texts)} texts ({unit} characters) into no token at all: its normaliser or "
            f"pre-tokenizer drops them; give other texts or another tokenizer"
        )
    vocabulary = tokens.backend.get_vocab(with_added_tokens=True)
    of_bytes = tuple(token for piece, token in vocabulary.items() if BYTE_TOKEN.fullmatch(piece))
    return Cut(
        stream, np.concatenate(begins), np.concatenate(ends), np.concatenate(words), np.array(lossy),
        _unknown_id(tokens, vocabulary), of_bytes,
    )  # fmt: skip


def _unknown_id(tokens: Tokens, vocabulary: Mapping[str, int]) -> int:
    """The id for what cannot be spelt; -1 where there is none. A Unigram model names it by number, others by string."""
    model = json.loads(tokens.backend.to_str())["model"]
    number = model.get("unk_id", vocabulary.get(model.get("unk_token")))
    return -1 if number is None else int(number)
