"""Attention that looks both ways over chosen positions, and keeps keys and values between calls where it is asked to.

One function, registered with the attention interface of `transformers`, serves every family that goes through it (BERT,
RoBERTa, ModernBERT, Llama, Qwen2 …). Positions are explicit, so a call may compute any subset of a text; a `Window` holds
the keys and values of the rest.

Source: arXiv 2601.20332 for the window; the back end is our own.
"""

# B texts, H heads, Q computed positions, K positions attended to, D head width

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "shiftscope_bidirectional"


@dataclass
class Window:
    """Keys and values, layer by layer, of the positions of one text that attention may see.

    positions_K: the places in the text, ascending. `cover` starts it anew; `touch` renews some of its rows; the next call
    must compute the places given to them. computed_Q: the places of the last `cover`.
    """

    positions_K: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
    computed_Q: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
    rows_Q: Tensor | None = None  # where the positions given to `touch` stand in the window; None after `cover`
    stored: dict[nn.Module, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def cover(self, positions_Q: Tensor, keep: Tensor | None = None) -> None:
        """The next call computes these positions anew. keep: those of them that the window holds afterwards, default all."""
        self.computed_Q, self.rows_Q, self.stored = positions_Q, None, {}
        self.positions_K = positions_Q if keep is None else keep

    @property
    def attended_K(self) -> Tensor:
        """The places that the next call attends to."""
        return self.computed_Q if self.rows_Q is None else self.positions_K

    def touch(self, positions_Q: Tensor) -> None:
        """The next call computes these positions only, all within the window."""
        assert bool(torch.isin(positions_Q, self.positions_K).all()), "a position outside the window"
        self.rows_Q = torch.searchsorted(self.positions_K, positions_Q)

    def drop_after(self, last: int) -> None:
        """Forget the positions to the right of last: the text was cut there."""
        kept = int((self.positions_K <= last).sum())
        self.positions_K = self.positions_K[:kept]
        self.stored = {
            module: (keys[:, :, :kept], values[:, :, :kept]) for module, (keys, values) in self.stored.items()
        }

    def exchange(self, module: nn.Module, key_BHQD: Tensor, value_BHQD: Tensor) -> tuple[Tensor, Tensor]:
        """Store what was computed, and give the keys and values of the whole window."""
        if self.rows_Q is None:
            kept_K = torch.searchsorted(self.computed_Q, self.positions_K).to(key_BHQD.device)
            self.stored[module] = key_BHQD[:, :, kept_K], value_BHQD[:, :, kept_K]
            return key_BHQD, value_BHQD
        rows_Q = self.rows_Q.to(key_BHQD.device)
        for kept, new in zip(self.stored[module], (key_BHQD, value_BHQD), strict=True):
            kept.index_copy_(2, rows_Q, new)
        return self.stored[module]


@dataclass(frozen=True)
class Layout:
    """Which positions a call computes and sees. real_BK: False for the padding of shorter texts."""

    positions_BQ: Tensor
    positions_BK: Tensor
    real_BK: Tensor
    window: Window | None = None


_LAYOUT: ContextVar[Layout] = ContextVar("layout of the call")


def replaceable(model: PreTrainedModel) -> bool:
    """Whether the family's attention goes through the attention interface, so that `looking` works with it."""
    return model._can_set_attn_implementation()


@contextmanager
def looking(model: PreTrainedModel, layout: Layout) -> Iterator[None]:
    """Run the model's attention as `layout` says; its own attention is put back afterwards."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, _attend)
    before = model.config._attn_implementation
    token = _LAYOUT.set(layout)
    try:
        model.set_attn_implementation(NAME)
        yield
    finally:
        model.set_attn_implementation(before)
        _LAYOUT.reset(token)


def _attend(
    module: nn.Module,
    query_BHQD: Tensor,
    key_BHQD: Tensor,
    value_BHQD: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    layout = _LAYOUT.get()
    if layout.window is not None:
        key_BHQD, value_BHQD = layout.window.exchange(module, key_BHQD, value_BHQD)
    seen_BQK = layout.real_BK[:, None, :]
    if sliding_window is not None:  # one more than the greatest distance seen
        distance_BQK = (layout.positions_BQ[:, :, None] - layout.positions_BK[:, None, :]).abs()
        seen_BQK = seen_BQK & (distance_BQK < sliding_window)
    out_BHQD = scaled_dot_product_attention(
        query_BHQD,
        key_BHQD,
        value_BHQD,
        attn_mask=None if bool(seen_BQK.all()) else seen_BQK[:, None],
        scale=scaling,
        enable_gqa=query_BHQD.shape[1] != key_BHQD.shape[1],
    )
    return out_BHQD.transpose(1, 2).contiguous(), None
