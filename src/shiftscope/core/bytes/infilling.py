"""Fill in the middle: where to put a prefix and a suffix so that a model writes what stands between them, exact in bytes.

A frame is a template of the model's own tokens (known families are found in the tokenizer), or plain text. Where the prefix
stands last, all of it is covered byte by byte. Where it stands earlier, its last tokens, as far back as a token that goes
beyond the prefix could begin, are held back and forced as the first bytes of the middle.

Source: arXiv 2410.09303 (fill-in-the-middle from a prefix that ends inside a token); arXiv 2207.14255 (the orders
prefix-suffix-middle, PSM, and suffix-prefix-middle, SPM); arXiv 2308.12950 (SPM joins prefix and middle into one text).
Deviation: the source holds back from the last blank; here from where a token can reach beyond the prefix, which may be nowhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, islice
from typing import Any

from shiftscope.core.bytes import canonical, covers
from shiftscope.core.bytes.byte_law import Engine
from shiftscope.core.bytes.token_bytes import complete
from shiftscope.core.checkpoints import Checkpoint
from shiftscope.core.corpus import Text

PREFIX, SUFFIX = "{prefix}", "{suffix}"
PLAIN = f"What follows further down:\n{SUFFIX}\n\nThe whole text, from its beginning:\n{PREFIX}"
RESUMED = 24  # bytes of the suffix at which a middle in a plain frame ends


@dataclass(frozen=True)
class Family:
    """Frames of one family of models, psm or spm empty where it was not trained so, and more tokens that end a middle."""

    name: str
    psm: tuple[str, ...] = ()
    spm: tuple[str, ...] = ()
    ends: tuple[str, ...] = ()

    @property
    def marks(self) -> tuple[str, ...]:
        """The tokens of its frames; every one of them ends a middle."""
        return tuple(piece for piece in self.psm or self.spm if piece not in (PREFIX, SUFFIX))


FAMILIES = (
    Family(
        "Code Llama",
        ("▁<PRE>", PREFIX, "▁<SUF>", SUFFIX, "▁<MID>"),
        ("▁<PRE>", "▁<SUF>", SUFFIX, "▁<MID>", PREFIX),
        ("▁<EOT>",),
    ),
    Family(
        "StarCoder",
        ("<fim_prefix>", PREFIX, "<fim_suffix>", SUFFIX, "<fim_middle>"),
        ("<fim_prefix>", "<fim_suffix>", SUFFIX, "<fim_middle>", PREFIX),
        ("<fim_pad>", "<file_sep>"),
    ),
    Family(
        "SantaCoder",
        ("<fim-prefix>", PREFIX, "<fim-suffix>", SUFFIX, "<fim-middle>"),
        ("<fim-prefix>", "<fim-suffix>", SUFFIX, "<fim-middle>", PREFIX),
        ("<fim-pad>",),
    ),
    Family(
        "Qwen-Coder or CodeGemma",
        ("<|fim_prefix|>", PREFIX, "<|fim_suffix|>", SUFFIX, "<|fim_middle|>"),
        ends=("<|fim_pad|>", "<|file_separator|>", "<|file_sep|>", "<|repo_name|>"),
    ),
    Family("DeepSeek-Coder", ("<｜fim▁begin｜>", PREFIX, "<｜fim▁hole｜>", SUFFIX, "<｜fim▁end｜>")),
    Family("Codestral", spm=("[SUFFIX]", SUFFIX, "[PREFIX]", PREFIX), ends=("[MIDDLE]",)),
)


@dataclass(frozen=True)
class Infilling:
    """How a middle is asked for, where a record has a suffix.

    frame: auto (the model's own tokens, prefix first where it knows both orders), psm, spm, plain (a prompt in words, for
    models without such tokens) or a template such as '<s>{suffix}<p>{prefix}' with tokens of the model. middle_ends: tokens
    that end a middle, beside those of the family and the end of text.
    """

    frame: str = "auto"
    middle_ends: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.frame not in ("auto", "psm", "spm", "plain") and not (
            self.frame.count(PREFIX) == self.frame.count(SUFFIX) == 1
        ):
            raise ValueError(
                f"frame is {self.frame!r}: it must be auto, psm, spm, plain, or a template that has {PREFIX} and {SUFFIX} once"
            )


@dataclass(frozen=True)
class Gap:
    """A record of a corpus with its suffix; None where it has none and its prompt is simply continued."""

    text: Text
    suffix: str | None = None


def gaps(texts: Sequence[Text], records: Iterable[Mapping[str, Any]]) -> list[Gap]:
    """Texts with the `suffix` of the records that they were read from (none: all without).

    Raises ValueError, with the number of the record, for a suffix that is no text.
    """
    found = [record.get("suffix") for record in islice(records, len(texts))] or [None] * len(texts)
    for text, suffix in zip(texts, found, strict=True):
        if not isinstance(suffix, str | None):
            raise ValueError(f"record {text.text + 1} has a suffix that is a {type(suffix).__name__}: it must be text")
    return [Gap(text, suffix) for text, suffix in zip(texts, found, strict=True)]


class Infiller:
    """A model's frame, ready for records.

    pieces: token ids, the bytes of plain text, and the fields as they are named. resumes: whether there is no token, so that
    a middle ends where it begins to write the suffix.

    Raises ValueError, naming what is needed, where the tokenizer has no tokens of a known family, or none in that order.
    """

    def __init__(self, engine: Engine, checkpoint: Checkpoint, infilling: Infilling = Infilling()) -> None:
        vocabulary = {t: i for t, i in checkpoint.tokenizer.get_vocab().items() if i < checkpoint.vocabulary_size}
        self.pieces, ends = _frame(infilling.frame, checkpoint, vocabulary)
        if missing := [token for token in infilling.middle_ends if token not in vocabulary]:
            raise ValueError(f"{missing[0]!r} of middle_ends is no token of {checkpoint.name}: give one of its tokens")
        self.resumes = not any(isinstance(piece, int) for piece in self.pieces)
        ids = [vocabulary[token] for token in (*ends, *infilling.middle_ends) if token in vocabulary]
        self._ends = tuple(dict.fromkeys((*engine.ends, *ids)))
        self._engine = engine
        self._plain = replace(engine.tokens, lead=b"") if engine.tokens.lead else engine.tokens
        self._plain_rules = canonical.validity(self._plain, engine.support) if engine.tokens.lead else engine.rules

    def begun(self, prefix: str | bytes, suffix: str) -> tuple[Engine, bytes]:
        """The engine of texts that begin after the frame, and the bytes they begin with; then comes the middle.

        Raises ValueError where the tokenizer changes prefix or suffix.
        """
        tokens = self._engine.tokens
        before, after = tokens.normalised(prefix), tokens.normalised(suffix)
        if complete(after)[1]:
            raise ValueError("the suffix ends inside a character: a text is needed")
        last = max((place for place, piece in enumerate(self.pieces) if isinstance(piece, int)), default=-1)
        whole = PREFIX in self.pieces[last + 1 :]
        kept, held = (before, b"") if whole else self._divided(before)
        fills: dict[int | bytes | str, bytes] = {PREFIX: kept, SUFFIX: after}
        ids: list[int] = []
        run, leads = b"", False
        for piece in self.pieces:
            if isinstance(piece, int):
                ids += self._encoded(run, leads)
                ids.append(piece)
                run, leads = b"", False
            else:
                run, leads = run + (piece if isinstance(piece, bytes) else fills[piece]), leads or piece == PREFIX
        own = (tokens, self._engine.rules) if leads else (self._plain, self._plain_rules)
        return self._engine.framed(ids, *own, self._ends), run + held

    def resumed(self, suffix: str) -> bytes:
        """The bytes at which a middle has come to the suffix, where the frame has no token that could end it; else empty."""
        return suffix.encode()[:RESUMED] if self.resumes else b""

    def _divided(self, prefix: bytes) -> tuple[bytes, bytes]:
        """The prefix cut at the last boundary of its own tokens before which no token that goes beyond it could begin."""
        tokens, whole = self._engine.tokens, complete(prefix)[0]
        first = min((seed.start for seed in covers.reaching(self._engine, tokens.lead + prefix)), default=0)
        pieces = [tokens.spelled[token] or b"" for token in tokens.encode(whole.decode())]
        places = [0, *(place - len(tokens.lead) for place in accumulate(map(len, pieces)))]
        kept = complete(prefix[: max(place for place in places if 0 <= place <= max(0, first - len(tokens.lead)))])[0]
        return kept, prefix[len(kept) :]

    def _encoded(self, text: bytes, leads: bool) -> list[int]:
        if not text:
            return []
        tokens = self._engine.tokens
        return (
            tokens.encode(text.decode()) if leads else tokens.plain.encode(text.decode(), add_special_tokens=False).ids
        )


def _frame(
    frame: str, checkpoint: Checkpoint, vocabulary: Mapping[str, int]
) -> tuple[tuple[int | bytes | str, ...], tuple[str, ...]]:
    """The pieces of a frame, and the tokens that end a middle in it."""
    fields = (PREFIX, SUFFIX)
    if frame not in ("auto", "psm", "spm"):
        added = checkpoint.tokenizer.get_added_vocab().keys() & vocabulary.keys()
        marks = sorted((*fields, *added), key=len, reverse=True)
        parts = re.split(f"({'|'.join(map(re.escape, marks))})", PLAIN if frame == "plain" else frame)
        pieces = (part if part in fields else vocabulary[part] if part in added else part.encode() for part in parts)
        return tuple(piece for piece in pieces if piece != b""), tuple(part for part in parts if part in added)
    for family in FAMILIES:
        if not all(mark in vocabulary for mark in family.marks):
            continue
        chosen = (family.psm or family.spm) if frame == "auto" else family.psm if frame == "psm" else family.spm
        if not chosen:
            raise ValueError(
                f"{checkpoint.name} has the fill-in-the-middle tokens of {family.name}, which are not known in the order "
                f"{frame}: use {'psm' if family.psm else 'spm'}, or give a template of your own as frame"
            )
        pieces = (piece if piece in fields else vocabulary[piece] for piece in chosen)
        return tuple(pieces), (*family.marks, *family.ends)
    known = ", ".join(f"{family.marks[0]} of {family.name}" for family in FAMILIES)
    raise ValueError(
        f"{checkpoint.name} has no fill-in-the-middle tokens of a known family ({known}): use frame plain, or give a "
        f"template with {PREFIX} and {SUFFIX} as frame"
    )
