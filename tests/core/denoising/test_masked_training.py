"""The masked objective: an exact bound by enumeration, masks of the law they claim, and a loop that trains with it."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from shiftscope.core.denoising import masked_training as training

LENGTH, WORDS = 4, 3  # of the enumerated language
MASK_ID = WORDS


class Joint(nn.Module):
    """A model whose law of each hidden token given the others in sight is that of one joint law over 3^4 texts."""

    def __init__(self) -> None:
        super().__init__()
        shape = (WORDS,) * LENGTH
        self.joint = torch.rand(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64) + 0.05
        self.joint /= self.joint.sum()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, input_ids, attention_mask=None):
        logits = torch.full((*input_ids.shape, WORDS + 1), -math.inf, dtype=torch.float64)
        for row, ids in enumerate(input_ids.tolist()):
            seen = self.joint[tuple(slice(i, i + 1) if i != MASK_ID else slice(None) for i in ids)]
            for place, token in enumerate(ids):
                law = seen.sum(tuple(axis for axis in range(LENGTH) if axis != place))
                logits[row, place, :WORDS] = (law / law.sum()).log() if token == MASK_ID else 0.0
        return SimpleNamespace(logits=logits)


class Flat(nn.Module):
    """A trainable model that ignores its input: one law for all places."""

    def __init__(self, words: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(words))

    def forward(self, input_ids, attention_mask=None):
        return SimpleNamespace(logits=self.logits.expand(*input_ids.shape, -1))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def all_masks() -> torch.Tensor:
    """Every mask with at least one token hidden: bool [15, 4]."""
    return torch.tensor([mask for mask in itertools.product([False, True], repeat=LENGTH) if any(mask)])


def every_text() -> torch.Tensor:
    return torch.tensor(list(itertools.product(range(WORDS), repeat=LENGTH)))


# ---- the bound ------------------------------------------------------------------------------------------------------
def test_over_all_masks_of_random_size_the_mean_is_the_exact_log_probability_of_a_consistent_model():
    model, masks_MT = Joint(), all_masks()
    sizes_M = masks_MT.sum(-1)
    chance_M = torch.tensor([1 / (LENGTH * math.comb(LENGTH, k)) for k in sizes_M.tolist()], dtype=torch.float64)
    assert chance_M.sum().item() == pytest.approx(1)
    for text_T in every_text()[::7]:
        rows = training.plain(text_T.expand(len(masks_MT), -1))
        logits = training.masked_logits(model, rows, masks_MT, MASK_ID)
        nats_M = training.subset_nats(logits, rows.ids_BT, masks_MT, rows.answer_BT)
        # cross-entropy is taken in float32
        assert (chance_M * nats_M).sum().item() == pytest.approx(-model.joint[tuple(text_T)].log().item(), abs=1e-5)


def test_integrated_over_t_the_weighted_loss_is_the_same_log_probability_by_length():
    model, masks_MT, text_T = Joint(), all_masks(), torch.tensor([2, 0, 1, 1])
    rows = training.plain(text_T.expand(len(masks_MT), -1))
    logits = training.masked_logits(model, rows, masks_MT, MASK_ID)
    nodes, weights = np.polynomial.legendre.leggauss(8)  # exact: the integrand is a polynomial of degree 3 in t
    total = 0.0
    for node, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
        t_M = torch.full((len(masks_MT),), node, dtype=torch.float64)
        chance_M = t_M ** masks_MT.sum(-1) * (1 - t_M) ** (~masks_MT).sum(-1)
        loss_M = training.denoising_nats(logits, rows.ids_BT, masks_MT, rows.answer_BT, t_M)
        total += weight * (chance_M * loss_M).sum().item()
    assert total == pytest.approx(-model.joint[tuple(text_T)].log().item() / LENGTH, abs=1e-5)


def test_monte_carlo_draws_scatter_around_the_exact_value():
    model, text_T = Joint(), torch.tensor([0, 1, 2, 2])
    nats_D = training.answer_nats(model, training.plain(text_T[None]), mask_id=MASK_ID, draws=2000, seed=1)[:, 0]
    error = nats_D.std().item() / math.sqrt(len(nats_D))
    assert nats_D.mean().item() == pytest.approx(-model.joint[tuple(text_T)].log().item(), abs=4 * error)


def test_a_uniform_model_costs_ln_v_a_token_at_every_single_draw():
    rows = training.supervised([[0, 1], [2]], [[3, 4], [1]], [6, 5], end_id=5)
    nats_DB = training.answer_nats(Flat(8), rows, mask_id=7, draws=9, seed=0)
    assert torch.allclose(nats_DB, torch.tensor([6.0, 5.0]) * math.log(8))


def test_the_loss_sees_masked_tokens_only_and_nothing_behind_a_canvas():
    short = training.supervised([[0]], [[1, 2]], [3], end_id=4)
    wide = training.supervised([[0], [0]], [[1, 2], [1, 2]], [3, 9], end_id=4)
    logits = torch.randn(2, 10, 6, generator=generator())
    masked = torch.zeros(2, 10, dtype=torch.bool)
    masked[:, 2] = True
    t_B = torch.tensor([0.5, 0.5])
    both = training.denoising_nats(logits, wide.ids_BT, masked, wide.answer_BT, t_B)
    alone = training.denoising_nats(logits[:1, :4], short.ids_BT, masked[:1, :4], short.answer_BT, t_B[:1])
    assert both[0] == alone[0]
    spoilt = torch.where(masked[..., None], logits, torch.randn(2, 10, 6, generator=generator(1)))
    assert torch.equal(training.denoising_nats(spoilt, wide.ids_BT, masked, wide.answer_BT, t_B), both)


# ---- masks ----------------------------------------------------------------------------------------------------------
def test_probabilities_take_one_from_each_stratum_in_random_order():
    t_B = training.stratified_probabilities(50, generator())
    share_B = (t_B - training.LEAST_PROBABILITY) / (1 - training.LEAST_PROBABILITY)
    assert sorted((share_B * 50).long().tolist()) == list(range(50))
    assert not torch.equal(t_B, t_B.sort().values)
    assert training.LEAST_PROBABILITY <= t_B.min() <= t_B.max() <= 1


def test_each_token_is_masked_with_its_sequences_probability_and_prompts_never():
    answer_BT = torch.ones(2, 20_000, dtype=torch.bool)
    answer_BT[:, :5000] = False
    masked_BT = training.masks_at(torch.tensor([0.2, 0.9]), answer_BT, generator())
    assert not masked_BT[:, :5000].any()
    # four standard errors of 15 000 coins
    assert masked_BT[:, 5000:].float().mean(-1).tolist() == pytest.approx([0.2, 0.9], abs=4 * 0.5 / math.sqrt(15_000))


def test_masks_of_random_size_have_uniform_sizes_and_favour_no_place():
    n = 12_000
    answer_BT = torch.tensor([False, True, True, False, True, True]).expand(n, -1)
    masked_BT = training.masks_of_random_size(answer_BT, generator())
    assert not masked_BT[:, [0, 3]].any()
    sizes = masked_BT.sum(-1).bincount(minlength=5) / n
    assert sizes[0] == 0
    assert sizes[1:].tolist() == pytest.approx([0.25] * 4, abs=4 * math.sqrt(0.25 * 0.75 / n))
    places = masked_BT[:, [1, 2, 4, 5]].float().mean(0).tolist()
    assert places == pytest.approx([0.625] * 4, abs=4 * math.sqrt(0.625 * 0.375 / n))  # mean size 2.5 of 4


def test_supervised_canvases_show_the_prompt_close_with_ends_and_cut_what_does_not_fit():
    rows = training.supervised([[7, 8], [7]], [[1, 2], [1, 2, 3, 4]], [4, 3], end_id=9)
    assert rows.ids_BT.tolist() == [[7, 8, 1, 2, 9, 9], [7, 1, 2, 3, 9, 9]]
    assert rows.answer_BT.int().tolist() == [[0, 0, 1, 1, 1, 1], [0, 1, 1, 1, 0, 0]]
    assert rows.attended_BT.int().tolist() == [[1] * 6, [1, 1, 1, 1, 0, 0]]


# ---- the loop -------------------------------------------------------------------------------------------------------
def draw_threes(n: int, source: torch.Generator) -> training.Canvases:
    return training.plain(torch.multinomial(torch.tensor([0.6, 0.3, 0.1]), n * 8, True, generator=source).view(n, 8))


def test_training_finds_the_law_of_independent_tokens_and_reports_its_entropy():
    model = Flat(4)
    settings = training.Settings(steps=300, batch=64, peak_rate=0.1)
    loss = training.fit(model, draw_threes, mask_id=3, settings=settings, seed=0)
    entropy = -sum(p * math.log(p) for p in (0.6, 0.3, 0.1))
    assert loss == pytest.approx(entropy, abs=0.05)  # 30 steps of 512 tokens, weighted by 1/t
    assert model.logits.softmax(-1)[:3].tolist() == pytest.approx([0.6, 0.3, 0.1], abs=0.03)
    assert not model.training


def test_training_follows_from_its_seed_and_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    found = []
    for seed in (1, 1, 2):
        model = Flat(4)
        training.fit(model, draw_threes, mask_id=3, settings=training.Settings(steps=5, batch=4), seed=seed)
        found.append(model.logits.tolist())
    assert found[0] == found[1] != found[2]
    assert torch.equal(torch.get_rng_state(), before)


def test_greedy_filling_takes_the_surest_place_first_and_a_window_restricts_the_candidates():
    model = Joint()
    canvas = torch.full((1, LENGTH), MASK_ID)
    marginals = model(canvas).logits[0, :, :WORDS].softmax(-1)
    filled = training.fill_greedily(model, canvas, mask_id=MASK_ID)
    surest = marginals.max(-1).values.argmax().item()
    assert filled[0, surest] == marginals[surest].argmax()
    leftward = training.fill_greedily(model, canvas, mask_id=MASK_ID, window=1)
    assert leftward[0, 0] == marginals[0].argmax()
    assert torch.equal(training.fill_greedily(model, canvas, mask_id=MASK_ID, window=LENGTH), filled)
    assert (canvas == MASK_ID).all()
    assert (filled != MASK_ID).all()


def test_left_to_right_filling_is_the_greedy_path_of_the_joint_law():
    model = Joint()
    law, path = model.joint, []
    while law.ndim:
        marginal = law.sum(tuple(range(1, law.ndim))) if law.ndim > 1 else law
        path.append(marginal.argmax().item())
        law = law[path[-1]]
    canvas = torch.full((2, LENGTH), MASK_ID)
    assert training.fill_greedily(model, canvas, mask_id=MASK_ID, window=1).tolist() == [path, path]


def test_measuring_puts_the_training_flag_back():
    model = Flat(4).train()
    training.answer_nats(model, training.plain(torch.zeros(1, 3, dtype=torch.long)), mask_id=3, draws=1, seed=0)
    training.fill_greedily(model, torch.full((1, 3), 3), mask_id=3)
    assert model.training
    assert model.logits.grad is None


# ---- refusals -------------------------------------------------------------------------------------------------------
def test_what_cannot_be_trained_on_is_refused_in_a_sentence():
    with pytest.raises(ValueError, match="shortest length given is 0"):
        training.supervised([[1]], [[2]], [0], end_id=3)
    with pytest.raises(ValueError, match="at least one token that may be masked"):
        training.Canvases(torch.zeros(1, 2).long(), torch.zeros(1, 2).bool(), torch.ones(1, 2).bool())
    with pytest.raises(ValueError, match="one shape"):
        training.Canvases(torch.zeros(1, 2).long(), torch.ones(1, 3).bool(), torch.ones(1, 2).bool())
    with pytest.raises(ValueError, match="draws must be at least 1"):
        training.answer_nats(Flat(4), training.plain(torch.zeros(1, 3).long()), mask_id=3, draws=0, seed=0)
    with pytest.raises(ValueError, match=r"numbers are \[1, 2\]"):
        training.fill_greedily(Flat(4), torch.tensor([[3, 0], [3, 3]]), mask_id=3)


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"batch": 0}, {"peak_rate": 0.0}, {"warm_up": 1.0}, {"clip": -1.0}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        training.Settings(**wrong)
