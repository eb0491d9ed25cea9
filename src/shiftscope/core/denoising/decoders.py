"""Decoders by name, for masked and any-order models alike: 'max_prob', 'window inner=16', 'rho-eos', 'assd k=3', …

A name is words and settings with blanks between: a reveal order (max_prob, random, sampled …), a way to look (full, blocks,
window), a way to find the length (fixed, rho-eos) or a speculative method (assd, sequential, independent), and any field of
their settings as name=value.
"""

from __future__ import annotations

import re
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from shiftscope.core import corpus, masked
from shiftscope.core.checkpoints import DTypeName, kind_named
from shiftscope.core.denoising import any_subset, decodings, holes, masked_model, speculation
from shiftscope.core.denoising.any_subset import AnySubsetLM
from shiftscope.core.denoising.canvases import canvas_of
from shiftscope.core.denoising.decodings import Decoder
from shiftscope.core.denoising.gapped import Gapped, MaskedNetwork, Network, spread_order
from shiftscope.core.denoising.length import Control, Length
from shiftscope.core.denoising.masked_model import MaskedLM
from shiftscope.core.denoising.oracle import MarkovOracle
from shiftscope.core.denoising.preservation import Preservation, along_its_order
from shiftscope.core.denoising.reveals import Reveals
from shiftscope.core.denoising.scope import Scope
from shiftscope.core.denoising.speculation import Speculation
from shiftscope.core.masked import Canvas, Filling

Model = MaskedLM | AnySubsetLM | MarkovOracle
_WORDS: Mapping[str, tuple[str, type]] = {
    **dict.fromkeys(get_args(masked.Order), ("order", Filling)),
    **dict.fromkeys(("full", "blocks", "window"), ("method", Scope)),
    **dict.fromkeys(("fixed", "rho-eos"), ("length", Length)),
    **dict.fromkeys(get_args(speculation.Method), ("method", Speculation)),
}


@dataclass(frozen=True)
class Named:
    """A decoder. name: as it was asked for. how: its settings. room: hidden positions after a prompt that hides none itself.

    order: in which a speculative method fills the hidden positions of a masked model.
    """

    name: str
    how: Decoder | Speculation
    room: int
    order: Literal["random", "left_to_right"] = "random"

    @property
    def figure(self) -> str:
        """What the names of its figures begin with: letters, digits, dots and underscores only, so that a gate can ask."""
        return re.sub(r"[^\w.]+", "_", self.name)

    @property
    def preserves(self) -> Preservation:
        """Whether its texts are samples of the model, as it declares."""
        if isinstance(self.how, Decoder):
            return self.how.preserves
        return Preservation(self.how.preserves, self.how.law.rstrip("."))


def parse(name: str, **defaults: Any) -> Named:
    """A decoder by its name. defaults: settings that the name does not give, such as temperature=1.0.

    Raises ValueError, in one sentence, for a word or setting that no decoder has, or a value that does not fit.
    """
    words = name.split()
    asked: dict[type, dict[str, Any]] = {Filling: {}, Scope: {}, Length: {}, Speculation: {}}
    speculative = any(_WORDS.get(word, ("", None))[1] is Speculation for word in words)
    kinds = [Speculation, Length] if speculative else [Filling, Scope, Length]
    order = "random"
    for word in words:
        if speculative and word in ("random", "left_to_right"):
            order = word
        elif word in _WORDS:
            field, kind = _WORDS[word]
            if kind not in kinds or (speculative and kind is Length):
                raise ValueError(f"decoder {name!r}: {word} does not go together with a speculative method")
            asked[kind][field] = word
        else:
            kind, field, value = _setting(name, word, kinds)
            asked[kind][field] = value
    for field, value in defaults.items():
        for kind in kinds:
            if field in get_type_hints(kind):
                asked[kind].setdefault(field, value)
    try:
        length = Length(**asked[Length])
        if speculative:
            how = Speculation(**asked[Speculation])
            return Named(name, how, length.max_new_tokens, "random" if order == "random" else "left_to_right")
        return Named(name, Decoder(Filling(**asked[Filling]), Scope(**asked[Scope]), length), length.max_new_tokens)
    except ValueError as error:
        raise ValueError(f"decoder {name!r}: {error}") from error


def _setting(name: str, word: str, kinds: Sequence[type]) -> tuple[type, str, Any]:
    """The settings class, field and value of 'field=value'."""
    field, equals, value = word.partition("=")
    for kind in kinds:
        hint = get_type_hints(kind).get(field)
        if equals and hint is not None:
            return kind, field, _value(name, word, hint, value)
    known = ", ".join(field.name for kind in kinds for field in fields(kind))
    raise ValueError(
        f"decoder {name!r}: {word!r} is neither a decoder's word ({', '.join(_WORDS)}) nor a setting as name=value ({known})"
    )


def _value(name: str, word: str, hint: Any, value: str) -> Any:
    choices = [hint]
    if get_origin(hint) in (Union, types.UnionType):
        choices = [choice for choice in get_args(hint) if choice is not type(None)]
    kind = choices[0]
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise ValueError(f"decoder {name!r}: {word!r} must be one of {', '.join(map(str, get_args(kind)))}")
        return value
    try:
        return {"yes": True, "no": False}[value.lower()] if kind is bool else kind(value)
    except (KeyError, ValueError) as error:
        wanted = (
            "yes or no" if kind is bool else {"int": "a whole number", "float": "a number"}.get(kind.__name__, "text")
        )
        raise ValueError(f"decoder {name!r}: {word!r} needs {wanted}") from error


@dataclass(frozen=True)
class Text:
    """A text to be written: ids with the mask token where hidden; start: where the written part begins; document: keys it."""

    document: int
    ids: Sequence[int]
    start: int

    def gone_on(self, mask_id: int) -> bool:
        """Whether nothing visible follows the first hidden position: then an end stops the text."""
        return all(token == mask_id for token in self.ids[self.start :])


def declared(model: Model, named: Named) -> Preservation:
    """What the decoder declares to keep with this model: a masked model's joint law belongs to the order it is filled in."""
    return named.preserves if isinstance(model, AnySubsetLM) else along_its_order(named.preserves)


def reasons(model: Model, asked: Sequence[Named]) -> Iterator[str]:
    """What decoders declare and why; those with one reason share a sentence."""
    found = {named.name: declared(model, named) for named in asked}
    for one in dict.fromkeys(found.values()):
        names = ", ".join(name for name, other in found.items() if other == one)
        yield f"{names}: {one.kind}, {one.reason}"


def check(model: Model, named: Named, records: Sequence[corpus.Text] = (), template: corpus.Template = "plain") -> None:
    """Raises ValueError, in one sentence, where the decoder cannot write with the model, or one of the records."""
    if isinstance(named.how, Speculation):
        if records and not isinstance(model, MarkovOracle):
            canvases(model, records, named.room, 1, template)
        return
    if isinstance(model, AnySubsetLM):
        raise ValueError(
            f"decoder {named.name!r} is for masked models, and {model.name} is an any-order one: use assd, sequential or "
            f"independent"
        )
    try:
        decodings.suits(model, named.how)
        if records and isinstance(model, MaskedLM):
            decodings.check(model, records, named.how, template)
    except ValueError as error:
        raise ValueError(f"decoder {named.name!r}: {error}") from error


def opened(
    name: str,
    *,
    mask_token: str | None = None,
    end_token: str | None = None,
    dtype: DTypeName = "auto",
    device: str = "auto",
) -> MaskedLM | AnySubsetLM:
    """The masked or any-order model of a name. mask_token, end_token: of a masked model that names none or others.

    Raises ValueError, in one sentence, for a checkpoint of another kind, or tokens given for an any-order model.
    """
    if kind_named(name) != "any-order":
        return masked_model.load(name, mask_token=mask_token, end_token=end_token, dtype=dtype, device=device)
    if mask_token is not None or end_token is not None:
        raise ValueError(
            f"{name} is an any-order model, whose mask is its own and whose texts do not end: leave them out"
        )
    return any_subset.load(name, dtype=dtype, device=device)


def canvases(
    model: MaskedLM | AnySubsetLM,
    records: Sequence[corpus.Text],
    room: int,
    samples: int,
    template: corpus.Template = "plain",
) -> list[Text]:
    """The texts to write, some for each record. room: hidden positions after a prompt that names none itself.

    template: how a masked model's prompt is rendered; an any-order model's is read as it is.
    Raises ValueError, naming the record, for one that the model cannot read or that hides nothing.
    """
    found = []
    for record in records:
        for document in range(record.text * samples, (record.text + 1) * samples):
            if isinstance(model, AnySubsetLM):
                holed = holes.holed(model, record)
                hidden = set(holed.hidden)
                ids = [model.mask_id if place in hidden else token for place, token in enumerate(holed.ids)]
                found.append(Text(document, ids, holed.hidden[0]))
            else:
                canvas, _ = canvas_of(model, record, room, document, template)
                found.append(Text(document, canvas.ids, canvas.start))
    return found


def write(model: Model, named: Named, texts: Sequence[Text]) -> list[tuple[list[int], Reveals]]:
    """The texts as the decoder fills them, each with its record.

    Raises ValueError where rho-eos is asked for in a text in which something visible follows a hidden position.
    """
    if isinstance(named.how, Speculation):
        jobs = [Gapped(text.document, list(text.ids), _order(model, named, text)) for text in texts]
        speculation.fill(network(model), jobs, named.how)
        return [(job.ids, job.record) for job in jobs]
    assert not isinstance(model, AnySubsetLM)
    masked_model: Any = model
    canvases = [Canvas(text.document, list(text.ids), text.start, model.mask_id) for text in texts]
    rho = named.how.length.length == "rho-eos"
    if rho and not all(text.gone_on(model.mask_id) for text in texts):
        raise ValueError(
            f"decoder {named.name!r}: something visible follows the hidden positions, so their number is given: use length "
            f"fixed"
        )
    control = Control(named.how.length, model.end_ids, model.context_length) if rho else None
    for whole in (True, False):  # what follows a hidden position stays: an end within does not cut the text
        pairs = zip(texts, canvases, strict=True)
        chosen = [canvas for text, canvas in pairs if text.gone_on(model.mask_id) == whole]
        early = named.how.length.early_stop and whole
        masked.decode(
            masked_model,
            chosen,
            named.how.filling,
            named.how.scope,
            adjust=control,
            early_stop=early,
        )
    return [(canvas.ids, canvas.record) for canvas in canvases]


def network(model: Model) -> Network:
    """The model as speculation asks it: by its own masks, or a masked one by copies of the text."""
    if isinstance(model, AnySubsetLM):
        return model
    return MaskedNetwork(model.logits, model.mask_id, model.vocabulary_size)


def _order(model: Model, named: Named, text: Text) -> tuple[int, ...]:
    """The hidden places in the order in which they are filled: an any-order model's is ascending."""
    hidden = [place for place, token in enumerate(text.ids) if token == model.mask_id]
    if isinstance(model, AnySubsetLM) or named.order == "left_to_right" or not isinstance(named.how, Speculation):
        return tuple(hidden)
    return spread_order(text.document, hidden, named.how.seed)
