"""Explaining a black box by a program: every program of a small grammar, the best one kept.

Offline, without a language model: functions of a number are asked at points of the explainer's
choice and fitted family by family; functions of strings are asked on words, and programs of up to
two operations that agree with all answers are kept, the shortest first.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from mechlab.features.planted.functions import FAMILIES, STEPS, Numbers, StringFunction, Strings

# Candidate places and periods, and how much of the spread one more constant interval must explain.
_PLACES = np.arange(-50.0, 51.0)
_GAIN = 0.9


@dataclass(frozen=True)
class NumericProgram:
    """A function of a number as found: a family with its constants, or its absolute value.

    Attributes:
        constants: a, b, c of the family; flat: (low, high, level) of an interval on which it is
            constant, where there is one.
    """

    family: str
    constants: tuple[float, float, float]
    absolute: bool = False
    flat: tuple[float, float, float] | None = None

    def __call__(self, x: Float[np.ndarray, "point"]) -> Float[np.ndarray, "point"]:
        value = np.asarray(FAMILIES[self.family](x, *self.constants), np.float64)
        value = np.abs(value) if self.absolute else value
        if self.flat is None:
            return value
        low, high, level = self.flat
        return np.where((x >= low) & (x < high), level, value)

    @property
    def text(self) -> str:
        """The program in words."""
        a, b, c = self.constants
        said = f"{self.family} with a = {a:.3g}, b = {b:.3g}, c = {c:.0f}"
        said = f"absolute value of {said}" if self.absolute else said
        return (
            said
            if self.flat is None
            else f"{said}, but {self.flat[2]:.3g} from {self.flat[0]:.3g} to {self.flat[1]:.3g}"
        )


def explain_numbers(function: Numbers, *, points: int = 256) -> NumericProgram:
    """The program that fits the function best at evenly spread points from −128 to 128.

    For every family and place, height and offset follow by least squares. Absolute values are
    fitted to the function with either sign on either side of its zeros.
    """
    x = np.linspace(-128, 128, points)
    y = function(x)
    best, least = NumericProgram("linear", (0.0, float(y.mean()), 0.0)), np.inf
    for family, absolute in itertools.product(FAMILIES, (False, True)):
        for c in _PLACES if family != "linear" else np.zeros(1):
            for constants in _constants(family, float(c), x, y, absolute):
                made = NumericProgram(family, constants, absolute)
                error = _robust(made(x) - y)
                # A program that is no better must not be more complicated.
                if error < least * (0.98 if absolute else 1 - 1e-9):
                    best, least = made, error
    return _with_interval(best, x, y)


def _constants(
    family: str, c: float, x: Float[np.ndarray, "point"], y: Float[np.ndarray, "point"], absolute: bool
) -> list[tuple[float, float, float]]:
    basis = np.asarray(FAMILIES[family](x, 1.0, 0.0, c), np.float64)
    sides = [y] if not absolute else _signed(y)
    found = []
    for target in sides:
        keep = np.ones(len(x), bool)
        a = b = 0.0
        for _ in range(3):  # least squares, without the tenth that fits worst: intervals and noise
            design = np.column_stack([basis[keep], np.ones(int(keep.sum()))])
            a, b = np.linalg.lstsq(design, target[keep], rcond=None)[0].tolist()
            residual = np.abs(a * basis + b - target)
            keep = residual <= np.quantile(residual, 0.85)
        found.append((a, b, c))
    return found


def _signed(y: Float[np.ndarray, "point"]) -> list[Float[np.ndarray, "point"]]:
    """The ways in which |g| = y can be undone: g changes its sign at the lowest points of y."""
    low = [i for i in range(1, len(y) - 1) if y[i] <= y[i - 1] and y[i] <= y[i + 1]]
    touching = [i for i in low if y[i] <= 0.1 * float(np.max(y))]
    return [y, *_flips(y, touching)] if touching else [y]


def _flips(y: Float[np.ndarray, "point"], zeros: list[int]) -> list[Float[np.ndarray, "point"]]:
    sign = np.ones(len(y))
    for place in zeros:
        sign[place:] *= -1
    return [y * sign, -y * sign]


def _robust(residual: Float[np.ndarray, "point"]) -> float:
    """Mean square of all but the worst 15 %."""
    square = np.sort(residual**2)
    return float(square[: int(0.85 * len(square))].mean())


def _with_interval(
    program: NumericProgram, x: Float[np.ndarray, "point"], y: Float[np.ndarray, "point"]
) -> NumericProgram:
    """With the constant interval that explains what the program misses, where there is one."""
    miss = np.abs(program(x) - y)
    bad = miss > max(3 * float(np.median(miss)), 1e-6 * max(1.0, float(np.abs(y).max())))
    if not bad.any():
        return program
    runs = np.flatnonzero(np.diff(np.concatenate([[0], bad.view(np.int8), [0]])))
    first, last = max(zip(runs[::2], runs[1::2], strict=True), key=lambda run: run[1] - run[0])
    if last - first < 8:
        return program
    level = float(np.median(y[first:last]))
    step = float(x[1] - x[0])
    made = NumericProgram(
        program.family,
        program.constants,
        program.absolute,
        (float(x[first]) - step / 2, float(x[last - 1]) + step / 2, level),
    )
    better = float(((made(x) - y) ** 2).sum()) < _GAIN * float(((program(x) - y) ** 2).sum())
    return made if better else program


def explain_strings(function: Strings, inputs: Sequence[str]) -> StringFunction:
    """The shortest program of at most two operations that agrees with most of the inputs."""
    answers = [function(text) for text in inputs]
    programs = [StringFunction(())]
    programs += [StringFunction((name,)) for name in STEPS]
    programs += [StringFunction(pair) for pair in itertools.product(STEPS, repeat=2)]
    best, most = programs[0], -1
    for program in programs:
        agreed = sum(program(text) == answer for text, answer in zip(inputs, answers, strict=True))
        if agreed > most:
            best, most = program, agreed
    return best
