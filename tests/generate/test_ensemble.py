"""generate ensemble: given answers are scored by the mixture and by each model, the others drawn from it."""

import json
import typing

import pytest

from shiftscope.cli import option_type
from shiftscope.core import checkpoints
from shiftscope.generate.ensemble import Voting, ensemble

DIGITS = "9 4 8 4 ="


@pytest.fixture(scope="module")
def sums():
    return checkpoints.load("sums-base")


def test_the_command_scores_given_answers_and_draws_the_others(docs, sums, tmp_path):
    file = tmp_path / "prompts.jsonl"
    rows = [{"prompt": "9 4 8", "answer": " 4 = 0"}, {"prompt": "2 1", "answer": " 7 = 5"}, {"prompt": DIGITS}]
    file.write_text("\n".join(map(json.dumps, rows)))
    result = ensemble([docs[0], sums], prompts=file, voting=Voting(max_new_bytes=4, samples=2))
    own = [result[f"given_bits_per_byte_model_{number}"] for number in (1, 2)]
    assert result["given_bits_per_byte_mixture"] <= max(own)
    assert result["given_gain_over_best"] == pytest.approx(min(own) - result["given_bits_per_byte_mixture"])
    assert result.table["given"].to_pylist().count(True) == 2
    assert len(result.table) == 4
    result.save(tmp_path / "out")


def test_an_empty_given_answer_has_a_row_and_a_note(docs, tmp_path):
    file = tmp_path / "prompts.jsonl"
    rows = [{"prompt": "Return the", "answer": ""}, {"prompt": "Return the", "answer": " value"}]
    file.write_text("\n".join(map(json.dumps, rows)))
    result = ensemble([docs[0]], prompts=file)
    first = result.table.to_pylist()[0]
    assert (first["text"], first["n_bytes"], first["stopped"], first["logp_nats"]) == (0, 0, "given", 0.0)
    assert first["kl_models_nats"] == [None]
    assert any("1 given answers are empty" in note for note in result.notes)
    alone = ensemble([docs[0]], prompts=[rows[1]])
    assert result["given_bits_per_byte_mixture"] == pytest.approx(alone["given_bits_per_byte_mixture"], abs=1e-4)


def test_a_list_of_models_can_be_typed_in():
    assert option_type(typing.get_type_hints(ensemble)["models"]) == list[str]
