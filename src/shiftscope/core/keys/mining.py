"""Mine a next-token law for different answers: list items in the prompt, try the best first tokens not tried, repeat.

Source: arXiv 2410.02284 (its remedy). The list only chooses first tokens; items are completed in the plain context
(`regular`), whose KV cache is read once for all probes of a prompt.
"""

# V vocabulary

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from shiftscope.core import completion
from shiftscope.core.checkpoints import Checkpoint
from shiftscope.core.completion import Completion, Prefix
from shiftscope.core.corpus import Template, Text
from shiftscope.core.keys import listing
from shiftscope.core.keys.listing import ListFormat
from shiftscope.core.settings import unread


@dataclass(frozen=True)
class Navigation:
    """How answers are mined (defaults of the paper; those that are None differ between lists and thoughts).

    mode: lists of items, or thoughts (ways of solving whose answers vote). rounds: how often the list is shown (10; 4
    for thoughts). per_round: first tokens tried each time (10; 1 for thoughts). max_item_tokens: longest item (64;
    256). regular: complete items in the plain context, not after the list. exclude: first tokens tried before are
    excluded by id, or by their text. most_listed: never list more items than this. control: also navigate by the items
    of another prompt. survey: with a verifier, ranks of the plain law that are judged, to know which tokens are right
    (lists only).
    """

    mode: Literal["lists", "thoughts"] = "lists"
    rounds: int | None = None
    per_round: int | None = None
    max_item_tokens: int | None = None
    regular: bool = True
    exclude: Literal["id", "string"] = "id"
    most_listed: int | None = None
    control: bool = False
    survey: int = 100

    def __post_init__(self) -> None:
        if self.mode not in ("lists", "thoughts") or self.exclude not in ("id", "string"):
            raise ValueError(f"mode {self.mode!r}, exclude {self.exclude!r}: need lists or thoughts, id or string")
        if self.mode == "thoughts":
            unread(self, type(self), "--mode lists", "survey")
        for name in ("rounds", "per_round", "max_item_tokens", "most_listed"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}: it must be at least 1")

    @property
    def n_rounds(self) -> int:
        """How often the list is shown."""
        return self.rounds or (10 if self.mode == "lists" else 4)

    @property
    def at_once(self) -> int:
        """First tokens tried in each round."""
        return self.per_round or (10 if self.mode == "lists" else 1)

    @property
    def longest(self) -> int:
        """Tokens of the longest item."""
        return self.max_item_tokens or (64 if self.mode == "lists" else 256)

    @property
    def budget(self) -> int:
        """Probes of one arm for one prompt."""
        return self.n_rounds * self.at_once


@dataclass
class Miner:
    """One model with how it is mined; remembers each prompt's navigation, also its neighbour's control."""

    checkpoint: Checkpoint
    navigation: Navigation
    form: ListFormat
    template: Template
    batch_size: int
    closed_V: NDArray[np.bool_] = field(init=False)
    found_before: dict[int, Sequence[Sequence[str]]] = field(default_factory=dict)
    waiting: dict[int, Walk] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.closed_V = completion.cannot_open(self.checkpoint, self.form.stop)

    def context(self, text: Text, items: Sequence[str]) -> tuple[Prefix, int]:
        """The prompt with these items listed, read; and how many of them were left out."""
        settings = self.navigation
        room = 1 if settings.regular else settings.longest
        ids, left_out = listing.context_ids(
            self.checkpoint, text, items, self.form, template=self.template, room=room, most=settings.most_listed
        )
        return completion.read(self.checkpoint, ids), left_out

    def complete(self, prefix: Prefix, firsts: Sequence[int]) -> list[Completion]:
        return completion.complete(
            self.checkpoint, prefix, firsts, max_tokens=self.navigation.longest, stop=self.form.stop,
            batch_size=self.batch_size,
        )  # fmt: skip

    def navigated(self, text: Text) -> Walk:
        """The navigation of a prompt by its own items; computed once, and handed out once: laws are large."""
        found = self.waiting.pop(text.text, None) or walk(self, text, "navigate", lambda _, own: own)
        self.found_before[text.text] = found.before
        return found

    def donated(self, text: Text) -> Sequence[Sequence[str]]:
        """What the navigation of a prompt had found before each round."""
        if text.text not in self.found_before:
            self.waiting[text.text] = self.navigated(text)
        return self.found_before[text.text]


@dataclass(frozen=True)
class Walk:
    """One arm on one prompt. probes: a row each; before: items found before each round; laws: read, without caches."""

    probes: Sequence[dict[str, Any]]
    before: Sequence[Sequence[str]]
    laws: Sequence[Prefix]


def walk(miner: Miner, text: Text, arm: str, listed: Callable[[int, list[str]], Sequence[str]]) -> Walk:
    """Round by round: list items, take the best first tokens not tried yet, complete each, keep what is new.

    listed: (round, own items so far) -> the items to show. Own items give navigation, none the plain ranking.
    """
    settings, tokenizer = miner.navigation, miner.checkpoint.tokenizer
    plain, _ = miner.context(text, [])
    tried: set[int | str] = set()
    own, seen, probes, before, laws = list[str](), set[str](), list[dict[str, Any]](), [], []
    for number in range(settings.n_rounds):
        items = list(listed(number, own))
        prefix, left_out = miner.context(text, items) if items else (plain, 0)
        before.append(list(own))
        laws.append(replace(prefix, cache=None))
        logp_V = prefix.logits_V.log_softmax(-1)
        order, masked = completion.ranked(prefix.logits_V, miner.closed_V)
        chosen = []
        for place, token in enumerate(order.tolist()):
            key = token if settings.exclude == "id" else str(tokenizer.decode([token]))
            if key not in tried:
                tried.add(key)
                chosen.append((place, token))
            if len(chosen) == settings.at_once:
                break
        done = miner.complete(plain if settings.regular else prefix, [token for _, token in chosen])
        for (place, token), answer in zip(chosen, done, strict=True):
            item = answer.text.strip() if settings.mode == "lists" else answer.text.rstrip()
            failed = not item.strip() or (settings.mode == "lists" and answer.ended == "length")
            repeated = not failed and listing.normalised(item) in seen
            probes.append(
                {
                    "text": text.text, "arm": arm, "probe": len(probes) + 1, "round": number, "token_id": token,
                    "rank": place + 1, "probability": float(logp_V[token].exp()), "item": item, "failed": failed,
                    "repeated": repeated, "listed": len(items) - left_out, "left_out": left_out,
                    "masked": int(masked[place]),
                }
            )  # fmt: skip
            if not failed and not repeated:
                seen.add(listing.normalised(item))
                own = [*own, item]
    return Walk(probes, before, laws)


def survey(miner: Miner, text: Text, plain: Walk) -> list[dict[str, Any]]:
    """Probes of the plain ranking beyond the budget, so that which tokens are right is known apart from any arm."""
    prefix, _ = miner.context(text, [])
    order, masked = completion.ranked(prefix.logits_V, miner.closed_V)
    tried = {probe["token_id"] for probe in plain.probes}
    places = [place for place, token in enumerate(order[: miner.navigation.survey].tolist()) if token not in tried]
    seen = {listing.normalised(probe["item"]) for probe in plain.probes}
    rows = []
    for place, answer in zip(places, miner.complete(prefix, order[places].tolist()), strict=True):
        item = answer.text.strip()
        repeated = listing.normalised(item) in seen
        seen.add(listing.normalised(item))
        rows.append(
            {
                "text": text.text, "arm": "survey", "probe": place + 1, "round": -1, "token_id": int(order[place]),
                "rank": place + 1, "item": item, "failed": not item or answer.ended == "length", "repeated": repeated,
                "listed": 0, "left_out": 0, "masked": int(masked[place]),
            }
        )  # fmt: skip
    return rows
