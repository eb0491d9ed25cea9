"""Lists written into a prompt: how the items found so far are shown, where the next one opens, where an item ends.

Source: arXiv 2410.02284 (a numbered list of quoted items; ways of solving under headings). The words are ours.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from dataclasses import dataclass

from shiftscope.core import corpus
from shiftscope.core.checkpoints import Checkpoint
from shiftscope.core.corpus import Template, Text


@dataclass(frozen=True)
class ListFormat:
    """How a list is written after a prompt.

    before: what precedes the list, with {prompt}. item: a finished item, with {item} and perhaps its number {n}.
    opening: what opens the next item, perhaps with {n}. stop: text that ends an item.
    """

    before: str = "{prompt}\n\nAnswer:\n"
    item: str = '{n}. "{item}"\n'
    opening: str = '{n}. "'
    stop: str = '"'

    def __post_init__(self) -> None:
        for name, needed, allowed in (("before", "prompt", ()), ("item", "item", ("n",)), ("opening", "", ("n",))):
            found = {field for _, field, _, _ in string.Formatter().parse(getattr(self, name)) if field is not None}
            if (needed and needed not in found) or found - {needed, *allowed}:
                places = ", ".join(f"{{{field}}}" for field in filter(None, (needed, *allowed))) or "none"
                raise ValueError(f"the list's {name} is {getattr(self, name)!r}: its places are {places}")
        if not self.stop:
            raise ValueError("the list's stop is empty: give the text that ends an item")


LISTS = ListFormat()
THOUGHTS = ListFormat(
    before="{prompt}\n\nThis can be solved in several ways. Here they are, each one step by step.\n\n",
    item="### Way {n}:\n- **Step 1:**{item}\n\n",
    opening="### Way {n}:\n- **Step 1:**",
    stop="#",
)


def context_ids(
    checkpoint: Checkpoint,
    text: Text,
    items: Sequence[str],
    form: ListFormat,
    *,
    template: Template = "plain",
    room: int = 1,
    most: int | None = None,
) -> tuple[tuple[int, ...], int]:
    """The prompt with a list of items and the next one opened, as ids, and how many items were left out, oldest first.

    room: tokens that must still fit the model's context behind it. most: never list more items than this.
    """
    dropped = 0 if most is None else max(0, len(items) - most)
    while True:
        shown = [form.item.format(n=n + 1, item=item) for n, item in enumerate(items)][dropped:]
        listed = "".join(shown) + form.opening.format(n=len(items) + 1)
        if template == "plain":
            whole = Text(text.text, text.id, form.before.format(prompt=text.prompt) + listed)
            ids = corpus.context_ids(checkpoint, whole)
        else:
            ids = corpus.context_ids(checkpoint, text, template) + corpus.answer_ids(checkpoint.tokenizer, listed)
        limit = checkpoint.context_length
        if limit is None or len(ids) + room <= limit or dropped == len(items):
            return ids, dropped
        dropped += 1


def normalised(item: str) -> str:
    """What two spellings of one item share: case, white space, quotes and closing marks aside."""
    return re.sub(r"\s+", " ", item).strip(" \"'“”‘’.,;:").casefold()
