"""Claims about training the patch detector: losses by hand, bit-equal resumption, and the replication with its ablations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from sklearn.datasets import load_digits
from torch import nn
from torch.distributions import Normal, kl_divergence

from shiftscope.core.images import adversary, corruptions, detection, patch_detector, patches, pictures
from shiftscope.core.images.adversary import Adversary, Match
from shiftscope.core.images.patch_detector import Architecture, GroupedBatchNorm

SMALL = Architecture(1, (8, 8), (4, 8), 3)


def noise(generator: torch.Generator) -> torch.Tensor:
    return 2 * torch.rand(12, 1, 8, 8, generator=generator) - 1


def test_the_prior_term_is_the_kl_between_normal_laws_summed_over_latents():
    generator = torch.Generator().manual_seed(0)
    mean, logvar = torch.randn(2, 5, 3, generator=generator)
    expected = kl_divergence(Normal(mean, (logvar / 2).exp()), Normal(0.0, 1.0)).sum(1).mean()
    assert float(adversary.prior_nats(mean, logvar)) == pytest.approx(float(expected), rel=1e-5)  # float32 sums
    assert float(adversary.prior_nats(torch.zeros(2, 3), torch.zeros(2, 3))) == 0


def test_losses_are_the_published_ones_on_probabilities():
    real, decoded, generated = torch.randn(3, 7, generator=torch.Generator().manual_seed(1)).double()
    bce = nn.functional.binary_cross_entropy
    one, zero = torch.ones(7).double(), torch.zeros(7).double()
    p = [logit.sigmoid() for logit in (real, decoded, generated)]
    expected = 0.5 * (bce(p[0], one) + 0.5 * bce(p[2], zero) + 0.5 * bce(p[1], zero))
    assert float(adversary.discriminator_loss(real, decoded, generated)) == pytest.approx(float(expected), rel=1e-12)
    x, back = torch.rand(2, 7, 1, 4, 4, dtype=torch.float64)
    weights = Adversary(kld=0.2, reconstructed=0.3, generated=0.5)
    loss, reconstruction = adversary.vae_loss(x, back, torch.tensor(2.0).double(), (decoded, generated), weights)
    assert float(reconstruction) == pytest.approx(float(((x - back) ** 2).mean()), rel=1e-12)
    by_hand = reconstruction + 0.2 * 2 + 0.3 * bce(p[1], one) + 0.5 * bce(p[2], one)
    assert float(loss) == pytest.approx(float(by_hand), rel=1e-12)


def test_a_discriminator_that_cannot_tell_loses_ln_2():
    zeros = torch.zeros(4)
    assert float(adversary.discriminator_loss(zeros, zeros, zeros)) == pytest.approx(math.log(2), rel=1e-6)


def test_the_vae_step_leaves_no_gradient_in_the_discriminator():
    match = Match(patch_detector.initialised(SMALL, 0), Adversary(reconstructed=100.0, generated=100.0))
    plain = Match(patch_detector.initialised(SMALL, 0), Adversary(reconstructed=0.0, generated=0.0))
    for each in (match, plain):
        each.vae_adam = torch.optim.SGD(each.detector.vae.parameters(), 0.0)  # the VAE stays, only its gradients differ
        each.step(noise(torch.Generator().manual_seed(3)), torch.Generator().manual_seed(4))
    for one, other in zip(
        match.detector.discriminator.parameters(), plain.detector.discriminator.parameters(), strict=True
    ):
        assert torch.equal(one.grad, other.grad)


def test_an_interrupted_training_goes_on_bit_for_bit(tmp_path, monkeypatch):
    monkeypatch.setattr(adversary, "KEPT_EVERY", 4)
    whole = Match(patch_detector.initialised(SMALL, 0))
    history = adversary.train(whole, noise, 10, seed=5)

    def stop(done, total):
        if done == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        adversary.train(Match(patch_detector.initialised(SMALL, 0)), noise, 10, seed=5, kept=tmp_path, advance=stop)
    told = []
    second = Match(patch_detector.initialised(SMALL, 99))
    again = adversary.train(
        second, noise, 10, seed=5, kept=tmp_path, advance=lambda done, total: told.append((done, total))
    )
    assert told == [(step, 10) for step in range(5, 11)]  # the state of step 4 was kept
    assert again == history == adversary.train(Match(patch_detector.initialised(SMALL, 7)), noise, 10, 5, kept=tmp_path)
    assert all(torch.equal(one, second.state()[name]) for name, one in whole.state().items())


def test_losses_that_are_not_finite_stop_the_training():
    with pytest.raises(ValueError, match="the losses of step 0 are not finite"):
        adversary.train(Match(patch_detector.initialised(SMALL, 0)), lambda _: torch.full((4, 1, 8, 8), math.nan), 2, 0)


def test_impossible_weights_are_refused():
    for settings in ({"kld": -1.0}, {"generated": -0.1}, {"lr_vae": 0.0}):
        with pytest.raises(ValueError, match="weights of losses must not be negative"):
            Adversary(**settings)


class Running(GroupedBatchNorm):
    """As torch's own layer: in training it also keeps running statistics of everything that passes."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.mean, self.var = torch.zeros(channels), torch.ones(channels)

    def forward(self, x, by="batch"):
        if by == "running":
            return nn.functional.batch_norm(x, self.mean, self.var, self.weight, self.bias, eps=self.eps)
        if by == "batch" and torch.is_grad_enabled():
            return nn.functional.batch_norm(x, self.mean, self.var, self.weight, self.bias, True, 0.1, self.eps)
        return super().forward(x, by)


class Grouped(nn.GroupNorm):
    """The ablation: normalises every patch by itself, by groups of channels."""

    def __init__(self, channels: int) -> None:
        super().__init__(8, channels)

    def forward(self, x, by="batch"):
        return super().forward(x)


def mosaics(digits, count, seed):
    """64x64 mosaics of 8x8 digits, slightly blurred, from 0.1 to 0.9, with noise of 0.04 so that nothing is exactly flat."""
    generator = np.random.default_rng(seed)
    tiles = digits[generator.integers(0, len(digits), (count, 8, 8))]
    flat = gaussian_filter(tiles.transpose(0, 1, 3, 2, 4).reshape(count, 64, 64), (0, 0.4, 0.4))
    return (0.1 + 0.8 * flat + 0.04 * generator.standard_normal(flat.shape)).astype(np.float32)


def replicate(seed):
    """One-sided and two-sided AUROC of every shift, by every way to normalise and by the reconstruction error."""
    pixels, label = load_digits(return_X_y=True)
    pixels, order = pixels.reshape(-1, 8, 8) / 16, np.random.default_rng(0).permutation(len(label))
    low = pixels[order[label[order] < 5]]
    seen, unseen, high = low[: len(low) // 2], low[len(low) // 2 :], pixels[label >= 5]
    view = patches.View(patches.Patching(), tokens=False)
    side = pictures.prepare(pictures.find(mosaics(seen, 400, 100 * seed), "training"), 1)

    def batch(generator):
        return view.batch(side, np.arange(400), (8, 16), generator)

    def trained(norm):
        match = Match(patch_detector.initialised(Architecture(1, (16, 16)), seed, norm))
        adversary.train(match, batch, 900, seed)
        return match.detector

    detector, ablated = trained(Running), trained(Grouped)
    later = [batch(adversary.step_generator(seed, 900 + step)) for step in range(32)]
    patch_detector.measure_population(detector.discriminator, later)

    def patched(images):
        return torch.from_numpy(np.concatenate([view.patches(image, key) for key, image in enumerate(images)]))

    def judged(images):
        cut = patched(images)
        found = patch_detector.judge(detector, cut, 32)
        with torch.no_grad():
            running = 1 - detector.discriminator(cut, "running").sigmoid()
            grouped = 1 - ablated.discriminator(cut).sigmoid()
        columns = (found.fake_GN, found.error_GN, running.view(-1, 32), grouped.view(-1, 32), found.absolute_GN)
        return [column.mean(1).double().numpy() for column in columns]

    inside, third = (mosaics(unseen, 80, 100 * seed + n)[:, None] for n in (1, 2))
    base = mosaics(unseen, 80, 100 * seed + 3)[:, None]
    shifts = {name: [how(x, by, key) for key, x in enumerate(base)] for name, (how, by) in corruptions.PIXELS.items()}
    shifts["near: digits 5-9"] = mosaics(high, 80, 100 * seed + 4)[:, None]
    ordinary, calibration = judged(inside), judged(third)
    one, two = {}, {}
    for name, images in shifts.items():
        found = judged(images)
        one[name] = [detection.separation(a, b, samples=1).auroc for a, b in zip(ordinary, found, strict=True)]
        far = [
            [detection.two_sided(c, values) for values in (a, b)]
            for c, a, b in zip(calibration, ordinary, found, strict=True)
        ]
        two[name] = [detection.separation(*pair, samples=1).auroc for pair in far]
    return one, two


COLUMNS = ("same image", "reconstruction", "running", "GroupNorm", "population")


def table(one, two):
    lines = [f"{'shift':18}" + "".join(f"{name:>16}" for name in COLUMNS)]
    for title, found in (("one-sided", one), ("two-sided", two)):
        lines += [f"{name:18}" + "".join(f"{value:16.3f}" for value in row) for name, row in found.items()]
        lines.append(f"{'mean ' + title:18}" + "".join(f"{value:16.3f}" for value in np.mean(list(found.values()), 0)))
    return "\n".join(lines)


@pytest.mark.slow
def test_one_image_statistics_find_shifts_that_running_statistics_groupnorm_and_reconstruction_do_not():
    """900 steps on mosaics of digits: mean AUROC over eight shifts, same weights under three kinds of statistics."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    one, two = replicate(seed=0)
    torch.set_num_threads(threads)
    print(table(one, two))
    mean = dict(zip(COLUMNS, np.mean(list(one.values()), 0), strict=True))
    assert mean["same image"] >= 0.65
    assert mean["same image"] >= mean["running"] + 0.08
    assert mean["same image"] > mean["GroupNorm"]
    assert one["blur 0.5"][0] >= 0.95
    assert one["contrast 0.8"][0] >= 0.95
    assert max(one["blur 0.5"][1], one["contrast 0.8"][1]) < 0.1  # one-sided reconstruction error is inverted there
    both = dict(zip(COLUMNS, np.mean(list(two.values()), 0), strict=True))
    assert both["reconstruction"] > both["same image"]  # why both are shipped, and read two-sided
