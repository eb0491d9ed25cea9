"""What does comparing two models cost beyond running them? CPU seconds and memory of the paired pass over two forwards.

Variants, interleaved in one process on one thread: two bare forwards (the limit), the usual research loop (both full
log-softmaxes and everything derived from them in float32), ours as installed, and ours compiled (a C kernel on a CPU,
torch.compile on a GPU). All but the first give the same per-position numbers: JS, KL both ways, TV, both entropies, the
emitted token's log-probabilities and ranks, both top-10 lists, and the mass flow over the base's top 100. Models: random
Llamas (width 512, 8 layers, untied head, float32), the second 5 % of noise away from the first. The emitted tokens are
random too, so both ranks are deep and have to be counted: the worst case.

    python benchmarks/paired_scoring.py --vocabulary 32000 152064 --tokens 256 --rounds 3

Only ratios taken in one run mean anything; the load average says how busy the machine was.
"""

# T positions, V vocabulary, R rows of a block

from __future__ import annotations

import argparse
import copy
import ctypes
import gc
import itertools
import json
import os
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from shiftscope.compare.tokens import Listing, measure
from shiftscope.core import paired
from shiftscope.core.checkpoints import Checkpoint
from shiftscope.core.head import Head
from shiftscope.core.laws import compiled_note

TARGETS = {"ours": 1.40, "ours, compiled": 1.15}  # of two forwards, at V = 152 064
TOP, DEEP = 10, 100
FLOW_BOUNDS = (0, 1, 3, 10, 100)


def models(vocabulary: int, device: torch.device) -> tuple[Checkpoint, Checkpoint]:
    """A random Llama and a copy with 5 % of noise in every matrix."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=512, intermediate_size=1408, num_hidden_layers=8, num_attention_heads=8,
        max_position_embeddings=4096, tie_word_embeddings=False,
    )  # fmt: skip
    base = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        base.lm_head.weight.mul_(4)  # laws with an entropy below ln V, as a trained model's
        tuned = copy.deepcopy(base)
        for weight in tuned.parameters():
            weight.add_(0.05 * weight.std(correction=0) * torch.randn_like(weight))
    base, tuned = base.to(device), tuned.to(device)
    return Checkpoint("base", base, None, Head(base)), Checkpoint("tuned", tuned, None, Head(tuned))


@torch.no_grad()
def bare(base: Checkpoint, tuned: Checkpoint, ids_T: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of both models, [T, V] each: no comparison can do less."""
    return base.model(ids_T[None], use_cache=False).logits[0], tuned.model(ids_T[None], use_cache=False).logits[0]


@torch.no_grad()
def naive(base: Checkpoint, tuned: Checkpoint, ids_T: Tensor) -> dict[str, Tensor]:
    """The usual loop: every quantity from whole [T, V] tensors."""
    logits_p, logits_q = bare(base, tuned, ids_T)
    logp, logq = logits_p[:-1].float().log_softmax(-1), logits_q[:-1].float().log_softmax(-1)
    p, q, ids = logp.exp(), logq.exp(), ids_T[1:, None]
    logm = (0.5 * (p + q)).log()
    deep, tuned_top = logp.topk(DEEP), logq.topk(TOP)
    gain = q.gather(-1, deep.indices) - deep.values.exp()
    found = {
        "js_nats": 0.5 * ((p * (logp - logm)).sum(-1) + (q * (logq - logm)).sum(-1)),
        "kl_base_tuned_nats": (p * (logp - logq)).sum(-1),
        "kl_tuned_base_nats": (q * (logq - logp)).sum(-1),
        "tv": 0.5 * (p - q).abs().sum(-1),
        "entropy_base_nats": -(p * logp).sum(-1),
        "entropy_tuned_nats": -(q * logq).sum(-1),
        "logp_base_nats": logp.gather(-1, ids)[:, 0],
        "logp_tuned_nats": logq.gather(-1, ids)[:, 0],
        "rank_base": (logp > logp.gather(-1, ids)).sum(-1),
        "rank_tuned": (logq > logq.gather(-1, ids)).sum(-1),
        "rank_base_of_tuned_top1": (logp > logp.gather(-1, tuned_top.indices[:, :1])).sum(-1),
        "top_base_logp_tuned": logq.gather(-1, deep.indices[:, :TOP]),
        "top_tuned_logp_base": logp.gather(-1, tuned_top.indices),
        "flow_over_100": -gain.sum(-1),
    }
    for start, stop in itertools.pairwise(FLOW_BOUNDS):
        found[f"flow_{start}_{stop}"] = gain[:, start:stop].sum(-1)
    return found


def ours(scorer: paired.Scorer, ids_T: Tensor) -> dict[str, Tensor]:
    """What `compare tokens` does with one text."""
    ids = tuple(ids_T.tolist())
    text = paired.PairedText(0, ids[:1], ids[:1], ids[1:])
    rows = paired.run(scorer, [text], {"tokens": measure(Listing(top_k=TOP))})["tokens"]
    return {name: torch.from_numpy(rows[name].to_numpy().copy()) for name in ("js_nats", "rank_base", "flow_over_100")}


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def extra_peak_bytes(function: Callable[[], object], device: torch.device) -> int:
    """How far resident (on a GPU: allocated) memory rises while function runs, sampled every millisecond."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        return torch.cuda.max_memory_allocated(device) - before
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # glibc: give freed memory back, or its reuse would hide the rise
    before, peak, stop = resident_bytes(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not stop.wait(0.001):
            peak = max(peak, resident_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    function()
    stop.set()
    watcher.join()
    return max(0, max(peak, resident_bytes()) - before)


def seconds(function: Callable[[], object], device: torch.device) -> tuple[float, float]:
    """CPU and wall seconds of one call (on a GPU only the wall time, after a synchronise, says anything)."""
    cpu, wall = time.process_time(), time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.process_time() - cpu, time.perf_counter() - wall


def measured(vocabulary: int, tokens: int, rounds: int, device: torch.device, compiled: bool) -> list[dict[str, Any]]:
    """One row per variant: median CPU and wall seconds, their ratio to the two forwards, memory, error of JS."""
    base, tuned = models(vocabulary, device)
    ids_T = torch.randint(vocabulary, (tokens + 1,), generator=torch.Generator().manual_seed(1)).to(device)
    scorers = {"ours": paired.Scorer(base, tuned)}
    if compiled:
        scorers["ours, compiled"] = paired.Scorer(base, tuned, compiled=True)
    variants: dict[str, Callable[[], object]] = {
        "two forwards": lambda: bare(base, tuned, ids_T),
        "naive": lambda: naive(base, tuned, ids_T),
        **{name: lambda scorer=scorer: ours(scorer, ids_T) for name, scorer in scorers.items()},
    }
    order = sorted(variants, key=list(scorers).__contains__, reverse=True)  # ours first: the others leave memory behind
    memory = {name: extra_peak_bytes(variants[name], device) for name in order}  # also the warm-up
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, variant in variants.items():
            times[name].append(seconds(variant, device))
    median = {name: [statistics.median(column) for column in zip(*pairs, strict=True)] for name, pairs in times.items()}
    which = 0 if device.type == "cpu" else 1
    ratios = {
        name: statistics.median(t[which] / limit[which] for t, limit in zip(pairs, times["two forwards"], strict=True))
        for name, pairs in times.items()
    }
    reference = naive(base, tuned, ids_T)["js_nats"].cpu()
    js = {name: ours(scorer, ids_T)["js_nats"] for name, scorer in scorers.items()}
    return [
        {
            "device": device.type, "vocabulary": vocabulary, "tokens": tokens, "variant": name,
            "cpu_s": median[name][0], "wall_s": median[name][1], "ratio": ratios[name],
            "extra_mib": memory[name] / 2**20,
        } | ({"js_difference": float((js[name] - reference).abs().max())} if name in js else {})
        for name in variants
    ]  # fmt: skip


def line(row: dict[str, Any]) -> str:
    """A row as a line of the printed table."""
    where = f"{row['device']:6} {row['vocabulary']:7} {row['tokens']:5}  {row['variant']:16}"
    cost = f"{row['cpu_s']:7.3f} {row['wall_s']:7.3f} {row['ratio']:6.2f} {row['extra_mib']:9.0f}"
    targeted = row["variant"] in TARGETS and row["vocabulary"] == 152_064 and row["device"] == "cpu"
    aim = f"  target {TARGETS[row['variant']]:.2f}" if targeted else ""
    return f"{where} {cost}   {os.getloadavg()[0]:.1f}{aim}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vocabulary", type=int, nargs="+", default=[32_000, 152_064])
    parser.add_argument("--tokens", type=int, nargs="+", default=[256, 1024])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write the rows here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    compiled = not compiled_note()
    if not compiled:
        print(f"{compiled_note()}: the compiled variant is left out")
    devices = [torch.device("cpu")] + ([torch.device("cuda")] if torch.cuda.is_available() else [])
    rows = []
    print(f"{'':6} {'V':>7} {'T':>5}  {'variant':16} {'CPU s':>7} {'wall s':>7} {'ratio':>6} {'extra MiB':>9}   load")
    for device in devices:
        for vocabulary in arguments.vocabulary:
            for tokens in arguments.tokens:
                for row in measured(vocabulary, tokens, arguments.rounds, device, compiled):
                    print(line(row), flush=True)
                    rows.append(row)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
