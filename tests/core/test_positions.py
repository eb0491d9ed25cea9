"""The numbers of one position, against the plain definitions on planted laws."""

import math

import pytest
import torch

from shiftscope.core import divergence
from shiftscope.core.laws import Workspace
from shiftscope.core.positions import Listing, listed_rank, position_statistics


def statistics(p, q, emitted, **listing):
    workspace = Workspace(len(p), p.shape[-1], torch.device("cpu"))
    return position_statistics(workspace.laws(p, q), workspace, torch.tensor(emitted), Listing(**listing))


def test_planted_ranks_give_the_rank_classes():
    """arXiv 2312.01552: ranks 0 | 1, 2 | 3 and more are unshifted, marginal and shifted."""
    planted = torch.tensor([0, 1, 2, 3, 17])
    logp = torch.linspace(0, -5, 40).log_softmax(-1).expand(5, -1)
    for k in (1, 3, 10, 40):
        top = divergence.top_k(logp, k).values
        assert listed_rank(logp, top, planted).tolist() == planted.tolist()


def test_ties_get_the_best_rank_also_at_the_edge_of_the_list():
    logp = torch.tensor([[0.4, 0.2, 0.2, 0.2]]).log()
    for k in (1, 2, 3, 4):
        assert listed_rank(logp, divergence.top_k(logp, k).values, torch.tensor([3])).tolist() == [1]


def test_mass_flow_follows_the_bases_ranks():
    p = torch.linspace(2e-3, 1e-3, 300)[None].clone()  # no ties: every rank is certain
    p[0, :12] = torch.linspace(0.2, 0.02, 12)
    p = (p / p.sum()).log()
    q = p.exp().clone()
    q[0, 0] -= 0.05
    q[0, 5] += 0.03  # base rank 6, the bucket 4–10
    q[0, 299] += 0.02  # beyond the first hundred
    found = statistics(p, q.log(), [5])
    assert found["flow_1"].item() == pytest.approx(-0.05, abs=1e-6)
    assert found["flow_2_3"].item() == pytest.approx(0, abs=1e-6)
    assert found["flow_4_10"].item() == pytest.approx(0.03, abs=1e-6)
    assert found["flow_11_100"].item() == pytest.approx(0, abs=1e-6)
    assert found["flow_over_100"].item() == pytest.approx(0.02, abs=1e-6)


def test_a_banned_token_is_minus_infinity_in_the_lists_and_never_nan():
    p = torch.tensor([[2.0, 1.0, -math.inf, 0.0]])
    q = torch.tensor([[1.0, 2.0, 0.0, -math.inf]])
    found = statistics(p, q, [0], top_k=4)
    assert not any(value.isnan().any() for value in found.values())
    assert found["top_tuned_logp_base"][0][found["top_tuned_ids"][0] == 2].item() == -math.inf
    assert found["kl_base_tuned_nats"].item() == math.inf
    assert 0 < found["js_nats"].item() < math.log(2)


def test_the_truncated_divergence_is_that_of_the_truncated_laws():
    generator = torch.Generator().manual_seed(0)
    p, q = (3 * torch.randn(8, 50, generator=generator) for _ in range(2))
    found = statistics(p, q, [0] * 8, compat_top_p=0.7)
    laws = [divergence.truncate_top_p(z.log_softmax(-1), 0.7) for z in (p, q)]
    torch.testing.assert_close(found["js_top_p_nats"], divergence.js_nats(*laws), atol=1e-6, rtol=0)  # float32 sums


@pytest.mark.parametrize("wrong", [{"top_k": 0}, {"compat_top_p": 0.0}, {"compat_top_p": 1.5}])
def test_settings_outside_their_range_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Listing(**wrong)
