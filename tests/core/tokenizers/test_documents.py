"""Documents come with their domain and language; what cannot be read is said in one sentence."""

from __future__ import annotations

import json

import pytest

from shiftscope.core.tokenizers import documents


def test_a_record_has_a_text_or_a_prompt_with_its_answer():
    found = documents.documents(
        [{"text": "a", "domain": "x", "language": "tr"}, {"prompt": "b", "answer": "c"}, {"text": ""}]
    )
    assert [(d.text, d.domain, d.language) for d in found] == [("a", "x", "tr"), ("bc", None, None)]


def test_each_of_several_files_is_a_domain_unless_its_records_name_one(tmp_path):
    (tmp_path / "news.txt").write_text("one\n\ntwo\n")
    (tmp_path / "rest.jsonl").write_text(json.dumps({"text": "x"}) + "\n" + json.dumps({"text": "y", "domain": "own"}))
    names = [str(tmp_path / name) for name in ("news.txt", "rest.jsonl")]
    assert [d.domain for d in documents.documents(names)] == ["news", "news", "rest", "own"]
    assert [d.domain for d in documents.documents(names[0])] == [None, None]
    assert [d.text for d in documents.documents(names, limit=1)] == ["one", "x"]
    assert [entry["file"] for entry in documents.identified(names)] == names
    assert documents.identified([{"text": "a"}])[0]["records"] == 1


@pytest.mark.parametrize("records", [[], [{"text": ""}]])
def test_an_empty_corpus_is_refused(records):
    with pytest.raises(ValueError, match="no text in the given records: give at least one record"):
        documents.documents(records)


def test_malformed_records_are_named():
    with pytest.raises(ValueError, match=r"record 2 has no text in `text` or `prompt` \(found: title\)"):
        documents.documents([{"text": "a"}, {"title": "b"}])
    with pytest.raises(ValueError, match="record 1 has no text"):
        documents.documents([{"text": 3}])
    with pytest.raises(ValueError, match="record 1 holds half of a surrogate pair"):
        documents.documents([{"text": "a\ud800"}])
