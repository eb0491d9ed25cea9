"""core/streaming: what is given out piece by piece is the answer, and never any of what ends it."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM
from transformers.generation import RepetitionPenaltyLogitsProcessor

from shiftscope.core import checkpoints, completion, streaming
from shiftscope.core.decode import Sampling, sample
from shiftscope.core.streaming import Scribe, closing_fence, penalised, stop_strings
from shiftscope.zoo import sums

ENDINGS = {"stop": stop_strings("# Query", "# User"), "fence": closing_fence("```")}


@pytest.fixture(scope="module")
def tokenizer(docs):
    return docs[0].tokenizer


def told(tokenizer, text, endings=ENDINGS, ids=None):
    """The pieces given out for a text that is taken token by token, and what was written."""
    scribe, pieces = Scribe(tokenizer, endings), []
    for token in tokenizer(text)["input_ids"] if ids is None else ids:
        pieces.append(scribe.add(token))
        if scribe.written:
            return pieces, scribe.written
    pieces.append(scribe.close("end"))
    return pieces, scribe.written


def test_a_stop_string_that_spans_tokens_ends_the_answer_and_nothing_of_it_is_given_out(tokenizer):
    assert len(tokenizer("# Query")["input_ids"]) > 2
    pieces, written = told(tokenizer, "An answer.\n\n# Query: more")
    assert "".join(pieces) == written.text == "An answer.\n\n"
    assert written.ended == "stop"
    assert tokenizer.decode(written.ids).startswith(written.text)


def test_what_only_begins_like_a_stop_string_is_given_out_as_soon_as_it_is_none(tokenizer):
    pieces, written = told(tokenizer, "A # Quarrel and a # Qu")
    assert "".join(pieces) == written.text == "A # Quarrel and a # Qu"
    assert written.ended == "end"


@pytest.mark.parametrize(
    ("text", "answer", "ended"),
    [
        ("Yes.\n```\n\nMore", "Yes.\n", "fence"),
        ("Yes.\n```", "Yes.\n", "fence"),
        ("```python\nx = 1\n```\nThat is it.\n```\n", "```python\nx = 1\n```\nThat is it.\n", "fence"),
        ("```python\nx = '# Query'\n```", "```python\nx = '", "stop"),
        ("Two `` ticks", "Two `` ticks", "end"),
        ("# User", "", "stop"),
        ("", "", "end"),
    ],
)
def test_the_closing_fence_ends_an_answer_and_code_blocks_in_it_stay(tokenizer, text, answer, ended):
    pieces, written = told(tokenizer, text)
    assert ("".join(pieces), written.text, written.ended) == (answer, answer, ended)


def test_characters_of_several_tokens_are_given_out_whole(tokenizer):
    text = "naïve 😀 — déjà 漢字"
    pieces, written = told(tokenizer, text)
    assert len(tokenizer("😀")["input_ids"]) > 1
    assert "".join(pieces) == written.text == text
    assert not any("\ufffd" in piece for piece in pieces)


def test_bytes_that_never_become_a_character_are_not_lost(tokenizer):
    broken = tokenizer("😀")["input_ids"][:-1]
    pieces, written = told(tokenizer, "", ids=[*tokenizer("a")["input_ids"], *broken])
    assert "".join(pieces) == written.text == tokenizer.decode([*tokenizer("a")["input_ids"], *broken])


@given(st.text("#`Query Us\na1é😀", max_size=60))
def test_however_a_text_is_cut_the_pieces_are_the_text_up_to_its_end(text):
    endings, cut = {"stop": stop_strings("# Query", "# U")}, re.search("# Query|# U", text)
    for size in (1, 2, 5):
        pieces, written = told(Letters(size), text, endings)
        assert "".join(pieces) == written.text == (text[: cut.start()] if cut else text)
        assert written.ended == ("stop" if cut else "end")


class Letters:
    """A tokenizer of pieces of `size` characters."""

    def __init__(self, size):
        self.size, self.table = size, []

    def __call__(self, text):
        self.table = [text[start : start + self.size] for start in range(0, len(text), self.size)]
        return {"input_ids": list(range(len(self.table)))}

    def decode(self, ids, **_):
        return "".join(self.table[token] for token in ids)


def test_an_empty_stop_string_is_a_sentence():
    with pytest.raises(ValueError, match="a stop string is empty"):
        stop_strings("# Query", "")


def test_the_repetition_penalty_is_that_of_transformers():
    logits_BV = torch.randn(2, 9, generator=torch.Generator().manual_seed(0))
    ids_BT = torch.tensor([[1, 3, 3], [0, 8, 2]])
    seen_BV = torch.zeros(2, 9, dtype=torch.bool).scatter(-1, ids_BT, True)
    expected = RepetitionPenaltyLogitsProcessor(1.3)(ids_BT, logits_BV)
    torch.testing.assert_close(penalised(logits_BV, seen_BV, 1.3), expected)


def wrapped(docs, kind):
    """A tiny random model over the docs tokenizer: what the cache does is independent of what the model says."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    common = {"vocab_size": 4096, "num_key_value_heads": 2, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "windowed":
            config = MistralConfig(**sizes, **common, max_position_embeddings=96, sliding_window=12)
            return checkpoints.wrap(MistralForCausalLM(config).eval(), docs[0].tokenizer)
        config = LlamaConfig(**sizes, **common, max_position_embeddings=96, initializer_range=0.3)
        return checkpoints.wrap(LlamaForCausalLM(config).eval(), docs[0].tokenizer)


QUESTIONS = ["What is a list?", "Name it", "Return the number of items in a container, and say why it is so"]


@pytest.mark.parametrize("kind", ["plain", "windowed"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_prefix_read_once_and_a_batch_change_no_answer(docs, kind, temperature):
    model, shared = wrapped(docs, kind), docs[0].tokenizer("Some constant text that stands before.\n")["input_ids"]
    contexts = [shared + docs[0].tokenizer(question)["input_ids"] for question in QUESTIONS]
    sampling = Sampling(temperature=temperature, max_new_tokens=16)
    prefix = completion.read(model, shared)
    together = streaming.write(model, contexts, [0, 1, 2], sampling=sampling, endings={}, prefix=prefix)
    for number, context in enumerate(contexts):
        alone = streaming.write(model, [context], [number], sampling=sampling, endings={})[0]
        assert together[number] == alone
        assert alone.ids == sample(model, [context], [number], sampling)[0][: len(alone.ids)]
    again = streaming.write(model, contexts, [0, 1, 2], sampling=sampling, endings={}, prefix=prefix)
    assert again == together


def test_answers_end_at_end_of_text_as_in_plain_sampling():
    model = checkpoints.load("sums-base")
    contexts = [model.tokenizer(prompt["prompt"])["input_ids"] for prompt in sums.prompts(6, seed=0)]
    sampling = Sampling(max_new_tokens=60)
    found = streaming.write(model, contexts, range(6), sampling=sampling, endings={})
    for answer, plain in zip(found, sample(model, contexts, range(6), sampling), strict=True):
        assert answer.ended == "end"
        assert answer.ids == plain[:-1]
        assert answer.text == model.tokenizer.decode(answer.ids)


def test_streaming_leaves_gradients_on_for_its_reader(docs):
    pieces = streaming.stream(
        docs[0], [docs[0].tokenizer("Return")["input_ids"]], [0], sampling=Sampling(max_new_tokens=4), endings={}
    )
    for _ in pieces:
        assert torch.is_grad_enabled()


def test_a_context_that_leaves_no_room_is_a_sentence_before_anything_is_written(docs):
    with pytest.raises(ValueError, match=r"the context of text 7 has 300 tokens; .* reads at most 256"):
        streaming.write(docs[0], [[5], [5] * 300], [6, 7], sampling=Sampling(), endings={})
    full = streaming.write(docs[0], [[5], [5] * 250], [6, 7], sampling=Sampling(max_new_tokens=9), endings={})
    assert len(full[1].ids) <= 6
    assert streaming.write(docs[0], [], [], sampling=Sampling(), endings={}) == []


class Numbers:
    """A tokenizer whose text is the ids themselves; none is special."""

    all_special_ids, unk_token_id, eos_token_id = (), None, None

    def decode(self, ids, **_):
        return "".join(f"{token} " for token in ids)


def test_every_architecture_writes_the_same_alone_in_a_batch_and_after_a_prefix(tiny):
    model = checkpoints.wrap(tiny, Numbers())
    shared = [7, 3, 9, 11, 40, 2, 5]
    contexts = [[*shared, 8], [*shared, 4, 4, 30, 21, 6], [*shared, 50, 1]]
    sampling, prefix = Sampling(max_new_tokens=8), completion.read(model, shared)
    together = streaming.write(model, contexts, [0, 1, 2], sampling=sampling, endings={}, prefix=prefix)
    for context, answer in zip(contexts, together, strict=True):
        expected = []
        while len(expected) < 8:
            with torch.no_grad():
                logits = tiny(input_ids=torch.tensor([[*context, *expected]]), use_cache=False).logits
            expected.append(int(logits[0, -1].argmax()))
        ends = streaming.ending_ids(model) & set(expected)
        stop = min((expected.index(token) for token in ends), default=len(expected))
        assert list(answer.ids) == expected[:stop]
