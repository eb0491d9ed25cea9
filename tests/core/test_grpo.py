"""Claims about GRPO: k3, which groups count, the token weights, and trl's loss against the formula written out."""

from __future__ import annotations

import math
import random
import sys
import warnings
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shiftscope.core import checkpoints, grpo
from shiftscope.core.grpo import Settings, informative, k3_nats, weigh_minibatch
from shiftscope.zoo import sums

START = checkpoints.ZOO / "sums-base"
ROWS = sums.prompts(40, seed=0)
EQUAL = 0.15  # no float32: the mean of eight of them is another number, and so is that of seven
logps = st.lists(st.floats(-30, 0), min_size=5, max_size=5).map(torch.tensor)
rewards_of_a_group = st.lists(st.floats(-100, 100), min_size=1, max_size=12)


# ---- k3 -------------------------------------------------------------------------------------------------------------
@given(logps, logps)
def test_k3_is_never_negative_and_zero_where_nothing_moved(new, old):
    assert (k3_nats(new, old) >= 0).all()
    assert (k3_nats(new, new) == 0).all()


def test_k3_averages_to_the_exact_divergence():
    generator = torch.Generator().manual_seed(0)
    old, new = (torch.randn(50, generator=generator, dtype=torch.float64).log_softmax(-1) for _ in range(2))
    expected = (old.exp() * k3_nats(new, old)).sum()  # its mean over tokens drawn from old
    torch.testing.assert_close(expected, (old.exp() * (old - new)).sum(), rtol=1e-12, atol=1e-12)


def test_k3_of_a_small_step_is_half_its_square_to_the_last_digits_and_carries_no_gradient():
    step = torch.tensor([1e-7, -1e-7], dtype=torch.float64).requires_grad_()
    found = k3_nats(step, torch.zeros(2))
    assert found.tolist() == pytest.approx([5e-15] * 2, rel=1e-6, abs=0)  # r − 1 − ln r from exp is off by 4 %
    assert found.dtype == torch.float64
    assert not found.requires_grad


# ---- which groups count, and token weights --------------------------------------------------------------------------
@given(st.lists(rewards_of_a_group, min_size=1, max_size=5), st.integers(2, 6))
def test_a_group_counts_exactly_when_two_of_its_rewards_differ(pools, samples):
    rewards = [pool[place % len(pool)] for pool in pools for place in range(samples)]
    groups = np.float32(rewards).reshape(-1, samples)
    expected = [len(set(group.tolist())) > 1 for group in groups for _ in group]
    assert informative(rewards, samples).tolist() == expected


def test_a_group_of_equal_rewards_whose_mean_is_rounded_is_left_out():
    equal = torch.full((8,), EQUAL)
    assert (equal != equal.mean()).all()  # so its advantages are not 0
    assert informative([EQUAL] * 8 + [0.0, 1.0] * 4, samples=8).tolist() == [False] * 8 + [True] * 8


def minibatch():
    return {
        "advantages": torch.tensor([1.0, -2.0, 0.0]),
        "completion_mask": torch.tensor([[1, 1, 0], [1, 1, 1], [1, 1, 1]]),
        "kept": torch.tensor([True, True, False]),
        "old_per_token_logps": torch.full((3, 3), -1.0),
    }


NEW = torch.tensor([[-1.0, -0.5, -9.0], [-1.0, -1.25, -2.0], [-1.0, -7.0, -1.0]])


def growing(new, old, mask):
    """Weights that grow with the distance, largest where the mask is off."""
    return 1 + (new - old).abs()


def test_weights_multiply_the_advantages_token_by_token_and_only_counted_tokens_are_logged():
    batch, log = minibatch(), defaultdict(list)
    weigh_minibatch(batch, NEW, growing, log)
    expected = torch.tensor([[1.0], [-2.0], [0.0]]) * growing(NEW, torch.full((3, 3), -1.0), None)
    torch.testing.assert_close(batch["advantages"], expected)
    assert (log["weight_min"], log["weight_max"]) == ([1.0], [2.0])  # not 9 (padding), not 7 (a group left out)
    steps = [0.0, 0.5, 0.0, -0.25, -1.0]
    k3 = [math.exp(step) - 1 - step for step in steps]
    for name, q in (("k3_p50", 0.5), ("k3_p90", 0.9), ("k3_p99", 0.99)):
        assert log[name] == [pytest.approx(np.quantile(k3, q), rel=1e-12)]


def test_the_function_of_weights_is_told_which_tokens_count():
    seen = []
    weigh_minibatch(minibatch(), NEW, lambda new, old, mask: seen.append(mask) or torch.ones(3, 3), defaultdict(list))
    assert seen[0].tolist() == [[True, True, False], [True, True, True], [False, False, False]]


def test_the_range_of_weights_is_that_of_all_micro_batches_of_an_update():
    log = defaultdict(list)
    for factor in (3.0, 0.5, 2.0):
        weigh_minibatch(minibatch(), NEW, lambda new, old, mask, by=factor: torch.full((3, 3), by), log)
    assert (log["weight_min"], log["weight_max"]) == ([0.5], [3.0])  # trl logs means: one value each stays what it is
    assert len(log["k3_p50"]) == 3


def test_without_weights_advantages_are_left_alone_and_k3_is_still_logged():
    batch, log = minibatch(), defaultdict(list)
    weigh_minibatch(batch, torch.full((3, 3), -1.5), None, log)
    assert batch["advantages"].tolist() == [1.0, -2.0, 0.0]
    assert log["k3_p50"] == [pytest.approx(float(k3_nats(torch.tensor(-1.5), torch.tensor(-1.0))))]
    assert log["weight_min"] == log["weight_max"] == [1.0]


def test_the_policy_that_drew_the_answers_has_moved_nowhere_and_a_batch_without_counted_tokens_logs_nothing():
    batch, log = minibatch(), defaultdict(list)
    del batch["old_per_token_logps"]
    weigh_minibatch(batch, NEW, None, log)
    assert log["k3_p99"] == [0.0]
    empty, log = {**minibatch(), "kept": torch.tensor([False] * 3)}, defaultdict(list)
    weigh_minibatch(empty, NEW, growing, log)
    assert not log


# ---- trl's loss against the formula ---------------------------------------------------------------------------------
def one_prompt_all_equal(prompt, answer, reference=None):
    """0.15 for every answer to the first prompt; 0, 0.5 or 1 by the number of letters for the others."""
    return EQUAL if prompt == ROWS[0]["prompt"] else len(answer) % 3 / 2


TINY = Settings(
    rollouts=1, prompts_per_rollout=4, samples=8, epochs=2, minibatches=1, max_new_tokens=24, temperature=3.0
)


def later_weighs_more(new, old, mask):
    """1, 1.1, 1.2, … along an answer."""
    return 0.9 + 0.1 * mask.cumsum(1)


def rolled_out(folder, settings, weigh=None):
    """A trainer and one rollout of it: answers to the first four prompts."""
    with grpo.own_randomness(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*gradient_checkpointing", category=FutureWarning)  # as in `tune`
        trainer = grpo._trainer(str(START), ROWS, one_prompt_all_equal, folder, settings, weigh)
        trainer.model.train()
        trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
        rows = [trainer.train_dataset[place] for place in range(4) for _ in range(settings.samples)]
        return trainer, trainer._generate_and_score_completions(rows)


@pytest.fixture(scope="module")
def leashed(tmp_path_factory):
    return rolled_out(tmp_path_factory.mktemp("leashed"), replace(TINY, leash=0.3), later_weighs_more)


@pytest.fixture(scope="module")
def micro(tmp_path_factory):
    """Two minibatches, each in two micro-batches."""
    return rolled_out(tmp_path_factory.mktemp("micro"), replace(TINY, minibatches=2, micro_batch=8))


def answers_of(trainer, rollout):
    rows = zip(rollout["completion_ids"], rollout["completion_mask"].bool(), strict=True)
    return [trainer.processing_class.decode(ids[mask], skip_special_tokens=True) for ids, mask in rows]


def advantages_of(trainer, rollout):
    """Rewards minus their group's mean, over their group's standard deviation; nothing for groups of equal rewards."""
    questions = [row["prompt"] for row in ROWS[:4] for _ in range(8)]
    earned = map(one_prompt_all_equal, questions, answers_of(trainer, rollout))
    groups = np.array(list(earned)).reshape(4, 8)
    scaled = (groups - groups.mean(1, keepdims=True)) / (groups.std(1, ddof=1, keepdims=True) + 1e-4)
    return torch.tensor(np.where(np.ptp(groups, 1, keepdims=True) > 0, scaled, 0)).flatten()


def new_logps(trainer, rollout):
    """Log-probabilities of the answers' tokens, at the temperature that they were drawn at, from the model itself."""
    ids, mask = (torch.cat([rollout[f"prompt_{name}"], rollout[f"completion_{name}"]], 1) for name in ("ids", "mask"))
    keep = rollout["completion_ids"].shape[1]
    logits = trainer.model(input_ids=ids, attention_mask=mask).logits[:, -keep - 1 : -1]
    logp = (logits / TINY.temperature).log_softmax(-1)
    return logp.gather(-1, rollout["completion_ids"][..., None])[..., 0]


def shaken(rollout, name, seed, like, size=0.4):
    noise = torch.randn(like.shape, generator=torch.Generator().manual_seed(seed))
    return {**rollout, name: like.detach() + size * noise}


def gradients(trainer, loss):
    found = torch.autograd.grad(loss, list(trainer.model.parameters()), allow_unused=True)
    return torch.cat([g.flatten() for g in found if g is not None])


def test_advantages_are_normalised_in_their_group_and_make_up_for_the_groups_left_out(leashed):
    trainer, rollout = leashed
    expected, tokens_B = advantages_of(trainer, rollout), rollout["completion_mask"].sum(1)
    kept_B = expected.view(4, 8).ne(0).any(1).repeat_interleave(8)
    assert not kept_B[:8].any()
    assert kept_B[8:].any()
    assert rollout["kept"].tolist() == kept_B.tolist()
    scale = tokens_B.sum() / tokens_B[kept_B].sum()
    torch.testing.assert_close(rollout["advantages"].double(), expected * scale, rtol=1e-4, atol=1e-6)
    assert trainer._metrics["train"]["zero_variance_share"] == [1 - float(kept_B.float().mean())]


def test_the_loss_is_the_weighed_clipped_mean_over_counted_tokens_plus_a_leash_over_all(leashed):
    """Oracle with gradients; old and start are shaken so that ratios leave the clip range on both sides."""
    trainer, rollout = leashed
    new = new_logps(trainer, rollout)
    shook = shaken(shaken(rollout, "old_per_token_logps", 1, new), "ref_per_token_logps", 2, new)
    advantages = advantages_of(trainer, rollout)
    mask_BT = rollout["completion_mask"].bool()
    kept_BT = mask_BT & rollout["kept"][:, None]
    ratio = (new - shook["old_per_token_logps"]).exp()
    assert len(set(mask_BT.sum(1).tolist())) > 1  # of several lengths: a mean over tokens is not one over answers
    assert (ratio[kept_BT] < 0.8).any()
    assert (ratio[kept_BT] > 1.28).any()
    weighed = advantages[:, None] * later_weighs_more(None, None, kept_BT)
    gained = torch.min(ratio * weighed, ratio.clamp(0.8, 1.28) * weighed)
    apart = shook["ref_per_token_logps"] - new
    expected = -gained[kept_BT].mean() + 0.3 * (ratio * (apart.exp() - 1 - apart))[mask_BT].mean()
    found = trainer._compute_loss(trainer.model, shook)
    assert found.item() == pytest.approx(expected.item(), rel=1e-4)
    ours, theirs = gradients(trainer, expected), gradients(trainer, found)
    assert float((ours - theirs).norm() / ours.norm()) < 1e-4  # float32 sums in another order
    again = trainer._compute_loss(trainer.model, shook)  # as the next epoch does: weights are not applied twice
    assert again.item() == found.item()


@pytest.mark.parametrize(
    ("ratio", "sign", "held"),
    [(1.25, 1, False), (1.31, 1, True), (1.31, -1, False), (0.83, -1, False), (0.75, -1, True), (0.75, 1, False)],
)
def test_a_token_stops_pulling_once_it_is_past_its_own_end_of_the_range(micro, ratio, sign, held):
    """Up to 1.28 for what did well, down to 0.8 for what did badly."""
    trainer, rollout = micro
    old = new_logps(trainer, rollout).detach() - math.log(ratio)
    given = {**rollout, "old_per_token_logps": old, "advantages": torch.full((32,), float(sign))}
    pulled = gradients(trainer, trainer._compute_loss(trainer.model, given)).norm()
    assert (pulled == 0) == held


def test_the_losses_of_one_pass_add_up_to_the_mean_over_counted_tokens_for_each_minibatch(micro):
    trainer, rollout = micro
    new = new_logps(trainer, rollout)
    shook = shaken(rollout, "old_per_token_logps", 3, new, 0.1)
    kept_BT = rollout["completion_mask"].bool() & rollout["kept"][:, None]
    advantages = advantages_of(trainer, rollout)[:, None]
    ratio = (new - shook["old_per_token_logps"]).exp()
    expected = -torch.min(ratio * advantages, ratio.clamp(0.8, 1.28) * advantages)[kept_BT].mean()
    pieces = [
        {name: value[start : start + 8] if value.dim() else value for name, value in shook.items()}
        for start in range(0, 32, 8)
    ]
    losses = [float(trainer._compute_loss(trainer.model, piece).detach()) for piece in pieces]
    assert sum(losses) == pytest.approx(2 * expected.item(), rel=1e-4)


def test_equal_rewards_leave_every_weight_as_it_was(tmp_path):
    settings = replace(TINY, learning_rate=1e-3, prompts_per_rollout=8)
    records = grpo.tune(START, ROWS, lambda *_: EQUAL, tmp_path / "tuned", settings=settings)
    before, after = (checkpoints.load(str(path)).model.state_dict() for path in (START, tmp_path / "tuned"))
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert [record["zero_variance_share"] for record in records] == [1.0, 1.0]
    assert [record["reward_mean"] for record in records] == pytest.approx([EQUAL] * 2)
    assert all(record["k3_p50"] is None and record["weight_min"] is None for record in records)


def test_without_a_leash_and_weights_a_run_is_plain_grpo_and_repeats_itself(tmp_path):
    settings = Settings(rollouts=2, prompts_per_rollout=8, samples=4, learning_rate=1e-3, max_new_tokens=24)
    told = []
    runs = [
        grpo.tune(
            START, ROWS, lambda prompt, answer, reference: float(answer.startswith("take")), tmp_path / str(run),
            settings=settings, advance=lambda done, total: told.append((done, total)),
        )
        for run in (0, 1)
    ]  # fmt: skip
    assert runs[0] == runs[1]
    assert all(row["kl_to_start_nats"] is None for row in runs[0])
    assert [(row["step"], row["rollout"]) for row in runs[0]] == [(n, 1 + (n > 4)) for n in range(1, 9)]
    assert len({row["reward_mean"] for row in runs[0][:4]}) == 1  # a rollout's reward stands in each of its updates
    assert told[:8] == [(n, 8) for n in range(1, 9)]
    assert set(runs[0][0]) == {"step", "rollout", *grpo.COLUMNS}


# ---- refusals -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"samples": 1}, "samples is 1: a group needs at least 2 answers"),
        ({"prompts_per_rollout": 3, "samples": 3, "minibatches": 2}, "3 prompts × 3 samples do not divide into 2"),
        ({"rollouts": 0}, "rollouts is 0: it must be at least 1"),
        ({"micro_batch": 0}, "micro_batch is 0: it must be at least 1"),
        ({"learning_rate": math.nan}, "learning_rate is nan: it must be above 0"),
        ({"temperature": 0}, "temperature is 0: it must be above 0"),
        ({"decay": 2}, "decay is 2: it is a share"),
        ({"leash": -1}, "leash is -1: it must be 0"),
        ({"leash": math.nan}, "leash is nan: it must be 0"),
        ({"clip_low": -0.1}, "clip_low is -0.1: it must be from 0 to 1"),
        ({"clip_low": 1.5}, "clip_low is 1.5: it must be from 0 to 1"),
        ({"clip_high": -0.1}, "clip_high is -0.1: it must be 0 or above"),
    ],
)
def test_settings_out_of_range_are_one_sentence(wrong, said):
    with pytest.raises(ValueError, match=said) as raised:
        Settings(**wrong)
    assert "\n" not in str(raised.value)


def test_too_few_prompts_and_batches_that_do_not_divide_are_refused_before_anything_is_made(tmp_path):
    with pytest.raises(ValueError, match=r"there are 3 prompts and a rollout takes 4: give more or lower"):
        grpo.tune(START, ROWS[:3], one_prompt_all_equal, tmp_path / "out", settings=TINY)
    with pytest.raises(ValueError, match="minibatches of 32 answers do not divide over 1 processes with 5 answers"):
        grpo.tune(START, ROWS, one_prompt_all_equal, tmp_path / "out", settings=replace(TINY, micro_batch=5))
    assert not list(tmp_path.iterdir())


def test_missing_trl_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "trl", None)
    with pytest.raises(ValueError, match=r"needs the package trl: pip install 'shiftscope\[trl\]'"):
        grpo.require_trl()


def test_the_callers_random_numbers_are_put_back_even_after_an_error():
    def draws():
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    states = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    expected = draws()
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.random.set_rng_state(states[2])

    @grpo.own_randomness()
    def fails():
        torch.manual_seed(1)
        draws()
        raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert draws() == expected
