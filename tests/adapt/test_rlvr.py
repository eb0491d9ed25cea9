"""Claims about verifiable-reward tuning: the algebra of the weights, and one short run through trl's GRPO."""

from __future__ import annotations

import hashlib
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shiftscope.adapt.rlvr import SCHEMA as TABLE
from shiftscope.adapt.rlvr import CalibratedWeights, Weighting, divergence_weights, rlvr, summarise
from shiftscope.core import checkpoints
from shiftscope.core.grpo import Settings, k3_nats
from shiftscope.core.parts import Parts
from shiftscope.zoo import sums

logps = st.lists(st.floats(-30, 0), min_size=5, max_size=5).map(torch.tensor)
reaches = st.floats(0.01, 2)
alphas = st.floats(0.01, 1e4)


def starts_with_take(prompt, answer, reference=None):
    return float(answer.startswith("take"))


def never_a_number(prompt, answer, reference=None):
    return "good"


# ---- the weights ----------------------------------------------------------------------------------------------------
@given(logps, logps, reaches, alphas)
def test_weights_stay_within_half_of_s_above_or_below_one(new, old, s, alpha):
    high, low = (divergence_weights(new, old, s=sign * s, alpha=alpha) for sign in (1, -1))
    assert ((high >= 1) & (high <= 1 + s / 2 + 1e-6)).all()
    assert ((low <= 1) & (low >= 1 - s / 2 - 1e-6)).all()


@given(logps, logps, reaches, alphas)
def test_only_the_sign_of_s_times_alpha_matters(new, old, s, alpha):
    weights = divergence_weights(new, old, s=s, alpha=alpha)
    torch.testing.assert_close(weights, divergence_weights(new, old, s=-s, alpha=-alpha))
    torch.testing.assert_close(2 - weights, divergence_weights(new, old, s=-s, alpha=alpha))
    torch.testing.assert_close(2 - weights, divergence_weights(new, old, s=s, alpha=-alpha))


def test_weights_are_exactly_one_where_the_policy_has_not_moved():
    logp = torch.randn(7, 5).log_softmax(-1)
    assert (divergence_weights(logp, logp, s=1.0, alpha=1e6) == 1).all()


def test_a_larger_divergence_gets_the_larger_weight_under_high():
    old = torch.full((4,), -2.0)
    weights = divergence_weights(old + torch.tensor([0.0, 0.1, 0.5, 2.0]), old, s=1.0, alpha=50.0)
    assert (weights.diff() > 0).all()


def test_no_gradient_flows_through_the_weights():
    new = torch.randn(6).log_softmax(-1).requires_grad_()
    assert not divergence_weights(new, torch.randn(6).log_softmax(-1), s=1.0, alpha=3.0).requires_grad
    advantages = divergence_weights(new, torch.zeros(6), s=1.0, alpha=3.0).detach() * torch.randn(6)
    (expected,) = torch.autograd.grad((advantages * new).sum(), new)
    torch.testing.assert_close(expected, advantages)


def test_calibration_keeps_weights_at_one_and_then_takes_alpha_from_the_percentile():
    weights, generator = CalibratedWeights(s=1.0, calls=2), torch.Generator().manual_seed(0)
    old = torch.randn(8, 5, generator=generator)
    new, mask = old + 0.1 * torch.randn(8, 5, generator=generator), torch.ones(8, 5, dtype=torch.bool)
    assert (weights(old, old, mask) == 1).all()
    assert (weights(new, old, mask) == 1).all()
    seen = torch.cat([torch.zeros(40, dtype=torch.float64), k3_nats(new, old).flatten()])
    assert weights.alpha == pytest.approx(1 / float(seen.quantile(0.99)))
    assert (weights(new, old, mask) > 1).any()


def test_settings_out_of_range_are_one_sentence():
    for wrong in ({"strength": 0}, {"strength": 2.5}, {"alpha": -1.0}):
        with pytest.raises(ValueError, match="must"):
            Weighting(**wrong)


# ---- refusals and figures -------------------------------------------------------------------------------------------
def test_missing_trl_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "trl", None)
    with pytest.raises(ValueError, match=r"needs the package trl: pip install 'shiftscope\[trl\]'"):
        rlvr("sums-base", prompts=sums.prompts(10, seed=0), verifier="exact", out=tmp_path)


def test_an_existing_checkpoint_and_too_few_prompts_are_refused(tmp_path):
    with pytest.raises(ValueError, match="a rollout takes 32"):
        rlvr("sums-base", prompts=sums.prompts(40, seed=0), verifier="exact", out=tmp_path, held_out=20)
    (tmp_path / "checkpoint").mkdir()
    with pytest.raises(ValueError, match="exists already"):
        rlvr("sums-base", prompts=sums.prompts(40, seed=0), verifier="exact", out=tmp_path)


def test_a_verifier_that_returns_no_number_names_the_answer(tmp_path):
    with pytest.raises(ValueError, match="returns 'good' for the answer '") as raised:
        rlvr("sums-base", prompts=sums.prompts(40, seed=0), verifier=never_a_number, out=tmp_path, held_out=4)
    assert "\n" not in str(raised.value)


def test_rewards_other_than_0_and_1_are_shown_as_a_mean_and_said_so():
    import pyarrow as pa

    row = {"step": 1, "rollout": 1, "reward_mean": 0.5, "kl_to_start_nats": None, "weight_min": 1.0, "weight_max": 1.0}
    result = summarise(pa.Table.from_pylist([row], schema=TABLE), [0.25, 0.5], [0.5, 1.0], "x", {})
    assert result["reward_before"] == 0.375
    assert "accuracy_before" not in result.figures
    assert any("mean stands for accuracy" in note for note in result.notes)


# ---- one run --------------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_a_short_run_raises_the_reward_and_alters_nothing_of_the_users(tmp_path):
    before = {
        file.name: hashlib.sha256(file.read_bytes()).digest() for file in (checkpoints.ZOO / "sums-base").iterdir()
    }
    start = checkpoints.load("sums-base")
    weights = {name: tensor.clone() for name, tensor in start.model.state_dict().items()}
    state = torch.random.get_rng_state()
    settings = Settings(
        rollouts=8, prompts_per_rollout=16, samples=8, learning_rate=1e-3, leash=0.01, max_new_tokens=24
    )
    result = rlvr(
        start,
        prompts=sums.prompts(200, seed=0),
        verifier=starts_with_take,
        out=tmp_path,
        weight="high",
        settings=settings,
    )
    assert result["accuracy_before"] < 0.35  # one synonym in six
    assert result["accuracy_after"] > 0.6

    table = result.table.to_pylist()
    assert len(table) == result["updates"] == 8 * 2 * 2
    first = [row for row in table if (row["step"] - 1) % 4 == 0 and row["weight_min"] is not None]
    assert all(row["weight_min"] == row["weight_max"] == 1 for row in first)  # old and new are the same policy
    assert all(row["k3_p99"] < 1e-9 for row in first)
    assert 1 < max(row["weight_max"] for row in table if row["weight_max"] is not None) <= 1.5
    assert min(row["weight_min"] for row in table if row["weight_min"] is not None) == 1
    assert table[0]["kl_to_start_nats"] == pytest.approx(0, abs=1e-6)

    assert sorted(file.name for file in tmp_path.iterdir()) == ["checkpoint"]  # the private copy is gone
    assert not list((tmp_path / "checkpoint").glob("*.bin"))
    tuned = checkpoints.load(str(tmp_path / "checkpoint"))
    assert tuned.tokenizer.get_vocab() == start.tokenizer.get_vocab()
    assert {
        f.name: hashlib.sha256(f.read_bytes()).digest() for f in (checkpoints.ZOO / "sums-base").iterdir()
    } == before
    assert all(torch.equal(tensor, weights[name]) for name, tensor in start.model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.slow
def test_an_interrupted_run_goes_on_from_its_last_saved_state_and_ends_where_a_whole_one_does(tmp_path):
    settings = Settings(
        rollouts=4, prompts_per_rollout=8, samples=4, learning_rate=1e-3, max_new_tokens=24, save_every=1
    )
    given = {"prompts": sums.prompts(40, seed=0), "verifier": starts_with_take, "settings": settings, "held_out": 8}

    def stop_in_the_third_rollout(stage, done, total):
        if done == 10:
            raise KeyboardInterrupt

    whole = rlvr("sums-base", out=tmp_path / "whole", weight="low", **given)
    with pytest.raises(KeyboardInterrupt):
        rlvr(
            "sums-base", out=tmp_path / "broken", weight="low", parts=Parts(tmp_path / "parts"),
            advance=stop_in_the_third_rollout, **given,
        )  # fmt: skip
    updates = []
    resumed = rlvr(
        "sums-base", out=tmp_path / "broken", weight="low", parts=Parts(tmp_path / "parts", resume=True),
        advance=lambda stage, done, total: updates.append(done), **given,
    )  # fmt: skip
    assert updates == list(range(9, 17))  # two rollouts of four updates were saved
    assert resumed.table.num_rows == whole.table.num_rows == 16
    weights = [checkpoints.load(str(tmp_path / name / "checkpoint")).model.state_dict() for name in ("whole", "broken")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_begun_training_is_not_gone_on_with_unasked_or_under_other_settings(tmp_path):
    (tmp_path / "training" / "checkpoint-4").mkdir(parents=True)
    (tmp_path / "settings.json").write_text('{"settings": {"settings": {"rollouts": 1}}}')
    with pytest.raises(ValueError, match="add --resume"):
        Parts(tmp_path)
    given = {"prompts": sums.prompts(40, seed=0), "verifier": starts_with_take, "held_out": 4}
    with pytest.raises(ValueError, match="they cannot be mixed"):
        rlvr("sums-base", out=tmp_path / "out", parts=Parts(tmp_path, resume=True), **given)
    with pytest.raises(ValueError, match="cannot be sharded"):
        rlvr("sums-base", out=tmp_path / "out", parts=Parts(shard=(0, 2)), **given)
