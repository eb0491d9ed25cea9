"""Any order: fill any hidden positions of texts, several tokens a round, with the joint law of an any-subset model kept.

The model drafts the next positions by one call and judges them by another; what it keeps has the law of filling position by
position (any-subset speculative decoding). Every text comes with its cost and with its probability under the model's own
joint law, which one call gives; records with an answer, or with words in ⟦ ⟧, are scored by it.

Masked models (LLaDA, Dream, BERT …) are filled in a random order fixed in advance, in which they draft best (with the n-gram
draft from the left), and judged by a batch of copies of the text, one for each draft: calls are saved, not token-forwards.

Source: arXiv 2504.20456; judging by copies: arXiv 2510.04147. Deviation: see `core/denoising/speculation.py`; its lossy
tolerance of refusals is left out. Every call computes all N + K rows anew: keys and values of known tokens do not change,
but XLNet's implementation keeps none at positions of one's choice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from shiftscope.core import answers, statistics
from shiftscope.core.answers import Loading, Texts
from shiftscope.core.corpus import Text
from shiftscope.core.denoising import decoders, holes
from shiftscope.core.denoising.any_subset import AnySubsetLM
from shiftscope.core.denoising.gapped import Gapped, Network, spread_order
from shiftscope.core.denoising.holes import Holed
from shiftscope.core.denoising.masked_model import MaskedLM
from shiftscope.core.denoising.preservation import Preservation, along_its_order
from shiftscope.core.denoising.speculation import Speculation, fill
from shiftscope.core.parts import Parts
from shiftscope.core.result import Figure, Panel, Result

INTS, FLOATS = pa.list_(pa.int32()), pa.list_(pa.float64())
ROWS = pa.schema(
    [
        ("text", pa.int32()), ("id", pa.string()), ("sample", pa.int32()), ("given", pa.bool_()), ("filled", pa.string()),
        ("marked", pa.string()), ("hidden", pa.int32()), ("visible", pa.int32()), ("calls", pa.int32()),
        ("rows", pa.int32()), ("pairs", pa.int64()), ("auxiliary", pa.int32()), ("nll_nats", pa.float64()),
        ("position", INTS), ("token", INTS), ("call", INTS), ("logp_nats", FLOATS), ("drafted", INTS), ("kept", INTS),
        ("written", INTS),
    ]
)  # fmt: skip
Rows = Sequence[Mapping[str, Any]]


def any_order(
    model: str | AnySubsetLM | MaskedLM,
    *,
    prompts: Texts = None,
    limit: int | None = None,
    hide: float = 0.0,
    samples: int = 1,
    speculation: Speculation = Speculation(),
    loading: Loading = Loading(),
    parts: Parts | None = None,
    advance: answers.Advance | None = None,
) -> Result:
    """Fill the hidden positions of texts with an any-subset or masked model, by fewer calls than tokens; score given answers.

    model: the checkpoint (path, hub id, zoo name, or a loaded AnySubsetLM or MaskedLM).
    prompts: jsonl, parquet or txt with a prompt per record. In a prompt, [[5]] stands for five hidden tokens and the mask
        token for one; [[]] is filled by the record's answer, which is scored, not drawn, and so are words in ⟦ ⟧, any number
        of them. Without, the prompts that ship with the checkpoint.
    limit: only the first records.
    hide: share of the tokens of each text that is hidden at random; the text's own tokens are scored, and drawn anew.
    samples: texts drawn for each record.
    Returns a Result whose table has one row per text drawn or scored.
    Raises ValueError, in one sentence, for a checkpoint of another kind, malformed or too long texts, and texts without
    a hidden position.
    """
    if not 0 <= hide <= 1:
        raise ValueError(
            f"hide is {hide}: a share of the tokens is needed, above 0 and at most 1 (0: the texts' own holes)"
        )
    if samples < 1 or (samples > 1 and speculation.temperature == 0):
        raise ValueError(
            f"samples is {samples} at temperature {speculation.temperature:g}: need at least 1, and 1 where all would be equal"
        )
    opened = decoders.opened(model, dtype=loading.dtype, device=loading.device) if isinstance(model, str) else model
    kept = kept_by(opened, speculation)
    named: Any = opened  # corpora and provenance read the name, the tokenizer and the folder of any kind of model
    parts = parts or Parts()
    settings = answers.provenance(
        named, prompts=prompts, limit=limit, hide=hide, samples=samples, speculation=speculation, loading=loading
    )
    settings["preserves"] = kept.kind
    parts.settle(settings)
    jobs = [
        (text, holes.holed(opened, text, hide, speculation.seed))
        for text in answers.corpus_of(prompts, named, limit, option="prompts")
    ]
    groups = [jobs[start : start + loading.batch_size] for start in range(0, len(jobs), loading.batch_size)]
    writer = _Writer(opened, decoders.network(opened), speculation, samples, redraw=hide > 0)
    rows = parts.map(
        "filled", groups, lambda group: {"texts": pa.Table.from_pylist(list(writer.rows(group)), schema=ROWS)},
        advance=None if advance is None else lambda done, total: advance("filling", done, total), final=True,
    )["texts"]  # fmt: skip
    return summarise(rows, speculation, kept, provenance=settings)


def kept_by(model: AnySubsetLM | MaskedLM, how: Speculation) -> Preservation:
    """What texts filled in this way keep of the model's law, and the sentence that says it."""
    found = Preservation(how.preserves, how.law)
    if isinstance(model, AnySubsetLM) or found.kind == "no":
        return found
    found = along_its_order(found)
    return Preservation(found.kind, f"The law is exact if the model is consistent: {found.reason}.")


@dataclass(frozen=True)
class _Writer:
    """Fills and scores groups of records. redraw: records whose hidden tokens are known are drawn as well as scored."""

    model: AnySubsetLM | MaskedLM
    network: Network
    how: Speculation
    samples: int
    redraw: bool

    def rows(self, jobs: Sequence[tuple[Text, Holed]]) -> Iterator[dict[str, Any]]:
        """One row for each text scored, then one for each text drawn."""
        given = [(text, found, self._gapped(text.text, found)) for text, found in jobs if found.known]
        scores = self.network.joint_logp([gapped for *_, gapped in given]) if given else []
        for (text, found, gapped), logp_K in zip(given, scores, strict=True):
            for place, logp in zip(gapped.order, logp_K.tolist(), strict=True):
                gapped.record.add(place, gapped.ids[place], logp)
            yield self._row(text, found, gapped, sample=0, given=True, nll=-float(logp_K.sum()))
        asked = [(text, found) for text, found in jobs if self.redraw or not found.known]
        drawn = [
            (text, found, sample, self._gapped(text.text * self.samples + sample, found))
            for text, found in asked
            for sample in range(self.samples)
        ]
        for start in range(0, len(drawn), len(jobs)):
            batch = drawn[start : start + len(jobs)]
            fill(self.network, [gapped for *_, gapped in batch], self.how)
            copies = [Gapped(gapped.document, gapped.ids, gapped.order) for *_, gapped in batch]  # no text's cost
            for (text, found, sample, gapped), logp_K in zip(batch, self.network.joint_logp(copies), strict=True):
                yield self._row(text, found, gapped, sample=sample, given=False, nll=-float(logp_K.sum()))

    def _gapped(self, document: int, found: Holed) -> Gapped:
        """Any-subset models learnt to fill from the left, and bigrams need it; masked ones draft best where drafts are apart."""
        ascending = isinstance(self.model, AnySubsetLM) or (self.how.method, self.how.draft) == ("assd", "ngram")
        order = found.hidden if ascending else spread_order(document, found.hidden, self.how.seed)
        return Gapped(document, list(found.ids), order)

    def _row(self, text: Text, found: Holed, gapped: Gapped, *, sample: int, given: bool, nll: float) -> dict[str, Any]:
        record, tokenizer = gapped.record, self.model.tokenizer
        return {
            "text": text.text, "id": text.id, "sample": sample, "given": given,
            "filled": holes.plain(tokenizer, gapped.ids, found.added),
            "marked": holes.marked(tokenizer, gapped.ids, found), "hidden": len(found.hidden),
            "visible": len(found.ids) - len(found.hidden), "calls": record.calls, "rows": record.rows,
            "pairs": record.pairs, "auxiliary": record.auxiliary, "nll_nats": nll, "position": record.position,
            "token": record.token, "call": record.call, "logp_nats": record.logp_nats,
            "drafted": [one.drafted for one in gapped.rounds], "kept": [one.kept for one in gapped.rounds],
            "written": [one.written for one in gapped.rounds],
        }  # fmt: skip


def summarise(
    table: pa.Table, how: Speculation, kept: Preservation, *, provenance: Mapping[str, Any] | None = None
) -> Result:
    """Figures, verdict and panels of a table of texts drawn and scored. how: the settings that they were drawn with."""
    rows = table.to_pylist()
    drawn, given = [row for row in rows if not row["given"]], [row for row in rows if row["given"]]
    scored = {name: of for name, of in (("given", given), ("drawn", drawn)) if of}
    figures = {f"{name}_nll_nats_per_token": _ratio(of, "nll_nats", "nats/token") for name, of in scored.items()}
    figures |= _costs(drawn, how) if drawn else {}
    verdict, notes, panels = [], [], []
    if drawn:
        tokens, calls = sum(row["hidden"] for row in drawn), sum(row["calls"] for row in drawn)
        verdict = [
            f"{len(drawn)} texts: {tokens:,} hidden tokens were filled by {calls:,} network calls, {calls / tokens:.2f} a token "
            f"(one by one it takes {tokens:,}).",
            kept.reason,
        ]
        notes.append(
            "calls are counted for each text by itself: a batch takes as many as its slowest text; a text of N tokens with K "
            "asked for costs an any-subset model N + K rows (token-forwards) a call, and a masked one N for a draft and N for "
            "each position judged; the scoring of drawn texts is not counted"
        )
        if how.method == "assd" and how.draft == "self" and how.ahead:
            notes.append("a round takes two calls, or one where it is drafted by laws that an earlier call gave")
    if given:
        figure = figures["given_nll_nats_per_token"]
        verdict.append(
            f"{len(given)} given texts cost {figure.value:.3f} nats per hidden token under the model's joint law"
            f"{', one call each' if all(row['calls'] == 1 for row in given) else ''}."
        )
    places = _places(drawn) if how.method == "assd" else []
    for place, held, reached in places:
        figures[f"kept_at_{place}"] = statistics.share_figure(held, reached)
    panels.append(_texts_panel(table))
    if drawn:
        panels.append(_calls_panel(drawn))
    if places:
        panels.append(_places_panel(places))
    return Result("generate any-order", table, figures, dict(provenance or {}), verdict, notes, panels)


def _costs(drawn: Rows, how: Speculation) -> dict[str, Figure]:
    tokens = sum(row["hidden"] for row in drawn)
    most = max(row["calls"] / row["hidden"] for row in drawn)
    figures = {
        "tokens_written": Figure(tokens, "count", len(drawn)),
        "calls": Figure(sum(row["calls"] for row in drawn), "count", len(drawn)),
        "calls_per_token": _ratio(drawn, "calls", "calls/token"),
        "most_calls_per_token": Figure(most, "calls/token", len(drawn)),
        "calls_at_most_tokens": Figure(most <= 1, "", len(drawn)),
        "rows_per_token": _ratio(drawn, "rows", "token-forwards/token"),
    }
    if how.method == "assd":
        rounds = [written for row in drawn for written in row["written"]]
        groups = [row["text"] for row in drawn for _ in row["written"]]
        figures["tokens_per_round"] = statistics.mean_figure(rounds, groups, unit="tokens/round")
        if how.draft == "ngram":
            figures["auxiliary_per_token"] = _ratio(drawn, "auxiliary", "calls/token")
    return figures


def _ratio(rows: Rows, column: str, unit: str) -> Figure:
    """Σ column / Σ hidden tokens, with a bootstrap interval over records."""
    sums, counts = [row[column] for row in rows], [row["hidden"] for row in rows]
    return statistics.ratio_figure(sums, counts, [row["text"] for row in rows], unit=unit)


def _places(drawn: Rows) -> list[tuple[int, int, int]]:
    """For each place of a round: how often its draft was kept, of how often all before it were."""
    rounds = [pair for row in drawn for pair in zip(row["drafted"], row["kept"], strict=True)]
    found = []
    for place in range(1, max((drafted for drafted, _ in rounds), default=0) + 1):
        reached = [kept >= place for drafted, kept in rounds if drafted >= place and kept >= place - 1]
        if reached:
            found.append((place, sum(reached), len(reached)))
    return found


def _texts_panel(table: pa.Table) -> Panel:
    rate = [nll / n for nll, n in zip(table["nll_nats"].to_pylist(), table["hidden"].to_pylist(), strict=True)]
    shown = table.select(["id", "sample", "given", "marked", "hidden", "calls"])
    caption = (
        f"What was hidden stands in {holes.OPEN} {holes.CLOSE}; nll in nats per hidden token, under the model's joint law. "
        f"Given texts are scored, not drawn."
    )
    return Panel("Filled texts", caption, "table", shown.append_column("nll_nats_per_token", pa.array(rate)))


def _calls_panel(drawn: Rows) -> Panel:
    points = [(row["hidden"], row["calls"], "texts") for row in drawn]
    points += [(n, n, "one call a token") for n in sorted({row["hidden"] for row in drawn})]
    columns = dict(zip(("hidden", "calls", "what"), map(list, zip(*points, strict=True)), strict=True))
    return Panel(
        "Calls against tokens", "Network calls of each text; position by position it takes one for each hidden token.",
        "points", pa.table(columns), x="hidden", y="calls", series="what", x_title="hidden tokens",
        y_title="network calls",
    )  # fmt: skip


def _places_panel(places: Sequence[tuple[int, int, int]]) -> Panel:
    shares = [statistics.share_figure(kept, reached) for _, kept, reached in places]
    columns = {
        "place": [place for place, *_ in places],
        "kept": [kept / reached for _, kept, reached in places],
        "low": [share.low for share in shares],
        "high": [share.high for share in shares],
    }
    return Panel(
        "Drafts kept, by place in the round", "Share of drafts kept where all before them were, with 95 % intervals.",
        "bar", pa.table(columns), x="place", y="kept", low="low", high="high", x_title="place in the round",
        y_title="share kept",
    )  # fmt: skip
