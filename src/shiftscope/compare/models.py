"""The main job: everything that changed between two checkpoints, from one pass over the texts, on one page.

Token by token (`compare tokens`), layer by layer (`compare layers`), by families of vocabulary keys (`compare keys`),
and, where a verifier says which answers are right, whether the shift matters (`compare swaps`). This file only composes those
methods; it is the one method file that may import others.

Source: those of `compare/tokens.py`, `compare/layers.py`, `compare/keys.py` and `compare/swaps.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import pyarrow as pa

from shiftscope.compare.bytes import bytes_
from shiftscope.compare.keys import Clustering
from shiftscope.compare.keys import described as key_clusters
from shiftscope.compare.keys import summarise as summarise_keys
from shiftscope.compare.layers import measure as layer_rows
from shiftscope.compare.layers import summarise as summarise_layers
from shiftscope.compare.swaps import swaps
from shiftscope.compare.tokens import summarise as summarise_tokens
from shiftscope.core import answers, paired, positions
from shiftscope.core.answers import Compiling, Texts
from shiftscope.core.checkpoints import Checkpoint, vocabulary_difference
from shiftscope.core.corpus import Template
from shiftscope.core.decode import Sampling
from shiftscope.core.keys import gains, probing
from shiftscope.core.keys.probing import Probing
from shiftscope.core.parts import Parts
from shiftscope.core.result import Result
from shiftscope.core.settings import refuse
from shiftscope.core.verifiers import Verifier

BYTE_BATCH = 8  # texts whose trees of contexts are held at once


def models(
    base: str | Checkpoint = "sums-base",
    tuned: str | Checkpoint = "sums-rlvr",
    *,
    texts: Texts = None,
    limit: int | None = None,
    verifier: str | Verifier | None = None,
    template: Template = "plain",
    base_template: Template | None = None,
    sampling: Sampling = Sampling(),
    loading: Compiling = Compiling(batch_size=64),
    parts: Parts | None = None,
    advance: answers.Advance | None = None,
) -> Result:
    """Compare two checkpoints in every way at once: tokens, layers and keys in one pass.

    base: the checkpoint before (path, hub id, zoo name, or a loaded Checkpoint).
    tuned: the checkpoint after; with another vocabulary the two are compared byte by byte. Without both, the pair that
        ships with the package.
    texts: jsonl, parquet or txt with a prompt and optionally an answer per record; answers that are missing are sampled
        from the tuned model; without texts, the prompts that ship with the tuned checkpoint.
    limit: only the first records.
    verifier: scores an answer: module:function, regex:PATTERN or exact; with it, tokens are swapped between the two models
        to see whether the shift matters. Without it, the one that ships with the tuned checkpoint, if any.
    template: how the prompt is rendered: plain, chat (the tokenizer's template) or frame (zero-shot frame).
    base_template: rendering for the base, where it should differ.
    Returns the Result of `compare tokens` with those of the other methods as its parts.
    Raises ValueError, in one sentence, for malformed texts, answers beyond a context, NaN logits.
    """
    first, second = answers.both(base, tuned, loading)
    asked = Asked(
        texts, limit, verifier or answers.shipped_verifier(second), template, base_template, sampling, loading
    )
    difference = vocabulary_difference(first, second)
    if difference:
        refuse(f"a pair of one vocabulary ({difference})", verifier=(verifier, None), compile=(loading.compile, False))
        return _by_byte(first, second, asked, difference, parts, advance)
    read = answers.corpus_of(texts, second, limit)
    answers.check_sampling(read, sampling)
    parts = parts or Parts()
    settings = answers.provenance(first, second, **{field.name: getattr(asked, field.name) for field in fields(asked)})
    parts.settle(settings)
    found = answers.prepare(
        first, second, read, template=template, base_template=base_template,
        sampling=sampling, batch_size=loading.batch_size, parts=parts, advance=advance,
    )  # fmt: skip
    same_depth = len(first.head.blocks) == len(second.head.blocks)
    measures = {"tokens": positions.measure(), "keys": gains.measure()}
    if same_depth:
        measures["layers"] = layer_rows()
    scorer = paired.Scorer(first, second, compiled=loading.compile)
    rows = paired.run(
        scorer, found.paired, measures, states=same_depth, batch_size=loading.batch_size, parts=parts,
        advance=None if advance is None else lambda done, total: advance("comparing", done, total),
    )  # fmt: skip
    floor = paired.noise_floor(scorer, found.paired[:8])
    table = positions.described(rows["tokens"], found.texts, first)
    notes = [*found.notes, *answers.compile_notes(loading, first)]
    if not same_depth:
        notes.append("the checkpoints have different numbers of layers: `compare layers` is left out")
    elif base_template not in (None, template):
        notes.append("the two models read different contexts: what layers say of them is partly the contexts' doing")
    tokens = summarise_tokens(table, noise_floor=floor, notes=notes, provenance=settings)
    others = [summarise_layers(rows["layers"])] if same_depth else []
    others += _keys_and_swaps(first, second, asked, rows["keys"], parts, advance)
    verdict = [*tokens.verdict, *(part.verdict[0] for part in others if part.verdict)]
    return replace(tokens, method="compare models", verdict=verdict, parts=others)


@dataclass(frozen=True)
class Asked:
    """The settings of one call, as `models` takes them."""

    texts: Texts
    limit: int | None
    verifier: str | Verifier | None
    template: Template
    base_template: Template | None
    sampling: Sampling
    loading: Compiling


def _keys_and_swaps(
    first: Checkpoint, second: Checkpoint, asked: Asked, rows: pa.Table, parts: Parts, advance: answers.Advance | None
) -> list[Result]:
    """What follows the common pass: key clusters, and with a verifier the middle ranks and the swaps."""
    keys, read = key_clusters(first, second, Clustering()), answers.corpus_of(asked.texts, second, asked.limit)
    if asked.verifier is None:
        return [summarise_keys(keys, rows)]
    probed = probing.probe(
        {"base": first, "tuned": second}, read, asked.verifier, keys.clusters, Probing(), template=asked.template,
        parts=parts.inside("keys"), advance=advance,
    )  # fmt: skip
    swapped = swaps(
        first, second, verifier=asked.verifier, texts=asked.texts, limit=asked.limit, template=asked.template,
        base_template=asked.base_template, loading=asked.loading, parts=parts.inside("swaps"), advance=advance,
    )  # fmt: skip
    return [summarise_keys(keys, rows, probed), swapped]


def _by_byte(
    first: Checkpoint,
    second: Checkpoint,
    asked: Asked,
    difference: str,
    parts: Parts | None,
    advance: answers.Advance | None,
) -> Result:
    """Two vocabularies: `compare bytes` in the place of everything that needs common ids."""
    if (asked.template, asked.base_template) != ("plain", None):
        raise ValueError(
            f"{difference}: the vocabularies differ, and byte by byte only plain prompts are compared: leave out --template"
        )
    loading = replace(asked.loading, batch_size=min(asked.loading.batch_size, BYTE_BATCH))
    result = bytes_(
        first, second, texts=asked.texts, limit=asked.limit, sampling=asked.sampling, loading=loading, parts=parts,
        advance=advance,
    )  # fmt: skip
    note = (
        f"{difference}: the vocabularies differ, so the two are compared byte by byte, as `compare bytes` does; layers, keys "
        f"and swaps need one vocabulary and are left out"
    )
    return replace(result, method="compare models", notes=[note, *result.notes])
