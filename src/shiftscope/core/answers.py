"""The answers that two models are compared on: given ones, or sampled from the tuned model, in ids for both sides."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, is_dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa

from shiftscope.core import corpus, decode, laws, paired
from shiftscope.core.checkpoints import Checkpoint, DTypeName, check_same_vocabulary, opened
from shiftscope.core.corpus import Template, Text
from shiftscope.core.decode import Sampling
from shiftscope.core.paired import PairedText
from shiftscope.core.parts import Parts
from shiftscope.core.settings import unread

Advance = Callable[[str, int, int], None]
Texts = str | Path | Sequence[Mapping[str, Any]] | None
CORPORA = ("texts", "prompts", "traces", "preferences")  # settings that are corpora


@dataclass(frozen=True)
class Loading:
    """How models are loaded and run.

    dtype: 'auto' is float32 on a CPU, the checkpoint's own on an accelerator. device: 'auto' is cuda where there is one.
    batch_size: texts of one forward and of one part.
    """

    dtype: DTypeName = "auto"
    device: str = "auto"
    batch_size: int = 32

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}: it must be at least 1")


@dataclass(frozen=True)
class Compiling(Loading):
    """How the models of a method that computes statistics of two next-token laws are loaded and run.

    compile: the statistics in compiled code: a C kernel on a CPU (where there is a compiler), torch.compile on an
    accelerator.
    """

    compile: bool = False


@dataclass(frozen=True)
class Answers:
    """texts: one per answer, numbered 0..n-1, with the answer's text filled in; paired: the same in ids; notes: caveats."""

    texts: Sequence[Text]
    paired: Sequence[PairedText]
    notes: Sequence[str]


def pair(base: str | Checkpoint, tuned: str | Checkpoint, loading: Loading) -> tuple[Checkpoint, Checkpoint]:
    """Both checkpoints, loaded where named; their vocabularies must agree."""
    first, second = both(base, tuned, loading)
    check_same_vocabulary(first, second)
    return first, second


def both(base: str | Checkpoint, tuned: str | Checkpoint, loading: Loading) -> tuple[Checkpoint, Checkpoint]:
    """Both checkpoints, loaded where named, whatever their vocabularies. The same name is loaded once."""
    first = opened(base, dtype=loading.dtype, device=loading.device)
    return first, first if tuned == base else opened(tuned, dtype=loading.dtype, device=loading.device)


def compile_notes(loading: Compiling, checkpoint: Checkpoint) -> list[str]:
    """A sentence for the notes where compiled statistics were asked for and could not be had, else nothing."""
    asked = loading.compile and checkpoint.head.device.type == "cpu"
    return [note for note in [laws.compiled_note() if asked else ""] if note]


def corpus_of(texts: Texts, tuned: Checkpoint, limit: int | None = None, *, option: str = "texts") -> list[Text]:
    """The given corpus, or the prompts that ship with the tuned checkpoint (`prompts.jsonl` in its folder).

    option: what the method calls the corpus, for the error.

    Raises ValueError where no texts are given and the checkpoint ships none.
    """
    if texts is not None:
        return corpus.read(texts, limit)
    shipped = Path(tuned.model.config.name_or_path or "") / "prompts.jsonl"
    if not shipped.is_file():
        raise ValueError(
            f"no {option} are given and {tuned.name} ships no prompts: give --{option} FILE (jsonl, parquet or txt, with a "
            f"prompt in each record)"
        )
    return corpus.read(shipped, limit)


def check_sampling(texts: Sequence[Text], sampling: Sampling, default: Sampling = Sampling()) -> None:
    """Raises ValueError where sampling is asked for and every text has its answer, so that nothing is drawn.

    default: the method's own.
    """
    if all(text.answer is not None for text in texts):
        unread(sampling, default, "a text without an answer")


def shipped_verifier(tuned: Checkpoint) -> str | None:
    """The verifier that a checkpoint's card names (`card.json` in its folder), or None."""
    card = Path(tuned.model.config.name_or_path or "") / "card.json"
    return json.loads(card.read_text(encoding="utf-8")).get("verifier") if card.is_file() else None


def prepare(
    base: Checkpoint,
    tuned: Checkpoint,
    texts: Sequence[Text],
    *,
    template: Template = "plain",
    base_template: Template | None = None,
    sampling: Sampling | None = None,
    batch_size: int = 32,
    parts: Parts | None = None,
    advance: Advance | None = None,
) -> Answers:
    """Contexts and answers in ids; texts without an answer get `sampling.samples` answers drawn from the tuned model.

    base_template: the base's own rendering of the prompt (None: the same ids as the tuned model reads).
    """
    sampling = sampling or Sampling()
    tuned_contexts = [corpus.context_ids(tuned, text, template) for text in texts]
    base_contexts = (
        [corpus.context_ids(base, text, base_template) for text in texts] if base_template else tuned_contexts
    )
    found: list[Text] = []
    known: list[PairedText] = []
    for index, text in enumerate(texts):
        given = () if text.answer is None else corpus.answer_ids(tuned.tokenizer, text.answer)
        for sample in range(1 if text.answer is not None else sampling.samples):
            name = text.id if sampling.samples == 1 or text.answer is not None else f"{text.id}.{sample}"
            found.append(replace(text, text=len(found), id=name))
            contexts = base_contexts[index], tuned_contexts[index]
            known.append(PairedText(len(known), *contexts, given, len(given) + max(map(len, contexts))))
    open_texts = {text.text for text in found if text.answer is None}
    if open_texts:
        drawn = _sampled(tuned, known, open_texts, sampling, batch_size, parts, advance)
        known = [replace(item, answer=drawn.get(item.text, item.answer)) for item in known]
        written = {text: str(tuned.tokenizer.decode(list(ids))) for text, ids in drawn.items()}
        found = [replace(text, answer=written.get(text.text, text.answer)) for text in found]
    notes = []
    mismatches = corpus.boundary_mismatches(tuned, texts) if template == "plain" else 0
    if mismatches:
        notes.append(
            f"{mismatches} of {len(texts)} given texts are cut differently when prompt and answer are tokenised together: "
            f"their first answer token is not what the model would see in running text"
        )
    return Answers(found, known, notes)


def _sampled(
    tuned: Checkpoint,
    items: Sequence[PairedText],
    wanted: Set[int],
    sampling: Sampling,
    batch_size: int,
    parts: Parts | None,
    advance: Advance | None,
) -> dict[int, tuple[int, ...]]:
    """Sampled answers by text number, drawn in the batches that are compared later, so that a shard draws its own only."""

    def draw(batch: Sequence[PairedText]) -> dict[str, pa.Table]:
        asked = [item for item in batch if item.text in wanted]
        ids = decode.sample(tuned, [item.tuned_context for item in asked], [item.text for item in asked], sampling)
        schema = pa.schema([("text", pa.int32()), ("ids", pa.list_(pa.int32()))])
        return {
            "answers": pa.table({"text": [item.text for item in asked], "ids": list(map(list, ids))}, schema=schema)
        }

    groups = paired.batches(items, batch_size)
    tables = (parts or Parts()).map("answers", groups, draw, advance=_named(advance, "sampling answers"))
    rows = tables["answers"].to_pylist() if tables else []
    return {row["text"]: tuple(row["ids"]) for row in rows}


def _named(advance: Advance | None, stage: str) -> Callable[[int, int], None] | None:
    return None if advance is None else lambda done, total: advance(stage, done, total)


def identified(texts: Texts) -> dict[str, Any] | None:
    """What corpus it was, without holding it: the file's name and hash, or the number and hash of records in memory."""
    if texts is None:
        return None
    if isinstance(texts, str | Path):
        path = Path(texts)
        digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
        return {"file": str(texts), "sha256": digest}
    records = list(texts)
    digest = hashlib.sha256(json.dumps(records, sort_keys=True, default=str).encode()).hexdigest()
    return {"records": len(records), "sha256": digest}


def provenance(base: Checkpoint, tuned: Checkpoint | None = None, **settings: Any) -> dict[str, Any]:
    """Where a comparison came from: both checkpoints with file hashes, every setting, and the versions that computed it."""
    packages = {name: version(name) for name in ("torch", "transformers", "shiftscope")}
    settings = {name: asdict(value) if is_dataclass(value) else value for name, value in settings.items()}  # type: ignore[arg-type]
    settings |= {name: identified(settings[name]) for name in CORPORA if name in settings}
    models = {"base": base.provenance} | ({"tuned": tuned.provenance} if tuned else {})
    return {**models, "settings": settings, "versions": {"python": platform.python_version(), **packages}}
