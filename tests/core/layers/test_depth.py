"""Claims about the rows of two checkpoints' depth: oracles for every column, and what a text's share of α means."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shiftscope.core import checkpoints, divergence, paired
from shiftscope.core.layers import depth, spectrum
from shiftscope.core.layers.depth import ALPHA, OTHER_WINDOWS, TRANSPORT, Depth
from shiftscope.core.paired import PairedText
from shiftscope.zoo import styles

BLOCKS = 6
WIDE = Depth(window_low=0.2, window_high=0.8)


@pytest.fixture(scope="module")
def base():
    return checkpoints.load("styles-base")


@pytest.fixture(scope="module")
def late(base):
    """The base with noise on its last two blocks."""
    model, generator = copy.deepcopy(base.model), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for block in (4, 5):
            for parameter in model.transformer.h[block].parameters():
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return checkpoints.wrap(model, base.tokenizer, "late")


@pytest.fixture(scope="module")
def items(base):
    """Sixteen texts numbered from 5, with answers of unequal length."""
    encode = lambda text: tuple(base.tokenizer(text)["input_ids"])  # noqa: E731
    found = []
    for number, text in enumerate(styles.probe_prompts(16, seed=1)):
        prompt, answer = encode(text["prompt"]), encode(text["prompt"] + text["answer"])
        answer = answer[len(prompt) :]
        found.append(PairedText(5 + number, prompt, prompt, answer[: len(answer) - number % 3]))
    return found


@pytest.fixture(scope="module")
def batch(base, late, items):
    return paired.Scorer(base, late).batch(items, states=True)


def rows_of(batch, setting=WIDE):
    on_block, finish = depth.measure(setting)(batch)
    assert on_block is None  # laws are not needed
    return finish()


@pytest.fixture(scope="module")
def rows(batch):
    return rows_of(batch)


def shaped(table, column, layers=BLOCKS + 1):
    """A column as [layers, texts, …]."""
    values = np.array(table[column].to_pylist(), dtype=float)
    return values.reshape(layers, -1, *values.shape[1:])


def slope(sigma, low, high):
    ranks = np.arange(max(1, math.ceil(low * len(sigma) - 1e-9)), math.floor(high * len(sigma) + 1e-9) + 1)
    return -np.polyfit(np.log(ranks), np.log(sigma[ranks - 1]), 1)[0] if len(ranks) > 4 else math.nan


def spectrum_of(states, weights, rank):
    """Singular values of the centred states whose rows count so often."""
    w = weights[:, None]
    centred = (states - (w * states).sum(0) / w.sum()) * np.sqrt(w)
    return np.linalg.svd(centred, compute_uv=False)[:rank]


# --- the rows ---------------------------------------------------------------------------------------------------------


def test_there_is_one_row_per_layer_and_text_that_names_its_batch(rows, items, batch):
    texts = [item.text for item in items]
    assert rows["text"].to_pylist() == texts * (BLOCKS + 1)
    assert rows["layer"].to_pylist() == [layer for layer in range(BLOCKS + 1) for _ in texts]
    assert set(rows["batch"].to_pylist()) == {5}
    assert set(rows["blocks"].to_pylist()) == {BLOCKS}
    assert set(rows["tokens"].to_pylist()) == {sum(len(item.answer) for item in items)} == {len(batch.token_N)}


@pytest.mark.parametrize("side", ["base", "tuned"])
def test_the_mean_over_texts_is_the_slope_of_the_batchs_singular_values(rows, batch, side):
    alpha_LGW = shaped(rows, f"alpha_{side}")
    for layer, state in enumerate(getattr(batch, side).states):
        rank = int(shaped(rows, f"rank_{side}")[layer, 0])
        states = state.double().numpy()
        sigma = spectrum_of(states, np.ones(len(states)), rank)
        expected = [slope(sigma, low, high) for low, high in ((0.2, 0.8), *OTHER_WINDOWS)]
        assert alpha_LGW[layer].mean(0) == pytest.approx(expected, rel=1e-6, nan_ok=True), layer
        assert np.ptp(alpha_LGW[layer], 0).min() > 1e-3  # and the texts differ
        own = spectrum.contraction(state, [(0.2, 0.8)])
        assert shaped(rows, f"r2_{side}")[layer] == pytest.approx(np.full(16, float(own.r2_W[0])))


def test_a_texts_alpha_says_how_the_batchs_alpha_moves_when_that_text_counts_more(rows, batch, items):
    """Central differences of numpy's spectrum with weighted rows."""
    layer, step, lengths = 5, 1e-4, [len(item.answer) for item in items]
    group = np.repeat(range(16), lengths)
    states, rank = batch.tuned.states[layer].double().numpy(), int(shaped(rows, "rank_tuned")[layer, 0])
    alpha_GW = shaped(rows, "alpha_tuned")[layer]
    for text in (0, 7, 15):
        ends = [slope(spectrum_of(states, 1 + sign * (group == text), rank), 0.2, 0.8) for sign in (step, -step)]
        moved = (ends[0] - ends[1]) / (2 * step)
        assert 16 * moved == pytest.approx(alpha_GW[text, 0] - alpha_GW[:, 0].mean(), abs=1e-4)


def plain_transport(side, layer):
    """Radians between the laws that norm and head read off two adjacent states."""
    head = side.checkpoint.model.transformer.ln_f, side.checkpoint.model.lm_head
    with torch.no_grad():
        laws = [head[1](head[0](side.states[place])).double().log_softmax(-1) for place in (layer - 1, layer)]
    return divergence.fisher_rao(*laws).numpy()


def by_text(values, lengths, most=0):
    """Means of a text's values: of all, or of `most` of them, the middles of as many equal pieces."""
    means = []
    for own in np.split(values, np.cumsum(lengths)[:-1]):
        count = min(most, len(own)) if most else len(own)
        means.append(own[[int((i + 0.5) * len(own) / count) for i in range(count)]].mean())
    return means


@pytest.mark.parametrize("most", [0, 1, 3])
def test_transport_is_the_mean_over_a_texts_own_tokens_or_over_some_evenly_spread(batch, items, most):
    lengths = [len(item.answer) for item in items]
    table = rows_of(batch, replace(WIDE, max_tokens=most))
    for name in ("base", "tuned"):
        found_LG = shaped(table, f"transport_{name}")
        assert np.isnan(found_LG[0]).all()
        for layer in range(1, BLOCKS + 1):
            expected = by_text(plain_transport(getattr(batch, name), layer), lengths, most)
            assert found_LG[layer] == pytest.approx(expected, rel=1e-4), layer  # float32 laws


def test_chosen_layers_are_the_same_rows_of_all_layers(batch, rows):
    some = rows_of(batch, replace(WIDE, layers=(6, 2, 6)))
    for name in ("alpha_base", "alpha_tuned", "transport_base", "transport_tuned", "rank_tuned"):
        np.testing.assert_array_equal(shaped(some, name, 2), shaped(rows, name)[[2, 6]])
    assert sorted(set(some["layer"].to_pylist())) == [2, 6]


def test_blocks_below_the_first_change_are_bit_equal_and_the_others_differ(rows):
    for name in ("alpha", "transport", "r2", "rank"):
        base_L, tuned_L = shaped(rows, f"{name}_base"), shaped(rows, f"{name}_tuned")
        np.testing.assert_array_equal(base_L[:5], tuned_L[:5])
    assert (shaped(rows, "alpha_base")[5:] != shaped(rows, "alpha_tuned")[5:]).any((1, 2)).all()
    assert (shaped(rows, "transport_base")[5:] != shaped(rows, "transport_tuned")[5:]).all()


def test_without_centring_the_mean_state_is_the_first_direction(batch, rows):
    raw = rows_of(batch, replace(WIDE, centre=False))
    state = batch.base.states[3].double().numpy()
    sigma = np.linalg.svd(state, compute_uv=False)[: int(shaped(raw, "rank_base")[3, 0])]
    assert shaped(raw, "alpha_base")[3, :, 0].mean() == pytest.approx(slope(sigma, 0.2, 0.8), rel=1e-6)
    assert (shaped(raw, "alpha_base")[3] != shaped(rows, "alpha_base")[3]).all()


def test_the_curves_are_the_means_of_the_rows_whatever_their_order(rows):
    mixed = rows.take(np.random.default_rng(0).permutation(len(rows)))
    for table in (rows, mixed):
        found = depth.curves_of(table)
        assert (list(found.layers), found.blocks, found.texts) == (list(range(BLOCKS + 1)), BLOCKS, 16)
        for place, side in enumerate(("base", "tuned")):
            alpha, transport = shaped(rows, f"alpha_{side}").mean(1), shaped(rows, f"transport_{side}").mean(1)
            np.testing.assert_allclose(found.mean_BLC[place, :, ALPHA:TRANSPORT], alpha, rtol=1e-12)
            np.testing.assert_allclose(found.mean_BLC[place, :, TRANSPORT], transport, rtol=1e-12)
            np.testing.assert_array_equal(found.each_TBLC[:, place, :, TRANSPORT].T, shaped(rows, f"transport_{side}"))


def test_curves_of_two_batches_hold_the_texts_of_both(base, late, items, rows):
    scorer = paired.Scorer(base, late)
    halves = [rows_of(scorer.batch(half, states=True)) for half in (items[:8], items[8:])]
    found = depth.curves_of(pa.concat_tables(halves))
    assert found.texts == 16
    np.testing.assert_allclose(
        found.each_TBLC[:, 0, 1:, TRANSPORT].T, shaped(rows, "transport_base")[1:], rtol=1e-3, atol=1e-6
    )
    means = [shaped(half, "alpha_base").mean(1) for half in halves]
    np.testing.assert_allclose(found.mean_BLC[0, :, ALPHA:TRANSPORT], (means[0] + means[1]) / 2, rtol=1e-12)


# --- settings and refusals --------------------------------------------------------------------------------------------


@given(st.integers(1, 60), st.data())
def test_chosen_layers_are_ascending_and_reach_into_the_last_third(blocks, data):
    layers = data.draw(st.lists(st.integers(0, blocks), max_size=8))
    chosen_from = (*layers, blocks)
    assert Depth(layers=chosen_from).chosen(blocks) == sorted(set(chosen_from))
    assert Depth().chosen(blocks) == list(range(blocks + 1))


def test_the_chosen_window_comes_first():
    assert WIDE.windows == ((0.2, 0.8), (0.1, 0.5), (0.0, 1.0), (0.3, 0.9))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"window_low": 0.8, "window_high": 0.2}, r"window 0.8 to 0.2: it takes two fractions"),
        ({"max_tokens": -1}, "max_tokens -1 and beta 0.1: need max_tokens >= 0 and beta > 0"),
        ({"beta": 0}, "max_tokens 0 and beta 0: need"),
        ({"beta": math.nan}, "max_tokens 0 and beta nan: need"),
    ],
)
def test_settings_that_cannot_be_are_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        Depth(**wrong)


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ((3, 7), r"layers \(3, 7\): the models have states 0 to 6"),
        ((-1, 6), r"layers \(-1, 6\): the models have states 0 to 6"),
        ((0, 4), r"layers \(0, 4\) leave out the last third of the blocks: add at least one from 5 to 6"),
    ],
)
def test_layers_that_do_not_exist_or_say_nothing_of_the_end_are_refused(layers, said):
    with pytest.raises(ValueError, match=said):
        Depth(layers=layers).chosen(BLOCKS)


def test_models_of_unequal_depth_are_refused_by_name(base):
    shallow = SimpleNamespace(name="shallow", head=SimpleNamespace(blocks=[None, None]))
    depth.same_depth(base, base)
    with pytest.raises(
        ValueError,
        match="styles-base has 6 blocks and shallow has 2: their layers cannot be paired; use `compare tokens`",
    ):
        depth.same_depth(base, shallow)


def test_a_state_that_is_no_number_is_named_by_model_layer_text_and_position(batch, items):
    states = [state.clone() for state in batch.tuned.states]
    row = len(items[0].answer) + len(items[1].answer) + 2  # the third token of the third text
    states[4][row, 0] = torch.inf
    broken = replace(batch, tuned=replace(batch.tuned, states=states))
    with pytest.raises(
        ValueError, match=r"late gives states that are not numbers .* at layer 4 in text 7, answer position 2: nothing"
    ):
        rows_of(broken)
    assert len(rows_of(broken, replace(WIDE, layers=(2, 6))))  # a layer that nobody asked for is not looked at
