"""Claims about the patch detector: whose statistics normalise, images never mix, files round-trip."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from shiftscope.core.images import patch_detector
from shiftscope.core.images.patch_detector import Architecture, GroupedBatchNorm

MADE = Architecture(2, (8, 8), (4, 8), 3)


def patches(count: int, seed: int = 0) -> torch.Tensor:
    return 2 * torch.rand(count, 2, 8, 8, generator=torch.Generator().manual_seed(seed)) - 1


@pytest.fixture
def detector():
    made = patch_detector.initialised(MADE, 0)
    patch_detector.measure_population(made.discriminator, [patches(16, seed) for seed in range(3)])
    return made


def random_norm(channels: int = 2) -> GroupedBatchNorm:
    norm = GroupedBatchNorm(channels)
    generator = torch.Generator().manual_seed(9)
    norm.weight.data, norm.bias.data = torch.randn(2, channels, generator=generator)
    return norm


@pytest.mark.parametrize("size", [1, 3, 4, 12])
def test_grouped_normalisation_is_torch_batch_normalisation_of_each_group(size):
    norm, x = random_norm(), patches(12)
    plain = nn.BatchNorm2d(2).train()
    plain.load_state_dict({"weight": norm.weight, "bias": norm.bias}, strict=False)
    expected = torch.cat([plain(group) for group in x.split(size)])
    assert torch.allclose(norm(x, size), expected, atol=1e-6)  # float32, other order of sums


def test_one_group_is_the_whole_batch_and_one_patch_its_own_instance():
    norm, x = random_norm(), patches(6)
    assert torch.equal(norm(x, 6), norm(x, "batch"))
    instance = nn.functional.instance_norm(x, weight=norm.weight, bias=norm.bias)
    assert torch.allclose(norm(x, 1), instance, atol=1e-6)  # float32


def test_grouped_statistics_have_mean_zero_and_variance_one_per_group():
    x = 5 + 3 * patches(12) + torch.arange(3).repeat_interleave(4).view(12, 1, 1, 1)
    done = GroupedBatchNorm(2)(x, 4).view(3, 4, 2, 8, 8)
    assert torch.allclose(done.mean((1, 3, 4)), torch.zeros(3, 2), atol=1e-5)  # float32 sums of 256 numbers
    assert torch.allclose(done.var((1, 3, 4), correction=0), torch.ones(3, 2), atol=1e-4)  # eps 1e-5


def test_a_batch_that_is_no_whole_number_of_groups_is_refused():
    with pytest.raises(ValueError, match="10 patches are no whole number of groups of 4"):
        GroupedBatchNorm(2)(patches(10), 4)


def test_images_never_mix_and_batching_changes_nothing(detector):
    groups = [patches(5, seed) for seed in range(4)]
    together = patch_detector.judge(detector, torch.cat(groups), 5)
    for place, group in enumerate(groups):
        alone = patch_detector.judge(detector, group, 5)
        for one, other in zip(vars(together).values(), vars(alone).values(), strict=True):
            assert torch.allclose(one[place], other[0], atol=1e-6)  # float32: convolutions of other batch sizes
    changed = patch_detector.judge(detector, torch.cat([groups[0], 9 * groups[1]]), 5)
    assert torch.allclose(changed.fake_GN[0], together.fake_GN[0], atol=1e-6)


def test_the_order_of_an_image_s_patches_moves_nothing_but_the_patches(detector):
    group, order = patches(7), torch.randperm(7, generator=torch.Generator().manual_seed(2))
    one, other = (patch_detector.judge(detector, x, 7) for x in (group, group[order]))
    assert torch.allclose(one.fake_GN[:, order], other.fake_GN, atol=1e-6)  # float32, other order of sums


def test_an_image_s_own_statistics_do_not_see_a_scale_that_the_population_s_do(detector):
    """Without padding the first layer's normalisation would undo it exactly; inside the image it does."""
    norm, x = detector.discriminator.norms[0], patches(8).repeat(1, 2, 1, 1)
    assert torch.allclose(norm(3 * x + 1, 8), norm(x, 8), atol=1e-4)  # eps 1e-5 beside a variance of 1/3
    assert not torch.allclose(norm(3 * x + 1, "population"), norm(x, "population"), atol=0.1)


def test_population_statistics_are_the_mean_of_the_batches(detector):
    batches = [patches(16, seed) for seed in range(3)]
    first = [detector.discriminator.convolutions[0](batch) for batch in batches]
    expected = torch.stack([x.mean((0, 2, 3)) for x in first]).mean(0)
    assert torch.allclose(detector.discriminator.norms[0].population_mean, expected, atol=1e-6)  # float32
    assert not any(norm._forward_pre_hooks for norm in detector.discriminator.norms)


def test_judging_alters_nothing(detector):
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    detector.train()
    patch_detector.judge(detector, patches(4), 2)
    assert detector.vae.training
    assert all(torch.equal(before[name], value) for name, value in detector.state_dict().items())


@pytest.mark.parametrize("patch", [(8, 8), (16, 8), (1, 8)])
def test_reconstructions_have_the_shape_of_the_patches_and_stay_inside_one(patch):
    made = patch_detector.initialised(Architecture(3, patch, (4, 6), 2), 0)
    x = torch.zeros(5, 3, *patch)
    mean, logvar = made.vae.encode(x)
    assert mean.shape == logvar.shape == (5, 2)
    assert made.vae.decode(mean).shape == x.shape
    assert made.vae.decode(100 * mean).abs().max() <= 1
    assert made.discriminator(x, 5).shape == (5,)


def test_new_detectors_hang_on_their_seed_alone_and_move_no_global_state():
    before = torch.random.get_rng_state()
    one, again, other = (patch_detector.initialised(MADE, seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(value, again[name]) for name, value in one.items())
    assert not torch.equal(one["vae.mean.weight"], other["vae.mean.weight"])


def test_kernels_lie_channels_last_in_new_and_in_read_detectors(detector, tmp_path):
    """Another layout is another kernel of the library, which rounds otherwise: scores would differ in the last bit."""
    saved = patch_detector.load(patch_detector.save(detector, tmp_path / "d.safetensors", {}, []))
    for each in (detector, saved.detector):
        kernels = [parameter for parameter in each.parameters() if parameter.ndim == 4]
        assert len(kernels) == 7
        assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)


def test_a_saved_detector_is_read_back_bit_for_bit_and_judges_the_same(detector, tmp_path):
    book = torch.rand(4, 2)
    path = patch_detector.save(detector, tmp_path / "new" / "d.safetensors", {"size": 7}, [-5, 2**62], codebook=book)
    saved = patch_detector.load(path)
    assert saved.detector.made == MADE
    assert (saved.settings, saved.trained_on) == ({"size": 7}, {-5, 2**62})
    assert torch.equal(saved.more["codebook"], book)
    assert all(torch.equal(value, saved.detector.state_dict()[name]) for name, value in detector.state_dict().items())
    one, other = (patch_detector.judge(each, patches(6), 3) for each in (detector, saved.detector))
    assert all(torch.equal(*pair) for pair in zip(vars(one).values(), vars(other).values(), strict=True))


def test_files_that_are_no_detector_are_named(tmp_path):
    save_file({"a": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"other\.safetensors is no patch detector"):
        patch_detector.load(tmp_path / "other.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    for name in ("broken.safetensors", "missing.safetensors"):
        with pytest.raises(ValueError, match=f"{name} cannot be read"):
            patch_detector.load(tmp_path / name)


def test_a_detector_file_that_was_changed_is_named_and_not_half_read(detector, tmp_path):
    from safetensors import safe_open

    path = patch_detector.save(detector, tmp_path / "d.safetensors", {}, [1])
    with safe_open(path, framework="pt") as opened:
        metadata, tensors = opened.metadata(), {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    without = {name: value for name, value in tensors.items() if name != "vae.mean.bias"}
    larger = tensors | {"vae.mean.bias": torch.zeros(9)}
    for changed, told in ((without, metadata), (larger, metadata), (tensors, metadata | {"detector": "{"})):
        save_file(changed, tmp_path / "changed.safetensors", metadata=told)
        with pytest.raises(ValueError, match=r"changed\.safetensors is a patch detector of which something is missing"):
            patch_detector.load(tmp_path / "changed.safetensors")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ((1, (12, 12), (4, 4, 4)), "patch 12x12 with 3 widths: a side must be a multiple of 8"),
        ((1, (8, 8), (4, 4, 4)), "at least 16"),
        ((1, (1, 1), (4,)), "patch 1x1"),
        ((1, (8, 8), ()), "all must be at least 1"),
        ((0, (8, 8), (4,)), "channels 0"),
    ],
)
def test_impossible_architectures_are_refused(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        Architecture(*settings)
