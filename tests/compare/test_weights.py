"""Filter drift of whole checkpoints: identity, the drift table on digits with its controls, kept bases, bad input."""

from __future__ import annotations

import json
import math

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import Tensor, nn

from shiftscope.compare.weights import Drifting, weights

FAST = Drifting(permutations=40)


def net(seed: int, width: int = 8, kernel: int = 3) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        size = {"kernel_size": kernel, "padding": kernel // 2}
        return nn.Sequential(
            nn.Conv2d(1, width, **size), nn.ReLU(), nn.Conv2d(width, width, **size), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(width, width, **size), nn.ReLU(), nn.Conv2d(width, width, **size), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(4 * width, 10),
        )  # fmt: skip


def test_a_checkpoint_does_not_drift_from_itself_and_is_not_altered():
    model = net(0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = weights(model, model, drifting=FAST)
    assert found["drift_nats"] == 0
    assert found["drift_js_nats"] == 0
    assert found["drift_p"] == 1
    assert "exactly alike" in found.verdict[0]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model.training


def test_two_initialisations_do_not_drift_and_all_their_layers_are_random():
    found = weights(net(0, 24), net(1, 24), layers="^[2-9]", drifting=FAST)
    assert found["drift_p"] > 0.05
    assert found["layers_random_base"] == found["layers_random_tuned"] == found["layers_base"] == 3
    assert found["entropy_ratio_base"] == pytest.approx(1, abs=0.02)
    assert "No drift beyond chance" in found.verdict[0]
    assert any("cannot give a p below 0.25" in note for note in found.notes)


def test_every_way_to_swap_layers_was_tried_so_its_p_has_no_interval():
    p = weights(net(0), net(1), drifting=FAST).figures["drift_layers_p"]
    assert p.n == 2**4
    assert p.low == p.value == p.high


def test_the_entropy_of_scaled_kernels_can_be_asked_for_and_leaves_drift_as_it_is():
    first, second = net(0), net(1)
    with torch.no_grad():
        second[2].weight.mul_(torch.linspace(0.1, 3, 8).view(-1, 1, 1, 1))
    raw, scaled = (weights(first, second, drifting=Drifting(permutations=40, entropy=e)) for e in ("raw", "scaled"))
    assert raw["drift_nats"] == scaled["drift_nats"]
    assert raw["entropy_ratio_tuned"] != scaled["entropy_ratio_tuned"]


def test_files_folders_and_modules_give_the_same_result(tmp_path):
    first, second = net(0), net(1)
    save_file(first.state_dict(), tmp_path / "a.safetensors")
    (tmp_path / "b").mkdir()
    torch.save({"state_dict": second.state_dict(), "epoch": 3}, tmp_path / "b" / "model.pt")
    from_files = weights(tmp_path / "a.safetensors", str(tmp_path / "b"), drifting=FAST)
    in_memory = weights(first, dict(second.state_dict()), drifting=FAST)
    assert from_files.table.drop_columns([]).to_pylist() == in_memory.table.to_pylist()
    assert len(from_files.provenance["base"]["sha256"]["a.safetensors"]) == 64


def test_every_kernel_size_has_a_basis_of_its_own_and_layers_of_one_side_stay_in_the_table():
    def mixed(seed: int) -> nn.Module:
        return nn.ModuleDict({"three": net(seed), "one": nn.Conv1d(4, 32, 4), "point": nn.Conv2d(4, 4, 1)})

    second = mixed(1)
    second["extra"] = nn.Conv2d(1, 20, 5)
    found = weights(mixed(0), second, drifting=FAST)
    assert {"drift_nats", "drift_4_nats"} <= found.figures.keys()
    assert "drift_5x5_nats" not in found.figures
    row = next(row for row in found.table.to_pylist() if row["layer"] == "extra")
    assert (row["kernels_base"], row["kernels_tuned"], row["drift_nats"]) == (None, 20, None)
    assert sum("pointwise" in note for note in found.notes) == 2


def test_unequal_sides_give_equally_many_kernels_and_say_so():
    found = weights(net(0, 8), net(0, 16), drifting=FAST)
    assert found.figures["drift_nats"].n == 2 * (8 + 3 * 64)
    assert any("200 kernels of size 3x3 of each side are compared, of 200 and 784" in note for note in found.notes)
    assert any("keeps layers whole is left out" in note for note in found.notes)


def test_a_later_checkpoint_is_placed_in_the_kept_basis(tmp_path):
    models = [net(seed) for seed in range(3)]
    weights(models[0], models[1], drifting=FAST).save(tmp_path)
    later = weights(models[0], models[2], basis=tmp_path, drifting=FAST)
    earlier = json.loads(pq.read_schema(tmp_path / "table.parquet").metadata[b"bases"])["3x3"]
    now = json.loads(later.table.schema.metadata[b"bases"])["3x3"]
    assert now["basis"] == earlier["basis"]
    assert len(now["sides"]) == 3  # the base is not counted twice
    assert now["sides"][:2] == [earlier["sides"][1], earlier["sides"][0]]
    heat = next(panel for panel in later.panels if panel.kind == "heat")
    assert heat.table.num_rows == 9
    again = weights(models[0], models[1], basis=tmp_path / "table.parquet", drifting=FAST)
    assert again.table.to_pylist() == pq.read_table(tmp_path / "table.parquet").to_pylist()


def test_layers_with_other_names_pair_in_order_of_their_shapes():
    renamed = {f"encoder.{name}": value for name, value in net(1).state_dict().items()}
    found = weights(net(0), renamed, drifting=FAST)
    assert found.table["layer"].to_pylist() == ["0", "2", "5", "7"]
    assert None not in found.table["drift_nats"].to_pylist()


def test_panels_can_be_drawn(tmp_path):
    from shiftscope import report

    found = weights(net(0), net(1), drifting=FAST)
    ridges = next(panel for panel in found.panels if panel.title == "Ridges of 3x3 kernels").table.to_pydict()
    assert len(set(ridges["component"])) == 9
    assert 1 <= min(ridges["ridge"]) < max(ridges["ridge"]) <= 9.9
    components = next(panel for panel in found.panels if panel.title == "Components of 3x3 kernels").table
    explained, kl = (components[name].to_numpy() for name in ("explained_share", "kl_nats"))
    assert explained @ kl == pytest.approx(found["drift_nats"], rel=1e-12)
    page = report.write(found, tmp_path / "report.html")
    assert "Close to random?" in page.read_text(encoding="utf-8")


def broken() -> dict[str, Tensor]:
    state = net(0).state_dict()
    state["2.weight"][0, 0, 0, 0] = math.inf
    return state


@pytest.mark.parametrize(
    ("base", "tuned", "settings", "sentence"),
    [
        (nn.Linear(3, 3), net(0), {}, "base has no convolutions: none of its 2 tensors"),
        (net(0), broken(), {}, "tuned has 1 of 576 weights that are not finite"),
        (net(0), net(0, kernel=5), {}, "base has kernels of size 3x3 and tuned of size 5x5"),
        (net(0), net(0), {"layers": "nothing"}, "no convolutions that 'nothing' is found in"),
        (net(0), net(0), {"layers": "("}, "is not a regular expression"),
        (net(0), net(0, 16), {"drifting": Drifting(shuffle="paired")}, "use --shuffle pooled"),
        ({}, net(0), {}, "it is empty"),
        ({"a": 3}, net(0), {}, "'a' is a int"),
        ("no/such/folder", net(0), {}, "is no checkpoint"),
    ],
)
def test_bad_input_is_named_in_one_sentence(base, tuned, settings, sentence):
    with pytest.raises(ValueError, match=".*".join(map(str, [sentence.replace("(", r"\(")]))):
        weights(base, tuned, **settings)


def test_a_language_model_of_the_zoo_has_no_convolutions():
    with pytest.raises(ValueError, match="sums-base has no convolutions"):
        weights("sums-base", "sums-sft")


def test_broken_files_are_named(tmp_path):
    for name, content in (("a.safetensors", b"nothing"), ("a.pt", b"nothing"), ("a.csv", b"1,2")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=name):
            weights(tmp_path / name, net(0))
    with pytest.raises(ValueError, match="no earlier result"):
        weights(net(0), net(1), basis=tmp_path / "a.csv")
    weights(net(0), net(1), drifting=FAST).save(tmp_path / "r")
    with pytest.raises(ValueError, match="has 70 bins and --bins is 35"):
        weights(net(0), net(1), basis=tmp_path / "r", drifting=Drifting(bins=35))
    with pytest.raises(ValueError, match="permutations 3"):
        Drifting(permutations=3)
    with pytest.raises(ValueError, match="entropy is 'x'"):
        Drifting(entropy="x")


@pytest.fixture(scope="module")
def trained() -> dict[str, nn.Sequential]:
    """Nets of width 64 on scikit-learn's digits: two seeds, one on shuffled labels."""
    images, digits = load_digits(return_X_y=True)
    images_N = torch.tensor(images / 16, dtype=torch.float32).view(-1, 1, 8, 8)
    label_N = torch.tensor(digits)
    order_N = torch.randperm(len(images_N), generator=torch.Generator().manual_seed(0))
    train_N, test_N = order_N[:1437], order_N[1437:]
    shuffled_N = label_N.clone()
    shuffled_N[train_N] = label_N[train_N][torch.randperm(1437, generator=torch.Generator().manual_seed(1))]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found = {}
    for name, seed, target_N in (("a", 0, label_N), ("b", 1, label_N), ("shuffled", 2, shuffled_N)):
        model, generator = net(seed, 64), torch.Generator().manual_seed(seed)
        optimiser = torch.optim.AdamW(model.parameters(), 2e-3)
        for _ in range(10):
            for batch in train_N[torch.randperm(1437, generator=generator)].split(32):
                optimiser.zero_grad()
                nn.functional.cross_entropy(model(images_N[batch]), target_N[batch]).backward()
                optimiser.step()
        with torch.no_grad():
            accuracy = float((model(images_N[test_N]).argmax(1) == label_N[test_N]).float().mean())
        assert accuracy > 0.95 if name != "shuffled" else accuracy < 0.2
        found[name] = model
    torch.set_num_threads(threads)
    return found


@pytest.mark.slow
def test_drift_separates_the_same_task_from_no_training_and_from_noise(trained):
    """Same task, other seed: not beyond chance. Initialisations and shuffled labels: at least 2.5 times chance."""

    def drift(first: nn.Module, second: nn.Module) -> tuple[float, float]:
        found = weights(first, second, layers="^[2-9]", drifting=Drifting(permutations=99))
        assert found.figures["drift_nats"].n == 2 * 12_288
        return float(found["drift_p"]), float(found["drift_over_null"])

    assert drift(trained["a"], trained["b"])[0] > 0.05
    assert drift(net(0, 64), net(1, 64))[0] > 0.05
    for other in (net(0, 64), net(1, 64), trained["shuffled"]):
        p, ratio = drift(trained["a"], other)
        assert p == 0.01
        assert ratio >= 2.5


@pytest.mark.slow
def test_trained_layers_lie_below_the_random_threshold_and_initialised_ones_above(trained):
    found = weights(trained["a"], net(0, 64), layers="^[2-9]", drifting=FAST).table.to_pylist()
    for row in found:
        assert 0.9 < row["entropy_ratio_base"] < 1 < row["entropy_ratio_tuned"] < 1.02
        assert (row["class_base"], row["class_tuned"]) == ("healthy", "random")
        assert row["sparsity_base"] == 0


@pytest.mark.slow
def test_tuning_on_is_more_alike_than_chance(trained):
    """A checkpoint moved a little: the pooled null is no longer the right one, and the verdict says which is."""
    tuned = {name: value + 1e-3 * torch.ones_like(value) for name, value in trained["a"].state_dict().items()}
    found = weights(trained["a"], tuned, layers="^[2-9]", drifting=FAST)
    assert found["drift_p"] == 1
    assert "--shuffle paired" in found.verdict[0]
    paired = weights(trained["a"], tuned, layers="^[2-9]", drifting=Drifting(permutations=99, shuffle="paired"))
    assert paired["drift_js_p"] <= 0.05
