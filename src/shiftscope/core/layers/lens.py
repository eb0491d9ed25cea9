"""The logit lens over depth: how far each block moves the law that a model's own norm and head read off its state.

Source: arXiv 2601.06238 (Fisher–Rao transport between adjacent layers). Deviation: full vocabulary, chord form.
"""

# N rows (positions), G groups of rows (texts), d width, V vocabulary

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from shiftscope.core import divergence
from shiftscope.core.head import Head

CHUNK_ROWS = (
    64  # rows of one head product: two float32 buffers of this many laws are all the memory that transport takes
)


@torch.no_grad()
def transport(states: Sequence[Tensor], head: Head, wanted: Sequence[int]) -> dict[int, Tensor]:
    """Fisher–Rao distance, radians [N] in [0, π], by which each wanted block moves the law read off its state.

    states: [n_blocks + 1] of [N, d], before the final norm. Streams over chunks of rows; two laws exist at a time.
    """
    steps = [layer for layer in wanted if layer > 0]
    needed = sorted({*steps, *(layer - 1 for layer in steps)})
    N = states[0].shape[0]
    radians = {layer: torch.empty(N, device=states[0].device) for layer in steps}
    shape = (min(N, CHUNK_ROWS), head.weight.shape[0])
    buffers = [torch.empty(shape, device=states[0].device) for _ in range(2)]
    for start in range(0, N, CHUNK_ROWS):
        rows = slice(start, min(start + CHUNK_ROWS, N))
        before, now = (buffer[: rows.stop - start] for buffer in buffers)
        for layer in needed:
            _root_law(head, states[layer][rows], now)
            if layer in radians:
                chord = torch.linalg.vector_norm(before.sub_(now), dim=-1)
                radians[layer][rows] = divergence.arc_of_chord(chord)
            before, now = now, before
    return radians


def _root_law(head: Head, state_ND: Tensor, out_NV: Tensor) -> None:
    """√p of the lens's law: exp(z/2) scaled to length 1, so that no log-softmax has to be kept."""
    normed_ND = head.final(state_ND)
    if normed_ND.dtype == torch.float32:
        head.logits(normed_ND, out=out_NV)
    else:
        out_NV.copy_(head.logits(normed_ND))
    out_NV.sub_(out_NV.amax(-1, keepdim=True)).mul_(0.5).exp_()
    out_NV.div_(torch.linalg.vector_norm(out_NV, dim=-1, keepdim=True))


def evenly_spread(lengths_G: Tensor, most: int) -> Tensor:
    """Which of the concatenated positions of groups to take: all, or at most `most` of each group, evenly spread."""
    starts = lengths_G.cumsum(0) - lengths_G
    picks = []
    for start, length in zip(starts.tolist(), lengths_G.tolist(), strict=True):
        count = min(length, most) if most else length
        picks.append(start + (torch.arange(count) + 0.5).mul(length / count).long())
    return torch.cat(picks)
