"""Trials of an editing task as rows: outcome, artefact and ids of each, what an id mask learns from them, and tables' columns.

Source: arXiv 2601.14658 (outcomes, transitions, the id mask).
Deviation: the mask is fitted on half of the words, so that the other half says what it is worth.
"""

# V ids of the model

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from shiftscope.core.edits.artefacts import LABELS, Affixes, classify
from shiftscope.core.edits.edit_prompts import Prompt
from shiftscope.core.edits.edit_slots import PHANTOM, REPLACED, UNCHANGED, UNSCORABLE, Cut, judged
from shiftscope.core.edits.phantom import Mask

NONE, TIGHT, IDS, CANONICAL, BYTES = "none", "tight_brackets", "id_mask", "canonical_mask", "byte_exact"
RECORDED = "recorded"
TRIALS = pa.schema(
    [
        ("decoder", pa.string()), ("passage", pa.int32()), ("target", pa.int32()), ("word", pa.string()),
        ("sample", pa.int32()), ("outcome", pa.string()), ("outcome_plain", pa.string()), ("why", pa.string()),
        ("artefact", pa.string()), ("also", pa.list_(pa.string())), ("n_before", pa.int32()), ("n_after", pa.int32()),
        ("ids_before", pa.list_(pa.int32())), ("ids_after", pa.list_(pa.int32())), ("before", pa.string()),
        ("after", pa.string()), ("crosses", pa.bool_()),
    ]
)  # fmt: skip
MASSES = pa.schema(
    [
        ("decoder", pa.string()), ("passage", pa.int32()), ("target", pa.int32()), ("word", pa.string()),
        ("unchanged", pa.float64()), ("phantom", pa.float64()), ("left_out", pa.float64()),
        *((label, pa.float64()) for label in LABELS),
    ]
)  # fmt: skip
SURFACE = pa.schema(
    [
        ("word", pa.string()), ("count", pa.int64()), ("ways", pa.int64()), ("canonical", pa.string()),
        *((label, pa.int64()) for label in LABELS),
    ]
)  # fmt: skip


def row_of(
    label: str, prompt: Prompt, target: int, sample: int, cut: Cut | str, affixes: Affixes, *, place: int | None = None
) -> dict[str, Any]:
    """One trial. target: of the prompt; place: of the passage, where the prompt has one target alone."""
    reference = prompt.references[target]
    row: dict[str, Any] = {
        "decoder": label, "passage": prompt.passage.number, "target": target if place is None else place,
        "word": reference.word, "sample": sample, "outcome": UNSCORABLE, "outcome_plain": UNSCORABLE, "why": None,
        "artefact": None, "also": [], "n_before": len(reference.bracketed.ids), "n_after": None,
        "ids_before": list(reference.bracketed.ids), "ids_after": [], "before": shown(reference.bracketed.pieces),
        "after": None, "crosses": False,
    }  # fmt: skip
    if isinstance(cut, str):
        return row | {"why": cut}
    if label == BYTES:  # its units are bytes: the word is the same or it is not
        same = UNCHANGED if cut.word == reference.bracketed.word else REPLACED
        return row | {"outcome": same, "outcome_plain": same, "after": shown([b"".join(cut.pieces)])}
    outcome = judged(reference.bracketed, cut)
    row |= {
        "outcome": outcome, "outcome_plain": judged(reference.plain, cut), "n_after": len(cut.ids),
        "ids_after": list(cut.ids), "after": shown(cut.pieces), "crosses": cut.crosses,
    }  # fmt: skip
    if outcome == PHANTOM:
        found = classify(reference.bracketed.pieces, cut.pieces, affixes)
        row |= {"artefact": found.label, "also": list(found.also)}
    return row


def forbidden_ids(trials: pa.Table, size: int) -> Mask:
    """The id mask [V]: ids that stood in phantom edits of half of the words, and not in the word before the edit."""
    mask = np.zeros(size, dtype=bool)
    for row in trials.to_pylist():
        if row["decoder"] == NONE and row["outcome"] == PHANTOM and is_fitted(row["word"]):
            mask[sorted(set(row["ids_after"]) - set(row["ids_before"]))] = True
    return mask


def is_fitted(word: str) -> bool:
    """Whether the id mask is fitted on a word: half of the words, by a hash."""
    return zlib.crc32(word.lower().encode()) % 2 == 0


def shown(pieces: Sequence[bytes]) -> str:
    """Pieces as a reader should see them: cuts as |, blanks visible."""
    text = "|".join(piece.decode("utf-8", "backslashreplace") for piece in pieces)
    return text.replace(" ", "␣").replace("\n", "↵").replace("\t", "⇥")
