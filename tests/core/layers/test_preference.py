"""Claims about preferences: the loss is the published one, and its gradient is taken without touching the model."""

from __future__ import annotations

import json
import math

import pytest
import torch

from shiftscope.core import checkpoints
from shiftscope.core.layers import preference
from shiftscope.core.layers.preference import Preference


@pytest.fixture
def policy(tiny):
    return checkpoints.wrap(tiny, None, "policy")


PAIRS = [
    Preference((5, 6, 7), (8, 9), (10, 11, 12)),
    Preference((1, 2), (3, 4, 5, 6), (7,)),
    Preference((60, 0), (1, 60), (2, 3)),
]


def test_loss_is_ln_2_at_the_reference_and_falls_with_the_margin():
    logp = torch.tensor([-3.0, -1.0])
    assert torch.allclose(preference.dpo_loss(logp, logp - 1, logp, logp - 1), torch.full((2,), math.log(2)))
    margins = torch.linspace(-50, 50, 11, dtype=torch.float64)
    loss = preference.dpo_loss(margins, torch.zeros(11), torch.zeros(11), torch.zeros(11), beta=0.1)
    assert torch.allclose(loss, torch.log1p(torch.exp(-0.1 * margins)))
    assert (loss.diff() < 0).all()


def test_answer_log_probability_is_the_sum_over_its_tokens_in_any_batch(tiny):
    ids, mask, answer = preference.padded([p.prompt for p in PAIRS], [p.chosen for p in PAIRS])
    with torch.no_grad():
        together = preference.answer_logp_nats(tiny(input_ids=ids, attention_mask=mask).logits, ids, answer)
        for row, pair in enumerate(PAIRS):
            logp = tiny(input_ids=torch.tensor([[*pair.prompt, *pair.chosen]])).logits[0].log_softmax(-1)
            places = range(len(pair.prompt) - 1, len(pair.prompt) + len(pair.chosen) - 1)
            alone = sum(float(logp[place, token]) for place, token in zip(places, pair.chosen, strict=True))
            assert float(together[row]) == pytest.approx(alone, abs=1e-3)


def test_block_gradients_are_those_of_plain_backpropagation(tiny, policy):
    """Oracle: the same loss on the model itself, with .backward()."""
    squares = preference.block_gradient_squares(policy, policy, PAIRS, beta=0.3, batch_size=2)
    losses = []
    for pair in PAIRS:
        logp = []
        for answer in (pair.chosen, pair.rejected):
            ids, mask, where = preference.padded([pair.prompt], [answer])
            logp.append(preference.answer_logp_nats(tiny(input_ids=ids, attention_mask=mask).logits, ids, where))
        losses.append(preference.dpo_loss(*logp, logp[0].detach(), logp[1].detach(), 0.3))
    torch.cat(losses).mean().backward()
    expected = [
        sum(float(p.grad.square().sum()) for p in block.parameters() if p.grad is not None)
        for block in policy.head.blocks
    ]
    tiny.zero_grad(set_to_none=True)
    assert squares.tolist() == pytest.approx(expected, rel=1e-3)
    assert len(squares) == 3


def test_the_policy_is_left_as_it_was(tiny, policy):
    parameters = list(tiny.parameters())
    parameters[0].requires_grad_(False)
    tiny.train()
    before = [p.detach().clone() for p in parameters]
    try:
        preference.block_gradient_squares(policy, policy, PAIRS)
        assert tiny.training
        assert not parameters[0].requires_grad
        assert all(p.requires_grad for p in parameters[1:])
        assert all(p.grad is None for p in parameters)
        assert all(torch.equal(a, b) for a, b in zip(before, parameters, strict=True))
    finally:
        parameters[0].requires_grad_(True)
        tiny.eval()


def test_pairs_are_read_from_records_and_files(docs, tmp_path):
    base, _ = docs
    record = {"prompt": "def f", "chosen": "(x)", "rejected": "[x]"}
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(record) + "\n" + json.dumps(record) + "\n")
    pairs = preference.read(path, base)
    assert pairs == preference.read([record, record], base)
    assert preference.read(path, base, limit=1) == pairs[:1]
    assert base.tokenizer.decode(pairs[0].chosen) == "(x)"


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([{"prompt": "a", "chosen": "b"}], "record 1 must have"),
        ([{"prompt": "a", "chosen": "b", "rejected": "c"}, ["a"]], "record 2 must have"),
        ([{"prompt": "a", "chosen": "", "rejected": "c"}], "empty prompt or answer"),
        ([], "no records"),
    ],
)
def test_malformed_pairs_are_refused_in_a_sentence(docs, records, message):
    with pytest.raises(ValueError, match=message):
        preference.read(records, docs[0])
