"""Verifiers: is an answer right? One callable (prompt, answer, reference) -> float, named by a spec.

- `module:function` or `file.py:function`: any Python function of (prompt, answer, reference) or of (prompt, answer);
  a module may stand in the working folder.
- `regex:PATTERN`: the last match of PATTERN in the answer (its first group, if it has one) equals the reference.
- `exact`: the answer equals the reference. Both compare text, white space at the ends aside: '1.0' is not '1'.

What `load` returns raises ValueError, naming the answer, where the function raises or returns no finite number.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Iterable
from numbers import Real
from typing import Any

from shiftscope.core import functions

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
    function = functions.find(spec, "verifier", instead="regex:PATTERN or exact")
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


def _short(answer: str, longest: int = 200) -> str:
    return repr(answer if len(answer) <= longest else answer[:longest] + " …")
