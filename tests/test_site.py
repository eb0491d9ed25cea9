"""The site: its walk-throughs run as they stand, and every page that is made from the code says what its method takes."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from shiftscope import cli

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^```(console|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def steps(page: Path) -> list[list[str]]:
    """The commands of a page, in order."""
    found: list[list[str]] = []
    for kind, text in BLOCK.findall(page.read_text("utf-8")):
        if kind == "python":
            found.append([sys.executable, "-c", text])
        else:
            lines = text.replace("$ shiftscope", f"{sys.executable} -m shiftscope").splitlines()
            found.extend(["sh", "-c", line] for line in lines)
    return found


@pytest.mark.slow
def test_the_loop_runs_as_it_stands_and_its_gates_hold(tmp_path):
    commands = steps(ROOT / "docs" / "loop.md")
    assert len(commands) == 7
    for command in commands:
        done = subprocess.run(
            command, cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command[-1]}\n{done.stdout}\n{done.stderr}"


@pytest.fixture(scope="module")
def pages():
    """Address → Markdown of the generated pages."""
    description = importlib.util.spec_from_file_location("pages", ROOT / "docs" / "pages.py")
    module = importlib.util.module_from_spec(description)
    description.loader.exec_module(module)
    return dict(module.pages())


def test_every_method_has_a_page_with_its_papers_and_all_its_options(pages):
    for verb in cli.VERBS:
        for name, function in importlib.import_module(f"shiftscope.{verb}").METHODS.items():
            page = pages[f"{verb}/{name}.md"]
            about = sys.modules[function.__module__].__doc__
            assert all(f"https://arxiv.org/abs/{i}" in page for i in re.findall(r"arXiv (\d{4}\.\d{4,5})", about))
            assert "| `--out` |" in page
            assert f"::: {function.__module__}.{function.__name__}" in page


def test_the_front_page_links_every_command_of_the_readme_to_its_page(pages):
    for address in pages:
        verb, _, name = address.removesuffix(".md").partition("/")
        if verb in cli.VERBS:
            assert f"]({address})" in pages["index.md"], f"the README names no `{verb} {name}`"
