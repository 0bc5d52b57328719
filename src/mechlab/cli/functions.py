"""Python functions of the user's, named on the command line."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mechlab.errors import MechlabError


def named_functions(names: str) -> dict[str, Callable[..., Any]]:
    """Callables named module:name or file.py:name, with commas between, by these names.

    Modules of the working directory are found too. MechlabError for what cannot be imported or called.
    """
    return {name.strip(): _named(name.strip()) for name in names.split(",")}


def _named(name: str) -> Callable[..., Any]:
    place, colon, attribute = name.rpartition(":")
    if not colon or not place:
        raise MechlabError("function is not named as module:name", name, "as in my_module:my_function")
    here = str(Path(place).resolve().parent) if place.endswith(".py") else str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    module = Path(place).stem if place.endswith(".py") else place
    try:
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except Exception as error:  # whatever importing somebody's module raises
        raise MechlabError(f"cannot import {name}", f"{type(error).__name__}: {error}") from error
    if not callable(found):
        raise MechlabError("this is no function", name, "name something that can be called")
    function: Callable[..., Any] = found
    return function
