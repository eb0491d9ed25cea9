"""Prompts become canvases: gone on with, or filled in where they hide positions themselves."""

import pytest

from shiftscope.core.corpus import Text
from shiftscope.core.denoising import masked_model
from shiftscope.core.denoising.canvases import canvas_of, context_ids


@pytest.fixture(scope="module")
def counts():
    return masked_model.load("counts-masked")


def test_a_prompt_is_followed_by_hidden_positions(counts):
    canvas, infilled = canvas_of(counts, Text(0, "a", "5 2"), 6, document=7)
    assert counts.tokenizer.decode(canvas.ids) == "<start> 5 2" + " <mask>" * 6
    assert (canvas.start, canvas.document, infilled) == (3, 7, False)


@pytest.mark.parametrize("prompt", ["5 2 5 <mask> <mask> 11", "5 2 5 [[2]] 11"])
def test_a_prompt_with_holes_keeps_what_follows_them(counts, prompt):
    canvas, infilled = canvas_of(counts, Text(0, "a", prompt), 6, document=0)
    assert counts.tokenizer.decode(canvas.ids) == "<start> 5 2 5 <mask> <mask> 11"
    assert (canvas.start, canvas.hidden, infilled) == (4, [4, 5], True)


def test_a_token_that_closes_every_text_is_left_out(counts):
    """BERT's tokenizers put a separator after a text; an answer must be able to follow."""
    from tokenizers import processors

    tokenizer = masked_model.load("counts-masked").tokenizer
    end = tokenizer.eos_token_id
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        "$A <end>", special_tokens=[("<end>", end)]
    )
    tokenizer.sep_token, tokenizer.eos_token = "<end>", "<pad>"
    closed = masked_model.replace(counts, tokenizer=tokenizer)
    ids = tokenizer("5 2")["input_ids"]
    assert ids[-1] == end
    assert context_ids(closed, Text(0, "a", "5 2")) == tuple(ids[:-1])
    assert canvas_of(closed, Text(0, "a", "5 [[1]]"), 4, 0)[0].ids[-1] == end  # what follows a hole stays


@pytest.mark.parametrize(
    ("prompt", "sentence"),
    [
        ("5 " * 10, "record a: a prompt of 11 tokens and 60 hidden ones do not fit into counts-masked"),
        ("[[70]]", "record a: a text of 71 tokens, hidden ones included"),
        ("5 [[]]", "a hole without a size"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(counts, prompt, sentence):
    with pytest.raises(ValueError, match=sentence.replace("[", r"\[")):
        canvas_of(counts, Text(0, "a", prompt), 60, 0)
