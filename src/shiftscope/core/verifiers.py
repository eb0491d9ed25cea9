"""Verifiers: is an answer right? One callable (prompt, answer, reference) -> float, named by a spec.

- `module:function` or `file.py:function`: any Python function of (prompt, answer, reference) or of (prompt, answer).
- `regex:PATTERN`: the last match of PATTERN in the answer (its first group, if it has one) equals the reference.
- `exact`: the answer equals the reference. Both compare text, white space at the ends aside: '1.0' is not '1'.

What `load` returns raises ValueError, naming the answer, where the function raises or returns no finite number.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import math
import re
import sys
from collections.abc import Callable, Iterable
from numbers import Real
from pathlib import Path
from types import ModuleType
from typing import Any

Verifier = Callable[[str, str, str | None], float]


def load(spec: str) -> Verifier:
    """The verifier a spec names, guarded (see `guarded`).

    Raises ValueError for a spec of no known form, a module or file that cannot be imported, a name that is not in it or
    is no function, and a pattern that does not compile.
    """
    if spec == "exact":
        return guarded(_exact, spec)
    if spec.startswith("regex:"):
        return guarded(_regex(spec.removeprefix("regex:")), spec)
    module, colon, name = spec.rpartition(":")
    if not colon or not module or not name.isidentifier():
        raise ValueError(
            f"{spec!r} is no verifier: give `module:function`, `file.py:function`, `regex:PATTERN` or `exact`"
        )
    found = _import(module, spec)
    if name not in vars(found):
        raise ValueError(f"the verifier {spec!r}: {module} has no {name}{_offers(found)}")
    function = vars(found)[name]
    if not callable(function):
        raise ValueError(f"the verifier {spec!r} is of type {type(function).__name__}, not a function")
    return guarded(_with_three_arguments(function, spec), spec)


def guarded(verifier: Callable[..., Any], name: str) -> Verifier:
    """The same verifier, raising ValueError that names the answer where it raises or returns no finite number."""

    def checked(prompt: str, answer: str, reference: str | None = None) -> float:
        try:
            reward = verifier(prompt, answer, reference)
        except Exception as error:
            what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            raise ValueError(f"the verifier {name} fails on the answer {_short(answer)}: {what}") from error
        if not isinstance(reward, Real) or not math.isfinite(reward):
            raise ValueError(
                f"the verifier {name} returns {reward!r} for the answer {_short(answer)}: a finite number is needed"
            )
        return float(reward)

    return checked


def score(verifier: Verifier, rows: Iterable[tuple[str, str, str | None]]) -> list[float]:
    """Rewards of (prompt, answer, reference) rows, in order."""
    return [verifier(prompt, answer, reference) for prompt, answer, reference in rows]


def _exact(prompt: str, answer: str, reference: str | None) -> float:
    return float(answer.strip() == _needed(reference))


def _regex(pattern: str) -> Callable[[str, str, str | None], float]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"the verifier's pattern {pattern!r} is no regular expression: {error}") from error

    def last_match_is_reference(prompt: str, answer: str, reference: str | None) -> float:
        wanted, found = _needed(reference), list(compiled.finditer(answer))
        return float(bool(found) and (found[-1][min(1, compiled.groups)] or "").strip() == wanted)

    return last_match_is_reference


def _needed(reference: str | None) -> str:
    if reference is None:
        raise ValueError("this row has no reference answer to compare with; add a `reference` to every prompt")
    return reference.strip()


def _import(module: str, spec: str) -> ModuleType:
    """A module by its dotted name (the working folder included) or a Python file by its path."""
    if module.endswith(".py") and not Path(module).is_file():
        raise ValueError(f"the verifier {spec!r}: there is no file {module}")
    here = str(Path.cwd())
    sys.path.append(here)
    try:
        return _run_file(Path(module)) if module.endswith(".py") else importlib.import_module(module)
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        raise ValueError(f"the verifier {spec!r}: {module} cannot be imported ({why})") from error
    finally:
        sys.path.remove(here)


def _run_file(path: Path) -> ModuleType:
    found = importlib.util.spec_from_file_location(path.stem, path)
    if found is None or found.loader is None:
        raise ImportError("not a Python file")
    loaded = importlib.util.module_from_spec(found)
    found.loader.exec_module(loaded)
    return loaded


def _with_three_arguments(function: Callable[..., Any], spec: str) -> Callable[..., Any]:
    """function called as (prompt, answer, reference), the reference dropped where it takes only two."""
    try:
        signature = inspect.signature(function)
    except ValueError:  # some built-ins tell none: call them with three and let the guard name the error
        return function
    for n_arguments in (3, 2):
        try:
            signature.bind(*[None] * n_arguments)
        except TypeError:
            continue
        return function if n_arguments == 3 else lambda prompt, answer, reference: function(prompt, answer)
    raise ValueError(
        f"the verifier {spec!r} takes {signature}: it must take (prompt, answer, reference) or (prompt, answer)"
    )


def _offers(module: Any) -> str:
    names = [name for name, value in vars(module).items() if inspect.isfunction(value) and not name.startswith("_")]
    return f"; it has {', '.join(names[:8])}" if names else ""


def _short(answer: str, longest: int = 200) -> str:
    return repr(answer if len(answer) <= longest else answer[:longest] + " …")
