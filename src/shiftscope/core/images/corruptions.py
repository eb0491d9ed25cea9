"""Known corruptions of images and token grids: planted shifts of a stated strength, to see what a detector would find.

Pixels are on a scale from 0 to 1; results are not clipped unless the corruption itself needs it. Random ones are keyed by
the image, so that a corrupted image is the same in any order.
"""

# C channels, H rows, W columns

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shiftscope.core.randomness import uniforms

Array = NDArray[np.float32]
NOISE, REPLACED = 11, 12  # streams of random numbers


def noise(x_CHW: Array, sd: float, key: int) -> Array:
    """Added normal noise of a standard deviation."""
    from scipy.special import ndtri

    uniform = uniforms(0, key & (2**63 - 1), np.arange(x_CHW.size), NOISE).reshape(x_CHW.shape)
    return (x_CHW + sd * ndtri(np.clip(uniform, 1e-12, None))).astype(np.float32)


def blur(x_CHW: Array, sd: float, key: int = 0) -> Array:
    """A Gaussian blur; sd in pixels."""
    from scipy.ndimage import gaussian_filter

    return np.asarray(gaussian_filter(x_CHW, (0, sd, sd)), dtype=np.float32)


def contrast(x_CHW: Array, factor: float, key: int = 0) -> Array:
    """Values times a factor: what black is stays black."""
    return (factor * x_CHW).astype(np.float32)


def brightness(x_CHW: Array, added: float, key: int = 0) -> Array:
    """A constant added to all values."""
    return (x_CHW + added).astype(np.float32)


def gamma(x_CHW: Array, power: float, key: int = 0) -> Array:
    """Values, clipped to [0, 1], to a power."""
    return (np.clip(x_CHW, 0, 1) ** power).astype(np.float32)


def levels(x_CHW: Array, count: float, key: int = 0) -> Array:
    """Values, clipped to [0, 1], rounded to so many evenly spaced levels."""
    return (np.round(np.clip(x_CHW, 0, 1) * (count - 1)) / (count - 1)).astype(np.float32)


def replaced(ids_HW: NDArray[np.int64], share: float, key: int) -> NDArray[np.int64]:
    """Token ids of which a share is replaced by ids from other places of the same grid: the counts hardly change."""
    uniform = uniforms(0, key & (2**63 - 1), np.arange(2 * ids_HW.size), REPLACED).reshape(2, -1)
    elsewhere = ids_HW.ravel()[(uniform[1] * ids_HW.size).astype(np.int64)]
    return np.where(uniform[0] < share, elsewhere, ids_HW.ravel()).reshape(ids_HW.shape)


Corruption = Callable[[Any, float, int], Any]
PIXELS: Mapping[str, tuple[Corruption, float]] = {
    "noise 0.05": (noise, 0.05),
    "noise 0.15": (noise, 0.15),
    "blur 0.5": (blur, 0.5),
    "contrast 0.8": (contrast, 0.8),
    "brightness 0.1": (brightness, 0.1),
    "gamma 1.5": (gamma, 1.5),
    "5 levels": (levels, 5),
}
TOKENS: Mapping[str, tuple[Corruption, float]] = {
    "2 % replaced": (replaced, 0.02),
    "10 % replaced": (replaced, 0.1),
    "50 % replaced": (replaced, 0.5),
}
