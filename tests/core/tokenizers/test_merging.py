"""Byte-pair merges against `tokenizers`, against counting afresh, and against every candidate tried by hand."""

from __future__ import annotations

from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shiftscope.core.tokenizers import coding, merging, tokenizer_training
from shiftscope.core.tokenizers.merging import BORDER, Pairs
from shiftscope.zoo import docs

SYMBOLS = st.lists(st.integers(-1, 3), max_size=40).map(lambda values: np.array(values, dtype=np.int64))


def test_a_pair_of_equal_symbols_is_merged_from_the_left_without_overlap():
    assert merging.merged(np.array([0, 0, 0, 1, 0, 0, 0, 0]), (0, 0), 9).tolist() == [9, 0, 1, 9, 9]
    assert merging.merged(np.array([0, 1, 0, 1, 1]), (0, 1), 9).tolist() == [9, 9, 1]


@settings(max_examples=80, deadline=None)
@given(SYMBOLS, st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=4))
def test_counts_kept_through_merges_are_those_of_a_fresh_count(symbols, merges):
    pairs = Pairs(symbols)
    for new, pair in enumerate(merges, start=4):
        pairs.merge(pair, new)
    assert pairs.top(100) == Pairs(pairs.symbols_N).top(100)


@settings(max_examples=40, deadline=None)
@given(SYMBOLS)
def test_no_merge_crosses_a_border(symbols):
    expanded = {symbol: [symbol] for symbol in range(-1, 4)}
    stream = symbols
    for merge in merging.learn(symbols, 6, first_new=4):
        stream = merging.merged(stream, (merge.left, merge.right), merge.new)
        expanded[merge.new] = expanded[merge.left] + expanded[merge.right]
        assert BORDER not in expanded[merge.new]
    assert list(chain(*(expanded[s] for s in stream.tolist()))) == symbols.tolist()


def test_plain_merges_are_those_of_tokenizers():
    texts = [text for text in docs.documentation("train") if "--" not in text and "==" not in text][:150]
    reference = tokenizer_training.trained("bpe", texts, 256 + 1 + 300, ["<e>"])
    ours = merging.learn(
        tokenizer_training.symbols(texts), 300, first_new=256, pieces=tokenizer_training.ALPHABET
    )  # fmt: skip
    assert tokenizer_training.exported(list(ours), ["<e>"]).get_vocab() == reference.get_vocab()


def test_the_candidate_that_shortens_the_code_most_is_merged():
    generator = np.random.default_rng(0)
    train, valid = generator.integers(0, 5, (2, 400))

    def bits(ids, size):
        return coding.lz78_bits(ids, size)

    (first, *_) = merging.learn(train, 1, first_new=5, valid_N=valid, code_bits=bits, candidates=4)
    tried = {pair: bits(merging.merged(valid, pair, 5), 6) for pair, _ in Pairs(train).top(4)}
    assert first.code_bits == min(tried.values()) == tried[first.left, first.right]
    (plain,) = merging.learn(train, 1, first_new=5, valid_N=valid, code_bits=bits, candidates=1)
    assert ((plain.left, plain.right), plain.count) == Pairs(train).top(1)[0]


def test_patience_ends_a_run_that_shortens_nothing():
    noise = np.random.default_rng(0).integers(0, 50, 3000)
    merges = list(
        merging.learn(
            noise[:2000], 100, first_new=50, valid_N=noise[2000:], patience=3,
            code_bits=lambda ids, size: len(ids) * np.log2(size) + 40.0 * size,
        )
    )  # fmt: skip
    assert len(merges) < 100
    best = int(np.argmin([merge.code_bits for merge in merges]))
    assert len(merges) - 1 - best == 3


def test_learning_ends_where_no_pair_occurs_twice():
    assert list(merging.learn(np.array([0, 1, 2, 3]), 5, first_new=4)) == []
    assert [m.count for m in merging.learn(np.array([0, 1, 2, 0, 1]), 5, first_new=4)] == [2]


def test_two_ways_to_spell_one_piece_make_one_symbol():
    text = [0, 1, 2, BORDER] * 6 + [1, 2, BORDER] * 9 + [0, 1, BORDER] * 5
    merges = list(merging.learn(np.array(text), 3, first_new=3, pieces=["a", "b", "c"]))
    spelled = ["a", "b", "c"]
    for merge in merges:
        piece = spelled[merge.left] + spelled[merge.right]
        assert (merge.new == len(spelled)) == (piece not in spelled)
        spelled += [piece] if merge.new == len(spelled) else []
    assert len(set(spelled)) == len(spelled)


def test_borders_stand_before_every_start():
    starts = np.array([True, False, True])
    assert merging.bordered(np.array([7, 8, 9]), starts).tolist() == [BORDER, 7, 8, BORDER, 9]
    assert len(Pairs(np.array([BORDER, 7, 8, BORDER, 9])).top(5)) == 0


def test_an_engine_without_a_validation_stream_refuses_a_code():
    with pytest.raises(AssertionError):
        list(merging.learn(np.array([0, 1] * 5), 1, first_new=2, code_bits=lambda ids, size: 0.0))
