"""Images: is B distinguishable from A, image by image, which images are, where in them, and would a known shift be found?

A detector is trained on a part of A, without labels or a backbone: a small discriminator against a VAE. It judges an image
by all its patches at once, three ways: by statistics of that image alone (the published score), by the statistics of A
(which also sees brightness and contrast), and by the VAE's reconstruction error. Held-out images of A calibrate each as a
two-sided percentile: an image may be too unlike A, or suspiciously typical. Token grids and token windows work as well.

Source: arXiv 2501.08005 (adversarial patch detector with batch statistics of one image).
Deviation: two-sided percentiles beside the one-sided score, which calls images further from a VAE's faults than real ones
more real than real; two further measures beside it; the way of the images to their size is stated and tested by itself.
Deviation: the defaults are those of our replication on small images; the paper has patches of 64, 64 patches per image,
widths 128 to 1024, latents of 1024 and batches of 67 images with 48 patches.
"""

# N images

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from shiftscope.core import statistics
from shiftscope.core.images import (
    corruptions,
    detection,
    image_detector,
    image_files,
    patch_detector,
    patches,
    pictures,
)
from shiftscope.core.images.adversary import Adversary, Losses
from shiftscope.core.images.detection import Tested
from shiftscope.core.images.image_detector import MEASURES, Job, Recipe, Trained, Training
from shiftscope.core.images.patches import Patching, View
from shiftscope.core.images.pictures import Advance, Images, Kind, Source
from shiftscope.core.parts import Parts
from shiftscope.core.result import Figure, Panel, Result
from shiftscope.core.settings import refuse, unread

LEVEL = 0.05
WORDS = {
    "score": "the detector with the image's own statistics",
    "absolute": "the detector with A's statistics",
    "error": "the reconstruction error",
}
LEAST = 5  # images for training, for calibration and for comparison
PART_IMAGES = 16
MOST_BINS, SHOWN_SIDE = 30, 64


@dataclass(frozen=True)
class Judging:
    """How the difference is judged.

    held_out: share of A that is not trained on; half of it calibrates, half is compared with B. permutations: relabellings
    of held-out A and B. known: also judge held-out images of A with known corruptions, to see what would be found.
    test_seed: of relabellings and intervals.
    """

    held_out: float = 0.4
    permutations: int = 999
    known: bool = True
    test_seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.held_out < 1 or self.permutations < 99:
            raise ValueError(
                f"held_out {self.held_out} and permutations {self.permutations}: need a share inside (0, 1) and at least 99"
            )


def images(
    a: Source,
    b: Source,
    *,
    kind: Kind = "auto",
    codebook: str | Path | None = None,
    size: int | None = None,
    limit: int | None = None,
    detector: Path | None = None,
    save: Path | None = None,
    shown: int = 10,
    device: str = "auto",
    patching: Patching = Patching(),
    training: Training = Training(),
    weights: Adversary = Adversary(),
    judging: Judging = Judging(),
    parts: Parts | None = None,
    advance: Advance | None = None,
) -> Result:
    """Train a patch detector on images A and say whether, where and how surely images B differ from held-out ones of A.

    a, b: a folder of image files; .npy, .npz or .safetensors with [N,C,H,W], [N,H,W,C] or [N,H,W], token ids [N,H,W], or
        token windows of texts [N,T].
    kind: what an array holds; auto takes integers wider than 8 bits, without channels, for token ids.
    codebook: .npy, .npz or .safetensors with a row of numbers for each token id (default: a fixed random code).
    size: resize the shorter side to this and cut out the centre; needed where sizes differ.
    limit: only the first images of each side.
    detector: a detector that --save wrote, for a later stream B; nothing is trained then, images are cut and resized as for
        its training, and A (which calibrates) is judged without the images it was trained on.
    save: write the trained detector there, as safetensors.
    shown: how many of the most shifted images the page lists.
    device: 'auto' is cuda where there is one.
    weights: of the losses.
    Returns a Result whose table has one row per image that was judged.
    Raises ValueError, in one sentence, for unreadable, unequal or too few images, images smaller than a patch, values that
    are not finite, and a detector that does not fit.
    """
    if detector is not None and save is not None:
        raise ValueError("--save writes a new detector and --detector reads one: leave one of them out")
    if detector is not None:
        unread(judging, Judging(), "a run that trains a detector, without --detector,", "held_out")
    if patching.stride is not None:
        unread(patching, Patching(), "a run without --stride", "patches")
    parts, where = parts or Parts(), _device(device)
    if parts.shard != (0, 1) and detector is None:
        raise ValueError("every shard would train a detector: train it once with --save, then give it as --detector")
    saved = None if detector is None else patch_detector.load(detector)
    taken: list[str] = []
    if saved is not None:
        patching, size, taken = image_detector.settled(saved, patching, size)
        kind = ("tokens" if saved.settings["tokens"] else "pixels") if kind == "auto" else kind
    found = (
        pictures.find(a, _named(a, "A"), kind=kind, limit=limit),
        pictures.find(b, _named(b, "B"), kind=kind, limit=limit),
    )
    sides = _prepared(
        found, saved.detector.made.channels if saved and not saved.settings["tokens"] else None, size, advance
    )
    if saved is None and (sides[0].found.kind == "pixels" or codebook is not None):
        unread(patching, Patching(), "token ids without --codebook", "code_width")
    if sides[0].found.kind == "tokens":
        refuse("images", size=(size, None))
    patches.group_size(sides[0].shape, patching)
    settings = _settings(
        sides, detector, saved, kind=kind, codebook=codebook and str(codebook), size=size, limit=limit,
        patching=asdict(patching), training=asdict(training), weights=asdict(weights), judging=asdict(judging),
        device=str(where),
    )  # fmt: skip
    parts.settle(settings)
    if saved is None:
        split = _split(sides[0], frozenset(), judging.held_out)
        book = None if codebook is None else _codebook(codebook, sides)
        recipe = Recipe(patching, training, weights, book)
        trained = image_detector.train(sides[0], split["train"], recipe, where, parts, advance)
    else:
        trained = image_detector.reused(
            saved, sides, patching, size, codebook, training != Training() or weights != Adversary(), where
        )
        split = _split(sides[0], trained.trained_on, 1.0)
    if save is not None:
        image_detector.save(trained, save, size)
    jobs, notes = _jobs(sides, split, trained.view, judging)

    def measure(job: Job) -> dict[str, pa.Table]:
        return {"images": image_detector.judged(trained, job, where)}

    told = None if advance is None else lambda done, total: advance("judging images", done, total)
    table = parts.map("images", jobs, measure, advance=told, final=True)["images"]
    notes = [*notes, *taken, *_caveats(sides, trained, split, patching)]
    look = _look(table, sides[1], trained, where)
    return summarise(table, judging, trained.losses, provenance=settings, notes=notes, shown=shown, look=look)


def _settings(
    sides: tuple[Images, Images], detector: Path | None, saved: patch_detector.Saved | None, **given: Any
) -> dict[str, Any]:
    """What was measured and how."""
    return {
        "a": sides[0].provenance,
        "b": sides[1].provenance,
        "detector": None if saved is None else {"name": str(detector), "sha256": saved.sha256},
        "settings": given,
        "versions": {"python": platform.python_version()} | {n: version(n) for n in ("numpy", "torch", "shiftscope")},
    }


def _named(source: Source, letter: str) -> str:
    return str(source) if isinstance(source, str | Path) else letter


def _device(device: str) -> torch.device:
    try:
        where = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
        torch.empty(0, device=where)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {device!r} cannot be used: {str(error).splitlines()[0]}") from error
    return where


def _prepared(
    found: tuple[pictures.Found, pictures.Found], channels: int | None, size: int | None, advance: Advance | None
) -> tuple[Images, Images]:
    """Both sides, of one kind, size and number of channels. channels: of a saved detector."""
    a, b = found
    if a.kind != b.kind:
        raise ValueError(f"{a.name} holds {a.kind} and {b.name} {b.kind}: give two of a kind, or say which with --kind")
    if channels is None:
        channels = max(a.channels, b.channels)
    first = pictures.prepare(a, channels, size=size, advance=advance)
    second = pictures.prepare(b, channels, size=size, advance=advance)
    for files, array in ((first, second), (second, first)):
        if not files.found.fixed and array.found.fixed and (array.low < 0 or array.high > 1):
            raise ValueError(
                f"values of {array.found.name} lie in [{array.low:.3g}, {array.high:.3g}], but image files are read as 0 to 1: "
                f"bring the array to that scale"
            )
    if first.shape != second.shape:
        (h, w), (height, width) = first.shape, second.shape
        raise ValueError(
            f"images of {a.name} are {w}x{h} and of {b.name} {width}x{height}: give --size, so that all are brought to one size"
            if a.kind == "pixels"
            else f"token grids of {a.name} are {w}x{h} and of {b.name} {width}x{height}: cut them to one size"
        )
    return first, second


def _codebook(source: str | Path, sides: tuple[Images, Images]) -> NDArray[np.float32]:
    """The codebook of both sides' token ids."""
    if sides[0].found.kind != "tokens":
        raise ValueError(
            f"codebook is {source}, but {sides[0].found.name} holds pixels: leave it out, or give --kind tokens"
        )
    book = patches.codebook(pictures.array_of(Path(source)), str(source))
    patches.check_ids(book, max(side.high for side in sides))
    return book


def _split(side: Images, trained_on: frozenset[int], held_out: float) -> dict[str, NDArray[np.int64]]:
    """Numbers of A's images to train on, to calibrate with and to compare, by their content: no order of files matters."""
    order = np.argsort(side.keys_N, kind="stable")
    order = order[[int(key) not in trained_on for key in side.keys_N[order]]] if trained_on else order
    held = len(order) if trained_on else round(held_out * len(order))
    train, calibration, compared = np.split(order, [len(order) - held, len(order) - held + held // 2])
    if min(len(calibration), len(compared)) < LEAST or (not trained_on and len(train) < LEAST):
        unseen = " that the detector was not trained on" if trained_on else ""
        raise ValueError(
            f"{side.found.name} has {len(order)} images{unseen}: {len(train)} to train on, {len(calibration)} to calibrate "
            f"with and {len(compared)} to compare; each needs at least {LEAST}"
        )
    return {"train": train, "calibration": calibration, "a": compared}


def _jobs(
    sides: tuple[Images, Images], split: Mapping[str, NDArray[np.int64]], view: View, judging: Judging
) -> tuple[list[Job], list[str]]:
    """Everything that is judged, part by part: both sides, and held-out A by B's route and with known corruptions."""
    first, second = sides
    whole = [Job(name, first, split[name].tolist()) for name in ("calibration", "a")]
    whole.append(Job("b", second, range(len(second))))
    rerouted, notes = _rerouted(first, second)
    if rerouted is not None:
        whole.append(Job("route", first, split["a"].tolist(), rerouted))
    if judging.known:
        whole += [
            Job(name, first, split["a"].tolist(), _corrupted(first, view, how, strength))
            for name, (how, strength) in (corruptions.TOKENS if view.tokens else corruptions.PIXELS).items()
        ]
    starts = [(job, start) for job in whole for start in range(0, len(job.numbers), PART_IMAGES)]
    return [Job(j.group, j.side, j.numbers[start : start + PART_IMAGES], j.change) for j, start in starts], notes


def _rerouted(first: Images, second: Images) -> tuple[Callable[[Any, int], Any] | None, list[str]]:
    """What takes an image of A along B's route, or None with the reason."""
    a, b = first.found.route, second.found.route
    if first.found.kind == "tokens" or image_files.same_route(a, b):
        return None, ["both sides come to the detector by the same route: there is no resampling to be detected"]
    notes = []
    if a.format in image_files.LOSSY and b.format not in image_files.LOSSY:
        notes.append(
            f"the route of B cannot be tried in full: what {a.format} took from A's images cannot be given back"
        )

    def change(image: Any, number: int) -> Any:
        return pictures.rerouted(first.found.native(number, first.channels), b, first.size)

    return change, notes


def _corrupted(side: Images, view: View, how: corruptions.Corruption, strength: float) -> Callable[[Any, int], Any]:
    low, high = view.span

    def change(image: Any, number: int) -> Any:
        key = int(side.keys_N[number])
        return how(image, strength, key) if view.tokens else low + (high - low) * how(view.unit(image), strength, key)

    return change


def _caveats(
    sides: tuple[Images, Images], trained: Trained, split: Mapping[str, NDArray[np.int64]], patching: Patching
) -> list[str]:
    first, second = sides
    notes = [
        "score is 1 - D with an image's own statistics (the published one), absolute with those of A, error the VAE's squared "
        "error; two_sided is how far the percentile among A's calibration images is from 50",
        *first.found.notes,
        *second.found.notes,
    ]
    notes += [f"{letter} is {side.provenance['path']}" for letter, side in zip("AB", sides, strict=True)]
    for side in sides:
        if copies := len(side) - len(set(side.keys_N.tolist())):
            notes.append(f"{side.found.name}: {copies} images are copies of others in it, and not independent of them")
    if both := len(trained.trained_on & set(second.keys_N.tolist())):
        notes.append(f"{both} images of B were trained on: they pull every figure towards no difference")
    low, high = trained.view.span
    if not trained.view.tokens and (second.low < low - 1e-6 or second.high > high + 1e-6):
        notes.append(
            f"values of B lie in [{second.low:.3g}, {second.high:.3g}], beyond the scale [{low:g}, {high:g}] of A: check that "
            f"both sides are scaled alike"
        )
    if patches.group_size(first.shape, patching) == 1:
        notes.append(
            "an image is judged by one patch alone: its statistics are those of that patch; give more --patches"
        )
    notes.append(
        f"{len(split['train'])} images of A were trained on"
        if len(split["train"])
        else "nothing was trained: --detector"
    )
    if trained.losses:
        last = float(np.mean([losses.discriminator for losses in trained.losses[-50:]]))
        if last < 0.1:
            notes.append(
                f"the discriminator's loss ended at {last:.2g} nats: the VAE is no opponent; raise --reconstructed and "
                f"--generated, or train longer"
            )
    return notes


def summarise(
    table: pa.Table,
    judging: Judging = Judging(),
    losses: Sequence[Losses] = (),
    *,
    provenance: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
    shown: int = 10,
    look: Sequence[Panel] = (),
) -> Result:
    """Figures, panels and verdict of a table of judged images.

    table: group (calibration, a, b, route, or a corruption), id, key and the three measures. losses: of the training steps.
    shown: images in the table of the most shifted. look: panels of the most shifted image.
    """
    table = detection.with_percentiles(table, MEASURES)
    groups = {
        name: table.filter(pa.array(np.asarray(table["group"]) == name))
        for name in dict.fromkeys(table["group"].to_pylist())
    }
    tests = {
        name: detection.tested(groups["a"], groups[name], MEASURES, judging.permutations, judging.test_seed)
        for name in ("b", "route")
        if name in groups
    }
    figures = _figures(groups, tests)
    notes = list(notes)
    if len(groups["calibration"]) >= 1 / LEVEL:
        for measure in MEASURES:
            for name in ("b", "a"):
                far_N = np.abs(detection.values(groups[name], f"{measure}_percentile") - 50)
                beyond = int((far_N > 50 * (1 - LEVEL)).sum())
                figures[f"beyond_{measure}_{name}"] = statistics.share_figure(beyond, len(far_N))
        notes.append("beyond_… is the share of images outside the middle 95 % of A's calibration images")
    else:
        notes.append(
            f"the share of images beyond A's middle 95 % is left out: {len(groups['calibration'])} calibration images cannot "
            f"mark it, 20 can"
        )
    least = len(tests["b"].p) / tests["b"].draws
    if least > LEVEL:
        notes.append(
            f"with {len(groups['b'])} images of B, {len(groups['a'])} of A and {judging.permutations} relabellings no corrected "
            f"p can be below {least:.2g}: give more"
        )
    for name in ("calibration", "a", "b"):
        figures[f"images_{name}"] = Figure(len(groups[name]), "count", len(groups[name]))
    if losses:
        last = losses[-50:]
        against, missed = (
            float(np.mean([getattr(each, n) for each in last])) for n in ("discriminator", "reconstruction")
        )
        figures["discriminator_loss_nats"] = Figure(against, "nats", len(last))
        figures["reconstruction_mse"] = Figure(missed, "squared error", len(last))
    known = _known(groups, judging)
    panels = [*_charts(groups, tests["b"], losses), *([] if known is None else [_known_panel(known)]), *look]
    panels.append(_most_shifted(groups["b"], shown))
    verdict = _verdict(figures, tests, known)
    return Result("compare images", table, figures, provenance or {}, verdict, notes, panels)


def _figures(groups: Mapping[str, pa.Table], tests: Mapping[str, Tested]) -> dict[str, Figure]:
    figures: dict[str, Figure] = {}
    for group, test in tests.items():
        end = "" if group == "b" else f"_{group}"
        number = min(test.p, key=lambda name: test.p[name])
        low, high = (min(1.0, len(test.p) * bound) for bound in test.interval(number))
        figures[f"p_corrected{end}"] = Figure(test.least, "p", test.draws, min(low, test.least), max(high, test.least))
        for kind in ("_two_sided", ""):
            for measure in MEASURES:
                name, one = f"{measure}{kind}", test.apart[f"{measure}{kind}"]
                n = one.m + one.n
                figures[f"auroc_{name}{end}"] = Figure(one.auroc, "", n, one.auroc_low, one.auroc_high)
                if group == "b":
                    figures[f"fpr95_{name}"] = Figure(one.fpr95, "share", n, one.fpr95_low, one.fpr95_high)
                    figures[f"p_{name}"] = Figure(test.p[name], "p", test.draws, *test.interval(name))
    order = ["p_corrected", *(f"{kind}_{measure}_two_sided" for measure in MEASURES for kind in ("auroc", "p"))]
    return {name: figures[name] for name in dict.fromkeys([*order, *figures])}


def _known(groups: Mapping[str, pa.Table], judging: Judging) -> pa.Table | None:
    """Two-sided AUROC of held-out A against itself with each known corruption, by each measure."""
    rows = []
    for name, group in groups.items():
        if name in (*corruptions.PIXELS, *corruptions.TOKENS):
            for measure in MEASURES:
                pair = (np.abs(detection.values(t, f"{measure}_percentile") - 50) for t in (groups["a"], group))
                one = detection.separation(*pair, seed=judging.test_seed)
                found = {"corruption": name, "measure": measure, "auroc": one.auroc}
                rows.append(found | {"low": one.auroc_low, "high": one.auroc_high})
    return pa.Table.from_pylist(rows) if rows else None


def _known_panel(known: pa.Table) -> Panel:
    return Panel(
        "What this detector would find",
        "Held-out images of A against themselves with a known corruption: two-sided AUROC, 0.5 is blind, 1 is certain.",
        "bar", known, x="corruption", y="auroc", low="low", high="high", series="measure", x_title="corruption",
        y_title="AUROC",
    )  # fmt: skip


def _charts(groups: Mapping[str, pa.Table], test: Tested, losses: Sequence[Losses]) -> list[Panel]:
    rows = [
        {"measure": measure, "reading": "two-sided" if kind else "one-sided", "auroc": one.auroc, "low": one.auroc_low,
         "high": one.auroc_high}
        for measure in MEASURES
        for kind in ("_two_sided", "")
        for one in (test.apart[f"{measure}{kind}"],)
    ]  # fmt: skip
    panels = [
        Panel(
            "How well B is told from A",
            "AUROC of an image of B against a held-out one of A; one-sided below 0.5: B looks more like A than A itself.",
            "bar", pa.Table.from_pylist(rows), x="measure", y="auroc", low="low", high="high", series="reading",
            x_title="measure", y_title="AUROC",
        )
    ]  # fmt: skip
    captions = {
        "score": "1 - D with each image's own statistics; the larger, the more like the VAE's fakes.",
        "absolute": "1 - D with the statistics of A's images: brightness and contrast count too.",
        "error": "Mean squared error of the VAE's reconstruction, on the scale from -1 to 1.",
    }
    for measure in MEASURES:
        histogram = _histogram({name: detection.values(groups[name], measure) for name in ("a", "b")})
        panels.append(
            Panel(
                measure.capitalize(), captions[measure], "line", histogram, x="value", y="share", series="images",
                x_title=measure, y_title="share of images",
            )
        )  # fmt: skip
    if losses:
        every = max(1, len(losses) // 200)
        blocks = [losses[start : start + every] for start in range(0, len(losses), every)]
        told = [
            {"step": number * every, "loss": float(np.mean([one.discriminator for one in block]))}
            for number, block in enumerate(blocks)
        ]
        panels.append(
            Panel(
                "Training", "The discriminator's loss; ln 2 = 0.69 is a detector that cannot tell, 0 a VAE that is no opponent.",
                "line", pa.Table.from_pylist(told), x="step", y="loss", x_title="step", y_title="loss (nats)",
            )
        )  # fmt: skip
    return panels


def _histogram(values: Mapping[str, NDArray[np.float64]]) -> pa.Table:
    """Shares of each group in bins common to all, as many as the smaller group can fill (Rice's rule)."""
    bins = min(MOST_BINS, math.ceil(2 * min(map(len, values.values())) ** (1 / 3)))
    both = np.concatenate(list(values.values()))
    low, high = float(both.min()), float(both.max())
    edges = np.linspace(low, high if high > low else low + 1e-6, bins + 1)
    names = {"a": "A, held out", "b": "B"}
    tables = [
        pa.table(
            {
                "value": (edges[1:] + edges[:-1]) / 2,
                "share": np.histogram(each, edges)[0] / len(each),
                "images": [names[name]] * bins,
            }
        )
        for name, each in values.items()
    ]
    return pa.concat_tables(tables)


def _most_shifted(group: pa.Table, shown: int) -> Panel:
    order = np.argsort(-detection.values(group, "shift"), kind="stable")[:shown]
    columns = ["id", "shift", *(name for measure in MEASURES for name in (measure, f"{measure}_percentile"))]
    return Panel(
        "Most shifted images of B",
        "By the largest distance from A's median over the measures, in median absolute deviations of A.",
        "table", group.take(pa.array(order)).select(columns),
    )  # fmt: skip


def _look(table: pa.Table, side: Images, trained: Trained, where: torch.device) -> list[Panel]:
    """The most shifted image of B and where in it, patch by patch of a regular grid, the measures point."""
    rows = detection.with_percentiles(table, MEASURES)
    rows = rows.filter(pa.array(np.asarray(rows["group"]) == "b"))
    name = rows["id"][int(np.argmax(detection.values(rows, "shift")))].as_py()
    number = side.found.ids.index(name)
    image = side.read(number)
    cells = image_detector.by_place(trained, image, int(side.keys_N[number]), where)
    stride = cells["stride"][0].as_py()
    cells = cells.set_column(
        0, "row", cells["row"].cast(pa.string())
    )  # as categories, in their order: the top row first
    axes: dict[str, Any] = {"x": "column", "y": "row", "x_title": "column", "y_title": "row"}
    panels = [
        Panel(
            f"Where in {name}: {measure}",
            f"The most shifted image by patches at every {stride} pixels, each at its upper left corner.",
            "heat", cells, color=measure, **axes,
        )
        for measure in ("score", "error")
    ]  # fmt: skip
    if not trained.view.tokens:
        grey = trained.view.unit(image).mean(0, keepdims=True)
        small = pictures.resized(grey, min(SHOWN_SIDE, *side.shape))[0][:SHOWN_SIDE, :SHOWN_SIDE]
        places = {"row": np.indices(small.shape)[0].ravel().astype(str), "column": np.indices(small.shape)[1].ravel()}
        drawn = pa.table(places | {"brightness": small.ravel().astype(np.float64)})
        title = f"The most shifted image: {name}"
        panels.insert(0, Panel(title, "Its brightness, drawn coarsely.", "heat", drawn, color="brightness", **axes))
    return panels


def _verdict(figures: Mapping[str, Figure], tests: Mapping[str, Tested], known: pa.Table | None) -> list[str]:
    test = tests["b"]
    best = max(MEASURES, key=lambda measure: test.apart[f"{measure}_two_sided"].auroc)
    auroc = test.apart[f"{best}_two_sided"]
    told = (
        f"at best, {WORDS[best]} finds an image of B further from the ordinary than an unseen one of A in "
        f"{100 * auroc.auroc:.3g} % of pairs (95 % interval {100 * auroc.auroc_low:.3g} to {100 * auroc.auroc_high:.3g})"
    )
    first = min(test.p, key=lambda name: test.p[name])
    by = f"{WORDS[first.removesuffix('_two_sided')]}, {'two' if first.endswith('_two_sided') else 'one'}-sided"
    kind = "exact " if test.exact else ""
    how = f"smallest of {len(test.p)} {kind}permutation p-values, corrected: {test.least:.2g}, by {by}"
    if test.least < LEVEL:
        sentences = [f"B is distinguishable from held-out A ({how}); {told}."]
    else:
        sentences = [f"Nothing distinguishes B from held-out A ({how}); {told}."]
    one = test.apart["score"]
    if test.p["score"] < LEVEL and one.auroc < 0.5:
        sentences.append(
            f"By the published one-sided score B looks more real than A itself (AUROC {one.auroc:.3g}): its images are further "
            f"from a VAE's faults. Read one-sided, that score would call this no shift."
        )
    route = tests.get("route")
    if route is not None:
        most = max(route.apart[f"{measure}_two_sided"].auroc for measure in MEASURES)
        if route.least < LEVEL:
            sentences.append(
                f"The way of the images is detected by itself: held-out images of A taken along B's route are told from those "
                f"that are not (AUROC up to {most:.3g}, corrected p {route.least:.2g}); store and resize both sides alike."
            )
        else:
            sentences.append(
                f"Held-out images of A taken along B's route stay ordinary (corrected p {route.least:.2g}): the way of the "
                f"images is not detected by itself."
            )
    if known is not None:
        top: dict[str, float] = {}
        for row in known.to_pylist():
            top[row["corruption"]] = max(top.get(row["corruption"], 0.0), row["auroc"])
        seen = [name for name, value in top.items() if value >= 0.9]
        unseen = [name for name, value in top.items() if value < 0.9]
        sentences.append(
            f"Planted in held-out A, this detector finds {', '.join(seen) or 'none of the known corruptions'} (AUROC of 0.9 or "
            f"more)" + (f", not {', '.join(unseen)}." if seen and unseen else ".")
        )
    return sentences
