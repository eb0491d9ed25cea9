"""Texts with holes: which tokens of a record are hidden, by a marker in the text, by its answer, or at random.

In a prompt, `[[5]]` stands for five hidden tokens and the tokenizer's mask token for one. `[[]]` is as long as the record's
answer, which fills it; a prompt with an answer and no hole has it at the end. Words in ⟦ ⟧, as filled texts are shown, are
hidden and known, any number of them. With a share to hide, texts are taken as they are, `[[5]]` included, and that share of
their tokens is hidden at random.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from shiftscope.core import corpus
from shiftscope.core.corpus import Text
from shiftscope.core.denoising.any_subset import AnySubsetLM
from shiftscope.core.denoising.masked_model import MaskedLM
from shiftscope.core.randomness import uniforms

HOLE = re.compile(r"\[\[(\d*)\]\]")
_HIDE = 3  # stream of random numbers, apart from those of the draws
OPEN, CLOSE = "⟦", "⟧"
_GIVEN = re.compile(f"{OPEN}([^{CLOSE}]*){CLOSE}")
Model = AnySubsetLM | MaskedLM
_LONGEST = 1 << 20  # hidden positions of a text, where the model names no limit


@dataclass(frozen=True)
class Holed:
    """ids: of the text, the mask id (or the hidden token, where it is known) in the holes. hidden: positions, ascending.

    added: positions of tokens that the tokenizer put around the text. known: whether the hidden tokens are given.
    """

    ids: tuple[int, ...]
    hidden: tuple[int, ...]
    added: frozenset[int]
    known: bool


def holed(model: Model, text: Text, hide: float = 0.0, seed: int = 0) -> Holed:
    """The ids of a record and its hidden positions. hide: share of the tokens hidden at random, 0 for the text's own holes.

    Raises ValueError, naming the record, for a text without a hidden position, one that the model cannot read, and an answer
    that does not fit its hole.
    """
    where = f"record {text.id}"
    found = _at_random(model, text, hide, seed, where) if hide else _marked(model, text, where)
    limit = model.context_length
    if limit is not None and len(found.ids) > limit:
        raise _too_long(model, where, f"{len(found.ids)}", limit)
    if not found.hidden:
        raise ValueError(
            f"{where} has no hidden position: write [[5]] where five tokens are missing, or {_mask(model)} for "
            f"one, or put words to be scored in {OPEN} {CLOSE}; or give --hide 0.95 to hide that share of its tokens"
        )
    return found


def _marked(model: Model, text: Text, where: str) -> Holed:
    mask, prompt = _mask(model), text.prompt
    if _GIVEN.search(prompt):
        return _given(model, text, where)
    answer = () if text.answer is None else corpus.answer_ids(model.tokenizer, text.answer)
    places = list(HOLE.finditer(prompt))
    if text.answer is not None and not places and mask not in prompt:
        prompt, places = f"{prompt}[[]]", list(HOLE.finditer(f"{prompt}[[]]"))
    sizes = [len(answer) if place[1] == "" else int(place[1]) for place in places]
    if text.answer is None and any(place[1] == "" for place in places):
        raise ValueError(
            f"{where}: [[]] is a hole as long as the record's answer, and it has none: write [[5]] or give one"
        )
    if sum(sizes) > (model.context_length or _LONGEST):
        raise _too_long(model, where, f"at least {sum(sizes)}", model.context_length or _LONGEST)
    pieces = HOLE.split(prompt)[::2]
    ids, added = _encoded(model, "".join(a + b for a, b in zip(pieces, [*(mask * n for n in sizes), ""], strict=True)))
    hidden = tuple(place for place, token in enumerate(ids) if token == model.mask_id)
    if text.answer is None:
        return Holed(tuple(ids), hidden, added, known=False)
    if len(hidden) != len(answer) or any(b - a != 1 for a, b in pairwise(hidden)):
        raise ValueError(
            f"{where}: its answer has {len(answer)} tokens, and {len(hidden)} positions are hidden: an answer fills one hole, "
            f"written [[]]"
        )
    for place, token in zip(hidden, answer, strict=True):
        ids[place] = token
    return Holed(tuple(ids), hidden, added, known=True)


def _mask(model: Model) -> str:
    """The token that stands for a hidden one, as text; some tokenizers do not name it."""
    return str(model.tokenizer.convert_ids_to_tokens(model.mask_id))


def _given(model: Model, text: Text, where: str) -> Holed:
    """A text whose words in ⟦ ⟧ are hidden and known."""
    mask, words = _mask(model), _GIVEN.findall(text.prompt)
    if text.answer is not None or HOLE.search(text.prompt) or mask in text.prompt:
        raise ValueError(
            f"{where} gives hidden words in {OPEN} {CLOSE} and has an answer or an open hole as well: score and fill in two "
            f"records"
        )
    runs = [corpus.answer_ids(model.tokenizer, word) for word in words]
    pieces = _GIVEN.split(text.prompt)[::2]
    joined = "".join(a + b for a, b in zip(pieces, [*(mask * len(run) for run in runs), ""], strict=True))
    ids, added = _encoded(model, joined)
    hidden = tuple(place for place, token in enumerate(ids) if token == model.mask_id)
    for place, token in zip(hidden, [token for run in runs for token in run], strict=True):
        ids[place] = token
    return Holed(tuple(ids), hidden, added, known=True)


def _too_long(model: Model, where: str, tokens: str, limit: int) -> ValueError:
    return ValueError(
        f"{where}: a text of {tokens} tokens, hidden ones included, does not fit into {model.name}, which reads at most "
        f"{limit}: shorten it"
    )


def _at_random(model: Model, text: Text, hide: float, seed: int, where: str) -> Holed:
    ids, added = _encoded(model, text.prompt + (text.answer or ""))
    own = np.array([place for place in range(len(ids)) if place not in added], dtype=np.int64)
    if model.mask_id in ids:
        raise ValueError(f"{where} holds the mask token, which --hide takes for text: leave out --hide to fill it")
    count = min(max(1, round(hide * len(own))), len(own) - (not added))
    drawn = own[np.argsort(uniforms(seed, text.text, own, _HIDE))[: max(count, 0)]]
    return Holed(tuple(ids), tuple(np.sort(drawn).tolist()), added, known=True)


def _encoded(model: Model, text: str) -> tuple[list[int], frozenset[int]]:
    """The ids of a text with the tokens that its tokenizer puts around it, and where those are."""
    encoded = model.tokenizer(text, return_special_tokens_mask=True, verbose=False)
    added = _around(encoded["special_tokens_mask"], encoded["input_ids"], model.mask_id)
    return list(encoded["input_ids"]), added


def _around(flags: list[int], ids: list[int], mask_id: int) -> frozenset[int]:
    """Special positions at either end of a text; those within it, and masks, are its own."""
    own = [place for place, (flag, token) in enumerate(zip(flags, ids, strict=True)) if not flag or token == mask_id]
    first, last = (own[0], own[-1]) if own else (len(ids), len(ids))
    return frozenset((*range(first), *range(last + 1, len(ids))))


def plain(tokenizer: Any, ids: list[int], added: frozenset[int]) -> str:
    """The text without the tokens around it."""
    return _decoded(tokenizer, [token for place, token in enumerate(ids) if place not in added])


def marked(tokenizer: Any, ids: list[int], holes: Holed) -> str:
    """The text with every stretch that was hidden in ⟦ ⟧."""
    return "".join(
        f"{OPEN}{_decoded(tokenizer, run)}{CLOSE}" if hidden else _decoded(tokenizer, run)
        for hidden, run in _runs(ids, holes)
    )


def _runs(ids: list[int], holes: Holed) -> Iterator[tuple[bool, list[int]]]:
    hidden, run, state = set(holes.hidden), list[int](), False
    for place, token in enumerate(ids):
        if place in holes.added:
            continue
        if (place in hidden) != state and run:
            yield state, run
            run = []
        state = place in hidden
        run.append(token)
    if run:
        yield state, run


def _decoded(tokenizer: Any, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))
