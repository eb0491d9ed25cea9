"""A causal model as an exact model of bytes: laws, scores and draws for texts and middles that begin anywhere.

Source: arXiv 2410.09303 (equivalent byte-level law; canonical support, masked and fast variants).
Deviation: temperature acts on bytes in mode `bytes` (another law than temperature on tokens) and on the tokens after the
prompt in mode `cover`, which draws one token sequence for the prompt's end and goes on with ordinary sampling.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from shiftscope.core.answers import Loading
from shiftscope.core.bytes import byte_law
from shiftscope.core.bytes.byte_drawing import Drawing, ending
from shiftscope.core.bytes.byte_law import END, Asked, ByteLaw, Engine, Law
from shiftscope.core.bytes.canonical import Support
from shiftscope.core.bytes.infilling import Infiller, Infilling
from shiftscope.core.bytes.token_tree import TokenTree
from shiftscope.core.checkpoints import Checkpoint, opened
from shiftscope.core.decode import Sampling
from shiftscope.core.randomness import uniforms

LN2 = math.log(2)


@dataclass(frozen=True)
class ByteSampling(Drawing):
    """How bytes are drawn.

    mode: bytes draws each byte from its exact law; cover draws one token sequence for the prompt's end, then tokens, one
    forward per token. error: largest total variation of a byte's law to the exact one that is allowed, to save forwards (mode
    bytes; each law certifies its own). temperature: 0 is greedy. samples: answers per prompt. max_new_bytes: longest answer
    (mode cover: so many tokens). stop: texts that end an answer (mode bytes; left out of it). seed: of the draws.
    """

    mode: Literal["bytes", "cover"] = "bytes"
    error: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode not in ("bytes", "cover"):
            raise ValueError(f"mode is {self.mode!r}: it must be bytes or cover")
        if not 0 <= self.error < 1:
            raise ValueError(f"error is {self.error}: a total variation from 0 (exact) to below 1 is needed")
        if self.mode == "cover" and (self.stop or self.error):
            raise ValueError(
                f"stop is {self.stop!r} and error {self.error} in mode cover, which draws tokens: both need mode bytes"
            )


@dataclass(frozen=True)
class Drawn:
    """One answer.

    stopped: given, end, stop, suffix (a middle that came to it), length or context. logp_nats: of its bytes, and of the end
    where it ended. lost_mean: mean share of non-canonical mass before its bytes. error_max: largest certified error of their
    laws. The last three are NaN in mode cover, which draws tokens.
    """

    answer: bytes
    stopped: Literal["given", "end", "stop", "suffix", "length", "context"]
    logp_nats: float
    lost_mean: float
    error_max: float

    @property
    def text(self) -> str:
        """The answer as text; a character that is not whole becomes U+FFFD."""
        return self.answer.decode("utf-8", "replace")


class ByteModel:
    """A causal model as an exact model of bytes.

    model: path, hub id, zoo name or a loaded Checkpoint. support: canonical (exact over canonical encodings), unmasked
    (canonical up to the last token, which is free) or all (every token sequence; for short texts).
    opening: token ids in front of every text, such as a fill-in-the-middle frame; default: the tokenizer's own.
    spelt: special tokens that a text may name, such as those of a chat template; one that ends texts then ends none.
    """

    def __init__(
        self,
        model: str | Checkpoint,
        *,
        support: Support = "canonical",
        opening: Sequence[int] | None = None,
        spelt: Sequence[str] = (),
        loading: Loading = Loading(),
    ) -> None:
        self.checkpoint = opened(model, dtype=loading.dtype, device=loading.device)
        self.engine: Engine = byte_law.engine_of(self.checkpoint, support, opening=opening, spelt=spelt)

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

    def infiller(self, how: Infilling = Infilling()) -> Infiller:
        """The frame that middles are asked for in, once for any number of them."""
        return Infiller(self.engine, self.checkpoint, how)

    def middle(self, prefix: str | bytes, suffix: str, how: Infilling = Infilling()) -> ByteLaw:
        """The growing text whose next bytes are the middle between a prefix that may end anywhere and a suffix."""
        return ByteLaw(*self.infiller(how).begun(prefix, suffix))

    def sample(
        self, prompts: Sequence[str | bytes], sampling: ByteSampling = ByteSampling(), *, documents: Sequence[int] = ()
    ) -> list[Drawn]:
        """One answer per prompt, drawn together. documents: the number of each prompt, which keys its random numbers.

        An answer does not depend on how prompts are batched.
        """
        asked = [(self.engine, self.engine.tokens.normalised(prompt)) for prompt in prompts]
        return self.draw(asked, [b""] * len(asked), sampling, documents)

    def infill(
        self,
        pairs: Sequence[tuple[str | bytes, str]],
        sampling: ByteSampling = ByteSampling(),
        *,
        how: Infilling = Infilling(),
        documents: Sequence[int] = (),
    ) -> list[Drawn]:
        """One middle per pair of prefix and suffix, drawn together; the prefix may end anywhere. documents: as in `sample`."""
        frame = self.infiller(how)
        asked = [frame.begun(prefix, suffix) for prefix, suffix in pairs]
        return self.draw(asked, [frame.resumed(suffix) for _, suffix in pairs], sampling, documents)

    def draw(
        self, asked: Asked, resumed: Sequence[bytes], sampling: ByteSampling, documents: Sequence[int]
    ) -> list[Drawn]:
        """One answer per begun text, drawn together. resumed: what ends each one beside the stop texts; empty for nothing."""
        numbers = list(documents) or list(range(len(asked)))
        if sampling.mode == "bytes":
            return _drawn(asked, resumed, numbers, sampling)
        tokens = Sampling(sampling.temperature, max_new_tokens=sampling.max_new_bytes, seed=sampling.seed)
        found = byte_law.continued_each(asked, self.checkpoint, numbers, tokens)
        drawn = []
        for (answer, ended), suffix in zip(found, resumed, strict=True):
            kept, came, _ = answer.partition(suffix) if suffix else (answer, b"", b"")
            why: Any = "suffix" if came else "end" if ended else "length"
            drawn.append(Drawn(kept, why, math.nan, math.nan, math.nan))
        return drawn


@dataclass
class _Writing:
    """An answer that is being drawn. resumed: what ends it beside the stop texts."""

    law: ByteLaw
    begun: int
    resumed: bytes
    logp: float = 0.0
    lost: float = 0.0
    error: float = 0.0
    count: int = 0

    def follow(self, law: Law, outcome: int, sampling: ByteSampling) -> Drawn | None:
        """Take one outcome, drawn from this law; the whole answer where it ends here."""
        self.logp += math.log(law.end if outcome == END else law.p[outcome])
        self.lost, self.error, self.count = self.lost + law.lost, max(self.error, law.error), self.count + 1
        answer = self.law.text[self.begun :]
        if outcome == END:
            return self._whole(answer, "end")
        answer += bytes([outcome])
        if stop := ending(answer, sampling.stop):
            return self._whole(answer.removesuffix(stop), "stop")
        if self.resumed and answer.endswith(self.resumed):
            return self._whole(answer.removesuffix(self.resumed), "suffix")
        if self.count == sampling.max_new_bytes:
            return self._whole(answer, "length")
        tree = self.law.engine.tree
        full = isinstance(tree, TokenTree) and self.law.depth + 1 >= tree.limit
        return self._whole(answer, "context") if full else None

    def _whole(self, answer: bytes, why: Any) -> Drawn:
        return Drawn(answer, why, self.logp, self.lost / self.count, self.error)


def _drawn(asked: Asked, resumed: Sequence[bytes], numbers: Sequence[int], sampling: ByteSampling) -> list[Drawn]:
    laws = byte_law.begin_each(asked, undo=0, error=sampling.error)
    writings = [_Writing(law, len(text), ends) for law, (_, text), ends in zip(laws, asked, resumed, strict=True)]
    found: dict[int, Drawn] = {}
    alive = list(range(len(laws)))
    for position in range(sampling.max_new_bytes):
        draws = uniforms(sampling.seed, [numbers[row] for row in alive], [position] * len(alive))
        chosen: dict[int, int] = {}
        for row, uniform in zip(alive, draws, strict=True):
            law = laws[row].law()
            outcome = choose(law, float(uniform), sampling.temperature)
            drawn = writings[row].follow(law, outcome, sampling)
            if drawn is None:
                chosen[row] = outcome
            else:
                found[row] = drawn
        alive = list(chosen)
        byte_law.extend([laws[row] for row in alive], list(chosen.values()))
        if not alive:
            break
    return [found[row] for row in range(len(laws))]


def choose(law: Law, uniform: float, temperature: float = 1.0) -> int:
    """The drawn byte, or END, by inverse CDF; temperature 0 is the most probable one."""
    return byte_law.outcome(np.append(law.p, law.end), uniform, temperature)
