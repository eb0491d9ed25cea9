"""added_words: added tokens are found first, leftmost and longest; special ones only where a text may name them."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from shiftscope.core import checkpoints
from shiftscope.core.bytes import byte_law, canonical, token_bytes
from shiftscope.core.bytes.byte_law import ByteLaw, engine_of
from shiftscope.core.bytes.byte_model import ByteModel

TEXT = "<|user|>what is  a <tag>?<|end|>\n<|model|>a <tagged> name    is<"


@pytest.fixture(scope="module")
def chat():
    """A random model with a chat tokenizer: special marks, added words and runs of blanks."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=290, show_progress=False, special_tokens=["<eos>"], initial_alphabet=alphabet
    )
    tokenizer.train_from_iterator([TEXT, "what is a name?"], trainer)
    tokenizer.add_special_tokens([AddedToken(mark, normalized=False) for mark in ("<|user|>", "<|model|>", "<|end|>")])
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in ("<tag>", "<tag", "  ", "    ")])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", bos_token="<eos>")
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(fast), **sizes, pad_token_id=0, bos_token_id=0, eos_token_id=0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return checkpoints.wrap(LlamaForCausalLM(config).eval(), fast)


def followed(rules, ids):
    """The states along a sequence; a token that may not follow fails."""
    states = [rules.start]
    for token in ids:
        assert rules.allows(states[-1], token)
        states.append(rules.step(states[-1], token))
    return states


def test_an_encoding_with_added_words_is_followed_and_rows_say_what_steps_do(chat):
    tokens = token_bytes.read(chat.tokenizer, spelt=("<|user|>", "<|model|>", "<|end|>"))
    rules, ids = canonical.validity(tokens), tokens.encode(TEXT)
    assert rules.exact
    assert tokens.normalised(TEXT) == TEXT.encode()
    states = followed(rules, ids)
    assert rules.closes(states[-1])
    for state in states:
        row = rules.row(state)
        assert [row[token] for token in range(tokens.size)] == [rules.allows(state, t) for t in range(tokens.size)]


def test_the_longer_of_two_added_words_wins_and_ordinary_tokens_spell_none(chat):
    tokens = token_bytes.read(chat.tokenizer)
    rules, one = canonical.validity(tokens), lambda text: tokens.equal(text)[-1]
    begun = followed(rules, [one(b"<tag")])[-1]
    assert not rules.allows(begun, one(b">"))  # it would be <tag>
    assert rules.allows(begun, one(b"g"))
    blanks = followed(rules, [one(b"  ")])[-1]
    assert not rules.allows(blanks, one(b"  "))  # four blanks are one token
    assert rules.allows(blanks, one(b"a"))
    letters = followed(rules, [one(b"<"), one(b"t")])[-1]
    spelled = [token for token in np.flatnonzero(rules.row(letters)) if tokens.spelled[token].startswith(b"ag")]
    assert spelled == []


def test_special_tokens_are_never_spelt_unless_they_are_named(chat):
    silent, named = ByteModel(chat), ByteModel(chat, spelt=("<|user|>", "<|end|>"))
    with pytest.raises(ValueError, match=r"at byte 0 what the tokenizer reads as a special .*generate bytes --spelt`"):
        silent.law("<|user|>what")
    law = named.law("<|user|>what is<|end|>\n")
    assert law.p.sum() + law.end == pytest.approx(1, abs=1e-12)
    user = chat.tokenizer.convert_tokens_to_ids("<|user|>")
    assert user not in {
        t for path in (ByteLaw(silent.engine, b"<|user|>").cover(u) for u in (0.1, 0.5, 0.9)) for t in path
    }
    assert ByteLaw(named.engine, b"<|user|>").cover(0.5)[0] == user


def test_an_end_that_is_named_is_bytes_and_ends_no_text(chat):
    silent, named = ByteModel(chat), ByteModel(chat, spelt=("<eos>",))
    before, after = silent.law("a name"), named.law("a name")
    assert before.end > 0
    assert after.end == 0
    gained = after.p[ord("<")] * (1 - after.lost) - before.p[ord("<")] * (1 - before.lost)
    assert gained == pytest.approx(before.end * (1 - before.lost), rel=1e-5)  # float32


def test_an_end_id_that_is_an_ordinary_added_token_is_not_counted_twice(chat):
    """Some vocabularies list marks that end a text among the added words that are not special."""
    model = chat.model
    tag = chat.tokenizer.convert_tokens_to_ids("<tag>")
    model.generation_config.eos_token_id = [0, tag]
    try:
        engine = engine_of(chat)
    finally:
        model.generation_config.eos_token_id = 0
    assert engine.tokens.spelled[tag] is None
    law = ByteLaw(engine, b"a name").law()
    assert 0 <= law.lost < 1
    assert law.p.sum() + law.end == pytest.approx(1, abs=1e-12)
    framed = engine_of(chat)
    framed = framed.framed([5], framed.tokens, framed.rules, (*framed.ends, tag))
    law = ByteLaw(framed, b"a name").law()
    masses = framed.masses(framed.root)
    assert masses.sum() <= 1 + 1e-6  # float32
    assert law.p.sum() + law.end == pytest.approx(1, abs=1e-12)


def test_names_that_cannot_be_spelt_are_refused(chat):
    with pytest.raises(ValueError, match=r"'<bos>' is no special token of the tokenizer \(it has <eos>"):
        token_bytes.read(chat.tokenizer, spelt=("<bos>",))
    with pytest.raises(ValueError, match="'<tag>' is no special token"):
        token_bytes.read(chat.tokenizer, spelt=("<tag>",))
    backend = Tokenizer.from_str(chat.tokenizer.backend_tokenizer.to_str())
    backend.encode_special_tokens = True
    with pytest.raises(ValueError, match="never reads special tokens in a text"):
        token_bytes.read(backend, spelt=("<|user|>",))


def test_a_model_whose_encodings_are_only_approximated_is_named(chat):
    engine, other = engine_of(chat), engine_of(chat, "all")
    assert byte_law.caveats((engine, other), ("first", "second")) == []
    tokens = engine.tokens
    window = replace(engine, rules=canonical.WindowValidity(tokens, json.loads(tokens.plain.to_str())))
    (note,) = byte_law.caveats((window, engine), ("first", "second"))
    assert "first are known by a window of tokens" in note
