"""Patches of images: where they are cut, what scale they have, the noise that hides 8-bit steps, codes for tokens.

What is random about an image is keyed by the image's content: the same image gives the same patches in any order or batch.
Source: arXiv 2501.08005 (random patches of one image as its batch). Deviation: the last place of a patch can be drawn too;
a regular grid can be asked for, since random patches make scores vary from run to run unless they are keyed.
"""

# N patches, C channels, H rows, W columns, K codes

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from shiftscope.core.images.pictures import Images
from shiftscope.core.randomness import uniforms

Array = NDArray[np.float32]
Places = tuple[NDArray[np.int64], NDArray[np.int64]]
PLACES, NOISE, CODE = 1, 2, 3  # streams of random numbers


@dataclass(frozen=True)
class Patching:
    """How images are cut into patches.

    patch: side of a square patch (of token sequences: its length). patches: random patches of an image when it is judged.
    stride: distance of the patches of a regular grid, which then replaces the random ones. noise: width of the uniform
    noise added to pixels, as a share of their range, so that 8-bit steps and flat areas are no cue. code_width: numbers in
    the fixed random code of a token id, where no codebook is given. patch_seed: of places, noise and codes.
    """

    patch: int = 16
    patches: int = 32
    stride: int | None = None
    noise: float = 1 / 256
    code_width: int = 8
    patch_seed: int = 0

    def __post_init__(self) -> None:
        if self.patch < 2 or self.patches < 1 or (self.stride is not None and self.stride < 1) or self.code_width < 1:
            raise ValueError(
                f"patch {self.patch}, patches {self.patches}, stride {self.stride}, code_width {self.code_width}: need at "
                f"least 2, 1, 1 and 1"
            )
        if not 0 <= self.noise < 1:
            raise ValueError(f"noise is {self.noise}: it must lie in [0, 1), as a share of the pixels' range")


@dataclass(frozen=True)
class View:
    """How a stored image becomes the numbers that the detector sees, channels [C, H, W] on a scale from -1 to 1.

    span: values that become -1 and 1. codebook_KC: for token ids; None takes the fixed random code.
    """

    patching: Patching
    tokens: bool
    span: tuple[float, float] = (0.0, 1.0)
    codebook_KC: NDArray[np.float32] | None = None

    def unit(self, image: NDArray[Any]) -> Array:
        """Pixels on a scale from 0 to 1."""
        low, high = self.span
        return ((image - low) / (high - low)).astype(np.float32)

    def plain(self, image: NDArray[Any]) -> Array:
        """The image on the detector's scale, without noise."""
        return coded(image, self.codebook_KC, self.patching) if self.tokens else 2 * self.unit(image) - 1

    def seen(self, image: NDArray[Any], key: int) -> Array:
        """The image as the detector sees it; its noise is keyed by the image."""
        x_CHW = self.plain(image)
        if not self.patching.noise:
            return x_CHW
        uniform = uniforms(self.patching.patch_seed, key & (2**63 - 1), np.arange(x_CHW.size), NOISE)
        return x_CHW + (2 * self.patching.noise * (uniform.reshape(x_CHW.shape) - 0.5)).astype(np.float32)

    def patches(self, image: NDArray[Any], key: int) -> Array:
        """The patches by which an image is judged, [N, C, h, w]: random ones keyed by the image, or the grid."""
        side = self.side(image)
        how, shape = self.patching, (int(image.shape[-2]), int(image.shape[-1]))
        where = grid(shape, side, how.stride) if how.stride else drawn(shape, side, how.patches, key, how.patch_seed)
        return cut(self.seen(image, key), where, side)

    def batch(
        self, side: Images, chosen: NDArray[np.int64], sizes: tuple[int, int], generator: torch.Generator
    ) -> torch.Tensor:
        """Patches [P, C, h, w] of a training step. sizes: images drawn from the chosen ones, and patches of each."""
        numbers = chosen[torch.randint(len(chosen), (sizes[0],), generator=generator).numpy()]
        found = []
        for number in numbers.tolist():
            image, key = side.read(number), int(torch.randint(2**62, (1,), generator=generator))
            part = self.side(image)
            where = drawn((int(image.shape[-2]), int(image.shape[-1])), part, sizes[1], key, self.patching.patch_seed)
            found.append(cut(self.plain(image), where, part))
        x_PCHW = torch.from_numpy(np.concatenate(found))
        return x_PCHW + 2 * self.patching.noise * (torch.rand(x_PCHW.shape, generator=generator) - 0.5)

    def side(self, image: NDArray[Any]) -> tuple[int, int]:
        """Rows and columns of a patch; one row where images have one row only."""
        return (1 if image.shape[-2] == 1 else self.patching.patch, self.patching.patch)


def group_size(shape: tuple[int, int], patching: Patching) -> int:
    """How many patches an image of this shape is judged by. Raises ValueError where it is smaller than a patch."""
    side = (1 if shape[0] == 1 else patching.patch, patching.patch)
    if shape[0] < side[0] or shape[1] < side[1]:
        raise ValueError(
            f"images of {shape[1]}x{shape[0]} are smaller than a patch of {side[1]}x{side[0]}: give a smaller --patch or a "
            f"larger --size"
        )
    return len(grid(shape, side, patching.stride)[0]) if patching.stride else patching.patches


def drawn(shape: tuple[int, int], side: tuple[int, int], count: int, key: int, seed: int) -> Places:
    """Tops and lefts of random patches, keyed by the image; every place can be drawn."""
    uniform = uniforms(seed, key & (2**63 - 1), np.arange(2 * count), PLACES).reshape(2, count)
    tops, lefts = (
        (numbers * (whole - part + 1)).astype(np.int64)
        for numbers, whole, part in zip(uniform, shape, side, strict=True)
    )
    return tops, lefts


def grid(shape: tuple[int, int], side: tuple[int, int], stride: int) -> Places:
    """Tops and lefts of a regular grid, row by row, from the upper left corner."""
    tops, lefts = (np.arange(0, whole - part + 1, stride) for whole, part in zip(shape, side, strict=True))
    return np.repeat(tops, len(lefts)), np.tile(lefts, len(tops))


def cut(x_CHW: Array, where: Places, side: tuple[int, int]) -> Array:
    """Patches [N, C, h, w] of an image."""
    windows = np.lib.stride_tricks.sliding_window_view(x_CHW, side, axis=(1, 2))
    return np.ascontiguousarray(np.moveaxis(windows[:, where[0], where[1]], 1, 0))


def coded(ids_HW: NDArray[np.int64], codebook_KC: NDArray[np.float32] | None, patching: Patching) -> Array:
    """Token ids as channels [C, H, W]: rows of the codebook, or numbers in [-1, 1) that hang on the id and seed alone.

    Raises ValueError for an id beyond the codebook.
    """
    if codebook_KC is not None:
        check_ids(codebook_KC, int(ids_HW.max()))
        return np.ascontiguousarray(np.moveaxis(codebook_KC[ids_HW], -1, 0))
    unique, inverse = np.unique(ids_HW, return_inverse=True)
    code_UC = 2 * uniforms(patching.patch_seed, unique[:, None], np.arange(patching.code_width)[None], CODE) - 1
    return np.ascontiguousarray(np.moveaxis(code_UC[inverse.reshape(ids_HW.shape)], -1, 0).astype(np.float32))


def check_ids(codebook_KC: NDArray[np.float32], highest: float) -> None:
    """Raises ValueError where the highest token id is beyond the codebook."""
    if highest >= len(codebook_KC):
        raise ValueError(f"the token id {highest:.0f} is beyond the codebook, which has {len(codebook_KC)} rows")


def codebook(values: NDArray[Any], name: str) -> NDArray[np.float32]:
    """A codebook [K, C] scaled to lie within -1 and 1. Raises ValueError for another shape, and values that are not finite."""
    if values.ndim != 2 or 0 in values.shape or values.dtype.kind != "f" or not np.isfinite(values).all():
        raise ValueError(
            f"{name} is {'x'.join(map(str, values.shape))} {values.dtype}: a codebook is a matrix of finite floats, a row for "
            f"each token id"
        )
    low, high = float(values.min()), float(values.max())
    return (2 * (values - low) / max(high - low, 1e-12) - 1).astype(np.float32)
