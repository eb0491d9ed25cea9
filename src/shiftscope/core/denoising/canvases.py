"""From a prompt to the canvas that a masked model fills: hidden positions after it, or those that it names itself.

A prompt with holes is filled in (infilling): the mask token stands for one hidden position, [[5]] for five. What follows a
hole is read too, and the length is given. Any other prompt is gone on with.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from shiftscope.core import corpus
from shiftscope.core.corpus import Template, Text
from shiftscope.core.denoising.holes import HOLE
from shiftscope.core.denoising.masked_model import MaskedLM
from shiftscope.core.masked import Canvas, prompted


def canvas_of(
    model: MaskedLM, text: Text, room: int, document: int, template: Template = "plain"
) -> tuple[Canvas, bool]:
    """The canvas of a record, and whether it is filled in (its prompt hides positions itself).

    room: hidden positions after a prompt that hides none. document: keys its draws.
    Raises ValueError, naming the record, for a text that the model cannot read together with its hidden positions, and for
    [[]], a hole without a size.
    """
    text = _opened(model, text)
    whole = tuple(model.tokenizer(text.prompt)["input_ids"]) if template == "plain" else ()
    ids = whole if model.mask_id in whole else context_ids(model, text, template)
    limit = model.context_length
    if model.mask_id not in ids:
        try:
            return prompted(model, ids, room, document), False
        except ValueError as error:
            raise ValueError(f"record {text.id}: {error}") from error
    if limit is not None and len(ids) > limit:
        raise ValueError(
            f"record {text.id}: a text of {len(ids)} tokens, hidden ones included, does not fit into {model.name}, which "
            f"reads at most {limit}: shorten it"
        )
    return Canvas(document, list(ids), ids.index(model.mask_id), model.mask_id), True


def _opened(model: MaskedLM, text: Text) -> Text:
    """The record with its [[5]] written as mask tokens."""
    sizes = [place[1] for place in HOLE.finditer(text.prompt)]
    if "" in sizes:
        raise ValueError(f"record {text.id}: [[]] is a hole without a size: write [[5]] for five hidden tokens")
    if not sizes:
        return text
    mask = str(model.tokenizer.convert_ids_to_tokens(model.mask_id))
    return replace(text, prompt=HOLE.sub(lambda place: mask * int(place[1]), text.prompt))


def context_ids(model: MaskedLM, text: Text, template: Template = "plain") -> tuple[int, ...]:
    """The prompt as token ids that can be gone on with: a token that the tokenizer closes every text with is left out.

    template: plain, chat or frame, as for causal models. Raises ValueError where there is no chat template.
    """
    named: Any = model  # its name and tokenizer are all that is read
    ids = corpus.context_ids(named, text, template)
    closing = model.tokenizer.sep_token_id
    if (
        closing is not None
        and len(ids) > 1
        and ids[-1] == closing
        and not text.prompt.endswith(model.tokenizer.sep_token)
    ):
        ids = ids[:-1]
    return ids
