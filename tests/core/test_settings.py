"""Claims about settings that are not read: refused with what would read them, and defaults never are."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from shiftscope.core.settings import refuse, unread


@dataclass(frozen=True)
class Three:
    first: int = 1
    second: tuple[str, ...] = ()
    third: float | None = None


def test_settings_left_at_their_defaults_are_never_refused():
    unread(Three(), Three(), "--watch")
    unread(Three(first=5), Three(first=5), "--watch")
    refuse("--watch", limit=(None, None))


def test_the_first_setting_that_is_not_read_is_named_with_what_would_read_it():
    with pytest.raises(ValueError, match=r"^second is a b, which only --watch reads: use that, or leave second out$"):
        unread(Three(second=("a", "b"), third=0.5), Three(), "--watch")
    with pytest.raises(ValueError, match="texts is given, which only --tuned reads"):
        refuse("--tuned", texts=([{"prompt": "a"}], None))


def test_only_the_named_fields_are_refused_and_those_that_are_read_are_not():
    given = Three(first=2, third=0.5)
    unread(given, Three, "--watch", "second")
    unread(given, Three, "--watch", but=("first", "third"))
    with pytest.raises(ValueError, match=r"third is 0\.5"):
        unread(given, Three, "--watch", but=("first",))
