"""What exact bytes cost beside plain `generate` of transformers, beside genlm-bytes, and on large vocabularies.

One process, one thread, CPU seconds; variants take turns, ratios are medians over the rounds.

- Generation on the zoo's `docs-base`: forwards and new tokens per byte after the prompt; the same with an allowed error; cover
  sampling (the prompt exact, then a forward per token) beside `generate` with as many new tokens.
- Peers, if genlm-bytes is installed: milliseconds per byte on docs-base, and the mean total variation of each one's law to
  the exact law of all tokenisations (every sequence, float64, short prompts).
- Vocabulary: what a context costs after its forward and the model's own log-softmax (probabilities in sorted order, sums into
  bytes), for docs-base and for V = 131,072 without rules; then, if mistral-common is installed, whole laws of a growing text
  under the real rules of tekken (V = 131,072), on text that the caches have not seen (cold) and again (warm). All of it beside
  one-token forwards of random Llamas with V = 131,072: a small one (d = 512, 8 blocks) and one of the shape of Llama-3.2-1B
  (d = 2048, 16 blocks, 1.24 billion parameters, float32).

Targets: 1.05 new tokens per byte, 1.1 times `generate`, vocabulary work a tenth of the forward.

    python benchmarks/bytes.py
"""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

from shiftscope.core import checkpoints
from shiftscope.core.bytes import byte_law, canonical, token_bytes
from shiftscope.core.bytes.byte_law import ByteLaw, Engine
from shiftscope.core.bytes.covers import Context
from shiftscope.core.bytes.token_bytes import TokenBytes
from shiftscope.core.bytes.token_tree import Node, TokenTree
from shiftscope.generate.bytes import ByteModel, ByteSampling
from shiftscope.zoo import docs

PROMPT, BYTES, TOKENS, ROUNDS = "Return a new list of the val", 96, 48, 5
BIG = 131_072
SHORT = ("retu", "x = 0", "self.va", " the na", "def ge", "Raise V", "is a li", "import o")  # prompts of the exact law
ERRORS = (0.001, 0.01)


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

    def push(name: str, error: float = 0.0) -> None:
        engine = models[name].engine
        law, tree = ByteLaw(engine, begun, error=error), engine.tree
        assert isinstance(tree, TokenTree)
        law.law()
        before = tree.forwards, tree.positions
        for byte in text:
            law.push(byte)
            law.law()
        shown = f"{name}, error {error}" if error else name
        new[shown] = (tree.forwards - before[0]) / len(text), (tree.positions - before[1]) / len(text)

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
            **{f"unmasked, error {error}": lambda error=error: push("unmasked", error) for error in ERRORS},  # type: ignore[misc]
        }
    )
    for name in ("generate", "cover"):
        print(f"  {name:24}{1e3 * statistics.median(seconds[name]) / TOKENS:7.2f} ms per token")
    for name, (forwards, tokens) in new.items():
        milliseconds = 1e3 * statistics.median(seconds[name]) / len(text)
        print(
            f"  {name:24}{milliseconds:7.2f} ms per byte, {forwards:.3f} forwards and {tokens:.3f} new tokens per byte"
        )
    return new["canonical"][1], ratio(seconds, "cover", "generate")


def peers(base: checkpoints.Checkpoint) -> None:
    """Milliseconds per byte and total variation to the law of all tokenisations, ours and genlm-bytes; prints both."""
    own = {
        "all": ByteModel(base, support="all"),
        "canonical": ByteModel(base),
        "unmasked": ByteModel(base, support="unmasked"),
    }
    exact = [outcomes(own["all"].law(prompt)) for prompt in SHORT]
    text = (PROMPT + "ues in the sequence, in order.").encode()
    for name in ("canonical", "unmasked"):
        for error in (0.0, *ERRORS):
            engine = own[name].engine
            laws = [outcomes(reached(engine, prompt.encode(), error)) for prompt in SHORT]

            def push(engine: Engine = engine, error: float = error) -> None:
                law = ByteLaw(engine, text[: len(PROMPT)], error=error)
                for byte in text[len(PROMPT) :]:
                    law.law()
                    law.push(byte)

            line(f"{name}, error {error}", turns({"push": push}, 3)["push"], laws, exact)
    if importlib.util.find_spec("genlm") is None or importlib.util.find_spec("genlm.bytes") is None:
        print("  genlm-bytes is not installed here (pip install genlm-bytes): no figures of it")
        return
    asyncio.run(genlm(base, text, exact))


def reached(engine: Engine, text: bytes, error: float) -> byte_law.Law:
    """The law after a text that was pushed byte by byte, so that what may be left out is left out."""
    law = ByteLaw(engine, b"", error=error)
    for byte in text:
        law.push(byte)
    return law.law()


def line(name: str, seconds: list[float], laws: list[np.ndarray], exact: list[np.ndarray]) -> None:
    distances = [0.5 * float(np.abs(law - true).sum()) for law, true in zip(laws, exact, strict=True)]
    spent = 1e3 * statistics.median(seconds) / 30
    print(
        f"  {name:26}{spent:8.2f} ms per byte, total variation {np.mean(distances):.1e} mean, {max(distances):.1e} max"
    )


def outcomes(law: byte_law.Law) -> np.ndarray:
    """A law as one vector [257]."""
    return np.append(law.p, law.end)


async def genlm(base: checkpoints.Checkpoint, text: bytes, exact: list[np.ndarray]) -> None:
    """The same of genlm-bytes at several beam widths; prints it."""
    from genlm.backend import load_model_by_name
    from genlm.bytes import BeamParams, ByteBeamState

    model = load_model_by_name(base.model.config.name_or_path, backend="hf")
    ends = [base.tokenizer.eos_token.encode()]
    for width, prune in ((5, 0.05), (5, 0.0), (10, 0.0)):
        start = await ByteBeamState.initial(model, BeamParams(K=width, prune_threshold=prune, eos_byte_strings=ends))
        laws, seconds = [], []
        for prompt in SHORT:
            beam = await start.prefill(prompt.encode())
            logp = (await beam.logp_next()).ps
            laws.append(np.exp(np.append(logp[:256], logp[257])))
        for _ in range(2):
            beam = await start.prefill(text[: len(PROMPT)])
            before = time.process_time()
            for byte in text[len(PROMPT) :]:
                await beam.logp_next()
                beam = await (beam.prune() << byte)
            seconds.append(time.process_time() - before)
        line(f"genlm K={width}, prune {prune}", seconds, laws, exact)
        await start.cleanup()


def llama(d: int, blocks: int, wide: int, heads: int, kv_heads: int) -> LlamaForCausalLM:
    """A random Llama with V = 131,072, float32; weights are filled in place, so that a large one takes seconds."""
    config = LlamaConfig(
        vocab_size=BIG, hidden_size=d, intermediate_size=wide, num_hidden_layers=blocks, num_attention_heads=heads,
        num_key_value_heads=kv_heads, tie_word_embeddings=True, pad_token_id=0,
    )  # fmt: skip
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model = model.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.uniform_(-0.02, 0.02, generator=generator)
        model.model.rotary_emb = type(model.model.rotary_emb)(config)
    model.tie_weights()
    return model.eval()


def made_up() -> TokenBytes:
    """A table of as many random byte strings as there are tokens."""
    generator = np.random.default_rng(0)
    spelled = {bytes([byte]) for byte in range(256)}
    while len(spelled) < BIG:
        spelled.add(bytes(generator.integers(32, 123, generator.integers(2, 9)).tolist()))
    table, order = sorted(spelled), generator.permutation(BIG)
    unused: Any = None
    by_id = dict(zip(order.tolist(), table, strict=True))
    return TokenBytes(
        tuple(by_id[i] for i in range(BIG)), b"", "BPE", True, unused, unused, table, order.astype(np.int64)
    )


class Flat:
    """A tree of contexts whose model costs nothing: one law for all of them. count: laws that were asked for."""

    def __init__(self) -> None:
        logits = np.random.default_rng(0).normal(size=BIG) * 3
        self._logp = (logits - np.logaddexp.reduce(logits)).astype(np.float32)
        self.root, self.count = Node(None, 0), 0

    def child(self, node: Node, token: int) -> Node:
        return Node(node, token)

    def laws(self, nodes: Any) -> list[np.ndarray]:
        self.count += len(nodes)
        return [self._logp] * len(nodes)

    def logp(self, steps: Any) -> list[float]:
        return [float(self._logp[token]) for _, token in steps]


def tekken_laws() -> dict[str, float]:
    """Milliseconds per byte of whole laws under tekken's rules by support, cold and warm; prints them. Empty without it."""
    found = importlib.util.find_spec("mistral_common")
    if found is None or found.origin is None:
        print("  mistral-common is not installed here (pip install mistral-common): no figures with tekken's rules")
        return {}
    from shiftscope.core.bytes import tokenizer_files

    path = Path(found.origin).parent / "data" / "tekken_240911.json"
    tokens = token_bytes.read(tokenizer_files.wrapped(path), BIG)
    texts = [text.encode()[:80] for text in docs.documentation("held out") if 200 < len(text) < 1500][:3]
    each: dict[str, float] = {}
    for support in ("unmasked", "canonical"):
        tree, rules = Flat(), canonical.validity(tokens)
        engine = Engine(tree, tokens, rules, (2,), support)
        spent: dict[str, list[float]] = {"cold": [], "warm": []}
        for text in texts:
            for state in spent:
                start = time.process_time()
                law = ByteLaw(engine, text[:20])
                for byte in text[20:]:
                    law.law()
                    law.push(byte)
                spent[state].append(1e3 * (time.process_time() - start) / len(text[20:]))
        for state, values in spent.items():
            each[f"{support}, {state}"] = statistics.median(values)
            most = max(values)
            print(
                f"  {support + ', ' + state:24}{each[f'{support}, {state}']:8.2f} ms per byte, {most:.2f} in the worst text"
            )
    return each


def vocabulary(name: str, model: Any, tokens: TokenBytes) -> tuple[float, float]:
    """Work on the vocabulary as a share of a one-token forward with its log-softmax, and that forward's ms; prints both."""
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
        engine: Any = Engine(tree, tokens, rules, (0,), "unmasked")

        def work() -> None:
            node.masses = None
            byte_law.law_at(engine, [Context(0, node, (), 0.0)], b"")

        def many(run: Callable[[], Any], times: int = 8) -> None:
            for _ in range(times):
                run()

        seconds = turns({"forward": lambda: many(forward), "work": lambda: many(work)})
    share = ratio(seconds, "work", "forward")
    each = {key: 125 * statistics.median(values) for key, values in seconds.items()}  # ms of one of 8
    print(f"  {name:38}{each['forward']:8.2f} ms forward, {each['work']:5.2f} ms vocabulary: {share:.2%} of it")
    return share, each["forward"]


def main() -> None:
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    base = checkpoints.load("docs-base")
    print(f"load average {os.getloadavg()[0]:.1f}; CPU time, one thread")
    tokens, slower = generation(base)
    print("laws beside the exact law of all tokenisations, docs-base")
    peers(base)
    print("vocabulary work of one context")
    vocabulary("docs-base, V = 4,096", base.model, ByteModel(base).engine.tokens)
    table = made_up()
    small, _ = vocabulary(f"small random Llama, V = {BIG:,}", llama(512, 8, 1536, 8, 8), table)
    gc.collect()
    shape = f"shape of Llama-3.2-1B, V = {BIG:,}"
    big, forward = vocabulary(shape, llama(2048, 16, 8192, 32, 8), table)
    print(f"whole laws of a growing text with tekken, V = {BIG:,}, without the model")
    whole = tekken_laws()
    rows = [
        ("new tokens per byte, canonical", tokens, 1.05),
        ("cover sampling, times generate", slower, 1.1),
        ("vocabulary work of a context, share of the small Llama's forward", small, 0.1),
        ("vocabulary work of a context, share of the 1B shape's forward", big, 0.1),
    ]
    rows += [
        (f"whole law, {name}, share of the 1B shape's forward", value / forward, 0.1) for name, value in whole.items()
    ]
    for said, value, bar in rows:
        print(f"{said}: {value:.3f} (target {bar}): {'holds' if value <= bar else 'does not hold'}")
    print(f"load average {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
