"""Write answers piece by piece with a KV cache, ended by what the decoded text says, after a prompt that is read once.

A stop string may span tokens: text that could still become part of one is kept back, so that nothing of it is ever
given out. A character cut into several tokens is kept back until it is whole.
"""

# B answers still being written, T positions, V vocabulary

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from shiftscope.core.checkpoints import Checkpoint
from shiftscope.core.completion import Prefix
from shiftscope.core.decode import Sampling, choose, end_ids, left_padded
from shiftscope.core.head import evaluating
from shiftscope.core.randomness import uniforms

BROKEN = "\ufffd"  # what bytes that are no character (yet) decode to
END, LENGTH = "end", "length"

Ending = Callable[[str, bool], tuple[int | None, int]]
"""Where a text ends: (text, whether it is whole) -> (where the answer ends or None, how much of the text is safe: can
no longer become part of what ends it)."""


def stop_strings(*stops: str) -> Ending:
    """An answer ends where one of these texts begins. Raises ValueError for an empty one."""
    if not all(stops):
        raise ValueError("a stop string is empty: every text holds it; leave it out")

    def ending(text: str, whole: bool) -> tuple[int | None, int]:
        found = [place for place in map(text.find, stops) if place >= 0]
        if found:
            return min(found), min(found)
        return None, len(text) if whole else len(text) - max((_open(text, stop) for stop in stops), default=0)

    return ending


def closing_fence(fence: str) -> Ending:
    """An answer that stands inside a fence ends where that fence closes; a code block of its own stays in it.

    A fence that a letter or digit follows (```python) opens a code block, and the next one closes it.
    """

    def ending(text: str, whole: bool) -> tuple[int | None, int]:
        inside, place = False, 0
        while (found := text.find(fence, place)) >= 0:
            place = found + len(fence)
            if not inside and place == len(text) and not whole:
                return None, found  # what follows decides what it is
            if not inside and not text[place : place + 1].isalnum():
                return found, found
            inside = not inside
        return None, len(text) if whole else max(place, len(text) - _open(text, fence))

    return ending


def _open(text: str, stop: str) -> int:
    """Length of the longest end of the text that a stop string begins with (short of the whole string)."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)


@dataclass(frozen=True)
class Written:
    """A finished answer.

    ids: its tokens, the last one that holds any of its text included; end-of-text and what only ends it are left out.
    text: up to where it ends. ended: the name of the ending that was met, `end` (of text) or `length`.
    """

    ids: tuple[int, ...]
    text: str
    ended: str


@dataclass(frozen=True)
class Piece:
    """What one token added to an answer. row: which answer; text: may be empty; written: the whole, with the last piece."""

    row: int
    text: str
    written: Written | None = None


class Scribe:
    """One answer as it grows: takes tokens, gives out text that is certain, and knows when it has ended.

    endings: name -> Ending. Every token is decoded with the few before it, so that the cost of a token does not grow.
    """

    def __init__(self, tokenizer: Any, endings: Mapping[str, Ending]) -> None:
        self.tokenizer, self.endings = tokenizer, endings
        self.ids: list[int] = []
        self.text = ""
        self.written: Written | None = None
        self._lengths: list[int] = []  # of the text after each token
        self._start = self._read = self._given = 0

    def add(self, token: int) -> str:
        """Take one token; returns the text that is now certain. `written` is set where it ended the answer."""
        self.ids.append(token)
        self._decode(last=False)
        self._lengths.append(len(self.text))
        return self._settle(whole=False)

    def close(self, ended: str) -> str:
        """No token follows; returns the rest of the text."""
        self._decode(last=True)
        if self._lengths:
            self._lengths[-1] = len(self.text)
        rest = self._settle(whole=True)
        if self.written is None:
            self.written = Written(tuple(self.ids), self.text, ended)
        return rest

    def _decode(self, last: bool) -> None:
        now = self._decoded(self._start, len(self.ids))
        if now.endswith(BROKEN) and not last:
            return
        self.text += now[len(self._decoded(self._start, self._read)) :]
        self._start, self._read = self._read, len(self.ids)

    def _decoded(self, start: int, stop: int) -> str:
        return str(self.tokenizer.decode(self.ids[start:stop], clean_up_tokenization_spaces=False))

    def _settle(self, whole: bool) -> str:
        found = {name: ending(self.text, whole) for name, ending in self.endings.items()}
        ends = {name: end for name, (end, _) in found.items() if end is not None}
        sure = min((safe for _, safe in found.values()), default=len(self.text))
        if ends and min(ends.values()) <= sure:
            name = min(ends, key=lambda name: ends[name])
            sure = ends[name]
            kept = 1 + next(n for n, length in enumerate(self._lengths) if length >= sure) if sure else 0
            self.written = Written(tuple(self.ids[:kept]), self.text[:sure], name)
        piece = self.text[self._given : sure]
        self._given = max(self._given, sure)
        return piece


def penalised(logits_BV: Tensor, seen_BV: Tensor, penalty: float) -> Tensor:
    """Logits with those of seen tokens divided by the penalty where positive, multiplied where negative (1: unchanged).

    Source: arXiv 1909.05858, section 4.1, with the sign handled as `transformers` does.
    """
    lowered_BV = torch.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty)
    return torch.where(seen_BV, lowered_BV, logits_BV)


def ending_ids(checkpoint: Checkpoint) -> frozenset[int]:
    """The ids after which nothing belongs to an answer: end-of-text and every other special token but the unknown one."""
    special = set(checkpoint.tokenizer.all_special_ids) - {checkpoint.tokenizer.unk_token_id}
    return frozenset(special | set(end_ids(checkpoint)))


def write(
    checkpoint: Checkpoint,
    contexts: Sequence[Sequence[int]],
    documents: Sequence[int],
    *,
    sampling: Sampling,
    endings: Mapping[str, Ending],
    repetition_penalty: float = 1.0,
    prefix: Prefix | None = None,
) -> list[Written]:
    """The finished answers of `stream`, in the order of the contexts."""
    pieces = stream(
        checkpoint, contexts, documents, sampling=sampling, endings=endings, repetition_penalty=repetition_penalty,
        prefix=prefix,
    )  # fmt: skip
    found = {piece.row: piece.written for piece in pieces if piece.written is not None}
    return [found[row] for row in range(len(contexts))]


def stream(
    checkpoint: Checkpoint,
    contexts: Sequence[Sequence[int]],
    documents: Sequence[int],
    *,
    sampling: Sampling,
    endings: Mapping[str, Ending],
    repetition_penalty: float = 1.0,
    prefix: Prefix | None = None,
) -> Iterator[Piece]:
    """Write one answer after each context, token by token, all together; an answer that ends leaves the batch.

    documents: the number of each context, which keys its random numbers. endings: what ends an answer in its text; it
    also ends with a special token, after `max_new_tokens`, and where the model can read no more. repetition_penalty: on
    the tokens of the answer itself, not of the context. prefix: a beginning of the contexts that was read before; it is
    not read again where all of them begin with it, and not altered.
    Raises ValueError for a context that leaves no room, and NaN logits.
    """
    ends, limit = ending_ids(checkpoint), checkpoint.context_length or 1 << 30
    for number, context in zip(documents, contexts, strict=True):
        if not 0 < len(context) < limit:
            raise ValueError(
                f"the context of text {number} has {len(context)} tokens; {checkpoint.name} needs at least 1 and reads at "
                f"most {limit}, the answer included: give a shorter prompt, or a model that reads more"
            )
    scribes = [Scribe(checkpoint.tokenizer, endings) for _ in contexts]
    rooms = [min(sampling.max_new_tokens, limit - len(context)) for context in contexts]
    reader = _Reader(checkpoint, contexts, prefix, sampling.max_new_tokens) if contexts else None
    seen_BV = torch.zeros(len(contexts), checkpoint.vocabulary_size, dtype=torch.bool, device=checkpoint.head.device)
    alive, position = list(range(len(contexts))), 0
    while alive and reader:
        numbers = [documents[row] for row in alive]
        logits_BV = _checked(penalised(reader.logits_BV, seen_BV, repetition_penalty), checkpoint, numbers)
        uniform_B = torch.from_numpy(uniforms(sampling.seed, numbers, position))
        token_B = choose(logits_BV, uniform_B, sampling.temperature, sampling.top_p)
        position, kept = position + 1, []
        for place, (row, token) in enumerate(zip(alive, token_B.tolist(), strict=True)):
            scribe = scribes[row]
            text = scribe.close(END) if token in ends else scribe.add(token)
            if scribe.written is None and position == rooms[row]:
                text += scribe.close(LENGTH)
            yield Piece(row, text, scribe.written)
            if scribe.written is None:
                kept.append(place)
        alive = [alive[place] for place in kept]
        if alive:
            seen_BV = seen_BV.scatter(-1, token_B[:, None], True)[kept]
            reader.follow(token_B, kept)


def _checked(logits_BV: Tensor, checkpoint: Checkpoint, documents: Sequence[int]) -> Tensor:
    broken_B = logits_BV.isnan().any(-1)
    if bool(broken_B.any()):
        number = documents[int(broken_B.nonzero()[0])]
        raise ValueError(
            f"{checkpoint.name} gives logits that are not numbers for text {number}: load it with --dtype float32"
        )
    return logits_BV


class _Reader:
    """The cache of a batch of contexts, and the logits [B, V] (float32) that follow what it has read.

    After a shared prefix the rest of each context is padded on its left. A window of attention counts such holes as
    tokens, so contexts of unequal length are read whole by a model whose window they outgrow.
    """

    def __init__(
        self, checkpoint: Checkpoint, contexts: Sequence[Sequence[int]], prefix: Prefix | None, max_new_tokens: int
    ) -> None:
        self.checkpoint, self.device = checkpoint, checkpoint.head.device
        lengths = [len(context) for context in contexts]
        window = getattr(checkpoint.model.config.get_text_config(), "sliding_window", None)
        holes = len(set(lengths)) > 1 and window is not None and max(lengths) + max_new_tokens > window
        known = prefix.ids if prefix and not holes else ()
        if not all(len(context) > len(known) and tuple(context[: len(known)]) == known for context in contexts):
            known = ()
        self.cache: Any = None
        if known and prefix:
            self.cache = copy.deepcopy(prefix.cache)
            self.cache.batch_repeat_interleave(len(contexts))
        ids_BT, mask_BT = left_padded([context[len(known) :] for context in contexts])
        self.padded = len(set(lengths)) > 1
        self.mask_BT = torch.cat([torch.ones(len(contexts), len(known), dtype=torch.long), mask_BT], 1).to(self.device)
        self.logits_BV = self._logits(ids_BT.to(self.device))

    def follow(self, token_B: Tensor, kept: Sequence[int]) -> None:
        """Read one more token in every row that is kept."""
        if len(kept) < len(token_B):
            kept_B = torch.tensor(kept, device=self.device)
            self.cache.batch_select_indices(kept_B)
            token_B, self.mask_BT = token_B[kept_B], self.mask_BT[kept_B]
        self.mask_BT = torch.nn.functional.pad(self.mask_BT, (0, 1), value=1)
        self.logits_BV = self._logits(token_B[:, None])

    def _logits(self, step_BT: Tensor) -> Tensor:
        more = {}
        if self.padded:
            places_BT = (self.mask_BT.cumsum(-1) - 1).clamp(min=0)[:, -step_BT.shape[1] :]
            more = {"attention_mask": self.mask_BT, "position_ids": places_BT}
        head = self.checkpoint.head
        with evaluating(self.checkpoint.model):
            output = head.body(input_ids=step_BT, past_key_values=self.cache, use_cache=True, **more)
            self.cache = output.past_key_values
            return head.logits(output.last_hidden_state[:, -1]).float()
