"""A masked model whose laws are exact: the posteriors of a Markov chain, by forward and backward recursion.

Its conditionals are mutually consistent, so every decoder that keeps the law of its model must give texts of the chain;
what it does to the law can be read off without any training.

Source: the recursions of Baum and Petrie (1966) for a chain that is seen at some places and hidden at others.
"""

# B texts, T places, K wanted places, S states

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]


@dataclass(frozen=True)
class MarkovOracle:
    """A Markov chain as a masked model. first_S: law of the first state. step_SS: of the next, by row. mask_id: S."""

    first_S: Array
    step_SS: Array
    name: str = "oracle"
    end_ids: tuple[int, ...] = ()
    shift: int = 0
    context_length: int | None = None
    windows: bool = False
    tokenizer: Any = None
    provenance: dict[str, Any] = field(default_factory=lambda: {"name": "oracle"})

    @property
    def mask_id(self) -> int:
        """The state that stands for a hidden one."""
        return len(self.first_S)

    @property
    def vocabulary_size(self) -> int:
        """States and the mask."""
        return len(self.first_S) + 1

    def logits(
        self,
        ids: Sequence[Sequence[int]],
        wanted: Sequence[Sequence[int]],
        *,
        positions: Sequence[Sequence[int]] | None = None,
        window: Any = None,
    ) -> list[Tensor]:
        """Log-posteriors of the wanted places of every text given its visible ones, [K, S + 1]; the mask's are -inf."""
        assert window is None, "a chain has no keys and values"
        assert positions is None, "a chain is read whole"
        posterior_BTS = self.posteriors(np.asarray(ids))
        with np.errstate(divide="ignore"):
            logp_BTS = np.log(posterior_BTS)
        logp_BTV = torch.from_numpy(np.concatenate([logp_BTS, np.full((*logp_BTS.shape[:2], 1), -np.inf)], 2))
        sizes = [len(places) for places in wanted]
        rows_N, places_N = np.repeat(np.arange(len(ids)), sizes), [place for places in wanted for place in places]
        return list(logp_BTV[torch.from_numpy(rows_N), torch.tensor(places_N, dtype=torch.long)].split(sizes))

    def posteriors(self, ids_BT: NDArray[np.int64]) -> Array:
        """The law of every place given the visible ones, [B, T, S]. Raises ValueError for a text the chain cannot write."""
        S = len(self.first_S)
        seen_BTS = np.where(ids_BT[..., None] == S, 1.0, ids_BT[..., None] == np.arange(S))
        forward_BTS, backward_BTS = np.empty_like(seen_BTS), np.ones_like(seen_BTS)
        forward_BTS[:, 0] = self.first_S * seen_BTS[:, 0]
        for place in range(1, ids_BT.shape[1]):
            forward_BTS[:, place] = (forward_BTS[:, place - 1] @ self.step_SS) * seen_BTS[:, place]
        for place in range(ids_BT.shape[1] - 2, -1, -1):
            backward_BTS[:, place] = (backward_BTS[:, place + 1] * seen_BTS[:, place + 1]) @ self.step_SS.T
        joint_BTS = forward_BTS * backward_BTS
        total_BT1 = joint_BTS.sum(2, keepdims=True)
        if not (total_BT1 > 0).all():
            raise ValueError("a text has probability 0 under the chain: its visible states cannot follow each other")
        return joint_BTS / total_BT1

    def bigrams(self, length: int) -> Array:
        """Law of a pair of neighbours in a text of this many states, averaged over its places, [S, S]; sums to 1."""
        law_S, total_SS = self.first_S, np.zeros_like(self.step_SS)
        for _ in range(length - 1):
            total_SS += law_S[:, None] * self.step_SS
            law_S = law_S @ self.step_SS
        return total_SS / (length - 1)


def random_chain(states: int = 6, *, concentration: float = 0.3, seed: int = 0) -> MarkovOracle:
    """A chain with rows drawn from a Dirichlet law: the smaller concentration, the more a state tells of the next."""
    if states < 2 or concentration <= 0:
        raise ValueError(f"states {states} and concentration {concentration}: need at least 2 states and more than 0")
    generator = np.random.default_rng(seed)
    step_SS = generator.dirichlet(np.full(states, concentration), size=states)
    values, vectors = np.linalg.eig(step_SS.T)
    stationary_S = np.abs(np.real(vectors[:, np.argmax(np.real(values))]))
    return MarkovOracle(stationary_S / stationary_S.sum(), step_SS)
