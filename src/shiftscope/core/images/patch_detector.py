"""A patch detector: a small discriminator that judges all patches of ONE image by statistics of that image alone.

It is trained against a VAE's reconstructions (which lack high frequencies) and samples (which have false ones), so that
both sides of the images' frequency band are closed. The VAE's reconstruction error is a second, independent measure.

Source: arXiv 2501.08005 (batch statistics of one image's patches; ladder, VAE and inference from the published code).
Deviation: beside the published score, which sees nothing of what normalising takes away (an image's own brightness and
contrast), the same weights judge by the statistics of the training images; on small images that finds more.
On mosaics of digits (`tests/core/images/test_adversary.py`; two seeds) the published score has a mean AUROC of 0.72 and 0.75
over eight shifts, running statistics of the same weights 0.54 and 0.61, a GroupNorm discriminator 0.49 and 0.72: what is
gained over GroupNorm hangs on the seed. Two-sided, the reconstruction error is stronger (0.94 and 0.97 beside 0.81 and 0.83).
Deviation: the discriminator gives logits, not probabilities: the same objective without log 0. Whose statistics are used
is an argument of the call, not a mode of the layer: a test batch can never be normalised by running statistics, or mixed.
Deviation: patches one row high (windows of a token sequence) get kernels and strides one row high.
"""

# P patches, G groups, C channels, H rows, W columns, Z latent dimensions

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

By = int | Literal["batch", "population"]
SLOPE = 0.01  # of the leaky rectifiers
FORMAT = "shiftscope patch detector 1"


@dataclass(frozen=True)
class Architecture:
    """What the networks are made of. patch: (rows, columns) of a patch; widths: channels after each halving."""

    channels: int
    patch: tuple[int, int]
    widths: tuple[int, ...] = (16, 32, 64)
    latent: int = 16

    def __post_init__(self) -> None:
        if self.channels < 1 or self.latent < 1 or not self.widths or min(self.widths) < 1:
            raise ValueError(
                f"channels {self.channels}, latent {self.latent}, widths {self.widths}: all must be at least 1"
            )
        halved = 2 ** len(self.widths)
        if any(side % halved or side < 2 * halved for side in self.patch if side > 1) or max(self.patch) == 1:
            raise ValueError(
                f"patch {self.patch[0]}x{self.patch[1]} with {len(self.widths)} widths: a side must be a multiple of "
                f"{halved} and at least {2 * halved}, since every width halves it"
            )

    @property
    def kernel(self) -> tuple[int, int]:
        return (3 if self.patch[0] > 1 else 1, 3 if self.patch[1] > 1 else 1)

    @property
    def stride(self) -> tuple[int, int]:
        return (2 if self.patch[0] > 1 else 1, 2 if self.patch[1] > 1 else 1)

    @property
    def padding(self) -> tuple[int, int]:
        return (self.kernel[0] // 2, self.kernel[1] // 2)

    @property
    def last(self) -> tuple[int, int, int]:
        """Channels, rows and columns after the last halving."""
        rows, columns = (side // step ** len(self.widths) for side, step in zip(self.patch, self.stride, strict=True))
        return self.widths[-1], rows, columns


class GroupedBatchNorm(nn.Module):
    """Batch normalisation by the statistics of whichever patches are asked for.

    by 'batch': of the whole batch (training). by a number: of every so many consecutive patches (one image; 1 is each patch
    alone). by 'population': of the training images, as `measure_population` found them.
    Raises ValueError for a batch that is no whole number of groups.
    """

    population_mean: Tensor
    population_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels)), eps
        self.register_buffer("population_mean", torch.zeros(channels))
        self.register_buffer("population_var", torch.ones(channels))

    def forward(self, x_PCHW: Tensor, by: By = "batch") -> Tensor:
        if by == "population":
            known = self.population_mean, self.population_var
            return F.batch_norm(x_PCHW, *known, self.weight, self.bias, eps=self.eps)
        P, C, H, W = x_PCHW.shape
        size = P if by == "batch" else by
        if size < 1 or P % size:
            raise ValueError(f"{P} patches are no whole number of groups of {size}: give all patches of every image")
        G = P // size
        if G == 1:
            return F.batch_norm(x_PCHW, None, None, self.weight, self.bias, training=True, eps=self.eps)
        apart = x_PCHW.view(G, size, C, H, W).transpose(0, 1).reshape(size, G * C, H, W)
        weight, bias = self.weight.repeat(G), self.bias.repeat(G)
        done = F.batch_norm(apart, None, None, weight, bias, training=True, eps=self.eps)
        return done.view(size, G, C, H, W).transpose(0, 1).reshape(P, C, H, W)


class Discriminator(nn.Module):
    """Logits that patches are real. norm: the normalisation of a width, called as norm(x, by)."""

    def __init__(self, made: Architecture, norm: Callable[[int], nn.Module] = GroupedBatchNorm) -> None:
        super().__init__()
        channels = (made.channels, *made.widths)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(one, other, made.kernel, made.stride, made.padding)
            for one, other in zip(channels, made.widths, strict=False)
        )
        self.norms = nn.ModuleList(norm(width) for width in made.widths)
        self.judge = nn.Linear(math.prod(made.last), 1)

    def forward(self, x_PCHW: Tensor, by: By = "batch") -> Tensor:
        """Logits [P]. by: whose statistics normalise, see GroupedBatchNorm."""
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x_PCHW = F.leaky_relu(norm(convolution(x_PCHW), by), SLOPE)
        logit_P: Tensor = self.judge(x_PCHW.flatten(1)).squeeze(1)
        return logit_P


class VAE(nn.Module):
    """The opponent: encodes patches to a mean and a log-variance, decodes latents to patches within (-1, 1)."""

    def __init__(self, made: Architecture) -> None:
        super().__init__()
        self.last = made.last
        how: dict[str, Any] = {"kernel_size": made.kernel, "stride": made.stride, "padding": made.padding}
        channels = (made.channels, *made.widths)
        self.encoder = nn.Sequential()
        for one, other in zip(channels, made.widths, strict=False):
            self.encoder.extend([nn.Conv2d(one, other, **how), nn.BatchNorm2d(other), nn.LeakyReLU(SLOPE)])
        self.mean = nn.Linear(math.prod(made.last), made.latent)
        self.logvar = nn.Linear(math.prod(made.last), made.latent)
        self.opening = nn.Linear(made.latent, math.prod(made.last))
        self.decoder = nn.Sequential()
        backwards = made.widths[::-1]
        added = (made.stride[0] - 1, made.stride[1] - 1)
        for one, other in zip(backwards, (*backwards[1:], backwards[-1]), strict=True):
            grown = nn.ConvTranspose2d(one, other, output_padding=added, **how)
            self.decoder.extend([grown, nn.BatchNorm2d(other), nn.LeakyReLU(SLOPE)])
        self.decoder.extend([nn.Conv2d(backwards[-1], made.channels, made.kernel, 1, made.padding), nn.Tanh()])

    def encode(self, x_PCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance [P, Z] of the latents of patches."""
        hidden = self.encoder(x_PCHW).flatten(1)
        return self.mean(hidden), self.logvar(hidden)

    def decode(self, z_PZ: Tensor) -> Tensor:
        """Patches [P, C, H, W] of latents."""
        patch_PCHW: Tensor = self.decoder(self.opening(z_PZ).view(-1, *self.last))
        return patch_PCHW


class Detector(nn.Module):
    """Both networks, as they are trained and saved.

    Kernels lie channels last: a fifth faster on a CPU. A detector that is read from a file has them the same way, since
    another layout rounds otherwise and a saved detector is to judge as it did when it was new, bit for bit.
    """

    def __init__(self, made: Architecture, norm: Callable[[int], nn.Module] = GroupedBatchNorm) -> None:
        super().__init__()
        self.made = made
        self.vae, self.discriminator = VAE(made), Discriminator(made, norm)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def initialised(made: Architecture, seed: int, norm: Callable[[int], nn.Module] = GroupedBatchNorm) -> Detector:
    """A new detector; its weights depend on the seed alone, and no global random state is moved."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Detector(made, norm)


@torch.no_grad()
def measure_population(discriminator: Discriminator, batches: Iterable[Tensor]) -> None:
    """Set every layer's population statistics to the mean of those of these batches of real patches."""
    seen: dict[nn.Module, list[tuple[Tensor, Tensor]]] = {norm: [] for norm in discriminator.norms}

    def note(norm: nn.Module, given: tuple[Tensor, ...]) -> None:
        var_C, mean_C = torch.var_mean(given[0], (0, 2, 3), correction=0)
        seen[norm].append((mean_C, var_C))

    hooks = [norm.register_forward_pre_hook(note) for norm in discriminator.norms]
    try:
        for batch in batches:
            discriminator(batch)
    finally:
        for hook in hooks:
            hook.remove()
    for norm, found in seen.items():
        assert isinstance(norm, GroupedBatchNorm)
        norm.population_mean.copy_(torch.stack([mean_C for mean_C, _ in found]).mean(0))
        norm.population_var.copy_(torch.stack([var_C for _, var_C in found]).mean(0))


@dataclass(frozen=True)
class Judged:
    """What a detector makes of groups of patches, patch by patch, [G, N].

    fake: 1 - D with the statistics of the image itself, from 0 (taken for real) to 1: the published score, which does not
    see what normalising takes away. absolute: 1 - D with the statistics of the training images. error: mean squared
    reconstruction error on the scale from -1 to 1.
    """

    fake_GN: Tensor
    absolute_GN: Tensor
    error_GN: Tensor


@torch.no_grad()
def judge(detector: Detector, patches_PCHW: Tensor, group_size: int) -> Judged:
    """Judge images by their patches: every group_size consecutive patches are one image.

    An image's result does not depend on which images are judged with it. Modes and weights of the detector are as before.
    Raises ValueError where the patches are no whole number of groups.
    """
    training = detector.vae.training
    detector.vae.eval()
    try:
        decoded = detector.vae.decode(detector.vae.encode(patches_PCHW)[0])
    finally:
        detector.vae.train(training)
    error_P = (decoded - patches_PCHW).square().flatten(1).mean(1)
    fake_P, absolute_P = (
        1 - torch.sigmoid(detector.discriminator(patches_PCHW, by)) for by in (group_size, "population")
    )
    return Judged(*(each.view(-1, group_size) for each in (fake_P, absolute_P, error_P)))


def save(
    detector: Detector, path: str | Path, settings: dict[str, Any], trained_on: Sequence[int], **more: Tensor
) -> Path:
    """Write a detector as safetensors; returns the path.

    settings: what is needed to judge as it was trained, kept in the file's metadata as JSON. trained_on: the content keys
    of its training images, so that they are never taken for held-out ones. more: further tensors (a codebook).
    """
    from safetensors.torch import save_file

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.detach().cpu().contiguous() for name, value in detector.state_dict().items()}
    tensors |= {f"more.{name}": value.contiguous() for name, value in more.items()}
    tensors["trained_on"] = torch.tensor(list(trained_on), dtype=torch.int64)
    kept = {"made": asdict(detector.made), "settings": settings}
    scratch = path.with_name(f".{path.name}.tmp")
    save_file(tensors, scratch, metadata={"format": FORMAT, "detector": json.dumps(kept)})
    scratch.rename(path)
    return path


@dataclass(frozen=True)
class Saved:
    """A detector that was read from a file, with what was kept beside it."""

    detector: Detector
    settings: dict[str, Any]
    trained_on: frozenset[int]
    more: dict[str, Tensor]
    sha256: str


def load(path: str | Path) -> Saved:
    """Read a detector that `save` wrote. Raises ValueError, in one sentence, for any other file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read as a detector (safetensors): {error}") from error
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path} is no patch detector: give a file that --save of `compare images` wrote")
    try:
        kept = json.loads(metadata["detector"])
        made = kept["made"]
        detector = Detector(Architecture(made["channels"], tuple(made["patch"]), tuple(made["widths"]), made["latent"]))
        trained_on = frozenset(tensors.pop("trained_on").tolist())
        more = {name.removeprefix("more."): tensors.pop(name) for name in list(tensors) if name.startswith("more.")}
        detector.load_state_dict(tensors)
    except (KeyError, TypeError, RuntimeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path} is a patch detector of which something is missing or changed ({str(error).splitlines()[0]}): save it again"
        ) from error
    return Saved(detector, kept["settings"], trained_on, more, hashlib.sha256(Path(path).read_bytes()).hexdigest())
