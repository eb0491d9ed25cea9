"""Figures of an editing probe against counts made by hand."""

import pyarrow as pa
import pytest

from shiftscope.core import statistics
from shiftscope.core.edits import edit_summary
from shiftscope.core.edits.artefacts import INTRA, LABELS, SHIFT
from shiftscope.core.edits.edit_trials import BYTES, CANONICAL, IDS, MASSES, NONE, SURFACE, TIGHT, TRIALS, is_fitted

FITTED, OTHER = (
    next(w for w in ("cat", "dog", "word", "name", "value") if is_fitted(w) == side) for side in (True, False)
)


def trial(passage, outcome, *, decoder=NONE, word=FITTED, steps=(1, 1), artefact=None, plain=None, why=None):
    row = dict.fromkeys(TRIALS.names)
    row |= {"decoder": decoder, "passage": passage, "target": 0, "word": word, "sample": 0, "outcome": outcome}
    row |= {"outcome_plain": plain or outcome, "why": why, "artefact": artefact, "also": [], "crosses": False}
    return row | {
        "n_before": steps[0],
        "n_after": steps[1],
        "ids_before": [7],
        "ids_after": [3],
        "before": "a",
        "after": "b",
    }


ROWS = [
    trial(0, "phantom", artefact=SHIFT),
    trial(0, "phantom", artefact=INTRA, steps=(1, 2), plain="unchanged"),
    trial(0, "replaced"),
    trial(1, "unchanged"),
    trial(1, "unchanged"),
    trial(1, "phantom", artefact=INTRA, steps=(3, 2)),
    trial(1, "unscorable", why="the brackets are lost"),
    trial(2, "unchanged"),
    trial(2, "replaced"),
]


def table(rows):
    return pa.Table.from_pylist(rows, schema=TRIALS)


def test_rates_are_taken_over_what_can_be_scored_and_the_illusion_over_edits():
    figures, notes = edit_summary.trial_figures(table(ROWS))
    values = {name: figure.value for name, figure in figures.items()}
    assert values["scorable_share"] == pytest.approx(8 / 9)
    assert (values["phantom_share"], values["replaced_share"], values["unchanged_share"]) == (3 / 8, 2 / 8, 3 / 8)
    assert values["illusion_share"] == 3 / 5
    assert figures["phantom_share"].n == 8
    assert (values["phantom_share_unbracketed"], values["phantom_share_either"]) == (2 / 8, 2 / 8)
    assert notes == ["1 of 9 trials of decoder none cannot be scored: the brackets are lost (1)"]


def test_transitions_and_artefacts_are_shares_of_the_phantoms():
    figures, _ = edit_summary.trial_figures(table(ROWS))
    names = ("one_to_one_share", "same_count_share", "split_share", "merge_share")
    assert [figures[name].value for name in names] == [pytest.approx(1 / 3)] * 4
    assert figures[f"artefact_share.{INTRA}"].value == pytest.approx(2 / 3)
    panels = {panel.title: panel.table.to_pylist() for panel in edit_summary.trial_panels(table(ROWS), figures)}
    cells = {(cell["before"], cell["after"]): cell["edits"] for cell in panels["Tokens before and after"]}
    assert cells == {(1, 1): 1, (1, 2): 1, (3, 2): 1}
    assert sum(row["edits"] for row in panels["Most frequent phantom pairs"]) == 3
    assert panels["Trials"] == [{"decoder": "none", "unchanged": 3, "replaced": 2, "phantom": 3, "unscorable": 1}]


def test_an_interval_resamples_passages_so_that_copies_of_a_trial_do_not_narrow_it():
    one, many = (edit_summary.trial_figures(table(ROWS * times))[0]["phantom_share"] for times in (1, 20))
    assert (one.low, one.high) == (many.low, many.high)
    assert one.low < one.value < one.high


def test_a_share_of_none_has_the_wilson_interval_of_as_many_trials_as_passages():
    rows = [trial(passage, "replaced", decoder=CANONICAL) for passage in range(6) for _ in range(50)]
    figure = edit_summary.trial_figures(table(rows))[0][f"phantom_share.{CANONICAL}"]
    assert (figure.value, figure.low, figure.high) == (0.0, *statistics.wilson(0, 6))


def test_the_id_mask_is_scored_apart_on_words_that_it_was_not_fitted_on():
    rows = [
        *ROWS,
        trial(0, "unchanged", decoder=IDS),
        trial(1, "phantom", decoder=IDS, word=OTHER),
        trial(2, "replaced", decoder=IDS, word=OTHER),
    ]
    figures, _ = edit_summary.trial_figures(table(rows))
    assert figures[f"phantom_share.{IDS}_fitted"].value == 0
    assert figures[f"phantom_share.{IDS}_held_out"].value == 0.5
    sentence = next(s for s in edit_summary.trial_verdict(figures) if s.startswith("An id mask"))
    assert "leaves 33.3 % phantoms (50 % on words it was not fitted on)" in sentence


def test_a_decoder_without_a_scorable_trial_has_no_rate_and_a_reason():
    figures, notes = edit_summary.trial_figures(table([trial(0, "unscorable", decoder=TIGHT, why="the slot is empty")]))
    assert set(figures) == {f"scorable_share.{TIGHT}"}
    assert "no trial of decoder tight_brackets can be scored: the slot is empty (1)" in notes[0]
    assert edit_summary.trial_verdict(figures) == ["No trial can be scored: the notes say why."]


def test_masses_are_means_over_slots_and_other_ids_a_ratio_of_means():
    def slot(passage, unchanged, phantom, decoder=NONE):
        labels = dict.fromkeys(LABELS, 0.0) | {SHIFT: phantom}
        return {"decoder": decoder, "passage": passage, "target": 0, "word": "w", "unchanged": unchanged,
                "phantom": phantom, "left_out": 1e-7} | labels  # fmt: skip

    rows = [slot(0, 0.3, 0.1), slot(1, 0.0, 0.2), slot(0, 0.4, 0.0, BYTES), slot(1, 0.2, 0.0, BYTES)]
    found = edit_summary.mass_result(pa.Table.from_pylist(rows, schema=MASSES))
    assert found["word_mass"] == pytest.approx(0.3)
    assert found["phantom_mass"] == pytest.approx(0.15)
    assert found["other_ids_share"] == pytest.approx(0.5)  # not the mean of 1/4 and 1
    assert found["word_mass.byte_exact"] == pytest.approx(0.3)
    assert "phantom_mass.byte_exact" not in found.figures
    assert "50 % of that mass lies on other ids" in found.verdict[0]
    rare = edit_summary.mass_result(pa.Table.from_pylist([slot(0, 0.0, 1e-6)], schema=MASSES))
    assert "hardly ever writes the word itself (probability 1e-06 in a slot)" in rare.verdict[0]


def test_the_surface_is_a_mean_and_a_median_and_its_kinds_leave_out_words_with_too_many_ways():
    rows = [
        {"word": w, "count": 1, "ways": ways, "canonical": w} | dict.fromkeys(LABELS, None if ways > 100 else 0)
        | ({} if ways > 100 else {INTRA: ways - 1, SHIFT: 1})
        for w, ways in (("a", 4), ("b", 6), ("c", 30_000))
    ]  # fmt: skip
    found = edit_summary.surface_result(pa.Table.from_pylist(rows, schema=SURFACE))
    assert found["surface_mean"] == pytest.approx(30_010 / 3)
    assert found["surface_median"] == 6
    assert found[f"surface_share.{SHIFT}"] == pytest.approx(2 / 10)
    empty = edit_summary.surface_result(SURFACE.empty_table())
    assert not empty.figures
    assert "no frequent word comes through the tokenizer unchanged" in empty.notes[0]
