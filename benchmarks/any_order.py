"""What filling hidden tokens costs, on the zoo's own checkpoints: calls, token-forwards and CPU time per token.

Any-subset model (`docs-anyorder`): any-subset speculative decoding with both drafts, beside the sequential sampler and the
one that fills k positions a call without judging them (another law), for texts of growing length. One process, one thread,
CPU seconds; samplers take turns, ratios are medians over the rounds of runs side by side. Bars: at 95 % hidden at most 0.82
calls per token over all lengths, and less CPU time than the sequential sampler at the greatest; for short texts the
bookkeeping of a round costs what its saved calls cost.

Masked models (`markov-masked`, `counts-masked`): blocks and windows beside the full-sequence sampler on growing canvases, one
position a call, one text at a time (a window belongs to one text), greedy; then length by the share of ends beside a fixed
canvas. Bars: on 192 positions a window computes at most 20 % of the full sampler's token-forwards and takes less CPU time; its
token-forwards per token grow at most half as much as the full sampler's.

    python benchmarks/any_order.py
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from transformers.utils import logging

from shiftscope.core.corpus import Text
from shiftscope.core.denoising import any_subset, decodings, masked_model
from shiftscope.core.denoising.any_subset import AnySubsetLM
from shiftscope.core.denoising.decodings import Decoder
from shiftscope.core.denoising.gapped import Gapped
from shiftscope.core.denoising.length import Length
from shiftscope.core.denoising.masked_model import MaskedLM
from shiftscope.core.denoising.scope import Scope
from shiftscope.core.denoising.speculation import Speculation, fill
from shiftscope.core.masked import Filling
from shiftscope.zoo import counts, docs, markov

ROUNDS = 3


def turns(variants: Mapping[str, Callable[[], Any]], rounds: int = ROUNDS) -> dict[str, list[float]]:
    """CPU seconds of each variant in each round, after one that warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(rounds + 1):
        for name, run in variants.items():
            start = time.process_time()
            run()
            if turn:
                seconds[name].append(time.process_time() - start)
    return seconds


def ratio(seconds: Mapping[str, list[float]], one: str, other: str) -> float:
    """Median over rounds of the ratio of two variants that ran side by side."""
    return statistics.median(a / b for a, b in zip(seconds[one], seconds[other], strict=True))


# ---- any-subset models ----------------------------------------------------------------------------------------------
LENGTHS, TEXTS, HIDDEN = (16, 32, 64, 96), 4, 0.95
SAMPLERS = {
    "sequential": Speculation("sequential"),
    "ASSD, self-draft, k = 5": Speculation(k=5),
    "  as published": Speculation(k=5, bonus=False, ahead=0),
    "ASSD, n-gram draft, k = 5": Speculation(draft="ngram", k=5),
    "independent, k = 5 (no law)": Speculation("independent", k=5),
}
JUDGED = "ASSD, self-draft, k = 5"


def held_out(model: AnySubsetLM, length: int) -> list[Gapped]:
    """Windows of the held-out documentation, 95 % of their tokens hidden."""
    stream = docs.pack(model.tokenizer, docs.documentation("held out"))
    generator = torch.Generator().manual_seed(length)
    found = []
    for number, start in enumerate(torch.linspace(0, len(stream) - length, TEXTS).long().tolist()):
        hidden = torch.randperm(length, generator=generator)[: min(length - 1, round(HIDDEN * length))].sort().values
        ids = stream[start : start + length].index_fill(0, hidden, model.mask_id)
        found.append(Gapped(number, ids.tolist(), tuple(hidden.tolist())))
    return found


def copies(texts: Sequence[Gapped]) -> list[Gapped]:
    return [Gapped(text.document, list(text.ids), text.order) for text in texts]


def any_subset_part(model: AnySubsetLM) -> tuple[float, float]:
    """Prints cost by sampler and length; returns ASSD's calls per token of all lengths, and its time ratio at the greatest."""
    all_calls, all_tokens, spent_last = 0, 0, 0.0
    for length in LENGTHS:
        texts, filled = held_out(model, length), dict[str, list[Gapped]]()

        def run(name: str, texts: Sequence[Gapped] = texts, filled: dict[str, list[Gapped]] = filled) -> None:
            filled[name] = copies(texts)
            fill(model, filled[name], SAMPLERS[name])

        seconds = turns({name: partial(run, name) for name in SAMPLERS})
        tokens = sum(len(text.order) for text in texts)
        print(f"{TEXTS} texts of {length} tokens, {tokens // TEXTS} hidden in each")
        for name, done in filled.items():
            called, rows = sum(t.record.calls for t in done) / tokens, sum(t.record.rows for t in done) / tokens
            spent, ms = ratio(seconds, name, "sequential"), 1e3 * statistics.median(seconds[name]) / tokens
            nll = -sum(float(logp_K.sum()) for logp_K in model.joint_logp(copies(done))) / tokens
            print(
                f"  {name:28}{called:6.2f} calls{rows:8.1f} token-forwards{ms:8.2f} ms per token ({spent:.2f} ×){nll:7.2f} nats"
            )
            if name == JUDGED:
                all_calls, all_tokens, spent_last = all_calls + round(called * tokens), all_tokens + tokens, spent
    return all_calls / all_tokens, spent_last


# ---- masked models --------------------------------------------------------------------------------------------------
CANVASES, FULL, WINDOW = (96, 192, 384), "full", "window 16/64, refresh 16"
SCOPES = {
    FULL: Scope(),
    "full, first 16 only": Scope("window", inner=16, outer=0, refresh=1),
    "blocks of 16": Scope("blocks", block=16),
    WINDOW: Scope("window", inner=16, outer=64, refresh=16),
    "window 8/32, refresh 16": Scope("window", inner=8, outer=32, refresh=16),
}


def measured(
    model: MaskedLM, decoders: Mapping[str, Decoder], rows: Sequence[Mapping[str, str]], judge: Callable[..., float]
) -> tuple[dict[str, float], dict[str, float]]:
    """Prints cost by decoder, each text by itself; returns token-forwards per token, and CPU time beside the first."""
    texts = [Text(number, str(number), row["prompt"], None, row["reference"]) for number, row in enumerate(rows)]
    written: dict[str, list[dict[str, Any]]] = {}

    def run(name: str) -> None:
        one_by_one = (decodings.write(model, [text], decoders[name], judge=judge) for text in texts)
        written[name] = [table.to_pylist()[0] for table in one_by_one]

    seconds, base = turns({name: partial(run, name) for name in decoders}), next(iter(decoders))
    rows_per_token, times = {}, {}
    for name, found in written.items():
        tokens = sum(row["kept_tokens"] for row in found)
        per_token = {key: sum(row[key] for row in found) / tokens for key in ("calls", "rows", "pairs", "reward")}
        rows_per_token[name], times[name] = per_token["rows"], ratio(seconds, name, base)
        ms, right = 1e3 * statistics.median(seconds[name]) / tokens, per_token["reward"] * tokens / len(found)
        print(
            f"  {name:28}{per_token['calls']:6.2f} calls{per_token['rows']:8.1f} token-forwards{per_token['pairs']:9.0f} pairs"
            f"{ms:8.2f} ms per token ({times[name]:.2f} ×)  reward {right:.3f}"
        )
    return rows_per_token, times


def window_part(model: MaskedLM) -> tuple[float, float, float]:
    """Share of token-forwards and of CPU time of a window on 192 positions, and how its growth compares to the full one's."""
    share, times, growth = {}, {}, {}
    for canvas in CANVASES:
        print(f"a canvas of {canvas} positions after 8, one a call")
        length = Length(max_new_tokens=canvas)
        decoders = {
            name: Decoder(Filling(), scope, length)
            for name, scope in SCOPES.items()
            if scope.method != "window" or scope.outer <= canvas
        }
        rows, times[canvas] = measured(model, decoders, markov.prompts(1, seed=1), markov.verify)
        share[canvas] = {name: value / rows[FULL] for name, value in rows.items()}
        growth[canvas] = rows
    grown = {name: growth[384][name] / growth[96][name] for name in (FULL, WINDOW)}
    print(
        f"from 96 to 384 positions token-forwards per token grow {grown[FULL]:.2f} × in full, {grown[WINDOW]:.2f} × windowed"
    )
    return share[192][WINDOW], times[192][WINDOW], grown[WINDOW] / grown[FULL]


def length_part(model: MaskedLM) -> None:
    """Prints what length control costs beside the fixed canvas that holds every answer."""
    print("answers of 1 to 32 numbers, up to 64 positions")
    rho = {f"rho-eos from {start}": Length(length="rho-eos", max_new_tokens=start) for start in (4, 16, 64)}
    lengths = {"fixed 64": Length(), "fixed 64, to its end": Length(early_stop=False)} | rho
    decoders = {name: Decoder(length=length) for name, length in lengths.items()}
    decoders["rho-eos from 4, blocks of 8"] = Decoder(scope=Scope("blocks", block=8), length=rho["rho-eos from 4"])
    decoders["rho-eos from 4, p >= 0.9"] = Decoder(Filling(threshold=0.9), length=rho["rho-eos from 4"])
    measured(model, decoders, counts.prompts(16, seed=1), counts.verify)


def main() -> None:
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    print(f"load average {os.getloadavg()[0]:.1f}; CPU time, one thread")
    calls, slower = any_subset_part(any_subset.load("docs-anyorder"))
    windowed, slower_window, grown = window_part(masked_model.load("markov-masked"))
    length_part(masked_model.load("counts-masked"))
    for said, value, bar in (
        ("ASSD, calls per token", calls, 0.82),
        (f"ASSD, times the sequential sampler at {LENGTHS[-1]} tokens", slower, 1.0),
        (f"{WINDOW}, share of token-forwards on 192 positions", windowed, 0.20),
        (f"{WINDOW}, times the full sampler on 192 positions", slower_window, 1.0),
        (f"{WINDOW}, growth beside the full sampler's", grown, 0.5),
    ):
        print(f"{said}: {value:.3f} (bar {bar}): {'holds' if value <= bar else 'does not hold'}")
    print(f"load average {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
