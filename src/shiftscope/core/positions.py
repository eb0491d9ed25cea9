"""The rows of `compare tokens`: every number of one answer position, from the two laws that predict it.

Source: arXiv 2603.22446 (divergences, mass flow by base rank, section 3.2); arXiv 2312.01552 (rank classes).
Deviation: tokens are matched by id, not by decoded string, and ranks are counted over the whole vocabulary.
"""

# N positions of a batch, R rows of a block, V vocabulary, K listed tokens

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from shiftscope.core import corpus, divergence, paired
from shiftscope.core.checkpoints import Checkpoint
from shiftscope.core.corpus import Text
from shiftscope.core.laws import Block, Workspace

CLASSES = ("unshifted", "marginal", "shifted")
FLOW_BUCKETS = {"flow_1": (0, 1), "flow_2_3": (1, 3), "flow_4_10": (3, 10), "flow_11_100": (10, 100)}
FLOW_DEPTH = 100


@dataclass(frozen=True)
class Listing:
    """What is kept of each position. top_k: tokens of both top lists. compat_top_p: also JS of laws truncated so."""

    top_k: int = 10
    compat_top_p: float | None = None

    def __post_init__(self) -> None:
        if self.top_k < 1:
            raise ValueError(f"top_k is {self.top_k}: it must be at least 1")
        if self.compat_top_p is not None and not 0 < self.compat_top_p <= 1:
            raise ValueError(f"compat_top_p is {self.compat_top_p}: it must lie in (0, 1]")


def measure(listing: Listing = Listing()) -> paired.Measure:
    """The rows of one batch: the columns of the table of `compare tokens` but for the token's text."""

    def start(batch: paired.PairedBatch) -> tuple[paired.OnBlock, Callable[[], pa.Table]]:
        blocks: list[dict[str, Tensor]] = []

        def on_block(rows: slice, block: Block, workspace: Workspace) -> None:
            emitted_R = batch.token_N[rows].to(block.logits_p_RV.device)
            blocks.append(
                {name: value.cpu() for name, value in position_statistics(block, workspace, emitted_R, listing).items()}
            )

        def finish() -> pa.Table:
            columns = {name: torch.cat([block[name] for block in blocks]) for name in blocks[0]}
            where = {"text": batch.text_N.int(), "position": batch.position_N.int(), "token_id": batch.token_N.int()}
            return pa.table({name: _column(value) for name, value in {**where, **columns}.items()})

        return on_block, finish

    return start


def position_statistics(block: Block, workspace: Workspace, emitted_R: Tensor, listing: Listing) -> dict[str, Tensor]:
    """Every number of a position but where it stands: divergences, ranks, top lists, mass flow; p base, q tuned."""
    values = workspace.divergences(block)
    vocabulary = block.logits_p_RV.shape[-1]
    K, depth = min(listing.top_k, vocabulary), min(max(FLOW_DEPTH, listing.top_k), vocabulary)
    deep_values, deep_ids = block.top_p(depth)
    tuned_values, tuned_ids = block.top_q(K)
    deep_tuned, top1_tuned = block.logq_at(deep_ids), tuned_ids[:, 0]
    logp_asked = block.logp_at(torch.cat([emitted_R[:, None], tuned_ids], 1))
    logq_asked, deep_logits = block.logq_at(emitted_R[:, None]), block.logits_p_RV.gather(-1, deep_ids)
    emitted_ranks = block.rank_2R
    if emitted_ranks is None:
        tuned_logits = block.logits_q_RV.gather(-1, tuned_ids)
        emitted_ranks = torch.stack(
            [
                listed_rank(block.logits_p_RV, deep_logits, emitted_R),
                listed_rank(block.logits_q_RV, tuned_logits, emitted_R),
            ]
        )
    found = {
        "js_nats": values["js_nats"],
        "kl_base_tuned_nats": values["kl_pq_nats"],
        "kl_tuned_base_nats": values["kl_qp_nats"],
        "tv": values["tv"],
        "entropy_base_nats": values["entropy_p_nats"],
        "entropy_tuned_nats": values["entropy_q_nats"],
        "logp_base_nats": logp_asked[:, 0],
        "logp_tuned_nats": logq_asked[:, 0],
        "rank_base": emitted_ranks[0].int(),
        "rank_tuned": emitted_ranks[1].int(),
        "top1_base": deep_ids[:, 0].int(),
        "top1_tuned": top1_tuned.int(),
        "rank_base_of_tuned_top1": listed_rank(block.logits_p_RV, deep_logits, top1_tuned),
        "p_base_of_tuned_top1": logp_asked[:, 1].exp(),
        "top_base_ids": deep_ids[:, :K].int(),
        "top_base_logp": deep_values[:, :K],
        "top_base_logp_tuned": deep_tuned[:, :K],
        "top_tuned_ids": tuned_ids.int(),
        "top_tuned_logp": tuned_values,
        "top_tuned_logp_base": logp_asked[:, 1:],
    }
    gain = deep_tuned.exp() - deep_values.exp()
    for name, (start, stop) in FLOW_BUCKETS.items():
        found[name] = gain[:, start:stop].sum(-1)
    found["flow_over_100"] = -gain.sum(-1)
    if listing.compat_top_p is not None:
        laws = (divergence.truncate_top_p(law, listing.compat_top_p) for law in (block.logp_RV, block.logq_RV))
        found["js_top_p_nats"] = divergence.js_nats(*laws)
    return found


def listed_rank(logits_RV: Tensor, top_values_RK: Tensor, ids_R: Tensor) -> Tensor:
    """`divergence.rank`, read off the top list where the token lies in it; int32. Only other rows are counted."""
    value_R1 = logits_RV.gather(-1, ids_R[:, None])
    rank_R = (top_values_RK > value_R1).sum(-1)
    for row in (rank_R == top_values_RK.shape[-1]).nonzero()[:, 0].tolist():
        rank_R[row] = divergence.rank(logits_RV[row], ids_R[row])
    return rank_R.int()


def _column(value: Tensor) -> pa.Array:
    if value.ndim == 1:
        return pa.array(value.numpy())
    return pa.FixedSizeListArray.from_arrays(pa.array(value.reshape(-1).numpy()), value.shape[1])


def described(rows: pa.Table, texts: Sequence[Text], checkpoint: Checkpoint) -> pa.Table:
    """The rows in order, with rank class and token text, and with prompts and the text of every id in the metadata."""
    rows = rows.sort_by([("text", "ascending"), ("position", "ascending")])
    ids = {int(i) for name in ("token_id", "top1_base", "top1_tuned") for i in rows[name].unique().to_pylist()}
    for name in ("top_base_ids", "top_tuned_ids"):
        ids |= set(np.unique(rows[name].combine_chunks().flatten().to_numpy()).tolist())
    piece_of = corpus.pieces(checkpoint.tokenizer, ids)
    named = pa.array([piece_of[token] for token in rows["token_id"].to_pylist()], pa.string())
    rank = rows["rank_base_of_tuned_top1"].to_numpy()
    classes = pa.array(np.asarray(CLASSES)[np.where(rank == 0, 0, np.where(rank < 3, 1, 2))])
    rows = rows.add_column(3, "token", named).append_column("class", classes)
    about = [
        {"text": t.text, "id": t.id, "prompt": t.prompt, "answer": t.answer, "reference": t.reference} for t in texts
    ]
    metadata = {
        "tokens": json.dumps({str(token): text for token, text in piece_of.items()}),
        "texts": json.dumps(about),
    }
    return rows.replace_schema_metadata(metadata)
