"""What a causal model predicts for a language model: base and source prompts and counterfactual answers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random

import torch
from jaxtyping import Int
from torch import Tensor

from mechlab.circuits.causal.model import CausalModel, Setting
from mechlab.errors import MechlabError, near

PARTS = ("train", "test")
_TRIES = 200


@dataclass(frozen=True)
class Problem:
    """A causal model and how its inputs and output are written in tokens.

    Attributes:
        causal: the model.
        draw: a random input; it decides how often each case occurs.
        encode: token ids of an input's prompt, BOS included; all prompts have one length.
        token: the token that says an output value.
    """

    causal: CausalModel
    draw: Callable[[Random], Setting]
    encode: Callable[[Setting], Sequence[int]]
    token: Callable[[int], int]


@dataclass(frozen=True)
class Interchanges:
    """Base prompts, a source prompt for every variable that is swapped, and what should come out.

    Attributes:
        base: base prompts.
        sources: variable → the prompts it takes its value from.
        answers: token of the counterfactual output.
        unchanged: token of the output on the base prompt alone.
        outputs: every token that an output can be, in ascending order.
    """

    base: Int[Tensor, "n pos"]
    sources: dict[str, Int[Tensor, "n pos"]]
    answers: Int[Tensor, "n"]
    unchanged: Int[Tensor, "n"]
    outputs: Int[Tensor, "value"]

    def __len__(self) -> int:
        return len(self.base)

    def rows(self, rows: Int[Tensor, "chosen"] | slice) -> Interchanges:
        """Some of the pairs."""
        return replace(
            self,
            base=self.base[rows],
            sources={name: tokens[rows] for name, tokens in self.sources.items()},
            answers=self.answers[rows],
            unchanged=self.unchanged[rows],
        )

    def shuffled(self, seed: int = 0) -> Interchanges:
        """The same with sources exchanged among the pairs: a control that knows nothing of the answers."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        return replace(self, sources={name: tokens[order] for name, tokens in self.sources.items()})


def part_of(setting: Setting) -> str:
    """Which part an input belongs to, decided by its values: "test" for a quarter of all inputs."""
    return "test" if _hash("part", setting) % 4 == 0 else "train"


@dataclass(frozen=True)
class Pair:
    """One base input with a source input per variable, and what the causal model makes of them.

    Attributes:
        base, sources: inputs.
        after: output on the base with the variables interchanged.
        plain: output on the base.
    """

    base: Setting
    sources: dict[str, Setting]
    after: int
    plain: int


def draw_interchanges(
    problem: Problem,
    variables: Sequence[str] | str,
    *,
    n: int = 256,
    seed: int = 0,
    split: str = "test",
    changed: float = 0.5,
    arbitrary: bool = False,
) -> Interchanges:
    """Random base and source pairs, each variable with a source of its own.

    Args:
        variables: which are swapped together.
        split: "train" or "test"; no input, base or source, is in both.
        changed: share of pairs whose counterfactual output differs from the output on the base, so
            that a swap without effect scores 1 - ``changed``.
        arbitrary: a control: each source prompt is given a meaningless value of the variable, by a
            hash of the prompt, in place of the one that the causal model computes.

    Raises:
        MechlabError: an unknown variable or split, ``n`` below 1, ``changed`` outside 0 to 1, prompts
            of several lengths, or a share that random inputs do not reach.
    """
    names = (variables,) if isinstance(variables, str) else tuple(variables)
    pairs = draw_pairs(problem, names, n=n, seed=seed, split=split, changed=changed, arbitrary=arbitrary)
    output = problem.causal.output
    # An interchange can give an output that no input gives by itself.
    values = {
        *values_of(problem, (output,))[output],
        *(v for pair in pairs for v in (pair.after, pair.plain)),
    }
    tokens = {value: problem.token(value) for value in values}
    if len(outputs := sorted(set(tokens.values()))) < len(tokens):
        raise MechlabError("two outputs have one token", problem.causal.output, "give each value its own")
    return Interchanges(
        base=tokens_of(problem, [pair.base for pair in pairs]),
        sources={name: tokens_of(problem, [pair.sources[name] for pair in pairs]) for name in names},
        answers=torch.tensor([problem.token(pair.after) for pair in pairs]),
        unchanged=torch.tensor([problem.token(pair.plain) for pair in pairs]),
        outputs=torch.tensor(outputs),
    )


def draw_pairs(
    problem: Problem,
    names: tuple[str, ...],
    *,
    n: int,
    seed: int = 0,
    split: str = "test",
    changed: float = 0.5,
    arbitrary: bool = False,
) -> list[Pair]:
    """The inputs behind ``draw_interchanges``, which says what the arguments mean."""
    causal = problem.causal
    for name in names:
        if name not in causal.names:
            raise MechlabError("causal model has no variable", name, near(name, causal.names))
    if split not in PARTS:
        raise MechlabError("split does not exist", split, near(split, PARTS))
    if n < 1 or not 0.0 <= changed <= 1.0:
        raise MechlabError(
            "cannot draw interchanges", f"n={n}, changed={changed}", "n ≥ 1 and 0 ≤ changed ≤ 1"
        )
    rng = Random(f"interchanges {split} {seed}")
    values = values_of(problem, names) if arbitrary else {}
    wanted = {True: round(changed * n), False: n - round(changed * n)}
    pairs: list[Pair] = []
    for _ in range(_TRIES * n):
        if len(pairs) == n:
            break
        base = draw_input(problem, rng, split)
        sources = {name: draw_input(problem, rng, split) for name in names}
        plain = causal.run(base)[causal.output]
        if arbitrary:
            forced = {
                name: values[name][_hash(name, source) % len(values[name])]
                for name, source in sources.items()
            }
            after = causal.run(base, forced)[causal.output]
        else:
            after = causal.counterfactual(base, sources)
        if wanted[after != plain] > 0:
            wanted[after != plain] -= 1
            pairs.append(Pair(base, sources, after, plain))
    if len(pairs) < n:
        raise MechlabError(
            "random inputs do not give that share of changed outputs", changed, "change draw, or the share"
        )
    rng.shuffle(pairs)
    return pairs


def draw_input(problem: Problem, rng: Random, split: str) -> Setting:
    """A random input of one part."""
    for _ in range(_TRIES):
        setting = problem.draw(rng)
        if part_of(setting) == split:
            return setting
    raise MechlabError("no input falls into this part", split, "draw from more inputs")


def values_of(problem: Problem, names: tuple[str, ...]) -> dict[str, list[int]]:
    """The values that each variable takes on random inputs."""
    rng = Random("values")
    runs = [problem.causal.run(problem.draw(rng)) for _ in range(500)]
    return {name: sorted({run[name] for run in runs}) for name in names}


def _hash(salt: str, setting: Setting) -> int:
    # A checksum such as CRC would tie the label of a prompt to the part it falls into.
    text = f"{salt} {sorted(setting.items())}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


def tokens_of(problem: Problem, settings: Sequence[Setting]) -> Int[Tensor, "n pos"]:
    """Prompts of several inputs; MechlabError when they differ in length."""
    rows = [list(problem.encode(setting)) for setting in settings]
    lengths = sorted({len(row) for row in rows})
    if len(lengths) > 1:
        raise MechlabError("prompts have several lengths", lengths, "encode every input to one length")
    return torch.tensor(rows)
