"""Running a method as a command: parts, shards, progress, files, gates and exit codes."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import re
import shlex
import shutil
import sys
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import typer

from shiftscope.core.settings import refuse

SUPPLIED = ("parts", "advance", "out", "say")  # given by the command line itself: no options of the method
COMMAND_FILE = "command.json"


@dataclasses.dataclass(frozen=True)
class Running:
    """Options that every command has.

    out: folder for summary.json, table.parquet and report.html. json: print the summary alone, as JSON, on standard
    output. gate: a condition such as 'js_mean_nats < 0.01' (repeatable); exit code 1 where one fails. resume: go on with
    the parts of an interrupted run in --out. shard: i/n computes only the i-th of n shards (0 <= i < n) into --out;
    `shiftscope merge` puts them together. ray: compute in so many worker processes that each hold the models, then merge.
    gpus: share of a GPU for each worker of --ray. threads: for the computation
    (default: all cores), with --ray of each worker (default: an equal share). debug: show the traceback of
    an error.
    """

    out: Path | None = None
    json: bool = False
    gate: tuple[str, ...] = ()
    resume: bool = False
    shard: str | None = None
    ray: int | None = None
    gpus: float = 0.0
    threads: int | None = None
    debug: bool = False


@dataclasses.dataclass(frozen=True)
class Call:
    """A method of a verb with its settings as they are typed in: plain values, dataclasses unfolded."""

    verb: str
    name: str
    given: Mapping[str, Any]

    @property
    def function(self) -> Callable[..., Any]:
        return importlib.import_module(f"shiftscope.{self.verb}").METHODS[self.name]

    def settings(self) -> dict[str, Any]:
        """The keyword arguments of the method. Raises ValueError where a dataclass refuses its values."""
        hints, given, settings = typing.get_type_hints(self.function), dict(self.given), {}
        for name in inspect.signature(self.function).parameters:
            if name in SUPPLIED:
                continue
            if dataclasses.is_dataclass(hints[name]) and isinstance(hints[name], type) and name not in given:
                fields = {field.name: given[field.name] for field in dataclasses.fields(hints[name])}
                settings[name] = hints[name](**{n: tuple(v) if isinstance(v, list) else v for n, v in fields.items()})
            else:
                settings[name] = given[name]
        return settings

    def takes(self, name: str) -> bool:
        return name in inspect.signature(self.function).parameters


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
        if match is None:
            raise ValueError(text)
        return Gate(match[1], match[2], float({"true": "1", "false": "0"}.get(match[3].lower(), match[3])))
    except ValueError as error:
        raise ValueError(f"the gate {text!r} is not of the form 'figure < number' (or <=, >, >=, ==, !=)") from error


def execute(call: Call, running: Running) -> None:
    """Run a method as a command. Exit codes: 1 a gate fails, 2 bad input, 130 interrupted."""
    from rich.console import Console

    from shiftscope.core.parts import ShardDone

    errors = Console(stderr=True, soft_wrap=True)
    try:
        gates = [parse_gate(text) for text in running.gate]
        result = _computed(call, running, errors)
        _show(result, running, errors)
        failed = _failed(gates, result)
    except ShardDone as done:
        errors.print(
            f"shard {running.shard} is done: {done} in {running.out}; shiftscope merge puts all together", markup=False
        )
        return
    except KeyboardInterrupt:
        kept = (
            f" What was computed is kept in {running.out}: add --resume to go on."
            if running.out and call.takes("parts")
            else ""
        )
        errors.print(f"interrupted.{kept}", markup=False)
        raise typer.Exit(130) from None
    except (ValueError, OSError) as error:
        if running.debug:
            raise
        errors.print(f"error: {' '.join(str(error).split())}", markup=False, highlight=False)
        raise typer.Exit(2) from None
    for line in failed:
        errors.print(f"gate failed: {line}", markup=False, highlight=False)
    if failed:
        raise typer.Exit(1)


def merge(folders: Sequence[str], out: str, *, json_: bool = False, gate: Sequence[str] = ()) -> None:
    """Put the parts of all shards into one folder and finish the command there, computing only what is missing."""
    from rich.console import Console

    try:
        commands = [_read_command(Path(folder)) for folder in folders]
        if any(command != commands[0] for command in commands):
            raise ValueError(
                f"the shards in {', '.join(folders)} are of different commands: merge those of one command"
            )
        parts = Path(out) / "parts"
        _writable(Path(out))
        for folder in folders:
            if (Path(folder) / "parts").resolve() != parts.resolve():
                shutil.copytree(Path(folder) / "parts", parts, dirs_exist_ok=True)
    except (ValueError, OSError) as error:
        Console(stderr=True, soft_wrap=True).print(f"error: {error}", markup=False, highlight=False)
        raise typer.Exit(2) from None
    execute(Call(*commands[0]), Running(out=Path(out), json=json_, gate=tuple(gate), resume=True))


def _read_command(folder: Path) -> tuple[str, str, dict[str, Any]]:
    path = folder / "parts" / COMMAND_FILE
    if not path.is_file():
        raise ValueError(f"{folder} holds no parts of a shard (no {path}): give the --out folders of runs with --shard")
    verb, name, given = json.loads(path.read_text(encoding="utf-8"))
    return verb, name, given


def _computed(call: Call, running: Running, errors: Any) -> Any:
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()  # our own stand on standard error
    _set_threads(running.threads)
    settings = call.settings()
    if running.out is not None:
        _writable(running.out)
    _check_read(running)
    for option in ("resume", "shard", "ray"):
        if getattr(running, option) and (running.out is None or not call.takes("parts")):
            raise ValueError(f"--{option} works with parts in a folder: give --out, with a command that keeps parts")
    if call.takes("out"):
        if running.out is None:
            raise ValueError(f"{call.verb} {call.name} writes files: give --out, a folder for them")
        settings["out"] = running.out
    if not call.takes("parts"):
        return _kept(call.function(**settings), running)
    from shiftscope.core.parts import Parts

    resume = running.resume or running.shard is not None  # shards may share a folder: their settings are compared
    parts = Parts(running.out / "parts" if running.out else None, resume=resume, shard=_shard(running.shard))
    if parts.folder is not None:
        parts.folder.mkdir(parents=True, exist_ok=True)
        (parts.folder / COMMAND_FILE).write_text(
            json.dumps([call.verb, call.name, call.given], default=str), encoding="utf-8"
        )
    with _progress(errors) as advance:
        if running.ray is not None and parts.folder is not None:
            from shiftscope.core import scale

            scale.on_ray(
                call.function, settings, parts.folder, scale.Pool(running.ray, running.gpus, running.threads), advance
            )
            parts = Parts(parts.folder, resume=True)
        extra: dict[str, Any] = {"advance": advance} if call.takes("advance") else {}
        if call.takes("say"):
            extra["say"] = partial(print, end="", flush=True, file=sys.stderr if running.json else sys.stdout)
        result = _kept(call.function(**settings, parts=parts, **extra), running)
    parts.clear()
    return result


def _check_read(running: Running) -> None:
    """Raises ValueError for options that do not go together, one of which would not be read."""
    if running.ray is None:
        refuse("--ray", gpus=(running.gpus, 0.0))
    elif running.shard is not None:
        raise ValueError("--ray computes all shards and --shard one of them: leave one of the two out")
    if running.shard is not None:
        refuse(
            "shiftscope merge, which puts the shards together,",
            json=(running.json, False),
            gate=(tuple(running.gate), ()),
        )


def _kept(result: Any, running: Running) -> Any:
    """The result with the command in its provenance, saved where --out asks."""
    result = result.with_provenance(command=shlex.join(["shiftscope", *sys.argv[1:]]))
    if running.out is not None:
        result.save(running.out)
    return result


def _show(result: Any, running: Running, errors: Any) -> None:
    from rich.console import Console

    from shiftscope import report

    path = None if running.out is None else report.write(result, running.out / "report.html")
    if running.json:
        print(json.dumps(result.summary(), indent=2, ensure_ascii=False, allow_nan=False))
    else:
        report.terminal(result)
    if path is not None:  # the page is written first: a reader that closes the pipe loses nothing
        console = errors if running.json else Console(soft_wrap=True)
        console.print(f"report: {path}", markup=False, highlight=False)


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


def _shard(text: str | None) -> tuple[int, int]:
    if text is None:
        return 0, 1
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or not int(match[1]) < int(match[2]):
        raise ValueError(f"--shard {text!r} is not of the form i/n with 0 <= i < n, such as 0/4")
    return int(match[1]), int(match[2])


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


@contextmanager
def _progress(console: Any) -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar on standard error; yields advance(stage, done, total)."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    shown = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    progress = Progress(TextColumn("{task.description}"), *shown, console=console, transient=True)
    tasks: dict[str, Any] = {}

    def advance(stage: str, done: int, total: int) -> None:
        if not tasks:
            progress.start()  # not before: a running bar would overwrite an answer that is shown as it is written
        if stage not in tasks:
            tasks[stage] = progress.add_task(stage, total=total)
        progress.update(tasks[stage], completed=done, total=total)

    try:
        yield advance
    finally:
        if tasks:  # to stop what was never started prints an empty line
            progress.stop()
