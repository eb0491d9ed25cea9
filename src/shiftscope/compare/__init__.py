"""compare: what changed between A and B, where, and does it matter?"""

from __future__ import annotations

from shiftscope.compare.answers import answers
from shiftscope.compare.bytes import bytes_
from shiftscope.compare.keys import keys
from shiftscope.compare.layers import layers
from shiftscope.compare.models import models
from shiftscope.compare.scorers import scorers
from shiftscope.compare.swaps import swaps
from shiftscope.compare.tokens import tokens
from shiftscope.compare.traces import traces

METHODS = {
    "models": models,
    "tokens": tokens,
    "bytes": bytes_,
    "layers": layers,
    "keys": keys,
    "swaps": swaps,
    "traces": traces,
    "scorers": scorers,
    "answers": answers,
}

__all__ = ["METHODS", "answers", "bytes_", "keys", "layers", "models", "scorers", "swaps", "tokens", "traces"]
