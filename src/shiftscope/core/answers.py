"""The answers that two models are compared on: given ones, or sampled from the tuned model, in ids for both sides."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa

from shiftscope.core import corpus, decode
from shiftscope.core.checkpoints import Checkpoint, DTypeName, check_same_vocabulary, opened
from shiftscope.core.corpus import Template, Text
from shiftscope.core.decode import Sampling
from shiftscope.core.paired import PairedText
from shiftscope.core.parts import Parts

Advance = Callable[[str, int, int], None]
Texts = str | Path | Iterable[Mapping[str, Any]] | None


@dataclass(frozen=True)
class Loading:
    """How models are loaded and run.

    dtype: 'auto' is float32 on a CPU, the checkpoint's own on an accelerator. device: 'auto' is cuda where there is one.
    batch_size: texts of one forward and of one part. compile: torch.compile for the statistics.
    """

    dtype: DTypeName = "auto"
    device: str = "auto"
    batch_size: int = 32
    compile: bool = False

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}: it must be at least 1")


@dataclass(frozen=True)
class Answers:
    """texts: one per answer, numbered 0..n-1, with the answer's text filled in; paired: the same in ids; notes: caveats."""

    texts: Sequence[Text]
    paired: Sequence[PairedText]
    notes: Sequence[str]


def pair(base: str | Checkpoint, tuned: str | Checkpoint, loading: Loading) -> tuple[Checkpoint, Checkpoint]:
    """Both checkpoints, loaded where named; their vocabularies must agree. The same name is loaded once."""
    first = opened(base, dtype=loading.dtype, device=loading.device)
    second = first if tuned == base else opened(tuned, dtype=loading.dtype, device=loading.device)
    check_same_vocabulary(first, second)
    return first, second


def corpus_of(texts: Texts, tuned: Checkpoint, limit: int | None = None) -> list[Text]:
    """The given corpus, or the prompts that ship with the tuned checkpoint (`prompts.jsonl` in its folder).

    Raises ValueError where no texts are given and the checkpoint ships none.
    """
    if texts is not None:
        return corpus.read(texts, limit)
    shipped = Path(tuned.model.config.name_or_path or "") / "prompts.jsonl"
    if not shipped.is_file():
        raise ValueError(
            f"no texts are given and {tuned.name} ships no prompts: give --texts FILE (jsonl with a prompt, and an answer "
            f"if you have one, on each line)"
        )
    return corpus.read(shipped, limit)


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
    base_contexts = [corpus.context_ids(base, text, base_template) for text in texts] if base_template else tuned_contexts
    open_texts = [index for index, text in enumerate(texts) if text.answer is None]
    drawn = _sampled(tuned, open_texts, tuned_contexts, sampling, batch_size, parts, advance)
    found, paired = [], []
    for index, text in enumerate(texts):
        given = None if text.answer is None else corpus.answer_ids(tuned.tokenizer, text.answer)
        for number, ids in enumerate(drawn[index] if given is None else [given]):
            answer = tuned.tokenizer.decode(ids) if given is None else text.answer
            name = text.id if sampling.samples == 1 or given is not None else f"{text.id}.{number}"
            found.append(Text(len(found), name, text.prompt, answer, text.reference, text.messages))
            paired.append(PairedText(len(paired), base_contexts[index], tuned_contexts[index], tuple(ids)))
    notes = []
    mismatches = corpus.boundary_mismatches(tuned, texts) if template == "plain" else 0
    if mismatches:
        notes.append(
            f"{mismatches} of {len(texts)} given texts are cut differently when prompt and answer are tokenised together: "
            f"their first answer token is not what the model would see in running text"
        )
    return Answers(found, paired, notes)


def _sampled(
    tuned: Checkpoint,
    wanted: Sequence[int],
    contexts: Sequence[Sequence[int]],
    sampling: Sampling,
    batch_size: int,
    parts: Parts | None,
    advance: Advance | None,
) -> dict[int, list[list[int]]]:
    """Sampled answers of the wanted texts, by text; every shard draws only what it measures is not known yet, so all."""
    jobs = [(index, sample) for index in wanted for sample in range(sampling.samples)]
    jobs.sort(key=lambda job: (len(contexts[job[0]]), job))
    batches = [jobs[start : start + batch_size] for start in range(0, len(jobs), batch_size)]

    def draw(batch: Sequence[tuple[int, int]]) -> dict[str, pa.Table]:
        documents = [index * sampling.samples + sample for index, sample in batch]
        ids = decode.sample(tuned, [contexts[index] for index, _ in batch], documents, sampling)
        columns = {"text": [index for index, _ in batch], "sample": [s for _, s in batch], "ids": [list(a) for a in ids]}
        schema = pa.schema([("text", pa.int32()), ("sample", pa.int32()), ("ids", pa.list_(pa.int32()))])
        return {"answers": pa.table(columns, schema=schema)}

    if not batches:
        return {}
    store = Parts(parts.folder, resume=True) if parts else Parts()
    rows = store.map("answers", batches, draw, advance=_named(advance, "sampling answers"))["answers"].to_pylist()
    drawn: dict[int, list[list[int]]] = {index: [] for index in wanted}
    for row in sorted(rows, key=lambda row: (row["text"], row["sample"])):
        drawn[row["text"]].append(row["ids"])
    return drawn


def _named(advance: Advance | None, stage: str) -> Callable[[int, int], None] | None:
    return None if advance is None else lambda done, total: advance(stage, done, total)


def provenance(base: Checkpoint, tuned: Checkpoint | None = None, **settings: Any) -> dict[str, Any]:
    """Where a comparison came from: both checkpoints with file hashes, every setting, and the versions that computed it."""
    packages = {name: version(name) for name in ("torch", "transformers", "shiftscope")}
    models = {"base": base.provenance} | ({"tuned": tuned.provenance} if tuned else {})
    return {**models, "settings": settings, "versions": {"python": platform.python_version(), **packages}}
