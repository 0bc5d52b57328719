"""Functions of text as features, so that anything that turns text into a number can be explained.

| mode | the function is given | and gives | its value stands on |
|---|---|---|---|
| prefix | the passage up to a token, that token included | a number | that token |
| window | the last ``window`` tokens up to a token (fewer at a passage's start) | a number | that token |
| passage | the whole passage | a number | the passage's last token |
| tokens | the texts of all tokens of the passage | a number a token | each token |

A passage is a run of tokens of one context and document; what a function is given is its text, with
parts of characters joined. "window" is the n-gram setting of SASC (Singh et al. 2023, arXiv
2305.09863). "prefix" costs a call and a text of its own for every token. A function must depend on
its argument alone; values ≤ 0 are silence.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mechlab.errors import MechlabError, near
from mechlab.features.index import FeatureIndex
from mechlab.features.sources.block import Block, passages
from mechlab.features.sources.build import Progress, build
from mechlab.features.sources.rows import RowSource
from mechlab.features.vocabulary import Vocabulary
from mechlab.files import fingerprint
from mechlab.sae.codes import Codes, sparse

MODES = ("prefix", "window", "passage", "tokens")
Function = Callable[..., Any]
# Windows come again and again; this many of their values are kept.
_KEPT = 2**18


def index_function(
    functions: Function | Mapping[str, Function],
    source: RowSource,
    path: Path | str,
    *,
    mode: str = "prefix",
    window: int = 8,
    seed: int = 0,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> FeatureIndex:
    """Index functions of text, in the order given; names are kept in ``about``.

    Args:
        functions: one, or several by name: ``Callable[[str], float]``, in mode "tokens"
            ``Callable[[list[str]], Sequence[float]]``.
        source: from ``store_rows``, ``model_rows`` (no model runs) or ``TextRows``.
        mode: what a function is given; see the module's docstring.
        window: tokens, in mode "window".

    Raises MechlabError for an unknown mode, when a function raises, or gives anything but finite
    numbers, one for each text or token.
    """
    named = functions if isinstance(functions, Mapping) else {_name(functions): functions}
    if mode not in MODES:
        raise MechlabError("unknown mode", mode, near(mode, MODES))
    if window < 1:
        raise MechlabError("window must be positive", window, "at least 1 token")
    if not named:
        raise MechlabError("no function was given", None, "pass at least one")

    asked = [_Asked(name, function, remembers=mode == "window") for name, function in named.items()]

    def encode(passage: Block) -> Codes:
        columns = [_column(each, passage, source.vocabulary, mode, window) for each in asked]
        return sparse(torch.stack(columns, dim=1).relu())

    about: dict[str, Any] = {"kind": "function", "names": list(named), "mode": mode}
    if mode == "window":
        about["window"] = window
    codes = [[name, _source_code(function)] for name, function in named.items()]
    return build(
        source, path, len(named), lambda: passages(source.blocks(())), encode,
        about=about, inputs={"functions": fingerprint(codes)},
        seed=seed, overwrite=overwrite, progress=progress,
    )  # fmt: skip


class _Asked:
    """A function whose answers are checked and, where texts come again, remembered."""

    def __init__(self, name: str, function: Function, *, remembers: bool) -> None:
        self._name, self._function, self._remembers = name, function, remembers
        self._known: dict[str, float] = {}

    def of_text(self, text: str) -> float:
        if not self._remembers:
            return self._number(self._call(text), text)
        if text not in self._known:
            if len(self._known) >= _KEPT:
                self._known.clear()
            self._known[text] = self._number(self._call(text), text)
        return self._known[text]

    def of_tokens(self, tokens: list[str]) -> list[float]:
        found = self._call(list(tokens))
        if not isinstance(found, Sequence | np.ndarray | Tensor) or len(found) != len(tokens):
            size = len(found) if hasattr(found, "__len__") else type(found).__name__
            raise MechlabError(
                f"function {self._name} does not give one number a token", size, f"{len(tokens)} were given"
            )
        return [self._number(value, "".join(tokens)) for value in found]

    def _call(self, given: str | list[str]) -> Any:
        try:
            return self._function(given)
        except Exception as error:  # whatever somebody's function raises
            raise MechlabError(
                f"function {self._name} failed on {_shown(given)}", f"{type(error).__name__}: {error}"
            ) from error

    def _number(self, value: Any, given: str) -> float:
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise MechlabError(
                f"function {self._name} gave no finite number on {_shown(given)}", repr(value), "mend it"
            )
        return number


def _column(asked: _Asked, passage: Block, vocabulary: Vocabulary, mode: str, window: int) -> Tensor:
    tokens = passage.tokens
    if mode == "tokens":
        return torch.tensor(asked.of_tokens([vocabulary[int(token)] for token in tokens]))
    if mode == "passage":
        values = torch.zeros(len(passage))
        values[-1] = asked.of_text(vocabulary.string(tokens))
        return values
    first = [max(0, at + 1 - window) if mode == "window" else 0 for at in range(len(tokens))]
    texts = (vocabulary.string(tokens[start : at + 1]) for at, start in enumerate(first))
    return torch.tensor([asked.of_text(text) for text in texts])


def _shown(given: str | list[str]) -> str:
    text = repr(given if isinstance(given, str) else "".join(given))
    return text if len(text) <= 60 else f"{text[:59]}…"


def _name(function: Function) -> str:
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return f"{getattr(function, '__module__', '')}:{name}"


def _source_code(function: Function) -> str:
    """What tells one version of a function from the next, as far as can be told."""
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):
        return _name(function)
