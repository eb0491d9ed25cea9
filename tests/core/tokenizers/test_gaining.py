"""What merges are worth: counts that bytes, the tokenizer itself and an enlarged tokenizer confirm."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tokenizers import Tokenizer

from shiftscope.core.tokenizers import gaining, merging, rates, tokenizer_training
from shiftscope.core.tokenizers.segmentation import cut, opened
from shiftscope.zoo import docs


@pytest.fixture(scope="module")
def small():
    return tokenizer_training.trained("bpe", docs.documentation("train")[:40], 500, ["<e>"])


def test_without_merges_there_are_bytes_and_with_all_of_them_the_tokenizers_own_tokens(small):
    texts = docs.documentation("held out")[:40]
    (tokens,) = opened({"small": small})
    curve = gaining.own_merges(tokens, texts)
    assert curve[0] == (0, sum(len(text.encode()) for text in texts))
    assert curve[-1] == (500 - 257, len(cut(tokens, texts).stream.ids_N))
    counts = [count for _, count in curve]
    assert counts == sorted(counts, reverse=True)


def test_a_unigram_model_has_no_merges_to_take_away():
    made = tokenizer_training.trained("unigram", docs.documentation("train")[:10], 400, ["<e>"])
    assert gaining.own_merges(opened({"unigram": made})[0], ["a"]) == []


def test_added_merges_count_what_a_tokenizer_with_these_merges_would_write(small):
    texts = docs.documentation("held out")[:40]
    (tokens,) = opened({"small": small})
    counts = gaining.added_merges(cut(tokens, texts), tokens.size, 30)
    learnt = rates.halves(len(texts))
    half = [text for text, chosen in zip(texts, learnt, strict=True) if not chosen]
    assert counts[0] == len(cut(tokens, half).stream.ids_N)
    assert len(counts) == 31
    assert (np.diff(counts) <= 0).all()
    assert counts[-1] < counts[1]
    # the first merge, put into the tokenizer itself
    spec = json.loads(small.to_str())
    pieces = {number: piece for piece, number in spec["model"]["vocab"].items()}
    other = [text for text, chosen in zip(texts, learnt, strict=True) if chosen]
    theirs = cut(tokens, other)
    starts = theirs.word_N.copy()
    starts[theirs.stream.starts_D] = True
    (merge,) = merging.learn(merging.bordered(theirs.stream.ids_N, starts), 1, first_new=tokens.size)
    left, right = pieces[merge.left], pieces[merge.right]
    spec["model"]["vocab"][left + right] = tokens.size
    spec["model"]["merges"].append([left, right])
    larger = Tokenizer.from_str(json.dumps(spec))
    assert counts[1] == sum(len(encoding.ids) for encoding in larger.encode_batch(half))


def test_one_text_cannot_be_halved(small):
    (tokens,) = opened({"small": small})
    assert gaining.added_merges(cut(tokens, ["only one"]), tokens.size, 3) is None
