"""Decoders: the same prompts under two or more decoders of one model, on one page.

Agreement with the first decoder, likelihood of what each wrote under the model itself (or under another of the same
vocabulary: the undistilled one, where the model is a distilled one), length, network calls, token-forwards and time, and
whether each still samples from the model as far as it declares (`compare preservation` tests that).
Decoders are named as there: 'max_prob', 'window inner=8 outer=32', 'rho-eos', 'assd k=5', …

Source: arXiv 2502.09992, section 2.4 (the likelihood bound). Costs are counted for each text by itself; time is that of
this machine, each group of texts under every decoder in turn.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from shiftscope.core import answers, corpus, statistics
from shiftscope.core.answers import Loading, Texts
from shiftscope.core.checkpoints import vocabulary_difference
from shiftscope.core.corpus import Template
from shiftscope.core.denoising import decoders, subset_score
from shiftscope.core.denoising.any_subset import AnySubsetLM
from shiftscope.core.denoising.decoders import Named, Text
from shiftscope.core.denoising.masked_model import MaskedLM
from shiftscope.core.denoising.reveals import Reveals
from shiftscope.core.keys import probing
from shiftscope.core.parts import Parts
from shiftscope.core.result import Figure, Panel, Result
from shiftscope.core.settings import refuse
from shiftscope.core.verifiers import Verifier

ROWS = pa.schema(
    [
        ("decoder", pa.string()), ("text", pa.int32()), ("id", pa.string()), ("document", pa.int32()),
        ("prompt", pa.string()), ("answer", pa.string()), ("ids", pa.list_(pa.int32())), ("tokens", pa.int32()),
        ("nll_nats", pa.float64()), ("calls", pa.int32()), ("rows", pa.int64()), ("pairs", pa.int64()),
        ("auxiliary", pa.int32()), ("seconds", pa.float64()), ("reward", pa.float64()),
        ("position", pa.list_(pa.int32())),
    ]
)  # fmt: skip
Rows = Sequence[Mapping[str, Any]]


def decoders_(
    model: str | MaskedLM | AnySubsetLM,
    names: Sequence[str],
    *,
    prompts: Texts = None,
    limit: int | None = None,
    samples: int = 1,
    max_new_tokens: int = 64,
    temperature: float = 1.0,
    draws: int = 32,
    under: str | MaskedLM | AnySubsetLM | None = None,
    template: Template = "plain",
    mask_token: str | None = None,
    end_token: str | None = None,
    verifier: str | Verifier | None = None,
    loading: Loading = Loading(),
    parts: Parts | None = None,
    advance: answers.Advance | None = None,
) -> Result:
    """Write the same texts under several decoders of a model; compare agreement, likelihood, length, calls and time.

    model: a masked or any-order checkpoint (path, hub id, zoo name, or a loaded model).
    names: two or more decoders, each in quotes: words (an order such as max_prob; full, blocks or window; fixed or rho-eos;
        assd, sequential or independent) and settings, 'window inner=8 outer=16'. The others are set against the first.
    prompts: jsonl, parquet or txt with a prompt per record; without, those that ship with the checkpoint.
    limit: only the first records.
    samples: texts per prompt and decoder.
    max_new_tokens: hidden positions after a prompt that hides none itself, where a decoder's name does not say.
    temperature: of the draws, where a decoder's name does not say; 0 is greedy.
    draws: random subsets per text for the likelihood bound of a masked model.
    under: checkpoint whose law scores what was written, of the same kind and vocabulary (the undistilled one, say); without,
        the model's own.
    template: how a masked model's prompt is rendered: plain, chat (the tokenizer's template) or frame (zero-shot frame).
    mask_token, end_token: the tokens, as text, where a masked checkpoint names none or others.
    verifier: module:function, regex:PATTERN or exact; scores every answer. Without it, and without prompts of your own,
        the one that ships with the checkpoint, if any.
    Returns a Result whose table has one row per text and decoder.
    Raises ValueError, in one sentence, for decoders of unknown name or that cannot write with the model, and malformed
    prompts.
    """
    asked = [decoders.parse(name, temperature=temperature, max_new_tokens=max_new_tokens) for name in names]
    if len(asked) < 2 or len({named.name for named in asked}) < len(asked):
        raise ValueError(f"{len(asked)} decoders are named ({', '.join(names)}): name two or more different ones")
    if samples < 1 or draws < 1:
        raise ValueError(f"samples {samples} and draws {draws}: both must be at least 1")
    opened = _opened(model, mask_token, end_token, loading)
    _check_read(opened, template, mask_token, end_token)
    scorer = opened if under is None else _scorer(under, opened, mask_token, end_token, loading)
    for named in asked:
        decoders.check(opened, named)
    spec = verifier or (answers.shipped_verifier(opened) if prompts is None else None)
    parts = parts or Parts()
    settings = answers.provenance(
        opened, names=list(names), prompts=prompts, limit=limit, samples=samples, max_new_tokens=max_new_tokens,
        temperature=temperature, draws=draws, under=None if under is None else scorer.provenance, template=template,
        mask_token=mask_token, end_token=end_token, verifier=probing.named(spec), loading=loading,
    )  # fmt: skip
    parts.settle(settings)
    records = answers.corpus_of(prompts, opened, limit, option="prompts")
    groups = [records[start : start + loading.batch_size] for start in range(0, len(records), loading.batch_size)]
    judge = None if spec is None else probing.judge_of(spec)
    for named in asked:
        decoders.check(opened, named, records, template)
    _warm_up(opened, decoders.canvases(opened, records[:1], 1, 1, template)[0])
    writer = _Writer(opened, asked, samples, draws, judge, scorer, template)
    rows = parts.map(
        "decoded", groups, lambda group: {"texts": pa.Table.from_pylist(writer.rows(group), schema=ROWS)},
        advance=None if advance is None else lambda done, total: advance("writing", done, total), final=True,
    )["texts"]  # fmt: skip
    return summarise(rows, asked, model=scorer, provenance=settings)


def _opened(
    model: str | MaskedLM | AnySubsetLM, mask_token: str | None, end_token: str | None, loading: Loading
) -> Any:
    if isinstance(model, str):
        return decoders.opened(
            model, mask_token=mask_token, end_token=end_token, dtype=loading.dtype, device=loading.device
        )
    return model.with_tokens(mask_token, end_token) if isinstance(model, MaskedLM) else model


def _check_read(model: Any, template: Template, mask_token: str | None, end_token: str | None) -> None:
    """Raises ValueError for a setting of masked models, where the model is another."""
    if not isinstance(model, MaskedLM):
        refuse(
            "a masked model", template=(template, "plain"), mask_token=(mask_token, None), end_token=(end_token, None)
        )


def _scorer(
    under: str | MaskedLM | AnySubsetLM, model: Any, mask_token: str | None, end_token: str | None, loading: Loading
) -> Any:
    """The model whose law scores the texts. Raises ValueError for one of another kind or vocabulary."""
    scorer = _opened(under, mask_token, end_token, loading)
    if type(scorer) is not type(model):
        raise ValueError(f"{scorer.name} is another kind of model than {model.name}, and cannot score its texts")
    if difference := vocabulary_difference(scorer, model):
        raise ValueError(f"{difference}: {scorer.name} cannot score the texts of {model.name}")
    return scorer


def _warm_up(model: Any, text: Text) -> None:
    """One call that is not timed: a model's first takes longer."""
    hidden = [place for place, token in enumerate(text.ids) if token == model.mask_id]
    subset_score.nll_nats(model, [text.ids], [hidden], [text.document], draws=1)


class _Writer:
    """Writes groups of records under every decoder in turn."""

    def __init__(
        self,
        model: Any,
        asked: Sequence[Named],
        samples: int,
        draws: int,
        judge: Verifier | None,
        scorer: Any,
        template: Template,
    ) -> None:
        self.model, self.asked, self.samples, self.draws, self.judge = model, asked, samples, draws, judge
        self.scorer, self.template = scorer, template

    def rows(self, group: Sequence[corpus.Text]) -> list[dict[str, Any]]:
        """A row per text and decoder."""
        found: list[dict[str, Any]] = []
        of = {record.text: record for record in group}
        for named in self.asked:
            texts = decoders.canvases(self.model, group, named.room, self.samples, self.template)
            begun = time.perf_counter()
            written = decoders.write(self.model, named, texts)
            seconds = (time.perf_counter() - begun) / len(texts)
            ids = [self._kept(text, row) for text, (row, _) in zip(texts, written, strict=True)]
            places = [self._scored(text, row) for text, row in zip(texts, ids, strict=True)]
            documents = [text.document for text in texts]
            nll = subset_score.nll_nats(self.scorer, ids, places, documents, draws=self.draws)
            for text, row, asked, (_, record), value in zip(texts, ids, places, written, nll, strict=True):
                source = of[text.document // self.samples]
                own = self._row(source, text, row, asked, record)
                found.append(own | {"decoder": named.name, "nll_nats": value, "seconds": seconds})
        return found

    def _kept(self, text: Text, ids: Sequence[int]) -> list[int]:
        """The text up to its first end, which belongs to it; a text with visible places after its holes stays whole."""
        if isinstance(self.model, AnySubsetLM) or not text.gone_on(self.model.mask_id):
            return list(ids)
        last = next((p for p in range(text.start, len(ids)) if ids[p] in self.model.end_ids), len(ids) - 1)
        return list(ids[: last + 1])

    def _scored(self, text: Text, ids: Sequence[int]) -> list[int]:
        """The written places: hidden at first, or added behind."""
        hidden = {place for place, token in enumerate(text.ids) if token == self.model.mask_id}
        return [place for place in range(len(ids)) if place in hidden or place >= len(text.ids)]

    def _row(
        self, source: corpus.Text, text: Text, ids: Sequence[int], places: Sequence[int], record: Reveals
    ) -> dict[str, Any]:
        written = [ids[place] for place in places]
        ends = () if isinstance(self.model, AnySubsetLM) else self.model.end_ids
        answer = str(
            self.model.tokenizer.decode(
                [token for token in written if token not in ends], clean_up_tokenization_spaces=False
            )
        )
        return {
            "text": source.text, "id": source.id, "document": text.document, "prompt": source.prompt, "answer": answer,
            "ids": written, "tokens": len(written), "calls": record.calls, "rows": record.rows, "pairs": record.pairs,
            "auxiliary": record.auxiliary, "position": record.position,
            "reward": None if self.judge is None else self.judge(source.prompt, answer, source.reference),
        }  # fmt: skip


def agreement(first: Sequence[int], other: Sequence[int]) -> float:
    """Share of the places of the longer text at which both hold the same token; 1 for two empty texts."""
    longest = max(len(first), len(other))
    return sum(a == b for a, b in zip(first, other, strict=False)) / longest if longest else 1.0


def summarise(
    table: pa.Table,
    asked: Sequence[Named],
    *,
    model: MaskedLM | AnySubsetLM,
    provenance: Mapping[str, Any] | None = None,
) -> Result:
    """Figures, verdict and panels of a table of texts. model: whose law scored the texts."""
    rows = table.to_pylist()
    of = {named.name: [row for row in rows if row["decoder"] == named.name] for named in asked}
    first = {row["document"]: row for row in of[asked[0].name]}
    figures: dict[str, Figure] = {}
    lines: list[dict[str, Any]] = []
    for named in (*asked[1:], asked[0]):  # what is set against the first comes first
        own = _figures(of[named.name], first)
        figures |= {f"{named.figure}.{name}": figure for name, figure in own.items()}
        values = {name: figure.value for name, figure in own.items()}
        lines.append({"decoder": named.name, "declares": decoders.declared(model, named).kind} | values)
    bound = "its joint law" if isinstance(model, AnySubsetLM) else "a bound by random subsets"
    notes = [
        f"nll_per_token: −log p of what was written, its end included, under {model.name} ({bound}); low values with "
        f"little variety are mode seeking, not quality",
        "calls and rows (token-forwards) are counted for each text by itself; seconds are per text, of batches as they ran",
        *decoders.reasons(model, asked),
    ]
    return Result(
        "compare decoders",
        table,
        figures,
        dict(provenance or {}),
        _verdict(asked, figures, model.name),
        notes,
        _panels(lines, rows, asked),
    )


def _figures(own: Rows, first: Mapping[int, Mapping[str, Any]]) -> dict[str, Figure]:
    groups = [row["text"] for row in own]
    same = [agreement(first[row["document"]]["ids"], row["ids"]) for row in own]
    identical = sum(first[row["document"]]["ids"] == row["ids"] for row in own)
    figures = {
        "identical": statistics.share_figure(identical, len(own)),
        "agreement": statistics.mean_figure(same, groups, unit="share of tokens"),
        "tokens": statistics.mean_figure([row["tokens"] for row in own], groups, unit="tokens"),
    }
    filled = [row for row in own if row["tokens"]]
    if filled:
        groups = [row["text"] for row in filled]
        for name, column, unit in (
            ("nll_per_token", "nll_nats", "nats/token"), ("calls_per_token", "calls", "calls/token"),
            ("rows_per_token", "rows", "token-forwards/token"), ("seconds_per_token", "seconds", "s/token"),
        ):  # fmt: skip
            sums, counts = [row[column] for row in filled], [row["tokens"] for row in filled]
            figures[name] = statistics.ratio_figure(sums, counts, groups, unit=unit)
    if any(row["reward"] is not None for row in own):
        scored = [row for row in own if row["reward"] is not None]
        figures["reward"] = statistics.mean_figure(
            [row["reward"] for row in scored], [row["text"] for row in scored], unit="reward"
        )
    grams = [gram for row in own for gram in zip(row["ids"], row["ids"][1:], strict=False)]
    if grams:
        figures["distinct_bigrams"] = Figure(len(set(grams)) / len(grams), "share", len(grams))
    return figures


_COMPARED = ("rows_per_token", "nll_per_token", "seconds_per_token")


def _verdict(asked: Sequence[Named], figures: Mapping[str, Figure], whose: str) -> list[str]:
    first, found = asked[0], []
    for named in asked[1:]:
        share = figures[f"{named.figure}.agreement"].value
        sentence = f"{named.name} agrees with {first.name} at {100 * float(share):.0f} % of the tokens"
        pairs = [(f"{first.figure}.{name}", f"{named.figure}.{name}") for name in _COMPARED]
        if all(name in figures for pair in pairs for name in pair):
            rows = float(figures[pairs[0][1]].value) / float(figures[pairs[0][0]].value)
            took = float(figures[pairs[2][1]].value) / float(figures[pairs[2][0]].value)
            nll = float(figures[pairs[1][1]].value) - float(figures[pairs[1][0]].value)
            sentence += f", at {100 * rows:.0f} % of its token-forwards, {100 * took:.0f} % of its time"
            sentence += f" and {nll:+.2f} nats a token under {whose}"
        if f"{named.figure}.reward" in figures:
            ours, theirs = figures[f"{named.figure}.reward"].value, figures[f"{first.figure}.reward"].value
            sentence += f"; reward {float(ours):.2f} against {float(theirs):.2f}"
        found.append(sentence + ".")
    return found


def _panels(lines: Sequence[Mapping[str, Any]], rows: Rows, asked: Sequence[Named]) -> list[Panel]:
    order = [named.name for named in asked]
    lines = sorted(lines, key=lambda line: order.index(line["decoder"]))
    points = [
        {"decoder": line["decoder"], "rows_per_token": line["rows_per_token"], "nll_per_token": line["nll_per_token"]}
        for line in lines
        if "rows_per_token" in line
    ]
    side: dict[int, dict[str, Any]] = {}
    for row in rows:
        side.setdefault(row["document"], {"prompt": row["prompt"]})[row["decoder"]] = row["answer"]
    panels = [
        Panel("Decoders", "Means over texts; the first decoder is the one compared with.", "table", _table(lines))
    ]
    if points:
        panels.append(
            Panel(
                "Likelihood and cost",
                "Left is cheaper; lower is likelier under the model.",
                "points",
                pa.Table.from_pylist(points),
                x="rows_per_token",
                y="nll_per_token",
                series="decoder",
                label="decoder",
                x_title="token-forwards per token",
                y_title="−log p (nats per token)",
            )
        )
    shown = pa.Table.from_pylist(list(side.values()), schema=pa.schema([(n, pa.string()) for n in _heads(asked)]))
    return [*panels, Panel("Texts", "What each decoder wrote after the same prompts.", "table", shown)]


def _heads(asked: Sequence[Named]) -> list[str]:
    return ["prompt", *(named.name for named in asked)]


def _table(lines: Sequence[Mapping[str, Any]]) -> pa.Table:
    names = list(dict.fromkeys(name for line in lines for name in line))
    return pa.Table.from_pylist([{name: line.get(name) for name in names} for line in lines])
