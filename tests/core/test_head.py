"""Claims about the head: it is the model's own unembedding in every architecture, and looking changes nothing."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from shiftscope.core import trace
from shiftscope.core.head import Head, evaluating


def logits_of(model, ids):
    with torch.no_grad():
        return model(input_ids=ids).logits


def test_head_of_the_last_hidden_state_is_the_models_own_logits(tiny, ids):
    head = Head(tiny)
    with torch.no_grad():
        hidden = head.hidden(ids)
        found = head.logits(hidden.flatten(0, 1)).unflatten(0, ids.shape)
    own = logits_of(tiny, ids)
    assert found.shape == own.shape
    for end in (slice(0, 8), slice(-8, None)):  # both ends of the vocabulary
        torch.testing.assert_close(found[..., end], own[..., end], rtol=1e-5, atol=1e-5)


def test_lens_at_the_last_state_is_the_models_own_logits(tiny, ids):
    head = Head(tiny)
    with torch.no_grad(), trace.states(head.blocks) as states:
        own = tiny(input_ids=ids).logits
        found = head.lens(states[-1].flatten(0, 1)).unflatten(0, ids.shape)
    torch.testing.assert_close(found, own, rtol=1e-5, atol=1e-5)


def test_soft_cap_and_scales_are_not_idle_in_these_models(tiny, ids):
    """Without its cap or scale the head must fail, or the two tests above would prove nothing."""
    head = Head(tiny)
    if head.soft_cap is None and head.scale == 1:
        pytest.skip("this architecture has neither")
    head.soft_cap, head.scale = None, 1.0
    with torch.no_grad():
        bare = head.logits(head.hidden(ids).flatten(0, 1)).unflatten(0, ids.shape)
    assert (bare - logits_of(tiny, ids)).abs().max() > 0.1


def test_writing_into_a_buffer_gives_the_same_logits(tiny, ids):
    head = Head(tiny)
    with torch.no_grad():
        rows = head.hidden(ids).flatten(0, 1)
        buffer = torch.full((len(rows), head.weight.shape[0]), torch.nan)
        found = head.logits(rows, out=buffer)
        assert found.data_ptr() == buffer.data_ptr()
        assert torch.equal(buffer, head.logits(rows))


def test_padding_on_the_right_leaves_the_rows_before_it_alone(tiny, ids):
    head = Head(tiny)
    mask = torch.ones_like(ids)
    mask[0, 8:] = 0
    with torch.no_grad():
        padded, short = head.hidden(ids, mask)[0, :8], head.hidden(ids[:1, :8])[0]
    torch.testing.assert_close(padded, short, rtol=1e-4, atol=1e-4)


def test_logits_are_bit_equal_before_and_after_measuring(tiny, ids):
    before = logits_of(tiny, ids)
    weights = {name: value.clone() for name, value in tiny.state_dict().items()}
    head = Head(tiny)
    with torch.no_grad(), trace.states(head.blocks) as states:
        hidden = head.hidden(ids)
        head.logits(hidden[0])
        head.lens(states[1][0])
    assert torch.equal(logits_of(tiny, ids), before)
    assert all(torch.equal(weights[name], value) for name, value in tiny.state_dict().items())


def test_training_and_requires_grad_flags_are_put_back(tiny):
    modules, parameters = list(tiny.modules()), list(tiny.parameters())
    try:
        tiny.train()
        modules[-1].eval()
        parameters[0].requires_grad_(False)
        training, requiring = [m.training for m in modules], [p.requires_grad for p in parameters]
        Head(tiny)
        with pytest.raises(IndexError), evaluating(tiny):
            tiny(input_ids=torch.full((1, 3), 10**6))
        with evaluating(tiny):
            assert not any(m.training for m in modules)
        assert [m.training for m in modules] == training
        assert [p.requires_grad for p in parameters] == requiring
        assert all(p.grad is None for p in parameters)
    finally:
        tiny.eval()
        parameters[0].requires_grad_(True)


def test_resolving_leaves_no_hooks(tiny):
    before = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in tiny.modules()]
    Head(tiny)
    assert [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in tiny.modules()] == before


def test_a_model_that_does_more_before_its_logits_is_refused(tiny):
    """A head that the split cannot express must never be used silently."""

    class Shifted(nn.Linear):
        def forward(self, rows):
            return super().forward(rows) + rows.sum(-1, keepdim=True)

    plain = tiny.get_output_embeddings()
    shifted = Shifted(plain.in_features, plain.out_features, bias=plain.bias is not None)
    shifted.load_state_dict(plain.state_dict())
    tiny.set_output_embeddings(shifted)
    try:
        with pytest.raises(ValueError, match="differs from its own logits"):
            Head(tiny)
    finally:
        tiny.set_output_embeddings(plain)
