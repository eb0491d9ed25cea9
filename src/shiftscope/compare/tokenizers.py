"""Tokenizers: how well each one compresses your texts, where they cut differently, and what more merges would bring.

No model is asked: a tokenizer is measured as a compressor and as a channel, over all texts, per domain and per language,
beside the raw bytes of the same texts. Entropies come with their controls, since plug-in values of H_3 and beyond are
mostly a matter of how long the stream is.

Source: arXiv 2601.09039 (block entropies, utilisation, universal codes, domain mismatch); arXiv 2306.16842 (Rényi
utilisation).
Deviation: k-grams do not cross documents; codes are raw deflate and LZMA2, without header bytes; an unreliable H_k is
left out of the figures and flagged in the table; bits per character are refused where a tokenizer loses text.
See also: `adapt tokenizer` trains a tokenizer on texts of your own.
"""

# D documents

from __future__ import annotations

import json
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import version
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from shiftscope.core.answers import Advance
from shiftscope.core.parts import Parts
from shiftscope.core.result import Figure, Panel, Result
from shiftscope.core.tokenizers import disagreement, documents, gaining, rates, segmentation
from shiftscope.core.tokenizers.documents import Corpora, Document
from shiftscope.core.tokenizers.rates import CODERS, Measuring, Row, Sizes
from shiftscope.core.tokenizers.segmentation import Cut, Tokens

BYTES = "raw bytes"  # the baseline's name in the table
ALL = ("all", "all texts")
TELLING = ("bytes_per_token", "differing_characters", "added_merges_saving", "utilisation", "tokens_per_char")  # first
SHOWN_DIFFERENCES = 40
OWN_MERGES_BYTES = 400_000  # text that every shortened list of merges reads


@dataclass(frozen=True)
class Corpus:
    """The texts of a comparison with the tokenizers that cut them."""

    documents: Sequence[Document]
    tokens: Sequence[Tokens]

    @cached_property
    def texts(self) -> list[str]:
        return [document.text for document in self.documents]

    @cached_property
    def sizes(self) -> Sizes:
        return Sizes.of(self.texts)

    @cached_property
    def cuts(self) -> list[Cut]:
        """The texts as each tokenizer cuts them: made when a part that is not on disk asks for it."""
        return [segmentation.cut(tokens, self.texts) for tokens in self.tokens]

    def groups(self) -> dict[tuple[str, str], NDArray[np.bool_]]:
        """(grouping, name) -> which documents: all texts, then every domain and every language."""
        found = {ALL: np.ones(len(self.documents), dtype=bool)}
        for grouping in ("domain", "language"):
            values = [getattr(document, grouping) for document in self.documents]
            for value in sorted({value for value in values if value is not None}):
                found[grouping, value] = np.array([other == value for other in values])
        return found


def tokenizers(
    names: Sequence[str] | Mapping[str, Any],
    *,
    texts: Corpora,
    limit: int | None = None,
    added: int = 256,
    measuring: Measuring = Measuring(),
    parts: Parts | None = None,
    advance: Advance | None = None,
) -> Result:
    """Compare tokenizers on texts: compression, entropies with controls, use of the vocabulary, codes, cuts, merges.

    names: one or more checkpoints (zoo name, folder, hub id) or tokenizer.json files; or name → tokenizer in Python. The
        others are set against the first.
    texts: jsonl, parquet or txt files with a text per record and optionally its domain and language (repeatable; each of
        several files is a domain); or records.
    limit: only the first records of each file.
    added: merges to add to each tokenizer on half of the texts, to see what they save on the other half; 0 for none.
    Returns a Result whose table has one row per tokenizer and group of texts, raw bytes first.
    Raises ValueError, in one sentence, for an empty corpus, a tokenizer of unknown kind, and one that turns all the texts
    into nothing.
    """
    if added < 0:
        raise ValueError(f"added is {added}: it must be 0 (no merges) or more")
    found = segmentation.opened([names] if isinstance(names, str) else names)
    if not found:
        raise ValueError("no tokenizer was given: name at least one checkpoint or tokenizer.json file")
    settings, parts = _provenance(found, texts, limit, added, measuring), parts or Parts()
    parts.settle(settings)
    corpus = Corpus(documents.documents(texts, limit), found)
    jobs = [("group", name) for name in corpus.groups()] + [("pair", other) for other in range(1, len(found))]
    jobs += [("own", place) for place in range(len(found))] + [("added", place) for place in range(len(found))]

    def measure(job: tuple[str, Any]) -> dict[str, pa.Table]:
        said = json.dumps(_measured(corpus, job, added, measuring), default=_number)
        return {"found": pa.table({"job": [job[0]], "said": [said]})}

    named = None if advance is None else lambda done, total: advance("measuring tokenizers", done, total)
    rows = parts.map("tokenizers", jobs, measure, advance=named, final=True)["found"].to_pylist()
    by_kind: dict[str, list[Any]] = {}
    for row in rows:
        by_kind.setdefault(row["job"], []).append(json.loads(row["said"]))
    return summarise(by_kind, corpus, added, measuring, settings)


def _measured(corpus: Corpus, job: tuple[str, Any], added: int, measuring: Measuring) -> Any:
    """One part of the comparison, as JSON would give it back."""
    kind, which = job
    if kind == "group":
        return measured_rows(corpus, which, measuring)
    if kind == "pair":
        return asdict(_pair(corpus, which))
    if kind == "own":
        ahead = np.cumsum(corpus.sizes.bytes_D) - corpus.sizes.bytes_D < OWN_MERGES_BYTES
        some = [text for text, chosen in zip(corpus.texts, ahead, strict=True) if chosen]
        return gaining.own_merges(corpus.tokens[which], some)
    if not added:
        return None
    counts = gaining.added_merges(corpus.cuts[which], corpus.tokens[which].size, added, measuring.seed)
    return None if counts is None else counts.tolist()


def _number(value: Any) -> Any:
    """A number of numpy as Python's own."""
    return value.item()


def summarise(
    found: Mapping[str, Sequence[Any]], corpus: Corpus, added: int, measuring: Measuring, provenance: dict[str, Any]
) -> Result:
    """The Result of a comparison. found: what was measured by kind: group (rows and notes), pair, own and added merges."""
    table = pa.Table.from_pylist([row for rows, _ in found["group"] for row in rows])
    figures, notes = _figures(table, corpus, measuring)
    pairs = [
        Pair(**{**pair, "figures": {name: Figure(**figure) for name, figure in pair["figures"].items()}})
        for pair in found.get("pair", [])
    ]
    names = [tokens.name for tokens in corpus.tokens]
    ahead = np.cumsum(corpus.sizes.bytes_D) - corpus.sizes.bytes_D < OWN_MERGES_BYTES
    curves = Curves(
        {name: [(kept, count) for kept, count in points] for name, points in zip(names, found["own"], strict=True)},
        int(corpus.sizes.bytes_D[ahead].sum()),
        {n: None if counts is None else np.array(counts) for n, counts in zip(names, found["added"], strict=True)},
    )
    figures |= {name: figure for pair in pairs for name, figure in pair.figures.items()} | _saving(curves, corpus)
    figures = dict(sorted(figures.items(), key=lambda item: _rank(item[0])))
    notes = [
        *(note for _, said in found["group"] for note in said),
        *_numbered_notes(corpus),
        *notes,
        *(note for pair in pairs for note in pair.notes),
        *_curve_notes(curves, corpus, added),
    ]
    return Result(
        "compare tokenizers", table, figures, provenance, _verdict(table, corpus, pairs, curves), notes,
        [*_panels(table), *_pair_panels(pairs), *_curve_panels(curves)],
    )  # fmt: skip


def measured_rows(corpus: Corpus, name: tuple[str, str], measuring: Measuring) -> tuple[list[Row], list[str]]:
    """One row per tokenizer (the raw bytes first) on one group of texts, and what could not be measured."""
    (grouping, group), chosen_D, notes = name, corpus.groups()[name], []
    texts = [text for text, chosen in zip(corpus.texts, chosen_D, strict=True) if chosen]
    for tokens, cut in zip(corpus.tokens, corpus.cuts, strict=True):
        if name == ALL and cut.lossy_D.any() and not measuring.lossy:
            notes.append(
                f"{tokens.name} does not give back {int(cut.lossy_D.sum())} of {len(texts)} texts from their ids: its bits "
                f"per character are left out for groups with such texts, since they would not be the price of the text "
                f"(`lossy` gives them all the same)"
            )
    sizes, own = corpus.sizes.select(chosen_D), rates.byte_stream(texts)
    streams = [cut.stream.of(chosen_D) for cut in corpus.cuts]
    shortest = min((len(stream.ids_N) for stream in streams if len(stream.ids_N)), default=1)
    equal_n = measuring.equal_n or shortest
    named = {"grouping": grouping, "group": group}
    rows: list[Row] = [
        {"tokenizer": BYTES, "kind": "bytes"} | named | rates.compression(own, sizes, 256, measuring.alpha)
        | {"unknown_share": 0.0, "byte_token_share": 0.0, "lossy_documents": 0}
        | rates.entropies(own, measuring, equal_n) | rates.codes(own, sizes, 256, measuring, "bytes")
        | rates.predictions(own, sizes, 256, measuring)
    ]  # fmt: skip
    rows[0] |= rates.per_character(rows[0], measuring.order)
    for tokens, cut, stream in zip(corpus.tokens, corpus.cuts, streams, strict=True):
        if not len(stream.ids_N):
            notes.append(f"{tokens.name} turns the texts of {grouping} {group} into no token: they are left out")
            continue
        lossy = int(cut.lossy_D[chosen_D].sum())
        row: Row = {"tokenizer": tokens.name, "kind": tokens.kind} | named
        row |= rates.compression(stream, sizes, tokens.size, measuring.alpha)
        row |= {
            "unknown_share": float(np.isin(stream.ids_N, cut.unknown_id).mean()),
            "byte_token_share": float(np.isin(stream.ids_N, cut.byte_ids).mean()),
            "lossy_documents": lossy,
        }
        row |= rates.entropies(stream, measuring, equal_n)
        if not lossy or measuring.lossy:
            row |= rates.codes(stream, sizes, tokens.size, measuring)
            row |= rates.predictions(stream, sizes, tokens.size, measuring)
            row |= rates.per_character(row, measuring.order)
        rows.append(row)
    return rows, notes


@dataclass(frozen=True)
class Pair:
    """The first tokenizer against another: figures, what could not be compared, the most frequent different cuts."""

    first: str
    second: str
    figures: Mapping[str, Figure]
    notes: Sequence[str]
    differences: Sequence[Row]


def _pair(corpus: Corpus, other: int) -> Pair:
    (first, second), (ours, theirs) = (corpus.tokens[0], corpus.tokens[other]), (corpus.cuts[0], corpus.cuts[other])
    texts = corpus.texts
    found = list(disagreement.differences(ours, theirs, texts))
    document_ends = np.cumsum(corpus.sizes.characters_D)
    of_D = np.searchsorted(document_ends, [difference.end for difference in found])
    lengths = [difference.end - difference.begin for difference in found]
    differing_D = np.bincount(of_D.astype(int), weights=lengths, minlength=len(texts)).astype(np.int64)
    label = f"{first.label}.{second.label}"
    agreement, places = disagreement.cut_agreement(ours, theirs)
    same = len(texts) - len(np.unique(of_D))
    figures = {
        f"cut_agreement.{label}": Figure(agreement, "share", places),
        f"differing_characters.{label}": rates.ratio_figure(differing_D, corpus.sizes.characters_D, "share"),
        f"texts_cut_alike.{label}": Figure(same / len(texts), "share", len(texts)),
    }
    suffixes = _suffixes(corpus)
    for name, chosen_D in corpus.groups().items():
        if name != ALL:
            figures[f"differing_characters.{label}{suffixes[name]}"] = rates.ratio_figure(
                differing_D[chosen_D], corpus.sizes.characters_D[chosen_D], "share"
            )
    notes: list[str] = []
    try:
        figures |= _overlap(first, second, ours, theirs)
    except ValueError as error:
        notes.append(f"the vocabularies of {first.name} and {second.name} are not compared: {error}")
    rows = [
        {"text": text, first.name: " | ".join(one.first), second.name: " | ".join(one.second), "count": count}
        for text, one, count in disagreement.most_common(found, texts, SHOWN_DIFFERENCES)
    ]
    return Pair(first.name, second.name, figures, notes, rows)


def _suffixes(corpus: Corpus) -> dict[tuple[str, str], str]:
    """(grouping, name) -> what stands behind a figure's name for one group of texts; nothing for all of them.

    Groups whose names differ only in characters that a figure's name cannot have are numbered: C# and C++ are C_ and C__2.
    """
    found: dict[tuple[str, str], str] = {}
    for grouping, group in corpus.groups():
        plain = numbered = "." + grouping + "." + re.sub(r"\W+", "_", group)
        number = 1
        while numbered in found.values():
            number += 1
            numbered = f"{plain}_{number}"
        found[grouping, group] = "" if (grouping, group) == ALL else numbered
    return found


def _numbered_notes(corpus: Corpus) -> list[str]:
    """Which figures are whose, where groups had to be numbered."""
    suffixes = _suffixes(corpus)
    return [
        f"figures whose names end in {suffix} are those of the {grouping} {group!r}"
        for (grouping, group), suffix in suffixes.items()
        if suffix and suffix != "." + grouping + "." + re.sub(r"\W+", "_", group)
    ]


def _overlap(first: Tokens, second: Tokens, ours: Cut, theirs: Cut) -> dict[str, Figure]:
    """Tokens that spell the same bytes in both vocabularies, and the share of each stream that they make up."""
    found, label = disagreement.overlap(first, second, ours, theirs), f"{first.label}.{second.label}"
    streams = (first.label, found.of_first, ours), (second.label, found.of_second, theirs)
    return {
        f"shared_tokens.{label}": Figure(found.shared, "count", found.either),
        f"vocabulary_overlap.{label}": Figure(found.shared / found.either, "share", found.either),
    } | {
        f"stream_in_shared_tokens.{label}.{own}": Figure(share, "share", len(cut.stream.ids_N))
        for own, share, cut in streams
    }


@dataclass(frozen=True)
class Curves:
    """Tokens against merges by tokenizer: own (merges kept, tokens, bytes of text) and added (after 0, 1, … merges)."""

    own: Mapping[str, Sequence[tuple[int, int]]]
    own_bytes: int
    added: Mapping[str, NDArray[np.int64] | None]


def _saving(curves: Curves, corpus: Corpus) -> dict[str, Figure]:
    """Share of held-out tokens that the added merges save, by tokenizer."""
    figures = {}
    for tokens in corpus.tokens:
        counts = curves.added[tokens.name]
        if counts is not None:
            figures[f"added_merges_saving.{tokens.label}"] = Figure(
                float(1 - counts[-1] / counts[0]), "share", int(counts[0])
            )
    return figures


def _curve_notes(curves: Curves, corpus: Corpus, added: int) -> list[str]:
    notes = [f"{tokens.name} is a {tokens.kind}: it has no merges whose own gain could be counted"
             for tokens in corpus.tokens if not curves.own[tokens.name]]  # fmt: skip
    if added and any(counts is None for counts in curves.added.values()):
        notes.append("merges are added on one half of the texts and counted on the other: that needs two texts or more")
    return notes


def _figures(table: pa.Table, corpus: Corpus, measuring: Measuring) -> tuple[dict[str, Figure], list[str]]:
    """Figures named quantity.tokenizer over all texts, compression also by domain and language; and what is left out."""
    figures: dict[str, Figure] = {}
    notes = []
    labels = {BYTES: "raw_bytes"} | {tokens.name: tokens.label for tokens in corpus.tokens}
    whole = {row["tokenizer"]: row for row in table.to_pylist() if row["grouping"] == ALL[0]}
    unreliable: dict[str, list[str]] = {}
    suffixes = _suffixes(corpus)
    for row in table.to_pylist():
        if row["tokenizer"] == BYTES:
            continue
        group = suffixes[row["grouping"], row["group"]]
        for quantity, unit in (("bytes_per_token", "bytes/token"), ("tokens_per_char", "tokens/char")):
            low, high = row[f"{quantity}_low"], row[f"{quantity}_high"]
            name = f"{quantity}.{labels[row['tokenizer']]}{group}"
            figures[name] = Figure(row[quantity], unit, row["documents"], low, high)
    figures |= _parity(table, labels)
    for name in (*(tokens.name for tokens in corpus.tokens), BYTES):
        row, label = whole[name], labels[name]
        if name != BYTES:
            for quantity in ("utilisation", "renyi_utilisation", "used_share", "unknown_share", "byte_token_share"):
                if row[quantity] is not None:
                    figures[f"{quantity}.{label}"] = Figure(row[quantity], "share", row["tokens"])
            lossless = 1 - row["lossy_documents"] / row["documents"]
            figures[f"lossless_texts.{label}"] = Figure(lossless, "share", row["documents"])
        figures |= _entropy_figures(row, label, measuring.order) | _code_figures(
            row, label, whole[BYTES], measuring.order
        )
        left_out = [f"H_{k}" for k in range(1, measuring.order + 1) if not row[f"h{k}_reliable"]]
        unreliable.setdefault(", ".join(left_out), []).append(name)
    notes += [
        f"{orders} of {', '.join(names)}: left out of the figures, for there are fewer than ten windows for each k-gram, so "
        f"that plug-in bias can make the whole value; the table has them beside their shuffled controls"
        for orders, names in unreliable.items()
        if orders
    ]
    return figures, notes


def _parity(table: pa.Table, labels: Mapping[str, str]) -> dict[str, Figure]:
    """How unevenly domains, and languages, are charged: the largest tokens per character over the smallest, and the Gini index.

    The interval of the first is that of the two groups' own intervals together, hence wide. Only on texts that say the same
    in every language is it a matter of fairness alone.
    """
    figures = {}
    for grouping in ("domain", "language"):
        for name, label in labels.items():
            some = _groups(table.to_pylist(), grouping, name)
            if name == BYTES or len(some) < 2:
                continue
            least, most = some[0], some[-1]
            value, low, high = (
                most[f"tokens_per_char{above}"] / least[f"tokens_per_char{below}"]
                for above, below in (("", ""), ("_low", "_high"), ("_high", "_low"))
            )
            rates_G = np.array([row["tokens_per_char"] for row in some])
            gini = float(np.abs(rates_G[:, None] - rates_G).mean() / (2 * rates_G.mean()))
            documents = sum(row["documents"] for row in some)
            figures[f"tokens_per_char_ratio.{label}.{grouping}"] = Figure(value, "ratio", documents, low, high)
            figures[f"tokens_per_char_gini.{label}.{grouping}"] = Figure(gini, "share", len(some))
    return figures


def _groups(rows: Sequence[Row], grouping: str, name: str) -> list[Row]:
    """Rows of one tokenizer by domain or by language, the cheapest group first."""
    some = [row for row in rows if row["grouping"] == grouping and row["tokenizer"] == name]
    return sorted(some, key=lambda row: row["tokens_per_char"])


def _entropy_figures(row: Row, label: str, highest: int) -> dict[str, Figure]:
    """H_k where it is reliable; the gap to the shuffled control where that control is above half of its true value H_1."""
    figures = {}
    for k in range(1, highest + 1):
        kept = ["bits", "equal_bits"] if row[f"h{k}_reliable"] else []
        control = row[f"h{k}_shuffled_bits"]
        kept += ["gap_bits"] if k > 1 and control is not None and control > row["h1_bits"] / 2 else []
        for part in kept:
            if row[f"h{k}_{part}"] is not None:
                figures[f"h{k}_{part}.{label}"] = Figure(row[f"h{k}_{part}"], "bits/token", row[f"h{k}_windows"])
    return figures


def _code_figures(row: Row, label: str, raw: Row, highest: int) -> dict[str, Figure]:
    """Bits per character by code, and what each saves of the same code over raw bytes."""
    figures = {}
    places = {"memoryless": "characters", "ngram": "held_out_characters"}
    for name in ("memoryless", *CODERS, "ngram"):
        column = f"ngram{highest}" if name == "ngram" else name
        bits = row[f"{column}_bits_per_char"]
        if bits is None:
            continue
        n = row[places.get(name, "coded_characters")]
        figures[f"{name}_bits_per_char.{label}"] = Figure(bits, "bits/char", n)
        if row is not raw:
            figures[f"{name}_gain.{label}"] = Figure(1 - bits / raw[f"{column}_bits_per_char"], "share", n)
    return figures


def _panels(table: pa.Table) -> list[Panel]:
    columns = [
        "tokenizer", "grouping", "group", "documents", "tokens_per_char", "bytes_per_token", "vocabulary", "used_share",
        "utilisation", "renyi_utilisation", "unknown_share", "byte_token_share", "lossy_documents",
    ]  # fmt: skip
    panels = [
        Panel("Compression and use of the vocabulary", "Every tokenizer on every group of texts; raw bytes beside them. "
              "Utilisation is H_1 / log2 K over all ids, reserved ones included.", "table", table.select(columns)),
    ]  # fmt: skip
    for grouping in ("domain", "language"):
        some = [row for row in table.to_pylist() if row["grouping"] == grouping and row["tokenizer"] != BYTES]
        if some:
            panels.append(
                Panel(
                    f"Tokens per character by {grouping}", f"With 95 % intervals over the texts of a {grouping}.", "bar",
                    pa.Table.from_pylist(some), x="group", y="tokens_per_char", low="tokens_per_char_low",
                    high="tokens_per_char_high", series="tokenizer", x_title=grouping, y_title="tokens per character",
                )
            )  # fmt: skip
    return [*panels, *_order_panels(table)]


def _order_panels(table: pa.Table) -> list[Panel]:
    whole = [row for row in table.to_pylist() if row["grouping"] == ALL[0]]
    highest = sum(name.endswith("_distinct") for name in table.column_names)
    by_order = [_order(row, k) for row in whole for k in range(1, highest + 1)]
    lines = [
        {"order": o["k"], "bits": o[kind], "stream": f"{o['tokenizer']}, {named}"}
        for kind, named in (("H_k", "as it is"), ("shuffled", "shuffled"))
        for o in by_order
        if o[kind] is not None and o["tokenizer"] != BYTES
    ]
    held_out = [
        {"order": k, "bits": row[f"ngram{k}_bits_per_char"], "tokenizer": row["tokenizer"]}
        for row in whole
        for k in range(1, highest + 1)
        if row[f"ngram{k}_bits_per_char"] is not None
    ]
    codes = [f"{name}_bits_per_char" for name in ("fixed", "memoryless", *CODERS, "deflate_two_bytes")]
    by_group = [
        {"grouping": row["grouping"], "group": row["group"]} | _order(row, k)
        for row in table.to_pylist()
        if row["grouping"] != ALL[0]
        for k in range(1, highest + 1)
    ]
    panels = [
        Panel("Entropies with their controls", "H_k in bits per token, that of the shuffled stream (truly H_1), their gap, "
              "H_k of an equal number of tokens for all tokenizers, H_k per character and the block entropy B_k. Unreliable: "
              "under ten windows for each k-gram.",
              "table", pa.Table.from_pylist(by_order)),
        Panel("How far order tells the next token", "Where the shuffled line falls below H_1, the fall is bias, not "
              "structure; only the gap between the two lines counts.", "line", pa.Table.from_pylist(lines), x="order",
              y="bits", series="stream", x_title="order k", y_title="H_k (bits per token)"),
        Panel("Universal codes", "Bits per character; deflate looks back 32 KiB only, xz over everything, so a gain under "
              "deflate alone is window, not structure.", "table",
              table.select(["tokenizer", "grouping", "group", *codes])),
    ]  # fmt: skip
    if by_group:
        panels.append(
            Panel("Entropies by domain and language", "As above for every group; the equal number of tokens is that of the "
                  "tokenizer with the fewest tokens in the group.", "table", pa.Table.from_pylist(by_group))
        )  # fmt: skip
    if held_out:
        panels.append(
            Panel("What held-out text costs", "Bits per character of half of the texts under smoothed k-grams learnt on the "
                  "other half: no bias to flatter a large vocabulary.", "line", pa.Table.from_pylist(held_out), x="order",
                  y="bits", series="tokenizer", x_title="order k", y_title="bits per character")
        )  # fmt: skip
    return panels


def _order(row: Row, k: int) -> Row:
    names = {"H_k": "bits", "shuffled": "shuffled_bits", "gap": "gap_bits", "at equal length": "equal_bits"}
    names |= {"per character": "bits_per_char", "B_k": "block_bits"}
    counts = {"windows": "windows", "distinct k-grams": "distinct", "reliable": "reliable"}
    return {"tokenizer": row["tokenizer"], "k": k} | {
        shown: row[f"h{k}_{column}"] for shown, column in (names | counts).items()
    }


def _pair_panels(pairs: Sequence[Pair]) -> list[Panel]:
    return [
        Panel(
            f"Where {pair.first} and {pair.second} cut differently",
            "The most frequent stretches between two places where both cut; | marks the cuts within.",
            "table", pa.Table.from_pylist(list(pair.differences)),
        )
        for pair in pairs
        if pair.differences
    ]  # fmt: skip


def _curve_panels(curves: Curves) -> list[Panel]:
    own = [
        {"merges": kept, "tokens_per_byte": tokens / curves.own_bytes, "tokenizer": name}
        for name, points in curves.own.items()
        for kept, tokens in points
    ]
    added = [
        {"merges": step, "saved": float(1 - counts[step] / counts[0]), "tokenizer": name}
        for name, counts in curves.added.items()
        if counts is not None
        for step in np.unique(np.linspace(0, len(counts) - 1, 65).astype(int)).tolist()
    ]
    panels = []
    if own:
        panels.append(
            Panel("What its own merges bring on these texts", "Tokens per byte with only the first merges kept, encoded "
                  "again: a flat end means merges that these texts hardly use.", "line", pa.Table.from_pylist(own),
                  x="merges", y="tokens_per_byte", series="tokenizer", x_title="merges kept", y_title="tokens per byte")
        )  # fmt: skip
    if added:
        panels.append(
            Panel("What added merges would bring", "Share of the tokens saved on one half of the texts by merges learnt on "
                  "the other half.", "line", pa.Table.from_pylist(added), x="merges", y="saved", series="tokenizer",
                  x_title="merges added", y_title="share of tokens saved")
        )  # fmt: skip
    return panels


def _verdict(table: pa.Table, corpus: Corpus, pairs: Sequence[Pair], curves: Curves) -> list[str]:
    rows = [row for row in table.to_pylist() if row["tokenizer"] != BYTES]
    whole = sorted(
        (row for row in rows if row["grouping"] == ALL[0]),
        key=lambda row: (row["lossy_documents"] > 0, row["tokens_per_char"]),
    )
    best = whole[0]  # few tokens are no merit where text is lost
    others = "".join(f", {row['tokenizer']} {row['bytes_per_token']:.2f} ({_more(row, best)})" for row in whole[1:])
    sentences = [f"{best['tokenizer']} packs {best['bytes_per_token']:.2f} bytes into a token{others}."]
    for grouping in ("domain", "language"):
        for tokens in corpus.tokens:
            some = _groups(rows, grouping, tokens.name)
            if len(some) > 1:
                low, high = some[0], some[-1]
                sentences.append(
                    f"By {grouping}, {tokens.name} needs {high['tokens_per_char'] / low['tokens_per_char']:.2f} times as many "
                    f"tokens per character for {high['group']} as for {low['group']}."
                )
    for pair in pairs:
        share = next(f.value for name, f in pair.figures.items() if name.startswith("differing_characters."))
        how = "cut every text alike" if not share else f"cut {100 * float(share):.1f} % of the characters differently"
        sentences.append(f"{pair.first} and {pair.second} {how}.")
    for name, counts in curves.added.items():
        if counts is not None and len(counts) > 1:
            saved = 100 * float(1 - counts[-1] / counts[0])
            sentences.append(
                f"{len(counts) - 1} merges added to {name} would save {saved:.1f} % of its tokens on new texts."
            )
    return sentences


def _rank(name: str) -> int:
    """Where a figure stands: what the page's head and the terminal show first, the groups of texts last."""
    if ".domain." in name or ".language." in name:
        return len(TELLING) + 1
    return next((place for place, head in enumerate(TELLING) if name.startswith(f"{head}.")), len(TELLING))


def _more(row: Row, best: Row) -> str:
    """How many tokens more than the best, in words; a tokenizer that loses text is not ranked by them."""
    if row["lossy_documents"]:
        return f"but it loses text in {row['lossy_documents']:,} of {row['documents']:,}"
    more = 100 * (row["tokens"] / best["tokens"] - 1)
    return "as many tokens" if not more else f"{more:.{0 if more >= 1 else 2}f} % more tokens"


def _provenance(
    tokens: Sequence[Tokens], texts: Corpora, limit: int | None, added: int, measuring: Measuring
) -> dict[str, Any]:
    packages = {name: version(name) for name in ("tokenizers", "transformers", "numpy", "shiftscope")}
    settings = {"texts": documents.identified(texts), "limit": limit, "added": added, "measuring": asdict(measuring)}
    return {
        "tokenizers": [dict(one.provenance) for one in tokens],
        "settings": settings,
        "versions": {"python": platform.python_version(), **packages},
    }
