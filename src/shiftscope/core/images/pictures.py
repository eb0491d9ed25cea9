"""Images and token grids from folders of image files, arrays, or memory: one shape, one scale, one known path to it.

A folder holds files that Pillow reads; .npy, .npz and .safetensors hold [N,C,H,W], [N,H,W,C], [N,H,W] (grey where they are
bytes or floats, token ids where they are wider integers) or [N,T] (token ids of texts). Files need the extra `images`.
Every image gets a key from its content: what is random about an image hangs on that key, not on its name or its place.
"""

# N images, C channels, H rows, W columns

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from shiftscope.core import corpus
from shiftscope.core.images import image_files
from shiftscope.core.images.image_files import Route

Array = NDArray[Any]
Source = str | Path | Array | torch.Tensor
Kind = Literal["auto", "pixels", "tokens"]
Advance = Callable[[str, int, int], None]
HELD_BYTES = 2**30  # so much of a side is kept in memory, once it is read


@dataclass(frozen=True)
class Found:
    """Images before they are decoded: what their headers or the array's shape say.

    native: number, channels -> the image as it is stored, float32 [C, H, W] (integers on a scale from 0 to 1), or token ids
    [H, W]. sizes_N: (H, W) of each. channels: of an array; of files 1 where all are grey, else 3.
    """

    name: str
    kind: Literal["pixels", "tokens"]
    ids: Sequence[str]
    sizes_N: Sequence[tuple[int, int]]
    channels: int
    fixed: bool
    route: Route
    native: Callable[[int, int], Array]
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Images:
    """Images of one size. read: number -> float32 [C, H, W], or token ids [H, W]; keys_N: of their content;
    low, high: smallest and largest value of all."""

    found: Found
    channels: int
    size: int | None
    shape: tuple[int, int]
    keys_N: NDArray[np.int64]
    low: float
    high: float
    read: Callable[[int], Array]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.keys_N)


def find(source: Source, name: str, *, kind: Kind = "auto", limit: int | None = None) -> Found:
    """What a source holds, without decoding images.

    Raises ValueError, in one sentence, for what is no source of images, an empty one, an unreadable file, and an array of
    a shape or type that is neither images nor tokens.
    """
    corpus.check_limit(limit)
    if isinstance(source, torch.Tensor):
        source = source.detach().cpu().numpy()
    if isinstance(source, np.ndarray):
        return _array(source, name, kind, limit)
    path = Path(source)
    if path.is_dir():
        if kind == "tokens":
            raise ValueError(f"{path} is a folder of images: token grids are read from .npy, .npz or .safetensors")
        found = image_files.survey(path, limit)
        return Found(
            str(path), "pixels", [str(file.relative_to(path)) for file in found.files], found.sizes,
            1 if found.grey else 3, False, found.route,
            lambda number, channels: image_files.decoded(found.files[number], channels), found.notes,
        )  # fmt: skip
    return _array(array_of(path), str(path), kind, limit)


def array_of(path: Path) -> Array:
    """The one array of a .npy, .npz or .safetensors file. Raises ValueError where it is another file, or holds several."""
    readers = {".npy": _npy, ".npz": _npz, ".safetensors": _safetensors}
    if not path.is_file() or path.suffix not in readers:
        what = "does not exist" if not path.exists() else f"ends in {path.suffix or 'nothing'}"
        raise ValueError(f"{path} {what}: give a folder of images, or a .npy, .npz or .safetensors file")
    return readers[path.suffix](path)


def _npy(path: Path) -> Array:
    try:
        array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path} cannot be read as a numpy array: {error}") from error
    return array


def _npz(path: Path) -> Array:
    import zipfile

    try:
        with np.load(path, allow_pickle=False) as opened:
            held = {name: opened[name] for name in opened.files}
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} cannot be read as numpy arrays: {error}") from error
    return _only(path, held)


def _safetensors(path: Path) -> Array:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read as safetensors: {error}") from error
    tensors = {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}
    return _only(path, {name: value.numpy() for name, value in tensors.items()})


def _only(path: Path, held: Mapping[str, Array]) -> Array:
    if len(held) != 1:
        raise ValueError(
            f"{path} holds {len(held)} arrays ({', '.join(held)}): save the images as one array of its own"
        )
    return next(iter(held.values()))


def _array(array: Array, name: str, kind: Kind, limit: int | None) -> Found:
    """An array whose layout is told from its shape and type."""
    shape, whole = "x".join(map(str, array.shape)), array.dtype.kind in "iu"
    if array.dtype.kind not in "iuf" or array.ndim not in (2, 3, 4) or 0 in array.shape:
        raise ValueError(
            f"{name} is an array of {shape or 'no axes'} {array.dtype}: images are numbers [N,C,H,W], [N,H,W,C] or [N,H,W], "
            f"token ids integers [N,H,W] or [N,T], and none of these sizes is 0"
        )
    tokens = kind == "tokens" or (
        kind == "auto" and whole and (array.ndim == 2 or (array.ndim == 3 and array.itemsize > 1))
    )
    if tokens and (not whole or array.ndim == 4):
        raise ValueError(f"{name} is an array of {shape} {array.dtype}: token ids are integers [N,H,W] or [N,T]")
    if not tokens and (array.ndim == 2 or array.dtype.kind == "i"):
        raise ValueError(
            f"{name} is an array of {shape} {array.dtype}: pixels are floats or unsigned integers [N,C,H,W], [N,H,W,C] or "
            f"[N,H,W]"
        )
    array = array[:limit]
    if array.ndim == 2 or (array.ndim == 3 and not tokens):
        array = array[:, None]
    elif array.ndim == 4:
        first, last = (array.shape[axis] in (1, 3, 4) for axis in (1, 3))
        if first and last:
            raise ValueError(
                f"{name} has the shape {shape}: channels may be the second axis or the last; give [N,H,W] or more pixels"
            )
        array = np.moveaxis(array, 3, 1) if last else array
    scale = np.float32(np.iinfo(array.dtype).max if whole else 1)

    def native(number: int, channels: int) -> Array:
        if tokens:
            return np.asarray(array[number], dtype=np.int64)
        return np.asarray(array[number], dtype=np.float32) / scale

    size = (int(array.shape[-2]), int(array.shape[-1]))
    ids, channels = [str(number) for number in range(len(array))], 1 if tokens else int(array.shape[1])
    read_as: Literal["pixels", "tokens"] = "tokens" if tokens else "pixels"
    return Found(name, read_as, ids, [size] * len(array), channels, True, Route(min(size), "array"), native)


def fitted(x_CHW: Array, size: int | None) -> NDArray[np.float32]:
    """The image with its shorter side resized to `size` (bilinear, antialiased) and its centre cut out; None: as it is."""
    if size is None:
        return np.asarray(x_CHW, dtype=np.float32)
    x_CHW = resized(x_CHW, size)
    top, left = (x_CHW.shape[1] - size) // 2, (x_CHW.shape[2] - size) // 2
    return np.ascontiguousarray(x_CHW[:, top : top + size, left : left + size])


def resized(x_CHW: Array, short_side: int) -> NDArray[np.float32]:
    """The image with its shorter side at `short_side`, bilinear and antialiased."""
    H, W = x_CHW.shape[1:]
    if min(H, W) == short_side:
        return np.asarray(x_CHW, dtype=np.float32)
    rows, columns = (max(short_side, round(side * short_side / min(H, W))) for side in (H, W))
    x = torch.from_numpy(np.ascontiguousarray(x_CHW, dtype=np.float32))[None]
    found: NDArray[np.float32] = F.interpolate(x, (rows, columns), mode="bilinear", antialias=True)[0].numpy()
    return found


def prepare(found: Found, channels: int, *, size: int | None = None, advance: Advance | None = None) -> Images:
    """Decode every image once: all must be readable, finite, of one size, and have the channels asked for.

    Raises ValueError, naming the image, where one is not.
    """
    shape = _fitting(found, channels, size)
    item = 8 if found.kind == "tokens" else 4
    hold = len(found.ids) * channels * shape[0] * shape[1] * item <= HELD_BYTES
    held, keys, low, high = [], [], np.inf, -np.inf

    def read(number: int) -> Array:
        x = found.native(number, channels)
        return x if found.kind == "tokens" else fitted(x, size)

    for number, name in enumerate(found.ids):
        x = read(number)
        if not np.isfinite(x).all():
            raise ValueError(
                f"{found.name}: image {name} has {int((~np.isfinite(x)).sum())} values that are not finite"
            )
        low, high = min(low, float(x.min())), max(high, float(x.max()))
        keys.append(int.from_bytes(hashlib.blake2b(x.tobytes(), digest_size=8).digest(), "little", signed=True))
        if hold:
            held.append(x)
        if advance:
            advance(f"reading {found.name}", number + 1, len(found.ids))
    if found.kind == "tokens" and low < 0:
        raise ValueError(f"{found.name} has the token id {low:.0f}: ids start at 0")
    digest = hashlib.sha256(np.sort(np.array(keys, dtype=np.int64)).tobytes()).hexdigest()
    told = {
        "name": found.name,
        "images": len(keys),
        "kind": found.kind,
        "path": path_words(found, size),
        "sha256": digest,
    }
    return Images(
        found,
        channels,
        size,
        shape,
        np.array(keys, dtype=np.int64),
        low,
        high,
        held.__getitem__ if hold else read,
        told,
    )


def _fitting(found: Found, channels: int, size: int | None) -> tuple[int, int]:
    """The one size (H, W) that all images will have. Raises ValueError where they have no such size, or other channels."""
    if size is not None and size < 1:
        raise ValueError(f"size is {size}: it must be at least 1")
    if size is not None and found.kind == "tokens":
        raise ValueError(f"size is {size}, but {found.name} holds token ids, which cannot be resized: leave --size out")
    if found.fixed and found.kind == "pixels" and found.channels != channels:
        raise ValueError(
            f"{found.name} has {found.channels} channels and the other side {channels}: convert one of them"
        )
    if found.channels == 3 and channels == 1 and not found.fixed:
        raise ValueError(f"{found.name} has images in colour, but grey ones are wanted: convert one of the sides")
    shape = found.sizes_N[0] if size is None else (size, size)
    for name, (height, width) in zip(found.ids, found.sizes_N, strict=True):
        if size is None and (height, width) != shape:
            raise ValueError(
                f"{found.name}: image {name} is {width}x{height} and {found.ids[0]} is {shape[1]}x{shape[0]}: give --size, so "
                f"that all are brought to one size"
            )
    return shape


def path_words(found: Found, size: int | None) -> str:
    """The path of a side's images, in words."""
    route, sizes = found.route, Counter(found.sizes_N)
    (height, width), _ = sizes.most_common(1)[0]
    others = f" and {len(sizes) - 1} other sizes" if len(sizes) > 1 else ""
    end = "as they are" if size is None else f"shorter side to {size} (bilinear, antialiased), centre {size}x{size}"
    return f"{route.format} {width}x{height}{others}, {end}"


def rerouted(x_CHW: Array, route: Route, size: int | None) -> NDArray[np.float32]:
    """The image as if it had been stored by another route: at that resolution, through that lossy format, then to size."""
    return fitted(image_files.through(resized(x_CHW, route.short_side), route), size)
