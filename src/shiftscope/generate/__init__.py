"""generate: draw text whose law is known and stated."""

from __future__ import annotations

from shiftscope.generate.bytes import bytes_
from shiftscope.generate.ensemble import ensemble
from shiftscope.generate.navigate import navigate
from shiftscope.generate.urial import urial

METHODS = {
    "urial": urial,
    "navigate": navigate,
    "bytes": bytes_,
    "ensemble": ensemble,
}

__all__ = ["METHODS", "bytes_", "ensemble", "navigate", "urial"]
