"""Claims about the record of one decoding: what it says is what was told, in order, and one text's is not another's."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shiftscope.core.denoising.reveals import Reveals

calls = st.tuples(st.integers(0, 9), st.integers(0, 99), st.booleans())
fills = st.tuples(st.integers(0, 9), st.integers(0, 50), st.floats(-20, 0))
PER_POSITION = ("position", "token", "call", "logp_nats")


@given(st.lists(st.tuples(calls, st.lists(fills, max_size=3)), max_size=6))
def test_every_position_carries_the_number_of_the_call_that_filled_it_and_costs_add_up(told):
    record = Reveals()
    for (rows, pairs, refresh), filled in told:
        record.spend(rows, pairs, refresh=refresh)
        for fill in filled:
            record.add(*fill)
    expected = [(*fill, number) for number, (_, filled) in enumerate(told, start=1) for fill in filled]
    written = zip(record.position, record.token, record.logp_nats, record.call, strict=True)
    assert list(written) == expected
    assert record.calls == len(told)
    assert record.rows == sum(rows for (rows, _, _), _ in told)
    assert record.pairs == sum(pairs for (_, pairs, _), _ in told)
    assert record.refreshes == sum(refresh for (_, _, refresh), _ in told)
    assert record.auxiliary == 0  # a draft that is no network is not a call
    assert record.edits == []


def test_a_call_is_no_refresh_unless_it_is_said():
    record = Reveals()
    record.spend(3, 9)
    assert (record.calls, record.refreshes) == (1, 0)


def test_two_records_share_nothing():
    one, other = Reveals(), Reveals()
    one.spend(1, 1)
    one.add(2, 7, -0.5)
    one.edits.append((1, 4))
    assert other == Reveals()
    assert all(getattr(other, name) == [] for name in (*PER_POSITION, "edits"))
