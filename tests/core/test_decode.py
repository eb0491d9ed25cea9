"""Sampling: the law is the model's, and neither batching nor order changes a sample."""

import copy

import pytest
import torch
from scipy import stats

from shiftscope.core import checkpoints, corpus, decode
from shiftscope.core.randomness import uniforms


@pytest.fixture(scope="module")
def sums():
    return checkpoints.load("sums-base")


@pytest.fixture(scope="module")
def contexts(sums):
    prompts = ["3 1 4 1 =", "take 3 gives", "9 9 9 9 = add", "1 2 3 4 = use 1 is 1 ; use 2"]
    return [corpus.context_ids(sums, corpus.Text(0, "0", prompt)) for prompt in prompts]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_batch_of_unequal_prompts_draws_what_each_draws_alone(sums, contexts, temperature):
    sampling = decode.Sampling(temperature=temperature, max_new_tokens=20)
    together = decode.sample(sums, contexts, range(4), sampling)
    alone = [decode.sample(sums, [context], [number], sampling)[0] for number, context in enumerate(contexts)]
    assert together == alone


def test_greedy_answers_are_those_of_transformers_generate(sums, contexts):
    ours = decode.sample(sums, contexts[:1], [0], decode.Sampling(max_new_tokens=20))[0]
    theirs = sums.model.generate(torch.tensor([contexts[0]]), do_sample=False, max_new_tokens=20)[0, len(contexts[0]) :]
    assert list(ours) == theirs.tolist()


def test_first_tokens_follow_the_models_law_at_a_temperature_and_top_p(sums, contexts):
    with torch.no_grad():
        logits = sums.model(torch.tensor([contexts[0]])).logits[0, -1]
    n = 4000
    drawn = decode.choose(logits.expand(n, -1), torch.from_numpy(uniforms(3, range(n), 0)), 0.7, 0.9)
    law = (logits.double() / 0.7).softmax(-1)
    ordered = law.sort(descending=True)
    kept = ordered.indices[ordered.values.cumsum(0) - ordered.values < 0.9]
    assert set(drawn.tolist()) <= set(kept.tolist())
    expected = law[kept] / law[kept].sum() * n
    counts = torch.tensor([(drawn == token).sum() for token in kept])
    assert stats.chisquare(counts.numpy(), expected.numpy()).pvalue > 1e-3  # fixed seed: no flake


def test_an_impossible_token_is_never_drawn_even_at_the_edges_of_the_unit_interval():
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]]).expand(3, -1)
    drawn = decode.choose(logits, torch.tensor([0.0, 0.5, 1 - 2**-53]), 1.0)
    assert drawn.tolist() == [1, 3, 3]


def test_an_answer_ends_with_the_end_token_or_at_the_limit(sums, contexts):
    ends = decode.end_ids(sums)
    for answer in decode.sample(sums, contexts, range(4), decode.Sampling(max_new_tokens=12)):
        assert answer[-1] in ends or len(answer) == 12
        assert not set(answer[:-1]) & set(ends)


def test_a_prompt_that_fills_the_context_is_an_error(sums):
    with pytest.raises(ValueError, match="leaves no room in sums-base"):
        decode.sample(sums, [[3] * sums.context_length], [0], decode.Sampling())


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1},
        {"temperature": float("nan")},
        {"top_p": 0},
        {"samples": 0},
        {"max_new_tokens": 0},
        {"samples": 2},
    ],
)
def test_settings_outside_their_range_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        decode.Sampling(**wrong)


def test_top_k_keeps_the_k_most_probable_tokens_and_their_ratios_before_top_p():
    logits = torch.tensor([[0.0, 1.0, 3.0, 2.0, -1.0]], dtype=torch.float64)
    kept = decode.shaped(logits, 1.0, top_k=2).exp()
    assert kept[0].nonzero()[:, 0].tolist() == [2, 3]
    assert kept[0, 2] / kept[0, 3] == pytest.approx(torch.e)
    assert torch.equal(decode.shaped(logits, 1.0, top_k=5), decode.shaped(logits, 1.0))
    both = decode.shaped(logits, 1.0, 0.7, 2).exp()  # of the two that are left, the first has 73 %
    assert both[0].tolist() == [0, 0, 1, 0, 0]


def test_an_end_beyond_the_models_vocabulary_is_no_end(sums):
    strange = copy.deepcopy(sums)
    strange.model.generation_config.eos_token_id = [50256, *decode.end_ids(sums)]
    assert decode.end_ids(strange) == decode.end_ids(sums)


def test_tokens_that_a_row_may_not_write_are_never_drawn_and_further_ends_end(sums, contexts):
    sampling = decode.Sampling(temperature=1.0, max_new_tokens=12)
    free = decode.sample(sums, contexts, range(4), sampling)
    banned = free[0][0]
    mask = torch.ones(sums.vocabulary_size, dtype=torch.bool)
    mask[banned] = False
    kept = decode.sample(
        sums, contexts, range(4), sampling, allowed=lambda row, ids: mask.numpy() if row == 0 else None
    )
    assert banned not in kept[0]
    assert kept[1:] == free[1:]
    assert decode.sample(sums, contexts[:1], [0], sampling, further_ends=[banned])[0] == (banned,)
