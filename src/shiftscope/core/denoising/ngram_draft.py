"""A draft without a network: the next token as the text's own known tokens follow each other.

Source: arXiv 2504.20456 (context n-grams). Deviation: counted anew in each round, so that no store has to be kept in step.
"""

# V vocabulary

from __future__ import annotations

from collections import Counter, defaultdict

import torch
from torch import Tensor

from shiftscope.core.denoising.gapped import Gapped


class NGrams:
    """A draft from the known tokens of one text: its bigrams, and its unigrams where the left neighbour is new.

    drafted: tokens drafted for the next positions, in order; each is the left neighbour of the position after it.
    """

    def __init__(self, text: Gapped) -> None:
        self.text, self.drafted = text, list[int]()
        hidden = set(text.order[text.known :])
        known = {position: token for position, token in enumerate(text.ids) if position not in hidden}
        self.known = known
        self.tokens = Counter(known.values())
        self.followers: defaultdict[int, Counter[int]] = defaultdict(Counter)
        for position, token in known.items():
            if position - 1 in known:
                self.followers[known[position - 1]][token] += 1

    def law(self, j: int, size: int) -> Tensor:
        """Log-probabilities [V] of the j-th next position (of the last one beyond it), float64."""
        ahead = self.text.ahead(j + 1)
        position = ahead[-1] - 1
        drafted = dict(zip(ahead, self.drafted, strict=False))
        left = drafted.get(position, self.known.get(position, -1))
        counts = self.followers.get(left) or self.tokens
        p_V = torch.zeros(size, dtype=torch.float64)
        p_V[list(counts)] = torch.tensor(list(counts.values()), dtype=torch.float64)
        return (p_V / p_V.sum()).log()
