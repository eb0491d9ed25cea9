"""Any-subset models: hidden positions of a text drafted at once, or judged one after the other, by one network call.

A two-stream network (XLNet) takes the decoding order as an attention mask. Under the oracle mask each hidden position
sees the visible text and the hidden ones of lower rank, so one call gives the joint density of any subset given the
rest. Under the draft mask every position that is still unknown sees exactly the known ones. Both hold the originally
visible text apart: tokens that were decoded stay causal among themselves, which is why the first drafted position has
the same law under both.

Source: arXiv 2504.20456, section 4 (lattice, masks, joint density in one call); XLNet: arXiv 1906.08237.
Deviation: rows of a target mapping that ask for nothing are all zero; a repeated position would count twice.
"""

# B texts, N positions, K positions asked for (-1 for none), V vocabulary

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from shiftscope.core.checkpoints import DTypeName, Opened, open_model
from shiftscope.core.denoising.gapped import Gapped
from shiftscope.core.head import evaluating

_UNLIMITED = 1 << 20  # tokenizers without a limit name a number beyond any text


def ranks(hidden_BN: Tensor, length_B: Tensor | None = None) -> Tensor:
    """The place [B, N] of each position in the decoding order: visible ones, hidden ones, padding, each from the left.

    hidden_BN: bool. length_B: positions that are text (None: all). One order for each subset, 2^N instead of N!.
    """
    group_BN = hidden_BN.long()
    if length_B is not None:
        group_BN = torch.where(torch.arange(hidden_BN.shape[1]) < length_B[:, None], group_BN, 2)
    return group_BN.argsort(dim=-1, stable=True).argsort(-1)


def forbidden(rank_BN: Tensor, visible_B: Tensor, known_B: Tensor) -> Tensor:
    """XLNet's `perm_mask` [B, N, N], float32: 1 where position i must not see position j.

    visible_B: how many ranks were visible from the start. known_B: ranks below it are known and see the known ones of
    lower rank; the others see all known ones and none of each other. Draft mask: what is known so far; oracle mask: all.
    """
    n = rank_BN.shape[1]
    shown_BN = torch.where(rank_BN < known_B[:, None], rank_BN, n)
    visible_BN = rank_BN < visible_B[:, None]
    later_BNN = shown_BN[:, :, None] <= shown_BN[:, None, :]
    return (later_BNN & ~(visible_BN[:, :, None] & visible_BN[:, None, :])).float()


def targets(position_BK: Tensor, positions: int) -> Tensor:
    """XLNet's `target_mapping` [B, K, N], float32: one-hot rows, all zero for −1.

    Raises ValueError where a text asks for a position twice: the network would count its query double.
    """
    asked_BKN = position_BK[:, :, None] == torch.arange(positions)
    if bool((asked_BKN.sum(1) > 1).any()):
        raise ValueError("a position is asked for twice in one text: ask for each position once, and fill up with -1")
    return asked_BKN.float()


def hidden_positions(hidden_BN: Tensor) -> Tensor:
    """The hidden positions of each text [B, K] from the left, filled up with −1; K is the greatest number of them."""
    n = hidden_BN.shape[1]
    position_BN = torch.where(hidden_BN, torch.arange(n), n).sort(-1).values
    return torch.where(position_BN < n, position_BN, -1)[:, : int(hidden_BN.sum(-1).max())]


# ---- the model ------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class AnySubsetLM:
    """An any-subset model with its tokenizer: drafts, judges and joint densities of hidden positions.

    mask_id: the token that stands for a hidden one; no law gives it. Each call is counted in the records of its texts: a
    text of N tokens with K positions asked for costs N + K rows.
    """

    name: str
    model: Any
    tokenizer: Any
    mask_id: int
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def context_length(self) -> int | None:
        """Tokens of the longest text, as the tokenizer names it (positions are relative); None where it names no limit."""
        limit = self.tokenizer.model_max_length
        return None if limit is None or limit > _UNLIMITED else int(limit)

    @property
    def vocabulary_size(self) -> int:
        """Token ids that a law may name; the unembedding's padding rows are not among them."""
        return max(self.tokenizer.get_vocab().values()) + 1

    def draft(self, texts: Sequence[Gapped], counts: Sequence[int]) -> Tensor:
        """Logits [B, K, V] of the next positions of each text, so many of each, given the known tokens only. One call."""
        ids = [[*text.ids] for text in texts]
        known = [len(text.ids) - text.left for text in texts]
        return self._call(texts, ids, known, [text.ahead(count) for text, count in zip(texts, counts, strict=True)])

    def judge(
        self, texts: Sequence[Gapped], drafts: Sequence[Sequence[int]], counts: Sequence[int], first: Sequence[int]
    ) -> Tensor:
        """Logits [B, K, V] of the next positions from each text's `first` to before its count, given the drafts. One call."""
        ids = []
        for text, draft in zip(texts, drafts, strict=True):
            filled = list(text.ids)
            for place, token in zip(text.order[text.known :], draft, strict=False):
                filled[place] = token
            ids.append(filled)
        wanted = [text.ahead(count)[start:] for text, count, start in zip(texts, counts, first, strict=True)]
        return self._call(texts, ids, [len(text.ids) for text in texts], wanted)

    def joint_logp(self, texts: Sequence[Gapped]) -> list[Tensor]:
        """log p, in nats, of each token at the text's `order`, given the rest and those before it in the order. One call.

        Their sum is the joint log-density of the subset given the rest. Whether positions count as decoded changes nothing.
        """
        logits_BKV = self._call(
            texts, [text.ids for text in texts], [len(t.ids) for t in texts], [t.order for t in texts]
        )
        found = []
        for text, logits_KV in zip(texts, logits_BKV, strict=True):
            logp_KV = logits_KV[: len(text.order)].double().log_softmax(-1)
            token_K1 = torch.tensor([text.ids[place] for place in text.order])[:, None]
            found.append(logp_KV.gather(-1, token_K1)[:, 0])
        return found

    def _call(
        self,
        texts: Sequence[Gapped],
        ids: Sequence[Sequence[int]],
        known: Sequence[int],
        wanted: Sequence[Sequence[int]],
    ) -> Tensor:
        """Logits [B, K, V] on the CPU, float32, at the wanted places; ranks below `known` count as known."""
        for text in texts:
            if len(text.order) >= len(text.ids):
                raise ValueError(
                    f"document {text.document} has no visible token: the network's attention needs at least one, so begin the "
                    f"text with some token, such as the tokenizer's own opening"
                )
        longest, widest = max(map(len, ids)), max(map(len, wanted))
        ids_BN = torch.tensor([[*row, *[self.mask_id] * (longest - len(row))] for row in ids])
        position_BK = torch.tensor([[*row, *[-1] * (widest - len(row))] for row in wanted])
        rank_BN = torch.full_like(ids_BN, longest)
        for row, text in enumerate(texts):
            rank_BN[row, : len(text.ids)] = torch.tensor(rank_of(len(text.ids), text.order))
            text.record.spend(len(text.ids) + len(wanted[row]), len(text.ids) * (len(text.ids) + len(wanted[row])))
        visible_B = torch.tensor([len(text.ids) - len(text.order) for text in texts])
        device = self.model.device
        with evaluating(self.model):
            logits_BKV = (
                self.model(
                    input_ids=ids_BN.to(device),
                    perm_mask=forbidden(rank_BN, visible_B, torch.tensor(known)).to(device),
                    target_mapping=targets(position_BK, longest).to(device, self.model.dtype),
                    use_mems=False,
                )
                .logits[..., : self.vocabulary_size]
                .float()
            )
        logits_BKV[..., self.mask_id] = -torch.inf
        return logits_BKV.cpu()


def rank_of(length: int, order: Sequence[int]) -> list[int]:
    """The rank of each position where these are decoded in this order and the others are visible."""
    hidden = set(order)
    rank = [0] * length
    for place, position in enumerate([*(p for p in range(length) if p not in hidden), *order]):
        rank[position] = place
    return rank


def load(name: str, *, dtype: DTypeName = "auto", device: str = "auto") -> AnySubsetLM:
    """Load an any-subset model by path, hub id or zoo name.

    Raises ValueError for a model of another kind (with what reads it), or one without a mask token.
    """
    return adapted(open_model(name, "any-order", dtype=dtype, device=device))


def adapted(opened: Opened) -> AnySubsetLM:
    """The same from a model in memory; it stays the caller's and is not altered. Raises as `load`."""
    mask_id, attention = opened.tokenizer.mask_token_id, getattr(opened.model.config, "attn_type", None)
    if attention != "bi":
        raise ValueError(
            f"{opened.name} is no any-subset model: its configuration names attn_type {attention!r}, and only XLNet's `bi` can "
            f"be told a decoding order"
        )
    if mask_id is None:
        raise ValueError(f"the tokenizer of {opened.name} names no mask token: a hidden position cannot be written")
    return AnySubsetLM(opened.name, opened.model, opened.tokenizer, int(mask_id), opened.provenance)
