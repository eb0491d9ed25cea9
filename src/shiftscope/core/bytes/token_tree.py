"""A causal model as a tree of token contexts with one key-value cache: branches share what they have in common.

Contexts are made freely and computed together, in one forward, when a law is asked for; one that nobody holds any more gives
its place back. A node attends to its ancestors alone, by a mask of its own.

Source: arXiv 2410.09303 (covers of a text share their beginnings; what is computed for one serves the others).
"""

# V ids of the model, N nodes

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shiftscope.core.checkpoints import Checkpoint
from shiftscope.core.head import evaluating

Array = NDArray[np.float64]
ROWS = 128  # of one product with the unembedding


class Node:
    """A token sequence: its parent and its last token. hidden: the final state that predicts what follows it."""

    __slots__ = (
        "__weakref__",
        "ancestors",
        "children",
        "depth",
        "hidden",
        "masses",
        "opens",
        "parent",
        "slot",
        "token",
    )

    def __init__(self, parent: Node | None, token: int) -> None:
        self.parent, self.token = parent, token
        self.depth: int = 0 if parent is None else parent.depth + 1
        self.children: weakref.WeakValueDictionary[int, Node] = weakref.WeakValueDictionary()
        self.slot = -1
        self.hidden: Tensor | None = None
        self.masses: Array | None = None
        self.opens = parent is None  # stands before every text


class Tree(Protocol):
    """A token model as a tree of contexts: nodes are made freely and computed together when a law is asked for."""

    root: Node

    def child(self, node: Node, token: int) -> Node:
        """The context one token longer; not computed yet."""

    def laws(self, nodes: Sequence[Node]) -> list[NDArray[Any]]:
        """Next-token log-probabilities [V] of each context, in nats."""

    def logp(self, steps: Sequence[tuple[Node, int]]) -> list[float]:
        """Log-probability, in nats, of a token after a context, for each step."""


class TokenTree:
    """A causal model as a tree of contexts in one key-value cache; a node attends to its ancestors alone.

    opening: token ids in front of every text, at least one.
    Nodes that nobody holds any more give their place back. forwards, positions: how many were computed so far. limit: of
    tokens in one text: the context, or the window of a model with sliding attention, which the tree does not slide.
    Raises ValueError without an opening token, and for a model whose layers do not take such a mask or read it otherwise.
    """

    def __init__(self, checkpoint: Checkpoint, opening: Sequence[int]) -> None:
        from transformers import DynamicCache

        self._checkpoint, self._head = checkpoint, checkpoint.head
        self._cache = DynamicCache()
        self._slots: list[weakref.ref[Node]] = []
        self._waiting: list[weakref.ref[Node]] = []
        self.forwards = self.positions = 0
        window = getattr(checkpoint.model.config.get_text_config(), "sliding_window", None)
        self.limit = min(checkpoint.context_length or 1 << 40, window or 1 << 40)
        if not opening:
            raise ValueError(f"a tree of {checkpoint.name} needs at least one token in front of every text")
        self._trunk = [Node(None, opening[0])]
        self._waiting.append(weakref.ref(self._trunk[0]))
        for token in opening[1:]:
            self._trunk.append(self.child(self._trunk[-1], token))
        for node in self._trunk:
            node.opens = True
        self.root = self._trunk[-1]
        self._verify()

    def child(self, node: Node, token: int) -> Node:
        found = node.children.get(token)
        if found is None:
            found = Node(node, token)
            node.children[token] = found
            self._waiting.append(weakref.ref(found))
        return found

    def after(self, ids: Sequence[int]) -> Node:
        """A context of its own that texts can begin after: these ids behind the tree's opening; shared with no text."""
        node = self.root
        for token in ids:
            node = Node(node, token)
            node.opens = True
            self._waiting.append(weakref.ref(node))
        return node

    def laws(self, nodes: Sequence[Node]) -> list[NDArray[Any]]:
        self.evaluate()
        found: list[NDArray[Any]] = []
        for start in range(0, len(nodes), ROWS):
            found.extend(self._logp_NV(nodes[start : start + ROWS]).cpu().numpy())
        return found

    def logp(self, steps: Sequence[tuple[Node, int]]) -> list[float]:
        self.evaluate()
        nodes = list(dict.fromkeys(node for node, _ in steps))
        place = {node: number for number, node in enumerate(nodes)}
        by_block: dict[int, list[int]] = {}
        for number, (node, _) in enumerate(steps):
            by_block.setdefault(place[node] // ROWS, []).append(number)
        found = [0.0] * len(steps)
        for block, numbers in by_block.items():
            logp_NV = self._logp_NV(nodes[block * ROWS : (block + 1) * ROWS])
            rows = torch.tensor([place[steps[number][0]] - block * ROWS for number in numbers])
            ids = torch.tensor([steps[number][1] for number in numbers])
            values = logp_NV[rows.to(logp_NV.device), ids.to(logp_NV.device)].tolist()
            for number, value in zip(numbers, values, strict=True):
                found[number] = value
        return found

    @torch.no_grad()
    def _logp_NV(self, nodes: Sequence[Node]) -> Tensor:
        logits_NV = self._head.logits(torch.stack([node.hidden for node in nodes]))  # type: ignore[misc]
        if not bool(logits_NV.isfinite().any(-1).all()) or bool(logits_NV.isnan().any()):
            raise ValueError(f"{self._checkpoint.name} gives logits that are not numbers")
        return (logits_NV if logits_NV.dtype == torch.float64 else logits_NV.float()).log_softmax(-1)

    def evaluate(self) -> None:
        """Compute all nodes that wait, in one forward; where one of them is too deep, all go on waiting."""
        waiting = self._held()
        if waiting:
            self._compute(waiting)
        self._waiting = []

    def _held(self) -> list[Node]:
        """The nodes that wait and that somebody still holds. Raises ValueError where one is beyond the limit."""
        waiting = [node for node in (ref() for ref in self._waiting) if node is not None]
        deepest = max((node.depth for node in waiting), default=0)
        if deepest >= self.limit:
            raise ValueError(
                f"the text needs {deepest + 1} tokens, {self._checkpoint.name} reads at most {self.limit} in a tree of "
                f"contexts: give a shorter one"
            )
        return waiting

    def _compute(self, waiting: Sequence[Node]) -> None:
        self._compact()
        first = len(self._slots)
        for number, node in enumerate(waiting):
            node.slot = first + number
            self._slots.append(weakref.ref(node))
        device, dtype = self._head.device, self._checkpoint.model.dtype
        mask = torch.full((len(waiting), len(self._slots)), torch.finfo(dtype).min, dtype=dtype)
        for row, node in enumerate(waiting):
            mask[row, _ancestors(node)] = 0
        with evaluating(self._checkpoint.model):
            hidden = self._head.body(
                input_ids=torch.tensor([[node.token for node in waiting]], device=device),
                attention_mask=mask[None, None].to(device),
                position_ids=torch.tensor([[node.depth for node in waiting]], device=device),
                past_key_values=self._cache,
                use_cache=True,
            ).last_hidden_state[0]
        for row, node in enumerate(waiting):
            node.hidden = hidden[row].clone()
        self.forwards += 1
        self.positions += len(waiting)

    def _compact(self) -> None:
        """Give back the places of nodes that are gone, once they are most of the cache."""
        from transformers.cache_utils import DynamicLayer

        alive = [(place, node) for place, node in enumerate(ref() for ref in self._slots) if node is not None]
        if len(self._slots) < 256 or 2 * len(alive) > len(self._slots):
            return
        keep = torch.tensor([place for place, _ in alive], device=self._head.device)
        for layer in self._cache.layers:
            assert isinstance(layer, DynamicLayer)
            assert layer.keys is not None
            assert layer.values is not None
            layer.keys, layer.values = layer.keys[:, :, keep], layer.values[:, :, keep]
        self._slots = [self._slots[place] for place, _ in alive]
        for slot, (_, node) in enumerate(alive):
            node.slot = slot

    def _verify(self) -> None:
        """Compare a branching tree with plain forwards: an architecture may read the mask in a way of its own."""
        vocabulary = self._head.weight.shape[0]
        a, b, c = (int(token) % vocabulary for token in (7919, 15838, 23757))
        first = self.child(self.root, a)
        left, right = self.child(first, b), self.child(self.root, c)
        waiting = self._held()
        try:
            self._compute(waiting)
        except torch.OutOfMemoryError:
            raise
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as reason:
            raise ValueError(
                f"{self._checkpoint.name} ({type(self._checkpoint.model).__name__}) cannot be read as a tree of contexts: its "
                f"layers do not take an attention mask for each token or a cache of keys and values ({reason})"
            ) from reason
        self._waiting = []
        own = self.laws([left, right])
        ids = [node.token for node in self._trunk]
        for law, path in zip(own, ([*ids, a, b], [*ids, c]), strict=True):
            with evaluating(self._checkpoint.model):
                logits = self._checkpoint.model(torch.tensor([path], device=self._head.device), use_cache=False).logits
            plain = logits[0, -1].float().log_softmax(-1).cpu().numpy()
            error = float(np.abs(np.exp(law) - np.exp(plain)).max())
            allowed = max(1e-4, 8 * torch.finfo(self._checkpoint.model.dtype).eps)
            if not error <= allowed:
                raise ValueError(
                    f"{self._checkpoint.name} ({type(self._checkpoint.model).__name__}) in a tree of contexts differs "
                    f"from its plain forward by {error:.3g} in probability (allowed {allowed:.3g}): its attention does "
                    f"not take a mask of its own"
                )
        self.forwards = self.positions = 0


def _ancestors(node: Node) -> list[int]:
    places = []
    step: Node | None = node
    while step is not None:
        places.append(step.slot)
        step = step.parent
    return places


def path_of(node: Node) -> tuple[int, ...]:
    """Token ids from the root of texts (the opening left out) to a node of the same tree."""
    ids: list[int] = []
    step = node
    while step.parent is not None and not step.opens:
        ids.append(step.token)
        step = step.parent
    return tuple(reversed(ids))
