"""Decoders by name: what a name means, and every way in which it can be wrong."""

import pytest

from shiftscope.core import corpus
from shiftscope.core.denoising import decoders, masked_model
from shiftscope.core.denoising.decodings import Decoder
from shiftscope.core.denoising.length import Length
from shiftscope.core.denoising.oracle import random_chain
from shiftscope.core.denoising.scope import Scope
from shiftscope.core.denoising.speculation import Speculation
from shiftscope.core.masked import Filling


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("max_prob", Decoder()),
        ("random per_call=2 temperature=1", Decoder(Filling(order="random", per_call=2, temperature=1.0))),
        ("window inner=8 outer=16 renew=no", Decoder(scope=Scope("window", inner=8, outer=16, renew=False))),
        ("threshold=0.9 blocks block=8", Decoder(Filling(threshold=0.9), Scope("blocks", block=8))),
        ("rho-eos low=0.3 signal=tail", Decoder(length=Length("rho-eos", low=0.3, signal="tail"))),
        ("assd k=3 draft=ngram", Speculation(k=3, draft="ngram")),
    ],
)
def test_a_name_is_words_and_settings(name, how):
    assert decoders.parse(name).how == how


def test_defaults_fill_what_a_name_does_not_say():
    assert decoders.parse("max_prob", temperature=1.0).how.filling.temperature == 1.0
    assert decoders.parse("max_prob temperature=0.5", temperature=1.0).how.filling.temperature == 0.5
    assert decoders.parse("assd left_to_right max_new_tokens=9").room == 9
    assert decoders.parse("assd left_to_right").order == "left_to_right"


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("best", r"'best' is neither a decoder's word \(max_prob, "),
        ("max_prob wide=3", "'wide=3' is neither"),
        ("per_call=two", "'per_call=two' needs a whole number"),
        ("window renew=maybe", "needs yes or no"),
        ("rho-eos signal=loud", "must be one of density, tail"),
        ("assd window", "window does not go together with a speculative method"),
        ("assd k=1", "decoder 'assd k=1': k is 1"),
        ("window inner=20 outer=10", "inner lies within outer"),
    ],
)
def test_a_wrong_name_is_refused_in_one_sentence(name, sentence):
    with pytest.raises(ValueError, match=sentence):
        decoders.parse(name)


def test_a_decoder_that_cannot_write_with_the_model_is_refused():
    with pytest.raises(ValueError, match="oracle keeps no keys and values"):
        decoders.check(random_chain(), decoders.parse("window"))
    with pytest.raises(ValueError, match="oracle has no end token"):
        decoders.check(random_chain(), decoders.parse("rho-eos"))
    with pytest.raises(ValueError, match="is for masked models, and docs-anyorder is an any-order one"):
        decoders.check(decoders.opened("docs-anyorder"), decoders.parse("max_prob"))


def test_a_decoder_that_does_not_suit_a_record_is_refused():
    model = decoders.opened("counts-masked")
    short, holed = corpus.Text(0, "a", "5 2"), corpus.Text(1, "b", "5 [[2]] 11")
    for name, records, sentence in (
        ("window outer=100", [short], "the outer window has 100 positions, and no text has more than 64 hidden ones"),
        ("rho-eos", [short, holed], "decoder 'rho-eos': record b hides positions of its own"),
        ("max_prob max_new_tokens=65", [short], "record a: a prompt of 3 tokens and 65 hidden ones do not fit"),
        ("assd max_new_tokens=65", [short], "record a: a prompt of 3 tokens and 65 hidden ones do not fit"),
    ):
        with pytest.raises(ValueError, match=sentence):
            decoders.check(model, decoders.parse(name), records)
    with pytest.raises(ValueError, match="something visible follows the hidden positions"):
        decoders.write(model, decoders.parse("rho-eos"), decoders.canvases(model, [holed], 4, 1))


def test_tokens_of_a_masked_model_are_no_any_order_models():
    assert decoders.opened("counts-masked", end_token="31").end_ids == (36,)
    with pytest.raises(ValueError, match="docs-anyorder is an any-order model"):
        decoders.opened("docs-anyorder", end_token="x")


def test_a_model_is_opened_as_what_its_configuration_says():
    assert isinstance(decoders.opened("counts-masked"), masked_model.MaskedLM)
    with pytest.raises(ValueError, match="it is a causal language model"):
        decoders.opened("sums-base")


def test_greedy_decoders_that_look_at_the_same_text_write_the_same():
    model = decoders.opened("counts-masked")
    ids = [*model.tokenizer("5 2")["input_ids"], *[model.mask_id] * 16]
    texts = [decoders.Text(0, ids, 3)]
    names = [
        "left_to_right",
        "window left_to_right inner=0 outer=0 refresh=1",
        "sequential left_to_right temperature=0",
    ]
    written = [decoders.write(model, decoders.parse(name), texts)[0][0] for name in names]
    end = written[0].index(model.end_ids[0])
    assert all(row[: end + 1] == written[0][: end + 1] for row in written)
    assert model.tokenizer.decode(written[0][3:end]) == "5 7 9 11 13 15 17 19 21 23 25 27 29 31"


def test_an_end_within_a_text_that_is_filled_in_does_not_cut_what_follows():
    model = decoders.opened("counts-masked")
    end = model.end_ids[0]
    ids = [*model.tokenizer("30 1")["input_ids"], *[model.mask_id] * 4, end, end]
    text = decoders.Text(0, ids, 3)
    assert not text.gone_on(model.mask_id)
    written, _ = decoders.write(model, decoders.parse("max_prob"), [text])[0]
    assert len(written) == len(ids)
    assert end in written[3:7]
