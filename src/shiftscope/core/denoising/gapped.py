"""Texts with hidden positions that are decoded in an order fixed in advance, and what speculation asks of a network.

Source: arXiv 2504.20456; judging by a batch of copies, for models without an order in their attention: arXiv 2510.04147.
"""

# B texts, K positions of a round, V vocabulary

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from shiftscope.core.denoising.reveals import Reveals
from shiftscope.core.randomness import uniforms

_COPIES = 64  # rows of a call that scores
_ORDERS = 3  # stream of random numbers


@dataclass(frozen=True)
class Round:
    """One round of one text: positions drafted, drafts kept, tokens written (kept, and one drawn anew or added)."""

    drafted: int
    kept: int
    written: int


@dataclass
class Gapped:
    """A text being filled. document: keys its random numbers. ids: anything where hidden. order: hidden positions in the
    order in which they are decoded, fixed in advance. known: how many of them are decoded. rounds: of speculation.
    """

    document: int
    ids: list[int]
    order: tuple[int, ...]
    known: int = 0
    record: Reveals = field(default_factory=Reveals)
    rounds: list[Round] = field(default_factory=list)

    @property
    def left(self) -> int:
        """How many positions are still hidden."""
        return len(self.order) - self.known

    def ahead(self, count: int) -> tuple[int, ...]:
        """The next positions to be decoded, so many or as many as are left."""
        return self.order[self.known : self.known + count]

    def write(self, token: int, logp_nats: float) -> None:
        """Fill the next position."""
        position = self.order[self.known]
        self.ids[position] = token
        self.record.add(position, token, logp_nats)
        self.known += 1


def spread_order(document: int, hidden: Sequence[int], seed: int) -> tuple[int, ...]:
    """The hidden positions in a random order that looks at nothing: positions next to each other seldom share a round."""
    priority = uniforms(seed, [document] * len(hidden), hidden, _ORDERS)
    return tuple(hidden[row] for row in np.argsort(-priority))


class Network(Protocol):
    """What speculation asks of a model; each call is counted in the records of the texts that take part."""

    @property
    def vocabulary_size(self) -> int:
        """Token ids that a law may name."""

    def draft(self, texts: Sequence[Gapped], counts: Sequence[int]) -> Tensor:
        """Logits [B, K, V] of the next positions, so many of each text, each given the known tokens only."""

    def judge(
        self, texts: Sequence[Gapped], drafts: Sequence[Sequence[int]], counts: Sequence[int], first: Sequence[int]
    ) -> Tensor:
        """Logits [B, K, V] of the next positions from each text's `first` to before its count, each given the drafts before."""

    def joint_logp(self, texts: Sequence[Gapped]) -> list[Tensor]:
        """log p, in nats, of each token at a text's `order`, given the rest and those before it in the order."""


Logits = Callable[[Sequence[Sequence[int]], Sequence[Sequence[int]]], Sequence[Tensor]]


@dataclass(frozen=True)
class MaskedNetwork:
    """Any masked language model as a network for speculation: it is judged by a batch of copies, one for each draft.

    logits: (ids of texts, places wanted of each) -> logits [places, V] of each, the mask token's -inf. The law is exact
    for the order fixed in advance; orders agree only as far as the model is consistent. A spread order drafts best.
    """

    logits: Logits
    mask_id: int
    vocabulary_size: int

    def draft(self, texts: Sequence[Gapped], counts: Sequence[int]) -> Tensor:
        """As `Network.draft`: one row a text."""
        for text in texts:
            text.record.spend(len(text.ids), len(text.ids) ** 2)
        wanted = [text.ahead(count) for text, count in zip(texts, counts, strict=True)]
        return pad_sequence(
            list(self.logits([self._filled(text, ()) for text in texts], wanted)), batch_first=True
        ).cpu()

    def judge(
        self, texts: Sequence[Gapped], drafts: Sequence[Sequence[int]], counts: Sequence[int], first: Sequence[int]
    ) -> Tensor:
        """As `Network.judge`: one row for each position asked for."""
        rows, wanted = [], []
        sizes = [count - start for count, start in zip(counts, first, strict=True)]
        for text, draft, count, size in zip(texts, drafts, counts, sizes, strict=True):
            rows += [self._filled(text, draft[:j]) for j in range(count - size, count)]
            wanted += [[place] for place in text.ahead(count)[count - size :]]
            text.record.spend(size * len(text.ids), size * len(text.ids) ** 2)
        return pad_sequence(list(torch.cat(list(self.logits(rows, wanted))).split(sizes)), batch_first=True).cpu()

    def joint_logp(self, texts: Sequence[Gapped]) -> list[Tensor]:
        """log p, in nats, of each token at the text's `order`, given the rest and those before it in the order.

        A row for each token, in calls of at most 64. The sum is the log-density along this order; another order's is
        another number where the model's laws do not belong to one joint law.
        """
        found = []
        for text in texts:
            blank = Gapped(text.document, text.ids, text.order, record=text.record)
            tokens, logits = [text.ids[place] for place in text.order], list[Tensor]()
            for start in range(0, len(tokens), _COPIES):
                logits += self.judge([blank], [tokens], [min(start + _COPIES, len(tokens))], [start])
            logp_KV = torch.cat(logits).double().log_softmax(-1)
            found.append(logp_KV.gather(-1, torch.tensor(tokens)[:, None])[:, 0])
        return found

    def _filled(self, text: Gapped, drafts: Sequence[int]) -> list[int]:
        """The text with these drafts in its next positions and the mask in the ones after them."""
        ids = list(text.ids)
        for j, place in enumerate(text.order[text.known :]):
            ids[place] = drafts[j] if j < len(drafts) else self.mask_id
        return ids
