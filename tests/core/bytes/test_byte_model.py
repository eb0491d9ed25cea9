"""byte_model: drawn text has the exact law, alone or in a batch; scoring a corpus needs no loop over bytes."""

import math

import numpy as np
import pytest

from shiftscope.core.bytes.byte_law import END, Law
from shiftscope.core.bytes.byte_model import ByteModel, ByteSampling, choose

PROMPTS = ["Return the absolu", "If the argument is a str", "Raise ValueErr", "The def"]


@pytest.fixture(scope="module")
def model(docs):
    return ByteModel(docs[0], support="unmasked")


@pytest.fixture(scope="module")
def strict(docs):
    return ByteModel(docs[0])


def test_greedy_bytes_complete_a_word_that_the_prompt_cuts(model):
    found = model.sample(PROMPTS, ByteSampling(temperature=0, max_new_bytes=12))
    assert found[0].text.startswith("te ")
    assert found[2].text.startswith("or")
    for prompt, drawn in zip(PROMPTS, found, strict=True):
        text = prompt.encode()
        for byte in drawn.answer:
            assert byte == model.law(text).p.argmax()
            text += bytes([byte])


def test_an_answer_is_the_same_alone_and_in_a_batch(model):
    sampling = ByteSampling(max_new_bytes=24, seed=3)
    together = model.sample(PROMPTS, sampling)
    for number in (1, 3):
        alone = model.sample([PROMPTS[number]], sampling, documents=[number])[0]
        assert alone.answer == together[number].answer
        assert alone.logp_nats == pytest.approx(together[number].logp_nats, abs=1e-3)


def test_the_drawn_probability_is_that_of_reading_the_text_again(strict):
    drawn = strict.sample(["def value(sel"], ByteSampling(max_new_bytes=20, seed=1))[0]
    laws = strict.laws(b"def value(sel" + drawn.answer)[13:]
    again = sum(math.log(law.p[byte]) for law, byte in zip(laws, drawn.answer, strict=False))
    again += math.log(laws[-1].end) if drawn.stopped == "end" else 0
    assert drawn.logp_nats == pytest.approx(again, abs=2e-3)
    assert 0 <= drawn.lost_mean < 0.5


def test_bits_per_byte_needs_one_forward_and_equals_the_sum_over_bytes(strict):
    texts = ["Return a new list of all values.", "The naïve café opens at 10."]
    before = strict.engine.tree.forwards
    bits = strict.bits_per_byte(texts)
    assert strict.engine.tree.forwards == before + 1
    total = 0.0
    for text in texts:
        for law, byte in zip(strict.laws(text), text.encode(), strict=False):
            total -= math.log2(law.p[byte] * (1 - law.lost))
    assert bits == pytest.approx(total / sum(len(text.encode()) for text in texts), abs=1e-3)
    tokens = [strict.checkpoint.tokenizer(text)["input_ids"] for text in texts]
    own = sum(-value for value in _token_logp(strict.checkpoint, tokens)) / math.log(2)
    # every other canonical beginning of the text adds to its probability: never more bits than its own encoding
    assert bits * sum(len(text.encode()) for text in texts) <= own + 1e-3


def _token_logp(checkpoint, rows):
    import torch

    for ids in rows:
        with torch.no_grad():
            logp = checkpoint.model(torch.tensor([[checkpoint.tokenizer.bos_token_id, *ids]])).logits[0].log_softmax(-1)
        yield float(logp[:-1].gather(-1, torch.tensor(ids)[:, None]).sum())


def test_the_first_byte_after_a_cover_has_the_byte_law(model):
    """Mode cover: the prompt exact, then tokens; its first bytes are draws from the same law."""
    prompt, n = b"Return the val", 400
    drawn = model.sample([prompt] * n, ByteSampling(mode="cover", max_new_bytes=2, seed=5), documents=range(n))
    law = model.law(prompt)
    for byte in np.argsort(-law.p)[:3]:
        share = np.mean([answer.answer[:1] == bytes([byte]) for answer in drawn])
        # four standard errors of a share of n draws
        assert abs(share - law.p[byte]) < 4 * math.sqrt(law.p[byte] * (1 - law.p[byte]) / n) + 1e-3
    assert all(math.isnan(answer.logp_nats) for answer in drawn)


def test_a_text_stops_at_a_stop_text_at_its_length_and_at_the_context(model):
    stopped = model.sample(["Return the absolu"], ByteSampling(temperature=0, stop=(" ",)))[0]
    assert (stopped.answer, stopped.stopped) == (b"te", "stop")
    assert model.sample(["Return"], ByteSampling(max_new_bytes=3))[0].stopped in ("length", "end")
    long = "Return the value of the name. " * 36
    assert model.sample([long], ByteSampling(temperature=0, max_new_bytes=400))[0].stopped in ("context", "end")


def test_choose_is_inverse_cdf_and_zero_temperature_is_greedy():
    p = np.zeros(256)
    p[[5, 9]] = 0.5, 0.3
    law = Law(p, 0.2, 0.0, 0.0)
    assert [choose(law, u) for u in (0.0, 0.49, 0.51, 0.79, 0.81, 1 - 1e-16)] == [5, 5, 9, 9, END, END]
    assert choose(law, 0.99, temperature=0) == 5
    assert choose(law, 0.9, temperature=0.1) == 5  # bytes sharpened: 0.5^10 outweighs the rest


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"mode": "words"}, "mode is 'words'"),
        ({"temperature": -1.0}, "temperature -1.0"),
        ({"mode": "cover", "stop": ("x",)}, "need mode bytes"),
    ],
)
def test_settings_out_of_range_are_refused(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        ByteSampling(**settings)


def test_no_bytes_have_no_bits(model):
    with pytest.raises(ValueError, match="no bytes"):
        model.bits_per_byte([""])
