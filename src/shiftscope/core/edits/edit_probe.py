"""Probing a model with marked words: raw ids drawn into slots under a decoder, and the exact masses of a slot.

Two ways to draw. `slots`: the output up to the slot is given, a copy of the passage, and the model writes the slot alone;
any causal model can be asked so, and what it may write has an exact probability. `passages`: the model writes the whole
passage again, and slots are found in it by the words around them.

Source: arXiv 2601.14658 (the editing task); arXiv 2410.09303 (the byte-exact decoder).
Deviation: the way `slots`; one marked word per prompt there, so that no other slot decides what is written.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from shiftscope.core import decode
from shiftscope.core.bytes import byte_law, canonical
from shiftscope.core.bytes.byte_law import ByteLaw, Engine
from shiftscope.core.bytes.canonical import Support, Validity
from shiftscope.core.bytes.token_bytes import TokenBytes
from shiftscope.core.bytes.token_tree import Node, TokenTree
from shiftscope.core.checkpoints import Checkpoint
from shiftscope.core.decode import Sampling, end_ids
from shiftscope.core.edits import phantom
from shiftscope.core.edits.artefacts import LABELS, Affixes
from shiftscope.core.edits.edit_prompts import Prompt, slots_of
from shiftscope.core.edits.edit_slots import CLOSE, OPEN, Cut, Spelled
from shiftscope.core.edits.phantom import Mask, Masses
from shiftscope.core.randomness import uniforms

if TYPE_CHECKING:
    from tokenizers import Tokenizer

ROOM = 1.5  # tokens that an output may have for each of the passage
BYTES_PER_TOKEN = 6  # bytes that a byte decoder may write for each token of the longest slot
BYTES: tuple[bytes, ...] = tuple(bytes([byte]) for byte in range(256))


@dataclass(frozen=True)
class Drawing:
    """How a decoder draws.

    temperature, top_p, top_k: shape of each law (top_k 0: all tokens); the byte-exact decoder draws at temperature 1 from
    the whole law. samples: draws of each slot (or passage). max_slot_tokens: longest slot. seed: of the draws and of the
    choice of words.
    """

    temperature: float = 1.0
    top_p: float = 0.9
    top_k: int = 50
    samples: int = 8
    max_slot_tokens: int = 12
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.temperature > 0 or not 0 < self.top_p <= 1 or self.top_k < 0:
            raise ValueError(
                f"temperature {self.temperature}, top_p {self.top_p} and top_k {self.top_k}: need temperature > 0, "
                f"0 < top_p <= 1 and top_k >= 0 (0 keeps all tokens)"
            )
        if self.samples < 1 or self.max_slot_tokens < 1:
            raise ValueError(
                f"samples {self.samples} and max_slot_tokens {self.max_slot_tokens}: both must be at least 1"
            )

    @property
    def shape(self) -> phantom.Shape | None:
        """From logits to the law that is drawn from; None where nothing is shaped."""
        if (self.temperature, self.top_p, self.top_k) == (1.0, 1.0, 0):
            return None
        return functools.partial(decode.shaped, temperature=self.temperature, top_p=self.top_p, top_k=self.top_k)

    def sampling(self, max_new_tokens: int) -> Sampling:
        """The settings of `core/decode.py` for one draw of each context."""
        return Sampling(self.temperature, self.top_p, max_new_tokens=max_new_tokens, seed=self.seed)


@dataclass(frozen=True)
class Decoder:
    """What may be written. kind: any token, any but the forbidden ids, a canonical continuation in slots, or bytes."""

    kind: str
    forbidden: Mask | None = None


@dataclass
class Probe:
    """A model that is asked. support: of the byte-exact decoder's law.

    bare: its vocabulary for what is written into an output: nothing is put in front, and no added token is read in it.
    """

    checkpoint: Checkpoint
    tokens: TokenBytes
    drawing: Drawing
    support: Support = "canonical"
    _trees: dict[int, TokenTree] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self.bare = replace(self.tokens, lead=b"", plain=_without_added(self.tokens.plain))
        self.rules: Validity = canonical.validity(self.bare)
        self.byte_rules: Validity = canonical.validity(self.bare, self.support)
        spelled = self.tokens.spelled
        self.closing = [token for token, text in enumerate(spelled) if text is not None and CLOSE in text]

    def placed(self, context: Sequence[int]) -> tuple[TokenTree, Node]:
        """A tree of contexts and the node of these ids in it; there is one tree for each first id."""
        first = context[0]
        if first not in self._trees:
            self._trees[first] = TokenTree(self.checkpoint, [first])
        return self._trees[first], self._trees[first].after(context[1:])

    def slots(self, prompts: Sequence[Prompt], decoder: Decoder, numbers: Sequence[int]) -> list[list[Cut | str]]:
        """Draws of the first slot of each prompt, or why one cannot be scored. numbers: of the prompts, key the draws."""
        if self._by_bytes(decoder):
            return [self._byte_slots(prompt, number) for prompt, number in zip(prompts, numbers, strict=True)]
        samples = self.drawing.samples
        contexts = [prompt.context for prompt in prompts for _ in range(samples)]
        rows = self._sampled(contexts, self._documents(numbers), decoder, self.drawing.max_slot_tokens, inside=True)
        cuts = [_closed_slot(Spelled.of(row, self.tokens.spelled)) for row in rows]
        return [cuts[start : start + samples] for start in range(0, len(cuts), samples)]

    def passages(
        self, prompts: Sequence[Prompt], decoder: Decoder, numbers: Sequence[int]
    ) -> list[list[list[Cut | str]]]:
        """For each prompt its draws of the whole passage, each as what stands in every slot."""
        samples, documents = self.drawing.samples, self._documents(numbers)
        contexts = [prompt.ids for prompt in prompts for _ in range(samples)]
        longest = max(self.room(prompt.passage.text) for prompt in prompts)
        if self._by_bytes(decoder):
            texts = [
                self._byte_text(prompt.ids, self._documents([number]), BYTES_PER_TOKEN * longest, closes=False)
                for prompt, number in zip(prompts, numbers, strict=True)
            ]
            rows = [Spelled.of(text, BYTES) for some in texts for text in some]
        else:
            drawn = self._sampled(contexts, documents, decoder, longest, inside=False)
            rows = [Spelled.of(row, self.tokens.spelled) for row in drawn]
        cuts = [slots_of(row, prompts[place // samples].passage) for place, row in enumerate(rows)]
        return [cuts[start : start + samples] for start in range(0, len(cuts), samples)]

    def _documents(self, numbers: Sequence[int]) -> list[int]:
        samples = self.drawing.samples
        return [number * samples + sample for number in numbers for sample in range(samples)]

    def _by_bytes(self, decoder: Decoder) -> bool:
        """Whether bytes are drawn one by one. Under support "all" their law is that of sampled tokens: these are drawn."""
        return decoder.kind == "bytes" and self.support != "all"

    def _sampled(
        self,
        contexts: Sequence[Sequence[int]],
        documents: Sequence[int],
        decoder: Decoder,
        longest: int,
        *,
        inside: bool,
    ) -> list[tuple[int, ...]]:
        whole = decoder.kind == "bytes"  # the law as it is: a text has the mass of all its spellings
        sampling = (
            Sampling(1.0, max_new_tokens=longest, seed=self.drawing.seed) if whole else self.drawing.sampling(longest)
        )
        return decode.sample(
            self.checkpoint, contexts, documents, sampling, top_k=0 if whole else self.drawing.top_k,
            allowed=self._allowed(contexts, decoder, inside=inside), further_ends=self.closing if inside else (),
        )  # fmt: skip

    def room(self, passage: str) -> int:
        """How many tokens an output may have."""
        return int(ROOM * len(self.tokens.encode(passage))) + 4 * self.drawing.max_slot_tokens

    def _allowed(self, contexts: Sequence[Sequence[int]], decoder: Decoder, *, inside: bool) -> decode.Allowed | None:
        """The mask of a decoder for `core/decode.py`. inside: every draw is a slot; else slots are found by brackets."""
        if decoder.kind in ("any", "bytes"):
            return None
        if decoder.forbidden is not None:
            kept = ~decoder.forbidden
            return lambda row, ids: kept

        @functools.lru_cache(maxsize=len(contexts))
        def mask_of(context: tuple[int, ...]) -> phantom.Allowed:
            return phantom.canonical_in(self.rules, context, self.tokens.spelled_V)

        def canonical_only(row: int, ids: Sequence[int]) -> Mask | None:
            if inside:
                return mask_of(tuple(contexts[row]))(ids)
            slot = self._open_slot(ids)
            return None if slot is None else mask_of((*contexts[row], *ids[:slot]))(ids[slot:])

        return canonical_only

    def _open_slot(self, ids: Sequence[int]) -> int | None:
        """Where the ids of a slot begin that is open at the end of an output; None outside slots."""
        for place in range(len(ids) - 1, -1, -1):
            text = self.tokens.spelled[ids[place]] or b""
            if OPEN in text or CLOSE in text:
                return place + 1 if text.rfind(OPEN) > text.rfind(CLOSE) else None
        return None

    def engine(self, context: Sequence[int]) -> Engine:
        """The byte-level law of what follows these ids."""
        (tree, stem), ends = self.placed(context), end_ids(self.checkpoint)
        return Engine(tree, self.bare, self.byte_rules, ends, self.support, tuple(context), stem)

    def _byte_slots(self, prompt: Prompt, number: int) -> list[Cut | str]:
        documents = self._documents([number])
        limit = BYTES_PER_TOKEN * self.drawing.max_slot_tokens
        texts = self._byte_text(prompt.context, documents, limit, closes=True)
        return [_closed_slot(Spelled.of(text, BYTES)) for text in texts]

    def _byte_text(
        self, context: Sequence[int], documents: Sequence[int], limit: int, *, closes: bool
    ) -> list[list[int]]:
        """Bytes drawn one by one from their exact law, up to a closing bracket (closes), the text's end or the limit."""
        engine, room = self.engine(context), self._trees[context[0]].limit
        laws = [ByteLaw(engine, undo=0) for _ in documents]
        texts: list[list[int]] = [[] for _ in documents]
        alive = list(range(len(documents)))
        for position in range(limit):
            draws = uniforms(self.drawing.seed, [documents[row] for row in alive], position)
            chosen = []
            for row, uniform in zip(alive, draws, strict=True):
                law = laws[row].law()
                outcome = byte_law.outcome(np.append(law.p, law.end), float(uniform))
                if outcome != byte_law.END:
                    texts[row].append(outcome)
                    if not (closes and bytes([outcome]) == CLOSE) and laws[row].depth + 1 < room:
                        chosen.append((row, outcome))
            alive = [row for row, _ in chosen]
            byte_law.extend([laws[row] for row in alive], [outcome for _, outcome in chosen])
            if not alive:
                break
        return texts

    def masses(self, prompt: Prompt, decoder: Decoder, affixes: Affixes) -> Masses:
        """The exact masses of a prompt's first slot under a decoder; bytes have no phantoms, only the word."""
        reference = prompt.references[0].bracketed
        if decoder.kind == "bytes":
            p = phantom.byte_mass(ByteLaw(self.engine(prompt.context)), reference)
            return Masses(p, 0.0, (0.0,) * len(LABELS), 0.0)
        judge = self._allowed([prompt.context], decoder, inside=True)
        allowed = None if judge is None else functools.partial(judge, 0)
        return phantom.masses(
            *self.placed(prompt.context), self.tokens, reference, shape=self.drawing.shape, allowed=allowed,
            affixes=affixes,
        )  # fmt: skip


def _without_added(plain: Tokenizer) -> Tokenizer:
    """A tokenizer that reads no added tokens in a text."""
    from tokenizers import Tokenizer

    spec = json.loads(plain.to_str())
    return Tokenizer.from_str(json.dumps({**spec, "added_tokens": []})) if spec["added_tokens"] else plain


def _closed_slot(spelled: Spelled) -> Cut | str:
    """What stands in front of the closing bracket of an output that began in a slot."""
    close = spelled.text.find(CLOSE)
    if close < 0:
        return "the slot is not closed"
    return "the brackets are lost" if OPEN in spelled.text[:close] else spelled.slot(0, close)
