"""Claims about the row-blocked statistics: the pure functions' values at float32, in any layout, for any logits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import entropy

from shiftscope.core import divergence, laws
from shiftscope.core.laws import DIVERGENCES, Workspace

CPU = torch.device("cpu")
needs_compiler = pytest.mark.skipif(not laws.compiler_available(), reason="the compiled statistics need a C compiler")
both = pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=needs_compiler)], ids=["eager", "compiled"])


def pair(
    seed: int, rows: int, vocabulary: int, noise: float = 0.3, spread: float = 3.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Two logit blocks, float32, that differ by noise."""
    generator = torch.Generator().manual_seed(seed)
    logits = spread * torch.randn(rows, vocabulary, generator=generator)
    return logits, logits + noise * torch.randn(rows, vocabulary, generator=generator)


def opened(rows: int, vocabulary: int, compiled: bool) -> Workspace:
    """A workspace on the CPU that is compiled exactly where this was asked for."""
    workspace = Workspace(rows, vocabulary, CPU, compiled=compiled)
    assert (workspace.native is not None) == compiled
    return workspace


def measured(logits_p: torch.Tensor, logits_q: torch.Tensor, compiled: bool) -> dict[str, torch.Tensor]:
    return in_workspace(logits_p, logits_q, opened(*logits_p.shape, compiled))


def in_workspace(logits_p: torch.Tensor, logits_q: torch.Tensor, workspace: Workspace) -> dict[str, torch.Tensor]:
    return workspace.divergences(workspace.laws(logits_p, logits_q))


def exact(logits_p: torch.Tensor, logits_q: torch.Tensor) -> dict[str, torch.Tensor]:
    """The pure functions in float64."""
    logp, logq = logits_p.double().log_softmax(-1), logits_q.double().log_softmax(-1)
    return {
        "js_nats": divergence.js_nats(logp, logq),
        "kl_pq_nats": divergence.kl_nats(logp, logq),
        "kl_qp_nats": divergence.kl_nats(logq, logp),
        "tv": divergence.tv(logp, logq),
        "entropy_p_nats": divergence.entropy_nats(logp),
        "entropy_q_nats": divergence.entropy_nats(logq),
    }


@both
@pytest.mark.parametrize("vocabulary", [2, 97, 5_000, 152_064])
@pytest.mark.parametrize("noise", [1e-4, 1e-2, 0.3, 3.0])
def test_every_statistic_is_the_exact_one_within_float32(vocabulary, noise, compiled):
    logits = pair(vocabulary, 3, vocabulary, noise)
    found, reference = measured(*logits, compiled), exact(*logits)
    assert tuple(found) == DIVERGENCES
    error = (found["js_nats"].double() - reference["js_nats"]).abs()
    assert (
        error <= (1e-6 * reference["js_nats"]).clamp(min=1e-7)
    ).all()  # 1e-7 up to 0.1 nats, then float32's own step
    assert (error <= 0.01 * reference["js_nats"].clamp(min=1e-6)).all()
    for name in ("kl_pq_nats", "kl_qp_nats"):
        assert torch.allclose(found[name].double(), reference[name], rtol=1e-4, atol=3e-6), name
    assert torch.allclose(found["tv"].double(), reference["tv"], rtol=1e-4, atol=1e-6)
    for name in ("entropy_p_nats", "entropy_q_nats"):
        assert torch.allclose(found[name].double(), reference[name], rtol=1e-5, atol=1e-5), name


@both
@pytest.mark.parametrize("shape", ["peaked", "one against another", "deep tail", "shifted", "huge offset"])
def test_js_keeps_its_precision_for_laws_of_any_shape(shape, compiled):
    logits_p, logits_q = pair(1, 4, 5_000, 1e-3)
    if shape == "peaked":
        logits_p[:, 7] += 25
        logits_q[:, 7] += 25.01
    elif shape == "one against another":
        logits_p[:, 7] += 30
        logits_q[:, 8] += 30
    elif shape == "deep tail":
        logits_p, logits_q = logits_p * 30, logits_p * 30.01
    elif shape == "shifted":
        logits_q = logits_q + 17
    else:
        logits_p, logits_q = logits_p + 3000, logits_q - 2000
    error = (measured(logits_p, logits_q, compiled)["js_nats"].double() - exact(logits_p, logits_q)["js_nats"]).abs()
    assert (error <= torch.maximum(torch.tensor(1e-8), 1e-6 * exact(logits_p, logits_q)["js_nats"])).all()


@both
@pytest.mark.parametrize("spread", [0.0, 1.0, 10.0, 60.0])
def test_identical_laws_differ_by_exactly_zero(spread, compiled):
    logits, _ = pair(2, 5, 3_001, spread=spread)
    logits[1, ::3] = -math.inf
    found = measured(logits, logits.clone(), compiled)
    for name in ("js_nats", "kl_pq_nats", "kl_qp_nats", "tv"):
        assert (found[name] == 0).all(), name
    assert (found["entropy_p_nats"] == found["entropy_q_nats"]).all()


@both
@given(st.integers(0, 10_000), st.floats(0.0, 20), st.floats(0.1, 40))
@settings(max_examples=40, deadline=None)
def test_bounds_symmetry_and_indifference_to_the_order_of_the_vocabulary(compiled, seed, noise, spread):
    logits_p, logits_q = pair(seed, 4, 301, noise, spread)
    found, swapped = measured(logits_p, logits_q, compiled), measured(logits_q, logits_p, compiled)
    assert all(values.isfinite().all() and (values >= 0).all() for values in found.values())
    assert (found["js_nats"] <= divergence.LN2).all()
    assert (found["tv"] <= 1).all()
    for name, other in (
        ("js_nats", "js_nats"),
        ("tv", "tv"),
        ("kl_pq_nats", "kl_qp_nats"),
        ("entropy_p_nats", "entropy_q_nats"),
    ):
        assert torch.allclose(found[name], swapped[other], rtol=1e-4, atol=1e-6), name
    order = torch.randperm(301, generator=torch.Generator().manual_seed(seed))
    permuted = measured(logits_p[:, order], logits_q[:, order], compiled)
    for name, values in found.items():
        assert torch.allclose(values, permuted[name], rtol=1e-4, atol=1e-5), name


@both
@given(st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_impossible_tokens_give_no_nan_and_the_exact_values(compiled, seed):
    logits_p, logits_q = pair(seed, 12, 30, 1.0)
    generator = torch.Generator().manual_seed(seed)
    holes = torch.rand(2, 12, 30, generator=generator) < 0.4
    holes[:, :, 0] = False
    holes[1, :6] = holes[0, :6]  # shared in the first half, one-sided in the second
    logits_p, logits_q = logits_p.masked_fill(holes[0], -math.inf), logits_q.masked_fill(holes[1], -math.inf)
    found, reference = measured(logits_p, logits_q, compiled), exact(logits_p, logits_q)
    for name, values in found.items():
        assert not values.isnan().any(), name
        assert torch.allclose(values.double(), reference[name], rtol=1e-4, atol=1e-5), name
    assert found["kl_pq_nats"][:6].isfinite().all()


@both
def test_kl_is_infinite_where_mass_however_small_is_excluded_and_finite_where_it_is_only_unlikely(compiled):
    logits_p, logits_q = torch.zeros(3, 4), torch.zeros(3, 4)
    logits_p[0, 0] = -50.0
    logits_q[0, 0] = -math.inf
    logits_p[1, 0] = logits_q[1, 0] = -math.inf
    logits_q[2, 0] = -1e30
    found = measured(logits_p, logits_q, compiled)
    assert found["kl_pq_nats"][:2].tolist() == [math.inf, 0]
    assert float(found["kl_pq_nats"][2]) == pytest.approx(0.25e30)
    assert found["kl_qp_nats"].isfinite().all()


@both
def test_a_law_with_one_possible_token(compiled):
    logits_p = torch.full((2, 64), -math.inf)
    logits_p[:, 3] = 1.0
    logits_q = logits_p.clone()
    logits_q[1] = 0.0
    found = measured(logits_p, logits_q, compiled)
    assert [float(values[0]) for values in found.values()] == [0] * 6
    assert float(found["kl_pq_nats"][1]) == pytest.approx(math.log(64))
    assert float(found["kl_qp_nats"][1]) == math.inf
    assert float(found["tv"][1]) == pytest.approx(63 / 64)
    assert float(found["entropy_p_nats"][1]) == 0


@both
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logits_of_half_precision_models_are_read_as_they_are_and_normalised_in_float32(dtype, compiled):
    logits_p, logits_q = (logits.to(dtype) for logits in pair(3, 5, 5_000))
    found, reference = measured(logits_p, logits_q, compiled), exact(logits_p, logits_q)
    assert ((found["js_nats"].double() - reference["js_nats"]).abs() <= 1e-7).all()
    assert torch.allclose(found["entropy_p_nats"].double(), reference["entropy_p_nats"], rtol=1e-5)


@both
def test_the_laws_of_a_block_are_log_softmax_and_softmax(compiled):
    logits_p, logits_q = pair(4, 5, 3_001)
    block = opened(8, 3_001, compiled).laws(logits_p, logits_q)
    for logits, logp, p, lse in (
        (logits_p, block.logp_RV, block.p_RV, block.lse_p_R),
        (logits_q, block.logq_RV, block.q_RV, block.lse_q_R),
    ):
        assert torch.allclose(logp, logits.log_softmax(-1), atol=5e-6)
        assert torch.allclose(p, logits.softmax(-1), rtol=1e-5, atol=1e-9)
        assert torch.allclose(lse, logits.logsumexp(-1), atol=5e-6)
        assert np.allclose(entropy(p.numpy(), axis=-1), entropy(logits.softmax(-1).numpy(), axis=-1), rtol=1e-5)


@both
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("side", [0, 1])
def test_a_logit_that_is_not_a_number_shows_in_its_rows_log_sum_exp_alone(bad, side, compiled):
    logits = pair(5, 4, 300)
    logits[side][2, 17] = bad
    block = opened(4, 300, compiled).laws(*logits)
    finite = [block.lse_p_R.isfinite().tolist(), block.lse_q_R.isfinite().tolist()]
    assert finite[side] == [True, True, False, True]
    assert finite[1 - side] == [True] * 4


@both
def test_a_block_leaves_nothing_behind_for_the_next(compiled):
    workspace = opened(6, 400, compiled)
    clean = pair(6, 4, 400)
    before = in_workspace(*clean, workspace)
    dirty = pair(7, 6, 400, 5.0, 80.0)
    dirty[0][:, ::2] = -math.inf
    dirty[1][3, 5] = math.nan
    in_workspace(*dirty, workspace)
    after = in_workspace(*clean, workspace)
    assert all((before[name] == after[name]).all() for name in DIVERGENCES)


@both
def test_a_row_does_not_depend_on_the_block_it_is_in(compiled):
    logits_p, logits_q = pair(8, 7, 1_000)
    logits_p[2, 4] = -math.inf
    logits_q[5] += 200
    together = measured(logits_p, logits_q, compiled)
    for row in range(7):
        alone = measured(logits_p[row : row + 1], logits_q[row : row + 1], compiled)
        for name in DIVERGENCES:
            assert float(alone[name][0]) == pytest.approx(float(together[name][row]), rel=1e-5, abs=1e-6), name


@both
def test_logits_are_only_read(compiled):
    logits_p, logits_q = pair(9, 3, 500)
    logits_p[1, 2] = -math.inf
    kept = logits_p.clone(), logits_q.clone()
    measured(logits_p, logits_q, compiled)
    assert (logits_p == kept[0]).all()
    assert (logits_q == kept[1]).all()


@both
@pytest.mark.parametrize("vocabulary", [503, 9_001])
def test_a_nan_of_any_payload_is_seen(vocabulary, compiled):
    logits_p, logits_q = pair(10, 3, vocabulary)
    logits_p[1, 400] = torch.tensor(0x7FC00001, dtype=torch.int32).view(torch.float32)
    logits_q[1, 9] = -math.inf
    block = opened(3, vocabulary, compiled).laws(logits_p, logits_q)
    assert block.lse_p_R.isfinite().tolist() == [True, False, True]
    assert block.lse_q_R.isfinite().all()


@both
@pytest.mark.parametrize("vocabulary", [63, 64, 503, 9_001])
def test_top_tokens_are_those_of_topk(vocabulary, compiled):
    logits_p, logits_q = pair(11, 3, vocabulary)
    logits_p[0, ::5] = -math.inf
    block = opened(4, vocabulary, compiled).laws(logits_p, logits_q)
    for logits, (logp, ids) in ((logits_p, block.top_p(7)), (logits_q, block.top_q(7))):
        expected = logits.log_softmax(-1).topk(7)
        assert (ids == expected.indices).all()
        assert torch.allclose(logp, expected.values, atol=5e-6)


@needs_compiler
@pytest.mark.parametrize("vocabulary", [40, 3_001, 9_001])
@pytest.mark.parametrize("noise", [1e-5, 1e-3, 1.0, 30.0])
def test_rows_of_every_kind_in_one_block_are_compiled_to_the_exact_numbers(vocabulary, noise):
    logits_p, logits_q = pair(12, 6, vocabulary, noise)
    logits_p[1, ::7] = logits_q[1, ::7] = -math.inf
    logits_p[2, 3] = -math.inf
    logits_q[3] = logits_q[3] * 40 + 500
    logits_p[4, 5] = 3e4
    found, reference = measured(logits_p, logits_q, compiled=True), exact(logits_p, logits_q)
    for name in DIVERGENCES:
        assert torch.allclose(found[name].double(), reference[name], rtol=1e-4, atol=1e-5), name
    assert torch.allclose(found["js_nats"].double(), reference["js_nats"], rtol=1e-6, atol=1e-8)


@both
def test_mass_of_any_size_that_float32_has_makes_kl_infinite(compiled):
    logits_p, logits_q = torch.zeros(3, 10_000), torch.zeros(3, 10_000)
    logits_p[:, 4] = torch.tensor([-80.0, -95.0, -1000.0])
    logits_q[:, 4] = -math.inf
    assert measured(logits_p, logits_q, compiled)["kl_pq_nats"].tolist() == [math.inf, math.inf, 0]
