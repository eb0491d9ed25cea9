"""Prompts that mark words for replacement, in ids, with the reference ids of every word; drawn outputs and recorded ones.

A word's reference ids are cut from the prompt as it was really encoded, brackets included, and from the same prompt without
brackets: a bracket changes how the word behind it is cut, which a comparison with one of them alone would book as an edit.

Source: arXiv 2601.14658 (the task). Deviation: both references; the default brackets stand off the word, `[ word ]`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shiftscope.core import corpus
from shiftscope.core.bytes.token_bytes import TokenBytes
from shiftscope.core.checkpoints import Checkpoint
from shiftscope.core.corpus import Template, Text
from shiftscope.core.decode import end_ids
from shiftscope.core.edits.edit_slots import Brackets, Cut, Spelled, Target, aligned, marked


@dataclass(frozen=True)
class Passage:
    """A text with the words to replace."""

    number: int
    text: str
    targets: tuple[Target, ...]


@dataclass(frozen=True)
class Reference:
    """The word as it is before the edit. bracketed: its ids in the prompt; plain: its ids without brackets around it."""

    word: str
    bracketed: Cut
    plain: Cut


@dataclass(frozen=True)
class Prompt:
    """A prompt in ids with what it asks for. slot_prefix: ids of the passage's copy up to its first slot."""

    passage: Passage
    ids: tuple[int, ...]
    references: tuple[Reference, ...]
    slot_prefix: tuple[int, ...] = ()

    @property
    def context(self) -> tuple[int, ...]:
        """What stands before the first slot of the output."""
        return (*self.ids, *self.slot_prefix)


Ids = Callable[[str], tuple[int, ...]]


def prompt_ids(checkpoint: Checkpoint, instruction: str, template: Template) -> Ids:
    """From a passage to the ids of its prompt; a plain one opens with the tokenizer's own special tokens, else its first."""
    tokenizer = checkpoint.tokenizer
    first = [token for token in (tokenizer.bos_token_id, *end_ids(checkpoint)) if token is not None][:1]
    opening = tuple(first) if template == "plain" and not tokenizer("")["input_ids"] else ()

    def ids(passage: str) -> tuple[int, ...]:
        text = Text(0, "0", instruction.replace("{passage}", passage))
        return (*opening, *corpus.context_ids(checkpoint, text, template))

    return ids


def prompt(ids_of: Ids, tokens: TokenBytes, passage: Passage, brackets: Brackets) -> Prompt:
    """The prompt for all targets of a passage, with the ids of each in brackets and without.

    Raises ValueError where the tokenizer changes the passage, so that its words cannot be found among the ids.
    """
    text, places = marked(passage.text, passage.targets, brackets)
    ids = ids_of(text)
    in_brackets = found(Spelled.of(ids, tokens.spelled), text, places, tokens)
    prefix = text.encode()[: places[0][0]].decode()
    slot_prefix = tokens.plain.encode(prefix, add_special_tokens=False).ids
    references = zip(passage.targets, in_brackets, plain_cuts(ids_of, tokens, passage), strict=True)
    named = tuple(Reference(passage.text[t.begin : t.end], inside, plain) for t, inside, plain in references)
    return Prompt(passage, ids, named, tuple(slot_prefix))


def plain_cuts(ids_of: Ids, tokens: TokenBytes, passage: Passage) -> list[Cut]:
    """The targets in a prompt without brackets, each with the blanks in front of it."""
    places = []
    for target in passage.targets:
        before = passage.text[: target.begin]
        begin = len(before.rstrip().encode())
        places.append((begin, len(passage.text[: target.end].encode())))
    return found(Spelled.of(ids_of(passage.text), tokens.spelled), passage.text, places, tokens)


def found(spelled: Spelled, text: str, places: Iterable[tuple[int, int]], tokens: TokenBytes) -> list[Cut]:
    """The slots at these byte places of a text that stands last in a prompt."""
    start = spelled.text.rfind(text.encode())
    if start < 0:
        tokens.normalised(text)  # says what is changed
        raise ValueError(f"the prompt does not hold the passage {text[:60]!r} as it is: give the ids of its own prompt")
    cuts = [spelled.slot(start + begin, start + end) for begin, end in places]
    for cut in cuts:
        if isinstance(cut, str):
            raise ValueError(f"a marked word of the passage {text[:60]!r} cannot be read: {cut}")
    return cuts  # type: ignore[return-value]


def slots_of(output: Spelled, passage: Passage) -> list[Cut | str]:
    """What stands in each slot of a whole output."""
    places = aligned(output.text, passage.text, passage.targets)
    return [place if isinstance(place, str) else output.slot(*place) for place in places]


def check_record(record: Any, number: int) -> None:
    """Raises ValueError for a record without raw output ids or without a passage.

    Encoding an output's text again gives canonical ids, so that the rate of phantom edits would be 0 by construction.
    """
    where = f"record {number + 1}"
    if not isinstance(record, Mapping):
        raise ValueError(f"{where} is a {type(record).__name__}, not an object with a passage and output_ids")
    output = record.get("output_ids", record.get("token_ids"))
    if not isinstance(output, Sequence) or isinstance(output, str) or not all(isinstance(i, int) for i in output):
        raise ValueError(
            f"{where} has no `output_ids`, the ids as the model wrote them: text alone cannot show a phantom edit, since "
            f"encoding it again gives the canonical ids and a rate of 0 by construction; record token ids when you generate"
        )
    if not isinstance(record.get("passage"), str):
        raise ValueError(f"{where} has no `passage`, the text of its prompt with the words to replace in brackets")


def recorded(record: Any, number: int, tokens: TokenBytes, ids_of: Ids) -> tuple[Prompt, list[Cut | str]]:
    """A recorded trial: the prompt with its references, and what the output has in each slot.

    record: `passage` with its words in brackets, `output_ids` (or token_ids) as the model gave them, and `prompt_ids` (or
    prompt_token_ids) where the prompt was another than the default one.
    Raises ValueError for a record without them, and ids of another vocabulary.
    """
    check_record(record, number)
    output = record.get("output_ids", record.get("token_ids"))
    text = record["passage"]
    passage, places = parsed(text, number)
    given = record.get("prompt_ids", record.get("prompt_token_ids"))
    ids = tuple(given) if given else ids_of(text)
    cuts = found(Spelled.of(ids, tokens.spelled), text, places, tokens)
    references = zip(passage.targets, cuts, plain_cuts(ids_of, tokens, passage), strict=True)
    named = tuple(Reference(passage.text[t.begin : t.end], inside, plain) for t, inside, plain in references)
    return Prompt(passage, ids, named), slots_of(Spelled.of(output, tokens.spelled), passage)


def parsed(text: str, number: int) -> tuple[Passage, list[tuple[int, int]]]:
    """A passage with words in brackets: without them, and the byte places just inside each pair."""
    plain, done, targets, places = "", 0, [], []
    for match in re.finditer(r"\[\s*([^\[\]]*?)\s*\]", text):
        if not match[1]:
            continue
        plain += text[done : match.start()]
        targets.append(Target(len(plain), len(plain) + len(match[1])))
        plain, done = plain + match[1], match.end()
        begin = len(text[: match.start() + 1].encode())
        places.append((begin, len(text[: match.end() - 1].encode())))
    if not targets:
        raise ValueError(f"the passage of record {number + 1} has no word in brackets: {text[:60]!r}")
    return Passage(number, plain + text[done:], tuple(targets)), places
