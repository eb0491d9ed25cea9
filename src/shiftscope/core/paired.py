"""The hot loop: two models, two contexts, one answer → per-position statistics, in one pass for any set of measures.

The same answer ids are teacher-forced through both models, each after its own context (a chat template and a bare
question, say, of unequal length); rows are aligned on the answer. The vocabulary head runs over chunks of positions into
two reused buffers and every statistic over blocks of rows, so memory above the models does not grow with the number of
positions. Source: arXiv 2312.01552 (two contexts, one answer), arXiv 2603.22446 (statistics).
"""

# B texts of a batch, N answer positions of a batch, C rows of a head chunk, R rows of a statistics block, d width, V vocabulary

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import torch
from torch import Tensor

from shiftscope.core import trace
from shiftscope.core.checkpoints import Checkpoint
from shiftscope.core.divergence import assert_massless_tail
from shiftscope.core.head import evaluating
from shiftscope.core.laws import Block, Workspace
from shiftscope.core.parts import Parts

CHUNK_ROWS = 128  # rows of one head product: fewer re-read the unembedding from memory, more only cost memory


@dataclass(frozen=True)
class PairedText:
    """One answer under two contexts, all in token ids.

    text: its number in the corpus. answer: empty where another shard has it. known_length: what batches are ordered by,
    -1 for all tokens; for answers that are still to be sampled, what is known before (so that every shard orders alike).
    """

    text: int
    base_context: tuple[int, ...]
    tuned_context: tuple[int, ...]
    answer: tuple[int, ...]
    known_length: int = -1

    @property
    def context_tokens(self) -> int:
        """Tokens of the longer context."""
        return max(len(self.base_context), len(self.tuned_context))

    @property
    def order(self) -> tuple[int, int]:
        """Sort key of batches: by length, then by number."""
        length = self.context_tokens + len(self.answer) if self.known_length < 0 else self.known_length
        return length, self.text


@dataclass(frozen=True)
class Side:
    """One model's view of a batch of answers.

    rows_ND: final hidden states that predict each answer token. states: [n_blocks + 1] of [N, d] at the answer tokens
    themselves, before the final norm (empty unless the measure asked).
    """

    checkpoint: Checkpoint
    rows_ND: Tensor
    states: Sequence[Tensor] = ()


@dataclass(frozen=True)
class PairedBatch:
    """One batch of answers seen by both models: N positions in all, in the order of its items.

    text_N: number of the text; position_N: 0-based place in the answer; token_N: the answer's token ids.
    """

    items: Sequence[PairedText]
    text_N: Tensor
    position_N: Tensor
    token_N: Tensor
    base: Side
    tuned: Side


@dataclass
class Scorer:
    """Runs both models over batches and hands out their laws block by block.

    compiled: statistics in compiled code (see `core/laws.py`). Buffers are made once and reused for the whole run.
    """

    base: Checkpoint
    tuned: Checkpoint
    compiled: bool = False
    _workspace: Workspace | None = field(default=None, repr=False)
    _chunks: list[Tensor] = field(default_factory=list, repr=False)

    def batch(self, items: Sequence[PairedText], *, states: bool = False) -> PairedBatch:
        """Run both bodies over one batch of texts (right-padded). states: keep every block's state at the answers."""
        with evaluating(self.base.model, self.tuned.model):
            base = _side(self.base, [item.base_context for item in items], items, states)
            tuned = _side(self.tuned, [item.tuned_context for item in items], items, states)
        lengths = torch.tensor([len(item.answer) for item in items])
        return PairedBatch(
            items,
            torch.tensor([item.text for item in items]).repeat_interleave(lengths),
            torch.cat([torch.arange(len(item.answer)) for item in items]),
            torch.cat([torch.tensor(item.answer) for item in items]),
            base,
            tuned,
        )

    def blocks(self, batch: PairedBatch) -> Iterator[tuple[slice, Block, Workspace]]:
        """Walk over the positions of a batch: (which rows, both laws, the workspace for `divergences`).

        Laws are over the ids common to both models. Raises ValueError for NaN logits, naming text and position, and where
        ids that only one model has hold mass.
        """
        sizes = (self.base.vocabulary_size, self.tuned.vocabulary_size)
        common = min(sizes)
        device = batch.base.rows_ND.device
        if self._workspace is None:
            self._workspace = Workspace(block_rows(common, device), common, device, compiled=self.compiled)
            dtypes = (batch.base.rows_ND.dtype, batch.tuned.rows_ND.dtype)
            self._chunks = [
                torch.empty(CHUNK_ROWS, V, dtype=dt, device=device) for V, dt in zip(sizes, dtypes, strict=True)
            ]
        workspace, N = self._workspace, len(batch.token_N)
        with torch.no_grad():
            for start in range(0, N, CHUNK_ROWS):
                stop = min(start + CHUNK_ROWS, N)
                logits = [
                    side.checkpoint.head.logits(side.rows_ND[start:stop], out=buffer[: stop - start])
                    for side, buffer in zip((batch.base, batch.tuned), self._chunks, strict=True)
                ]
                for row in range(0, stop - start, workspace.rows):
                    rows = slice(row, min(row + workspace.rows, stop - start))
                    where = slice(start + rows.start, start + rows.stop)
                    base_RV, tuned_RV = (law[rows, :common] for law in logits)
                    block = workspace.laws(base_RV, tuned_RV, batch.token_N[where])
                    self._check(block, batch, where, [law[rows] for law in logits], common)
                    yield where, block, workspace

    def _check(self, block: Block, batch: PairedBatch, rows: slice, logits: list[Tensor], common: int) -> None:
        for side, lse, own in zip((batch.base, batch.tuned), (block.lse_p_R, block.lse_q_R), logits, strict=True):
            if not lse.isfinite().all():
                first = rows.start + int((~lse.isfinite()).nonzero()[0])
                raise ValueError(
                    f"{side.checkpoint.name} gives logits that are not numbers (NaN or infinite) in text "
                    f"{int(batch.text_N[first])}, answer position {int(batch.position_N[first])}: nothing can be compared there; "
                    f"check the weights, or load with --dtype float32"
                )
            if own.shape[-1] > common:
                assert_massless_tail(own.float().logsumexp(-1), lse, common)


def block_rows(vocabulary: int, device: torch.device) -> int:
    """Rows of a statistics block: on a CPU so many that calls cost little, on an accelerator what fills it."""
    return min(CHUNK_ROWS, max(1, (1 << 21 if device.type == "cpu" else 1 << 25) // vocabulary))


def _side(checkpoint: Checkpoint, contexts: list[tuple[int, ...]], items: Sequence[PairedText], states: bool) -> Side:
    head = checkpoint.head
    sequences = [(*context, *item.answer) for context, item in zip(contexts, items, strict=True)]
    longest = max(map(len, sequences))
    ids_BT = torch.zeros(len(sequences), longest, dtype=torch.long)
    mask_BT = torch.zeros_like(ids_BT)
    for row, sequence in enumerate(sequences):
        ids_BT[row, : len(sequence)] = torch.tensor(sequence)
        mask_BT[row, : len(sequence)] = 1
    batch_N = torch.cat([torch.full((len(item.answer),), row) for row, item in enumerate(items)])
    token_N = torch.cat(
        [
            torch.arange(len(context), len(context) + len(item.answer))
            for context, item in zip(contexts, items, strict=True)
        ]
    )
    ids_BT, mask_BT = ids_BT.to(head.device), mask_BT.to(head.device)
    if states:
        with trace.states(head.blocks) as collected:
            hidden_BTD = head.hidden(ids_BT, mask_BT)
        kept = [state[batch_N, token_N] for state in collected]
    else:
        hidden_BTD, kept = head.hidden(ids_BT, mask_BT), []
    return Side(checkpoint, hidden_BTD[batch_N, token_N - 1], kept)


OnBlock = Callable[[slice, Block, Workspace], None]
Measure = Callable[[PairedBatch], tuple[OnBlock | None, Callable[[], pa.Table]]]
"""What is measured on every batch: called with the batch, it returns what to do with each block of laws (None: nothing)
and what makes the rows once the batch is through."""


def run(
    scorer: Scorer,
    texts: Sequence[PairedText],
    measures: dict[str, Measure],
    *,
    states: bool = False,
    batch_size: int = 32,
    parts: Parts | None = None,
    advance: Callable[[int, int], None] | None = None,
) -> dict[str, pa.Table]:
    """Every measure over every text in one pass of the two models; one part per batch, batches by length.

    measures: name → Measure. states: whether a measure reads block states. Returns name → rows of all batches.
    Raises ValueError where a text does not fit a model's context, before anything is computed.
    """
    parts = parts or Parts()
    groups = batches(texts, batch_size)
    mine = [item for index in parts.mine(len(groups)) for item in groups[index]]
    check_lengths(scorer.base, scorer.tuned, mine)

    def measure(items: Sequence[PairedText]) -> dict[str, pa.Table]:
        batch = scorer.batch(items, states=states)
        started = {name: function(batch) for name, function in measures.items()}
        consumers = [on_block for on_block, _ in started.values() if on_block]
        for rows, block, workspace in scorer.blocks(batch) if consumers else ():
            for on_block in consumers:
                on_block(rows, block, workspace)
        return {name: finish() for name, (_, finish) in started.items()}

    return parts.map("pass", groups, measure, advance=advance, final=True)


def batches(texts: Sequence[PairedText], batch_size: int) -> list[list[PairedText]]:
    """Texts in batches of like length, in the same way whichever answers are already known."""
    ordered = sorted(texts, key=lambda item: item.order)
    return [ordered[start : start + batch_size] for start in range(0, len(ordered), batch_size)]


def check_lengths(base: Checkpoint, tuned: Checkpoint, texts: Sequence[PairedText]) -> None:
    """Raises ValueError for the first text whose context or answer is empty, or that is longer than a model can read."""
    for item in texts:
        if not item.answer:
            raise ValueError(f"text {item.text} has an empty answer: there is no position to compare")
        for checkpoint, context in ((base, item.base_context), (tuned, item.tuned_context)):
            if not context:
                name = checkpoint.name
                raise ValueError(
                    f"text {item.text} has an empty context for {name}: give a prompt of at least one token"
                )
            length, limit = len(context) + len(item.answer), checkpoint.context_length
            if limit is not None and length > limit:
                raise ValueError(
                    f"text {item.text} has {len(context)} context and {len(item.answer)} answer tokens, {length} in all, but "
                    f"{checkpoint.name} reads at most {limit}: shorten it or use --max-new-tokens"
                )


def noise_floor(scorer: Scorer, texts: Sequence[PairedText]) -> float:
    """The largest JS (nats) of each model against itself in two batch layouts: shifts below it are rounding.

    The texts are run one by one and as one padded batch; the law of every position is compared between the two layouts.
    """
    together, alone = scorer.batch(texts), [scorer.batch([item]) for item in texts]
    worst = 0.0
    for side in ("base", "tuned"):
        padded: Side = getattr(together, side)
        rows_ND = torch.cat([getattr(batch, side).rows_ND for batch in alone])
        both = (padded, Side(padded.checkpoint, rows_ND))
        same = Scorer(padded.checkpoint, padded.checkpoint)
        for _, block, workspace in same.blocks(
            PairedBatch(together.items, together.text_N, together.position_N, together.token_N, *both)
        ):
            worst = max(worst, float(workspace.divergences(block)["js_nats"].max()))
    return worst
