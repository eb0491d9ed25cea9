"""A patch detector for images: trained on some of a side, saved and read again, and put to any images of that kind.

Source: arXiv 2501.08005 (training on random patches of many images, judging by all patches of one).
"""

# N images

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from shiftscope.core.images import adversary, patch_detector, patches
from shiftscope.core.images.adversary import Adversary, Losses
from shiftscope.core.images.patch_detector import Architecture, Detector
from shiftscope.core.images.patches import Patching, View
from shiftscope.core.images.pictures import Advance, Images
from shiftscope.core.parts import Parts

MEASURES = ("score", "absolute", "error")
POPULATION_BATCHES = 32
SHOWN_PATCHES = 1024
SCHEMA = pa.schema(
    [("group", pa.string()), ("id", pa.string()), ("key", pa.int64()), *((n, pa.float64()) for n in MEASURES)]
)


@dataclass(frozen=True)
class Training:
    """How the detector is trained.

    steps: of both networks. batch_images, batch_patches: images of a step, and random patches of each. widths: channels
    after each halving of a patch. latent: numbers of the VAE's code. train_seed: of weights and batches.
    """

    steps: int = 900
    batch_images: int = 8
    batch_patches: int = 16
    widths: tuple[int, ...] = (16, 32, 64)
    latent: int = 16
    train_seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_images < 2 or self.batch_patches < 1:
            raise ValueError(
                f"steps {self.steps}, batch_images {self.batch_images}, batch_patches {self.batch_patches}: need at least 1, "
                f"2 and 1"
            )


@dataclass(frozen=True)
class Recipe:
    """What a new detector is made from."""

    patching: Patching
    training: Training
    weights: Adversary
    codebook_KC: NDArray[np.float32] | None


@dataclass(frozen=True)
class Trained:
    """A detector with its view of images. trained_on: keys of its training images; losses: of its steps, if it is new."""

    detector: Detector
    view: View
    trained_on: frozenset[int]
    losses: Sequence[Losses] = ()


def train(
    side: Images,
    chosen: NDArray[np.int64],
    recipe: Recipe,
    where: torch.device,
    parts: Parts,
    advance: Advance | None,
) -> Trained:
    """A new detector, trained on the chosen images."""
    how, tokens = recipe.training, side.found.kind == "tokens"
    spans = [(0.0, 1.0), (-1.0, 1.0), (side.low, side.high)]
    span = spans[0] if tokens else next(s for s in spans if s[0] <= side.low and side.high <= s[1])
    if not tokens and side.low == side.high:
        raise ValueError(f"all values of {side.found.name} are {side.low:g}: there is nothing to learn from them")
    view = View(recipe.patching, tokens, span, recipe.codebook_KC)
    first = side.read(int(chosen[0]))
    made = Architecture(len(view.plain(first)), view.side(first), how.widths, how.latent)
    match = adversary.Match(patch_detector.initialised(made, how.train_seed).to(where), recipe.weights)

    def batch(generator: torch.Generator) -> torch.Tensor:
        return view.batch(side, chosen, (how.batch_images, how.batch_patches), generator).to(where)

    told = None if advance is None else lambda done, total: advance("training the detector", done, total)
    kept = None if parts.folder is None else parts.folder / "training"
    losses = adversary.train(match, batch, how.steps, how.train_seed, kept=kept, advance=told)
    later = (adversary.step_generator(how.train_seed, how.steps + n) for n in range(POPULATION_BATCHES))
    patch_detector.measure_population(match.detector.discriminator, map(batch, later))
    return Trained(match.detector, view, frozenset(side.keys_N[chosen].tolist()), losses)


def save(trained: Trained, path: Path, size: int | None) -> None:
    """Write the detector with everything that judging another image needs. size: what images were resized to."""
    view = trained.view
    settings = {"patching": asdict(view.patching), "tokens": view.tokens, "span": list(view.span), "size": size}
    more = {} if view.codebook_KC is None else {"codebook": torch.from_numpy(view.codebook_KC)}
    patch_detector.save(trained.detector, path, settings, sorted(trained.trained_on), **more)


def settled(
    saved: patch_detector.Saved, patching: Patching, size: int | None
) -> tuple[Patching, int | None, list[str]]:
    """How images are cut and resized for a saved detector: as it was trained, wherever a setting was left at its default.

    Returns patching, size and a sentence on what was taken from the detector. Settings that were given stay as they are;
    `reused` refuses those that cannot be.
    """
    kept = saved.settings["patching"] | {"size": saved.settings["size"]}
    now, default = asdict(patching) | {"size": size}, asdict(Patching()) | {"size": None}
    taken = {name: kept[name] for name in now if now[name] == default[name] != kept[name]}
    told = ", ".join(f"{name} {value}" for name, value in taken.items())
    found = now | taken
    size = found.pop("size")
    return Patching(**found), size, [f"as the detector was trained: {told}"] if taken else []


def reused(
    saved: patch_detector.Saved,
    sides: tuple[Images, Images],
    patching: Patching,
    size: int | None,
    codebook: str | Path | None,
    trains: bool,
    where: torch.device,
) -> Trained:
    """A saved detector. Raises ValueError where these settings or images are not those it was trained for."""
    if trains or codebook is not None:
        raise ValueError("nothing is trained with --detector: leave the settings of training, losses and codebook out")
    now = asdict(patching) | {"size": size, "tokens": sides[0].found.kind == "tokens"}
    kept = saved.settings["patching"] | {"size": saved.settings["size"], "tokens": saved.settings["tokens"]}
    for name in ("patch", "noise", "code_width", "patch_seed", "size", "tokens"):
        if now[name] != kept[name]:
            raise ValueError(
                f"the detector was trained with {name} = {kept[name]} and now it is {now[name]}: they must agree"
            )
    book = saved.more.get("codebook")
    if book is not None:
        patches.check_ids(book.numpy(), max(side.high for side in sides))
    span = (float(saved.settings["span"][0]), float(saved.settings["span"][1]))
    view = View(patching, now["tokens"], span, None if book is None else book.numpy())
    return Trained(saved.detector.to(where), view, saved.trained_on)


@dataclass(frozen=True)
class Job:
    """Images to judge together. change: what is done to each before, from the image and its number."""

    group: str
    side: Images
    numbers: Sequence[int]
    change: Callable[[Any, int], Any] | None = None


def judged(trained: Trained, job: Job, where: torch.device) -> pa.Table:
    """Rows of one part: every image with its three measures, each a mean over its patches."""
    keys = job.side.keys_N[list(job.numbers)]
    cut = []
    for number, key in zip(job.numbers, keys.tolist(), strict=True):
        image = job.side.read(number)
        cut.append(trained.view.patches(image if job.change is None else job.change(image, number), key))
    found = patch_detector.judge(trained.detector, torch.from_numpy(np.concatenate(cut)).to(where), len(cut[0]))
    values = (each.mean(1).double().cpu().numpy() for each in (found.fake_GN, found.absolute_GN, found.error_GN))
    ids = [job.side.found.ids[number] for number in job.numbers]
    return pa.table([[job.group] * len(ids), ids, keys, *values], schema=SCHEMA)


def by_place(trained: Trained, image: NDArray[Any], key: int, where: torch.device) -> pa.Table:
    """Score and error of an image at every place of a regular grid: row, column (upper left corners), score, error, stride."""
    shape, side = (int(image.shape[-2]), int(image.shape[-1])), trained.view.side(image)
    stride = trained.view.patching.stride or max(1, side[1] // 2)
    stride = max(stride, math.ceil(math.sqrt(math.prod(shape) / SHOWN_PATCHES)))
    tops, lefts = patches.grid(shape, side, stride)
    cut = torch.from_numpy(patches.cut(trained.view.seen(image, key), (tops, lefts), side)).to(where)
    found = patch_detector.judge(trained.detector, cut, len(cut))
    score_N, error_N = (values[0].double().cpu().numpy() for values in (found.fake_GN, found.error_GN))
    return pa.table({"row": tops, "column": lefts, "score": score_N, "error": error_N, "stride": [stride] * len(tops)})
