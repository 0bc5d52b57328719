"""Black-box functions with known answers: numbers, strings and neurons, with corruptions.

After FIND (Schwettmann et al. 2023, *FIND: A function description benchmark for evaluating
interpretability methods*): functions are drawn from a grammar and may be corrupted; whoever
explains them sees only what they return. An explanation is a program, judged by what it returns:

- numbers: NMSE = Σ(f − g)² / Σ f² at x = i + 1/2, i from −128 to 127; solved below 0.1;
- strings: the share of held-out inputs with exactly the same output;
- neurons: which of three texts the function responds to most (chance 1/3).

The grammar and sizes are our own, smaller than the published ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

Numbers = Callable[[Float[np.ndarray, "point"]], Float[np.ndarray, "point"]]
Strings = Callable[[str], str]

CORRUPTIONS = ("none", "noise", "bias", "composition", "approximation")
GRID = np.arange(-128, 128) + 0.5
"""Where functions of a number are compared."""
SOLVED = 0.1


@dataclass(frozen=True)
class NumericFunction:
    """A function of one number.

    Attributes:
        family: its kind ("linear", "sine", …); corruption: what was done to it.
        truth: the function as it is, corruption and all.
        clean: the function without the noise; what an explanation is compared with.
        text: what it computes, in words.
    """

    family: str
    corruption: str
    truth: Numbers
    clean: Numbers
    text: str


@dataclass(frozen=True)
class StringFunction:
    """A function from string to string: operations one after the other."""

    steps: tuple[str, ...]

    def __call__(self, text: str) -> str:
        for step in self.steps:
            text = STEPS[step](text)
        return text

    @property
    def text(self) -> str:
        """What it computes, in words."""
        return ", then ".join(self.steps)


def _shifted(text: str) -> str:
    return "".join(chr((ord(c) - 96) % 26 + 97) if "a" <= c <= "z" else c for c in text)


STEPS: dict[str, Strings] = {
    "reverse it": lambda text: text[::-1],
    "write it in capitals": str.upper,
    "capitalise every word": str.title,
    "leave out the vowels": lambda text: "".join(c for c in text if c.lower() not in "aeiou"),
    "double every letter": lambda text: "".join(c + c for c in text),
    "sort the letters": lambda text: "".join(sorted(text)),
    "keep the first three letters": lambda text: text[:3],
    "keep every second letter": lambda text: text[::2],
    "move the first letter to the end": lambda text: text[1:] + text[:1],
    "replace every letter by the next one": _shifted,
    "append 'ing'": lambda text: text + "ing",
    "put 're' in front": lambda text: "re" + text,
    "replace 'a' by 'o'": lambda text: text.replace("a", "o"),
    "repeat it": lambda text: text + text,
}
"""Operations on strings, by what they do."""

FAMILIES: dict[str, Callable[..., Float[np.ndarray, "point"]]] = {
    "linear": lambda x, a, b, c: a * x + b,
    "quadratic": lambda x, a, b, c: a * (x - c) ** 2 + b,
    "absolute": lambda x, a, b, c: a * np.abs(x - c) + b,
    "ramp": lambda x, a, b, c: a * np.maximum(x - c, 0) + b,
    "step": lambda x, a, b, c: a * (x > c) + b,
    "sine": lambda x, a, b, c: a * np.sin(2 * math.pi * x / (8 + abs(c))) + b,
    "saw": lambda x, a, b, c: a * np.mod(x, 8 + abs(c)) + b,
    "bump": lambda x, a, b, c: a * np.exp(-(((x - c) / 24) ** 2)) + b,
}
"""Functions of a number with a slope or height ``a``, an offset ``b`` and a place or period ``c``."""


def numeric_functions(count: int, *, seed: int = 0) -> tuple[NumericFunction, ...]:
    """Random functions of a number, families and corruptions in turn.

    noise: Gaussian, a tenth of the function's spread, fresh at every call. bias: an interval of 32
    on which it is constant. composition: of two families. approximation: a hidden layer of 64
    tanh units fitted to it.
    """
    names = tuple(FAMILIES)
    return tuple(
        _numeric(names[i % len(names)], CORRUPTIONS[(i // len(names)) % len(CORRUPTIONS)], [seed, i])
        for i in range(count)
    )


def _numeric(family: str, corruption: str, seed: list[int]) -> NumericFunction:
    generator = np.random.default_rng(seed)
    a, b, c = (
        float(generator.choice([-1, 1]) * generator.uniform(0.5, 4)),
        float(generator.uniform(-20, 20)),
        float(np.round(generator.uniform(-50, 50))),
    )
    text = f"{family} with a = {a:.3g}, b = {b:.3g}, c = {c:.0f}"

    def clean(x: Float[np.ndarray, "point"]) -> Float[np.ndarray, "point"]:
        return np.asarray(FAMILIES[family](x, a, b, c), np.float64)

    spread = float(clean(GRID).std())
    if corruption == "composition":
        inner = clean

        def composed(x: Float[np.ndarray, "point"]) -> Float[np.ndarray, "point"]:
            return np.asarray(np.abs(inner(x)), np.float64)

        return NumericFunction(family, corruption, composed, composed, f"absolute value of {text}")
    if corruption == "bias":
        low = float(generator.uniform(-100, 60))
        level = float(clean(GRID).mean() + spread)

        def biased(x: Float[np.ndarray, "point"]) -> Float[np.ndarray, "point"]:
            return np.where((x >= low) & (x < low + 32), level, clean(x))

        said = f"{text}, but {level:.3g} from {low:.3g} to {low + 32:.3g}"
        return NumericFunction(family, corruption, biased, biased, said)
    if corruption == "approximation":
        weights, bias = generator.normal(size=64) / 16, generator.normal(size=64) * 4
        hidden = np.tanh(GRID[:, None] * weights + bias)
        read, *_ = np.linalg.lstsq(np.column_stack([hidden, np.ones(len(GRID))]), clean(GRID), rcond=1e-6)

        def network(x: Float[np.ndarray, "point"]) -> Float[np.ndarray, "point"]:
            return np.asarray(np.tanh(x[:, None] * weights + bias) @ read[:-1] + read[-1], np.float64)

        return NumericFunction(family, corruption, network, network, f"{text}, approximated by a network")
    if corruption == "noise":

        def noisy(x: Float[np.ndarray, "point"]) -> Float[np.ndarray, "point"]:
            return clean(x) + generator.normal(size=len(x)) * spread / 10

        return NumericFunction(family, corruption, noisy, clean, f"{text}, with noise")
    return NumericFunction(family, corruption, clean, clean, text)


def string_functions(count: int, *, seed: int = 0) -> tuple[StringFunction, ...]:
    """Random functions of strings: one operation or two different ones, all distinct on words."""
    generator = np.random.default_rng(seed)
    names = list(STEPS)
    singles = [(name,) for name in names]
    pairs = [(first, second) for first in names for second in names if first != second]
    generator.shuffle(pairs)
    return tuple(StringFunction(steps) for steps in (*singles, *pairs)[:count])


def nmse(found: Numbers, function: NumericFunction) -> float:
    """Σ(f − g)² / Σ f² on the grid, f the function without noise; infinite where g is not finite."""
    true, said = function.clean(GRID), found(GRID)
    if not np.isfinite(said).all():
        return math.inf
    return float(((true - said) ** 2).sum() / max(float((true**2).sum()), 1e-12))


def exact_match(found: Strings, function: Strings, inputs: Sequence[str]) -> float:
    """Share of the inputs on which both give the same string."""
    return sum(found(text) == function(text) for text in inputs) / max(len(inputs), 1)
