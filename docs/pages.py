"""The pages of the site that are made from the code: the README, a page per method, a page per folder of primitives.

mkdocs calls `on_config` and `on_files` (`hooks` in mkdocs.yml), mkdocstrings `Paragraphs` (`extensions` there).
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import griffe
import typer
from mkdocs.structure.files import File, Files

from shiftscope import cli

ROOT = Path(__file__).resolve().parent.parent
CORE = ROOT / "src" / "shiftscope" / "core"
MARKUP = re.compile(r"([\\*_\[\]#])")
ENTITIES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", "|": "&#124;"})
OWN_LINE = re.compile(r"\n(?=(?:Source|Deviation|Returns|Raises)\b|[a-z]\w*(?:, [a-z]\w*)*: )")


class Paragraphs(griffe.Extension):
    """Docstrings as they read in the source: each argument, Returns and Raises on a line of its own, signs as signs."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = escaped(OWN_LINE.sub("\n\n", obj.docstring.value))


def on_config(config: Any) -> Any:
    """The navigation: what a reader wants first, then every method by verb, then the primitives."""
    config.nav = [{"shiftscope": "index.md"}, {"the loop": "loop.md"}]
    config.nav += [{verb: [{name: _address(verb, name)} for name in _methods(verb)]} for verb in cli.VERBS]
    config.nav += [
        {"primitives": [{name: f"core/{name}.md"} for name in _folders()]},
        {"contributing": "contributing.md"},
    ]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages."""
    for address, text in pages():
        files.append(File.generated(config, address, content=text))
    return files


def pages() -> Iterator[tuple[str, str]]:
    """(address, Markdown) of every generated page."""
    readme = (ROOT / "README.md").read_text("utf-8").replace("](docs/", "](")
    yield "index.md", linked(readme)
    yield "contributing.md", (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    for verb in cli.VERBS:
        command = typer.main.get_command(cli.application([verb])).commands[verb]  # type: ignore[attr-defined]
        for name, function in _methods(verb).items():
            yield _address(verb, name), method_page(verb, name, function, command.commands[name])
    for name, modules in _folders().items():
        yield f"core/{name}.md", "\n\n".join([f"# {name}", *(f"::: {module}" for module in modules)]) + "\n"


def linked(readme: str) -> str:
    """The README with its tables of commands linked to the methods' pages, and its links to the tree in words."""
    for verb in cli.VERBS:
        for name in _methods(verb):
            readme = re.sub(rf"(?m)(^\| |, )`({verb} {name}(?: [^`]*)?)`", rf"\1[`\2`]({_address(verb, name)})", readme)
    return readme.replace("[benchmarks](benchmarks/)", "`benchmarks/`").replace(
        "(CONTRIBUTING.md)", "(contributing.md)"
    )


def method_page(verb: str, name: str, function: Any, command: Any) -> str:
    """A method: its question and sources, how it is called from the shell and from Python, what its options mean."""
    about = inspect.cleandoc(sys.modules[function.__module__].__doc__ or "")
    arguments = " ".join(p.name.upper() for p in command.params if p.param_type_name == "argument")
    lines = [f"# {verb} {name}", escaped(OWN_LINE.sub("\n\n", about)), *_papers(function)]
    lines += ["## From the shell", f"```console\n$ shiftscope {verb} {name} {arguments} [options]\n```"]
    lines += ["\n".join(["| option | default | what it is |", "|---|---|---|", *map(_row, command.params)])]
    module = function.__module__
    lines += ["## From Python", f"```python\nfrom shiftscope.{verb} import {function.__name__}\n```"]
    return "\n\n".join([*lines, f"::: {module}.{function.__name__}"]) + "\n"


def _row(parameter: Any) -> str:
    """One line of the table of options; `parameter` is what the command line itself parses."""
    name = (
        parameter.name.upper()
        if parameter.param_type_name == "argument"
        else "/".join(parameter.opts + parameter.secondary_opts)
    )
    default = parameter.default() if callable(parameter.default) else parameter.default
    unset = default is None or default is False or default in ((), [])
    shown = "required" if parameter.required else "" if unset else f"`{_plain(default)}`"
    return f"| `{name}` | {shown} | {escaped(parameter.help or '')} |"


def _plain(default: Any) -> str:
    return " ".join(map(str, default)) if isinstance(default, (list, tuple)) else str(default)


def _papers(function: Any) -> list[str]:
    found = cli.papers(function)
    links = ", ".join(f"[arXiv {arxiv}](https://arxiv.org/abs/{arxiv})" for arxiv in found)
    return [f"Papers: {links} (`shiftscope cite` prints the BibTeX)"] if found else []


def escaped(text: str) -> str:
    """Prose as Markdown that means itself: what stands between backticks stays code."""
    pieces = re.split(r"(`[^`\n]+`)", text)
    return "".join(p if i % 2 else MARKUP.sub(r"\\\1", p).translate(ENTITIES) for i, p in enumerate(pieces))


def _methods(verb: str) -> dict[str, Any]:
    return importlib.import_module(f"shiftscope.{verb}").METHODS


def _address(verb: str, name: str) -> str:
    return f"{verb}/{name}.md"


def _folders() -> dict[str, list[str]]:
    """Folder of core → its modules; 'shared' is what stands in core itself."""
    found: dict[str, list[str]] = {}
    for path in sorted(CORE.rglob("*.py")):
        if path.stem.startswith("_"):
            continue
        inside = path.relative_to(CORE).with_suffix("").parts
        folder = inside[0] if len(inside) > 1 else "shared"
        found.setdefault(folder, []).append(".".join(["shiftscope.core", *inside]))
    return {"shared": found.pop("shared"), **found}
