"""Whether a decoder of a masked model still samples from its model, and the reason where it does not.

One position a call, drawn from its own law, in an order that looks only at what is written: by the chain rule that samples
one joint law, the model's own where its laws of one token given some others all belong to one. Everything else changes it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from shiftscope.core.denoising.length import Length
from shiftscope.core.denoising.scope import Scope
from shiftscope.core.masked import Filling

Kind = Literal["exact", "exact_if_consistent", "no"]


@dataclass(frozen=True)
class Preservation:
    """kind: exact, exact_if_consistent (where the model's laws belong to one joint law) or no. reason: in words."""

    kind: Kind
    reason: str


def along_its_order(found: Preservation) -> Preservation:
    """The same of a masked model that is filled in an order fixed in advance: exact for that order, others may differ."""
    if found.kind != "exact":
        return found
    return Preservation(
        "exact_if_consistent",
        "each text has exactly the law of filling its positions one by one in an order fixed in advance: that is a sample "
        "of the model where its laws belong to one joint law",
    )


def preserves(filling: Filling, scope: Scope = Scope(), length: Length = Length()) -> Preservation:
    """What a decoder with these settings keeps of its model's law of a text, up to the text's end."""
    found = [*_drawing(filling), *_seeing(scope), *_lengths(length)]
    if found:
        return Preservation("no", "; ".join(found))
    return Preservation(
        "exact_if_consistent",
        "every token is drawn alone from its own law, in an order that looks at the written text only: that is a sample "
        "of the model where its laws belong to one joint law",
    )


def _drawing(filling: Filling) -> Iterator[str]:
    if filling.temperature == 0:
        yield "temperature 0 takes the likeliest token and draws nothing"
    elif filling.temperature != 1:
        yield f"temperature {filling.temperature:g} changes every law that is drawn from"
    if filling.top_p < 1:
        yield f"top_p {filling.top_p:g} leaves out the tail of every law"
    if filling.order == "sampled":
        yield "positions are chosen by the probability of what was drawn there, which favours likely tokens"
    if not filling.one_by_one:
        yield "several positions of a call are drawn as if they did not depend on each other"


def _seeing(scope: Scope) -> Iterator[str]:
    if scope.method != "window":
        return
    if scope.refresh > 1:
        yield f"keys and values up to {scope.refresh - 1} calls old are looked at"
    if scope.outer and (scope.refresh > 1 or scope.refresh_over == "window"):
        yield f"hidden positions beyond the first {scope.outer} are not seen, as if the canvas were shorter"


def _lengths(length: Length) -> Iterator[str]:
    if length.length == "rho-eos":
        yield "the length of the canvas follows what the model foresees"
