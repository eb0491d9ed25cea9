"""Compression-aware merges learnt in parts, so that an interrupted training goes on where it was.

Source: arXiv 2601.09039 (compression-aware merges).
"""

# N symbols

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict

import pyarrow as pa

from shiftscope.core.parts import Parts
from shiftscope.core.tokenizers import coding, merging, tokenizer_training
from shiftscope.core.tokenizers.coding import Ints
from shiftscope.core.tokenizers.merging import Merge
from shiftscope.core.tokenizers.tokenizer_training import ALPHABET, Compressing

CHUNK = 64  # new symbols of a part
MERGES = pa.schema(
    [
        ("left", pa.int32()),
        ("right", pa.int32()),
        ("new", pa.int32()),
        ("count", pa.int64()),
        ("code_bits", pa.float64()),
    ]
)


def learnt(
    sides: tuple[Sequence[str], Sequence[str]],
    n: int,
    compressing: Compressing,
    *,
    stage: str,
    parts: Parts,
    advance: Callable[[int, int], None] | None = None,
) -> list[Merge]:
    """The merges of `tokenizer_training.compression_merges`, part by part. sides: training and validation texts.

    stage: names the parts. advance: called with (new symbols so far, n) after each merge. With patience, which counts over all
    merges, there is one part.
    """
    train_N, valid_N = (tokenizer_training.symbols(side, across_words=compressing.across_words) for side in sides)
    pieces, found, size = list(ALPHABET), list[Merge](), n if compressing.patience else CHUNK

    def bits(ids_N: Ints, symbols: int) -> float:
        return coding.code_bits(ids_N, symbols, compressing.objective, compressing.packing)

    def measure(wanted: int) -> dict[str, pa.Table]:
        rows = []
        for merge in merging.learn(
            train_N, wanted, first_new=len(pieces), pieces=pieces, valid_N=valid_N, code_bits=bits,
            candidates=compressing.candidates, patience=compressing.patience,
        ):  # fmt: skip
            rows.append(asdict(merge))
            if advance:
                advance(min(n, merge.new + 1 - len(ALPHABET)), n)
        return {"merges": pa.Table.from_pylist(rows, schema=MERGES)}

    while (left := n - (len(pieces) - len(ALPHABET))) > 0:
        wanted = min(size, left)
        before = len(pieces)
        for row in parts.map(f"{stage}-{before}", [wanted], measure)["merges"].to_pylist():
            merge = Merge(**row)
            found.append(merge)
            train_N, valid_N = (
                merging.merged(side, (merge.left, merge.right), merge.new) for side in (train_N, valid_N)
            )
            pieces += [pieces[merge.left] + pieces[merge.right]] if merge.new == len(pieces) else []
        if len(pieces) - before < wanted:
            break
    return found
