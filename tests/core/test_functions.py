"""Claims about functions by name: a module and a file in the working folder are found alike, and what is wrong is said."""

from __future__ import annotations

import sys

import pytest

from shiftscope.core import functions


def test_a_module_in_the_working_folder_is_found_as_a_file_is_and_the_path_is_left_as_it_was(tmp_path, monkeypatch):
    (tmp_path / "found_here.py").write_text("def double(x):\n    return 2 * x\n")
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    assert [functions.find(f"{name}:double", "verifier")(4) for name in ("found_here", "found_here.py")] == [8, 8]
    assert sys.path == before


def test_an_installed_module_wins_over_a_file_of_its_name_in_the_working_folder(tmp_path, monkeypatch):
    (tmp_path / "colorsys.py").write_text("def rgb_to_hsv(*_):\n    return 'mine'\n")
    monkeypatch.chdir(tmp_path)
    assert functions.find("colorsys:rgb_to_hsv", "verifier")(0, 0, 0) != "mine"


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("nothing", r"'nothing' is no judge: give module:function, file.py:function or an endpoint"),
        ("math:", "is no judge"),
        ("no.such.module:f", r"no.such.module cannot be imported \(ModuleNotFoundError"),
        ("none.py:f", "there is no file none.py"),
        ("math:no_such", "math has no no_such"),
        ("math:pi", "of type float, not a function"),
    ],
)
def test_a_spec_that_names_no_function_is_one_sentence(spec, sentence):
    with pytest.raises(ValueError, match=sentence):
        functions.find(spec, "judge", instead="an endpoint")
