"""Verifiable-reward tuning by trl's GRPO, with a hook for token weights: what `adapt rlvr` and the zoo's recipe share.

The objective is DAPO's (arXiv 2503.14476): group-normalised advantages, asymmetric clip, mean over tokens, groups whose
answers all earn the same left out; with a KL leash to the starting checkpoint where `leash` is above 0. trl gives such
groups advantage 0 but counts their tokens in the mean; here the advantages of the others are scaled up by what those
tokens would take away. The leash stays a mean over all tokens: left-out groups are held near the start too; each token's k3
estimate is multiplied by the ratio of new to old probability, so that its gradient is that of the KL itself.

trl is used through three of its trainer's methods that are not public (`_generate_and_score_completions`,
`_get_per_token_logps_and_entropies`, `_compute_loss`), all in `_trainer`; written against trl 1.16.
"""

# B answers of a minibatch, T answer tokens

from __future__ import annotations

import contextlib
import random
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shiftscope.core.verifiers import Verifier

TokenWeights = Callable[[Tensor, Tensor, Tensor], Tensor]  # (logp_new_BT, logp_old_BT, mask_BT) -> weights_BT
K3_QUANTILES = {"k3_p50": 0.5, "k3_p90": 0.9, "k3_p99": 0.99}
COLUMNS = ("reward_mean", "zero_variance_share", "kl_to_start_nats", *K3_QUANTILES, "weight_min", "weight_max")


@dataclass(frozen=True)
class Settings:
    """How to tune: a rollout draws `samples` answers to each of its prompts, then makes epochs × minibatches updates.

    rollouts: how many. prompts_per_rollout: drawn for each. samples: answers to each prompt, a group. epochs: passes over
    a rollout. minibatches: updates of a pass. learning_rate: of AdamW.
    clip_low, clip_high: the ratio stays within [1 − clip_low, 1 + clip_high] (DAPO's 0.2 and 0.28).
    decay: the share of the updates, at the end, over which the learning rate falls to zero along a cosine; it is
    constant before.
    leash: factor of the KL to the starting checkpoint, 0 for none. micro_batch: answers a device handles at once
    (None: a whole minibatch); the rest is gradient accumulation.
    temperature: of the drawn answers. max_new_tokens: longest answer. gradient_checkpointing: less memory, more time.
    bf16: train in bfloat16. seed: of the draws. save_every: rollouts between two saved states, from which an
    interrupted run goes on.
    """

    rollouts: int = 70
    prompts_per_rollout: int = 32
    samples: int = 8
    epochs: int = 2
    minibatches: int = 2
    learning_rate: float = 1e-6
    decay: float = 0.0
    leash: float = 0.0
    clip_low: float = 0.2
    clip_high: float = 0.28
    temperature: float = 1.0
    max_new_tokens: int = 256
    micro_batch: int | None = None
    gradient_checkpointing: bool = False
    bf16: bool = False
    seed: int = 0
    save_every: int = 10

    def __post_init__(self) -> None:
        for name in ("rollouts", "prompts_per_rollout", "epochs", "minibatches", "max_new_tokens", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least 1")
        if self.samples < 2:
            raise ValueError(f"samples is {self.samples}: a group needs at least 2 answers to compare")
        if (self.prompts_per_rollout * self.samples) % self.minibatches:
            raise ValueError(
                f"{self.prompts_per_rollout} prompts × {self.samples} samples do not divide into {self.minibatches} "
                f"minibatches"
            )
        for name in ("learning_rate", "temperature"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be above 0")
        if not 0 <= self.decay <= 1:
            raise ValueError(f"decay is {self.decay}: it is a share, from 0 to 1")
        if not self.leash >= 0:
            raise ValueError(f"leash is {self.leash}: it must be 0 (none) or above")
        if not 0 <= self.clip_low <= 1:
            raise ValueError(f"clip_low is {self.clip_low}: it must be from 0 to 1, for no ratio is below 0")
        if not self.clip_high >= 0:
            raise ValueError(f"clip_high is {self.clip_high}: it must be 0 or above")
        if self.micro_batch is not None and self.micro_batch < 1:
            raise ValueError(
                f"micro_batch is {self.micro_batch}: it must be at least 1 (leave it out for a whole minibatch)"
            )


def k3_nats(logp_new_BT: Tensor, logp_old_BT: Tensor) -> Tensor:
    """Estimate of KL(old‖new) from tokens drawn from old: r − 1 − ln r with r = new/old; at least 0, unbiased.

    Takes log-probabilities of the drawn tokens, works in float64 and returns float64 without gradient.
    Source: arXiv 2603.22446 (weights of the advantage); the estimator is J. Schulman's k3.
    """
    log_ratio_BT = logp_new_BT.detach().double() - logp_old_BT.detach().double()
    return (torch.expm1(log_ratio_BT) - log_ratio_BT).clamp(min=0)


def tune(
    start: str | Path,
    rows: Sequence[Mapping[str, Any]],
    verifier: Verifier,
    folder: str | Path,
    *,
    settings: Settings,
    weigh: TokenWeights | None = None,
    work: str | Path | None = None,
    advance: Callable[[int, int], None] | None = None,
) -> list[dict[str, Any]]:
    """Tune the checkpoint in the folder `start` on the verifier's rewards, save it with its tokenizer in `folder`.

    rows: {'prompt' (text, or chat messages), 'question' (the prompt as the verifier reads it; 'prompt' if left out),
    'reference' (optional)}. weigh: weights of the advantages, one for each token of a minibatch.
    work: folder where the state is kept every `save_every` rollouts; a run that finds one goes on from it.
    advance: called with (updates done, updates in all).
    Returns one record an update: step, rollout and COLUMNS (the rollout's reward and share of groups left out; KL to
    the start where there is a leash). Runs under torchrun / accelerate as it is.
    """
    if len(rows) < settings.prompts_per_rollout:
        raise ValueError(
            f"there are {len(rows)} prompts and a rollout takes {settings.prompts_per_rollout}: give more or lower "
            f"`prompts_per_rollout`"
        )
    with own_randomness(), warnings.catch_warnings():
        # trl 1.16 sets and reads the old name of transformers' activation checkpointing
        warnings.filterwarnings("ignore", message=".*gradient_checkpointing", category=FutureWarning)
        scratch = Path(folder) if work is None else Path(work)
        trainer = _trainer(str(start), rows, verifier, scratch, settings, weigh, kept=work is not None)
        if advance is not None:
            trainer.add_callback(_telling(advance))
        trainer.train(resume_from_checkpoint=_latest(scratch) if work is not None else None)
    trainer.save_model(str(folder))
    if trainer.is_world_process_zero():
        (Path(folder) / "training_args.bin").unlink(missing_ok=True)  # a pickle, which nobody should have to load
    return _records(trainer.state.log_history, settings)


def _latest(work: Path) -> str | None:
    """The newest saved state in a folder, None where there is none."""
    states = {int(path.name.split("-")[1]): path for path in work.glob("checkpoint-*") if path.is_dir()}
    return str(states[max(states)]) if states else None


def _telling(advance: Callable[[int, int], None]) -> Any:
    """A trainer callback that tells how many updates are done."""
    from transformers import TrainerCallback

    class Telling(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            advance(state.global_step, state.max_steps)

    return Telling()


def require_trl() -> None:
    """Raise ValueError, with the way to install it, where trl is missing."""
    try:
        import trl  # noqa: F401
    except ImportError as error:
        raise ValueError("verifiable-reward tuning needs the package trl: pip install 'shiftscope[trl]'") from error


def _trainer(
    start: str,
    rows: Sequence[Mapping[str, Any]],
    verifier: Verifier,
    folder: Path,
    settings: Settings,
    weigh: TokenWeights | None,
    *,
    kept: bool = False,
) -> Any:
    """trl's GRPO trainer with token weights, without groups of no variance, and with k3 and the weights in its log."""
    require_trl()
    from datasets import Dataset
    from transformers import AutoTokenizer
    from transformers.trainer_callback import PrinterCallback
    from trl import GRPOTrainer

    earned: list[float] = []  # by this process's answers of the rollout

    class WeightedGRPO(GRPOTrainer):
        _minibatch: dict[str, Any] | None = None  # the one whose loss is being computed

        def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
            rollout = super()._generate_and_score_completions(inputs)
            kept_B = informative(earned, settings.samples).to(rollout["advantages"].device)
            kept_tokens = self.accelerator.gather((rollout["completion_mask"] * kept_B[:, None]).sum()).sum()
            scale = rollout["num_items_in_batch"] / kept_tokens.clamp(min=1)
            rollout["advantages"] = torch.where(kept_B, rollout["advantages"] * scale, 0)
            rollout["kept"] = kept_B
            dropped = 1 - float(self.accelerator.gather(kept_B.float().mean()).mean())
            self._metrics["train"]["zero_variance_share"].append(dropped)
            return rollout

        def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
            self._minibatch = dict(inputs)  # a copy: the rollout is used again in the next epoch
            try:
                return super()._compute_loss(model, self._minibatch)
            finally:
                self._minibatch = None

        def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
            out = super()._get_per_token_logps_and_entropies(*args, **kwargs)
            if self._minibatch is not None:
                weigh_minibatch(self._minibatch, out[0].detach(), weigh, self._metrics["train"])
            return out

    def reward(
        completions: list[Any], question: list[str], reference: list[str | None], **_: Any
    ) -> list[float | None]:
        written = [answer if isinstance(answer, str) else answer[-1]["content"] for answer in completions]
        earned[:] = [verifier(q, answer, r) for q, answer, r in zip(question, written, reference, strict=True)]
        return [*earned]

    trainer = WeightedGRPO(
        model=start,
        reward_funcs=reward,
        args=_config(folder, settings, kept=kept),
        train_dataset=Dataset.from_list(
            [
                {"prompt": r["prompt"], "question": r.get("question", r["prompt"]), "reference": r.get("reference")}
                for r in rows
            ]
        ),
        processing_class=AutoTokenizer.from_pretrained(start, padding_side="left"),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def informative(rewards: Sequence[float], samples: int) -> Tensor:
    """Which answers belong to a group whose rewards differ, bool [B]: groups are consecutive, `samples` answers each.

    Told from the rewards in float32, which is what trl sees: the mean of eight rewards of 0.15 is rounded, so that their
    advantages are not 0 and the standard deviation is not either.
    """
    groups_GS = torch.tensor(rewards, dtype=torch.float32).view(-1, samples)
    return (groups_GS != groups_GS[:, :1]).any(1, keepdim=True).expand_as(groups_GS).reshape(-1)


def weigh_minibatch(
    minibatch: dict[str, Any], logp_new_BT: Tensor, weigh: TokenWeights | None, log: dict[str, list[float]]
) -> None:
    """Multiply a minibatch's advantages by their token weights, in place, and log k3 and the weights' range.

    minibatch: trl's; advantages [B] become [B, T]. Without old log-probabilities the policy is the one that drew the
    answers: k3 is 0. trl logs the mean of what an update's micro-batches leave in the log, so the range is kept as one value
    there; quantiles of k3 are means over micro-batches.
    """
    logp_old_BT = minibatch.get("old_per_token_logps", logp_new_BT)
    mask_BT = (minibatch["completion_mask"] * minibatch["kept"][:, None]).bool()
    k3_N = k3_nats(logp_new_BT, logp_old_BT)[mask_BT]
    weights_N = torch.ones_like(k3_N)
    if weigh is not None:
        weights_BT = weigh(logp_new_BT, logp_old_BT, mask_BT)
        minibatch["advantages"] = minibatch["advantages"][:, None] * weights_BT.to(minibatch["advantages"].dtype)
        weights_N = weights_BT[mask_BT]
    if len(k3_N):
        for name, q in K3_QUANTILES.items():
            log[name].append(float(np.quantile(k3_N.cpu().numpy(), q)))
        log["weight_min"] = [min([*log["weight_min"], float(weights_N.min())])]
        log["weight_max"] = [max([*log["weight_max"], float(weights_N.max())])]


def _config(folder: Path, settings: Settings, *, kept: bool = False) -> Any:
    from accelerate import PartialState
    from trl import GRPOConfig

    processes = PartialState().num_processes
    answers = settings.prompts_per_rollout * settings.samples
    minibatch = answers // settings.minibatches
    updates = settings.rollouts * settings.epochs * settings.minibatches
    micro = settings.micro_batch or minibatch // processes
    if settings.prompts_per_rollout % processes or minibatch % (micro * processes):
        raise ValueError(
            f"{settings.prompts_per_rollout} prompts and minibatches of {minibatch} answers do not divide over "
            f"{processes} processes with {micro} answers at once: change `prompts_per_rollout`, "
            f"`minibatches` or `micro_batch`"
        )
    return GRPOConfig(
        output_dir=str(folder),
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=minibatch // (micro * processes),
        generation_batch_size=answers,
        num_generations=settings.samples,
        num_iterations=settings.epochs,
        max_steps=updates,
        max_completion_length=settings.max_new_tokens,
        temperature=settings.temperature,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="warmup_stable_decay",
        lr_scheduler_kwargs={"num_decay_steps": round(settings.decay * updates)},
        loss_type="dapo",
        scale_rewards="group",
        epsilon=settings.clip_low,
        epsilon_high=settings.clip_high,
        beta=settings.leash,
        use_bias_correction_kl=True,
        bf16=settings.bf16,
        dataloader_pin_memory=torch.cuda.is_available(),
        gradient_checkpointing=settings.gradient_checkpointing,
        disable_dropout=True,
        logging_steps=1,
        save_strategy="steps" if kept else "no",
        save_steps=settings.save_every * settings.epochs * settings.minibatches,  # between two rollouts
        save_total_limit=1,
        report_to="none",
        disable_tqdm=True,
        seed=settings.seed,
    )


def _records(history: Sequence[dict[str, Any]], settings: Settings) -> list[dict[str, Any]]:
    """trl's log as one record an update; a rollout's reward stands in each of its updates."""
    per_rollout = settings.epochs * settings.minibatches
    records, reward, dropped = [], None, None
    for entry in history:
        if "loss" not in entry:
            continue  # the run's closing summary
        reward, dropped = entry.get("reward", reward), entry.get("zero_variance_share", dropped)
        measured = {name: entry.get(name) for name in COLUMNS}
        measured |= {"reward_mean": reward, "zero_variance_share": dropped, "kl_to_start_nats": entry.get("kl")}
        records.append({"step": entry["step"], "rollout": (entry["step"] - 1) // per_rollout + 1, **measured})
    return records


@contextlib.contextmanager
def own_randomness() -> Iterator[None]:
    """trl seeds the global generators: put them back as they were."""
    python, array = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(array)
