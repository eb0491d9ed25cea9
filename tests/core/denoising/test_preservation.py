"""Which decoders still sample from their model, and which say why they do not."""

import pytest

from shiftscope.core.denoising.length import Length
from shiftscope.core.denoising.preservation import preserves
from shiftscope.core.denoising.scope import Scope
from shiftscope.core.masked import Filling

ONE = Filling(temperature=1.0)


@pytest.mark.parametrize("order", ["max_prob", "margin", "entropy", "left_to_right", "random"])
@pytest.mark.parametrize(
    "scope",
    [
        Scope(), Scope("blocks"), Scope("window", inner=4, outer=0, refresh=1), Scope("window", inner=0, outer=0, refresh=1),
        Scope("window", refresh=1, refresh_over="canvas"),
    ],
)  # fmt: skip
def test_one_by_one_in_an_order_of_the_text_alone_keeps_the_law(order, scope):
    assert preserves(Filling(temperature=1.0, order=order), scope).kind == "exact_if_consistent"


@pytest.mark.parametrize(
    ("filling", "scope", "length", "reason"),
    [
        (Filling(), Scope(), Length(), "temperature 0"),
        (Filling(temperature=0.7), Scope(), Length(), "temperature 0.7"),
        (Filling(temperature=1.0, top_p=0.9), Scope(), Length(), "tail"),
        (Filling(temperature=1.0, order="sampled"), Scope(), Length(), "what was drawn"),
        (Filling(temperature=1.0, per_call=2), Scope(), Length(), "several positions"),
        (Filling(temperature=1.0, threshold=0.9), Scope(), Length(), "several positions"),
        (ONE, Scope("window", outer=0, refresh=8), Length(), "7 calls old"),
        (ONE, Scope("window", refresh=1), Length(), "beyond the first 64"),
        (ONE, Scope(), Length(length="rho-eos"), "length of the canvas"),
    ],
)
def test_every_change_of_the_law_is_named(filling, scope, length, reason):
    found = preserves(filling, scope, length)
    assert found.kind == "no"
    assert reason in found.reason


def test_several_reasons_are_all_named():
    found = preserves(Filling(per_call=2), Scope("window"), Length(length="rho-eos"))
    assert found.reason.count(";") == 4
