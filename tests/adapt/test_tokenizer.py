"""Training a tokenizer: what is saved loads anywhere, what is measured was held out, and plain BPE stands beside it."""

from __future__ import annotations

import pytest
from transformers import AutoTokenizer

from shiftscope import report
from shiftscope.adapt.tokenizer import split, tokenizer
from shiftscope.cli import command
from shiftscope.core.parts import Parts
from shiftscope.core.tokenizers import merging, rates, tokenizer_training
from shiftscope.core.tokenizers.tokenizer_training import Compressing
from shiftscope.zoo import docs

PROBE = "Hello  wörld,\n\tdef f(x): 中文 \U0001f642"


@pytest.fixture(scope="module")
def records():
    return [{"text": text} for text in docs.documentation("train")[:300]]


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_a_trained_tokenizer_loads_and_gives_text_back(kind, records, tmp_path):
    result = tokenizer(
        texts=records[:120], out=tmp_path, kind=kind, vocabulary_size=500, special=("<|end|>", "<|pad|>")
    )
    loaded = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    assert len(loaded) == result["vocabulary"] == 500
    assert loaded.decode(loaded(PROBE)["input_ids"]) == PROBE
    assert (loaded.eos_token, loaded.bos_token) == ("<|end|>", "<|end|>")
    assert loaded("a<|end|>b<|pad|>")["input_ids"].count(loaded.eos_token_id) == 1
    assert loaded.convert_tokens_to_ids("<|pad|>") in loaded.all_special_ids
    names = result.table["tokenizer"].to_pylist()
    assert names == ["raw bytes", *(["plain BPE"] if kind != "bpe" else []), kind]
    assert result["lz78_gain"] > 0


def test_wordpiece_loses_blanks_so_no_price_of_the_text_is_given(records, tmp_path):
    result = tokenizer(texts=records[:120], out=tmp_path, kind="wordpiece", vocabulary_size=500)
    assert "lz78_bits_per_char" not in result.figures
    assert any("do not come back" in note for note in result.notes)
    assert AutoTokenizer.from_pretrained(tmp_path / "tokenizer").unk_token == "[UNK]"


def test_compression_aware_merges_beat_plain_ones_of_the_same_size_on_held_out_texts(records, tmp_path):
    settings = Compressing(candidates=16, across_words=True, train_bytes=40_000, valid_bytes=20_000)
    result = tokenizer(
        texts=records, out=tmp_path, kind="compression", vocabulary_size=317, held_out=0.3, compressing=settings
    )  # fmt: skip
    sizes = dict(zip(result.table["tokenizer"].to_pylist(), result.table["vocabulary"].to_pylist(), strict=True))
    assert sizes["compression"] == sizes["plain BPE"] == 317
    assert result["deflate_gain"] > result["deflate_gain_plain_bpe"]
    loaded = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    assert loaded.decode(loaded(PROBE)["input_ids"]) == PROBE
    curve = next(panel for panel in result.panels if panel.title == "Code of the validation texts").table
    assert len(curve) == 2 * 60
    assert report.write(result, tmp_path / "page.html").stat().st_size > 10_000


def test_one_candidate_is_plain_bpe(records, tmp_path):
    settings = Compressing(candidates=1, valid_bytes=2_000)
    result = tokenizer(texts=records[:60], out=tmp_path, kind="compression", vocabulary_size=287, compressing=settings)
    for coder in ("deflate", "xz", "lz78"):
        assert result[f"{coder}_gain"] == result[f"{coder}_gain_plain_bpe"]


def test_the_split_is_by_whole_texts_follows_the_seed_and_overlaps_nowhere():
    texts = [f"text {number}" for number in range(100)]
    train, valid, test = split(texts, 0.2, 50, seed=1)
    assert len(test) == 20
    assert sum(map(len, valid)) >= 50
    assert sorted([*train, *valid, *test]) == sorted(texts)
    assert split(texts, 0.2, 50, seed=1) == (train, valid, test)
    assert split(texts, 0.2, 50, seed=2)[2] != test
    assert tuple(map(len, split(texts[:3], 0.9, 10**6, seed=0))) == (1, 1, 1)


@pytest.mark.parametrize("kind", ["bpe", "compression"])
def test_an_interrupted_training_leaves_no_tokenizer_and_goes_on_from_its_parts(kind, records, tmp_path, monkeypatch):
    settings = {"texts": records[:60], "kind": kind, "vocabulary_size": 280}
    if kind == "compression":
        settings["compressing"] = Compressing(candidates=2, valid_bytes=2_000)
    seen = []
    whole = tokenizer(out=tmp_path / "whole", advance=lambda *place: seen.append(place), **settings)
    assert {"measuring tokenizers"} < {stage for stage, _, _ in seen}
    own, calls = rates.codes, []

    def failing(*given, **named):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return own(*given, **named)

    with monkeypatch.context() as patched:
        patched.setattr(rates, "codes", failing)
        with pytest.raises(KeyboardInterrupt):
            tokenizer(out=tmp_path / "run", parts=Parts(tmp_path / "p"), **settings)
    assert not (tmp_path / "run").exists()
    with monkeypatch.context() as patched:  # nothing is trained again
        patched.setattr(tokenizer_training, "trained", None)
        patched.setattr(merging, "learn", None)
        resumed = tokenizer(out=tmp_path / "run", parts=Parts(tmp_path / "p", resume=True), **settings)
    assert resumed.table.equals(whole.table)
    assert {n: f.value for n, f in resumed.figures.items()} == {n: f.value for n, f in whole.figures.items()}
    assert len(AutoTokenizer.from_pretrained(tmp_path / "run" / "tokenizer")) == resumed["vocabulary"]


def test_training_is_no_work_for_shards(records, tmp_path):
    with pytest.raises(ValueError, match="leave --shard out"):
        tokenizer(texts=records[:10], out=tmp_path, parts=Parts(tmp_path / "p", shard=(0, 2)))


def test_a_tokenizer_is_never_written_over(records, tmp_path):
    (tmp_path / "tokenizer").mkdir()
    with pytest.raises(ValueError, match="exists already"):
        tokenizer(texts=records, out=tmp_path)


def test_bad_input_is_one_sentence_and_leaves_no_file(records, tmp_path):
    for wrong, sentence in (
        ({"texts": []}, "no text in the given records"),
        ({"texts": records[:1]}, "there are 1 texts"),
        ({"texts": records[:2], "kind": "compression"}, "there are 2 texts: training, validation and test"),
        ({"texts": records, "kind": "charcoal"}, "'charcoal' is an unknown kind of tokenizer"),
        ({"texts": records, "vocabulary_size": 200}, "vocabulary_size is 200"),
        ({"texts": records, "special": ()}, "no special token is given"),
        ({"texts": records, "held_out": 1.0}, "held_out is 1.0"),
    ):
        with pytest.raises(ValueError, match=sentence):
            tokenizer(**{"out": tmp_path / "run", **wrong})
    assert not (tmp_path / "run").exists()


def test_help_names_every_setting():
    shown = command("adapt", "tokenizer", tokenizer).__signature__.parameters
    assert {"texts", "kind", "vocabulary_size", "candidates", "valid_bytes", "out"} <= set(shown)
    for name, parameter in shown.items():
        assert parameter.annotation.__metadata__[0].help, name
