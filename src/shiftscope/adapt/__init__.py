"""adapt: train or steer a model to repair or exploit a change."""

from __future__ import annotations

from shiftscope.adapt.rlvr import rlvr

METHODS = {
    "rlvr": rlvr,
}

__all__ = ["METHODS", "rlvr"]
