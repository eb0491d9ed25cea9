"""compare: what changed between A and B, where, and does it matter?"""

from __future__ import annotations

from shiftscope.compare.tokens import tokens

METHODS = {
    "tokens": tokens,
}

__all__ = ["METHODS", *METHODS]
