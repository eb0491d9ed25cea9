"""Bytes: draw and score text byte by byte from a token model, exactly, with prompts that end anywhere.

A prompt that ends inside a word, after a blank or inside a character biases ordinary prompting, because the tokenizer
would have cut the whole text elsewhere. Here every token sequence that spells the prompt counts with its probability.

Source: arXiv 2410.09303 (equivalent byte-level law; canonical support, masked and fast variants).
Deviation: temperature acts on bytes in mode `bytes` (another law than temperature on tokens) and on the tokens after the
prompt in mode `cover`, which draws one token sequence for the prompt's end and goes on with ordinary sampling; the mass of
sequences that are not canonical is a figure, not normalised away.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from shiftscope.core import answers, byte_law, statistics
from shiftscope.core.answers import Loading, Texts
from shiftscope.core.byte_law import END, ByteLaw, Engine, Law
from shiftscope.core.canonical import Stability, Support, stability
from shiftscope.core.checkpoints import Checkpoint, opened
from shiftscope.core.corpus import Text
from shiftscope.core.decode import Sampling
from shiftscope.core.parts import Parts
from shiftscope.core.randomness import uniforms
from shiftscope.core.result import Figure, Panel, Result

LN2 = math.log(2)
ROWS = pa.schema(
    [
        ("text", pa.int32()), ("sample", pa.int32()), ("prompt", pa.string()), ("answer", pa.string()),
        ("raw", pa.binary()), ("n_bytes", pa.int32()), ("stopped", pa.string()), ("logp_nats", pa.float64()),
        ("lost_mean", pa.float64()), ("given", pa.bool_()), ("forwards", pa.int32()), ("positions", pa.int32()),
    ]
)  # fmt: skip


@dataclass(frozen=True)
class ByteSampling:
    """How bytes are drawn.

    mode: bytes draws each byte from its exact law; cover draws one token sequence for the prompt's end, then tokens, one
    forward per token. temperature: 0 is greedy. samples: answers per prompt. max_new_bytes: longest answer (mode cover:
    so many tokens). stop: texts that end an answer (mode bytes; left out of it). seed: of the draws.
    """

    mode: Literal["bytes", "cover"] = "bytes"
    temperature: float = 1.0
    samples: int = 1
    max_new_bytes: int = 256
    stop: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if self.mode not in ("bytes", "cover"):
            raise ValueError(f"mode is {self.mode!r}: it must be bytes or cover")
        if self.temperature < 0 or self.samples < 1 or self.max_new_bytes < 1:
            raise ValueError(
                f"temperature {self.temperature}, samples {self.samples} and max_new_bytes {self.max_new_bytes}: need "
                f"temperature >= 0 and at least 1 of the others"
            )
        if self.stop and (self.mode == "cover" or not all(self.stop)):
            raise ValueError(f"stop is {self.stop!r}: texts that stop must not be empty and need mode bytes")


@dataclass(frozen=True)
class Drawn:
    """One answer. stopped: end, stop, length or context. logp_nats: of its bytes, and of the end where it ended (NaN in mode
    cover, which draws tokens). lost_mean: mean share of non-canonical mass before its bytes."""

    answer: bytes
    stopped: Literal["end", "stop", "length", "context"]
    logp_nats: float
    lost_mean: float

    @property
    def text(self) -> str:
        """The answer as text; a character that is not whole becomes U+FFFD."""
        return self.answer.decode("utf-8", "replace")


class ByteModel:
    """A causal model as an exact model of bytes.

    model: path, hub id, zoo name or a loaded Checkpoint. support: canonical (exact over canonical encodings), unmasked
    (canonical up to the last token, which is free) or all (every token sequence; for short texts).
    opening: token ids in front of every text, such as a fill-in-the-middle frame; default: the tokenizer's own.
    """

    def __init__(
        self,
        model: str | Checkpoint,
        *,
        support: Support = "canonical",
        opening: Sequence[int] | None = None,
        loading: Loading = Loading(),
    ) -> None:
        self.checkpoint = opened(model, dtype=loading.dtype, device=loading.device)
        self.engine: Engine = byte_law.engine_of(self.checkpoint, support, opening=opening)

    def start(self, prefix: str | bytes = b"") -> ByteLaw:
        """A growing text: `push(byte)`, `pop(count)`, `law()`."""
        return ByteLaw(self.engine, self.engine.tokens.normalised(prefix))

    def law(self, prefix: str | bytes = b"") -> Law:
        """The law of the byte after a prefix, which may end anywhere."""
        return self.start(prefix).law()

    def laws(self, text: str | bytes) -> list[Law]:
        """The law before every byte of a text and after its last one, from one forward."""
        return byte_law.teacher_forced(self.engine, self.engine.tokens.normalised(text))

    def logp(self, texts: Sequence[str | bytes]) -> list[float]:
        """log P, in nats, that a text begins so, for each text: all of them in one forward."""
        prefixes = [self.engine.tokens.normalised(text) for text in texts]
        return [law.law().logp for law in byte_law.begin(self.engine, prefixes, undo=0)]

    def bits_per_byte(self, texts: Sequence[str | bytes], *, batch_size: int = 32) -> float:
        """Bits per byte of a corpus, −Σ log₂ P / bytes, without a loop over bytes. Raises ValueError without any byte."""
        total = sum(len(text.encode() if isinstance(text, str) else text) for text in texts)
        if not total:
            raise ValueError("bits per byte of no bytes: give at least one text that is not empty")
        groups = (texts[start : start + batch_size] for start in range(0, len(texts), batch_size))
        return -sum(sum(self.logp(group)) for group in groups) / LN2 / total

    def sample(
        self, prompts: Sequence[str | bytes], sampling: ByteSampling = ByteSampling(), *, documents: Sequence[int] = ()
    ) -> list[Drawn]:
        """One answer per prompt, drawn together. documents: the number of each prompt, which keys its random numbers.

        An answer does not depend on how prompts are batched.
        """
        prefixes = [self.engine.tokens.normalised(prompt) for prompt in prompts]
        numbers = list(documents) or list(range(len(prefixes)))
        if sampling.mode == "cover":
            tokens = Sampling(sampling.temperature, max_new_tokens=sampling.max_new_bytes, seed=sampling.seed)
            found = byte_law.continued(self.engine, self.checkpoint, prefixes, numbers, tokens)
            return [Drawn(answer, "end" if ended else "length", math.nan, math.nan) for answer, ended in found]
        return _drawn(self, prefixes, numbers, sampling)


def _drawn(model: ByteModel, prefixes: Sequence[bytes], numbers: Sequence[int], sampling: ByteSampling) -> list[Drawn]:
    laws = byte_law.begin(model.engine, prefixes, undo=0)
    assert isinstance(model.engine.tree, byte_law.TokenTree)
    stops, limit = [stop.encode() for stop in sampling.stop], model.engine.tree.limit
    found: dict[int, Drawn] = {}
    logp, lost = [0.0] * len(laws), [0.0] * len(laws)
    alive = list(range(len(laws)))
    for position in range(sampling.max_new_bytes):
        draws = uniforms(sampling.seed, [numbers[row] for row in alive], [position] * len(alive))
        chosen: list[tuple[int, int]] = []
        for row, uniform in zip(alive, draws, strict=True):
            law = laws[row].law()
            outcome = choose(law, float(uniform), sampling.temperature)
            logp[row] += math.log(law.end if outcome == END else law.p[outcome])
            lost[row] += law.lost
            answer = laws[row].text[len(prefixes[row]) :]
            if outcome == END:
                found[row] = Drawn(answer, "end", logp[row], lost[row] / (position + 1))
                continue
            answer += bytes([outcome])
            ending = next((stop for stop in stops if answer.endswith(stop)), b"")
            full = position + 1 == sampling.max_new_bytes
            if ending or full or laws[row].depth + 1 >= limit:
                why: Any = "stop" if ending else "length" if full else "context"
                kept = answer.removesuffix(ending) if ending else answer
                found[row] = Drawn(kept, why, logp[row], lost[row] / (position + 1))
            else:
                chosen.append((row, outcome))
        alive = [row for row, _ in chosen]
        byte_law.extend([laws[row] for row in alive], [outcome for _, outcome in chosen])
        if not alive:
            break
    return [found[row] for row in range(len(laws))]


def choose(law: Law, uniform: float, temperature: float = 1.0) -> int:
    """The drawn byte, or END, by inverse CDF; temperature 0 is the most probable one."""
    return byte_law.outcome(np.append(law.p, law.end), uniform, temperature)


def bytes_(
    model: str | Checkpoint,
    *,
    prompts: Texts = None,
    limit: int | None = None,
    support: Support = "canonical",
    sampling: ByteSampling = ByteSampling(),
    loading: Loading = Loading(batch_size=8),
    parts: Parts | None = None,
    advance: answers.Advance | None = None,
) -> Result:
    """Go on with prompts that end anywhere, byte by byte, by the exact law of the model; score given answers by it.

    model: the checkpoint (path, hub id, zoo name, or a loaded Checkpoint).
    prompts: jsonl, parquet or txt with a prompt per record; a record with an answer is scored, not continued; without,
        the prompts that ship with the checkpoint.
    limit: only the first records.
    support: canonical (exact over canonical encodings), unmasked (canonical up to the last token) or all (every token
        sequence, for short texts).
    Returns a Result whose table has one row per answer.
    Raises ValueError, in one sentence, for malformed prompts, text that the tokenizer changes, a text beyond the context.
    """
    if loading.compile:
        raise ValueError("compile is set: byte laws have nothing to compile; leave it out")
    byte_model = ByteModel(model, support=support, loading=loading)
    checkpoint, parts = byte_model.checkpoint, parts or Parts()
    settings = answers.provenance(
        checkpoint, prompts=prompts, limit=limit, support=support, sampling=asdict(sampling), loading=asdict(loading)
    )
    parts.settle(settings)
    texts = answers.corpus_of(prompts, checkpoint, limit)
    groups = [texts[start : start + loading.batch_size] for start in range(0, len(texts), loading.batch_size)]

    def measure(group: Sequence[Text]) -> dict[str, pa.Table]:
        return {"bytes": pa.Table.from_pylist(list(_rows(byte_model, group, sampling)), schema=ROWS)}

    named = None if advance is None else lambda done, total: advance("drawing bytes", done, total)
    rows = parts.map("bytes", groups, measure, advance=named, final=True)
    return summarise(rows["bytes"], fuzz=stability(byte_model.engine.tokens, texts=50), provenance=settings)


def _rows(model: ByteModel, texts: Sequence[Text], sampling: ByteSampling) -> Iterable[dict[str, Any]]:
    tree = model.engine.tree
    assert isinstance(tree, byte_law.TokenTree)
    asked = [(text, sample) for text in texts if text.answer is None for sample in range(sampling.samples)]
    before = tree.forwards, tree.positions
    numbers = [text.text * sampling.samples + sample for text, sample in asked]
    drawn = model.sample([text.prompt for text, _ in asked], sampling, documents=numbers) if asked else []
    cost = tree.forwards - before[0], tree.positions - before[1]
    for place, ((text, sample), one) in enumerate(zip(asked, drawn, strict=True)):
        spent = cost if place == 0 else (0, 0)  # of the batch, on its first row
        yield _row(text, sample, one.answer, one.stopped, one.logp_nats, one.lost_mean, spent)
    for text in texts:
        if text.answer is not None:
            prompt, answer = text.prompt.encode(), text.answer.encode()
            whole = model.engine.tokens.normalised(prompt + answer)
            laws = byte_law.teacher_forced(model.engine, whole, len(prompt))
            logp = laws[-1].logp - laws[0].logp
            lost = float(np.mean([law.lost for law in laws[:-1]])) if answer else 0.0
            yield _row(text, 0, answer, "given", logp, lost, (0, 0))


def _row(
    text: Text, sample: int, answer: bytes, stopped: str, logp: float, lost: float, cost: tuple[int, int]
) -> dict[str, Any]:
    return {
        "text": text.text, "sample": sample, "prompt": text.prompt, "answer": answer.decode("utf-8", "replace"),
        "raw": answer, "n_bytes": len(answer), "stopped": stopped, "logp_nats": None if math.isnan(logp) else logp,
        "lost_mean": None if math.isnan(lost) else lost, "given": stopped == "given", "forwards": cost[0],
        "positions": cost[1],
    }  # fmt: skip


def summarise(table: pa.Table, *, fuzz: Stability | None = None, provenance: dict[str, Any] | None = None) -> Result:
    """Figures, verdict and panels of a table of answers. fuzz: what the tokenizer's fuzz found, if it was run."""
    rows, figures, notes = table.to_pylist(), {}, []
    for given, name in ((True, "given"), (False, "drawn")):
        chosen = [row for row in rows if row["given"] == given and row["logp_nats"] is not None and row["n_bytes"]]
        if chosen:
            groups = [row["text"] for row in chosen]
            rate = [-row["logp_nats"] / LN2 / row["n_bytes"] for row in chosen]
            total = sum(row["n_bytes"] for row in chosen)
            low, high = statistics.bootstrap_mean(rate, groups)
            bits = -sum(row["logp_nats"] for row in chosen) / LN2 / total
            figures[f"{name}_bits_per_byte"] = Figure(bits, "bits/byte", total, min(low, bits), max(high, bits))
            lost = [row["lost_mean"] for row in chosen]
            figures[f"{name}_non_canonical_share"] = statistics.mean_figure(lost, groups, unit="share")
    drawn = [row for row in rows if not row["given"]]
    if drawn:
        figures["ended_share"] = statistics.share_figure(sum(row["stopped"] == "end" for row in drawn), len(drawn))
        n_bytes = sum(row["n_bytes"] for row in drawn)
        figures["answer_bytes"] = Figure(n_bytes, "count", len(drawn))
        if all(row["logp_nats"] is not None for row in drawn) and n_bytes:
            positions = sum(row["positions"] for row in drawn)
            figures["positions_per_byte"] = Figure(positions / n_bytes, "tokens/byte", n_bytes)
        else:
            notes.append("mode cover draws tokens: the probability of the drawn bytes is left out")
    verdict = [f"{len(drawn)} answers were drawn and {len(rows) - len(drawn)} given ones scored, byte by byte."]
    if fuzz is not None:
        exact = "exact" if fuzz.exact else "approximate"
        notes.append(
            f"canonical encodings of this tokenizer are known by {fuzz.mode}: {exact} in a fuzz of {fuzz.boundaries} token "
            f"boundaries, {100 * fuzz.unstable_share:.2g} % of which move with what follows"
        )
    shown = table.select(["text", "sample", "prompt", "answer", "stopped", "logp_nats", "lost_mean"])
    panel = Panel("Answers", "Prompts that end anywhere, and how the model goes on.", "table", shown)
    return Result("generate bytes", table, figures, provenance or {}, verdict, notes, [panel])
