"""adapt: train or steer a model to repair or exploit a change."""

from __future__ import annotations

from shiftscope.adapt.rlvr import rlvr
from shiftscope.adapt.traces import traces

METHODS = {
    "rlvr": rlvr,
    "traces": traces,
}

__all__ = ["METHODS", "rlvr", "traces"]
