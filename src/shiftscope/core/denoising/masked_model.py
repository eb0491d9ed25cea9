"""A masked language model as a function from a partly filled text to the law of every hidden token.

Serves masked diffusion models (LLaDA, Dream) and masked language models (BERT, RoBERTa, ModernBERT …) alike: the mask id,
the ends, the position offset (RoBERTa) and the shift (Dream predicts a token one place to its left) are undone here.
"""

# R computed positions, B texts, V vocabulary

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from shiftscope.core.checkpoints import DTypeName, Opened, open_model
from shiftscope.core.denoising import masked_families
from shiftscope.core.denoising.bidirectional import Layout, Window, looking, replaceable
from shiftscope.core.head import evaluating

_NATIVE_ENDS = ("<|endoftext|>", "<|eot_id|>", "<|im_end|>")  # of LLaDA and Dream, beside the ones they name


@dataclass(frozen=True)
class MaskedLM:
    """A masked language model with its tokenizer.

    mask_id: the token that stands for a hidden one. end_ids: tokens that end a text, none for models without.
    shift: how far left of a token stands the output that predicts it. offset: added to positions before the embedding.
    """

    name: str
    model: Any
    tokenizer: Any
    mask_id: int
    end_ids: tuple[int, ...]
    shift: int = 0
    offset: int = 0
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def context_length(self) -> int | None:
        """How many tokens the model can read at once, None where its configuration names no limit."""
        limit = getattr(self.model.config, "max_position_embeddings", None)
        return None if limit is None else limit - self.offset

    @property
    def vocabulary_size(self) -> int:
        """Token ids that a law may name; the unembedding's padding rows are not among them."""
        return max(self.tokenizer.get_vocab().values()) + 1

    @property
    def windows(self) -> bool:
        """Whether keys and values can be kept between calls (the family's attention can be replaced)."""
        return replaceable(self.model)

    def with_tokens(self, mask: str | None = None, end: str | None = None) -> MaskedLM:
        """The same model with another mask token or end, given as text. Raises ValueError for text that is no token."""
        mask_id = self.mask_id if mask is None else _id_of(self.name, self.tokenizer, mask)
        end_ids = self.end_ids if end is None else (_id_of(self.name, self.tokenizer, end),)
        return replace(self, mask_id=mask_id, end_ids=end_ids)

    def logits(
        self,
        ids: Sequence[Sequence[int]],
        wanted: Sequence[Sequence[int]],
        *,
        positions: Sequence[Sequence[int]] | None = None,
        window: Window | None = None,
    ) -> list[Tensor]:
        """Logits of the tokens at the wanted places of every text, float32 [places, V]; the mask token's are -inf.

        ids: per text the ids to compute. positions: their places in the text, ascending; default 0, 1, …
        wanted: places in the text, each computed (with shift 1 its left neighbour is, or it is place 0).
        window: keys and values to attend to; one text at a time, its `cover` or `touch` called with the same positions.
        Texts of one call do not see each other; how many there are changes nothing but rounding.
        """
        places = positions or [range(len(row)) for row in ids]
        layout, ids_BR = _layout(ids, places, window, self.model.device)
        out_BRV = self._forward(ids_BR, layout)
        found = []
        for row, (computed, asked) in enumerate(zip(places, wanted, strict=True)):
            seat = {place: index for index, place in enumerate(computed)}
            rows_K = [seat[max(place - self.shift, 0)] for place in asked]
            logits_KV = out_BRV[row, rows_K, : self.vocabulary_size].float()
            logits_KV[:, self.mask_id] = -torch.inf
            found.append(logits_KV)
        return found

    def _forward(self, ids_BR: Tensor, layout: Layout) -> Tensor:
        takes_cache = {"use_cache": False} if getattr(self.model.config, "is_causal", None) is False else {}
        places_BR = layout.positions_BQ + self.offset
        with evaluating(self.model):
            if self.windows:
                with looking(self.model, layout):
                    return self.model(input_ids=ids_BR, position_ids=places_BR, **takes_cache).logits
            assert layout.window is None
            return self.model(input_ids=ids_BR, attention_mask=layout.real_BK.long()).logits


def _layout(
    ids: Sequence[Sequence[int]], places: Sequence[Sequence[int]], window: Window | None, device: torch.device
) -> tuple[Layout, Tensor]:
    longest = max(map(len, ids))
    ids_BR = torch.zeros(len(ids), longest, dtype=torch.long)
    positions_BR, real_BR = torch.zeros_like(ids_BR), torch.zeros_like(ids_BR, dtype=torch.bool)
    for row, (tokens, place) in enumerate(zip(ids, places, strict=True)):
        ids_BR[row, : len(tokens)] = torch.as_tensor(tokens)
        positions_BR[row, : len(tokens)] = torch.as_tensor(place)
        real_BR[row, : len(tokens)] = True
    positions_BR, real_BR = positions_BR.to(device), real_BR.to(device)
    if window is None:
        return Layout(positions_BR, positions_BR, real_BR), ids_BR.to(device)
    assert len(ids) == 1, "a window belongs to one text"
    positions_BK = window.attended_K[None].to(device)
    return Layout(positions_BR, positions_BK, torch.ones_like(positions_BK, dtype=torch.bool), window), ids_BR.to(
        device
    )


def load(
    name: str,
    *,
    mask_token: str | None = None,
    end_token: str | None = None,
    dtype: DTypeName = "auto",
    device: str = "auto",
) -> MaskedLM:
    """Load a masked language model by path, hub id or zoo name.

    mask_token, end_token: the tokens, as text, where the checkpoint does not name them or names others.
    Raises ValueError for a model of another kind (with what reads it), or one without a mask token.
    """
    return adapted(open_model(name, "masked", dtype=dtype, device=device), mask_token=mask_token, end_token=end_token)


def adapted(opened: Opened, *, mask_token: str | None = None, end_token: str | None = None) -> MaskedLM:
    """The same from a model in memory; it stays the caller's and is not altered. Raises as `load`."""
    config, tokenizer = opened.model.config, opened.tokenizer
    mask_id = getattr(config, "mask_token_id", None)
    mask_id = tokenizer.mask_token_id if mask_id is None else mask_id
    if mask_token is not None:
        mask_id = _id_of(opened.name, tokenizer, mask_token)
    if mask_id is None:
        raise ValueError(
            f"{opened.name} names no mask token, neither in its tokenizer nor in its configuration: name it with --mask-token"
        )
    if mask_token is None and tokenizer.mask_token_id not in (None, mask_id):
        raise ValueError(
            f"{opened.name} names two mask tokens, {tokenizer.mask_token_id} in its tokenizer and {mask_id} in its "
            f"configuration: name the right one with --mask-token"
        )
    named = getattr(config, "eos_token_id", None)
    ends = [tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])]
    if masked_families.is_native(config):
        ends += [tokenizer.get_vocab().get(token) for token in _NATIVE_ENDS]
    end_ids = tuple(dict.fromkeys(end for end in ends if isinstance(end, int)))
    if end_token is not None:
        end_ids = (_id_of(opened.name, tokenizer, end_token),)
    offset = config.pad_token_id + 1 if config.model_type in ("roberta", "xlm-roberta", "camembert") else 0
    shift = masked_families.shift_of(config.to_dict())
    return MaskedLM(opened.name, opened.model, tokenizer, mask_id, end_ids, shift, offset, opened.provenance)


def _id_of(name: str, tokenizer: Any, token: str) -> int:
    found = tokenizer.get_vocab().get(token)
    if found is None:
        raise ValueError(f"{token!r} is no token of {name}: give one of its vocabulary, as the tokenizer writes it")
    return int(found)
