"""The main job: everything that changed between two checkpoints, from one pass over the texts, on one page.

Token by token (`compare tokens`), layer by layer (`compare layers`), by families of vocabulary keys (`compare keys`),
and, where a verifier says which answers are right, whether the shift matters (`compare swaps`). This file only composes those
methods; it is the one method file that may import others.
"""

from __future__ import annotations

from dataclasses import asdict, replace

from shiftscope.compare.bytes import bytes_
from shiftscope.compare.keys import Clustering
from shiftscope.compare.keys import described as key_clusters
from shiftscope.compare.keys import summarise as summarise_keys
from shiftscope.compare.layers import measure as layer_rows
from shiftscope.compare.layers import summarise as summarise_layers
from shiftscope.compare.swaps import swaps
from shiftscope.compare.tokens import summarise as summarise_tokens
from shiftscope.core import answers, gains, paired, positions, probing
from shiftscope.core.answers import Loading, Texts
from shiftscope.core.checkpoints import Checkpoint, vocabulary_difference
from shiftscope.core.corpus import Template
from shiftscope.core.decode import Sampling
from shiftscope.core.parts import Parts
from shiftscope.core.probing import Probing
from shiftscope.core.result import Result
from shiftscope.core.verifiers import Verifier


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
    loading: Loading = Loading(batch_size=64),
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
    difference = vocabulary_difference(first, second)
    if difference:
        by_byte = bytes_(
            first, second, texts=texts, limit=limit, sampling=sampling,
            loading=replace(loading, batch_size=min(loading.batch_size, 8)), parts=parts, advance=advance,
        )  # fmt: skip
        note = f"{difference}: the vocabularies differ, so the two are compared byte by byte, as `compare bytes` does"
        return replace(by_byte, method="compare models", notes=[note, *by_byte.notes])
    parts = parts or Parts()
    settings = answers.provenance(
        first, second, texts=texts, limit=limit, verifier=str(verifier), template=template,
        base_template=base_template, sampling=asdict(sampling), loading=asdict(loading),
    )  # fmt: skip
    parts.settle(settings)
    found = answers.prepare(
        first, second, answers.corpus_of(texts, second, limit), template=template, base_template=base_template,
        sampling=sampling, batch_size=loading.batch_size, parts=parts, advance=advance,
    )  # fmt: skip
    same_depth = len(first.head.blocks) == len(second.head.blocks)
    measures = {"tokens": positions.measure(), "keys": gains.measure()} | (
        {"layers": layer_rows()} if same_depth else {}
    )
    scorer = paired.Scorer(first, second, compiled=loading.compile)
    rows = paired.run(
        scorer, found.paired, measures, states=same_depth, batch_size=loading.batch_size, parts=parts,
        advance=None if advance is None else lambda done, total: advance("comparing", done, total),
    )  # fmt: skip
    floor = paired.noise_floor(scorer, found.paired[:8])
    table = positions.described(rows["tokens"], found.texts, first)
    notes = [*found.notes, *answers.compile_notes(loading, first)]
    tokens = summarise_tokens(table, noise_floor=floor, notes=notes, provenance=settings)
    others = [summarise_layers(rows["layers"])] if same_depth else []
    verifier = verifier or answers.shipped_verifier(second)
    keys = key_clusters(first, second, Clustering())
    probed = None
    if verifier:
        sides, read = {"base": first, "tuned": second}, answers.corpus_of(texts, second, limit)
        probed = probing.probe(
            sides,
            read,
            verifier,
            keys.clusters,
            Probing(),
            template=template,
            parts=parts.inside("keys"),
            advance=advance,
        )
    others.append(summarise_keys(keys, rows["keys"], probed))
    if verifier:
        others.append(
            swaps(
                first, second, verifier=verifier, texts=texts, limit=limit, template=template,
                base_template=base_template, loading=loading, parts=parts.inside("swaps"), advance=advance,
            )
        )  # fmt: skip
    caveats = [] if same_depth else ["the checkpoints have different numbers of layers: `compare layers` is left out"]
    return replace(
        tokens,
        method="compare models",
        verdict=[*tokens.verdict, *(part.verdict[0] for part in others if part.verdict)],
        notes=[*tokens.notes, *caveats],
        parts=others,
    )
