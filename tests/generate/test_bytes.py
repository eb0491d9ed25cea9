"""generate bytes: answers are scored and drawn by the exact law; middles are found where a prefix cuts a word, naive ones beside."""

import json
import math

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from shiftscope.core import checkpoints
from shiftscope.core.bytes import byte_law
from shiftscope.core.bytes.byte_model import ByteModel, ByteSampling
from shiftscope.core.bytes.infilling import Infilling
from shiftscope.generate.bytes import bytes_

MARKS = ("<fim_prefix>", "<fim_suffix>", "<fim_middle>")
NOUNS = {
    "lantern": "light it", "lance": "throw it", "language": "speak it", "landing": "sweep it", "kettle": "boil it",
    "key": "turn it", "keyboard": "type on it", "keeper": "ask him", "candle": "burn it", "candy": "eat it",
    "canvas": "paint it", "canal": "cross it",
}  # fmt: skip
SILENT = ("we take", "they keep", "you want", "all of us see")


def sentences(n, seed):
    """(prefix, noun, suffix) of sentences whose end says which noun stands in the middle."""
    generator = np.random.default_rng(seed)
    words = list(NOUNS)
    for _ in range(n):
        noun = words[generator.integers(len(words))]
        yield f"{SILENT[generator.integers(4)]} the", f" {noun}", f" and then {NOUNS[noun]}."


@pytest.fixture(scope="module")
def filler():
    """A tiny model taught to fill in whole words in both orders, with StarCoder's tokens; a few seconds."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420, show_progress=False, special_tokens=["<end>", *MARKS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(["".join(parts) for parts in sentences(400, 0)], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<end>", bos_token="<end>", extra_special_tokens=list(MARKS)
    )
    p, s, m = fast.convert_tokens_to_ids(list(MARKS))
    rows = []
    for number, parts in enumerate(sentences(600, 1)):
        prefix, middle, suffix = (fast(part)["input_ids"] for part in parts)
        psm, spm = [p, *prefix, s, *suffix, m, *middle], [p, s, *suffix, m, *prefix, *middle]
        rows.append([0, *(psm if number % 2 else spm), 0])
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    labels = ids.masked_fill(torch.arange(width)[None] >= torch.tensor([len(row) for row in rows])[:, None], -100)
    config = LlamaConfig(
        vocab_size=len(fast), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=128, pad_token_id=0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
        optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
        for _ in range(160):
            some = torch.randint(len(ids), (32,))
            loss = model(ids[some], labels=labels[some]).loss
            loss.backward()
            optimiser.step()
            optimiser.zero_grad()
    model.eval()
    return checkpoints.wrap(model, fast)


def naive(model, order, prefix, suffix):
    """Token prompting: the prefix as complete tokens, the middle after the frame (engine of the middle, covered bytes)."""
    ids = {part: model.checkpoint.tokenizer(part)["input_ids"] for part in (prefix, suffix)}
    p, s, m = model.checkpoint.tokenizer.convert_tokens_to_ids(list(MARKS))
    frame = [p, *ids[prefix], s, *ids[suffix], m] if order == "psm" else [p, s, *ids[suffix], m, *ids[prefix]]
    engine = model.engine
    return engine.framed(frame, engine.tokens, engine.rules, engine.ends), b""


@pytest.mark.parametrize("order", ["psm", "spm"])
def test_middles_after_a_cut_word_are_found_byte_for_byte_where_token_prompting_fails(filler, order, tmp_path):
    """Replication of the source's use: prefixes that end inside a token, exact against prompts of complete tokens."""
    cuts = [
        {"prompt": prefix + noun[:cut], "answer": noun[cut:], "suffix": suffix}
        for prefix, noun, suffix in sentences(20, 9)
        for cut in (3, 4)
        if cut < len(noun)
    ]
    (tmp_path / "cuts.jsonl").write_text("\n".join(map(json.dumps, cuts)))
    sampling = ByteSampling(temperature=0, max_new_bytes=16)
    result = bytes_(filler, prompts=tmp_path / "cuts.jsonl", sampling=sampling, infilling=Infilling(order))
    model = ByteModel(filler)
    asked = [naive(model, order, row["prompt"], row["suffix"]) for row in cuts]
    drawn = model.draw(asked, [b""] * len(asked), sampling, ())
    matched = np.mean([one.text == row["answer"] for one, row in zip(drawn, cuts, strict=True)])
    bits = []
    for (engine, _), row in zip(asked, cuts, strict=True):
        laws = byte_law.teacher_forced(engine, row["answer"].encode())
        bits.append((laws[0].logp - laws[-1].logp) / math.log(2))
    assert result["middle_exact_share"] > 0.95  # measured: 1.0, 0.005 bits per middle
    assert matched < 0.1  # measured: 0.0, 24 to 26 bits
    assert result["middle_bits"] < 0.5
    assert np.mean(bits) > 10
    assert result["middle_end_bits"] < 0.2
    assert result.table["stopped"].to_pylist().count("given") == len(cuts)
    pairs = [(row["prompt"], row["suffix"]) for row in cuts]
    covers = model.infill(pairs, ByteSampling("cover", temperature=0, max_new_bytes=8), how=Infilling(order))
    assert np.mean([one.text == row["answer"] for one, row in zip(covers, cuts, strict=True)]) > 0.95
    assert {one.stopped for one in covers} == {"end"}


def test_the_command_scores_given_answers_and_draws_the_others(docs, tmp_path):
    file = tmp_path / "prompts.jsonl"
    rows = [{"prompt": "Return the absolu", "answer": "te value of"}, {"prompt": "Raise ValueErr"}]
    file.write_text("\n".join(map(json.dumps, rows)))
    result = bytes_(docs[0], prompts=file, support="unmasked", sampling=ByteSampling(max_new_bytes=10, samples=2))
    assert result["given_bits_per_byte"] < 2
    assert result.table["stopped"].to_pylist().count("given") == 1
    assert len(result.table) == 3
    assert result["positions_per_byte"] <= 1.3  # two answers of some ten bytes; what the prompts need is not counted
    assert any("exact in a fuzz" in note for note in result.notes)
    result.save(tmp_path / "out")
