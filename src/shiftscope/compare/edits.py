"""Phantom edits: how often a model changes the token ids of a word it was asked to replace, but not the word.

Words of a passage are put in brackets and the model is asked for others. Its raw ids tell three things apart that text
cannot: the word is unchanged, replaced, or the same word by other ids, an edit that the detokenizer undoes. Each phantom is
sorted into an artefact; decoders that should help (an id mask fitted on what was seen, a canonical mask inside the slot, an
exact byte-level decoder) are measured beside it. The vocabulary's own part, in how many ways it can spell a word, needs no
model; the mass of those ways in a slot is computed exactly beside the sampled rate.

Source: arXiv 2601.14658 (task, outcomes, artefacts, transitions, id mask).
Deviation: what cannot be scored is counted apart; brackets stand off the word and tight ones are the control; the word's
reference ids are cut from the prompt, with the un-bracketed passage as second reference; the id mask is fitted on half of
the words and scored on the other half too; the rules that sort artefacts are ours; where there is no chat template the
model writes the slot alone, behind a given copy of the passage.
See also: `generate bytes` is the byte-exact decoder.
"""

from __future__ import annotations

import hashlib
import platform
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from shiftscope.core import answers, corpus
from shiftscope.core.answers import Advance, Loading, Texts
from shiftscope.core.bytes import token_bytes, tokenizer_files
from shiftscope.core.bytes.canonical import Support
from shiftscope.core.bytes.token_bytes import TokenBytes
from shiftscope.core.checkpoints import Checkpoint, opened
from shiftscope.core.edits import edit_prompts, edit_summary, phantom
from shiftscope.core.edits.artefacts import LABELS, Affixes
from shiftscope.core.edits.edit_passages import Frame, passages_of, texts_of
from shiftscope.core.edits.edit_probe import Decoder, Drawing, Probe
from shiftscope.core.edits.edit_prompts import Ids, Passage, Prompt
from shiftscope.core.edits.edit_slots import Brackets
from shiftscope.core.edits.edit_trials import (
    BYTES,
    CANONICAL,
    IDS,
    MASSES,
    NONE,
    RECORDED,
    SURFACE,
    TIGHT,
    TRIALS,
    forbidden_ids,
    row_of,
    shown,
)  # fmt: skip
from shiftscope.core.parts import Parts
from shiftscope.core.result import Result
from shiftscope.core.settings import unread

INSTRUCTION = (
    "Replace each word in square brackets by another word that fits there. Keep the brackets and change nothing else.\n\n"
    "Text: {passage}\n\nText with new words: "
)
REMEDIES = (IDS, CANONICAL, BYTES)
SURFACE_CHUNK = 50  # words of one part
DEFAULT_PASSAGES = 40


@dataclass(frozen=True)
class Probing:
    """What is asked.

    write: slot (a copy of the passage is given up to the marked word, the model writes the word alone), passage (it
    writes everything again, as in the paper) or auto (passage where the tokenizer has a chat template, else slot).
    template: chat, plain or auto (chat where there is one). instruction: of the prompt, with {passage} in it. share: of
    a passage's words that are no stop words to mark, at least one. shortest, longest: words of a passage. remedies: of
    id_mask, canonical_mask and byte_exact (repeatable; each shard of a sharded run fits an id mask of its own); none
    leaves them out. support: of the byte-exact decoder's law: canonical, unmasked, or all (every id sequence; for short
    words). exact: compute slot masses too. words: frequent words of the texts whose phantom surface is counted.
    """

    write: Literal["auto", "slot", "passage"] = "auto"
    template: Literal["auto", "plain", "chat"] = "auto"
    instruction: str = INSTRUCTION
    share: float = 0.05
    shortest: int = 100
    longest: int = 600
    remedies: tuple[str, ...] = REMEDIES
    support: Support = "canonical"
    exact: bool = True
    words: int = 400

    def __post_init__(self) -> None:
        if "{passage}" not in self.instruction:
            raise ValueError(f"the instruction {self.instruction[:60]!r} has no {{passage}}: say where the text goes")
        if not 0 < self.share <= 1 or not 1 <= self.shortest <= self.longest or self.words < 1:
            raise ValueError(
                f"share {self.share}, shortest {self.shortest}, longest {self.longest} and words {self.words}: need "
                f"0 < share <= 1, 1 <= shortest <= longest and at least 1 word"
            )
        unknown = [name for name in self.remedies if name not in (*REMEDIES, NONE)]
        if unknown:
            raise ValueError(f"{unknown[0]!r} is no remedy: give {', '.join(REMEDIES)}, or none for none of them")


def edits(
    model: str | Checkpoint,
    *,
    texts: Texts = None,
    limit: int | None = None,
    recorded: Texts = None,
    probing: Probing = Probing(),
    drawing: Drawing = Drawing(),
    affixes: Affixes = Affixes(),
    loading: Loading = Loading(),
    parts: Parts | None = None,
    advance: Advance | None = None,
) -> Result:
    """Measure phantom edits: other token ids for the same word, by artefact, with remedies and exact masses.

    model: the checkpoint (path, hub id, zoo name, or a loaded Checkpoint); or a tokenizer alone (a tokenizer.json,
        tekken.json or SentencePiece file), whose phantom surface is counted and whose recorded outputs are scored.
    texts: jsonl, parquet or txt with a passage per record; without, help topics of this Python.
    limit: only the first records.
    recorded: outputs that were drawn elsewhere, jsonl or parquet: passage (with its words in brackets), output_ids, and
        prompt_ids where the prompt was not the default one; then nothing is drawn.
    Returns a Result whose table has one row per trial (of a tokenizer alone: one per word).
    Raises ValueError, in one sentence, for recorded outputs without raw ids, texts without a passage of the right length,
    and a tokenizer that changes the texts.
    """
    asked, parts = _asked(model, probing, loading), parts or Parts()
    _check_read(asked, recorded is not None, probing, drawing, loading)
    records = None if recorded is None else _records(recorded, limit)
    settings = {
        "texts": texts, "limit": limit, "recorded": answers.identified(recorded), "probing": asdict(probing),
        "drawing": asdict(drawing), "affixes": asdict(affixes), "loading": asdict(loading), "way": asked.way,
        "template": asked.template,
    }  # fmt: skip
    provenance = _provenance(asked, settings)
    parts.settle(provenance)
    plain = (
        texts_of(texts, limit) if texts is not None or records is None else [record["passage"] for record in records]
    )
    counted = _surface(asked, plain, probing.words, affixes, parts, advance, final=not asked.draws and records is None)
    masses, notes = None, []
    if records is not None:
        trials = _recorded(asked, records, affixes, parts, advance)
    elif asked.checkpoint is None:
        trials = None
        notes = [f"{asked.name} is a tokenizer alone: nothing was drawn; name a checkpoint to measure phantom edits"]
    else:
        most = DEFAULT_PASSAGES if texts is None else None
        passages, notes = passages_of(plain, _frame(asked, probing, drawing, most))
        trials, masses = _drawn(asked, passages, probing, drawing, affixes, loading, parts, advance)
    return summarise(trials, masses, counted, notes=notes, provenance=provenance)


@dataclass(frozen=True)
class Asked:
    """Who is asked and how. checkpoint: None for a tokenizer alone. way: slot or passage."""

    name: str
    checkpoint: Checkpoint | None
    tokens: TokenBytes
    ids_of: Ids
    way: Literal["slot", "passage"]
    template: Literal["plain", "chat"]

    @property
    def draws(self) -> bool:
        """Whether there is a model to draw from."""
        return self.checkpoint is not None


def _check_read(asked: Asked, recorded: bool, probing: Probing, drawing: Drawing, loading: Loading) -> None:
    """Raises ValueError for a setting that recorded outputs, or a tokenizer alone, do not need."""
    read = ["words", *(["instruction"] if asked.draws or recorded else []), *(["template"] if asked.draws else [])]
    if recorded or not asked.draws:
        reader = "a checkpoint without --recorded" if asked.draws else "a checkpoint"
        unread(probing, Probing(), reader, but=read)
        unread(drawing, Drawing(), reader)
        unread(loading, Loading(), reader, "batch_size")
    elif BYTES not in probing.remedies:
        unread(probing, Probing(), f"--remedies {BYTES}", "support")
    if not asked.draws:
        unread(loading, Loading(), "a checkpoint")


def _asked(model: str | Checkpoint, probing: Probing, loading: Loading) -> Asked:
    path = _tokenizer_file(model)
    if path is not None:
        tokens = token_bytes.read(path)
        instruction = probing.instruction

        def ids_of(passage: str) -> tuple[int, ...]:
            return tuple(tokens.encode(instruction.replace("{passage}", passage)))

        return Asked(str(model), None, tokens, ids_of, "slot", "plain")
    checkpoint = opened(model, dtype=loading.dtype, device=loading.device)
    usual: Literal["plain", "chat"] = "chat" if checkpoint.tokenizer.chat_template else "plain"
    template = usual if probing.template == "auto" else probing.template
    fitting: Literal["slot", "passage"] = "passage" if template == "chat" else "slot"
    way = fitting if probing.write == "auto" else probing.write
    tokens = token_bytes.read(checkpoint.tokenizer, checkpoint.vocabulary_size)
    ids = edit_prompts.prompt_ids(checkpoint, probing.instruction, template)
    return Asked(checkpoint.name, checkpoint, tokens, ids, way, template)


def _tokenizer_file(model: str | Checkpoint) -> Path | None:
    """The file of a tokenizer that is given alone, or stands alone in a folder; None for a checkpoint."""
    if not isinstance(model, str):
        return None
    path = Path(model)
    if path.is_file():
        return path
    if not path.is_dir() or (path / "config.json").exists() or (path / "adapter_config.json").exists():
        return None
    alone = path / "tokenizer.json"
    return alone if alone.is_file() else tokenizer_files.of_folder(path)


def _frame(asked: Asked, probing: Probing, drawing: Drawing, most: int | None) -> Frame:
    """What a passage must fit: prompt, output and slot in the model's context."""
    assert asked.checkpoint is not None

    def need(passage: str) -> int:
        marks = 8 * max(1, round(probing.share * len(passage.split())))
        output = int((1.0 if asked.way == "slot" else 1.25) * len(asked.tokens.encode(passage)))
        return len(asked.ids_of(passage)) + output + 2 * marks + drawing.max_slot_tokens

    room = asked.checkpoint.context_length or 1 << 40
    return Frame((probing.shortest, probing.longest), probing.share, drawing.seed, need, room, most)


def _records(recorded: Texts, limit: int | None) -> list[Mapping[str, Any]]:
    """Recorded outputs, each with its raw ids and its passage."""
    records = list(corpus.records(recorded, limit))  # type: ignore[arg-type]
    if not records:
        raise ValueError("there are no recorded outputs: give passages in brackets with the raw output ids")
    for number, record in enumerate(records):
        edit_prompts.check_record(record, number)
    return records


def _surface(
    asked: Asked,
    texts: Sequence[str],
    most: int,
    affixes: Affixes,
    parts: Parts,
    advance: Advance | None,
    *,
    final: bool,
) -> pa.Table:
    """The phantom surface of the most frequent words of 3 to 14 letters."""
    counts = Counter(word for text in texts for word in re.findall(r"[^\W\d_]{3,14}", text))
    words = counts.most_common(most)
    if not words:
        raise ValueError("the texts hold no word of 3 to 14 letters: give others")
    chunks = [words[start : start + SURFACE_CHUNK] for start in range(0, len(words), SURFACE_CHUNK)]

    def measure(chunk: Sequence[tuple[str, int]]) -> dict[str, pa.Table]:
        rows = []
        for word, n in chunk:
            one = phantom.surface(asked.tokens, word, affixes)
            if one is not None:
                by_label = dict(zip(LABELS, one.labels or (None,) * len(LABELS), strict=True))
                rows.append({"word": word, "count": n, "ways": one.ways, "canonical": shown(one.canonical)} | by_label)
        return {"surface": pa.Table.from_pylist(rows, schema=SURFACE)}

    named = _named(advance, "counting spellings")
    found = parts.map("surface", chunks, measure, advance=named, final=final)
    return found.get("surface", SURFACE.empty_table())


def _named(advance: Advance | None, stage: str) -> Callable[[int, int], None] | None:
    return None if advance is None else lambda done, total: advance(stage, done, total)


def _recorded(asked: Asked, read: Sequence[Any], affixes: Affixes, parts: Parts, advance: Advance | None) -> pa.Table:
    """Outputs that were drawn elsewhere, scored."""
    groups = [list(enumerate(read))[start : start + 64] for start in range(0, len(read), 64)]

    def measure(group: Sequence[tuple[int, Any]]) -> dict[str, pa.Table]:
        rows = []
        for number, record in group:
            prompt, cuts = edit_prompts.recorded(record, number, asked.tokens, asked.ids_of)
            rows += [row_of(RECORDED, prompt, target, 0, cut, affixes) for target, cut in enumerate(cuts)]
        return {"trials": pa.Table.from_pylist(rows, schema=TRIALS)}

    return parts.map("recorded", groups, measure, advance=_named(advance, "scoring outputs"), final=True)["trials"]


@dataclass(frozen=True)
class Item:
    """A passage under one decoder's prompts: with one target each (slot) or all of them (passage). numbers key the draws."""

    prompts: tuple[Prompt, ...]
    targets: tuple[int, ...]
    numbers: tuple[int, ...]


def _items(asked: Asked, passages: Sequence[Passage], brackets: Brackets, slots: bool) -> list[Item]:
    found, number = [], 0
    for passage in passages:
        ways = [(place, (target,)) for place, target in enumerate(passage.targets)] if slots else [(0, passage.targets)]
        prompts = tuple(
            edit_prompts.prompt(asked.ids_of, asked.tokens, Passage(passage.number, passage.text, targets), brackets)
            for _, targets in ways
        )
        numbers = tuple(range(number, number + len(ways)))
        found.append(Item(prompts, tuple(place for place, _ in ways), numbers))
        number += len(ways)
    return found


def _drawn(
    asked: Asked, passages: Sequence[Passage], probing: Probing, drawing: Drawing, affixes: Affixes, loading: Loading,
    parts: Parts, advance: Advance | None,
) -> tuple[pa.Table, pa.Table | None]:  # fmt: skip
    """All trials and masses: as it is and with tight brackets first, then the remedies."""
    assert asked.checkpoint is not None
    probe = Probe(asked.checkpoint, asked.tokens, drawing, probing.support)
    spaced, tight = (_items(asked, passages, brackets, asked.way == "slot") for brackets in ("spaced", "tight"))
    slots, tight_slots = spaced, tight
    if asked.way == "passage" and probing.exact:
        slots, tight_slots = (_items(asked, passages, brackets, True) for brackets in ("spaced", "tight"))
    size = max(1, loading.batch_size // drawing.samples)

    def stage(
        name: str, jobs: Mapping[str, tuple[list[Item], list[Item], Decoder]], final: bool
    ) -> dict[str, pa.Table]:
        work = [(label, start) for label in jobs for start in range(0, len(spaced), size)]

        def measure(job: tuple[str, int]) -> dict[str, pa.Table]:
            label, start = job
            asked_items, slot_items, decoder = jobs[label]
            rows = _trials(probe, asked.way, label, asked_items[start : start + size], decoder, affixes)
            found = {"trials": pa.Table.from_pylist(rows, schema=TRIALS)}
            if probing.exact:
                exact = _exact(probe, label, slot_items[start : start + size], decoder, affixes)
                found["masses"] = pa.Table.from_pylist(exact, schema=MASSES)
            return found

        return parts.map(name, work, measure, advance=_named(advance, name), final=final)

    wanted = [name for name in probing.remedies if name != NONE]
    first = stage(
        "drawing", {NONE: (spaced, slots, Decoder("any")), TIGHT: (tight, tight_slots, Decoder("any"))}, not wanted
    )
    kinds = {CANONICAL: Decoder("canonical"), BYTES: Decoder("bytes")}
    if IDS in wanted:
        seen = first.get("trials", TRIALS.empty_table())
        kinds[IDS] = Decoder("ids", forbidden_ids(seen, asked.tokens.size))
    jobs = {name: (spaced, slots, kinds[name]) for name in wanted}
    second = stage("remedies", jobs, True) if jobs else {}
    tables = {name: pa.concat_tables([first[name], *([second[name]] if second else [])]) for name in first}
    return tables["trials"], tables.get("masses")


def _trials(
    probe: Probe, way: str, label: str, items: Sequence[Item], decoder: Decoder, affixes: Affixes
) -> list[dict[str, Any]]:
    prompts = [prompt for item in items for prompt in item.prompts]
    numbers = [number for item in items for number in item.numbers]
    places = [place for item in items for place in item.targets]
    rows = []
    if way == "slot":
        for prompt, place, cuts in zip(prompts, places, probe.slots(prompts, decoder, numbers), strict=True):
            rows += [row_of(label, prompt, 0, sample, cut, affixes, place=place) for sample, cut in enumerate(cuts)]
        return rows
    for prompt, samples in zip(prompts, probe.passages(prompts, decoder, numbers), strict=True):
        for sample, cuts in enumerate(samples):
            rows += [row_of(label, prompt, target, sample, cut, affixes) for target, cut in enumerate(cuts)]
    return rows


def _exact(
    probe: Probe, label: str, items: Sequence[Item], decoder: Decoder, affixes: Affixes
) -> Iterable[dict[str, Any]]:
    rows = []
    for item in items:
        for prompt, place in zip(item.prompts, item.targets, strict=True):
            found = probe.masses(prompt, decoder, affixes)
            row = {
                "decoder": label,
                "passage": prompt.passage.number,
                "target": place,
                "word": prompt.references[0].word,
            }
            row |= {"unchanged": found.unchanged, "phantom": found.phantom, "left_out": found.left_out}
            rows.append(row | dict(zip(LABELS, found.labels, strict=True)))
    return rows


def _provenance(asked: Asked, settings: dict[str, Any]) -> dict[str, Any]:
    if asked.checkpoint is not None:
        return answers.provenance(asked.checkpoint, **settings)
    packages = {name: version(name) for name in ("tokenizers", "shiftscope")}
    spec = asked.tokens.backend.to_str().encode()
    return {
        "tokenizer": {"name": asked.name, "sha256": hashlib.sha256(spec).hexdigest()},
        "settings": settings | {"texts": answers.identified(settings["texts"])},
        "versions": {"python": platform.python_version(), **packages},
    }


def summarise(
    trials: pa.Table | None,
    masses: pa.Table | None,
    surface: pa.Table,
    *,
    notes: Sequence[str] = (),
    provenance: dict[str, Any] | None = None,
) -> Result:
    """Figures, verdict and panels of trials, slot masses and spelling counts; the first two may be missing."""
    counted = edit_summary.surface_result(surface)
    if trials is None:
        return replace(counted, method="compare edits", provenance=provenance or {}, notes=[*notes, *counted.notes])
    figures, more = edit_summary.trial_figures(trials)
    parts = [counted] if masses is None else [edit_summary.mass_result(masses), counted]
    verdict = [*edit_summary.trial_verdict(figures), *(sentence for part in parts for sentence in part.verdict)]
    panels = edit_summary.trial_panels(trials, figures)
    return Result("compare edits", trials, figures, provenance or {}, verdict, [*notes, *more], panels, parts)
