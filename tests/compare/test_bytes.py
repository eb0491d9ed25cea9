"""compare bytes: identity, oracle, models of different tokenizers, and the zoo's two registers."""

import json

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from shiftscope.compare.bytes import bytes_
from shiftscope.core import checkpoints, divergence
from shiftscope.core.answers import Loading
from shiftscope.core.bytes import byte_law
from shiftscope.core.decode import Sampling

PROSE = [
    {"prompt": "Return the absolu", "answer": "te value of a number.\n\nThe argument may be an integer."},
    {"prompt": "Raised when an operation ", "answer": "runs out of memory — naïve."},
    {"prompt": "Create a new list.", "answer": " The list has all elements of the iterable in the same order."},
]
CODE = [
    {
        "prompt": "    def __init__(se",
        "answer": "lf, name=None):\n        self.name = name\n        self.value = None\n",
    },
    {"prompt": "import os\n", "answer": "import sys\n\n\ndef main(args):\n    for arg in args:\n        print(arg)\n"},
]


@pytest.fixture(scope="module")
def prose(docs):
    return bytes_(*docs, texts=PROSE, support="unmasked")


@pytest.fixture(scope="module")
def stranger():
    """A random GPT-2 with a vocabulary of its own: bytes and 40 merges."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=297,
        show_progress=False,
        special_tokens=["<end>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator([text["answer"] for text in PROSE + CODE], trainer)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", bos_token="<end>")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = GPT2Config(
            vocab_size=297, n_embd=32, n_layer=2, n_head=4, n_positions=256, bos_token_id=0, eos_token_id=0
        )
        model = GPT2LMHeadModel(config).eval()
    return checkpoints.wrap(model, wrapped, "stranger")


def test_a_model_against_itself_gives_exactly_nothing(docs):
    result = bytes_(docs[0], docs[0], texts=PROSE[:1])
    for name in ("js_nats", "kl_base_tuned_nats", "kl_tuned_base_nats", "tv"):
        assert (result.table[name].to_numpy() == 0).all()
    assert "nothing changed" in result.verdict[0]


def test_every_number_equals_the_plain_computation_on_both_byte_laws(docs, prose):
    text = (PROSE[0]["prompt"] + PROSE[0]["answer"]).encode()
    first, laws = len(PROSE[0]["prompt"]), []
    for checkpoint in docs:
        engine = byte_law.engine_of(checkpoint, "unmasked")
        found = [byte_law.ByteLaw(engine, text[:place]).law() for place in (first, first + 1, first + 20)]
        laws.append(torch.tensor(np.array([np.append(law.p, law.end) for law in found])).log())
    rows = prose.table.filter(np.equal(prose.table["text"].to_numpy(), 0)).take([0, 1, 20])
    # float32 forwards in other batch layouts
    np.testing.assert_allclose(rows["js_nats"].to_numpy(), divergence.js_nats(*laws).numpy(), atol=1e-5)
    np.testing.assert_allclose(rows["kl_base_tuned_nats"].to_numpy(), divergence.kl_nats(*laws).numpy(), atol=1e-4)
    np.testing.assert_allclose(
        rows["kl_tuned_base_nats"].to_numpy(), divergence.kl_nats(*laws[::-1]).numpy(), atol=1e-4
    )
    np.testing.assert_allclose(
        rows["entropy_base_nats"].to_numpy(), divergence.entropy_nats(laws[0]).numpy(), atol=1e-4
    )


def test_the_bytes_of_an_answer_add_up_to_its_probability(docs):
    result = bytes_(*docs, texts=PROSE, support="canonical")
    for side, checkpoint in zip(("base", "tuned"), docs, strict=True):
        engine = byte_law.engine_of(checkpoint)
        for number, text in enumerate(PROSE):
            prompt, whole = text["prompt"].encode(), (text["prompt"] + text["answer"]).encode()
            expected = byte_law.logp_of(engine, whole) - byte_law.logp_of(engine, prompt)
            chosen = result.table["text"].to_numpy() == number
            # float32 in two layouts, over a hundred bytes
            assert result.table[f"logp_{side}_nats"].to_numpy()[chosen].sum() == pytest.approx(expected, abs=1e-3)


def test_going_on_with_source_code_made_code_cheaper_and_left_documentation_where_it_was(docs):
    """Replication on the zoo, held-out modules: docs-code is docs-base after more training, on source code alone."""
    from shiftscope.zoo import docs as recipe

    def passages(texts, at):
        long = [text for text in texts if len(text) > at + 200 and text.isascii()]
        return [
            {"prompt": text[at : at + 51], "answer": text[at + 51 : at + 171]} for text in long[:: len(long) // 8][:8]
        ]

    prose, code = (
        bytes_(*docs, texts=passages(texts, at), support="unmasked").all_figures()["nats_per_byte_gain"]
        for texts, at in ((recipe.documentation("held out"), 300), (recipe.sources("held out"), 2000))
    )
    assert code.low > 0.2  # measured .45 [.37, .53] nats per byte
    assert prose.high < code.low  # measured .01 [-.03, .04]


def test_models_of_different_tokenizers_are_compared_on_the_same_bytes(docs, stranger):
    result = bytes_(docs[0], stranger, texts=PROSE, support="unmasked")
    back = bytes_(stranger, docs[0], texts=PROSE, support="unmasked")
    assert len(result.table) == sum(len(text["answer"].encode()) for text in PROSE)
    np.testing.assert_allclose(result.table["js_nats"].to_numpy(), back.table["js_nats"].to_numpy(), atol=1e-5)
    np.testing.assert_allclose(
        result.table["kl_base_tuned_nats"].to_numpy(), back.table["kl_tuned_base_nats"].to_numpy(), atol=1e-3
    )
    assert (
        result["nats_per_byte_base"] < 3 < result["nats_per_byte_tuned"]
    )  # a random model knows nothing: ln 257 is 5.5
    assert result["non_canonical_share_tuned"] >= 0


def test_missing_answers_are_drawn_from_the_tuned_model_and_the_page_can_be_drawn(docs, tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text("\n".join(json.dumps({"prompt": text["prompt"]}) for text in PROSE))
    sampling = Sampling(temperature=1, samples=2, max_new_tokens=8)
    result = bytes_(*docs, texts=file, sampling=sampling, support="unmasked")
    again = bytes_(*docs, texts=file, sampling=sampling, support="unmasked", loading=Loading(batch_size=8))
    assert result.table.equals(again.table)
    told = json.loads(result.table.schema.metadata[b"texts"])
    assert [text["id"] for text in told] == ["0.0", "0.1", "1.0", "1.1", "2.0", "2.1"]
    assert any(told[0]["answer"].startswith(opening) for opening in ("te", "t"))
    from shiftscope.report import texts as page

    packed = page.pack(result.panels[0])
    assert packed["total_positions"] == len(result.table)
    result.save(tmp_path / "out")


def test_texts_without_a_byte_are_refused(docs):
    with pytest.raises(ValueError, match="no answer has a byte"):
        bytes_(*docs, texts=[{"prompt": "Return", "answer": ""}])
