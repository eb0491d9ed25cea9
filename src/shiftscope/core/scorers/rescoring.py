"""The same tokens scored twice: by a model here, and again by a copy of it, from a file, or by a server; one row per token.

Columns of every row: text, position, token_id, logp_model_nats, logp_against_nats (null where it was not scored), entropy
of the model's law, and `problem` (empty where it was scored). Two models add the divergences of their whole laws; a server
adds bounds of them and the mass outside its list.
"""

# N positions of a batch, R rows of a block, V vocabulary, K listed tokens

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import pyarrow as pa
import torch
from torch import Tensor

from shiftscope.core import corpus, divergence, paired
from shiftscope.core.checkpoints import Checkpoint
from shiftscope.core.endpoint import Endpoint
from shiftscope.core.laws import Block, Workspace
from shiftscope.core.paired import PairedBatch, PairedText
from shiftscope.core.parts import Parts
from shiftscope.core.scorers import scoring
from shiftscope.core.scorers.logged import Logged
from shiftscope.core.scorers.served import Place

Advance = Callable[[int, int], None]
MOVED = {"js_nats": "js_nats", "kl_pq_nats": "kl_model_against_nats", "kl_qp_nats": "kl_against_model_nats", "tv": "tv"}


@dataclass(frozen=True)
class Serving:
    """What is asked of a server.

    top_k: listed tokens per position. send: token ids, or the text (the server then tokenises it again). stepwise: one
    request per token, for servers that score only what they write (llama.cpp).
    """

    top_k: int = 20
    send: Literal["ids", "text"] = "ids"
    stepwise: bool = False

    def __post_init__(self) -> None:
        if self.top_k < 1:
            raise ValueError(f"top_k is {self.top_k}: it must be at least 1")
        if self.stepwise and self.send == "text":
            raise ValueError("--stepwise walks along token ids: it cannot be combined with --send text")


def measure(batch: PairedBatch) -> tuple[paired.OnBlock, Callable[[], pa.Table]]:
    """Rows of two models: base is the model, tuned is what it is held against."""
    blocks: list[dict[str, Tensor]] = []

    def on_block(rows: slice, block: Block, workspace: Workspace) -> None:
        ids_R1 = batch.token_N[rows, None].to(block.logits_p_RV.device)
        values = workspace.divergences(block)
        found = {
            "logp_model_nats": block.logp_at(ids_R1)[:, 0],
            "logp_against_nats": block.logq_at(ids_R1)[:, 0],
            "entropy_model_nats": values["entropy_p_nats"],
            "entropy_against_nats": values["entropy_q_nats"],
        } | {ours: values[theirs] for theirs, ours in MOVED.items()}
        blocks.append({name: value.cpu() for name, value in found.items()})

    def finish() -> pa.Table:
        columns = {name: torch.cat([block[name] for block in blocks]).numpy() for name in blocks[0]}
        return pa.table({**_places(batch.items), **columns, "problem": [""] * len(batch.token_N)})

    return on_block, finish


def from_file(
    model: Checkpoint, logged: Logged, *, batch_size: int, parts: Parts, advance: Advance | None = None
) -> pa.Table:
    """Rows of a model and of log-probabilities that were written down."""

    def rows(items: Sequence[PairedText]) -> dict[str, pa.Table]:
        logq_N = torch.tensor([value for item in items for value in logged.logps[item.text]])
        return {"rows": _table(items, _own(model, items, batch_size), logq_N, [""] * len(logq_N), {})}

    groups = paired.batches(logged.items, batch_size)
    paired.check_lengths(model, model, logged.items)
    return parts.map("pass", groups, rows, advance=advance, final=True)["rows"]


def from_endpoint(
    model: Checkpoint,
    endpoint: Endpoint,
    serving: Serving,
    items: Sequence[PairedText],
    *,
    batch_size: int,
    parts: Parts,
    advance: Advance | None = None,
) -> pa.Table:
    """Rows of a model and of what a server says; a text that it does not score is kept with the reason.

    Raises ValueError where the server's tokens are evidently of another tokenizer.
    """
    names = Names(model)

    def rows(batch: Sequence[PairedText]) -> dict[str, pa.Table]:
        heard = [
            heard
            for texts in endpoint.map(lambda item: listen(endpoint, serving, item, names), batch)
            for heard in texts
        ]
        ids_NK, logq_NK, cap_N = listings(heard, names)
        bounds: list[dict[str, Tensor]] = []

        def on_block(where: slice, logp_RV: Tensor) -> None:
            on = (value[where].to(logp_RV.device) for value in (ids_NK, logq_NK, cap_N))
            bounds.append({name: value.cpu() for name, value in scoring.divergence_bounds(logp_RV, *on).items()})

        own = _own(model, batch, batch_size, on_block)
        extra = {name: torch.cat([block[name] for block in bounds]).float() for name in bounds[0]}
        extra["tail_mass_against"] = (1 - logq_NK.exp().sum(-1)).clamp(0, 1).float()
        scored_N = torch.tensor([not one.problem for one in heard])
        extra = {name: torch.where(scored_N, value, math.nan) for name, value in extra.items()}
        logq_N = torch.tensor(
            [math.nan if one.place is None or one.place.logp is None else one.place.logp for one in heard]
        )
        table = _table(batch, own, logq_N, [one.problem for one in heard], extra)
        named = [one.place is not None and one.place.token is not None for one in heard]
        return {"rows": table.append_column("id_named", pa.array(named))}

    groups = paired.batches(items, batch_size)
    paired.check_lengths(model, model, items)
    return parts.map("pass", groups, rows, advance=advance, final=True)["rows"]


@dataclass(frozen=True)
class Heard:
    """What a server said of one answer token: its place, or why there is none."""

    place: Place | None
    problem: str = ""


def listen(endpoint: Endpoint, serving: Serving, item: PairedText, names: Names) -> list[Heard]:
    """What the server says of every answer token of one text."""
    ids, start = (*item.tuned_context, *item.answer), len(item.tuned_context)
    if serving.stepwise:
        reply = endpoint.score_stepwise(ids, start, names.pieces, top_k=serving.top_k)
    else:
        sent = ids if serving.send == "ids" else names.decode(ids)
        reply = endpoint.score(sent, top_k=serving.top_k)
    if reply.found is None:
        return [Heard(None, str(reply.problem))] * len(item.answer)
    aligned = align(reply.found, ids, names, of_text=serving.send == "text")
    heard = []
    for place in aligned[start:]:
        if place is None:
            heard.append(Heard(None, "the server read other tokens from here on"))
        elif place.logp is None:
            heard.append(Heard(place, f"not among the {serving.top_k} tokens that the server lists"))
        elif math.isinf(place.logp):
            heard.append(Heard(place, "the server holds this token to be impossible"))
        else:
            heard.append(Heard(place))
    return heard


def align(places: Sequence[Place], ids: Sequence[int], names: Names, *, of_text: bool) -> list[Place | None]:
    """The server's place of every token, None from the first one on that it read otherwise.

    A begin-of-text token that the server put in front of a text is skipped. Raises ValueError where the ids were sent and
    most tokens came back with another text: the tokenizers differ.
    """
    begin = names.begin
    if of_text and begin is not None and ids[0] != begin and places and names.id_of(places[0]) == begin:
        places = places[1:]
    if not of_text:
        names.check(places, ids)
        same = [place.token is None or place.token == token for place, token in zip(places, ids, strict=True)]
    else:
        same = [
            place.token == token if place.token is not None else place.piece == names.pieces[token]
            for place, token in zip(places, ids, strict=False)
        ]
    upto = same.index(False) if False in same else len(same)
    return [*places[:upto], *[None] * (len(ids) - upto)]


class Names:
    """Token texts of a checkpoint, both ways: what id a server means that names only text."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint, self.tokenizer = checkpoint, checkpoint.tokenizer
        self.begin: int | None = checkpoint.tokenizer.bos_token_id

    def decode(self, ids: Sequence[int]) -> str:
        """A text without any change to its spaces."""
        return str(self.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))

    @cached_property
    def pieces(self) -> dict[int, str]:
        """Every token alone as text."""
        ids = range(min(len(self.tokenizer), self.checkpoint.vocabulary_size))
        texts = self.tokenizer.batch_decode([[token] for token in ids], clean_up_tokenization_spaces=False)
        return dict(zip(ids, texts, strict=True))

    @cached_property
    def ids(self) -> dict[str, int]:
        """The ids of texts that only one token has."""
        found: dict[str, int] = {}
        for token, piece in self.pieces.items():
            found[piece] = -1 if piece in found else token
        return {piece: token for piece, token in found.items() if token >= 0}

    def id_of(self, place: Place) -> int | None:
        """The id of a place, by its text where the server names none."""
        return place.token if place.token is not None else self.ids.get(place.piece or "")

    def check(self, places: Sequence[Place], ids: Sequence[int]) -> None:
        """Raises ValueError where most tokens that can be compared have another text at the server."""
        texts = [
            (token, self.pieces[token].strip(), place.piece.strip())
            for place, token in zip(places, ids, strict=True)
            if place.piece is not None and token in self.pieces and self.pieces[token].strip().isascii()
        ]
        other = [entry for entry in texts if entry[1] != entry[2]]
        if len(other) > max(2, len(texts) // 2):
            token, ours, theirs = other[0]
            raise ValueError(
                f"the endpoint reads token {token} as {theirs!r}, {self.checkpoint.name} reads it as {ours!r} ({len(other)} of "
                f"{len(texts)} differ): the tokenizers differ; serve the same checkpoint, or use --send text"
            )


def listings(heard: Sequence[Heard], names: Names) -> tuple[Tensor, Tensor, Tensor]:
    """Listed ids [N, K] (-1: none), their log-probabilities [N, K], and the largest that an unlisted token can have [N].

    The token itself may be listed from outside the top list, so the least of the others is the cap. Texts that stand for
    several tokens are left to the tail, which then has no cap: a server that names texts lists such a text once, and the
    token that it leaves out may be the more probable one. Raises ValueError for ids that the model does not have.
    """
    size, rows, caps = names.checkpoint.vocabulary_size, [], []
    for one in heard:
        row: dict[int, float] = {}
        top = one.place.top if one.place is not None and not one.problem else ()
        unclear = False
        for name, logp in top:
            token = name if isinstance(name, int) else names.ids.get(name)
            if token is None:
                unclear = True
            elif token >= size:
                raise ValueError(
                    f"the endpoint lists token {token}, but {names.checkpoint.name} has ids 0 to {size - 1}: "
                    f"the tokenizers differ"
                )
            else:
                row[token] = logp
        own = names.id_of(one.place) if one.place is not None else None
        others = [logp for token, logp in row.items() if token != own]
        caps.append(0.0 if unclear else min(others, default=0.0))
        rows.append(row)
    K = max(1, *map(len, rows))
    ids = [[*row, *[-1] * (K - len(row))] for row in rows]
    logq = [[*row.values(), *[-math.inf] * (K - len(row))] for row in rows]
    return torch.tensor(ids), torch.tensor(logq, dtype=torch.float64), torch.tensor(caps, dtype=torch.float64)


def _own(
    model: Checkpoint,
    items: Sequence[PairedText],
    together: int,
    on_block: Callable[[slice, Tensor], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """The model's log-probability and entropy at every answer token, [N] each; on_block also sees the whole laws."""
    ids_N = torch.tensor([token for item in items for token in item.answer])
    logp, entropy = [], []
    for rows, logp_RV in scoring.laws(model, scoring.hidden_rows(model, items, together)):
        logp.append(logp_RV.gather(-1, ids_N[rows, None].to(logp_RV.device))[:, 0].cpu())
        entropy.append(divergence.entropy_nats(logp_RV).cpu())
        if on_block:
            on_block(rows, logp_RV)
    return torch.cat(logp), torch.cat(entropy)


def _table(
    items: Sequence[PairedText],
    own: tuple[Tensor, Tensor],
    logq_N: Tensor,
    problems: Sequence[str],
    extra: dict[str, Tensor],
) -> pa.Table:
    columns = {"logp_model_nats": own[0], "logp_against_nats": logq_N.float(), "entropy_model_nats": own[1], **extra}
    arrays = {name: pa.array(value.numpy(), from_pandas=True) for name, value in columns.items()}  # NaN becomes null
    return pa.table({**_places(items), **arrays, "problem": pa.array(list(problems), pa.string())})


def _places(items: Sequence[PairedText]) -> dict[str, pa.Array]:
    rows = [(item.text, place, token) for item in items for place, token in enumerate(item.answer)]
    return {
        name: pa.array([row[column] for row in rows], pa.int32())
        for column, name in enumerate(("text", "position", "token_id"))
    }


def named(rows: pa.Table, model: Checkpoint, about: Sequence[dict[str, Any]]) -> pa.Table:
    """The rows in order, with each token's text, and with the texts in the metadata."""
    import json

    rows = rows.sort_by([("text", "ascending"), ("position", "ascending")])
    ids = rows["token_id"].to_pylist()
    piece_of = corpus.pieces(model.tokenizer, ids)
    rows = rows.add_column(3, "token", pa.array([piece_of[token] for token in ids], pa.string()))
    return rows.replace_schema_metadata({"texts": json.dumps(list(about))})
