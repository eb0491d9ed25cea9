"""Verifiable-reward tuning: make a checkpoint right more often where rightness can be checked, and see what it cost.

GRPO as in DAPO (see `core/grpo.py`), optionally with the divergence-weighted advantage: at every token the advantage is
multiplied by w = 1 + s·(σ(α·k3) − ½), k3 estimating KL(old‖new) there; `high` boosts tokens whose law the update has
already moved, `low` the others. w is 1 exactly on the first minibatch after a rollout, where old and new are the same
policy: with one update a rollout the weighting does nothing.

Source: arXiv 2603.22446 (divergence-weighted advantage); arXiv 2503.14476 (DAPO).
Deviation: s and α are not published; s is 1, and α is 1 over the 99th percentile of k3 in the first rollout's updates,
in which the weights stay 1. Only the sign of s·α matters: `high` is +, `low` is −.
Deviation: groups whose answers all earn the same are left out of the policy's mean over tokens, not drawn again.
Whether the weighting gains anything is for the table to say: on the zoo's sums it is within seed noise.
See also: `compare tokens` and `compare swaps` for where such a run acted and whether that carries its gain.
"""

# B answers of a minibatch, T answer tokens

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from shiftscope.core import answers, checkpoints, corpus, decode, grpo, statistics, verifiers
from shiftscope.core.checkpoints import Checkpoint
from shiftscope.core.corpus import Template, Text
from shiftscope.core.decode import Sampling
from shiftscope.core.grpo import Settings, k3_nats
from shiftscope.core.parts import Parts
from shiftscope.core.result import Figure, Panel, Result
from shiftscope.core.settings import unread
from shiftscope.core.verifiers import Verifier

Weight = Literal["off", "high", "low"]
SCHEMA = pa.schema([("step", pa.int32()), ("rollout", pa.int32()), *((name, pa.float64()) for name in grpo.COLUMNS)])


@dataclass(frozen=True)
class Weighting:
    """How far the divergence weights reach.

    strength: the s above: weights stay within s/2 of 1. alpha: None calibrates it (see the module).
    """

    strength: float = 1.0
    alpha: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.strength <= 2:
            raise ValueError(
                f"strength is {self.strength}: it must lie in (0, 2], for beyond it a weight could be negative"
            )
        if self.alpha is not None and not self.alpha > 0:
            raise ValueError(f"alpha is {self.alpha}: it must be above 0; `weight` high or low sets the sign")


def rlvr(
    model: str | Checkpoint,
    *,
    prompts: str | Path | Iterable[Mapping[str, Any]],
    verifier: str | Verifier,
    out: str | Path,
    weight: Weight = "off",
    held_out: int = 100,
    template: Template = "plain",
    settings: Settings = Settings(),
    weighting: Weighting = Weighting(),
    parts: Parts | None = None,
    advance: answers.Advance | None = None,
) -> Result:
    """Tune a checkpoint on the rewards of a verifier, and save the tuned one in out/checkpoint.

    model: the checkpoint to start from; its folder is never written to.
    prompts: jsonl, parquet or txt with a prompt per record, and a reference where the verifier compares with one.
    verifier: `module:function`, `file.py:function`, `regex:PATTERN` or `exact`; or a function.
    out: folder for the tuned checkpoint (in `checkpoint`, which must not exist yet).
    weight: off, high or low: which tokens' advantages to boost (see the module).
    held_out: the last so many prompts are not tuned on but answered before and after, at the sampling temperature.
    template: how the prompt is rendered: plain, chat (the tokenizer's template) or frame (zero-shot frame).
    Returns a Result whose table has one row per update. Figures: accuracy before and after (mean reward where rewards
    are not 0 or 1), KL to the start at the end where there is a leash, the weights' range.
    Raises ValueError, in one sentence, for malformed prompts, too few of them, a verifier that fails (with the answer).
    """
    if weight == "off":
        unread(weighting, Weighting(), "--weight high or low")
    grpo.require_trl()
    target = Path(out) / "checkpoint"
    if target.exists():
        raise ValueError(f"{target} exists already: give another --out, so that no checkpoint is written over")
    judge = verifiers.load(verifier) if isinstance(verifier, str) else verifiers.guarded(verifier, "given")
    texts = corpus.read(prompts)
    tuned_on, measured_on = _split(texts, held_out, settings.prompts_per_rollout)
    start = answers.opened(model)
    sampling = Sampling(
        temperature=settings.temperature, max_new_tokens=settings.max_new_tokens, seed=settings.seed
    )  # fmt: skip
    provenance = answers.provenance(
        start, prompts=prompts, verifier=verifier if isinstance(verifier, str) else repr(verifier), weight=weight,
        held_out=held_out, template=template, settings=asdict(settings), weighting=asdict(weighting),
    )  # fmt: skip
    parts = parts or Parts()
    if parts.shard != (0, 1):
        raise ValueError("a training run cannot be sharded: start it under torchrun to use several processes")
    parts.settle(provenance)
    work = parts.folder and parts.folder / "training"
    weigh = _weights(weight, weighting, settings, work)
    told = None if advance is None else lambda done, total: advance("tuning", done, total)
    before = rewards(start, measured_on, judge, template=template, sampling=sampling)
    with _private_copy(start, target.with_name("start")) as copy:
        rows = [_row(text, template) for text in tuned_on]
        records = grpo.tune(copy, rows, judge, target, settings=settings, weigh=weigh, work=work, advance=told)
    after = rewards(checkpoints.load(str(target)), measured_on, judge, template=template, sampling=sampling)
    return summarise(pa.Table.from_pylist(records, schema=SCHEMA), before, after, str(target), provenance)


def divergence_weights(logp_new_T: Tensor, logp_old_T: Tensor, *, s: float = 1.0, alpha: float) -> Tensor:
    """Weights w = 1 + s·(σ(α·k3) − ½) of the advantages of drawn tokens, without gradient.

    logp_new_T, logp_old_T: log-probabilities of tokens drawn from old, any shape. s: how far weights reach. alpha: sets
    the k3 (nats) at which they get there; s·alpha > 0 boosts high divergence, < 0 low.
    Returns weights of logp_new_T's shape and type, within [1, 1 + |s|/2) for s·alpha > 0 and (1 − |s|/2, 1] below;
    exactly 1 where the two agree.
    Source: arXiv 2603.22446.
    """
    return (1 + s * (torch.sigmoid(alpha * k3_nats(logp_new_T, logp_old_T)) - 0.5)).to(logp_new_T.dtype)


@dataclass
class CalibratedWeights:
    """`divergence_weights` whose alpha is 1 over the 99th percentile of k3 in the first `calls` minibatches.

    Until then, and where nothing moved in them, the weights are 1. Under several processes all use the mean percentile.
    kept: a file that keeps alpha for a run that is resumed.
    """

    s: float
    calls: int
    alpha: float | None = None
    seen: list[Tensor] = field(default_factory=list)
    kept: Path | None = None

    def __post_init__(self) -> None:
        if self.alpha is None and self.kept is not None and self.kept.is_file():
            self.alpha = json.loads(self.kept.read_text())

    def __call__(self, logp_new_BT: Tensor, logp_old_BT: Tensor, mask_BT: Tensor) -> Tensor:
        if self.alpha is not None:
            return divergence_weights(logp_new_BT, logp_old_BT, s=self.s, alpha=self.alpha)
        self.seen.append(k3_nats(logp_new_BT, logp_old_BT)[mask_BT].cpu())
        if len(self.seen) >= self.calls:
            self.alpha = self._calibrated()
            if self.kept is not None and self.alpha is not None:
                self.kept.parent.mkdir(parents=True, exist_ok=True)
                self.kept.write_text(json.dumps(self.alpha))
            self.seen.clear()
        return torch.ones_like(logp_new_BT)

    def _calibrated(self) -> float | None:
        k3_N = torch.cat(self.seen).numpy()
        percentile = float(np.quantile(k3_N, 0.99)) if len(k3_N) else 0.0
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            gathered: list[float] = [0.0] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(gathered, percentile)
            percentile = sum(gathered) / len(gathered)
        return 1 / percentile if percentile > 0 else None


def rewards(
    checkpoint: Checkpoint,
    texts: Sequence[Text],
    verifier: Verifier,
    *,
    template: Template,
    sampling: Sampling,
    batch: int = 64,
) -> list[float]:
    """The verifier's reward for one sampled answer to each text."""
    found = []
    for start in range(0, len(texts), batch):
        some = texts[start : start + batch]
        contexts = [corpus.context_ids(checkpoint, text, template) for text in some]
        drawn = decode.sample(checkpoint, contexts, [text.text for text in some], sampling)
        for text, ids in zip(some, drawn, strict=True):
            answer = str(checkpoint.tokenizer.decode(list(ids), skip_special_tokens=True))
            found.append(verifier(text.prompt, answer, text.reference))
    return found


def summarise(
    table: pa.Table, before: Sequence[float], after: Sequence[float], checkpoint: str, provenance: Mapping[str, Any]
) -> Result:
    """The Result of a run from its table of updates and the rewards of the held-out prompts before and after."""
    binary = set(before) | set(after) <= {0.0, 1.0}
    name = "accuracy" if binary else "reward"
    figures = {f"{name}_before": _mean(before, binary), f"{name}_after": _mean(after, binary)}
    n = len(table)
    figures["updates"] = Figure(n, "count", n)
    last = _last_rollout(table)
    figures["reward_mean_last_rollout"] = Figure(last["reward_mean"][-1].as_py(), "reward", len(last))
    notes = [] if binary else ["the verifier gives other rewards than 0 and 1: their mean stands for accuracy"]
    kl = [value for value in last["kl_to_start_nats"].to_pylist() if value is not None]
    if kl:
        figures["kl_to_start_nats_last_rollout"] = Figure(float(np.mean(kl)), "nats/token", len(kl))
    else:
        notes.append("no KL to the start was measured: the run had no leash (`leash` is 0)")
    for column, extreme in (("weight_min", min), ("weight_max", max)):
        weights = [value for value in table[column].to_pylist() if value is not None]
        if weights:
            figures[column] = Figure(extreme(weights), "weight", len(weights))
    return Result(
        "adapt rlvr",
        table,
        figures,
        provenance,
        verdict=[
            _sentence(name, figures[f"{name}_before"], figures[f"{name}_after"]),
            f"The tuned checkpoint is in {checkpoint}.",
        ],
        notes=notes,
        panels=_panels(table),
    )


def _sentence(name: str, before: Figure, after: Figure) -> str:
    (was, was_low, was_high), (now, now_low, now_high) = (
        (float(f.value), f.low or 0.0, f.high or 0.0) for f in (before, after)
    )
    moved = "rose" if now > was else "fell" if now < was else "stayed"
    sure = "the intervals are apart" if now_low > was_high or now_high < was_low else "the intervals overlap"
    return (
        f"On {after.n} held-out prompts {name} {moved} from {was:.3f} [{was_low:.3f}, {was_high:.3f}] to {now:.3f} "
        f"[{now_low:.3f}, {now_high:.3f}]; {sure}."
    )


def _mean(rewards_N: Sequence[float], binary: bool) -> Figure:
    if binary:
        return statistics.share_figure(int(sum(rewards_N)), len(rewards_N))
    return statistics.mean_figure(rewards_N, unit="reward")


def _last_rollout(table: pa.Table) -> pa.Table:
    rollout = table["rollout"].to_numpy()
    return table.filter(pa.array(rollout == rollout.max()))


def _panels(table: pa.Table) -> list[Panel]:
    quantiles = ("k3_p50", "k3_p90", "k3_p99")
    long = pa.Table.from_pylist(
        [
            {"step": row["step"], "quantile": name, "k3_nats": row[name]}
            for row in table.to_pylist()
            for name in quantiles
            if row[name]
        ],
        schema=pa.schema([("step", pa.int32()), ("quantile", pa.string()), ("k3_nats", pa.float64())]),
    )
    caption = "k3 estimate of KL(old‖new) per token; updates before the policy has moved are left out."
    return [
        Panel(
            "Reward over the run", "Mean reward of each rollout's answers.", "line", table, "step", "reward_mean",
            x_title="update", y_title="mean reward",
        ),
        Panel(
            "How far updates move the policy that drew the answers", caption, "line", long, "step", "k3_nats",
            series="quantile", x_title="update", y_title="k3 (nats)", log_y=True,
        ),
    ]  # fmt: skip


def _weights(
    weight: Weight, weighting: Weighting, settings: Settings, work: Path | None = None
) -> grpo.TokenWeights | None:
    if weight not in ("off", "high", "low"):
        raise ValueError(f"weight is {weight!r}: it must be off, high or low")
    if weight == "off":
        return None
    s = weighting.strength if weight == "high" else -weighting.strength
    calls, kept = settings.epochs * settings.minibatches, work and work / "alpha.json"
    return CalibratedWeights(s, calls, weighting.alpha, kept=kept)


def _split(texts: Sequence[Text], held_out: int, per_rollout: int) -> tuple[Sequence[Text], Sequence[Text]]:
    if held_out < 1:
        raise ValueError(f"held_out is {held_out}: at least 1 prompt is needed to measure on")
    if len(texts) - held_out < per_rollout:
        raise ValueError(
            f"there are {len(texts)} prompts, {held_out} of them held out, and a rollout takes {per_rollout}: give "
            f"more prompts or lower `held_out` or `prompts_per_rollout`"
        )
    return texts[:-held_out], texts[-held_out:]


def _row(text: Text, template: Template) -> dict[str, Any]:
    """What the trainer needs of a prompt: trl renders messages itself; `question` is what the verifier reads."""
    shown: Any = corpus.FRAME.format(prompt=text.prompt) if template == "frame" else text.prompt
    if template == "chat":
        shown = [dict(message) for message in text.messages] or [{"role": "user", "content": text.prompt}]
    return {"prompt": shown, "question": text.prompt, "reference": text.reference}


@contextmanager
def _private_copy(checkpoint: Checkpoint, folder: Path) -> Iterator[Path]:
    """The checkpoint as loaded (revision chosen, adapter merged) in a folder of its own, removed afterwards.

    trl reads the policy and its reference from there, so both are the model that was asked for.
    """
    from accelerate import PartialState

    state = PartialState()
    if state.is_main_process:
        checkpoint.model.save_pretrained(folder)
        checkpoint.tokenizer.save_pretrained(folder)
    state.wait_for_everyone()
    try:
        yield folder
    finally:
        state.wait_for_everyone()
        if state.is_main_process:
            shutil.rmtree(folder)
