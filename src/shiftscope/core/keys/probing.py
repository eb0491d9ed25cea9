"""Probe a next-token law rank by rank: complete each of its first tokens greedily and let a verifier judge the answers.

Source: arXiv 2410.02284 (the authors' probe). Deviation: tokens that cannot open an answer are left out beforehand and
counted; a completion that never reaches the stop text is a failure, not an answer.
"""

# N probes of one prompt, in the order of their ranks

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from shiftscope.core import completion, corpus, verifiers
from shiftscope.core.answers import Advance
from shiftscope.core.checkpoints import Checkpoint
from shiftscope.core.corpus import Template, Text
from shiftscope.core.keys.clusters import UNASSIGNED, Clusters
from shiftscope.core.parts import Parts
from shiftscope.core.verifiers import Verifier


@dataclass(frozen=True)
class Probing:
    """How the ranks of a next-token law are probed (defaults of the paper).

    top: first ranks, whose clusters are the main ones. candidates: ranks probed in all. probed_prompts: how many
    prompts. max_probe_tokens: longest completion. stop: text that ends a completion; with one, a completion without it
    has failed.
    """

    top: int = 10
    candidates: int = 100
    probed_prompts: int = 40
    max_probe_tokens: int = 64
    stop: str | None = None

    def __post_init__(self) -> None:
        if not 0 < self.top < self.candidates:
            raise ValueError(f"top {self.top} and candidates {self.candidates}: need 0 < top < candidates")
        if self.probed_prompts < 1 or self.max_probe_tokens < 1:
            raise ValueError(
                f"probed_prompts {self.probed_prompts} and max_probe_tokens {self.max_probe_tokens}: need 1 or more"
            )
        if self.stop == "":
            raise ValueError("stop is empty: give the text that ends a completion, or none")


def named(verifier: str | Verifier | None) -> str | None:
    """A verifier as the provenance shows it."""
    if verifier is None or isinstance(verifier, str):
        return verifier
    return str(getattr(verifier, "__qualname__", type(verifier).__name__))


def judge_of(verifier: str | Verifier) -> Verifier:
    """The verifier itself, from a spec or a callable, guarded against answers that break it."""
    return verifiers.load(verifier) if isinstance(verifier, str) else verifiers.guarded(verifier, str(named(verifier)))


def probe(
    sides: Mapping[str, Checkpoint],
    texts: Sequence[Text],
    verifier: str | Verifier,
    found: Clusters,
    probing: Probing,
    *,
    template: Template = "plain",
    parts: Parts | None = None,
    advance: Advance | None = None,
) -> pa.Table:
    """Complete the first `candidates` tokens of the law after every prompt, and let the verifier judge.

    sides: name -> checkpoint. Returns one row per probe: model, text, rank (1 the most probable), token_id, cluster,
    place ('top', 'in' a main cluster, 'out' of them), answer, failed (no stop text), reward, masked (tokens ranked
    higher that cannot open an answer).
    """
    judge = judge_of(verifier)
    asked = [(name, text) for name in sides for text in texts[: probing.probed_prompts]]
    closed = {name: completion.cannot_open(side, probing.stop) for name, side in sides.items()}

    def one(job: tuple[str, Text]) -> dict[str, pa.Table]:
        name, text = job
        side = sides[name]
        prefix = completion.read(side, corpus.context_ids(side, text, template))
        order_N, masked_N = (all_V[: probing.candidates] for all_V in completion.ranked(prefix.logits_V, closed[name]))
        done = completion.complete(
            side, prefix, order_N.tolist(), max_tokens=probing.max_probe_tokens, stop=probing.stop
        )
        failed = [probing.stop is not None and answer.ended == "length" for answer in done]
        rewards = [
            0.0 if lost else judge(text.prompt, answer.text, text.reference)
            for answer, lost in zip(done, failed, strict=True)
        ]
        label_N = found.label_V[order_N]
        columns = {
            "model": [name] * len(order_N),
            "text": np.full(len(order_N), text.text, np.int32),
            "rank": np.arange(1, len(order_N) + 1, dtype=np.int32),
            "token_id": order_N.astype(np.int32),
            "cluster": label_N.astype(np.int32),
            "place": places(label_N.tolist(), probing.top),
            "answer": [answer.text for answer in done],
            "failed": failed,
            "reward": np.array(rewards, np.float64),
            "masked": masked_N.astype(np.int32),
        }
        return {"probes": pa.table(columns)}

    told = None if advance is None else lambda finished, total: advance("probing", finished, total)
    return (parts or Parts()).map("probe", asked, one, advance=told, final=True)["probes"]


def places(labels: Sequence[int], top: int) -> list[str]:
    """Where each rank stands: among the first `top`, later but in one of their clusters, or out of them."""
    main = set(labels[:top]) - {UNASSIGNED}
    return ["top" if rank < top else "in" if label in main else "out" for rank, label in enumerate(labels)]
