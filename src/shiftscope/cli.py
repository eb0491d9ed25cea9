"""The command line: three verbs, whose commands are generated from the methods' own signatures and docstrings.

Exit codes: 0 done, 1 a --gate that does not hold, 2 bad input or usage, 130 interrupted.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import re
import shlex
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

VERBS = {
    "compare": "What changed between A and B, where, and does it matter?",
    "adapt": "Train or steer a model to repair or exploit the change.",
    "generate": "Draw text whose law is known and stated.",
}
SUPPLIED = ("parts", "advance")  # given by the command line itself, never an option
SCALARS = (str, int, float, bool)


@dataclasses.dataclass(frozen=True)
class Gate:
    """A condition on a figure, 'js_mean_nats < 0.01'."""

    figure: str
    operator: str
    bound: float

    HOLDS: typing.ClassVar[Mapping[str, Callable[[float, float], bool]]] = {
        "<": lambda a, b: a < b,
        "<=": lambda a, b: a <= b,
        ">": lambda a, b: a > b,
        ">=": lambda a, b: a >= b,
        "==": lambda a, b: a == b,
        "!=": lambda a, b: a != b,
    }

    def holds(self, value: float) -> bool:
        return self.HOLDS[self.operator](float(value), self.bound)


def parse_gate(text: str) -> Gate:
    """Read 'figure < number'. Raises ValueError for anything else."""
    match = re.fullmatch(r"\s*([\w.]+)\s*(<=|>=|==|!=|<|>)\s*(\S+)\s*", text)
    try:
        return Gate(match[1], match[2], float({"true": "1", "false": "0"}.get(match[3].lower(), match[3])))  # type: ignore[index]
    except (TypeError, ValueError) as error:
        raise ValueError(f"the gate {text!r} is not of the form 'figure < number' (or <=, >, >=, ==, !=)") from error


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
    app.command("zoo")(zoo)
    app.command("doctor")(doctor)
    app.command("cite")(cite)
    app.command("version")(show_version)
    return app


def main() -> None:
    """Entry point of the `shiftscope` command."""
    application(sys.argv[1:])()


def command(verb: str, name: str, function: Callable[..., Any]) -> Callable[..., None]:
    """A function that typer can read, made from a method: its settings become options, frozen dataclasses are unfolded."""
    hints = typing.get_type_hints(function)
    descriptions = described_parameters(function)
    parameters, groups = [], {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name in SUPPLIED:
            continue
        annotation = hints[parameter.name]
        if dataclasses.is_dataclass(annotation) and isinstance(annotation, type):
            fields = _fields(annotation, parameter.default)
            groups[parameter.name] = (annotation, [field.name for field in fields])
            parameters.extend(fields)
        else:
            positional = parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
            parameters.append(
                _parameter(parameter.name, annotation, parameter.default, descriptions.get(parameter.name, ""), positional)
            )
    keeps_parts = "parts" in inspect.signature(function).parameters

    def run(**given: Any) -> None:
        common = {option: given.pop(option) for option in ("out", "json_", "gate", "resume", "threads", "debug")}
        settings = dict(given)
        for group, (cls, names) in groups.items():
            values = {field: settings.pop(field) for field in names}
            settings[group] = lambda cls=cls, values=values: cls(**values)
        execute(function, settings, keeps_parts=keeps_parts, **common)

    run.__name__ = name
    run.__doc__ = _help(function)
    every = sorted([*parameters, *_common()], key=lambda p: p.default is not inspect.Parameter.empty)
    run.__signature__ = inspect.Signature(every)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in every}
    return run


def _fields(cls: type, default: Any) -> list[inspect.Parameter]:
    hints, descriptions = typing.get_type_hints(cls), described_parameters(cls)
    return [
        _parameter(field.name, hints[field.name], getattr(default, field.name), descriptions.get(field.name, ""), False)
        for field in dataclasses.fields(cls)
    ]


def _parameter(name: str, annotation: Any, default: Any, text: str, positional: bool) -> inspect.Parameter:
    kind, declared = inspect.Parameter.KEYWORD_ONLY, option_type(annotation)
    if positional:
        annotated = Annotated[declared, typer.Argument(help=text, metavar=name.upper(), show_default=default is not None)]
    else:
        annotated = Annotated[declared, typer.Option(help=text, show_default=default not in (None, ()))]
    if typing.get_origin(declared) is list and default is not None and default is not inspect.Parameter.empty:
        default = list(default)
    return inspect.Parameter(name, kind, default=default, annotation=annotated)


def option_type(annotation: Any) -> Any:
    """The type that a command-line option has for a setting: the first of its alternatives that can be typed in."""
    if annotation in SCALARS or annotation is Path or typing.get_origin(annotation) is Literal:
        return annotation
    if typing.get_origin(annotation) in (tuple, list, Sequence):
        return list[typing.get_args(annotation)[0]]  # type: ignore[misc]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        members = [member for member in typing.get_args(annotation) if member is not type(None)]
        optional = len(members) < len(typing.get_args(annotation))
        usable = [m for m in members if m in SCALARS or typing.get_origin(m) is Literal or m is Path] or members
        chosen = option_type(usable[0])
        return chosen | None if optional else chosen
    raise TypeError(f"a setting of type {annotation} cannot be given on the command line")


def _common() -> list[inspect.Parameter]:
    def option(name: str, annotation: Any, default: Any, flag: str, text: str) -> inspect.Parameter:
        annotated = Annotated[annotation, typer.Option(flag, help=text, rich_help_panel="Output and running")]
        return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotated)

    return [
        option("out", Path | None, None, "--out", "Folder for summary.json, table.parquet and report.html."),
        option("json_", bool, False, "--json", "Print the summary alone, as JSON, on standard output."),
        option("gate", list[str] | None, None, "--gate", "A condition such as 'js_mean_nats < 0.01'; exit code 1 where it fails."),
        option("resume", bool, False, "--resume", "Go on with the parts of an interrupted run in --out."),
        option("threads", int | None, None, "--threads", "Threads for the computation (default: all cores)."),
        option("debug", bool, False, "--debug", "Show the traceback of an error."),
    ]


def described_parameters(function: Callable[..., Any] | type) -> dict[str, str]:
    """Parameter → its sentences in the docstring: everything from 'name:' to the next 'name:', Returns or Raises."""
    names = list(inspect.signature(function).parameters)
    documentation = " ".join(inspect.cleandoc(function.__doc__ or "").split())
    listed = "|".join(map(re.escape, names)) or "$"
    pattern = rf"(?<!\w)((?:{listed})(?:, (?:{listed}))*): (.*?)(?=\s(?:(?:{listed})(?:, (?:{listed}))*: |Returns |Raises |Source:|Deviation)|$)"
    return {name: text for group, text in re.findall(pattern, documentation) for name in group.split(", ")}


def _help(function: Callable[..., Any]) -> str:
    """What a command says of itself: its own summary, then its file's first paragraph."""
    summary = inspect.cleandoc(function.__doc__ or "").split("\n\n")[0].split("\n")[0]
    module = inspect.cleandoc(sys.modules[function.__module__].__doc__ or "")
    return f"{summary}\n\n{' '.join(module.split(chr(10) * 2)[0].split())}"


def execute(
    function: Callable[..., Any],
    settings: Mapping[str, Any],
    *,
    out: Path | None,
    json_: bool,
    gate: Sequence[str] | None,
    resume: bool,
    threads: int | None,
    debug: bool,
    keeps_parts: bool,
) -> None:
    """Run a method as a command: parts, progress, output, gates and exit codes."""
    from rich.console import Console

    errors = Console(stderr=True, soft_wrap=True)
    try:
        gates = [parse_gate(text) for text in gate or ()]
        result = _computed(function, settings, out, resume, threads, keeps_parts, errors)
        _show(result, out, json_, errors)
        failed = _failed(gates, result)
    except KeyboardInterrupt:
        kept = f" What was computed is kept in {out}: add --resume to go on." if out and keeps_parts else ""
        errors.print(f"interrupted.{kept}", markup=False)
        raise typer.Exit(130) from None
    except (ValueError, OSError) as error:
        if debug:
            raise
        errors.print(f"error: {error}", markup=False, highlight=False)
        raise typer.Exit(2) from None
    for line in failed:
        errors.print(f"gate failed: {line}", markup=False, highlight=False)
    if failed:
        raise typer.Exit(1)


def _computed(
    function: Callable[..., Any],
    settings: Mapping[str, Any],
    out: Path | None,
    resume: bool,
    threads: int | None,
    keeps_parts: bool,
    errors: Any,
) -> Any:
    import transformers

    transformers.logging.set_verbosity_error()
    _set_threads(threads)
    settings = {name: value() if callable(value) else value for name, value in settings.items()}
    if out is not None:
        _writable(out)
    if resume and (out is None or not keeps_parts):
        raise ValueError("--resume goes on with the parts of an earlier run: give its --out, with a command that keeps parts")
    if not keeps_parts:
        return function(**settings).with_provenance(command=_command_line())
    from shiftscope.core.parts import Parts

    parts = Parts(out / "parts" if out else None, resume=resume)
    with _progress(errors) as advance:
        extra = {"advance": advance} if "advance" in inspect.signature(function).parameters else {}
        result = function(**settings, parts=parts, **extra)
    result = result.with_provenance(command=_command_line())
    if out is not None:
        result.save(out)
        parts.clear()
    return result


def _show(result: Any, out: Path | None, json_: bool, errors: Any) -> None:
    from shiftscope import report

    if out is not None:
        result.save(out)
        report.write(result, out / "report.html")
    if json_:
        print(json.dumps(result.summary(), indent=2, ensure_ascii=False, allow_nan=False))
    else:
        report.terminal(result)
    if out is not None:
        (errors if json_ else _output()).print(f"report: {out / 'report.html'}", markup=False, highlight=False)


def _output() -> Any:
    from rich.console import Console

    return Console(soft_wrap=True)


def _failed(gates: Sequence[Gate], result: Any) -> list[str]:
    figures, failed = result.all_figures(), []
    for gate in gates:
        if gate.figure not in figures:
            raise ValueError(f"there is no figure {gate.figure!r} in {result.method}: it has {', '.join(figures)}")
        value = figures[gate.figure].value
        if isinstance(value, str):
            raise ValueError(f"the figure {gate.figure} is text ({value!r}): a gate needs a number")
        if not gate.holds(value):
            failed.append(f"{gate.figure} is {value:g}, not {gate.operator} {gate.bound:g}")
    return failed


def _writable(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(f"--out {out} cannot be written ({error.strerror}): give a folder that can") from error


def _set_threads(threads: int | None) -> None:
    import torch

    if threads is not None:
        if threads < 1:
            raise ValueError(f"--threads is {threads}: it must be at least 1")
        torch.set_num_threads(threads)


def _progress(console: Any) -> Any:
    """A progress bar on standard error, as a context manager that yields advance(stage, done, total)."""
    from contextlib import contextmanager

    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    @contextmanager
    def bar() -> Any:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True) as progress:
            tasks: dict[str, Any] = {}

            def advance(stage: str, done: int, total: int) -> None:
                if stage not in tasks:
                    tasks[stage] = progress.add_task(stage, total=total)
                progress.update(tasks[stage], completed=done, total=total)

            yield advance

    return bar()


def _command_line() -> str:
    return shlex.join(["shiftscope", *sys.argv[1:]])


def zoo(json_: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False) -> None:
    """List the tiny checkpoints that ship with the package, with their expected figures."""
    from shiftscope import zoo as shipped

    cards = shipped.cards()
    if json_:
        print(json.dumps(cards, indent=2, ensure_ascii=False))
        return
    from rich.table import Table

    table = Table("checkpoint", "what it is", "expected figures")
    for card in cards:
        figures = "\n".join(f"{name} {figure['value']:.4g} {figure['unit']}" for name, figure in card["figures"].items())
        table.add_row(card["name"], card["about"], figures)
    _output().print(table)


def doctor() -> None:
    """Say what this installation can do: torch build, threads, compiler, accelerator, browser, extras."""
    from shiftscope import doctor as diagnosis

    for name, finding in diagnosis.findings():
        _output().print(f"{name:<14}{finding}", markup=False, highlight=False)


def cite(method: Annotated[str, typer.Argument(help="A method, such as 'compare tokens' or 'tokens'.")]) -> None:
    """Print the BibTeX of the papers that a method comes from."""
    entries = citations(method)
    print("\n".join(entries))


def citations(method: str) -> list[str]:
    """BibTeX entries for every arXiv id in the docstring of a method's file."""
    wanted = method.split()
    found = []
    for verb in VERBS:
        methods = importlib.import_module(f"shiftscope.{verb}").METHODS
        for name, function in methods.items():
            if wanted in ([name], [verb, name]):
                documentation = sys.modules[function.__module__].__doc__ or ""
                found += re.findall(r"arXiv (\d{4}\.\d{4,5})", documentation)
    if not found:
        typer.echo(f"error: there is no method {method!r} with a cited paper: see shiftscope --help", err=True)
        raise typer.Exit(2)
    return [_entry(arxiv) for arxiv in dict.fromkeys(found)]


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
