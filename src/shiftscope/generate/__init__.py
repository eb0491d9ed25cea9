"""generate: draw text whose law is known and stated."""

from __future__ import annotations

from shiftscope.generate.any_order import any_order
from shiftscope.generate.bytes import bytes_
from shiftscope.generate.ensemble import ensemble
from shiftscope.generate.masked import masked
from shiftscope.generate.navigate import navigate
from shiftscope.generate.urial import urial

METHODS = {
    "urial": urial,
    "navigate": navigate,
    "bytes": bytes_,
    "ensemble": ensemble,
    "any-order": any_order,
    "masked": masked,
}

__all__ = ["METHODS", "any_order", "bytes_", "ensemble", "masked", "navigate", "urial"]
