"""What exact bytes cost beside plain `generate` of transformers, on the zoo's `docs-base`, and the work on the vocabulary.

One process, one thread, CPU seconds; variants take turns, ratios are medians over the rounds. Bytes: forwards and new
tokens per byte after the prompt. Cover: the prompt exact, then a forward per token, beside `generate` with as many new
tokens. Vocabulary: what a context costs after its one-token forward and the model's own log-softmax (float64
probabilities in sorted order, sums into bytes), without the rules of canonical encodings, for docs-base (V = 4096) and for
a random Llama with a made-up table of 131,072 tokens. Targets: 1.05 new tokens per byte, 1.1 times `generate`, a tenth of
the forward.

    python benchmarks/bytes.py
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

from shiftscope.core import byte_law, checkpoints
from shiftscope.core.byte_law import Context, Node
from shiftscope.core.token_bytes import TokenBytes
from shiftscope.generate.bytes import ByteModel, ByteSampling

PROMPT, BYTES, TOKENS, ROUNDS = "Return a new list of the val", 96, 48, 5
BIG = 131_072


def turns(variants: dict[str, Callable[[], Any]], rounds: int = ROUNDS) -> dict[str, list[float]]:
    """CPU seconds of each variant in each round, after one that warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(rounds + 1):
        for name, run in variants.items():
            start = time.process_time()
            run()
            if turn:
                seconds[name].append(time.process_time() - start)
    return seconds


def ratio(seconds: dict[str, list[float]], one: str, other: str) -> float:
    """Median over rounds of the ratio of two variants that ran side by side."""
    return statistics.median(a / b for a, b in zip(seconds[one], seconds[other], strict=True))


def generation(base: checkpoints.Checkpoint) -> tuple[float, float]:
    """New tokens per byte, and cover sampling's ratio to `generate`; prints both with their milliseconds."""
    models = {name: ByteModel(base, support=name) for name in ("canonical", "unmasked")}
    strict = models["canonical"]
    covers = (ByteSampling("cover", max_new_bytes=TOKENS, seed=seed) for seed in range(1000))
    sampling = next(s for s in covers if strict.sample([PROMPT], s)[0].stopped == "length")
    text = (PROMPT + " of a file, and raise an error if the argument is not a string or has no name." * 2).encode()
    begun, text = text[: len(PROMPT)], text[len(PROMPT) :][:BYTES]
    ids = torch.tensor([[*strict.engine.opening, *base.tokenizer(PROMPT)["input_ids"]]])
    new: dict[str, tuple[float, float]] = {}

    def push(name: str) -> None:
        law, tree = models[name].start(begun), models[name].engine.tree
        assert isinstance(tree, byte_law.TokenTree)
        law.law()
        before = tree.forwards, tree.positions
        for byte in text:
            law.push(byte)
            law.law()
        new[name] = (tree.forwards - before[0]) / len(text), (tree.positions - before[1]) / len(text)

    def generate() -> None:
        base.model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
            max_new_tokens=TOKENS, min_new_tokens=TOKENS,
        )  # fmt: skip

    seconds = turns(
        {
            "generate": generate,
            "cover": lambda: strict.sample([PROMPT], sampling),
            "canonical": lambda: push("canonical"),
            "unmasked": lambda: push("unmasked"),
        }
    )
    for name in ("generate", "cover"):
        print(f"  {name:10}{1e3 * statistics.median(seconds[name]) / TOKENS:7.2f} ms per token")
    for name, (forwards, tokens) in new.items():
        milliseconds = 1e3 * statistics.median(seconds[name]) / len(text)
        print(
            f"  {name:10}{milliseconds:7.2f} ms per byte, {forwards:.3f} forwards and {tokens:.3f} new tokens per byte"
        )
    return new["canonical"][1], ratio(seconds, "cover", "generate")


def made_up() -> tuple[LlamaForCausalLM, TokenBytes]:
    """A random Llama (d = 512, 8 blocks) and a table of as many random byte strings as it has tokens."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=BIG, hidden_size=512, intermediate_size=1536, num_hidden_layers=8, num_attention_heads=8,
        tie_word_embeddings=True, pad_token_id=0,
    )  # fmt: skip
    generator = np.random.default_rng(0)
    spelled = {bytes([byte]) for byte in range(256)}
    while len(spelled) < BIG:
        spelled.add(bytes(generator.integers(32, 123, generator.integers(2, 9)).tolist()))
    table, order = sorted(spelled), generator.permutation(BIG)
    unused: Any = None
    by_id = dict(zip(order.tolist(), table, strict=True))
    tokens = TokenBytes(
        tuple(by_id[i] for i in range(BIG)), b"", "BPE", True, unused, unused, table, order.astype(np.int64)
    )
    return LlamaForCausalLM(config).eval(), tokens


def vocabulary(name: str, model: Any, tokens: TokenBytes) -> float:
    """Work on the vocabulary as a share of a one-token forward with its log-softmax; prints it."""
    from transformers import DynamicCache

    ids, cache = torch.zeros(1, 16, dtype=torch.long), DynamicCache()
    with torch.no_grad():
        model(ids, past_key_values=cache, use_cache=True)

        def forward() -> np.ndarray:
            found = model(ids[:, :1], past_key_values=cache, use_cache=True).logits[0, -1].log_softmax(-1).numpy()
            cache.crop(-1)
            return found

        logp_V = forward()
        node = Node(None, 0)
        rules, tree = SimpleNamespace(start=()), SimpleNamespace(laws=lambda nodes: [logp_V for _ in nodes])
        engine: Any = byte_law.Engine(tree, tokens, rules, (0,), "unmasked")  # type: ignore[arg-type]

        def work() -> None:
            node.masses = None
            byte_law.law_at(engine, [Context(0, node, (), 0.0)], b"")

        def forward_many() -> None:
            for _ in range(20):
                forward()

        def work_many() -> None:
            for _ in range(20):
                work()

        seconds = turns({"forward": forward_many, "work": work_many})
    share = ratio(seconds, "work", "forward")
    each = {key: 50 * statistics.median(values) for key, values in seconds.items()}  # ms of one of 20
    print(f"  {name:24}{each['forward']:7.2f} ms forward, {each['work']:6.2f} ms vocabulary: {share:.1%} of it")
    return share


def main() -> None:
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    base = checkpoints.load("docs-base")
    print(f"load average {os.getloadavg()[0]:.1f}; CPU time, one thread")
    tokens, slower = generation(base)
    small = vocabulary("docs-base, V = 4,096", base.model, ByteModel(base).engine.tokens)
    big = vocabulary(f"random Llama, V = {BIG:,}", *made_up())
    for said, value, bar in (
        ("new tokens per byte, canonical", tokens, 1.05),
        ("cover sampling, times generate", slower, 1.1),
        ("vocabulary work, share of the forward at V = 131k", big, 0.1),
    ):
        print(f"{said}: {value:.3f} (target {bar}): {'holds' if value <= bar else 'does not hold'}")
    print(f"vocabulary work, share of the forward at V = 4096: {small:.3f} (no target)")
    print(f"load average {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
