"""Training a patch detector: a discriminator and a VAE against each other, resumable at any step.

Real patches, their reconstructions and new samples each pass the discriminator on their own, so that each kind is
normalised by its own statistics; putting them into one batch would hide what the discriminator is to learn.

Source: arXiv 2501.08005 (losses and their weights, from the paper and its published code).
Deviation: adversarial weight 0.03 and the learning rates are those of our replication on small images; the paper's run has
1e-3 and 8.5e-5, and much wider networks. All random numbers of a step are keyed by (seed, step): a resumed run is the same.
"""

# P patches, C channels, H rows, W columns, Z latent dimensions

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from shiftscope.core.images.patch_detector import Detector

KEPT_EVERY = 100  # steps between states that a run can go on from


@dataclass(frozen=True)
class Adversary:
    """How hard the VAE fights. kld: weight of the divergence from the prior; reconstructed, generated: weights of fooling
    the discriminator with reconstructions and with samples. lr_vae, lr_discriminator: of the two Adam optimisers."""

    kld: float = 1e-4
    reconstructed: float = 0.03
    generated: float = 0.03
    lr_vae: float = 1e-3
    lr_discriminator: float = 3e-4

    def __post_init__(self) -> None:
        if min(self.kld, self.reconstructed, self.generated) < 0 or min(self.lr_vae, self.lr_discriminator) <= 0:
            raise ValueError(f"{self}: weights of losses must not be negative, and learning rates must be above 0")


@dataclass(frozen=True)
class Losses:
    """Losses of one step: the VAE's, its reconstruction part, and the discriminator's (ln 2 = 0.69: it cannot tell)."""

    vae: float
    reconstruction: float
    discriminator: float


def prior_nats(mean_PZ: Tensor, logvar_PZ: Tensor) -> Tensor:
    """KL of the encoder's normal law from the standard one, in nats per patch, averaged over patches."""
    return -0.5 * (1 + logvar_PZ - mean_PZ.square() - logvar_PZ.exp()).sum(1).mean()


def taken_for(logit_P: Tensor, real: bool) -> Tensor:
    """Mean cross-entropy, in nats, of judging the patches to be real (or not)."""
    return F.softplus(-logit_P if real else logit_P).mean()


def vae_loss(
    x_PCHW: Tensor, decoded_PCHW: Tensor, prior: Tensor, judged: tuple[Tensor, Tensor], weights: Adversary
) -> tuple[Tensor, Tensor]:
    """The VAE's loss and its reconstruction part. judged: the discriminator's logits of reconstructions and samples."""
    reconstruction = F.mse_loss(decoded_PCHW, x_PCHW)
    fooled = weights.reconstructed * taken_for(judged[0], True) + weights.generated * taken_for(judged[1], True)
    return reconstruction + weights.kld * prior + fooled, reconstruction


def discriminator_loss(real_P: Tensor, decoded_P: Tensor, generated_P: Tensor) -> Tensor:
    """Half the cross-entropy of the real patches and a quarter of each kind of fake, from logits."""
    return 0.5 * (taken_for(real_P, True) + 0.5 * taken_for(generated_P, False) + 0.5 * taken_for(decoded_P, False))


class Match:
    """A detector with its two optimisers: the state that one step changes."""

    def __init__(self, detector: Detector, weights: Adversary = Adversary()) -> None:
        self.detector, self.weights = detector.train(), weights
        self.vae_adam = torch.optim.Adam(detector.vae.parameters(), weights.lr_vae)
        self.discriminator_adam = torch.optim.Adam(detector.discriminator.parameters(), weights.lr_discriminator)

    def step(self, x_PCHW: Tensor, generator: torch.Generator) -> Losses:
        """Train both networks on one batch of patches from many images. generator: of the latents, on the CPU."""
        x_PCHW = x_PCHW.contiguous(memory_format=torch.channels_last)
        vae, discriminator = self.detector.vae, self.detector.discriminator
        mean_PZ, logvar_PZ = vae.encode(x_PCHW)
        noise_2PZ = torch.randn(2, *mean_PZ.shape, generator=generator).to(x_PCHW)
        decoded = vae.decode(mean_PZ + noise_2PZ[0] * (logvar_PZ / 2).exp())
        generated = vae.decode(noise_2PZ[1])
        judged = discriminator(decoded), discriminator(generated)
        loss, reconstruction = vae_loss(x_PCHW, decoded, prior_nats(mean_PZ, logvar_PZ), judged, self.weights)
        self.vae_adam.zero_grad()
        loss.backward(inputs=list(vae.parameters()))  # nothing reaches the discriminator's gradients
        self.vae_adam.step()
        judged = discriminator(decoded.detach()), discriminator(generated.detach())
        against = discriminator_loss(discriminator(x_PCHW), *judged)
        self.discriminator_adam.zero_grad()
        against.backward()
        self.discriminator_adam.step()
        return Losses(*(float(value.detach()) for value in (loss, reconstruction, against)))

    def state(self) -> dict[str, Tensor]:
        """All tensors of the state by name; what `restore` takes."""
        found = {f"detector.{name}": value for name, value in self.detector.state_dict().items()}
        for which, adam in self._adams():
            for number, moments in adam.state_dict()["state"].items():
                found |= {f"{which}.{number}.{name}": value for name, value in moments.items()}
        return {name: value.detach().cpu().contiguous() for name, value in found.items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on from a state that `state` gave."""
        prefix = "detector."
        self.detector.load_state_dict(
            {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        )
        for which, adam in self._adams():
            moments: dict[int, dict[str, Tensor]] = {}
            for name, value in state.items():
                if name.startswith(f"{which}."):
                    number, moment = name.split(".")[1:]
                    moments.setdefault(int(number), {})[moment] = value
            adam.load_state_dict({**adam.state_dict(), "state": moments})

    def _adams(self) -> tuple[tuple[str, torch.optim.Adam], tuple[str, torch.optim.Adam]]:
        return ("vae_adam", self.vae_adam), ("discriminator_adam", self.discriminator_adam)


def step_generator(seed: int, step: int) -> torch.Generator:
    """The random numbers of one step; equal for a run that was interrupted and one that was not."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)


def train(
    match: Match,
    batch: Callable[[torch.Generator], Tensor],
    steps: int,
    seed: int,
    *,
    kept: Path | None = None,
    advance: Callable[[int, int], None] | None = None,
) -> list[Losses]:
    """Train for so many steps; returns the losses of all of them.

    batch: draws the patches of a step with the step's generator. kept: a folder for the state every 100 steps; where it
    holds one, the run goes on from there. advance: called with (steps done, steps in all).
    Raises ValueError where a loss is not finite.
    """
    history = _restored(match, kept)
    for step in range(len(history), steps):
        generator = step_generator(seed, step)
        losses = match.step(batch(generator), generator)
        if not all(abs(value) < float("inf") for value in asdict(losses).values()):
            raise ValueError(
                f"the losses of step {step} are not finite ({losses}): lower the learning rates, or check the images"
            )
        history.append(losses)
        if kept is not None and ((step + 1) % KEPT_EVERY == 0 or step + 1 == steps):
            _keep(match, history, kept)
        if advance:
            advance(step + 1, steps)
    return history


def _keep(match: Match, history: list[Losses], folder: Path) -> None:
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    told = torch.tensor([list(asdict(losses).values()) for losses in history], dtype=torch.float64)
    save_file({**match.state(), "history": told}, folder / "state.tmp")
    (folder / "state.tmp").rename(folder / "state.safetensors")


def _restored(match: Match, folder: Path | None) -> list[Losses]:
    from safetensors.torch import load_file

    if folder is None or not (folder / "state.safetensors").exists():
        return []
    state = load_file(folder / "state.safetensors")
    history = [Losses(*row) for row in state.pop("history").tolist()]
    match.restore(state)
    return history
