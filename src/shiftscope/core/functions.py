"""A user's own Python function by its spec: `module:function` or `file.py:function`.

A module is looked for where Python looks, then in the working folder; a file is a path of its own, and may import what
stands in the working folder.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any


def find(spec: str, what: str, *, instead: str = "") -> Callable[..., Any]:
    """The function that a spec names.

    what: is asked for, in words, such as 'verifier'; instead: other forms that a spec of it may have.
    Raises ValueError, naming the spec, where it is of another form, its module or file cannot be imported, or holds no
    such function.
    """
    module, colon, name = spec.rpartition(":")
    if not colon or not module or not name.isidentifier():
        forms = " or ".join(filter(None, ("module:function, file.py:function", instead)))
        raise ValueError(f"{spec!r} is no {what}: give {forms}")
    found = _import(module, f"the {what} {spec!r}")
    if name not in vars(found):
        raise ValueError(f"the {what} {spec!r}: {module} has no {name}{_offers(found)}")
    function = vars(found)[name]
    if not callable(function):
        raise ValueError(f"the {what} {spec!r} is of type {type(function).__name__}, not a function")
    return function


def _import(module: str, named: str) -> ModuleType:
    if module.endswith(".py") and not Path(module).is_file():
        raise ValueError(f"{named}: there is no file {module}")
    here = str(Path.cwd())
    sys.path.append(here)
    try:
        return _run_file(Path(module)) if module.endswith(".py") else importlib.import_module(module)
    except Exception as error:  # whatever a user's module raises is the reason why it cannot be imported
        raise ValueError(f"{named}: {module} cannot be imported ({type(error).__name__}: {error})") from error
    finally:
        sys.path.remove(here)


def _run_file(path: Path) -> ModuleType:
    found = importlib.util.spec_from_file_location(path.stem, path)
    if found is None or found.loader is None:
        raise ImportError("not a Python file")
    loaded = importlib.util.module_from_spec(found)
    found.loader.exec_module(loaded)
    return loaded


def _offers(module: ModuleType) -> str:
    names = [name for name, value in vars(module).items() if inspect.isfunction(value) and not name.startswith("_")]
    return f"; it has {', '.join(names[:8])}" if names else ""
