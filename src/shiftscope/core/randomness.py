"""Uniform numbers keyed by (seed, document, position): sharding, batching and drafting cannot change a sample."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def uniforms(seed: int, documents_B: ArrayLike, positions_B: ArrayLike, stream: ArrayLike = 0) -> NDArray[np.float64]:
    """One number in [0, 1) for every (document, position): a hash, so it needs no state and no order.

    documents_B, positions_B, stream: broadcast against each other. stream: numbers for different purposes at the same place
    (a draw, a control, a retry). 53 random bits each.
    """
    with np.errstate(over="ignore"):
        state = _mix(
            np.asarray(seed, dtype=np.uint64)
            + np.uint64(0x9E3779B97F4A7C15) * (np.asarray(stream, dtype=np.uint64) + np.uint64(1))
        )
        state = _mix(state ^ _mix(np.asarray(documents_B, dtype=np.uint64) + np.uint64(0xD1B54A32D192ED03)))
        state = _mix(state ^ _mix(np.asarray(positions_B, dtype=np.uint64) + np.uint64(0x8CB92BA72F3D8DD7)))
    return (state >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014): every input bit reaches every output bit."""
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
