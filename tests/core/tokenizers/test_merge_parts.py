"""merge_parts: merges learnt in parts are those learnt at once, and an interrupted training goes on."""

import pytest

from shiftscope.core.parts import Parts
from shiftscope.core.tokenizers import coding, merge_parts, tokenizer_training
from shiftscope.core.tokenizers.merge_parts import learnt
from shiftscope.core.tokenizers.tokenizer_training import Compressing
from shiftscope.zoo import docs

SETTINGS = Compressing(candidates=4, valid_bytes=4_000)


@pytest.fixture(scope="module")
def sides():
    texts = docs.documentation("train")
    return texts[:25], texts[25:30]


@pytest.mark.parametrize("patience", [None, 2])
def test_parts_change_no_merge(sides, patience, monkeypatch):
    monkeypatch.setattr(merge_parts, "CHUNK", 7)
    settings = Compressing(candidates=4, valid_bytes=4_000, patience=patience)
    seen = []
    found = learnt(sides, 24, settings, stage="m", parts=Parts(), advance=lambda *place: seen.append(place))
    assert found == tokenizer_training.compression_merges(*sides, 24, settings)
    assert seen[-1] == (24, 24) or patience
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_an_interrupted_training_measures_no_finished_part_again(sides, tmp_path, monkeypatch):
    monkeypatch.setattr(merge_parts, "CHUNK", 6)
    own, calls = coding.code_bits, []

    def counted(*given):
        calls.append(1)
        if len(calls) == limit:
            raise KeyboardInterrupt
        return own(*given)

    monkeypatch.setattr(coding, "code_bits", counted)
    limit = 50
    with pytest.raises(KeyboardInterrupt):
        learnt(sides, 18, SETTINGS, stage="m", parts=Parts(tmp_path))
    before, limit = len(calls), 0
    resumed = learnt(sides, 18, SETTINGS, stage="m", parts=Parts(tmp_path, resume=True))
    rest = len(calls) - before
    calls.clear()
    assert resumed == learnt(sides, 18, SETTINGS, stage="m", parts=Parts())
    assert rest < 0.75 * len(calls)


def test_texts_without_pairs_give_no_merge():
    assert learnt((["ab"], ["ab"]), 5, SETTINGS, stage="m", parts=Parts()) == []
