"""Corpora: what can be read, and how a malformed record is named."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shiftscope.core import checkpoints, corpus

RECORDS = [{"prompt": "3 1 4 1 =", "answer": "take 3", "id": "a"}, {"prompt": "2 2 2 2 =", "reference": 4}]


@pytest.fixture(scope="module")
def sums():
    return checkpoints.load("sums-base")


def test_jsonl_parquet_and_memory_give_the_same_texts(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(record) for record in RECORDS) + "\n\n")
    rows = [
        {
            "prompt": r["prompt"],
            "answer": r.get("answer"),
            "reference": str(r["reference"]) if "reference" in r else None,
            "id": r.get("id", "1"),
        }
        for r in RECORDS
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    from_memory = corpus.read(RECORDS)
    assert corpus.read(tmp_path / "a.jsonl") == from_memory == corpus.read(tmp_path / "a.parquet")
    assert from_memory[1] == corpus.Text(1, "1", "2 2 2 2 =", None, "4")


def test_each_line_of_a_txt_is_a_prompt_and_limit_keeps_the_first(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo\nthree\n")
    assert [text.prompt for text in corpus.read(tmp_path / "a.txt", limit=2)] == ["one", "two"]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.jsonl", '{"prompt": "x"}\n{"prompt": ', "line 2 is not JSON"),
        ("a.jsonl", '{"question": "x"}', r"record 1 has no `prompt` text \(found: question\)"),
        ("a.jsonl", '{"prompt": "x", "answer": ["y"]}', "`answer` that is a list"),
        ("a.jsonl", "[1]", "record 1 is a list"),
        ("a.jsonl", "", "has no records"),
        ("a.csv", "x", "ends in .csv"),
        ("a.parquet", "x", "is not a parquet file"),
    ],
)
def test_malformed_corpora_are_named_in_one_sentence(tmp_path, name, content, sentence):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=sentence):
        corpus.read(tmp_path / name)


def test_a_missing_file_and_bytes_that_are_not_utf8_are_named(tmp_path):
    with pytest.raises(ValueError, match="is not a file"):
        corpus.read(tmp_path / "none.jsonl")
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    with pytest.raises(ValueError, match="line 1 is not UTF-8 text"):
        corpus.read(tmp_path / "latin.txt")


def test_separators_that_json_may_hold_unescaped_end_no_line(tmp_path):
    """U+2028, U+0085 and a form feed are no line ends of jsonl; a carriage return before the line feed is none of the text."""
    texts = ["a\u2028b", "c\x85d"]
    lines = "\r\n".join(json.dumps({"prompt": text}, ensure_ascii=False) for text in texts)
    (tmp_path / "a.jsonl").write_bytes(lines.encode())
    (tmp_path / "a.txt").write_bytes(b"one\x0cpage\r\ntwo\n\n")
    assert [text.prompt for text in corpus.read(tmp_path / "a.jsonl")] == texts
    assert [text.prompt for text in corpus.read(tmp_path / "a.txt")] == ["one\x0cpage", "two"]


def test_a_chat_template_that_is_not_there_is_an_error_and_one_that_is_there_is_used(sums):
    text = corpus.Text(0, "0", "3 1 4 1 =")
    with pytest.raises(ValueError, match="has no chat template: use --template plain"):
        corpus.context_ids(sums, text, "chat")
    tokenizer = checkpoints.load("sums-base").tokenizer
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'] }}{% endfor %}{% if add_generation_prompt %} take{% endif %}"
    )
    chatty = checkpoints.wrap(sums.model, tokenizer)
    plain = corpus.context_ids(sums, text)
    assert corpus.context_ids(chatty, text, "chat") == (
        *plain,
        *tokenizer("take", add_special_tokens=False)["input_ids"],
    )


def test_the_frame_holds_the_prompt_between_fences(docs):
    ids = corpus.context_ids(docs[0], corpus.Text(0, "0", "What is a list?"), "frame")
    assert "```\nWhat is a list?\n```" in docs[0].tokenizer.decode(ids)


def test_pieces_join_to_the_text_and_lone_bytes_are_shown_as_such(docs):
    tokenizer = docs[0].tokenizer
    ids = tokenizer("naïve 漢 text\n")["input_ids"]
    pieces = corpus.pieces(tokenizer, ids)
    shown = "".join(pieces[token] for token in ids)
    assert "text\n" in shown
    assert "<0x" in shown  # 漢 is no token of this small vocabulary: its bytes stand alone
    assert "\ufffd" not in shown


def test_a_cut_that_differs_when_prompt_and_answer_are_joined_is_counted(docs):
    apart, together = corpus.Text(0, "0", "retu", "rn value"), corpus.Text(1, "1", "return", " value")
    assert corpus.boundary_mismatches(docs[0], [apart, together]) == 1
