"""Claims about transport: the Fisher–Rao distance between adjacent lens laws, streamed without changing it."""

from __future__ import annotations

import math

import torch

from shiftscope.core import divergence, trace
from shiftscope.core.head import Head
from shiftscope.core.layers import lens


def states_of(tiny, ids):
    head = Head(tiny)
    with torch.no_grad(), trace.states(head.blocks) as states:
        head.hidden(ids)
    return head, [state.flatten(0, 1) for state in states]


def test_streamed_transport_equals_the_distance_of_full_laws(tiny, ids, monkeypatch):
    head, states = states_of(tiny, ids)
    with torch.no_grad():
        logp = [head.lens(state).double().log_softmax(-1) for state in states]
    monkeypatch.setattr(lens, "CHUNK_ROWS", 7)  # 24 rows: three whole chunks and a shorter one
    found = lens.transport(states, head, [0, 1, 2, 3])
    assert sorted(found) == [1, 2, 3]
    for layer, radians in found.items():
        expected = divergence.fisher_rao(logp[layer - 1], logp[layer])
        torch.testing.assert_close(radians.double(), expected, rtol=1e-4, atol=2e-6)
        assert 0 <= float(radians.min()) <= float(radians.max()) <= math.pi


def test_some_layers_alone_have_the_same_transport(tiny, ids):
    head, states = states_of(tiny, ids)
    whole = lens.transport(states, head, [1, 2, 3])
    for wanted in ([3], [1, 3], [2, 3]):
        some = lens.transport(states, head, wanted)
        assert sorted(some) == wanted
        assert all(torch.equal(some[layer], whole[layer]) for layer in wanted)


def test_a_block_that_does_nothing_transports_nothing_at_all(tiny, ids):
    head, states = states_of(tiny, ids)
    found = lens.transport([states[0], states[0].clone(), states[2], states[3]], head, [1, 2])
    assert not found[1].any()
    assert found[2].all()


def test_small_steps_follow_the_local_metric(tiny, ids):
    """From z to z + εw the distance is ε·sqrt(Var_p(w)); arccos in float32 would give 0."""
    head, states = states_of(tiny, ids)
    last = head.unembedding
    with torch.no_grad():
        z = last(head.final(states[-1])).double()
        w = torch.randn(z.shape[-1], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        p = z.softmax(-1)
        deviation = ((p * w**2).sum(-1) - (p * w).sum(-1) ** 2).sqrt()
        for step in (1e-2, 1e-4):
            moved = divergence.fisher_rao(z.log_softmax(-1), (z + step * w).log_softmax(-1))
            torch.testing.assert_close(moved, step * deviation, rtol=step, atol=1e-12)


def test_positions_are_spread_evenly_over_each_text():
    lengths = torch.tensor([3, 10, 1])
    assert lens.evenly_spread(lengths, 0).tolist() == list(range(14))
    picked = lens.evenly_spread(lengths, 4).tolist()
    assert picked == [0, 1, 2, 4, 6, 9, 11, 13]
    assert lens.evenly_spread(torch.tensor([5]), 1).tolist() == [2]
