"""Posterior steps, reveal orders and selection rules, each against its definition, and the loop against itself."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shiftscope.core import masked
from shiftscope.core.masked import Canvas, Filling

MASK, V = 4, 5
EXAMPLE = torch.tensor(  # three places: sure, torn between two, unsure
    [[0.80, 0.10, 0.06, 0.04, 0.0], [0.49, 0.47, 0.02, 0.02, 0.0], [0.40, 0.20, 0.20, 0.20, 0.0]]
).log()


class Chain:
    """A model whose laws are known: each hidden place depends on its left neighbour alone (uniform after a hidden one)."""

    name, mask_id, end_ids, shift, context_length, windows = "chain", MASK, (), 0, None, False

    def logits(self, ids, wanted, *, positions=None, window=None):
        rows = torch.tensor([[0.7, 0.1, 0.1, 0.1], [0.1, 0.7, 0.1, 0.1], [0.1, 0.1, 0.7, 0.1], [0.25] * 4, [0.25] * 4])
        pad = torch.full((5, 1), -torch.inf)
        table = torch.cat([rows.log(), pad], 1)
        return [
            table[[text[place - 1] if place else MASK for place in asked]]
            for text, asked in zip(ids, wanted, strict=True)
        ]


def canvas(length=6, document=0):
    return Canvas(document, [0, *[MASK] * length], 1, MASK)


def confidence(logp_KV, order, places, drawn=None, seed=0, document=0):
    batch = None if drawn is None else torch.tensor([drawn])
    where = torch.tensor([places]), np.array([[document]])
    return masked.confidence(logp_KV[None], Filling(order=order, seed=seed), *where, batch)[0]


def select(logp_KV, score_K, filling):
    real = torch.ones(1, len(score_K), dtype=torch.bool)
    return masked.select(logp_KV[None], score_K[None], real, filling)[0].nonzero()[:, 0].tolist()


@pytest.mark.parametrize("order", ["max_prob", "margin", "entropy", "left_to_right"])
def test_the_surest_place_comes_first(order):
    assert int(confidence(EXAMPLE, order, [3, 5, 9]).argmax()) == 0


def test_margin_and_probability_disagree_where_two_tokens_compete():
    p = confidence(EXAMPLE, "max_prob", [3, 5, 9])
    margin = confidence(EXAMPLE, "margin", [3, 5, 9])
    assert p[1] > p[2]
    assert margin[1] < margin[2]


def test_random_order_is_fixed_in_advance():
    all_places = confidence(EXAMPLE, "random", [3, 5, 9], seed=7, document=2)
    fewer = confidence(EXAMPLE[1:], "random", [5, 9], seed=7, document=2)
    assert torch.equal(all_places[1:], fewer)


def test_sampled_order_scores_the_drawn_token():
    score = confidence(EXAMPLE, "sampled", [3, 5, 9], drawn=[3, 0, 0])
    torch.testing.assert_close(score, torch.tensor([0.04, 0.49, 0.40]))


LAWS = st.integers(0, 2**32 - 1).map(
    lambda seed: torch.from_numpy(np.random.default_rng(seed).dirichlet(np.full(6, 0.4), size=7)).log()
)


@given(LAWS, st.floats(0.05, 1.0))
def test_threshold_fills_all_above_it_and_at_least_one(logp, threshold):
    score = logp.amax(-1).exp()
    chosen = select(logp, score, Filling(threshold=threshold))
    above = {row for row in range(7) if score[row] >= threshold}
    assert set(chosen) == (above or {int(score.argmax())})


@given(LAWS, st.floats(0.1, 3.0))
def test_factor_is_the_largest_count_that_holds(logp, factor):
    p = sorted(logp.amax(-1).exp().tolist(), reverse=True)
    counts = [r for r in range(1, 8) if (r + 1) * (1 - p[r - 1]) < factor]
    assert len(select(logp, logp.amax(-1).exp(), Filling(factor=factor))) == max(counts, default=1)


@given(LAWS, st.floats(0.0, 4.0))
def test_entropy_bound_keeps_the_sum_without_the_largest_below_it(logp, bound):
    filling = Filling(order="entropy", entropy_bound=bound)
    entropy = -(logp.exp() * logp.clamp(min=-1e9)).sum(-1)
    chosen = select(logp, -entropy, filling)
    kept = sorted(entropy[chosen].tolist())
    assert sum(kept) - kept[-1] <= bound + 1e-9
    if len(chosen) < 7:
        longer = sorted(entropy.tolist())[: len(chosen) + 1]
        assert sum(longer) - longer[-1] > bound - 1e-9


@given(LAWS, LAWS, st.sampled_from([{"per_call": 3}, {"threshold": 0.5}, {"factor": 1.2}, {"entropy_bound": 1.0}]))
def test_a_text_with_fewer_places_chooses_as_if_it_were_alone(logp, other, rule):
    filling = Filling(order="entropy" if "entropy_bound" in rule else "max_prob", **rule)
    short, real = other[:4], torch.tensor([[True] * 7, [True] * 4 + [False] * 3])
    both = torch.stack([logp, torch.cat([short, torch.zeros(3, 6, dtype=short.dtype)])])
    score = confidence_of_rows(both, filling.order).masked_fill(~real, -torch.inf)
    chosen = masked.select(both, score, real, filling)
    assert chosen[1].nonzero()[:, 0].tolist() == select(short, confidence_of_rows(short, filling.order), filling)


def confidence_of_rows(logp, order):
    return (logp.exp() * logp.clamp(min=-1e9)).sum(-1) if order == "entropy" else logp.amax(-1).exp()


def test_ties_go_to_the_left():
    level = torch.full((4, 3), 1 / 3).log()
    assert select(level, level.amax(-1).exp(), Filling(per_call=2)) == [0, 1]


def test_a_call_fills_its_quota_and_the_record_says_what_when_and_how_probable():
    one = canvas(5)
    masked.decode(Chain(), [one], Filling(order="left_to_right", per_call=2, temperature=1.0))
    assert one.stopped == "filled"
    assert one.record.position == [1, 2, 3, 4, 5]
    assert one.record.call == [1, 1, 2, 2, 3]
    assert one.record.calls == 3
    first = one.ids[1]
    assert one.record.logp_nats[0] == pytest.approx(math.log(0.7 if first == 0 else 0.1), abs=1e-6)
    assert one.record.rows == 3 * 6
    assert one.record.pairs == 3 * 36


def test_greedy_fills_the_mode_and_needs_no_seed():
    texts = [canvas(), canvas()]
    masked.decode(Chain(), texts[:1], Filling(order="left_to_right", seed=1))
    masked.decode(Chain(), texts[1:], Filling(order="left_to_right", seed=2))
    assert texts[0].ids == texts[1].ids == [0] * 7


def test_left_to_right_draws_have_the_law_of_the_chain():
    texts = [canvas(1, document) for document in range(4000)]
    masked.decode(Chain(), texts, Filling(order="left_to_right", temperature=1.0))
    share = np.bincount([text.ids[1] for text in texts], minlength=4)[:4] / 4000
    np.testing.assert_allclose(
        share, [0.7, 0.1, 0.1, 0.1], atol=4 * math.sqrt(0.7 * 0.3 / 4000)
    )  # four standard errors


def test_a_text_does_not_depend_on_its_company():
    filling = Filling(order="max_prob", temperature=1.0, seed=5)
    together = [canvas(document=document) for document in range(5)]
    masked.decode(Chain(), together, filling)
    alone = canvas(document=3)
    masked.decode(Chain(), [alone], filling)
    assert alone.ids == together[3].ids
    assert alone.record == together[3].record


def test_a_text_ends_at_its_first_end_that_nothing_hidden_precedes():
    text = Canvas(0, [9, 2, MASK, 1, 2, 3], 1, MASK)
    text.settle(end_ids=(1,), early=True)
    assert text.stopped == ""
    text.ids[2] = 3
    text.settle(end_ids=(1,), early=True)
    assert text.stopped == "end"
    assert text.ids == [9, 2, 3, 1]


def test_an_end_in_the_prompt_does_not_count():
    text = Canvas(0, [1, 1, MASK], 2, MASK)
    text.settle(end_ids=(1,), early=True)
    assert text.stopped == ""


def test_a_prompt_that_leaves_no_room_is_refused():
    class Short(Chain):
        context_length = 8

    with pytest.raises(ValueError, match=r"a prompt of 5 tokens and 4 hidden ones do not fit.*reads at most 8"):
        masked.prompted(Short(), [0] * 5, 4, 0)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"temperature": -1.0}, "temperature >= 0"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 0.9}, "top_p is 0.9 at temperature 0"),
        ({"per_call": 0}, "at least one"),
        ({"per_call": 2, "threshold": 0.5}, "give one of them"),
        ({"threshold": 1.5}, r"\(0, 1\]"),
        ({"factor": 0.0}, "factor > 0"),
    ],
)
def test_settings_outside_their_ranges_are_refused(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        Filling(**settings)
