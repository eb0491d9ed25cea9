"""The command line: three verbs, whose commands are generated from the methods' own signatures and docstrings.

Exit codes: 0 done, 1 a --gate that does not hold, 2 bad input or usage, 130 interrupted.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import json
import re
import sys
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from shiftscope.running import SUPPLIED, Call, Running, execute, merge

VERBS = {
    "compare": "What changed between A and B, where, and does it matter?",
    "adapt": "Train or steer a model to repair or exploit the change.",
    "generate": "Draw text whose law is known and stated.",
}
SCALARS = (str, int, float, bool)


def application(arguments: Sequence[str]) -> typer.Typer:
    """The application for these arguments; only the verb that is asked for is imported, so that --help is fast."""
    app = typer.Typer(
        name="shiftscope",
        help="See, explain and act on distribution shift between language models, tokenizers, corpora and weights.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    asked = next((argument for argument in arguments if not argument.startswith("-")), "")
    for verb, question in VERBS.items():
        group = typer.Typer(help=question, no_args_is_help=True, pretty_exceptions_enable=False)
        if verb == asked:
            methods = importlib.import_module(f"shiftscope.{verb}").METHODS
            for name, function in methods.items():
                group.command(name)(command(verb, name, function))
        else:
            group.callback()(lambda: None)
        app.add_typer(group, name=verb)
    app.command("merge")(merge_shards)
    app.command("zoo")(zoo)
    app.command("doctor")(doctor)
    app.command("cite")(cite)
    app.command("version")(show_version)
    return app


def main() -> None:
    """Entry point of the `shiftscope` command."""
    application(sys.argv[1:])()


def command(verb: str, name: str, function: Callable[..., Any]) -> Callable[..., None]:
    """A function that typer can read, made from a method: settings become options, frozen dataclasses are unfolded."""
    hints = typing.get_type_hints(function)
    descriptions = described_parameters(function)
    parameters = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name in SUPPLIED:
            continue
        annotation = hints[parameter.name]
        if dataclasses.is_dataclass(annotation) and isinstance(annotation, type):
            parameters.extend(_fields(annotation, parameter.default))
        else:
            positional = parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
            parameters.append(
                _parameter(
                    parameter.name,
                    annotation,
                    parameter.default,
                    descriptions.get(parameter.name, ""),
                    positional=positional,
                )
            )
    common = _fields(Running, Running(), panel="Output and running")

    def run(**given: Any) -> None:
        running = Running(**{parameter.name: given.pop(parameter.name) for parameter in common})
        execute(Call(verb, name, given), running)

    run.__name__ = name
    run.__doc__ = _help(function)
    every = sorted([*parameters, *common], key=lambda p: p.default is not inspect.Parameter.empty)
    run.__signature__ = inspect.Signature(every)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in every}
    return run


def _fields(cls: type, default: Any, panel: str | None = None) -> list[inspect.Parameter]:
    hints, descriptions = typing.get_type_hints(cls), described_parameters(cls)
    return [
        _parameter(
            field.name, hints[field.name], getattr(default, field.name), descriptions.get(field.name, ""), panel=panel
        )
        for field in dataclasses.fields(cls)
    ]


def _parameter(
    name: str, annotation: Any, default: Any, text: str, *, positional: bool = False, panel: str | None = None
) -> inspect.Parameter:
    declared: Any = option_type(annotation)
    shown = default not in (None, (), False)
    if positional:
        declaration: Any = typer.Argument(help=text, metavar=name.upper(), show_default=shown)
    else:
        declaration = typer.Option(help=text, show_default=shown, rich_help_panel=panel)
    if typing.get_origin(declared) is list and isinstance(default, tuple):
        default = list(default)
    annotated = Annotated[declared, declaration]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotated)


def option_type(annotation: Any) -> Any:
    """The type that a command-line option has for a setting: the first of its alternatives that can be typed in."""
    if annotation in SCALARS or annotation is Path or typing.get_origin(annotation) is Literal:
        return annotation
    if typing.get_origin(annotation) in (tuple, list, Sequence):
        return list[option_type(typing.get_args(annotation)[0])]  # type: ignore[misc]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        members = [member for member in typing.get_args(annotation) if member is not type(None)]
        optional = len(members) < len(typing.get_args(annotation))
        usable = [m for m in members if m in SCALARS or typing.get_origin(m) is Literal or m is Path] or members
        chosen = option_type(usable[0])
        return chosen | None if optional else chosen
    raise TypeError(f"a setting of type {annotation} cannot be given on the command line")


def described_parameters(function: Callable[..., Any] | type) -> dict[str, str]:
    """Parameter → its sentences in the docstring: everything from 'name:' to the next 'name:', Returns or Raises."""
    names = list(inspect.signature(function).parameters)
    documentation = " ".join(" ".join(inspect.cleandoc(one.__doc__ or "") for one in _documented(function)).split())
    listed = "|".join(map(re.escape, names)) or "$"
    begin = rf"(?:{listed})(?:, (?:{listed}))*: "
    pattern = rf"(?<!\w)((?:{listed})(?:, (?:{listed}))*): (.*?)(?=\s(?:{begin}|Returns |Raises |Source:|Deviation)|$)"
    return {name: text for group, text in re.findall(pattern, documentation) for name in group.split(", ")}


def _documented(function: Callable[..., Any] | type) -> list[Any]:
    """What documents the parameters: a function; a dataclass after those that it extends."""
    return [function] if not isinstance(function, type) else list(reversed(function.__mro__[:-1]))


def _help(function: Callable[..., Any]) -> str:
    """What a command says of itself: its own summary, then its file's first paragraph."""
    summary = inspect.cleandoc(function.__doc__ or "").split("\n\n")[0].split("\n")[0]
    module = inspect.cleandoc(sys.modules[function.__module__].__doc__ or "")
    return f"{summary}\n\n{' '.join(module.split(chr(10) * 2)[0].split())}"


def merge_shards(
    folders: Annotated[list[str], typer.Argument(help="The --out folders of all shards.")],
    out: Annotated[str, typer.Option(help="Folder for the merged summary, table and page.")],
    json_: Annotated[
        bool, typer.Option("--json", help="Print the summary alone, as JSON, on standard output.")
    ] = False,
    gate: Annotated[
        list[str] | None, typer.Option(help="A condition on a figure (repeatable), as of every command.")
    ] = None,
) -> None:
    """Put the shards of one command together: the result is that of a single run."""
    merge(folders, out, json_=json_, gate=gate or ())


def zoo(json_: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False) -> None:
    """List the tiny checkpoints that ship with the package, with their expected figures."""
    from shiftscope import zoo as shipped

    cards = shipped.cards()
    if json_:
        print(json.dumps(cards, indent=2, ensure_ascii=False))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("checkpoint", "what it is", "expected figures")
    for card in cards:
        figures = "\n".join(
            f"{name} {figure['value']:.4g} {figure['unit']}" for name, figure in card["figures"].items()
        )
        table.add_row(card["name"], card["about"], figures)
    Console(soft_wrap=True).print(table)


def doctor() -> None:
    """Say what this installation can do: torch build, threads, compiler, accelerator, browser, extras."""
    from rich.console import Console

    from shiftscope import doctor as diagnosis

    for name, finding in diagnosis.findings():
        Console(soft_wrap=True).print(f"{name:<14}{finding}", markup=False, highlight=False)


def cite(method: Annotated[str, typer.Argument(help="A method, such as 'compare tokens' or 'tokens'.")]) -> None:
    """Print the BibTeX of the papers that a method, and the files of the package that it names, come from."""
    entries = citations(method)
    print("\n".join(entries))


def citations(method: str) -> list[str]:
    """BibTeX entries of the papers of a method."""
    wanted = method.split()
    found = []
    for verb in VERBS:
        methods = importlib.import_module(f"shiftscope.{verb}").METHODS
        for name, function in methods.items():
            if wanted in ([name], [verb, name]):
                found += papers(function)
    if not found:
        typer.echo(f"error: there is no method {method!r} with a cited paper: see shiftscope --help", err=True)
        raise typer.Exit(2)
    return [_entry(arxiv) for arxiv in dict.fromkeys(found)]


def papers(function: Callable[..., Any]) -> list[str]:
    """arXiv ids in the docstring of a method's file, then in those of the package's files that it names as `core/x.py`."""
    about = sys.modules[function.__module__].__doc__ or ""
    package = Path(__file__).parent
    named = [package / name for name in re.findall(r"`((?:core|compare)/[\w/]+\.py)`", about)]
    documented = [about, *(ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "" for path in named)]
    found = (re.findall(r"arXiv\s+(\d{4}\.\d{4,5})", text) for text in documented)
    return list(dict.fromkeys(arxiv for ids in found for arxiv in ids))


def _entry(arxiv: str) -> str:
    year = 2000 + int(arxiv[:2])
    return (
        f"@misc{{arxiv:{arxiv},\n  eprint = {{{arxiv}}},\n  archivePrefix = {{arXiv}},\n  year = {{{year}}},\n"
        f"  url = {{https://arxiv.org/abs/{arxiv}}}\n}}"
    )


def show_version() -> None:
    """Print the version."""
    from shiftscope import __version__

    print(__version__)
