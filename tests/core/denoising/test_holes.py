"""Holes: the positions a record hides, by markers, by its answer, or at random."""

import pytest
import torch
from transformers import XLNetConfig, XLNetLMHeadModel

from shiftscope.core.checkpoints import Opened
from shiftscope.core.corpus import Text
from shiftscope.core.denoising import any_subset, holes
from shiftscope.zoo import anyorder


@pytest.fixture(scope="module")
def model():
    words = anyorder.tokenizer(["return the value of the key and the name of the file " * 20])
    with torch.random.fork_rng():
        sizes = {"d_model": 8, "n_layer": 1, "n_head": 1, "d_inner": 8}
        net = XLNetLMHeadModel(
            XLNetConfig(vocab_size=len(words), **sizes, pad_token_id=0, bos_token_id=0, eos_token_id=0)
        )
    return any_subset.adapted(Opened("tiny", net, words))


def text(prompt, answer=None):
    return Text(3, "three", prompt, answer)


def test_a_marker_stands_for_so_many_hidden_tokens(model):
    found = holes.holed(model, text("the [[3]] of the[[2]]"))
    assert [model.mask_id] * 5 == [found.ids[place] for place in found.hidden]
    assert found.ids[0] == model.tokenizer.bos_token_id
    assert found.added == {0}
    assert not found.known
    assert holes.marked(model.tokenizer, list(found.ids), found).count("⟦") == 2


def test_the_mask_token_itself_is_one_hidden_token(model):
    one = holes.holed(model, text(f"the {anyorder.MASK}{anyorder.MASK} of"))
    assert one == holes.holed(model, text("the [[2]] of"))
    at_the_end = holes.holed(model, text(f"the{anyorder.MASK}"))
    assert at_the_end.hidden == (len(at_the_end.ids) - 1,)


def test_an_answer_fills_its_hole_and_stands_at_the_end_without_one(model):
    whole = model.tokenizer("the value of the key")["input_ids"]
    inside = holes.holed(model, text("the[[]] of the key", " value"))
    assert (list(inside.ids), inside.known) == (whole, True)
    assert holes.plain(model.tokenizer, list(inside.ids), inside.added) == "the value of the key"
    assert holes.marked(model.tokenizer, list(inside.ids), inside) == "the⟦ value⟧ of the key"
    assert holes.holed(model, text("the value of", " the key")) == holes.holed(
        model, text("the value of[[]]", " the key")
    )


def test_words_in_brackets_are_hidden_and_known_any_number_of_them(model):
    whole = model.tokenizer("the value of the key")["input_ids"]
    found = holes.holed(model, text("the⟦ value⟧ of the⟦ key⟧"))
    assert (list(found.ids), found.known) == (whole, True)
    assert holes.marked(model.tokenizer, list(found.ids), found) == "the⟦ value⟧ of the⟦ key⟧"
    assert found != holes.holed(model, text("the⟦ value of the⟧ key"))
    assert holes.holed(model, text("the⟦ value⟧ of the key")) == holes.holed(
        model, text("the[[]] of the key", " value")
    )


def test_a_share_is_hidden_at_random_and_its_tokens_are_known(model):
    prompt = "return the [[5]] value of the key and the name of the file"
    found = holes.holed(model, text(prompt), hide=0.5)
    assert list(found.ids) == model.tokenizer(prompt)["input_ids"]
    assert found.known
    assert len(found.hidden) == round(0.5 * (len(found.ids) - 1))
    assert found == holes.holed(model, text(prompt), hide=0.5)
    assert found.hidden != holes.holed(model, text(prompt), hide=0.5, seed=1).hidden
    everything = holes.holed(model, text(prompt), hide=1.0)
    assert everything.hidden == tuple(range(1, len(everything.ids)))


@pytest.mark.parametrize(
    ("record", "hide", "sentence"),
    [
        (text("no hole"), 0.0, "record three has no hidden position: write"),
        (text(""), 0.5, "record three has no hidden position"),
        (text("an [[]] hole"), 0.0, "as long as the record's answer, and it has none"),
        (text("[[2]] and [[1]]", " value of key"), 0.0, "an answer fills one hole"),
        (text("a [[9]]", " value"), 0.0, "9 positions are hidden"),
        (text("a [[100]]"), 0.0, "does not fit into tiny, which reads at most 96"),
        (text(f"a {anyorder.MASK}"), 0.5, "holds the mask token"),
        (text("a [[99999999999]]"), 0.0, "at least 99999999999 tokens, hidden ones included, does not fit"),
        (text("a⟦ value⟧ and [[2]]"), 0.0, "score and fill in two records"),
        (text("a⟦ value⟧ and", " key"), 0.0, "score and fill in two records"),
        (text("an empty ⟦⟧ hole"), 0.0, "record three has no hidden position"),
    ],
)
def test_what_cannot_be_filled_is_refused_in_a_sentence(model, record, hide, sentence):
    with pytest.raises(ValueError, match=sentence.replace("[", r"\[")):
        holes.holed(model, record, hide)
