"""Entropies against closed forms and direct counts; codes against formulas, and against the text coming back."""

from __future__ import annotations

import lzma
import math
import zlib
from collections import Counter
from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shiftscope.core.tokenizers import coding
from shiftscope.core.tokenizers.coding import Stream


def stream(*documents: list[int]) -> Stream:
    return Stream(
        np.array(list(chain(*documents)), dtype=np.int64), np.array(list(map(len, documents)), dtype=np.int64)
    )


def unpacked(data: bytes) -> list[int]:
    values, value, shift = [], 0, 0
    for byte in data:
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            values.append(value)
            value = shift = 0
    return values


def conditional_bits(documents: list[list[int]], k: int) -> float:
    """H_k by counting tuples."""
    grams = [tuple(d[i : i + k]) for d in documents for i in range(len(d) - k + 1)]
    whole, context = Counter(grams), Counter(gram[:-1] for gram in grams)
    return sum(-n / len(grams) * math.log2(n / context[gram[:-1]]) for gram, n in whole.items())


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, 4), max_size=12), min_size=1, max_size=6))
def test_orders_are_the_conditional_entropies_of_counted_tuples(documents):
    for order in coding.orders(stream(*documents), 4):
        windows = sum(max(0, len(d) - order.k + 1) for d in documents)
        assert order.windows == windows
        if windows:
            assert order.bits == pytest.approx(conditional_bits(documents, order.k), abs=1e-9)
        else:
            assert math.isnan(order.bits)


def test_in_one_long_document_an_order_is_the_difference_of_block_entropies():
    ids = np.random.default_rng(0).integers(0, 6, 5000).tolist()
    found = coding.orders(stream(ids), 3)
    block = [0.0] + [
        coding.entropy_bits(list(Counter(zip(*(ids[j:] for j in range(k)), strict=False)).values())) for k in (1, 2, 3)
    ]
    for order, below, above in zip(found, block, block[1:], strict=False):
        assert order.bits == pytest.approx(above - below, abs=2e-3)  # the windows differ by one symbol of 5000
        assert order.block_bits == pytest.approx(above, abs=1e-9)


def test_a_document_border_is_never_crossed():
    assert coding.orders(stream([1, 2], [3, 4]), 2)[1].distinct == 2  # 12 and 34, not 23
    assert coding.orders(stream([1, 2, 3, 4]), 2)[1].distinct == 3


def test_numbering_of_ids_and_order_of_documents_change_nothing():
    a, b = [5, 6, 5, 5, 6], [6, 6, 5]
    renamed = [[{5: 900_000, 6: 3}[i] for i in d] for d in (b, a)]
    for one, other in zip(coding.orders(stream(a, b)), coding.orders(stream(*renamed)), strict=True):
        assert (one.windows, one.distinct) == (other.windows, other.distinct)
        assert one.bits == pytest.approx(other.bits, nan_ok=True, abs=1e-12)


def test_shuffling_keeps_symbols_and_lengths_and_takes_the_order_away():
    text = stream(*[[0, 1, 2, 3] * 50] * 20)
    control = text.shuffled(seed=1)
    assert sorted(control.ids_N) == sorted(text.ids_N)
    assert control.lengths_D.tolist() == text.lengths_D.tolist()
    assert coding.orders(text, 2)[1].bits == 0.0
    assert coding.orders(control, 2)[1].bits == pytest.approx(2.0, abs=0.01)  # truly H_1, 4000 symbols


def test_plug_in_entropy_of_a_shuffled_stream_falls_with_its_length_alone():
    symbols = np.random.default_rng(0).integers(0, 200, 40_000)
    short, long = (coding.orders(Stream(symbols[:n], np.array([n])), 3) for n in (2_000, 40_000))
    assert short[1].bits < 4.0 < 6.5 < long[1].bits  # the truth is log2 200 = 7.64 for both
    assert not short[1].reliable
    assert not long[2].reliable
    assert long[0].reliable


def test_a_sample_has_the_length_asked_for_and_follows_the_seed():
    text = stream(*[[d] * 7 for d in range(30)])
    some = text.sample(50, seed=3)
    assert len(some.ids_N) == some.lengths_D.sum() == 50
    assert (some.ids_N == text.sample(50, seed=3).ids_N).all()
    assert (some.ids_N != text.sample(50, seed=4).ids_N).any()
    with pytest.raises(ValueError, match="211 symbols were asked for of a stream of 210"):
        text.sample(211)


def test_entropies_of_known_laws():
    assert coding.entropy_bits([1] * 8) == pytest.approx(3.0)
    assert coding.entropy_bits([2, 1, 1]) == pytest.approx(1.5)
    assert coding.renyi_bits([1] * 8, 2) == pytest.approx(3.0)
    assert coding.renyi_bits([3, 1], 2) == pytest.approx(-math.log2(10 / 16))
    assert coding.renyi_bits([5, 2, 1], 1) == coding.entropy_bits([5, 2, 1])
    assert coding.renyi_bits([5, 2, 1], 1 + 1e-6) == pytest.approx(coding.entropy_bits([5, 2, 1]), abs=1e-4)
    assert math.isnan(coding.entropy_bits([]))
    with pytest.raises(ValueError, match="at least 0"):
        coding.renyi_bits([1], -1)


def test_lz78_is_the_sum_over_its_phrases():
    # a|ab|aba|b : four phrases over two symbols, then an unfinished one
    ids = [0, 0, 1, 0, 1, 0, 1]
    assert coding.lz78_bits(ids, 2) == pytest.approx(math.log2(24) + 4)
    assert coding.lz78_bits([*ids, 0, 1], 2) == pytest.approx(math.log2(24) + 4 + math.log2(5))
    assert coding.lz78_bits([], 2) == 0.0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 40_000), max_size=300))
def test_packing_by_rank_comes_back_and_gives_frequent_ids_the_small_numbers(ids):
    ranks = unpacked(coding.packed(ids, 40_001))
    order = sorted(set(ids), key=lambda i: (-ids.count(i), i))
    assert [order[rank] for rank in ranks] == ids


def test_large_ranks_take_more_bytes():
    ids = np.arange(20_000)
    assert len(coding.packed(ids, 20_000)) == 128 + 2 * (16_384 - 128) + 3 * (20_000 - 16_384)


def test_ids_that_do_not_fit_are_refused():
    assert coding.packed([1, 258], 65_536, "two_bytes") == b"\x01\x00\x02\x01"
    with pytest.raises(ValueError, match="65537 symbols do not fit in two bytes"):
        coding.packed([1], 65_537, "two_bytes")
    with pytest.raises(ValueError, match="do not fit in a byte"):
        coding.packed([1], 257, "bytes")


def test_deflate_and_xz_are_the_library_codes_without_their_headers():
    data = b"the same words again and again, the same words " * 200
    assert coding.deflate_bits(data) == 8 * (len(zlib.compress(data, 9)) - 6)
    assert 0 < 8 * len(lzma.compress(data)) - coding.xz_bits(data) < 8 * 100
    assert coding.code_bits(np.frombuffer(data, np.uint8), 256, "deflate", "bytes") == coding.deflate_bits(data)


def test_deflate_forgets_what_lies_beyond_its_window_and_xz_does_not():
    noise = np.random.default_rng(0).integers(0, 256, 40_000, dtype=np.uint8).tobytes()
    assert coding.deflate_bits(noise * 2) > 1.9 * coding.deflate_bits(noise)
    assert coding.xz_bits(noise * 2) < 1.1 * coding.xz_bits(noise)
