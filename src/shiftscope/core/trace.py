"""Read hidden states by plain hooks that are gone when the block ends, even on error; the model is never changed.

Source of the layer indexing: arXiv 2601.06238: state 0 is the embedding output, state l the output of block l, all
before the final norm. (`output_hidden_states` of `transformers` returns the last one already normed.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn


@contextmanager
def states(blocks: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """Collect, during one forward, the input of the first block and the output of every block: n_blocks + 1 tensors.

    blocks: a model's transformer blocks in order (`Head.blocks`). Yields the list that the forward fills; a second
    forward inside the same `with` starts it anew.
    """
    collected: list[Tensor] = []

    def enter(_: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        collected.clear()
        collected.append((args[0] if args else kwargs["hidden_states"]).detach())

    def leave(_: nn.Module, __: tuple[Tensor, ...], output: Tensor | tuple[Tensor, ...]) -> None:
        collected.append((output[0] if isinstance(output, tuple) else output).detach())

    handles = [blocks[0].register_forward_pre_hook(enter, with_kwargs=True)]
    try:
        handles.extend(block.register_forward_hook(leave) for block in blocks)
        yield collected
    finally:
        for handle in handles:
            handle.remove()
