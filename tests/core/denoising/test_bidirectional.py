"""Kept keys and values, against attention computed anew; who sees whom by distance and padding."""

import pytest
import torch
from torch.nn.functional import softmax

from shiftscope.core.denoising import bidirectional
from shiftscope.core.denoising.bidirectional import Layout, Window


def heads(rows, seed=0, kept=2):
    """Random queries of two heads, and keys and values of two or one."""
    generator = torch.Generator().manual_seed(seed)
    shapes = (1, 2, rows, 4), (1, kept, rows, 4), (1, kept, rows, 4)
    return [torch.randn(*shape, generator=generator) for shape in shapes]


def attend(layout, query, key, value, **settings):
    token = bidirectional._LAYOUT.set(layout)
    try:
        return bidirectional._attend(settings.pop("module", torch.nn.Identity()), query, key, value, None, **settings)[
            0
        ]
    finally:
        bidirectional._LAYOUT.reset(token)


def layout(rows, real=None, window=None, computed=None):
    places = torch.arange(rows)[None]
    real = torch.ones(1, rows, dtype=torch.bool) if real is None else real
    return Layout(places if computed is None else computed, places, real, window)


def written_out(query, key, value, seen_QK):
    """Softmax over what is seen, in double precision."""
    key, value = (x.repeat_interleave(2 // x.shape[1], 1).double() for x in (key, value))
    score = (query.double() @ key.transpose(-1, -2) / 2).masked_fill(~seen_QK, -torch.inf)
    return (softmax(score, -1) @ value).transpose(1, 2)


@pytest.mark.parametrize("kept", [2, 1], ids=["a key for each head", "one key for two heads"])
@pytest.mark.parametrize("sliding", [None, 3])
def test_every_place_sees_both_ways_within_its_distance_and_no_padding(kept, sliding):
    query, key, value = heads(6, kept=kept)
    real = torch.tensor([[True] * 5 + [False]])
    distance = (torch.arange(6)[:, None] - torch.arange(6)).abs()
    seen = real & (distance < (sliding or 9))
    found = attend(layout(6, real), query, key, value, sliding_window=sliding)
    expected = written_out(query, key, value, seen)
    torch.testing.assert_close(found[:, :5].double(), expected[:, :5], rtol=0, atol=1e-6)  # float32 sums of six


def test_touched_rows_are_renewed_and_the_rest_stays():
    """Attention of rows 1 and 4 to a window whose other rows hold what the first call computed."""
    module, window = torch.nn.Identity(), Window()
    query, key, value = heads(6)
    window.cover(torch.arange(6))
    attend(layout(6, window=window), query, key, value, module=module)
    newer = heads(2, seed=1)
    window.touch(torch.tensor([1, 4]))
    found = attend(layout(6, window=window, computed=torch.tensor([[1, 4]])), *newer, module=module)
    key[:, :, [1, 4]], value[:, :, [1, 4]] = newer[1], newer[2]
    everything = torch.ones(2, 6, dtype=torch.bool)
    torch.testing.assert_close(found.double(), written_out(newer[0], key, value, everything), rtol=0, atol=1e-6)


def test_a_window_narrower_than_its_refresh_keeps_the_near_rows_only():
    module, window = torch.nn.Identity(), Window()
    _, key, value = heads(6)
    window.cover(torch.arange(6), keep=torch.tensor([0, 1, 3]))
    assert window.attended_K.tolist() == list(range(6))
    assert window.exchange(module, key, value)[0].shape[2] == 6
    assert torch.equal(window.stored[module][1], value[:, :, [0, 1, 3]])
    window.touch(torch.tensor([3]))
    assert window.attended_K.tolist() == [0, 1, 3]
    with pytest.raises(AssertionError, match="outside the window"):
        window.touch(torch.tensor([4]))


def test_a_window_forgets_what_was_cut():
    window = Window()
    window.cover(torch.arange(6))
    module = torch.nn.Identity()
    window.exchange(module, torch.zeros(1, 1, 6, 2), torch.zeros(1, 1, 6, 2))
    window.drop_after(3)
    assert window.positions_K.tolist() == [0, 1, 2, 3]
    assert window.stored[module][0].shape[2] == 4
