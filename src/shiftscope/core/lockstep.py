"""Two causal models write one sequence under a per-step decision rule, each with its own KV cache, one record per step.

The drafter proposes a token; the checker's law of the same position is worked out; a policy decides from both laws which
token is written. Only what is written stays in either cache. In block mode the drafter runs K tokens ahead and the checker
reads them in one forward; from the first token that the decision changes on, the drafts are void and are taken back out of
both caches. Every random number is keyed by (seed, document, position, stream), so blocks, batches and the order of texts
cannot change what is written, and two laws drawn from with one number give coupled draws.

Two policies: `crossing` (arXiv 2603.22446, section 3.3: the other model's draw where a rule says so) and `vetoing`
(arXiv 2509.22230: the drafter's draw unless the checker finds it too improbable, several trials, then the checker's own).
Deviation: the vetoed model's draws are inverse-CDF draws from keyed numbers, so that a trial is a pure function of its place.

Batches of unequal progress: every row of a cache ends in the same slot and is padded on the left; a row that takes more
back than its neighbours is shifted right, so caches stay gap-free and any attention kernel reads them. That needs plain
(not sliding, not recurrent) cache layers; with any other cache, block=1 works, because there nothing is ever taken back.
"""

# B rows still being written, K tokens of a block, V vocabulary, C tokens of a truncated law

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from shiftscope.core import divergence
from shiftscope.core.checkpoints import Checkpoint
from shiftscope.core.decode import Sampling, choose
from shiftscope.core.head import evaluating
from shiftscope.core.laws import LOWEST, Block, Workspace
from shiftscope.core.randomness import uniforms

DRAW, CONTROL = 0, 1  # streams of random numbers: the draw itself, a rule's own; a veto's further trials come after
Spelling = Callable[[int], Sequence[int]]


# ---- one model's side -----------------------------------------------------------------------------------------------
class Reader:
    """One model's view of the sequences of a batch: its KV cache holds exactly the ids read, row by row.

    mask_BT: which slots of the cache hold an id. Slots are padded on the left only.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.cache: Any = None
        self.mask_BT = torch.zeros(0, 0, dtype=torch.long)

    def read(self, rows: Sequence[Sequence[int]], keep: int = 1) -> Tensor:
        """Read some ids after those of each row; the logits [B, keep, V] after each row's last `keep` of them.

        rows: at least `keep` ids for each row; their numbers may differ.
        """
        first, longest = self.cache is None, max(map(len, rows))
        short_B = torch.tensor([longest - len(row) for row in rows])
        spare = 0 if first else int(short_B.max())
        pads = [[0] * (longest - len(row)) for row in rows]
        padded = [[*pad, *row] if first else [*row, *pad] for row, pad in zip(rows, pads, strict=True)]
        fresh_BT = torch.ones(len(rows), longest, dtype=torch.long)
        if first:
            fresh_BT = (torch.arange(longest)[None] >= short_B[:, None]).long()
            self.mask_BT = torch.zeros(len(rows), 0, dtype=torch.long)
        self.mask_BT = torch.cat([self.mask_BT, fresh_BT], 1)
        device = self.checkpoint.head.device
        place_BT = (self.mask_BT.cumsum(-1) - 1).clamp(min=0)[:, -longest:]
        output = self.checkpoint.model(
            input_ids=torch.tensor(padded, device=device),
            attention_mask=None if bool(self.mask_BT.all()) else self.mask_BT.to(device),
            position_ids=place_BT.to(device),
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=keep + spare,
        )
        self.cache, logits_BKV = output.past_key_values, output.logits
        if spare:
            wanted_BK = (spare - short_B)[:, None] + torch.arange(keep)
            logits_BKV = logits_BKV[torch.arange(len(rows))[:, None], wanted_BK.to(device)]
            self.drop(short_B)
        return logits_BKV

    def drop(self, count_B: Tensor) -> None:
        """Forget the last ids of each row. Raises ValueError where the model's cache cannot be rolled back."""
        if not bool(count_B.any()):
            return
        if any(type(layer) is not DynamicLayer for layer in self.cache.layers):
            kinds = sorted({type(layer).__name__ for layer in self.cache.layers} - {DynamicLayer.__name__})
            raise ValueError(
                f"the cache of {self.checkpoint.name} ({', '.join(kinds)}) cannot be rolled back row by row: use block 1, "
                f"and two checkpoints of one vocabulary"
            )
        least = int(count_B.min())
        if least:
            self.cache.crop(-least)
            self.mask_BT = self.mask_BT[:, :-least]
        if int(count_B.max()) > least:
            self._shift_right(count_B - least)

    def _shift_right(self, by_B: Tensor) -> None:
        """Move each row's ids right over its last by_B slots, so that all rows end in one slot again."""
        slot_BT = torch.arange(self.mask_BT.shape[1]) - by_B[:, None]
        self.mask_BT = torch.where(slot_BT >= 0, self.mask_BT.gather(1, slot_BT.clamp(min=0)), 0)
        unused = int((~self.mask_BT.bool().any(0)).sum())
        self.mask_BT, slot_BT = self.mask_BT[:, unused:], slot_BT[:, unused:].clamp(min=0)
        for layer in self.cache.layers:
            slots = slot_BT.to(layer.keys.device)[:, None, :, None]
            for name in ("keys", "values"):
                states = getattr(layer, name)
                setattr(layer, name, states.gather(2, slots.expand(-1, states.shape[1], -1, states.shape[3])))

    @property
    def selects(self) -> bool:
        """Whether rows of the cache can be selected (recurrent states cannot: finished rows then ride along)."""
        return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in self.cache.layers)

    def select(self, rows: Sequence[int]) -> None:
        """Keep only these rows."""
        chosen = torch.tensor(rows)
        self.mask_BT = self.mask_BT[chosen]
        self.cache.batch_select_indices(chosen.to(self.checkpoint.head.device))


# ---- what is decided, and on what -----------------------------------------------------------------------------------
@dataclass(frozen=True)
class Step:
    """B rows, each at the next position of its sequence.

    drafter_logits_BV, checker_logits_BV: each in its own vocabulary. document_B, position_B: what keys random numbers.
    switched_B: how many tokens of the row were switched so far.
    """

    drafter_logits_BV: Tensor
    checker_logits_BV: Tensor
    document_B: NDArray[np.int64]
    position_B: NDArray[np.int64]
    switched_B: Tensor
    seed: int

    def uniform(self, stream: int) -> Tensor:
        """One random number in [0, 1) for each row, float64."""
        return torch.from_numpy(uniforms(self.seed, self.document_B, self.position_B, stream))


@dataclass(frozen=True)
class Policy:
    """propose: (drafter's logits, uniform) -> drafted tokens [B], -1 where there is none to propose.
    decide: (step, drafted tokens) -> the record of each row, with `token` (what is written) and `switched` among its columns.
    """

    propose: Callable[[Tensor, Tensor], Tensor]
    decide: Callable[[Step, Tensor], dict[str, Tensor]]


@dataclass(frozen=True)
class Job:
    """One sequence to be written. document: its number, which keys its random numbers; contexts in each model's own ids."""

    document: int
    drafter_context: tuple[int, ...]
    checker_context: tuple[int, ...]


@dataclass(frozen=True)
class Written:
    """ids: what was written, its end token included. ended: whether there is one. steps: name -> one value per token."""

    ids: tuple[int, ...]
    ended: bool
    steps: Mapping[str, NDArray[Any]]


# ---- the loop -------------------------------------------------------------------------------------------------------
def write(
    drafter: Checkpoint,
    checker: Checkpoint,
    jobs: Sequence[Job],
    policy: Policy,
    *,
    ends: Sequence[int],
    max_new_tokens: int,
    seed: int = 0,
    block: int = 1,
    spell: Spelling | None = None,
) -> list[Written]:
    """Write one sequence per job, until an end token, max_new_tokens or the shorter of the two models' room.

    Written ids are the checker's where the vocabularies differ. block: tokens drafted ahead; any block writes the same.
    spell: a written token in the drafter's ids (None: the same id); a drafted token must be one id there.
    Raises ValueError for a context that is empty or leaves no room, for logits that are not numbers, and for a block above 1
    with a cache that cannot be rolled back.
    """
    if block < 1:
        raise ValueError(f"block is {block}: it must be at least 1")
    if not jobs:
        return []
    batch = _Batch(drafter, checker, jobs, policy, tuple(ends), max_new_tokens, seed, spell or (lambda token: (token,)))
    with evaluating(drafter.model, checker.model):
        while batch.rows:
            batch.advance(block)
    return batch.written()


class _Batch:
    """The sequences being written together: what was written of each, what each model has yet to read of it."""

    def __init__(
        self, drafter: Checkpoint, checker: Checkpoint, jobs: Sequence[Job], policy: Policy, ends: tuple[int, ...],
        max_new_tokens: int, seed: int, spell: Spelling,
    ) -> None:  # fmt: skip
        self.policy, self.ends, self.seed, self.spell = policy, torch.tensor(ends, dtype=torch.long), seed, spell
        self.readers = (Reader(drafter), Reader(checker))
        self.contexts = (drafter.context_length, checker.context_length)
        self.rows = list(range(len(jobs)))  # the job of each row; finished jobs leave
        self.document_J = np.array([job.document for job in jobs], dtype=np.int64)
        self.length_J = np.zeros(len(jobs), dtype=np.int64)
        self.switched_J = np.zeros(len(jobs), dtype=np.int64)
        self.ended_J = np.zeros(len(jobs), dtype=bool)
        self.pending = [[list(job.drafter_context) for job in jobs], [list(job.checker_context) for job in jobs]]
        self.max_new_tokens = max_new_tokens
        self.last_J = np.zeros(len(jobs), dtype=np.int64)
        self.read_J = [np.zeros(len(jobs), dtype=np.int64) for _ in self.readers]
        self.records: list[tuple[NDArray[np.int64], dict[str, NDArray[Any]]]] = []
        for job, *contexts in zip(jobs, *self.pending, strict=True):
            for reader, context in zip(self.readers, contexts, strict=True):
                _check_context(reader.checkpoint, context, job.document)

    def room(self, job: int) -> int:
        """How many tokens may still be written to a job: at least 1 while it is a row."""
        left = self.max_new_tokens - int(self.length_J[job])
        for context, pending, read_J in zip(self.contexts, self.pending, self.read_J, strict=True):
            if context is not None:
                left = min(left, context - int(read_J[job]) - len(pending[job]))
        return left

    def advance(self, block: int) -> None:
        """Draft, check and decide one block of every row; take back what the decisions made void."""
        rows, (drafter, checker) = np.array(self.rows), self.readers
        alive = self.alive()
        K = 1 if block == 1 else min(block, min(self.room(job) for job in rows[alive]))
        drafted_BK, drafter_logits = self._draft(rows, K)
        ahead = drafted_BK[:, : K - 1].clamp(min=0).tolist()
        checker_logits_BKV = checker.read([self.pending[1][job] + more for job, more in zip(rows, ahead, strict=True)], keep=K)
        going, kept_B = alive.copy(), np.zeros(len(rows), dtype=np.int64)
        for k in range(K):
            at = np.flatnonzero(going)
            if not len(at):
                break
            whole = len(at) == len(rows)
            logits = (law if whole else law[torch.from_numpy(at).to(law.device)] for law in (drafter_logits[k], checker_logits_BKV[:, k]))
            token_B = self._decide(rows[at], Step(*logits, *self._keys(rows[at]), self.seed), drafted_BK[at, k])
            kept_B[at] += 1
            over_B = torch.isin(token_B, self.ends).numpy()
            self.ended_J[rows[at]] = over_B
            going[at] = (token_B == drafted_BK[at, k]).numpy() & ~over_B
        kept_B[~alive] = K
        self._settle(rows, K, kept_B)

    def alive(self) -> NDArray[np.bool_]:
        """Which rows are still being written: all, but where a cache's rows cannot be selected."""
        return np.array([not self.ended_J[job] and self.room(job) > 0 for job in self.rows])

    def _keys(self, jobs: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], Tensor]:
        return self.document_J[jobs], self.length_J[jobs], torch.from_numpy(self.switched_J[jobs])

    def _draft(self, rows: NDArray[np.int64], K: int) -> tuple[Tensor, list[Tensor]]:
        """K proposals of the drafter to each row [B, K], and its logits at each."""
        chunk, drafted, logits = [self.pending[0][job] for job in rows], [], []
        for k in range(K):
            logits_BV = self.readers[0].read(chunk)[:, -1]
            uniform_B = torch.from_numpy(uniforms(self.seed, self.document_J[rows], self.length_J[rows] + k, DRAW))
            drafted.append(self.policy.propose(logits_BV, uniform_B).cpu())
            logits.append(logits_BV)
            if k + 1 < K:
                chunk = [list(self.spell(token)) for token in drafted[-1].clamp(min=0).tolist()]
        return torch.stack(drafted, 1), logits

    def _decide(self, jobs: NDArray[np.int64], step: Step, drafted_B: Tensor) -> Tensor:
        """Ask the policy, write down its record; returns the tokens written [B]."""
        record = {name: column.cpu().numpy() for name, column in self.policy.decide(step, drafted_B).items()}
        self.records.append((jobs, record))
        self.last_J[jobs] = record["token"]
        self.length_J[jobs] += 1
        self.switched_J[jobs] += record["switched"]
        return torch.from_numpy(record["token"])

    def _settle(self, rows: NDArray[np.int64], K: int, kept_B: NDArray[np.int64]) -> None:
        """Roll both caches back to what is written but for the last token, which both have yet to read; drop finished rows."""
        for side, reader in enumerate(self.readers):
            reader.drop(torch.from_numpy(K - kept_B))
            for row, job in enumerate(rows):
                self.read_J[side][job] += len(self.pending[side][job]) + int(kept_B[row]) - 1
                token = 0 if self.ended_J[job] else int(self.last_J[job])  # an ended row's cache is read by nobody
                self.pending[side][job] = [token] if side or self.ended_J[job] else list(self.spell(token))
        alive = self.alive()
        if not alive.any():
            self.rows = []
        elif not alive.all() and all(reader.selects for reader in self.readers):
            self.rows = rows[alive].tolist()
            for reader in self.readers:
                reader.select(np.flatnonzero(alive).tolist())

    def written(self) -> list[Written]:
        """What was written to every job, in order."""
        jobs = np.concatenate([jobs for jobs, _ in self.records])
        order = np.argsort(jobs, kind="stable")
        cuts = np.cumsum(self.length_J)[:-1]
        names = self.records[0][1]
        columns = {name: np.split(np.concatenate([record[name] for _, record in self.records])[order], cuts) for name in names}
        return [
            Written(
                tuple(columns["token"][job].tolist()),
                bool(self.ended_J[job]),
                {name: parts[job] for name, parts in columns.items()},
            )
            for job in range(len(self.length_J))
        ]


def _check_context(checkpoint: Checkpoint, context: Sequence[int], document: int) -> None:
    if not context:
        raise ValueError(f"text {document} has an empty context for {checkpoint.name}: give a prompt of at least one token")
    limit = checkpoint.context_length
    if limit is not None and len(context) >= limit:
        raise ValueError(
            f"the prompt of text {document} has {len(context)} tokens and leaves no room in {checkpoint.name}, which reads at "
            f"most {limit}: shorten the prompt"
        )


# ---- crossing: the other model's draw where a rule says so ------------------------------------------------------------
@dataclass(frozen=True)
class Laws:
    """What a rule sees of B positions: p the primary model's law, q the intervening one's, at temperature 1, not truncated.

    logp_BV, logq_BV: valid until the next step; -inf may stand as a very low finite number. token_p_B, token_q_B: what each
    law would write, from one random number. uniform_B: a number of the rule's own. switched_B: switches so far.
    """

    logp_BV: Tensor
    logq_BV: Tensor
    js_nats_B: Tensor
    entropy_p_nats_B: Tensor
    entropy_q_nats_B: Tensor
    token_p_B: Tensor
    token_q_B: Tensor
    uniform_B: Tensor
    switched_B: Tensor


Rule = Callable[[Laws], Tensor]


def js_above(laws: Laws, epsilon: float) -> Tensor:
    """Switch where the two laws differ by more than epsilon nats (JS): below 0 always, from ln 2 on never. Symmetric in p, q."""
    return laws.js_nats_B > epsilon


def at_random(laws: Laws, rate: float) -> Tensor:
    """Switch at random positions: the control that asks whether positions matter at all."""
    return laws.uniform_B < rate


def entropy_above(laws: Laws, cutoff_nats: float, *, of_primary: bool = True) -> Tensor:
    """Switch where one model is unsure: the control that asks whether uncertainty of the base alone finds the positions."""
    return (laws.entropy_p_nats_B if of_primary else laws.entropy_q_nats_B) > cutoff_nats


def less_likely(laws: Laws, tau_nats: float) -> Tensor:
    """Switch where the intervening model finds the primary's token less likely than the primary does, by more than −tau nats.

    log q(a) − log p(a) < tau for the drawn token a. Source: arXiv 2603.22117 (the signed rule).
    """
    return _at_token(laws.logq_BV, laws.token_p_B) - _at_token(laws.logp_BV, laws.token_p_B) < tau_nats


def within_budget(laws: Laws, rule: Rule, budget: int) -> Tensor:
    """Another rule, until it has switched `budget` tokens of the text."""
    return rule(laws) & (laws.switched_B.to(laws.js_nats_B.device) < budget)


def crossing(rule: Rule, sampling: Sampling) -> Policy:
    """Write the drafter's (primary's) draw, and the checker's (intervening model's) where the rule says so.

    Temperature and top-p shape both draws; the rule sees both laws at temperature 1. Records per token: token, switched,
    primary and other (both draws; a switch is effective where they differ), js_nats, entropy_primary_nats,
    entropy_other_nats, logp_primary_nats, logp_other_nats (of the written token). Laws are over the ids common to both.
    Source: arXiv 2603.22446, section 3.3.
    """
    workspace: Workspace | None = None

    def propose(logits_BV: Tensor, uniform_B: Tensor) -> Tensor:
        return choose(logits_BV.float(), uniform_B, sampling.temperature, sampling.top_p)

    def decide(step: Step, drafted_B: Tensor) -> dict[str, Tensor]:
        sizes = (step.drafter_logits_BV.shape[-1], step.checker_logits_BV.shape[-1])
        logits = [law[:, : min(sizes)] for law in (step.drafter_logits_BV, step.checker_logits_BV)]
        rows, device = len(drafted_B), logits[0].device
        nonlocal workspace
        if workspace is None or workspace.rows < rows:
            workspace = Workspace(rows, min(sizes), device)
        block = workspace.laws(*logits)
        _check_numbers(block, step, sizes)
        values = workspace.divergences(block)
        token_p_B = drafted_B.to(device)
        token_q_B = choose(logits[1].float(), step.uniform(DRAW), sampling.temperature, sampling.top_p)
        laws = Laws(
            block.logp_RV, block.logq_RV, values["js_nats"], values["entropy_p_nats"], values["entropy_q_nats"],
            token_p_B, token_q_B, step.uniform(CONTROL).to(device), step.switched_B,
        )  # fmt: skip
        switched_B = rule(laws)
        token_B = torch.where(switched_B, token_q_B, token_p_B)
        return {
            "token": token_B,
            "switched": switched_B,
            "primary": token_p_B,
            "other": token_q_B,
            "js_nats": laws.js_nats_B,
            "entropy_primary_nats": laws.entropy_p_nats_B,
            "entropy_other_nats": laws.entropy_q_nats_B,
            "logp_primary_nats": _at_token(laws.logp_BV, token_B),
            "logp_other_nats": _at_token(laws.logq_BV, token_B),
        }

    return Policy(propose, decide)


def _at_token(logp_BV: Tensor, token_B: Tensor) -> Tensor:
    logp_B = logp_BV.gather(-1, token_B[:, None])[:, 0]
    return torch.where(logp_B <= LOWEST, -torch.inf, logp_B)


def _check_numbers(block: Block, step: Step, sizes: tuple[int, int]) -> None:
    sides = ((block.lse_p_R, step.drafter_logits_BV), (block.lse_q_R, step.checker_logits_BV))
    for side, (lse_B, logits_BV) in zip(("primary", "intervening"), sides, strict=True):
        if not bool(lse_B.isfinite().all()):
            row = int((~lse_B.isfinite()).nonzero()[0])
            raise ValueError(
                f"the {side} model gives logits that are not numbers (NaN or infinite) in text {int(step.document_B[row])}, "
                f"answer position {int(step.position_B[row])}: check the weights, or load with --dtype float32"
            )
        if logits_BV.shape[-1] > min(sizes):
            divergence.assert_massless_tail(logits_BV.float().logsumexp(-1), lse_B, min(sizes))


# ---- vetoing: the drafter's draw unless the checker finds it too improbable -------------------------------------------
@dataclass(frozen=True)
class Veto:
    """How a student (checker) judges a teacher's (drafter's) proposals; the defaults are those of arXiv 2509.22230.

    p_min: a proposal below this probability under the student is vetoed. trials: proposals per token before the student
    speaks itself. top_k, top_p, temperature: of both models' draws; a proposal must also lie in the student's top_k.
    student_temperature: of the probability that is tested (1: what supervised tuning sees). floor_fallback: the student's
    own tokens must reach p_min too (its most probable one where none does).
    """

    p_min: float = 0.01
    trials: int = 5
    top_k: int = 20
    top_p: float = 0.95
    temperature: float = 0.7
    student_temperature: float = 1.0
    floor_fallback: bool = False

    def __post_init__(self) -> None:
        if self.p_min < 0 or self.trials < 1 or self.top_k < 1:
            raise ValueError(f"p_min {self.p_min}, trials {self.trials}, top_k {self.top_k}: need p_min >= 0 and the others >= 1")
        if self.temperature < 0 or not self.student_temperature > 0 or not 0 < self.top_p <= 1:
            raise ValueError(
                f"temperature {self.temperature}, student_temperature {self.student_temperature}, top_p {self.top_p}: need "
                f"temperature >= 0, student_temperature > 0 and 0 < top_p <= 1"
            )


@dataclass(frozen=True)
class Pool:
    """A truncated law on at most C listed tokens a row. ids_BC: rising, -1 for none; p_BC: sums to 1, or 0 for an empty pool.

    lost_B: mass that had no id in the other vocabulary and was left out.
    """

    ids_BC: Tensor
    p_BC: Tensor
    lost_B: Tensor

    def draw(self, uniform_B: Tensor) -> Tensor:
        """The drawn token of every row by inverse CDF in id order, -1 for an empty pool."""
        cumulative_BC = self.p_BC.cumsum(-1)
        target_B1 = uniform_B.to(cumulative_BC)[:, None] * cumulative_BC[:, -1:]
        drawn_B1 = torch.searchsorted(cumulative_BC, target_B1, right=True)
        last_B1 = (self.p_BC > 0).long().mul(torch.arange(self.p_BC.shape[-1], device=self.p_BC.device)).amax(-1, keepdim=True)
        token_B = self.ids_BC.gather(-1, torch.minimum(drawn_B1, last_B1))[:, 0]
        return torch.where(cumulative_BC[:, -1] > 0, token_B, -1)

    def p_of(self, token_B: Tensor) -> Tensor:
        """The probability of one token of every row, 0 where the pool has it not."""
        return torch.where(self.ids_BC == token_B[:, None], self.p_BC, 0).sum(-1)


def pool(
    logits_BV: Tensor, *, temperature: float, top_p: float, top_k: int, allowed_BV: Tensor | None = None, own_of_V: Tensor | None = None
) -> Pool:
    """Temperature, then top-p, then top-k; then only ids with a place in the writer's vocabulary, renormalised. float64.

    allowed_BV: which ids may be drawn. own_of_V: id -> the writer's id, -1 where it has none (None: the same ids).
    """
    if allowed_BV is not None:
        logits_BV = torch.where(allowed_BV, logits_BV, -torch.inf)
    if temperature == 0:
        value_BC, ids_BC = torch.zeros_like(logits_BV[:, :1]).double(), logits_BV.argmax(-1, keepdim=True)
    else:
        scaled_BV = logits_BV.double() / temperature
        top_BC, ids_BC = divergence.top_k(scaled_BV, min(top_k, logits_BV.shape[-1]))
        value_BC = top_BC - scaled_BV.logsumexp(-1, keepdim=True)
    p_BC = value_BC.exp()
    p_BC = torch.where(p_BC.cumsum(-1) - p_BC < top_p, p_BC, 0)
    p_BC = p_BC / p_BC.sum(-1, keepdim=True)
    lost_B = torch.zeros_like(p_BC[:, 0])
    if own_of_V is not None:
        own_BC = own_of_V.to(ids_BC.device)[ids_BC]
        lost_B = torch.where(own_BC < 0, p_BC, 0).sum(-1)
        p_BC, ids_BC = torch.where(own_BC < 0, 0, p_BC), own_BC
        total_B1 = p_BC.sum(-1, keepdim=True)
        p_BC = torch.where(total_B1 > 0, p_BC / total_B1.clamp(min=torch.finfo(p_BC.dtype).tiny), 0)
    order_BC = ids_BC.argsort(-1)
    return Pool(ids_BC.gather(-1, order_BC), p_BC.gather(-1, order_BC), lost_B)


def acceptable(logits_BV: Tensor, veto: Veto) -> Tensor:
    """Which proposals the student takes [B, V]: probability at least p_min (not truncated) and within its top_k."""
    logp_BV = (logits_BV.float() / veto.student_temperature).log_softmax(-1)
    kth_B1 = divergence.top_k(logits_BV.float(), min(veto.top_k, logits_BV.shape[-1]))[0][:, -1:]
    return (logp_BV.exp() >= veto.p_min) & (logits_BV.float() >= kth_B1)


def one_step_law(q_BV: Tensor, accepted_BV: Tensor, fallback_BV: Tensor, trials: int) -> Tensor:
    """The law of the written token, without the loop: (1 − (1−a)^R)·q(· | accepted) + (1−a)^R·fallback, a = q(accepted).

    q_BV, fallback_BV: probabilities; accepted_BV: bool; trials: R. Source: arXiv 2509.22230 (its loop, summed).
    """
    inside_BV = torch.where(accepted_BV, q_BV, 0)
    a_B1 = inside_BV.sum(-1, keepdim=True)
    vetoed_B1 = (1 - a_B1).clamp(min=0) ** trials
    given_BV = torch.where(a_B1 > 0, inside_BV / a_B1.clamp(min=torch.finfo(q_BV.dtype).tiny), 0)
    return (1 - vetoed_B1) * given_BV + vetoed_B1 * fallback_BV


def vetoing(
    veto: Veto, *, own_of_V: Tensor | None = None, readable_V: Tensor | None = None
) -> Policy:
    """Write the teacher's draw that the student accepts, of up to `trials`, else the student's own draw.

    own_of_V: teacher's id -> student's id, -1 where it has none. readable_V: student's ids that the teacher can read.
    Records per token: token, switched (the student spoke), trial (0-based; `trials` where it spoke), p_teacher (of the token
    in the pool), logp_student_nats (of the token, temperature 1), fallback_p (chance that all trials fail), top_teacher and
    top_student (their most probable ids; -1 where the student has no such token), lost (teacher's mass without an id).
    Source: arXiv 2509.22230. p_min 0 with top_k of the whole vocabulary is the teacher alone, p_min above 1 the student.
    """
    truncated = {"temperature": veto.temperature, "top_p": veto.top_p, "top_k": veto.top_k}

    def propose(logits_BV: Tensor, uniform_B: Tensor) -> Tensor:
        return pool(logits_BV, **truncated, own_of_V=own_of_V).draw(uniform_B)

    def decide(step: Step, drafted_B: Tensor) -> dict[str, Tensor]:
        student_BV = step.checker_logits_BV.float()
        _check_both(step)
        offered, accepted_BV = pool(step.drafter_logits_BV, **truncated, own_of_V=own_of_V), acceptable(student_BV, veto)
        token_B, trial_B = torch.full_like(drafted_B, -1), torch.full_like(drafted_B, veto.trials)
        for trial in range(veto.trials):
            drawn_B = drafted_B if trial == 0 else offered.draw(step.uniform(CONTROL + trial)).cpu()
            taken_B = (token_B < 0) & (drawn_B >= 0) & _at(accepted_BV, drawn_B)
            token_B, trial_B = torch.where(taken_B, drawn_B, token_B), torch.where(taken_B, trial, trial_B)
            if bool((token_B >= 0).all()):
                break
        allowed_BV = torch.ones_like(accepted_BV) if readable_V is None else readable_V.to(student_BV.device).expand_as(student_BV)
        own = pool(student_BV, **truncated, allowed_BV=_fallback_ids(student_BV, allowed_BV, veto))
        spoke_B = token_B < 0
        token_B = torch.where(spoke_B, own.draw(step.uniform(CONTROL)).cpu(), token_B)
        logp_BV, at = student_BV.log_softmax(-1), token_B[:, None].to(student_BV.device)
        a_B = (offered.p_BC * accepted_BV.gather(-1, offered.ids_BC.clamp(min=0))).sum(-1).clamp(max=1)
        top_B = step.drafter_logits_BV.argmax(-1)
        return {
            "token": token_B,
            "switched": spoke_B,
            "trial": trial_B,
            "p_teacher": offered.p_of(at[:, 0]).float(),
            "logp_student_nats": logp_BV.gather(-1, at)[:, 0],
            "fallback_p": ((1 - a_B) ** veto.trials).float(),
            "top_teacher": top_B if own_of_V is None else own_of_V.to(top_B.device)[top_B],
            "top_student": student_BV.argmax(-1),
            "lost": offered.lost_B.float(),
        }

    return Policy(propose, decide)


def _fallback_ids(student_BV: Tensor, allowed_BV: Tensor, veto: Veto) -> Tensor:
    """Which ids the student's own draw may give: all that are allowed, or those of them that reach p_min, or the best one."""
    if not veto.floor_fallback:
        return allowed_BV
    possible_BV = torch.where(allowed_BV, student_BV, -torch.inf)
    likely_BV = allowed_BV & ((student_BV / veto.student_temperature).softmax(-1) >= veto.p_min)
    best_BV = torch.zeros_like(allowed_BV).scatter(-1, possible_BV.argmax(-1, keepdim=True), True)
    return torch.where(likely_BV.any(-1, keepdim=True), likely_BV, best_BV)


def _at(flags_BV: Tensor, token_B: Tensor) -> Tensor:
    return flags_BV.gather(-1, token_B.clamp(min=0)[:, None].to(flags_BV.device))[:, 0].cpu()


def _check_both(step: Step) -> None:
    for side, logits_BV in (("teacher", step.drafter_logits_BV), ("student", step.checker_logits_BV)):
        finite_B = logits_BV.float().logsumexp(-1).isfinite()
        if not bool(finite_B.all()):
            row = int((~finite_B).nonzero()[0])
            raise ValueError(
                f"the {side} gives logits that are not numbers (NaN or infinite) in text {int(step.document_B[row])}, answer "
                f"position {int(step.position_B[row])}: check the weights, or load with --dtype float32"
            )
