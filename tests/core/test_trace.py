"""Claims about reading hidden states: the right tensors at the right layers, and no trace of the reader afterwards."""

from __future__ import annotations

import pytest
import torch

from shiftscope.core import trace
from shiftscope.core.head import Head


def hooks_of(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_states_are_those_of_the_model_up_to_the_last_which_is_not_normed(tiny, ids):
    """`output_hidden_states` is the oracle below the last entry; its last entry is the norm of ours."""
    head = Head(tiny)
    with torch.no_grad(), trace.states(head.blocks) as states:
        output = tiny(input_ids=ids, output_hidden_states=True)
        assert len(states) == len(head.blocks) + 1 == len(output.hidden_states)
        for ours, theirs in zip(states[:-1], output.hidden_states[:-1], strict=True):
            assert torch.equal(ours, theirs)
        hidden = head.hidden(ids)
        torch.testing.assert_close(head.final(states[-1]), hidden, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(states[-1].sum(), hidden.sum())


def test_logits_are_bit_equal_under_the_reader(tiny, ids):
    head = Head(tiny)
    with torch.no_grad():
        before = tiny(input_ids=ids).logits
        with trace.states(head.blocks):
            during = tiny(input_ids=ids).logits
        after = tiny(input_ids=ids).logits
    assert torch.equal(before, during)
    assert torch.equal(before, after)


def test_a_second_forward_starts_anew(tiny, ids):
    head = Head(tiny)
    with torch.no_grad(), trace.states(head.blocks) as states:
        head.hidden(ids)
        head.hidden(ids[:1, :5])
        assert len(states) == len(head.blocks) + 1
        assert states[0].shape[:2] == (1, 5)


def test_hooks_are_gone_even_after_an_error(tiny, ids):
    head, before = Head(tiny), hooks_of(tiny)  # the library installs hooks of its own for output_hidden_states
    with torch.no_grad(), trace.states(head.blocks):
        assert hooks_of(tiny) == before + len(head.blocks) + 1
        head.hidden(ids)
    assert hooks_of(tiny) == before
    with pytest.raises(IndexError), trace.states(head.blocks):
        tiny(input_ids=torch.full((1, 3), 10**6))
    assert hooks_of(tiny) == before


def test_states_carry_no_gradient_but_leave_the_models_own_alone(tiny, ids):
    head = Head(tiny)
    with trace.states(head.blocks) as states:
        logits = tiny(input_ids=ids).logits
    assert logits.requires_grad
    assert not any(state.requires_grad for state in states)
