"""adapt: train or steer a model to repair or exploit a change."""

from __future__ import annotations

from shiftscope.adapt.rlvr import rlvr
from shiftscope.adapt.tokenizer import tokenizer
from shiftscope.adapt.traces import traces

METHODS = {
    "rlvr": rlvr,
    "traces": traces,
    "tokenizer": tokenizer,
}

__all__ = ["METHODS", "rlvr", "tokenizer", "traces"]
