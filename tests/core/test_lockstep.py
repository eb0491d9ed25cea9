"""Claims about two models in lock-step: what is written is a pure function of laws, rule and keyed random numbers."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
)

from shiftscope.core import checkpoints, crossing, decode, divergence, lockstep
from shiftscope.core.decode import Sampling
from shiftscope.core.laws import Workspace
from shiftscope.core.lockstep import Job, Reader
from shiftscope.core.randomness import uniforms

V, END, NEW = 41, 2, 20
SAMPLING = Sampling(temperature=1.0, max_new_tokens=NEW, seed=7)
JOBS = [
    Job(document, tuple(range(3, 3 + length)), tuple(range(3, 3 + length)))
    for document, length in ((4, 1), (0, 6), (9, 3), (2, 5), (11, 9))
]


def words() -> PreTrainedTokenizerFast:
    vocabulary = {"<pad>": 0, "<unk>": 1, "<end>": END} | {f"w{i}": i for i in range(3, V)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>")),
        eos_token="<end>",
        pad_token="<pad>",
    )


def llama(seed: int, spread: float = 0.4, **more) -> checkpoints.Checkpoint:
    config = LlamaConfig(
        vocab_size=V,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=spread,
        bos_token_id=None,
        eos_token_id=END,
        pad_token_id=0,
        **more,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return checkpoints.wrap(LlamaForCausalLM(config).eval(), words(), f"llama {seed}")


def near(checkpoint: checkpoints.Checkpoint, amount: float) -> checkpoints.Checkpoint:
    """The same model with noise on its weights."""
    twin = llama(0)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight, source in zip(twin.model.parameters(), checkpoint.model.parameters(), strict=True):
            weight.copy_(source + amount * torch.randn(source.shape, generator=generator))
    return checkpoints.wrap(twin.model, twin.tokenizer, "near")


@pytest.fixture(scope="module")
def pair():
    base = llama(1, 0.25)
    return base, near(base, 0.03)


def crossed(pair, rule, *, block=1, jobs=JOBS, sampling=SAMPLING, **more):
    policy = crossing.crossing(rule, sampling)
    return lockstep.write(
        *pair,
        jobs,
        policy,
        ends=(END,),
        max_new_tokens=sampling.max_new_tokens,
        seed=sampling.seed,
        block=block,
        **more,
    )


def ids(written):
    return [one.ids for one in written]


def alone(checkpoint, jobs=JOBS, sampling=SAMPLING):
    return decode.sample(checkpoint, [job.drafter_context for job in jobs], [job.document for job in jobs], sampling)


def above(epsilon):
    return partial(crossing.js_above, epsilon=epsilon)


# ---- identities -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("block", [1, 3])
@pytest.mark.parametrize(
    "sampling",
    [SAMPLING, Sampling(temperature=0.7, top_p=0.8, max_new_tokens=NEW, seed=3), Sampling(max_new_tokens=NEW)],
)
def test_below_zero_the_intervening_model_writes_token_for_token_and_at_ln_2_the_primary(pair, block, sampling):
    assert ids(crossed(pair, above(-1), block=block, sampling=sampling)) == alone(pair[1], sampling=sampling)
    assert ids(crossed(pair, above(math.log(2)), block=block, sampling=sampling)) == alone(pair[0], sampling=sampling)


@pytest.mark.parametrize("epsilon", [0.05, 0.1, 0.2])
@pytest.mark.parametrize("block", [2, 5, 16])
def test_a_block_writes_the_same_as_token_by_token_with_the_same_record(pair, epsilon, block):
    one, many = crossed(pair, above(epsilon)), crossed(pair, above(epsilon), block=block)
    assert ids(one) == ids(many)
    assert 0 < sum(w.steps["switched"].sum() for w in one) < sum(map(len, ids(one)))
    for a, b in zip(one, many, strict=True):
        assert a.ended == b.ended
        for name in a.steps:
            np.testing.assert_allclose(a.steps[name], b.steps[name], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("block", [1, 4])
def test_a_batch_of_prompts_writes_what_each_writes_alone(pair, block):
    together = crossed(pair, above(0.1), block=block)
    assert ids(together) == [crossed(pair, above(0.1), jobs=[job], block=block)[0].ids for job in JOBS]
    assert ids(together) == ids(crossed(pair, above(0.1), jobs=JOBS[::-1], block=block))[::-1]


def test_forward_and_reverse_have_the_same_indicator_on_the_same_prefix(pair):
    logits = [checkpoint.model(torch.arange(3, 30)[None]).logits[0].detach() for checkpoint in pair]
    workspaces = [Workspace(len(logits[0]), V, torch.device("cpu")) for _ in pair]
    js = [
        workspace.divergences(workspace.laws(*sides))["js_nats"]
        for workspace, sides in zip(workspaces, (logits, logits[::-1]), strict=True)
    ]
    assert torch.equal(js[0], js[1])
    assert 0 < (js[0] > 0.1).float().mean() < 1


@pytest.mark.parametrize("block", [1, 4])
def test_the_record_is_that_of_both_models_run_from_scratch_on_what_was_written(pair, block):
    for job, one in zip(JOBS, crossed(pair, above(0.1), block=block), strict=True):
        whole = torch.tensor([[*job.drafter_context, *one.ids]])
        start = len(job.drafter_context) - 1
        logp, logq = (c.model(whole).logits[0, start:-1].detach().double().log_softmax(-1) for c in pair)
        np.testing.assert_allclose(one.steps["js_nats"], divergence.js_nats(logp, logq), atol=1e-6)
        np.testing.assert_allclose(one.steps["entropy_primary_nats"], divergence.entropy_nats(logp), atol=1e-5)
        np.testing.assert_allclose(
            one.steps["logp_other_nats"], logq[torch.arange(len(one.ids)), list(one.ids)], atol=1e-4
        )
        u = torch.from_numpy(uniforms(SAMPLING.seed, job.document, np.arange(len(one.ids))))
        assert one.steps["primary"].tolist() == decode.choose(logp, u, 1.0).tolist()
        assert one.steps["other"].tolist() == decode.choose(logq, u, 1.0).tolist()
        switched = one.steps["switched"]
        assert switched.tolist() == (one.steps["js_nats"] > 0.1).tolist()
        assert list(one.ids) == np.where(switched, one.steps["other"], one.steps["primary"]).tolist()


def test_two_contexts_of_unequal_length_are_both_kept(pair):
    jobs = [Job(0, (3, 4), (9, 8, 7, 6, 5, 3, 4)), Job(1, (5, 6, 7, 8, 9), (4,))]
    one, many = crossed(pair, above(0.2), jobs=jobs), crossed(pair, above(0.2), jobs=jobs, block=4)
    assert ids(one) == ids(many)
    expected = decode.sample(pair[1], [job.checker_context for job in jobs], [0, 1], SAMPLING)
    assert ids(crossed(pair, above(-1), jobs=jobs)) == expected


# ---- caches ---------------------------------------------------------------------------------------------------------
def test_a_reader_that_took_back_unequal_numbers_of_ids_reads_on_as_if_it_had_never_read_them(pair):
    reader = Reader(pair[0])
    with torch.no_grad():
        reader.read([[3, 4, 5, 6, 7, 8], [9, 8, 7], [5]])
        reader.read([[1, 2, 3, 4], [6, 6, 6, 6], [7, 8, 9, 10]], keep=4)
        reader.drop(torch.tensor([3, 1, 2]))
        got = reader.read([[11, 12], [13], [14, 15]])
        rows = [[3, 4, 5, 6, 7, 8, 1, 11, 12], [9, 8, 7, 6, 6, 6, 13], [5, 7, 8, 14, 15]]
        for row, logits in zip(rows, got[:, -1], strict=True):
            torch.testing.assert_close(logits, pair[0].model(torch.tensor([row])).logits[0, -1], atol=1e-4, rtol=1e-4)
    assert reader.mask_BT.sum(-1).tolist() == [len(row) for row in rows]
    assert reader.cache.layers[0].keys.shape[2] == reader.mask_BT.shape[1] == 9


@pytest.mark.parametrize("block", [1, 4])
def test_what_was_voided_is_in_neither_cache(pair, block):
    batch = lockstep._Batch(
        *pair, JOBS[:2], crossing.crossing(above(0.05), SAMPLING), (END,), 12, 7, lambda token: (token,)
    )
    with torch.no_grad():
        for _ in range(3):
            batch.advance(block)
    written = batch.written()
    for row, job in enumerate(batch.rows):
        prefix = [*JOBS[job].drafter_context, *written[job].ids]
        for reader in batch.readers:
            fresh = Reader(reader.checkpoint)
            with torch.no_grad():
                fresh.read([prefix[:-1]])
            mine = reader.cache.layers[-1].keys[row][:, reader.mask_BT[row].bool()]
            torch.testing.assert_close(mine, fresh.cache.layers[-1].keys[0], atol=1e-4, rtol=1e-4)


def test_a_sliding_window_works_token_by_token_and_refuses_blocks():
    config = MistralConfig(
        vocab_size=V,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        sliding_window=6,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=END,
        pad_token_id=0,
    )
    sides = []
    for seed in (1, 2):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            sides.append(checkpoints.wrap(MistralForCausalLM(config).eval(), words(), f"sliding {seed}"))
    assert ids(crossed(sides, above(-1))) == alone(sides[1])
    with pytest.raises(ValueError, match=r"DynamicSlidingWindowLayer.*block 1"):
        crossed(sides, above(0.05), block=4)


def test_learned_positions_follow_every_row():
    sides = []
    for seed in (1, 2):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            config = GPT2Config(
                vocab_size=V,
                n_embd=32,
                n_layer=2,
                n_head=2,
                n_positions=64,
                initializer_range=0.15,
                bos_token_id=None,
                eos_token_id=END,
            )
            sides.append(checkpoints.wrap(GPT2LMHeadModel(config).eval(), words(), f"gpt2 {seed}"))
    assert ids(crossed(sides, above(0.1))) == ids(crossed(sides, above(0.1), block=5))
    assert ids(crossed(sides, above(-1))) == alone(sides[1])


def test_the_models_are_left_as_they_were(pair):
    before = [checkpoint.model(torch.arange(3, 12)[None]).logits for checkpoint in pair]
    pair[0].model.train()
    crossed(pair, above(0.1))
    assert pair[0].model.training
    pair[0].model.eval()
    assert all(torch.equal(a, c.model(torch.arange(3, 12)[None]).logits) for a, c in zip(before, pair, strict=True))


# ---- rules ----------------------------------------------------------------------------------------------------------
def test_random_switches_come_at_their_rate_and_do_not_depend_on_the_draws(pair):
    jobs = [Job(document, (5, 6), (5, 6)) for document in range(200)]
    written = crossed(pair, partial(crossing.at_random, rate=0.3), jobs=jobs)
    switched = np.concatenate([one.steps["switched"] for one in written])
    assert abs(switched.mean() - 0.3) < 4 * math.sqrt(0.21 / len(switched))
    low = np.concatenate([one.steps["primary"] < V // 2 for one in written])
    assert abs(switched[low].mean() - switched[~low].mean()) < 0.06


def test_a_budget_ends_the_switching(pair):
    rule = partial(crossing.within_budget, rule=above(0.05), budget=2)
    for block in (1, 6):
        free, capped = crossed(pair, above(0.05), block=block), crossed(pair, rule, block=block)
        assert max(one.steps["switched"].sum() for one in free) > 2
        assert all(one.steps["switched"].sum() <= 2 for one in capped)
        for one, other in zip(free, capped, strict=True):
            places = np.flatnonzero(one.steps["switched"])
            spent = int(places[1]) + 1 if len(places) > 1 else len(one.ids)
            assert one.ids[:spent] == other.ids[:spent]


# ---- bad input ------------------------------------------------------------------------------------------------------
def test_a_prompt_that_leaves_no_room_is_named(pair):
    with pytest.raises(
        ValueError, match="document 3 has 64 tokens and leaves no room in llama 1, which reads at most 64"
    ):
        crossed(pair, above(0.1), jobs=[Job(3, (5,) * 64, (5,))])


@pytest.mark.parametrize("block", [1, 7])
def test_writing_stops_where_the_shorter_context_ends(pair, block):
    sampling = Sampling(temperature=1.0, max_new_tokens=60, seed=7)
    written = crossed(
        pair, above(0.1), jobs=[Job(1, (5,) * 50, (5,) * 58), Job(2, (6, 7), (6, 7))], sampling=sampling, block=block
    )
    assert len(written[0].ids) == 6
    assert not written[0].ended


def test_logits_that_are_not_numbers_are_named():
    broken = llama(1)
    good = llama(2)
    with torch.no_grad():
        broken.model.model.embed_tokens.weight[4] = torch.nan
    with pytest.raises(
        ValueError, match=r"primary model gives logits that are not numbers .* in document 8, answer position 0"
    ):
        crossed((broken, good), above(0.1), jobs=[Job(8, (3, 4), (3, 4))])


def test_bad_settings_are_sentences(pair):
    with pytest.raises(ValueError, match="block is 0"):
        crossed(pair, above(0.1), block=0)
    with pytest.raises(ValueError, match="empty context"):
        crossed(pair, above(0.1), jobs=[Job(0, (), (3,))])
    assert crossed(pair, above(0.1), jobs=[]) == []
