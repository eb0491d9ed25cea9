"""What each merge is worth: tokens of a text under ever more of a tokenizer's own merges, and under merges added to it.

Source: arXiv 2601.09039 (compression against the vocabulary's size).
Deviation: merges that are added are learnt on half of the documents and counted on the other half; a curve over the text
that they were chosen on promises more than a new text gives.
"""

# N tokens, D documents

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np

from shiftscope.core.tokenizers import merging, rates
from shiftscope.core.tokenizers.segmentation import Cut, Ints, Tokens


def own_merges(tokens: Tokens, texts: Sequence[str], points: int = 9) -> list[tuple[int, int]]:
    """(merges kept, tokens of the texts) for the first 0, …, all merges of a BPE tokenizer, in a geometric grid.

    Exact: the texts are encoded again with the list of merges cut short. Empty for a tokenizer that has no merges.
    """
    spec = json.loads(tokens.backend.to_str())
    if spec["model"]["type"] != "BPE":
        return []
    from tokenizers import Tokenizer

    merges = spec["model"]["merges"]
    grid = sorted({0, *(len(merges) >> step for step in range(points - 1))})
    found = []
    for kept in grid:
        whole = kept == len(merges)  # a tokenizer may take whole words from its vocabulary without merging
        model = {**spec["model"], "merges": merges[:kept]} | ({} if whole else {"ignore_merges": False})
        backend = Tokenizer.from_str(json.dumps({**spec, "model": model}))
        encodings = backend.encode_batch(list(texts), add_special_tokens=False)
        found.append((kept, sum(len(encoding.ids) for encoding in encodings)))
    return found


def added_merges(cut: Cut, size: int, n: int, seed: int = 0) -> Ints | None:
    """Tokens of the held-out half of the documents after 0, 1, …, n more merges learnt on the other half.

    Merges stay within the tokenizer's own words. size: ids it has. None with fewer than two documents; shorter than n + 1
    where no pair occurs twice any more.
    """
    learnt_N = rates.halves(len(cut.stream.lengths_D), seed)[cut.stream.document_N]
    if not learnt_N.any() or learnt_N.all():
        return None
    starts_N = cut.word_N.copy()
    starts_N[cut.stream.starts_D[cut.stream.lengths_D > 0]] = True
    train, test = (merging.bordered(cut.stream.ids_N[half], starts_N[half]) for half in (learnt_N, ~learnt_N))
    counts = [int((test >= 0).sum())]
    for merge in merging.learn(train, n, first_new=size):
        before = len(test)
        test = merging.merged(test, (merge.left, merge.right), merge.new)
        counts.append(counts[-1] - (before - len(test)))
    return np.array(counts, dtype=np.int64)
