"""core/logged: log-probabilities that were written down, in several spellings, and files that do not fit."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shiftscope.core.scorers import logged


def write(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_the_spellings_say_the_same(docs, tmp_path):
    prompt = "Return the"
    ids = docs[0].tokenizer(prompt)["input_ids"]
    records = [
        {"prompt_ids": ids, "ids": [20, 30], "logprobs": [-1.0, -2.5]},
        {"prompt_token_ids": ids, "completion_ids": [20, 30], "logps": [-1.0, -2.5]},
        {"prompt": prompt, "response_ids": [20, 30], "token_logprobs": [-1.0, -2.5]},
        {"ids": [*ids, 20, 30], "logprobs": [*[None] * len(ids), -1.0, -2.5]},
    ]
    found = logged.read(write(tmp_path / "engine.jsonl", *records), docs[0])
    assert {(item.tuned_context, item.answer) for item in found.items} == {(tuple(ids), (20, 30))}
    assert set(found.logps) == {(-1.0, -2.5)}
    assert [text.prompt for text in found.texts] == [prompt] * 4
    pq.write_table(pa.Table.from_pylist(records[:1]), tmp_path / "engine.parquet")
    assert logged.read(tmp_path / "engine.parquet", docs[0]).logps == [(-1.0, -2.5)]
    assert len(logged.read(tmp_path / "engine.jsonl", docs[0], limit=2).items) == 2


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"prompt_ids": [5], "ids": [1, 2], "logprobs": [-1.0]}, "record 2 has 2 ids and 1 log-probabilities"),
        ({"prompt_ids": [5], "ids": [4096], "logprobs": [-1.0]}, "id 4096, but docs-base has ids 0 to 4095"),
        ({"prompt_ids": [-1], "ids": [1], "logprobs": [-1.0]}, "id -1"),
        ({"prompt_ids": [5], "ids": [1], "logprobs": [0.7]}, "0.7 among its log-probabilities"),
        ({"prompt_ids": [5], "ids": [1], "logprobs": [None]}, "None among"),
        ({"prompt_ids": [5], "ids": [1], "logprobs": [float("nan")]}, "nan among"),
        ({"prompt_ids": [5], "ids": "abc", "logprobs": [-1.0]}, "must be a list"),
        ({"prompt_ids": [5], "text": "x"}, r"no ids or no logprobs \(found: prompt_ids, text\)"),
        ({"ids": [1, 2], "logprobs": [-1.0, -2.0]}, "nothing of what its ids follow"),
        ([1], "is a list"),
    ],
)
def test_a_record_that_does_not_fit_is_named(docs, tmp_path, record, said):
    good = {"prompt_ids": [5], "ids": [1], "logprobs": [-1.0]}
    with pytest.raises(ValueError, match=said):
        logged.read(write(tmp_path / "engine.jsonl", good, record), docs[0])


def test_an_empty_file_is_said(docs, tmp_path):
    with pytest.raises(ValueError, match="no records"):
        logged.read(write(tmp_path / "engine.jsonl"), docs[0])
