"""Image files: what their headers say, their pixels on one scale, and the route that they were stored by.

Needs the extra `images` (Pillow).
"""

# C channels, H rows, W columns

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
LOSSY = ("JPEG", "WEBP")
DEEP = {"I": 65535.0, "I;16": 65535.0, "F": 1.0}  # modes of more than 8 bits, and what is white in them
GREY_MODES = ("1", "L", "LA", *DEEP)


@dataclass(frozen=True)
class Route:
    """How the images of a side were stored. short_side: the most common, in pixels; format: 'PNG', 'JPEG', 'array';
    tables, sampling: quantisation tables and chroma subsampling of a JPEG, which say how strongly it was compressed."""

    short_side: int
    format: str
    tables: Mapping[int, Sequence[int]] | None = None
    sampling: int = -1


@dataclass(frozen=True)
class Survey:
    """A folder of images by their headers. sizes: (H, W) of each as it is shown; grey: none has colour."""

    files: Sequence[Path]
    sizes: Sequence[tuple[int, int]]
    grey: bool
    route: Route
    notes: Sequence[str]


def survey(path: Path, limit: int | None = None) -> Survey:
    """The images of a folder and its sub-folders, sorted by name. Raises ValueError where there is none, naming what is.

    limit: only the first ones.
    """
    _pillow()
    every = sorted(file for file in path.rglob("*") if file.is_file())
    files = [file for file in every if file.suffix.lower() in SUFFIXES]
    if not files:
        kinds = ", ".join(sorted({file.suffix or "no suffix" for file in every})[:5])
        what = f"holds {len(every)} files, but no image ({kinds})" if every else "is empty"
        raise ValueError(f"{path} {what}: images end in {', '.join(SUFFIXES)}")
    notes = (
        [] if len(files) == len(every) else [f"{path}: {len(every) - len(files)} files are no images and were left out"]
    )
    files = files[:limit]
    sizes, grey, routes = [], True, Counter[tuple[int, str]]()
    for file in files:
        size, mode, form = _header(file)
        sizes.append(size)
        grey &= mode in GREY_MODES
        routes[min(size), form] += 1
    (short_side, form), _ = routes.most_common(1)[0]
    if len(routes) > 1:
        notes.append(f"{path}: images of {len(routes)} short sides and formats; the most common is {short_side} {form}")
    route = _compressed(files[0], Route(short_side, form)) if form == "JPEG" else Route(short_side, form)
    return Survey(files, sizes, grey, route, notes)


def _header(file: Path) -> tuple[tuple[int, int], str, str]:
    """Size (H, W) as the image is shown, mode and format of a file."""
    with _opened(file) as image:
        try:
            turned = image.getexif().get(0x0112, 1) >= 5  # PNG keeps it behind the pixels
        except (OSError, SyntaxError, ValueError) as error:
            raise ValueError(f"{file} cannot be read as an image: {error}") from error
        width, height = image.size[::-1] if turned else image.size
        return (height, width), image.mode, str(image.format)


def _compressed(file: Path, route: Route) -> Route:
    """The route with the compression of this file, where it is a JPEG."""
    from PIL import JpegImagePlugin

    with _opened(file) as image:
        if not isinstance(image, JpegImagePlugin.JpegImageFile):
            return route
        return replace(route, tables=dict(image.quantization), sampling=JpegImagePlugin.get_sampling(image))


def _pillow() -> Any:
    try:
        import PIL.Image
    except ImportError as error:
        raise ValueError("image files need the package pillow: pip install 'shiftscope[images]'") from error
    return PIL.Image


def _opened(file: Path | io.BytesIO) -> Any:
    pillow = _pillow()
    try:
        return pillow.open(file)
    except (OSError, SyntaxError, ValueError, pillow.DecompressionBombError) as error:
        raise ValueError(f"{file} cannot be read as an image: {error}") from error


def decoded(file: Path | io.BytesIO, channels: int) -> NDArray[np.float32]:
    """An image file as float32 [channels, H, W] from 0 to 1, upright, alpha left out. Raises ValueError naming the file."""
    from PIL import ImageOps

    image = _opened(file)
    scale = DEEP.get(image.mode, 255.0)
    try:
        upright = ImageOps.exif_transpose(image)
        if image.mode not in DEEP:
            upright = upright.convert("L" if channels == 1 else "RGB")
        values = np.asarray(upright, dtype=np.float32)
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{file} cannot be read as an image: {error}") from error
    finally:
        image.close()
    x_CHW = np.atleast_3d(values).transpose(2, 0, 1) / np.float32(scale)
    return np.repeat(x_CHW, channels, 0) if len(x_CHW) < channels else x_CHW


def through(x_CHW: NDArray[Any], route: Route) -> NDArray[np.float32]:
    """An image with what the route's format takes from it; as it is where that is nothing. Its values are from 0 to 1."""
    if route.format not in LOSSY:
        return np.asarray(x_CHW, dtype=np.float32)
    levels = np.round(np.clip(x_CHW, 0, 1) * 255).astype(np.uint8)
    file = io.BytesIO()
    image = _pillow().fromarray(levels[0] if len(levels) == 1 else levels.transpose(1, 2, 0))
    how: dict[str, Any] = {}
    if route.tables is not None:
        how = {"qtables": {n: list(table) for n, table in route.tables.items()}, "subsampling": route.sampling}
    image.save(file, format=route.format, **how)
    file.seek(0)
    return decoded(file, len(x_CHW))


def same_route(one: Route, other: Route) -> bool:
    """Whether images of both routes went through the same resizing and the same losses."""
    lossy = [(route.format, route.tables, route.sampling) if route.format in LOSSY else None for route in (one, other)]
    return one.short_side == other.short_side and lossy[0] == lossy[1]
