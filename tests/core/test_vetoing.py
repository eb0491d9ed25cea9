"""Claims about vetoing: its two limits are the models alone, and its loop of trials draws from the closed one-step law."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from shiftscope.core import checkpoints, decode, lockstep, vetoing
from shiftscope.core.decode import Sampling
from shiftscope.core.lockstep import Job, Step
from shiftscope.core.randomness import uniforms
from shiftscope.core.vetoing import Veto

NEW, V = 24, 27
PROMPTS = ("3 1 4 2 =", "9 9 1 5 =", "2 7 8 8 =", "6 6 6 1 =")


@pytest.fixture(scope="module")
def pair():
    return checkpoints.load("sums-rlvr"), checkpoints.load("sums-base")


@pytest.fixture(scope="module")
def jobs(pair):
    contexts = [tuple(pair[0].tokenizer(prompt)["input_ids"]) for prompt in PROMPTS]
    return [Job(3 * number, context[-2 - number :], context) for number, context in enumerate(contexts)]


def ids(written):
    return [one.ids for one in written]


def vetoed(pair, jobs, veto, *, block=1):
    ends = decode.end_ids(pair[1])
    return lockstep.write(*pair, jobs, vetoing.vetoing(veto), ends=ends, max_new_tokens=NEW, seed=7, block=block)


def test_without_a_threshold_the_teacher_writes_alone(pair, jobs):
    veto = Veto(p_min=0, top_k=V, temperature=0.7, top_p=0.9)
    sampling = Sampling(temperature=0.7, top_p=0.9, max_new_tokens=NEW, seed=7)
    for block in (1, 4):
        written = vetoed(pair, jobs, veto, block=block)
        contexts = [job.drafter_context for job in jobs]
        assert ids(written) == decode.sample(pair[0], contexts, [job.document for job in jobs], sampling)
        assert not any(one.steps["switched"].any() or one.steps["trial"].any() for one in written)


def test_with_a_threshold_above_one_the_student_writes_alone(pair, jobs):
    veto = Veto(p_min=1.01, top_k=V, temperature=0.7, top_p=0.9)
    for job, one in zip(jobs, vetoed(pair, jobs, veto), strict=True):
        logits = (
            pair[1].model(torch.tensor([[*job.checker_context, *one.ids]])).logits[0, len(job.checker_context) - 1 : -1]
        )
        u = torch.from_numpy(uniforms(7, job.document, np.arange(len(one.ids)), lockstep.CONTROL))
        assert decode.choose(logits.detach().float(), u, 0.7, 0.9).tolist() == list(one.ids)
        assert one.steps["switched"].all()


@pytest.mark.parametrize(
    "veto", [Veto(p_min=0.166), Veto(p_min=0.17, trials=2, top_k=6), Veto(p_min=0.168, floor_fallback=True)]
)
def test_blocks_of_vetoes_write_the_same_as_token_by_token(pair, jobs, veto):
    one, many = vetoed(pair, jobs, veto), vetoed(pair, jobs, veto, block=6)
    assert ids(one) == ids(many)
    assert 0 < sum(w.steps["switched"].sum() for w in one) < sum(map(len, ids(one)))
    p = np.exp(np.concatenate([w.steps["logp_student_nats"] for w in one]))
    own = np.concatenate([w.steps["switched"] for w in one])
    assert (p[~own] >= veto.p_min - 1e-6).all()
    if veto.floor_fallback:
        top = np.concatenate([w.steps["top_student"] == w.steps["token"] for w in one])
        assert ((p >= veto.p_min - 1e-6) | top).all()


@pytest.mark.parametrize(
    "veto",
    [
        Veto(p_min=0.05, trials=5),
        Veto(p_min=0.08, trials=2, top_k=7, top_p=1.0),
        Veto(p_min=0.05, trials=3, floor_fallback=True),
    ],
)
def test_the_loop_of_trials_draws_from_the_closed_one_step_law(veto):
    generator = torch.Generator().manual_seed(3)
    teacher, student = (1.5 * torch.randn(1, 12, generator=generator) for _ in range(2))
    n = 100_000
    step = Step(
        teacher.expand(n, -1), student.expand(n, -1), np.arange(n), np.zeros(n, dtype=np.int64), torch.zeros(n), 11
    )
    policy = vetoing.vetoing(veto)
    record = policy.decide(step, policy.propose(step.drafter_logits_BV, step.uniform(lockstep.DRAW)))
    truncated = {"temperature": veto.temperature, "top_p": veto.top_p, "top_k": veto.top_k}
    q, accepted = dense(vetoing.pool(teacher, **truncated), 12), vetoing.acceptable(student, veto)
    allowed = vetoing._fallback_ids(student, torch.ones(1, 12, dtype=torch.bool), veto)
    fallback = dense(vetoing.pool(student, **truncated, allowed_BV=allowed), 12)
    law = vetoing.one_step_law(q, accepted, fallback, veto.trials)[0]
    assert abs(float(law.sum()) - 1) < 1e-12
    counts = np.bincount(record["token"], minlength=12)
    possible = law.numpy() > 0
    assert counts[~possible].sum() == 0
    assert chisquare(counts[possible], n * law.numpy()[possible]).pvalue > 1e-3
    assert abs(float(record["switched"].float().mean()) - float(record["fallback_p"][0])) < 5 / math.sqrt(n)
    assert 0.02 < float(record["fallback_p"][0]) < 0.98


def dense(pool, size):
    return torch.zeros(len(pool.p_BC), size, dtype=pool.p_BC.dtype).scatter(-1, pool.ids_BC, pool.p_BC)


def test_trials_draw_again_from_the_same_pool_and_a_pool_without_a_shared_id_goes_to_the_student():
    teacher = torch.tensor([[9.0, 0, 0, 0]])
    student = torch.tensor([[-9.0, 1, 1, 0]])
    nothing = torch.tensor([-1, 1, 2, 3])
    policy = vetoing.vetoing(Veto(temperature=0), own_of_V=nothing)
    step = Step(teacher, student, np.array([0]), np.array([0]), torch.zeros(1), 0)
    drafted = policy.propose(teacher, step.uniform(0))
    record = policy.decide(step, drafted)
    assert drafted.item() == -1
    assert record["token"].item() == 1
    assert record["lost"].item() == 1
    assert record["switched"].item()


def test_bad_settings_are_sentences():
    for wrong in ({"trials": 0}, {"p_min": -0.1}, {"top_k": 0}, {"top_p": 0.0}, {"student_temperature": 0.0}):
        with pytest.raises(ValueError, match="need"):
            Veto(**wrong)
