"""Two causal models write one sequence under a per-step decision rule, each with its own KV cache, one record per step.

The drafter proposes a token; the checker's law of the same position is worked out; a policy decides from both laws
which token is written (`core/crossing.py`, `core/vetoing.py`). Only what is written stays in either cache. In block
mode the drafter runs K tokens ahead and the checker reads them in one forward; from the first token that a decision
changes on, the drafts are void and are taken back out of both caches. Every random number is keyed by (seed, document,
position, stream), so blocks, batches and the order of texts cannot change what is written.

Batches of unequal progress: every row of a cache ends in the same slot and is padded on the left; a row that takes more
back than its neighbours is shifted right, so caches stay gap-free and any attention kernel reads them. That needs plain
(not sliding, not recurrent) cache layers; with any other cache block 1 works, where nothing is ever taken back.
"""

# B rows still being written, K tokens of a block, V vocabulary

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shiftscope.core.checkpoints import Checkpoint
from shiftscope.core.head import evaluating
from shiftscope.core.randomness import uniforms

DRAW, CONTROL = 0, 1  # streams of random numbers: the draw itself, a rule's own; a veto's further trials come after
PLAIN, SLIDING = "DynamicLayer", "DynamicSlidingWindowLayer"  # cache layers of transformers, by exact class
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
        kinds = sorted({type(layer).__name__ for layer in self.cache.layers} - {PLAIN})
        if kinds:
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
        return all(type(layer).__name__ in (PLAIN, SLIDING) for layer in self.cache.layers)

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

    def check(self, who: str, lse_B: Tensor) -> None:
        """Raise ValueError naming document and position where a law's log-sum-exp is not a finite number."""
        finite_B = lse_B.isfinite()
        if not bool(finite_B.all()):
            row = int((~finite_B).nonzero()[0])
            raise ValueError(
                f"the {who} model gives logits that are not numbers (NaN or infinite) in document "
                f"{int(self.document_B[row])}, answer position {int(self.position_B[row])}: check the weights, or load "
                f"with --dtype float32"
            )


@dataclass(frozen=True)
class Policy:
    """propose: (drafter's logits, uniform) -> drafted tokens [B], -1 where there is none to propose. decide: (step,
    drafted tokens) -> the record of each row, with `token` (what is written) and `switched` among its columns.
    """

    propose: Callable[[Tensor, Tensor], Tensor]
    decide: Callable[[Step, Tensor], dict[str, Tensor]]


@dataclass(frozen=True)
class Job:
    """One sequence to be written. document: keys its random numbers; contexts: in each model's own ids."""

    document: int
    drafter_context: tuple[int, ...]
    checker_context: tuple[int, ...]


@dataclass(frozen=True)
class Written:
    """ids: what was written, the end token included if it `ended`. steps: name -> one value per token."""

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

    Written ids are the checker's where the vocabularies differ. block: tokens drafted ahead; any block writes the same
    in float32 (a lower precision rounds a forward of several tokens differently, which may turn a near tie).
    spell: a written token in the drafter's ids (None: the same id); a drafted token must be one id there.
    Raises ValueError for a context that is empty or leaves no room, for logits that are not numbers, and for a block
    above 1 with a cache that cannot be rolled back.
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
        rows, checker = np.array(self.rows), self.readers[1]
        alive = self.alive()
        K = 1 if block == 1 else min(block, min(self.room(job) for job in rows[alive]))
        drafted_BK, drafter_logits = self._draft(rows, K)
        ahead = drafted_BK[:, : K - 1].clamp(min=0).tolist()
        checker_logits_BKV = checker.read(
            [self.pending[1][job] + more for job, more in zip(rows, ahead, strict=True)], keep=K
        )
        going, kept_B = alive.copy(), np.zeros(len(rows), dtype=np.int64)
        for k in range(K):
            at = np.flatnonzero(going)
            if not len(at):
                break
            laws = [drafter_logits[k], checker_logits_BKV[:, k]]
            if len(at) < len(rows):
                laws = [law[torch.from_numpy(at).to(law.device)] for law in laws]
            step = Step(laws[0], laws[1], *self._keys(rows[at]), self.seed)
            token_B = self._decide(rows[at], step, drafted_BK[at, k])
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
                chunk = [list(self.spell(token)) if token >= 0 else [0] for token in drafted[-1].tolist()]
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
        """Roll both caches back to what is written but its last token, still to be read; drop finished rows."""
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
        columns = {
            name: np.split(np.concatenate([record[name] for _, record in self.records])[order], cuts) for name in names
        }
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
        raise ValueError(
            f"document {document} has an empty context for {checkpoint.name}: give a prompt of at least one token"
        )
    limit = checkpoint.context_length
    if limit is not None and len(context) >= limit:
        raise ValueError(
            f"the prompt of document {document} has {len(context)} tokens and leaves no room in {checkpoint.name}, which "
            f"reads at most {limit}: shorten the prompt"
        )
