"""How much two models in lock-step cost beside two independent `generate` calls of transformers on the same pair.

One process, one thread, CPU seconds; variants take turns, and the ratio is the median over the rounds. The pair is a
random Llama and the same with a little noise on its weights; JS and both draws are worked out at every token, and about
8 % of them are swapped (a random model has no few positions that shifted, so they are chosen at random). Prompts and
lengths are the same for all, and no answer ends early. Bar: token mode at most 1.3 times the sum of the two calls.

    python benchmarks/lockstep.py
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

from shiftscope.core import checkpoints, crossing, lockstep
from shiftscope.core.decode import Sampling

PROMPT, NEW, ROUNDS = 32, 48, 3
BAR = 1.3
SIZES = {
    "d=128, 4 blocks, V=8k": {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "vocab_size": 8192},
    "d=384, 6 blocks, V=16k": {
        "hidden_size": 384,
        "intermediate_size": 1024,
        "num_hidden_layers": 6,
        "vocab_size": 16384,
    },
}


def pair(size: dict[str, int]) -> tuple[checkpoints.Checkpoint, checkpoints.Checkpoint]:
    """A random Llama and its twin with noise on the weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        **size, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.05,
        bos_token_id=None, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    base, tuned = LlamaForCausalLM(config).eval(), LlamaForCausalLM(config).eval()
    tuned.load_state_dict(base.state_dict())
    with torch.no_grad():
        for weight in tuned.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.01)
    words = {f"w{i}": i for i in range(size["vocab_size"])}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w0")))
    return checkpoints.wrap(base, tokenizer, "base"), checkpoints.wrap(tuned, tokenizer, "tuned")


def measure(name: str, size: dict[str, int], rows: int) -> float:
    base, tuned = pair(size)
    ids_BT = torch.randint(size["vocab_size"], (rows, PROMPT), generator=torch.Generator().manual_seed(1))
    jobs = [lockstep.Job(row, tuple(ids), tuple(ids)) for row, ids in enumerate(ids_BT.tolist())]
    policy = crossing.crossing(partial(crossing.at_random, rate=0.09), Sampling(temperature=1.0))

    def two_generates() -> None:
        for checkpoint in (base, tuned):
            checkpoint.model.generate(
                ids_BT, attention_mask=torch.ones_like(ids_BT), do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
                max_new_tokens=NEW, min_new_tokens=NEW,
            )  # fmt: skip

    def in_lockstep(block: int) -> list[lockstep.Written]:
        return lockstep.write(base, tuned, jobs, policy, ends=(), max_new_tokens=NEW, seed=3, block=block)

    variants: dict[str, Callable[[], Any]] = {"two generate calls": two_generates, "lock-step": partial(in_lockstep, 1)}
    variants |= {f"lock-step, block {block}": partial(in_lockstep, block) for block in (4, 8)}
    seconds: dict[str, list[float]] = {variant: [] for variant in variants}
    for turn in range(ROUNDS + 1):
        for variant, run in variants.items():
            start = time.process_time()
            run()
            if turn:  # the first turn warms up
                seconds[variant].append(time.process_time() - start)
    written = in_lockstep(1)
    assert all([one.ids for one in in_lockstep(block)] == [one.ids for one in written] for block in (4, 8))
    effective = sum(int((w.steps["switched"] & (w.steps["primary"] != w.steps["other"])).sum()) for w in written)
    print(f"{name}, {rows} prompts × ({PROMPT} + {NEW}) tokens, {effective / (rows * NEW):.1%} of tokens swapped")
    for variant, spent in seconds.items():
        ratio = statistics.median(
            mine / theirs for mine, theirs in zip(spent, seconds["two generate calls"], strict=True)
        )
        print(
            f"  {variant:20}{rows * NEW / statistics.median(spent):9.0f} tokens/CPU-s   {ratio:5.2f} × two generate calls"
        )
    return statistics.median(
        mine / theirs for mine, theirs in zip(seconds["lock-step"], seconds["two generate calls"], strict=True)
    )


def main() -> None:
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    ratios = [measure(name, size, rows) for name, size in SIZES.items() for rows in (1, 8)]
    worst = max(ratios)
    print(
        f"worst: {worst:.2f} × the sum of two generate calls (bar: {BAR}); {'holds' if worst <= BAR else 'does not hold'}"
    )


if __name__ == "__main__":
    main()
