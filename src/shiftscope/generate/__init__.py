"""generate: draw text whose law is known and stated."""

from __future__ import annotations

from shiftscope.generate.navigate import navigate
from shiftscope.generate.urial import urial

METHODS = {
    "urial": urial,
    "navigate": navigate,
}

__all__ = ["METHODS", "navigate", "urial"]
