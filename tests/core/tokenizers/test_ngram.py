"""Held-out n-gram prices against the recursion written out, and against flattery by a thin stream."""

from __future__ import annotations

import math
from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shiftscope.core.tokenizers.coding import Stream
from shiftscope.core.tokenizers.ngram import held_out_bits

SIZE = 4


def stream(documents: list[list[int]]) -> Stream:
    return Stream(
        np.array(list(chain(*documents)), dtype=np.int64), np.array(list(map(len, documents)), dtype=np.int64)
    )


def probability(learnt: list[list[int]], context: tuple[int, ...], symbol: int, k: int) -> float:
    """Witten–Bell of order k by counting; `context` is all there is before the symbol."""
    if k == 0:
        return 1 / SIZE
    below = probability(learnt, context, symbol, k - 1)
    if len(context) < k - 1:
        return below
    last = context[len(context) - (k - 1) :]
    after = [d[i + k - 1] for d in learnt for i in range(len(d) - k + 1) if tuple(d[i : i + k - 1]) == last]
    kinds = len(set(after))
    return (after.count(symbol) + kinds * below) / (len(after) + kinds) if after else below


DOCUMENTS = st.lists(st.lists(st.integers(0, SIZE - 1), max_size=10), min_size=2, max_size=5)


@settings(max_examples=40, deadline=None)
@given(DOCUMENTS)
def test_prices_are_those_of_the_written_recursion(documents):
    learnt_D = np.arange(len(documents)) % 2 == 0
    learnt = [d for d, chosen in zip(documents, learnt_D, strict=True) if chosen]
    held_out = [d for d, chosen in zip(documents, learnt_D, strict=True) if not chosen]
    for k, bits in enumerate(held_out_bits(stream(documents), learnt_D, SIZE, 3), start=1):
        direct = sum(-math.log2(probability(learnt, tuple(d[:i]), d[i], k)) for d in held_out for i in range(len(d)))
        assert bits == pytest.approx(direct, abs=1e-9)


def test_the_law_sums_to_one():
    learnt = [[0, 1, 2, 0, 1, 1], [2, 2]]
    for context in ([], [0], [0, 1], [3, 3]):
        total = 0.0
        for symbol in range(SIZE):
            alone, with_symbol = (
                held_out_bits(stream([*learnt, held_out]), np.array([True, True, False]), SIZE, 3)[-1]
                for held_out in (context, [*context, symbol])
            )
            total += 2 ** -(with_symbol - alone)
        assert total == pytest.approx(1.0)


def test_noise_costs_what_it_costs_at_every_order():
    noise = np.random.default_rng(0).integers(0, 64, 20_000)
    bits = held_out_bits(Stream(noise, np.array([10_000, 10_000])), np.array([True, False]), 64, 5) / 10_000
    assert bits[0] == pytest.approx(6.0, abs=0.01)
    assert (bits >= 6.0).all()  # no order flatters; the plug-in H_4 of this stream is below 0.1
