"""The record of one decoding in any order: which position was filled, when, with what probability, at what cost.

A sampler makes one `Reveals` per text and adds to it as it goes: `spend` for a network call, `add` for a filled position.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Reveals:
    """What one decoding did, in the order in which it did it.

    position, token, call, logp_nats: per filled position its place in the text, the id written, the number of the network
    call that filled it (from 1) and the log-probability of the id under the law that it was drawn from.
    calls: network calls that this text took part in. rows: positions that they computed for it (token-forwards).
    pairs: (query, key) pairs that attention looked at, in one layer. auxiliary: calls of a draft that is no network.
    refreshes: calls that computed a whole window anew. edits: (call, canvas length) after each change of the length.
    """

    position: list[int] = field(default_factory=list)
    token: list[int] = field(default_factory=list)
    call: list[int] = field(default_factory=list)
    logp_nats: list[float] = field(default_factory=list)
    calls: int = 0
    rows: int = 0
    pairs: int = 0
    auxiliary: int = 0
    refreshes: int = 0
    edits: list[tuple[int, int]] = field(default_factory=list)

    def spend(self, rows: int, pairs: int, *, refresh: bool = False) -> None:
        """Count a network call that computed so many positions, each attending to some: pairs in all."""
        self.calls += 1
        self.rows += rows
        self.pairs += pairs
        self.refreshes += refresh

    def add(self, position: int, token: int, logp_nats: float) -> None:
        """Note that a position was filled by the call counted last."""
        self.position.append(position)
        self.token.append(token)
        self.call.append(self.calls)
        self.logp_nats.append(logp_nats)
