"""Streams are what the tokenizer gives, their places are places of the text, and nothing lost goes unseen."""

from __future__ import annotations

import json
from itertools import chain

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from shiftscope.core.tokenizers import segmentation, tokenizer_training
from shiftscope.core.tokenizers.segmentation import cut, opened
from shiftscope.zoo import docs

TEXTS = ["The cat sat.", "", "  Two blanks,\n\tand a tab; naïve 中文 \U0001f642!", "x"]


@pytest.fixture(scope="module")
def makes():
    texts = [*docs.documentation("train")[:60], *TEXTS]
    return {kind: tokenizer_training.trained(kind, texts, 700, ["<e>"]) for kind in ("bpe", "wordpiece", "unigram")}


@pytest.mark.parametrize("kind", ["bpe", "wordpiece", "unigram"])
def test_ids_are_the_tokenizers_own_and_places_rise_through_the_texts(makes, kind):
    (tokens,) = opened({kind: makes[kind]})
    found = cut(tokens, TEXTS)
    encodings = [makes[kind].encode(text, add_special_tokens=False).ids for text in TEXTS]
    assert found.stream.ids_N.tolist() == list(chain(*encodings))
    assert found.stream.lengths_D.tolist() == list(map(len, encodings))
    assert (np.diff(found.end_N) >= 0).all()
    assert found.end_N[-1] == sum(map(len, TEXTS))
    assert (found.begin_N <= found.end_N).all()


def test_byte_level_bpe_and_unigram_with_byte_fallback_give_every_text_back(makes):
    for kind in ("bpe", "unigram"):
        (tokens,) = opened({kind: makes[kind]})
        found = cut(tokens, [*TEXTS, "ಠ_ಠ unseen ǅ"])
        assert not found.lossy_D.any()
        assert (found.stream.ids_N != found.unknown_id).all()
        assert np.isin(found.stream.ids_N, found.byte_ids).any() == (kind == "unigram")


def test_wordpiece_loses_blanks_and_says_so(makes):
    (tokens,) = opened({"wordpiece": makes["wordpiece"]})
    found = cut(tokens, ["a  b", "ಠ"])
    assert found.lossy_D.all()
    assert found.stream.ids_N[-1] == found.unknown_id


def test_words_start_where_the_pre_tokenizer_cuts(makes):
    (tokens,) = opened({"bpe": makes["bpe"]})
    text = "The cataclysmic, sat"
    found = cut(tokens, [text])
    starts = found.begin_N[found.word_N].tolist()
    assert starts == [start for _, (start, _) in makes["bpe"].pre_tokenizer.pre_tokenize_str(text)]


def test_what_a_tokenizer_adds_around_a_text_is_not_measured_and_the_given_one_is_not_altered(makes):
    dressed = Tokenizer.from_str(makes["bpe"].to_str())
    dressed.post_processor = processors.TemplateProcessing(single="<e> $A <e>", special_tokens=[("<e>", 0)])
    dressed.enable_truncation(5)
    before = dressed.to_str()
    (tokens,) = opened({"dressed": dressed})
    (plain,) = opened({"bpe": makes["bpe"]})
    assert cut(tokens, TEXTS).stream.ids_N.tolist() == cut(plain, TEXTS).stream.ids_N.tolist()
    assert dressed.to_str() == before


def test_text_that_a_tokenizer_normalises_away_is_refused():
    eraser = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    eraser.normalizer, eraser.pre_tokenizer = normalizers.Replace("z", ""), pre_tokenizers.Whitespace()
    (tokens,) = opened({"eraser": eraser})
    with pytest.raises(ValueError, match=r"eraser turns all 2 texts \(5 characters\) into no token at all"):
        cut(tokens, ["zzz", "zz"])


def test_tokenizers_are_named_by_checkpoint_folder_or_file(tmp_path, makes):
    makes["bpe"].save(str(tmp_path / "tokenizer.json"))
    found = opened(["docs-base", str(tmp_path), str(tmp_path / "tokenizer.json")])
    assert [tokens.size for tokens in found] == [4096, 700, 700]
    assert found[0].label == "docs_base"
    assert len({tokens.label for tokens in found}) == 3
    assert found[1].provenance["sha256"] == found[2].provenance["sha256"]
    assert opened({"one": makes["bpe"], "two": docs.train_tokenizer(TEXTS, 300)})[1].kind == "BPE"


def test_a_folder_that_is_called_tokenizer_is_named_with_the_one_that_it_lies_in(tmp_path, makes):
    (tmp_path / "fitted" / "tokenizer").mkdir(parents=True)
    makes["bpe"].save(str(tmp_path / "fitted" / "tokenizer" / "tokenizer.json"))
    found = opened(["docs-base", str(tmp_path / "fitted" / "tokenizer")])
    assert [tokens.name for tokens in found] == ["docs-base", "fitted/tokenizer"]


def test_a_tokenizer_that_is_given_twice_is_refused():
    with pytest.raises(ValueError, match="docs-base is given twice"):
        opened(["docs-base", "docs-base"])


def test_a_tokenizer_of_unknown_kind_is_refused_in_one_sentence(tmp_path):
    (tmp_path / "spm.model").write_text("no json")
    strange = {"version": "1.0", "added_tokens": [], "model": {"type": "Oracle"}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(strange))
    for name in (str(tmp_path / "spm.model"), str(tmp_path)):
        with pytest.raises(ValueError, match="is a tokenizer of an unknown kind"):
            opened([name])
    with pytest.raises(ValueError, match="is a int: a tokenizer of an unknown kind"):
        opened({"number": 3})
    with pytest.raises(ValueError, match="is no checkpoint"):
        opened(["no-such-tokenizer"])


def test_byte_tokens_are_recognised_by_their_names():
    assert segmentation.BYTE_TOKEN.fullmatch("<0xE4>")
    assert not segmentation.BYTE_TOKEN.fullmatch("<0xE4>x")
