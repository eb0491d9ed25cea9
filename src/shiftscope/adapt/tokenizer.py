"""Train a tokenizer on texts of your own: BPE, WordPiece or Unigram, or BPE whose merges minimise a compressor's output.

The compression-aware BPE chooses, among the most frequent pairs of the training texts, the one after which validation texts
are shortest under a universal code; one candidate is plain BPE. What it gains is measured on texts that neither training nor
choice has seen, beside plain BPE of the same size and the raw bytes.

Source: arXiv 2601.09039 (compression-aware merges, a proof of concept at a vocabulary of 1024).
Deviation: candidates are the 32 most frequent pairs (the paper does not say; on documentation 8 gained half as much);
ids are packed as varints of their frequency ranks before deflate, without header bytes; validation and test are kept apart.
A merge costs `candidates` codes of `valid_bytes` bytes, about 70 ms by default: this is for small vocabularies.
See also: `compare tokenizers` measures any tokenizers on any texts.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer

from shiftscope.core import randomness
from shiftscope.core.answers import Advance
from shiftscope.core.parts import Parts
from shiftscope.core.result import Figure, Panel, Result
from shiftscope.core.settings import unread
from shiftscope.core.tokenizers import documents, merge_parts, rates, segmentation, tokenizer_training
from shiftscope.core.tokenizers.documents import Corpora
from shiftscope.core.tokenizers.merging import Merge
from shiftscope.core.tokenizers.rates import CODERS, Measuring, Row, Sizes
from shiftscope.core.tokenizers.tokenizer_training import ALPHABET, UNKNOWN, Compressing

Kind = Literal["bpe", "wordpiece", "unigram", "compression"]
PLAIN, BYTES = "plain BPE", "raw bytes"
SHOWN_MERGES = 60


def tokenizer(
    *,
    texts: Corpora,
    out: str | Path,
    kind: Kind = "bpe",
    vocabulary_size: int = 8192,
    special: Sequence[str] = ("<|endoftext|>",),
    limit: int | None = None,
    held_out: float = 0.1,
    seed: int = 0,
    compressing: Compressing = Compressing(),
    parts: Parts | None = None,
    advance: Advance | None = None,
) -> Result:
    """Train a tokenizer, save it in out/tokenizer (loadable by transformers), and measure it on texts held out.

    texts: jsonl, parquet or txt files with a text per record (repeatable); or records.
    out: folder for the tokenizer (in `tokenizer`, which must not exist yet).
    kind: bpe (byte-level, lossless), unigram (with byte fallback), wordpiece (blanks are lost), or compression (byte-level BPE
        whose merges shorten a code most).
    vocabulary_size: ids in all, special ones and the 256 bytes included.
    special: special tokens; the first one begins and ends texts.
    limit: only the first records of each file.
    held_out: share of the texts to measure on.
    seed: of the split.
    Returns a Result whose table has one row per tokenizer: raw bytes, plain BPE of the same size, the one that was asked for.
    Raises ValueError, in one sentence, for an empty corpus, too few texts, or a vocabulary too small for bytes and special
    tokens.
    """
    target = Path(out) / "tokenizer"
    if target.exists():
        raise ValueError(f"{target} exists already: give another --out, so that no tokenizer is written over")
    if kind not in ("bpe", "wordpiece", "unigram", "compression"):
        raise ValueError(f"{kind!r} is an unknown kind of tokenizer: choose bpe, wordpiece, unigram or compression")
    if kind != "compression":
        unread(compressing, Compressing(), "--kind compression")
    special = list(dict.fromkeys(special))
    if not special:
        raise ValueError("no special token is given: name at least one, to begin and end texts with")
    least = len(ALPHABET) + len(special) + (kind == "unigram") + 1
    if kind != "wordpiece" and vocabulary_size < least:
        raise ValueError(
            f"vocabulary_size is {vocabulary_size}: bytes and special tokens alone need {least} with one more"
        )
    parts = parts or Parts()
    if parts.shard != (0, 1):
        raise ValueError("a tokenizer is trained as one piece of work: leave --shard out (--resume goes on with it)")
    settings = {
        "texts": documents.identified(texts), "kind": kind, "vocabulary_size": vocabulary_size, "special": special,
        "limit": limit, "held_out": held_out, "seed": seed, "compressing": asdict(compressing), "tokenizer": str(target),
    }  # fmt: skip
    versions = {name: version(name) for name in ("tokenizers", "transformers", "numpy", "shiftscope")}
    provenance = {"settings": settings, "versions": {"python": platform.python_version(), **versions}}
    parts.settle(provenance)
    plain = [document.text for document in documents.documents(texts, limit)]
    train, valid, test = split(plain, held_out, compressing.valid_bytes if kind == "compression" else 0, seed)
    merges: dict[str, list[Merge]] = {}
    if kind == "compression":
        merges = _both(train, valid, vocabulary_size - len(special), compressing, parts, advance)
        made = {
            n: tokenizer_training.exported(m, special, across_words=compressing.across_words) for n, m in merges.items()
        }
    else:
        made = _trained(kind, train, vocabulary_size, special, parts, advance)
    rows = _rows(made, test, seed, parts, advance)
    _save(made[kind], special, kind, target)
    counts = len(train), len(valid), len(test)
    return summarise(rows, kind, merges, target, counts, provenance)


def split(texts: Sequence[str], held_out: float, valid_bytes: int, seed: int) -> tuple[list[str], list[str], list[str]]:
    """(train, validation, test): whole texts in an order drawn from seed; validation has about valid_bytes (0: none).

    Validation takes half of the texts at most. Raises ValueError for a share outside (0, 1) and for too few texts.
    """
    if not 0 < held_out < 1:
        raise ValueError(f"held_out is {held_out}: a share between 0 and 1 is needed")
    need = 3 if valid_bytes else 2
    if len(texts) < need:
        raise ValueError(
            f"there are {len(texts)} texts: training, {'validation ' if valid_bytes else ''}and test need one each, "
            f"{need} at least; give more texts, or one long text in several records"
        )
    order = np.argsort(randomness.uniforms(seed, np.arange(len(texts)), 2), kind="stable").tolist()
    n_test = min(max(1, round(held_out * len(texts))), len(texts) - need + 1)
    rest, n_valid, size = order[n_test:], 0, 0
    while size < valid_bytes and n_valid < max(1, len(rest) // 2):
        size += len(texts[rest[n_valid]].encode())
        n_valid += 1
    parts = rest[n_valid:], rest[:n_valid], order[:n_test]
    train, valid, test = ([texts[i] for i in part] for part in parts)
    return train, valid, test


def _named(advance: Advance | None, stage: str) -> Callable[[int, int], None] | None:
    return None if advance is None else lambda done, total: advance(stage, done, total)


def _both(
    train: list[str], valid: list[str], size: int, compressing: Compressing, parts: Parts, advance: Advance | None
) -> dict[str, list[Merge]]:
    """Merges of plain BPE and of the compression-aware one: as many new symbols, from the same training texts."""
    total = np.cumsum([0, *(len(text.encode()) for text in train)])
    sides = [text for text, before in zip(train, total, strict=False) if before < compressing.train_bytes], valid
    chosen = merge_parts.learnt(
        sides, size - len(ALPHABET), compressing, stage="compression", parts=parts,
        advance=_named(advance, "choosing merges"),
    )  # fmt: skip
    plain, new = replace(compressing, candidates=1, patience=None), len({merge.new for merge in chosen})
    same = merge_parts.learnt(
        sides, new, plain, stage="plain", parts=parts, advance=_named(advance, "merges of plain BPE")
    )
    return {PLAIN: same, "compression": chosen}


def _trained(
    kind: Kind, train: list[str], size: int, special: Sequence[str], parts: Parts, advance: Advance | None
) -> dict[str, Tokenizer]:
    """The tokenizer that was asked for, and plain BPE of the same size to set it against."""
    assert kind != "compression"
    names: dict[str, Literal["bpe", "wordpiece", "unigram"]] = {kind: kind}
    if kind != "bpe":
        names = {PLAIN: "bpe", kind: kind}

    def measure(name: str) -> dict[str, pa.Table]:
        made = tokenizer_training.trained(names[name], train, size, special)
        return {"trained": pa.table({"name": [name], "description": [made.to_str()]})}

    found = parts.map("trained", list(names), measure, advance=_named(advance, "training tokenizers"))["trained"]
    return {row["name"]: Tokenizer.from_str(row["description"]) for row in found.to_pylist()}


def _save(made: Tokenizer, special: Sequence[str], kind: Kind, folder: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    unknown = {"unk_token": UNKNOWN[kind]} if kind in UNKNOWN else {}
    folder.mkdir(parents=True)
    PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token=special[0], eos_token=special[0], clean_up_tokenization_spaces=False,
        extra_special_tokens=list(special[1:]), **unknown,
    ).save_pretrained(folder)  # fmt: skip


def _rows(
    made: dict[str, Tokenizer], test: Sequence[str], seed: int, parts: Parts, advance: Advance | None
) -> list[Row]:
    """One row for the raw bytes and for every tokenizer, on the held-out texts."""
    measuring, sizes = Measuring(seed=seed), Sizes.of(test)

    def row(name: str) -> Row:
        if name == BYTES:
            raw = rates.byte_stream(test)
            return (
                {"tokenizer": BYTES}
                | rates.compression(raw, sizes, 256)
                | rates.codes(raw, sizes, 256, measuring, "bytes")
            )
        (tokens,) = segmentation.opened({name: made[name]})
        cut = segmentation.cut(tokens, test)
        lossy = int(cut.lossy_D.sum())
        found: Row = {"tokenizer": name, "lossy_documents": lossy}
        found |= rates.compression(cut.stream, sizes, tokens.size)
        return found | (rates.codes(cut.stream, sizes, tokens.size, measuring) if not lossy else {})

    def measure(name: str) -> dict[str, pa.Table]:
        return {"rows": pa.table({"row": [json.dumps(row(name), default=lambda value: value.item())]})}

    advanced = _named(advance, "measuring tokenizers")
    found = parts.map("measured", [BYTES, *made], measure, advance=advanced, final=True)
    return [json.loads(said) for said in found["rows"]["row"].to_pylist()]


def summarise(
    rows: Sequence[Row],
    kind: Kind,
    merges: dict[str, list[Merge]],
    target: Path,
    counts: tuple[int, int, int],
    provenance: dict[str, Any],
) -> Result:
    """The Result of a training: figures of the tokenizer, gains over the raw bytes, and over plain BPE of the same size."""
    by_name = {row["tokenizer"]: row for row in rows}
    own, raw, plain, test_n = by_name[kind], by_name[BYTES], by_name.get(PLAIN), counts[2]
    figures = {
        quantity: Figure(own[quantity], unit, test_n, own[f"{quantity}_low"], own[f"{quantity}_high"])
        for quantity, unit in (("tokens_per_char", "tokens/char"), ("bytes_per_token", "bytes/token"))
    }
    figures["utilisation"] = Figure(own["utilisation"], "share", own["tokens"])
    figures["vocabulary"] = Figure(own["vocabulary"], "count", own["vocabulary"])
    figures["texts_train"], figures["texts_validation"] = (Figure(n, "count", n) for n in counts[:2])
    if plain:
        figures["tokens_per_char_plain_bpe"] = Figure(plain["tokens_per_char"], "tokens/char", test_n)
    notes = []
    for name, row in ((kind, own), ("plain_bpe", plain)):
        if row is None or row.get("lz78_bits_per_char") is None:
            continue
        suffix = "" if row is own else f"_{name}"
        for coder in (*CODERS, "deflate_two_bytes"):
            bits, reference = row[f"{coder}_bits_per_char"], raw[f"{coder.removesuffix('_two_bytes')}_bits_per_char"]
            if bits is not None:
                figures[f"{coder}_bits_per_char{suffix}"] = Figure(bits, "bits/char", row["coded_characters"])
                figures[f"{coder}_gain{suffix}"] = Figure(1 - bits / reference, "share", row["coded_characters"])
    if own["lossy_documents"]:
        notes.append(
            f"{own['lossy_documents']} of {test_n} held-out texts do not come back from their ids: bits per character are left "
            f"out, since they would not be the price of the text"
        )
    return Result(
        "adapt tokenizer", pa.Table.from_pylist(list(rows)), figures, provenance,
        _verdict(figures, kind, target, test_n), notes, _panels(rows, merges, kind),
    )  # fmt: skip


def _verdict(figures: dict[str, Figure], kind: Kind, target: Path, test_n: int) -> list[str]:
    def percent(name: str) -> str:
        return f"{100 * float(figures[name].value):+.2f} %"

    sentences = [
        f"The {kind} tokenizer packs {float(figures['bytes_per_token'].value):.2f} bytes into a token on {test_n} held-out texts."
    ]
    if "lz78_gain" in figures:
        own, plain = (", ".join(f"{percent(f'{c}_gain{end}')} ({c})" for c in CODERS if f"{c}_gain{end}" in figures)
                      for end in ("", "_plain_bpe"))  # fmt: skip
        beside = f"; plain BPE of the same size {plain}" if plain else ""
        sentences.append(f"Its ids cost less than the raw bytes by {own}{beside}.")
    return [*sentences, f"It is saved in {target}."]


def _panels(rows: Sequence[Row], merges: dict[str, list[Merge]], kind: Kind) -> list[Panel]:
    columns = ("tokenizer", "tokens_per_char", "bytes_per_token", "vocabulary", "used_share", "utilisation",
               *(f"{coder}_bits_per_char" for coder in ("memoryless", *CODERS, "deflate_two_bytes")))  # fmt: skip
    panels = [
        Panel("On held-out texts", "The tokenizer beside plain BPE of the same size and the raw bytes.", "table",
              pa.Table.from_pylist([{name: row.get(name) for name in columns} for row in rows])),
    ]  # fmt: skip
    if not merges:
        return panels
    curve = [
        {"merge": step, "kilobytes": (merge.code_bits or 0.0) / 8000, "tokenizer": name}
        for name, found in merges.items()
        for step, merge in enumerate(found, start=1)
    ]
    spelled = {name: tokenizer_training.spelled(found) for name, found in merges.items()}
    first = [
        {
            "merge": step,
            **{name: " + ".join(pieces[step - 1]) for name, pieces in spelled.items() if step <= len(pieces)},
        }
        for step in range(1, min(SHOWN_MERGES, *map(len, merges.values())) + 1)
    ]
    return [
        *panels,
        Panel("Code of the validation texts", "Length of the code that compression-aware merges shorten, merge by merge.",
              "line", pa.Table.from_pylist(curve), x="merge", y="kilobytes", series="tokenizer", x_title="merges",
              y_title="code length (kB)"),
        Panel("The first merges", "In the order they were made.", "table", pa.Table.from_pylist(first)),
    ]  # fmt: skip
