from __future__ import annotations

import numpy as np
import pytest

from shiftscope.core.slices import slice_maps
from shiftscope.core.slices.slice_maps import Graphing
from shiftscope.core.slices.slices import SliceTable


def chain(subject: str, n: int, shift: int = 0, size: int = 30, step: int = 20) -> dict[str, list[str]]:
    """n slices of a class, each sharing a third of its items with the next."""
    return {
        f"{subject}({place})": [str(shift + i) for i in range(step * place, step * place + size)] for place in range(n)
    }


def overlapping_classes() -> SliceTable:
    """Six slices each of cats and dogs; items 0 and 1 are both."""
    both = {"cat(dog)": ["0", "1"], "dog(cat)": ["0", "1"]}
    return SliceTable.of(chain("cat", 6) | chain("dog", 6, shift=1000) | both)


def test_items_of_two_named_classes_go_before_the_size_is_asked():
    kept, shared = slice_maps.kept(overlapping_classes(), ("cat", "dog"), Graphing(min_items=29, min_slices=5))
    assert shared == 2
    assert "cat(0)" not in kept.members  # 28 of its 30 items are of a cat alone
    assert len(kept) == 11


def test_that_may_leave_a_named_class_with_too_few_slices_which_is_said():
    with pytest.raises(ValueError, match="the class 'cat' has 5 slices of 29 or more items and needs 6"):
        slice_maps.kept(overlapping_classes(), ("cat", "dog"), Graphing(min_items=29))
    alone, shared = slice_maps.kept(overlapping_classes(), (), Graphing(min_items=29))
    assert (len(alone), shared) == (12, 0)  # with no class named, each stands for itself


def test_tags_that_make_no_slice_of_the_minimum_size_are_refused_with_what_there_is():
    with pytest.raises(ValueError, match="at most 30 items and 0 are large enough"):
        slice_maps.kept(SliceTable.of(chain("cat", 6)), (), Graphing(min_items=31))
    with pytest.raises(ValueError, match="no class has 7 slices of 25 or more items"):
        slice_maps.kept(SliceTable.of(chain("cat", 6)), (), Graphing(min_slices=7))
    with pytest.raises(ValueError, match="there is no class 'cow': there are 1, such as \\['cat'\\]"):
        slice_maps.kept(SliceTable.of(chain("cat", 6)), ("cow",), Graphing())


def test_along_a_chain_the_commute_distance_squared_adds_up():
    one = slice_maps.mapped(SliceTable.of(chain("cat", 8)), Graphing())
    squared = one.distance_GG**2
    assert np.allclose(np.diag(one.overlap_GG, 1), 1 / 3)
    assert np.allclose(squared[0], 3 * np.arange(8))  # resistance: one over the overlap, in series


def test_merging_takes_communities_as_groups():
    one = slice_maps.mapped(SliceTable.of(chain("cat", 8)), Graphing(merge=True))
    assert sorted(name for group in one.groups for name in group) == one.table.names
    assert len(one.groups) == one.community_S.max() + 1 < 8
    for place, group in enumerate(one.groups):
        assert one.places(group).tolist() == [place]


def test_the_paper_distance_says_why_it_is_not_defined():
    assert (
        "8 slices: a spectral layout"
        in slice_maps.mapped(SliceTable.of(chain("cat", 8)), Graphing(distance="spectral5")).refusal
    )
    assert not slice_maps.mapped(SliceTable.of(chain("cat", 20)), Graphing(distance="spectral5")).refusal
    assert not slice_maps.mapped(SliceTable.of(chain("cat", 8)), Graphing()).refusal


@pytest.mark.parametrize("settings", [{"min_items": 0}, {"min_slices": 0}, {"threshold": 1.5}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match="need at least 1"):
        Graphing(**settings)
