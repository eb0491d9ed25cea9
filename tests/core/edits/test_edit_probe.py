"""Draws into slots: they follow their keys and not their batch, obey their mask, and end at the bracket.

That sampled rates are those of the exact masses, decoder by decoder, is tests/compare/test_edits.py.
"""

import numpy as np
import pytest
import torch

from shiftscope.core.bytes import token_bytes
from shiftscope.core.edits import edit_prompts
from shiftscope.core.edits.artefacts import Affixes
from shiftscope.core.edits.edit_probe import Decoder, Drawing, Probe, _closed_slot
from shiftscope.core.edits.edit_prompts import Passage
from shiftscope.core.edits.edit_slots import Spelled, Target

TEXT = "Return the value of an object or a name."
FEW = Drawing(samples=3, max_slot_tokens=4)


@pytest.fixture(scope="module")
def tokens(docs):
    return token_bytes.read(docs[0].tokenizer, docs[0].vocabulary_size)


@pytest.fixture(scope="module")
def probe(docs, tokens):
    return Probe(docs[0], tokens, FEW)


@pytest.fixture(scope="module")
def prompts(docs, tokens):
    ids_of = edit_prompts.prompt_ids(docs[0], "Edit: {passage}\n", "plain")
    places = [Target(TEXT.index(word), TEXT.index(word) + len(word)) for word in ("value", "object")]
    return [edit_prompts.prompt(ids_of, tokens, Passage(0, TEXT, (place,)), "spaced") for place in places]


@pytest.mark.parametrize("kind", ["any", "canonical", "bytes"])
def test_a_draw_follows_its_number_and_not_the_prompts_beside_it(kind, probe, prompts):
    together = probe.slots(prompts, Decoder(kind), [0, 1])
    alone = [probe.slots([prompt], Decoder(kind), [number])[0] for number, prompt in enumerate(prompts)]
    assert together == alone
    assert all(len(draws) == 3 for draws in together)


def test_a_forbidden_id_has_no_mass_and_is_not_drawn(docs, tokens, prompts):
    probe = Probe(docs[0], tokens, Drawing(samples=1, max_slot_tokens=1, top_p=1.0, top_k=0))
    reference = prompts[0].references[0].bracketed
    mask = np.zeros(tokens.size, dtype=bool)
    mask[reference.ids[0]] = True
    free, masked = (probe.masses(prompts[0], decoder, Affixes()) for decoder in (Decoder("any"), Decoder("ids", mask)))
    assert free.unchanged > 0 == masked.unchanged
    only = ~np.isin(np.arange(tokens.size), tokens.equal(b"]"))  # all but one id forbidden: that one is drawn
    found = probe.slots(prompts, Decoder("ids", only), [0, 1])
    assert found == [["the slot is empty"]] * 2


def test_probing_leaves_the_model_as_it_was(docs, probe, prompts):
    before = {name: value.clone() for name, value in docs[0].model.state_dict().items()}
    probe.slots(prompts, Decoder("any"), [0, 1])
    assert all(torch.equal(value, before[name]) for name, value in docs[0].model.state_dict().items())


def test_a_slot_is_open_from_its_bracket_to_the_closing_one(probe, tokens):
    for text, is_open in (
        ("Return the [", True),
        ("Return the [ val", True),
        ("a [ b ] c", False),
        ("a ] b", False),
        ("", False),
    ):
        ids = tokens.encode(text) if text else []
        place = probe._open_slot(ids)
        assert (place is not None) == is_open
        if place is not None:
            spelled = b"".join(tokens.spelled[token] for token in ids[:place])
            assert spelled.rstrip().endswith(b"[")


@pytest.mark.parametrize(
    ("written", "found"),
    [(b" cat ] x", b"cat"), (b" cat", "the slot is not closed"), (b" [ cat ]", "the brackets are lost"), (b"  ]", "the slot is empty")],
)  # fmt: skip
def test_what_stands_before_the_closing_bracket_is_the_slot(written, found):
    cut = _closed_slot(Spelled.of(list(written), [bytes([byte]) for byte in range(256)]))
    assert (cut if isinstance(cut, str) else cut.word) == found


def test_the_law_is_shaped_only_where_a_setting_shapes_it():
    assert Drawing(temperature=1.0, top_p=1.0, top_k=0).shape is None
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]]))
    shaped = Drawing(temperature=1.0, top_p=1.0, top_k=2).shape(logits).exp()
    assert shaped[0].tolist() == pytest.approx([0.625, 0.375, 0, 0], abs=1e-6)


@pytest.mark.parametrize(
    "wrong", [{"temperature": 0.0}, {"top_p": 1.5}, {"top_k": -1}, {"samples": 0}, {"max_slot_tokens": 0}]
)
def test_settings_out_of_range_are_named(wrong):
    name, value = next(iter(wrong.items()))
    with pytest.raises(ValueError, match=f"{name} {value}"):
        Drawing(**wrong)
