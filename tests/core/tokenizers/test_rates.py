"""Rows of figures: units that add up, uniform streams that reach their bounds, bytes as their own baseline."""

from __future__ import annotations

import numpy as np
import pytest

from shiftscope.core.tokenizers import rates
from shiftscope.core.tokenizers.coding import Stream
from shiftscope.core.tokenizers.rates import Measuring, Sizes

TEXTS = ["aé", "bcd", "", "ee"]


def uniform(size: int, n: int = 4000, documents: int = 8) -> Stream:
    ids = np.random.default_rng(0).permutation(np.repeat(np.arange(size), n // size))
    return Stream(ids, np.full(documents, n // documents))


def test_sizes_and_bytes_are_those_of_the_texts():
    sizes = Sizes.of(TEXTS)
    assert sizes.characters_D.tolist() == [2, 3, 0, 2]
    assert sizes.bytes_D.tolist() == rates.byte_stream(TEXTS).lengths_D.tolist() == [3, 3, 0, 2]


def test_compression_divides_what_it_says():
    row = rates.compression(rates.byte_stream(TEXTS), Sizes.of(TEXTS), 256)
    assert row["tokens_per_char"] == pytest.approx(8 / 7)
    assert row["bytes_per_token"] == 1.0
    assert row["tokens_per_char_low"] <= 8 / 7 <= row["tokens_per_char_high"]
    assert (row["used"], row["used_share"]) == (7, 7 / 256)  # é is two bytes


def test_a_uniform_stream_uses_its_whole_capacity_and_a_reserved_half_costs_one_bit():
    stream, sizes = uniform(16), Sizes(np.full(8, 500), np.full(8, 500))
    full, half = (rates.compression(stream, sizes, size, alpha=2.5) for size in (16, 32))
    assert full["utilisation"] == pytest.approx(1.0)
    assert full["renyi_utilisation"] == pytest.approx(1.0)
    assert half["utilisation"] == pytest.approx(4 / 5)
    assert half["used_utilisation"] == pytest.approx(1.0)


def test_utilisation_of_a_single_symbol_is_undefined_not_zero():
    one = rates.compression(Stream(np.zeros(9, dtype=np.int64), np.array([9])), Sizes(np.array([9]), np.array([9])), 1)
    assert one["utilisation"] is None
    assert one["renyi_utilisation"] is None


def test_codes_of_a_uniform_stream_cost_its_entropy():
    stream, sizes = uniform(16), Sizes(np.full(8, 500), np.full(8, 500))
    row = rates.codes(stream, sizes, 16, Measuring())
    assert row["memoryless_bits_per_char"] == pytest.approx(4.0)
    assert row["fixed_bits_per_char"] == pytest.approx(4.0)
    for coder in rates.CODERS:
        assert 3.98 < row[f"{coder}_bits_per_char"] < 5.6  # LZ78 pays for its pointers on a short stream
    assert rates.codes(stream, sizes, 70_000, Measuring())["deflate_two_bytes_bits_per_char"] is None
    assert rates.predictions(stream, sizes, 16, Measuring())["ngram1_bits_per_char"] == pytest.approx(4.0, abs=0.02)


def test_coded_bytes_limits_the_text_by_whole_documents():
    sizes = Sizes(np.full(8, 500), np.full(8, 500))
    row = rates.codes(uniform(16), sizes, 16, Measuring(coded_bytes=501))
    assert row["coded_characters"] == 1000


def test_entropies_stand_beside_their_controls():
    stream = uniform(16)
    row = rates.entropies(stream, Measuring(order=3), equal_n=1000)
    assert row["h1_bits"] == row["h1_shuffled_bits"] == pytest.approx(4.0)
    assert row["h2_gap_bits"] == pytest.approx(row["h2_shuffled_bits"] - row["h2_bits"])
    assert abs(row["h2_gap_bits"]) < 0.05  # nothing is told by order: the control cancels the bias
    assert row["h3_bits"] < 3.5  # though truly 4
    assert not row["h3_reliable"]
    assert row["h2_equal_bits"] < row["h2_bits"]
    assert rates.entropies(stream, Measuring(order=1), equal_n=9999)["h1_equal_bits"] is None


def test_entropies_per_character_cost_what_the_memoryless_code_does_at_order_one():
    stream, sizes = uniform(16), Sizes(np.full(8, 1500), np.full(8, 2000))
    row = rates.compression(stream, sizes, 16) | rates.entropies(stream, Measuring(order=2), equal_n=1000)
    found = rates.per_character(row, 2)
    assert found["h1_bits_per_char"] == pytest.approx(
        rates.codes(stream, sizes, 16, Measuring())["memoryless_bits_per_char"]
    )
    assert found["h2_bits_per_char"] == pytest.approx(row["h2_bits"] / 3)  # a token is three characters
    assert row["h2_block_bits"] == pytest.approx(row["h1_bits"] + row["h2_bits"], abs=0.01)
    assert rates.per_character({"h1_bits": None, "tokens_per_char": 1.0}, 1) == {"h1_bits_per_char": None}


def test_one_document_has_no_held_out_price():
    row = rates.predictions(rates.byte_stream(["abc"]), Sizes.of(["abc"]), 256, Measuring(order=2))
    assert row["ngram2_bits_per_char"] is None


@pytest.mark.parametrize("wrong", [{"order": 0}, {"alpha": -1.0}, {"equal_n": 0}, {"coded_bytes": 0}])
def test_settings_out_of_range_are_named(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} is"):
        Measuring(**wrong)
