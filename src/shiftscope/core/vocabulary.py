"""Two vocabularies bridged in id space: which tokens are the same string, and how one tokenizer spells the other's
others.

Text that is being written is never tokenised again: a token that is a part of a character would come back as U+FFFD.
Source: arXiv 2509.22230 (proposals are restricted to tokens of equal string; special tokens go through a small table).
Deviation: every token of the one vocabulary that is missing in the other gets an entry in that table, made once by
greedy longest match over the token strings, not special tokens alone.
"""

# V ids of a vocabulary

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from shiftscope.core.checkpoints import Checkpoint
from shiftscope.core.decode import end_ids


@dataclass(frozen=True)
class Bridge:
    """own: the vocabulary texts are written in; other: the one that reads along.

    own_of_V: for each id of the other, the own id of equal string, -1 where there is none. spelling: for each own id,
    the ids of the other that spell it; empty where it cannot. shared: how many tokens are the same string.
    """

    own_of_V: Tensor
    spelling: tuple[tuple[int, ...], ...]
    shared: int

    @property
    def readable_V(self) -> Tensor:
        """Which own ids [V] the other can read."""
        return torch.tensor([bool(ids) for ids in self.spelling])

    @property
    def is_identity(self) -> bool:
        """Whether every id means the same in both."""
        return all(ids == (own,) for own, ids in enumerate(self.spelling)) and len(self.own_of_V) == len(self.spelling)

    def spell(self, own: int) -> tuple[int, ...]:
        """An own token in the other's ids."""
        return self.spelling[own]


def bridge(own: Checkpoint, other: Checkpoint) -> Bridge:
    """Bridge two tokenizers by token string; padding ids beyond the tokenizers stand for nothing.

    The other's end token stands for the own one where it has no string of its own there: both end a text.
    Raises ValueError where no token is shared.
    """
    ours, theirs = _strings(own), _strings(other)
    if ours == theirs:
        return identity(own.vocabulary_size, other.vocabulary_size)
    id_of = {text: token for token, text in ours.items()}
    their_id_of = {text: token for token, text in theirs.items()}
    own_of_V = torch.full((other.vocabulary_size,), -1, dtype=torch.long)
    for token, text in theirs.items():
        own_of_V[token] = id_of.get(text, -1)
    shared = int((own_of_V >= 0).sum())
    if not shared:
        raise ValueError(
            f"{own.name} and {other.name} share no token (of {len(ours)} and {len(theirs)}): ids cannot be bridged; "
            f"use two models whose tokenizers are of one family"
        )
    spelling = [
        () if text is None else (their_id_of[text],) if text in their_id_of else _spelled(own, text, other, their_id_of)
        for token, text in ((token, ours.get(token)) for token in range(own.vocabulary_size))
    ]
    for ours_end, theirs_end in zip(end_ids(own)[:1], end_ids(other)[:1], strict=False):
        if own_of_V[theirs_end] < 0:
            own_of_V[theirs_end], spelling[ours_end] = ours_end, (theirs_end,)
    return Bridge(own_of_V, tuple(spelling), shared)


def identity(own_size: int, other_size: int) -> Bridge:
    """One vocabulary, whose unembeddings may be padded to different sizes."""
    common = min(own_size, other_size)
    own_of_V = torch.where(torch.arange(other_size) < common, torch.arange(other_size), -1)
    return Bridge(own_of_V, tuple((token,) if token < common else () for token in range(own_size)), common)


def _strings(checkpoint: Checkpoint) -> dict[int, str]:
    """Token strings by id, as the tokenizer stores them, for the ids that the model can write."""
    return {
        token: text for text, token in checkpoint.tokenizer.get_vocab().items() if token < checkpoint.vocabulary_size
    }


def _spelled(own: Checkpoint, text: str, other: Checkpoint, id_of: dict[str, int]) -> tuple[int, ...]:
    """A token's string in the other's tokens, by longest match; a special token's is ordinary text to the other."""
    if text in own.tokenizer.get_added_vocab():
        found = tuple(other.tokenizer(text, add_special_tokens=False)["input_ids"])
        return () if other.tokenizer.unk_token_id in found else found
    ids, start = [], 0
    while start < len(text):
        stop = next((stop for stop in range(len(text), start, -1) if text[start:stop] in id_of), None)
        if stop is None:
            return ()
        ids.append(id_of[text[start:stop]])
        start = stop
    return tuple(ids)
