"""Claims about embeddings: mean pooling by hand, no effect of order or batches, one law for files and memory, named faults."""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from shiftscope.core import embedding
from shiftscope.core.embedding import Embedding
from shiftscope.core.parts import Parts

TEXTS = ["a cat sat", "dogs", "the law of large numbers holds here too", "a cat sat", "rain in the north"]
HAS_DEFAULT = importlib.util.find_spec(embedding.DEFAULT_PACKAGE) is not None


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random sentence encoder in Hugging Face format."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    path = tmp_path_factory.mktemp("encoder")
    words = {word: i for i, word in enumerate(["[PAD]", "[UNK]", *sorted(set(" ".join(TEXTS).split()))])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", model_max_length=24
    )
    fast.save_pretrained(path)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(
            BertConfig(vocab_size=len(words), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                       intermediate_size=32, max_position_embeddings=24, initializer_range=0.5)
        ).save_pretrained(path)  # fmt: skip
    return str(path)


def test_a_vector_is_the_mean_of_the_token_states(folder):
    encoder = embedding.load(Embedding(folder))
    rows, tokens = embedding.embed(encoder, TEXTS, 2)
    assert tokens.tolist() == [3, 1, 8, 3, 4]
    for text, row in zip(TEXTS, rows, strict=True):
        batch = encoder.tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            state = encoder.model(**batch).last_hidden_state[0]
        assert row == pytest.approx(state.mean(0).numpy(), abs=1e-5)


def test_batches_and_order_do_not_matter_and_empty_texts_have_no_direction(folder):
    encoder = embedding.load(Embedding(folder))
    rows, _ = embedding.embed(encoder, [*TEXTS, "  "], 1)
    again, _ = embedding.embed(encoder, ["  ", *TEXTS[::-1]], 4)
    assert again[::-1] == pytest.approx(rows, abs=1e-5)
    assert (rows[-1] == 0).all()


def test_corpora_are_the_same_from_text_jsonl_parquet_and_memory(folder, tmp_path):
    (tmp_path / "c.txt").write_text("\n".join(TEXTS))
    (tmp_path / "c.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in TEXTS))
    pq.write_table(pa.table({"text": TEXTS}), tmp_path / "c.parquet")
    encoder = embedding.load(Embedding(folder))
    found = [
        embedding.embedded([embedding.read(source, "c")], encoder)[0].rows_ND
        for source in (TEXTS, tmp_path / "c.txt", tmp_path / "c.jsonl", tmp_path / "c.parquet")
    ]
    assert all((rows == found[0]).all() for rows in found)


def test_vectors_come_from_npy_and_parquet_as_they_are(tmp_path):
    rows = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    np.save(tmp_path / "v.npy", rows)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), 3)
    pq.write_table(pa.table({"embedding": vectors, "text": TEXTS[:4], "id": list("wxyz")}), tmp_path / "v.parquet")
    matrix, table = (embedding.read(tmp_path / name, "v") for name in ("v.npy", "v.parquet"))
    assert isinstance(matrix.rows_ND, np.memmap)
    assert (np.asarray(matrix.rows_ND) == rows).all()
    assert (table.rows_ND == rows).all()
    assert (list(table.ids), list(table.texts)) == (list("wxyz"), TEXTS[:4])


def test_large_vectors_wait_in_a_temporary_file_and_are_the_same(folder, tmp_path, monkeypatch):
    """Made here or unpacked from parquet, over several batches; the file has no name and is gone with the matrix."""
    vectors = np.random.default_rng(0).normal(size=(5000, 3)).astype(np.float32)
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), 3)
    pq.write_table(pa.table({"embedding": column}), tmp_path / "v.parquet", row_group_size=1500)
    encoder, corpus = embedding.load(Embedding(folder)), embedding.read(TEXTS * 60, "c")
    in_memory = embedding.embedded([corpus], encoder)[0].rows_ND
    monkeypatch.setattr(embedding, "IN_MEMORY", 0)
    unpacked = embedding.read(tmp_path / "v.parquet", "v").rows_ND
    made = embedding.embedded([corpus], encoder)[0].rows_ND
    assert isinstance(unpacked, np.memmap)
    assert isinstance(made, np.memmap)
    assert (unpacked == vectors).all()
    assert (made == in_memory).all()
    assert (embedding.read(tmp_path / "v.parquet", "v", limit=4200).rows_ND == vectors[:4200]).all()


def test_a_shard_of_vectors_has_nothing_to_do_and_says_so(tmp_path):
    with pytest.raises(ValueError, match="all corpora are vectors"):
        embedding.embedded([embedding.read(np.ones((4, 2)), "c")], None, parts=Parts(tmp_path, shard=(0, 2)))


def test_a_disk_that_is_too_small_for_the_vectors_is_named():
    with pytest.raises(ValueError, match=r"take 4e\+09 GB, and .* GB free: set TMPDIR"):
        embedding._room(10**12, 10**6)


BAD_VECTORS = {
    "ragged": (
        [[1.0, 2.0], [1.0]],
        ["a", "b"],
        "record 2: the column `embedding` must hold lists of one length, here it is 1 n",
    ),
    "null": (
        [[1.0, 2.0], None],
        ["a", "b"],
        "record 2: the column `embedding` must hold lists of one length, here it is null",
    ),
    "a null within": ([[1.0, 2.0], [1.0, None]], ["a", "b"], "row 1 has values that are not finite"),
    "words": (["x", "y"], ["a", "b"], "must hold lists of floats, it holds string"),
    "no text": ([[1.0], [2.0]], ["a", None], "record 2: `text` is None, not a text"),
}


@pytest.mark.parametrize("kind", BAD_VECTORS)
def test_bad_columns_of_vectors_are_named(kind, tmp_path):
    vectors, texts, sentence = BAD_VECTORS[kind]
    pq.write_table(pa.table({"embedding": vectors, "text": texts}), tmp_path / "v.parquet")
    with pytest.raises(ValueError) as error:
        embedding.read(tmp_path / "v.parquet", "c")
    assert sentence in str(error.value)


def test_interrupted_embedding_goes_on_and_equals_one_run(folder, tmp_path):
    encoder, whole = embedding.load(Embedding(folder)), [embedding.read(TEXTS * 60, "c")]
    expected = embedding.embedded(whole, encoder)[0].rows_ND
    first = Parts(tmp_path / "p")
    embedding.embedded(whole, encoder, parts=first)
    (tmp_path / "p" / "embeddings-000001.done").unlink()
    again = embedding.embedded(whole, encoder, parts=Parts(tmp_path / "p", resume=True))[0].rows_ND
    assert (again == expected).all()


def test_texts_that_are_cut_and_ids_that_repeat_are_named(folder):
    encoder = embedding.load(Embedding(folder, max_tokens=5))
    found = embedding.embedded([embedding.read([{"text": t, "id": "same"} for t in [*TEXTS, " "]], "c")], encoder)[0]
    notes = " ".join(found.notes)
    assert "1 of 6 texts are longer than 5 tokens" in notes
    assert "'same' (6 times)" in notes
    assert "1 rows have no direction" in notes
    assert len(found.ids) == 6


BAD = {
    "no text": ([{"prompt": "x"}], "has no text `text` (found: prompt)"),
    "number": ([{"text": "x"}, {"text": 3}], "record 2: `text` is a int, not a text"),
    "null": ([{"text": None}, {"text": "x"}], "record 1: `text` is null, not a text"),
    "nothing": ([], "has no records"),
    "NaN": (np.array([[1.0, 2.0], [np.nan, 1.0]]), "row 1 has values that are not finite"),
    "whole numbers": (np.ones((2, 2), dtype=int), "a matrix [texts, dimensions] of floats"),
    "no file": ("none.npy", "is not a file"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_corpora_are_named(kind):
    source, sentence = BAD[kind]
    with pytest.raises(ValueError) as error:
        embedding.read(source, "c")
    assert sentence in str(error.value)


def test_widths_encoders_and_lengths_that_do_not_fit_are_named(folder, monkeypatch):
    with pytest.raises(ValueError, match="different widths"):
        embedding.embedded([embedding.read(np.ones((2, w)), f"c{w}") for w in (2, 3)], None)
    with pytest.raises(ValueError, match="reads at most 24"):
        embedding.load(Embedding(folder, max_tokens=99))
    monkeypatch.setattr(embedding, "DEFAULT_PACKAGE", "no_such_package_here")
    with pytest.raises(ValueError, match=r"shiftscope\[embed\]"):
        embedding.load()


@pytest.mark.skipif(not HAS_DEFAULT, reason="needs the extra embed")
def test_the_default_encoder_puts_like_meanings_together():
    encoder = embedding.load()
    rows, _ = embedding.embed(encoder, ["A cat is sleeping.", "The kitten naps.", "Interest rates rose again."])
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    assert encoder.max_tokens == 256
    assert unit[0] @ unit[1] > 0.5 > 0.2 > unit[0] @ unit[2]
