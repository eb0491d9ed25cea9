"""Which token sequences a tokenizer's encoder can produce, decided from the left, one token at a time.

A `Validity` knows, in an immutable state, which tokens may follow so that the whole is the beginning of some canonical
encoding. `stability` fuzzes a tokenizer once and says whether that answer is exact for it.

Source: arXiv 2410.09303 (valid encodings). Pairs of BPE tokens: two neighbours are canonical exactly where no merge across
them fires before one side consumes the symbol at the seam (the spines of their merge trees).
Deviation: the paper re-encodes; here the merges of a pre-token decide, and the pre-tokenizer is asked only about classes
of characters, with witness continuations, because rules that look ahead (`\\s+(?!\\S)`) cut a text by what follows it.
Tokenizers with `ignore_merges` take a pre-token that is in the vocabulary as it is: a piece that no merge makes is then a whole
pre-token, and no other tokens spell that one.
"""

# V ids of the model

from __future__ import annotations

import json
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from shiftscope.core.bytes.added_words import AddedValidity, plain
from shiftscope.core.bytes.character_classes import WITNESSES, completions, compressed, pattern
from shiftscope.core.bytes.merge_pairs import Merges
from shiftscope.core.bytes.normal_form import NormalForm, begun_character, last_character
from shiftscope.core.bytes.token_bytes import MARK, TokenBytes, complete, step_types
from shiftscope.core.bytes.word_ends import WordEndValidity

Mask = NDArray[np.bool_]
Cuts = tuple[tuple[int, bool], ...]
State = Any  # hashable; made by a Validity, meant for it alone
Support = Literal["canonical", "unmasked", "all"]


class Validity(Protocol):
    """Reads a sequence of tokens from the left.

    exact: whether it accepts just the beginnings of canonical encodings. mode: how it judges (merges, words, window, all).
    """

    exact: bool
    mode: str
    start: State

    def allows(self, state: State, token: int) -> bool:
        """Whether some canonical encoding goes on with this token; never for one without bytes."""

    def step(self, state: State, token: int) -> State | None:
        """The state after one more token; None where `allows` says no."""

    def row(self, state: State) -> Mask:
        """`allows` for every id [V]."""

    def closes(self, state: State) -> bool:
        """Whether the tokens so far are the encoding of a whole text: it may end here."""


def validity(tokens: TokenBytes, support: Support = "canonical") -> Validity:
    """The validity of a vocabulary's own kind: merges for BPE, words or a window elsewhere; any sequence for "all"."""
    if support == "all":
        return Anything(tokens)
    if tokens.trail:
        return WordEndValidity(tokens)
    spec = json.loads(tokens.plain.to_str())
    if tokens.family == "BPE" and (not tokens.added or finds_added(tokens, spec)):
        own: Validity = MergeValidity(tokens, spec)
        own = AddedValidity(tokens, own) if tokens.added else own
    else:
        own = WindowValidity(tokens, spec)
    return LedValidity(tokens, own) if tokens.lead else own


def finds_added(tokens: TokenBytes, spec: dict[str, Any]) -> bool:
    """Whether added tokens are read wherever their own bytes stand, with nothing in front of the stretches between them."""
    normalizer = tokens.plain.normalizer
    kept = normalizer is None or all(
        normalizer.normalize_str(each["content"]) == each["content"]
        for each in spec["added_tokens"]
        if each["normalized"]
    )
    return kept and not tokens.lead and all(map(plain, spec["added_tokens"]))


class Anything:
    """Every sequence of tokens that have bytes."""

    exact, mode = True, "all"

    def __init__(self, tokens: TokenBytes) -> None:
        self.start: State = ()
        self._row = tokens.spelled_V

    def allows(self, state: State, token: int) -> bool:
        return bool(self._row[token])

    def step(self, state: State, token: int) -> State | None:
        return state if self._row[token] else None

    def row(self, state: State) -> Mask:
        return self._row

    def closes(self, state: State) -> bool:
        return True


class LedValidity:
    """Another validity for a tokenizer that puts a lead (a dummy space) in front of every text but the empty one.

    State: that of the other, and whether nothing (0), just the lead (1) or more (2) was spelt. Some tokenizers put no lead in
    front of a blank, so that no text is spelt with the lead and a blank behind it.
    """

    def __init__(self, tokens: TokenBytes, own: Validity) -> None:
        self.own, self.exact, self.mode = own, own.exact, own.mode
        self._lead, self._spelled = tokens.lead, tokens.spelled
        ids = tokens.encode(" " + tokens.probe)
        found = b"".join(tokens.spelled[token] or b"" for token in ids if token < tokens.size)
        self._swallows = not found.startswith(tokens.lead + b" ")
        self.start: State = (own.start, 0)

    def allows(self, state: State, token: int) -> bool:
        return not self._doubles(state[1], token) and self.own.allows(state[0], token)

    def step(self, state: State, token: int) -> State | None:
        after = None if self._doubles(state[1], token) else self.own.step(state[0], token)
        only = state[1] == 0 and self._spelled[token] == self._lead
        return None if after is None else (after, 1 if only else 2)

    def row(self, state: State) -> Mask:
        found = self.own.row(state[0])
        if state[1] == 2 or not self._swallows:
            return found
        doubled = [self._doubles(state[1], token) for token in range(len(self._spelled))]
        return found & ~np.array(doubled)

    def closes(self, state: State) -> bool:
        return state[1] != 1 and self.own.closes(state[0])

    def _doubles(self, begun: int, token: int) -> bool:
        if not self._swallows or begun == 2:
            return False
        text = self._spelled[token] or b""
        return text.startswith(b" " if begun else self._lead + b" ")


class MergeValidity:
    """Canonical beginnings of a BPE: merges inside a pre-token, and cuts of the pre-tokenizer between them.

    State: the last token, the bytes since the last cut that nothing to come can move (tail), and for each token boundary
    inside the tail its place and whether its two neighbours may share a pre-token; then the begun character of byte tokens.
    exact: for a pre-tokenizer whose rules read a text from left to right by classes of characters (all common ones).
    """

    exact, mode = True, "merges"

    def __init__(self, tokens: TokenBytes, spec: dict[str, Any]) -> None:
        self.tokens, self.merges = tokens, Merges(tokens, spec["model"])
        self._normalizer = tokens.plain.normalizer
        self._form = NormalForm(tokens) if tokens.byte_level and self._normalizer is not None else None
        cutting = [
            name for name in step_types(spec, "pre_tokenizer") if name not in ("Sequence", "ByteLevel", "Metaspace")
        ]
        step = json.dumps(spec.get("pre_tokenizer"))
        splits = bool(cutting) or '"use_regex": true' in step or '"split": true' in step
        self._cutter = tokens.plain.pre_tokenizer if splits and not _is_void(tokens, spec) else None
        ignores = bool(spec["model"].get("ignore_merges")) and self._cutter is not None
        self._whole_V = tokens.spelled_V & ~self.merges.reachable_V & ignores
        self._whole_V[list(tokens.added)] = False
        self._taken = {tokens.spelled[token] for token in np.flatnonzero(self._whole_V).tolist()}
        self.start: State = (-1, b"", (), b"")
        self._fallback = {} if tokens.byte_level else self._byte_pieces()
        self._patterns: dict[bool, tuple[list[bytes], NDArray[np.int64]]] = {}
        self._flags: dict[tuple[Hashable, ...], tuple[bool, bool]] = {}
        self.row = lru_cache(maxsize=512)(self._row)
        self._trimmed = lru_cache(maxsize=65536)(self._trim)
        self._live = lru_cache(maxsize=65536)(self._is_live)

    def _byte_pieces(self) -> dict[int, int]:
        pieces = ((token, piece) for token, piece in enumerate(self.merges.pieces) if piece)
        return {token: int(piece[1:-1], 16) for token, piece in pieces if len(piece) == 6 and piece.startswith("<0x")}

    @cached_property
    def _characters(self) -> set[bytes]:
        """Characters that have a piece of their own: byte tokens never spell them."""
        own = {p.replace(MARK, " ").encode() for p in self.merges.pieces if p and len(p) == 1}
        return own | {MARK.encode()} if b" " in own else own

    def allows(self, state: State, token: int) -> bool:
        last, tail, cuts, begun = state
        text = self.tokens.spelled[token]
        if text is None or not (self.merges.reachable_V[token] or self._whole_V[token]):
            return False
        if last < 0 and not self._leads(text):
            return False
        if (self._fallback and self._begun(begun, token) is None) or not self._live(token):
            return False
        if self._form is not None and not self._form.after(tail, text):
            return False
        joins = last < 0 or self.merges.pair(last, token)
        if self._cutter is None:
            return joins
        kind = pattern(text, b"'" in tail[-3:] or "’".encode() in tail[-5:])
        apart, together = self._cut_of_class(tail, cuts, kind, self._torn(tail, cuts))
        return apart or (together and joins)

    def step(self, state: State, token: int) -> State | None:
        if not self.allows(state, token):
            return None
        last, tail, cuts, begun = state
        begun = (self._begun(begun, token) or b"") if self._fallback else b""
        if self._cutter is None:
            return (token, b"", (), begun)
        if tail:
            cuts = (*cuts, (len(tail), self.merges.pair(last, token)))
        return (token, *self._trimmed(tail + (self.tokens.spelled[token] or b""), cuts), begun)

    def closes(self, state: State) -> bool:
        _, tail, cuts, begun = state
        if begun or self._cutter is None:
            return not begun
        try:
            text = tail.decode()
        except UnicodeDecodeError:
            return False
        return self._agrees(self._boundaries(text), cuts, len(tail), self._torn(tail, cuts))

    @cached_property
    def _open_ended(self) -> list[int]:
        """Tokens that end inside a character."""
        pairs = [(token, text) for token, text in enumerate(self.tokens.spelled) if text and text[-1] >= 0x80]
        return [] if self._fallback else [token for token, text in pairs if begun_character(text)]

    @cached_property
    def _continuing(self) -> tuple[list[str], Mask]:
        """Pieces of a single byte inside a character, and which ids [V] begin with such a byte."""
        first_V = np.array([text is not None and 0x80 <= text[0] < 0xC0 for text in self.tokens.spelled])
        alone = [i for i in np.flatnonzero(first_V).tolist() if len(self.tokens.spelled[i] or b"") == 1]
        return [self.merges.pieces[token] or "" for token in alone], first_V

    def _is_live(self, token: int) -> bool:
        """Whether some token can go on with the character that this one begins; true where it begins none."""
        if self._fallback or not begun_character(self.tokens.spelled[token] or b""):
            return True
        pieces, first_V = self._continuing
        if any(self.merges.apart(token, piece) for piece in pieces):
            return True
        return bool((self.merges.row(token) & first_V).any())

    def _leads(self, text: bytes) -> bool:
        return text.startswith(self.tokens.lead) or self.tokens.lead.startswith(text)

    def _begun(self, begun: bytes, token: int) -> bytes | None:
        """The begun character after one more token of a byte-fallback vocabulary; None where it cannot be."""
        byte = self._fallback.get(token)
        if byte is None:
            return b"" if not begun else None
        ends = completions(begun + bytes([byte]))
        if ends is None:
            return None
        if ends == (b"",):
            return b"" if begun + bytes([byte]) not in self._characters else None
        return begun + bytes([byte])

    def _row(self, state: State) -> Mask:
        last, tail, cuts, begun = state
        joins = self.merges.row(last) if last >= 0 else self.merges.reachable_V
        mask = joins.copy()
        if self._cutter is not None:
            kinds, kind_V = self._classes(b"'" in tail[-3:] or "’".encode() in tail[-5:])
            torn = self._torn(tail, cuts)
            flags = np.array([self._cut_of_class(tail, cuts, kind, torn) for kind in kinds] + [(False, False)])
            mask = flags[kind_V, 0] | (flags[kind_V, 1] & joins)
        for token in self._open_ended:
            mask[token] &= self._live(token)
        if self._form is not None:
            mask &= self._form.row(last_character(tail))
        if last < 0 and self.tokens.lead:
            mask &= np.array([text is not None and self._leads(text) for text in self.tokens.spelled])
        if self._fallback:
            bytewise = np.zeros_like(mask)
            for token in self._fallback:
                bytewise[token] = mask[token] and self._begun(begun, token) is not None
            rest = mask.copy()
            rest[list(self._fallback)] = False
            mask = bytewise if begun else bytewise | rest
        return mask

    def _classes(self, raw: bool) -> tuple[list[bytes], NDArray[np.int64]]:
        """Distinct patterns of the vocabulary and which one each id has (the last, beyond all, for ids without bytes)."""
        if raw not in self._patterns:
            index: dict[bytes, int] = {}
            kind_V = np.full(self.tokens.size, -1)
            for token, text in enumerate(self.tokens.spelled):
                if text is not None and (self.merges.reachable_V[token] or self._whole_V[token]):
                    kind_V[token] = index.setdefault(pattern(text, raw), len(index))
            self._patterns[raw] = list(index), kind_V
        return self._patterns[raw]

    def _torn(self, tail: bytes, cuts: Cuts) -> tuple[tuple[int, int], ...]:
        """Stretches of the tail, of several tokens, that the tokenizer would take as one if they were a pre-token."""
        if not self._taken or not cuts:
            return ()
        places = [0, *(place for place, _ in cuts), len(tail)]
        return tuple(
            (low, high)
            for first, low in enumerate(places)
            for high in places[first + 2 :]
            if tail[low:high] in self._taken
        )

    def _cut_of_class(
        self, tail: bytes, cuts: Cuts, text: bytes, torn: tuple[tuple[int, int], ...]
    ) -> tuple[bool, bool]:
        """Whether some continuation cuts before `text`, and whether some does not, with no cut inside it and the past kept."""
        short, moved = compressed(tail, cuts)
        if torn:
            place = dict(
                zip((0, *(p for p, _ in cuts), len(tail)), (0, *(p for p, _ in moved), len(short)), strict=True)
            )
            torn = tuple((place[low], place[high]) for low, high in torn)
        key = short, moved, text, torn
        if key not in self._flags:
            seam, whole, found = len(short), short + text, [False, False]
            for boundaries in self._continued(whole):
                fits = self._agrees(boundaries, moved, seam, torn)
                if fits and not any(seam < place < len(whole) for place in boundaries):
                    found[0 if seam in boundaries or not seam else 1] = True
                if all(found) or (found[0] and not seam):
                    break
            self._flags[key] = found[0], found[1]
        return self._flags[key]

    @staticmethod
    def _agrees(boundaries: frozenset[int], cuts: Cuts, end: int, torn: tuple[tuple[int, int], ...]) -> bool:
        """Whether tokens with these seams fit a pre-tokenizer's boundaries up to `end`; no torn stretch is a pre-token."""
        seams = {place for place, _ in cuts}
        inside = {place for place in boundaries if 0 < place < end}
        if not inside <= seams or not all(joins or place in inside for place, joins in cuts):
            return False
        return not any(
            (low in inside or not low) and high in boundaries and not any(low < place < high for place in inside)
            for low, high in torn
        )

    def _continued(self, text: bytes) -> Any:
        """The pre-tokenizer's boundaries (byte places) in text followed by each witness; nothing where it is no UTF-8."""
        try:
            whole, rest = complete(text)
        except ValueError:
            return
        ends = completions(rest) if rest else (b"",)
        for end in ends or ():
            for witness in _witnesses(whole) if not rest else ("", "a"):
                yield self._boundaries((whole + rest + end).decode() + witness)

    def _boundaries(self, text: str) -> frozenset[int]:
        normal = text if self._normalizer is None else self._normalizer.normalize_str(text)
        if len(normal) != len(text):
            normal = text
        starts = [span[0] for _, span in self._cutter.pre_tokenize_str(normal)]  # type: ignore[union-attr]
        if text.isascii():
            return frozenset((*starts, len(text)))
        places = np.cumsum([0, *(len(character.encode()) for character in text)])
        return frozenset(places[[*starts, len(text)]].tolist())

    def _trim(self, tail: bytes, cuts: Cuts) -> tuple[bytes, Cuts]:
        """The tail from the last cut on up to which nothing that may follow changes the boundaries."""
        every = list(self._continued(tail))
        inside = [{place for place in boundaries if place < len(tail)} for boundaries in every]
        moved = set().union(*inside) - set.intersection(*inside) if inside else set()
        first = min(moved, default=len(tail) + 1)
        anchor = max((place for place in (inside[0] if inside else ()) if place < first), default=0)
        return tail[anchor:], tuple((place - anchor, joins) for place, joins in cuts if place > anchor)


class WindowValidity:
    """Canonical beginnings by encoding again: the tokens since the last word began, with witness continuations.

    exact: where the tokenizer splits at spaces, so that a word's tokens depend on that word alone; elsewhere (Unigram over
    whole sentences, added tokens inside a text) the window is the last 8 tokens, and the answer approximate. A row encodes
    a text for every id: for a large vocabulary, support `unmasked`, which asks about single tokens only, is far faster.
    """

    LONGEST = 8

    def __init__(self, tokens: TokenBytes, spec: dict[str, Any]) -> None:
        step = json.dumps(spec.get("pre_tokenizer"))
        words = tokens.family in ("WordPiece", "WordLevel") or '"Whitespace' in step or '"split": true' in step
        self.exact = words and not tokens.added
        self.mode = "words" if self.exact else "window"
        self.tokens = tokens
        self.start: State = ()
        self._follows = lru_cache(maxsize=1 << 18)(self._follow)
        self.row = lru_cache(maxsize=512)(self._row)

    def allows(self, state: State, token: int) -> bool:
        text = self.tokens.spelled[token]
        if text is None or (not state and not (text.startswith(self.tokens.lead) or self.tokens.lead.startswith(text))):
            return False
        return self._follows(state, token)

    def step(self, state: State, token: int) -> State | None:
        if not self.allows(state, token):
            return None
        if self.exact and (self.tokens.spelled[token] or b"").startswith(b" "):
            return (token,)
        return (*state, token) if self.exact else (*state, token)[-self.LONGEST :]

    def closes(self, state: State) -> bool:
        text = b"".join(self.tokens.spelled[token] for token in state)
        try:
            return self.tokens.plain.encode(text.decode(), add_special_tokens=False).ids == list(state)
        except UnicodeDecodeError:
            return False

    def _follow(self, state: State, token: int) -> bool:
        wanted = [*state, token]
        text = b"".join(self.tokens.spelled[each] for each in wanted)
        try:
            whole, rest = complete(text)
        except ValueError:
            return False
        for end in (completions(rest) or ()) if rest else (b"",):
            for witness in WITNESSES:
                ids = self.tokens.plain.encode((whole + rest + end).decode() + witness, add_special_tokens=False).ids
                if ids[: len(wanted)] == wanted:
                    return True
        return False

    def _row(self, state: State) -> Mask:
        return np.array([self.allows(state, token) for token in range(self.tokens.size)])


def _is_void(tokens: TokenBytes, spec: dict[str, Any]) -> bool:
    """Whether a pre-tokenizer looks for a string that the normaliser lets no text have (blanks that have become marks)."""
    step, normalizer = spec["pre_tokenizer"], tokens.plain.normalizer
    sought = step["pattern"].get("String") if step["type"] == "Split" else None
    return sought is not None and normalizer is not None and sought not in normalizer.normalize_str(f"a{sought}a")


def _witnesses(text: bytes) -> tuple[str, ...]:
    """What may follow: rules that look ahead move a cut before the last character only at blanks and apostrophes."""
    open_ended = text[-1:].isspace() or text[-1:] >= b"\x80" or b"'" in text[-3:]
    return WITNESSES if open_ended or not text else ("", "a")


@dataclass(frozen=True)
class Stability:
    """What a fuzz of one tokenizer found.

    mode: merges, words or window. boundaries: token boundaries of the random texts. unstable_share: those where the text
    before them alone is encoded otherwise (rules that look ahead). rejected: canonical boundaries that the validity
    refused; unsound: tokens it let follow although no continuation gives them; tried: how many of those were looked at.
    """

    mode: str
    exact: bool
    boundaries: int
    unstable_share: float
    rejected: int
    unsound: int
    tried: int


def stability(tokens: TokenBytes, *, texts: int = 200, seed: int = 0) -> Stability:
    """Fuzz a tokenizer's encoder: is the validity of its kind exact for it?

    texts: random ones, of word parts, blanks, digits, punctuation and other scripts. The answer is exact where nothing was
    rejected and nothing unsound was found; an approximate kind (a window) stays approximate.
    """
    judge, generator = validity(tokens), np.random.default_rng(seed)
    boundaries = unstable = rejected = unsound = tried = 0
    for _ in range(texts):
        text = _random_text(tokens, generator)
        ids = tokens.encode(text)
        if not ids or any(tokens.spelled[token] is None for token in ids):
            continue
        state, place = judge.start, int(generator.integers(len(ids)))
        for count, token in enumerate(ids):
            if count == place:
                good, looked = _sound(tokens, judge, state, ids[:count], generator)
                unsound, tried = unsound + looked - good, tried + looked
            after = judge.step(state, token)
            boundaries += 1
            if after is None:
                rejected += 1
                break
            state = after
            unstable += _is_unstable(tokens, ids[: count + 1])
    exact = judge.exact and not rejected and not unsound
    return Stability(judge.mode, exact, boundaries, unstable / max(1, boundaries), rejected, unsound, tried)


def _random_text(tokens: TokenBytes, generator: np.random.Generator) -> str:
    """A few random tokens between random separators; only what the tokenizer reproduces."""
    separators = ["", "", "", " ", "  ", "\n", "\n\n", ", ", "12", "345", "'s", "—", "é", "\n    ", ".", "…", "中"]
    picks = generator.integers(len(tokens.sorted_bytes), size=int(generator.integers(1, 6)))
    parts = [tokens.sorted_bytes[pick].decode("utf-8", "ignore") + separators[generator.integers(17)] for pick in picks]
    text = "".join(parts)
    for candidate in (text, " ".join(text.split()), *parts, *(part.strip() for part in parts)):
        try:
            if candidate and tokens.normalised(candidate) is not None:
                return candidate
        except ValueError:
            continue
    return ""


def _is_unstable(tokens: TokenBytes, ids: Sequence[int]) -> bool:
    try:
        before = b"".join(tokens.spelled[token] for token in ids).removeprefix(tokens.lead).decode()  # type: ignore[misc]
    except UnicodeDecodeError:
        return False
    return bool(before) and tokens.encode(before) != list(ids)


def _sound(
    tokens: TokenBytes, judge: Validity, state: State, before: Sequence[int], generator: np.random.Generator
) -> tuple[int, int]:
    """Of up to 8 tokens that the validity lets follow: how many some continuation gives, and how many were looked at.

    Tokens that end inside a character are not looked at: too many characters would have to be tried.
    """
    good = looked = 0
    for token in generator.permutation(np.flatnonzero(tokens.spelled_V))[:200].tolist():
        if looked == 8:
            break
        if not judge.allows(state, token):
            continue
        wanted = [*before, token]
        try:
            text = b"".join(tokens.spelled[each] for each in wanted).decode()
        except UnicodeDecodeError:
            continue
        looked += 1
        ways = (tokens.plain.encode(text + witness, add_special_tokens=False).ids for witness in WITNESSES)
        good += any(ids[: len(wanted)] == wanted for ids in ways)
    return good, looked
