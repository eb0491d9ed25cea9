"""Answers: given ones are kept, missing ones are sampled once and kept in parts."""

import pytest

from shiftscope.core import answers, checkpoints, corpus
from shiftscope.core.decode import Sampling
from shiftscope.core.parts import Parts


@pytest.fixture(scope="module")
def pair():
    return checkpoints.load("sums-base"), checkpoints.load("sums-rlvr")


def test_given_answers_are_kept_and_missing_ones_come_from_the_tuned_model(pair):
    texts = corpus.read([{"prompt": "3 1 4 1 =", "answer": "take 3"}, {"prompt": "3 1 4 1 ="}])
    found = answers.prepare(*pair, texts, sampling=Sampling(max_new_tokens=30))
    assert found.texts[0].answer == "take 3"
    assert (
        found.paired[1].answer
        == answers.decode.sample(pair[1], [found.paired[1].tuned_context], [1], Sampling(max_new_tokens=30))[0]
    )


def test_several_samples_per_prompt_are_numbered_and_differ(pair):
    texts = corpus.read([{"prompt": "3 1 4 1 =", "id": "q"}])
    found = answers.prepare(*pair, texts, sampling=Sampling(temperature=1, samples=3, max_new_tokens=30))
    assert [text.id for text in found.texts] == ["q.0", "q.1", "q.2"]
    assert len({item.answer for item in found.paired}) > 1


def test_sampled_answers_are_read_back_from_parts(pair, tmp_path, monkeypatch):
    texts = corpus.read([{"prompt": "3 1 4 1 ="}, {"prompt": "2 2 2 2 ="}])
    first = answers.prepare(*pair, texts, sampling=Sampling(temperature=1), parts=Parts(tmp_path))
    monkeypatch.setattr(answers.decode, "sample", lambda *_: pytest.fail("sampled again"))
    assert answers.prepare(*pair, texts, sampling=Sampling(temperature=1), parts=Parts(tmp_path, resume=True)) == first


def test_the_base_may_read_the_prompt_in_its_own_frame(docs):
    texts = corpus.read([{"prompt": "What is a list?", "answer": " A list"}])
    item = answers.prepare(*docs, texts, base_template="frame").paired[0]
    assert len(item.base_context) > len(item.tuned_context)


def test_no_texts_and_no_shipped_prompts_is_an_error(tmp_path):
    tuned = checkpoints.load("sums-base")
    bare = checkpoints.Checkpoint("bare", tuned.model, tuned.tokenizer, tuned.head)
    tuned.model.config.name_or_path = str(tmp_path)
    with pytest.raises(ValueError, match="no texts are given and bare ships no prompts"):
        answers.corpus_of(None, bare)
