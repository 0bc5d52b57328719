"""What can be done to the value at a site: add, project out, clamp, scale, swap, splice.

Each function makes an ``Edit`` for ``editing``. Vectors may have any floating type and
device: they are moved to the value's. Arithmetic is done in float32 at least and rounded
once to the value's own type, so a bfloat16 model stays bfloat16. Gradients flow to the
value and to the vectors given.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mechlab.errors import MechlabError

Replacement = Callable[[Float[Tensor, "row dim"]], Float[Tensor, "row dim"]]


@dataclass(frozen=True, eq=False)
class Edit:
    """A change of a site's value, by position.

    Attributes:
        name: what it is, for messages.
        change: ``(value [batch pos dim], held) -> new value``; ``held`` is the part of ``values``
            that belongs to the positions of this forward, or None without values.
        dim: size of the last axis it fits; None when any does.
        values: one value for each position of the sequence, ``[batch or 1, pos, dim]``.
    """

    name: str
    change: Callable[[Tensor, Tensor | None], Tensor]
    dim: int | None = None
    values: Float[Tensor, "batch pos dim"] | None = None


def add(vector: Float[Tensor, "dim"], strength: float = 1.0) -> Edit:
    """x + strength · vector, in the units of the site.

    ``strength_for_kl`` finds the strength of a wanted effect. Raises MechlabError for a vector
    or a strength that is not finite.
    """
    _finite("vector", vector)
    _number("strength", strength)

    def change(value: Tensor, _: Tensor | None) -> Tensor:
        x = _wide(value)
        moved: Tensor = x + strength * vector.to(x)
        return moved

    return Edit("add", change, len(vector))


def project_out(directions: Float[Tensor, "*n dim"]) -> Edit:
    """x - Q Qᵀ x: what lies along one direction ``[dim]``, or in the span of several ``[n dim]``, goes.

    The rows of ``directions`` are orthonormalised to Q; their lengths do not matter. Raises
    MechlabError when there is none, one has length zero, or they depend on each other.
    """
    rows = directions[None] if directions.ndim == 1 else directions
    if rows.ndim != 2 or not len(rows):
        raise MechlabError("directions are not [dim] or [n, dim]", list(directions.shape), "pass 1 or more")
    basis, triangle = torch.linalg.qr(_units("direction", rows).T)
    # A unit row's share outside the span of the rows before it.
    if len(rows) > rows.shape[1] or triangle.diagonal().abs().min() < 1e-5:
        raise MechlabError("directions depend on each other", list(rows.shape), "leave the spare ones out")

    def change(value: Tensor, _: Tensor | None) -> Tensor:
        x = _wide(value)
        q = basis.to(x)
        rest: Tensor = x - (x @ q) @ q.T
        return rest

    return Edit("project_out", change, rows.shape[1])


def clamp(
    direction: Float[Tensor, "dim"],
    value: float | None = None,
    *,
    low: float | None = None,
    high: float | None = None,
) -> Edit:
    """x + (c' - c) u: the coordinate c = u · x along the unit direction u is set or bounded.

    Args:
        direction: its length does not matter.
        value: the coordinate wanted at every position; or else
        low, high: bounds; a coordinate within them is left as it is, to the bit.

    Raises MechlabError when neither or both of value and bounds are given, the bounds cross,
    or anything is not finite.
    """
    given = {name: x for name, x in (("value", value), ("low", low), ("high", high)) if x is not None}
    for name, number in given.items():
        _number(name, number)
    if not given or (value is not None and len(given) > 1):
        raise MechlabError("clamp takes a value or bounds", given or None, "pass value, or low and high")
    if low is not None and high is not None and low > high:
        raise MechlabError("bounds of clamp cross", f"low {low}, high {high}", "low must not exceed high")
    unit = _units("direction", direction[None])[0]

    def change(x: Tensor, _: Tensor | None) -> Tensor:
        x = _wide(x)
        u = unit.to(x)
        now = x @ u
        wanted = torch.full_like(now, value) if value is not None else now.clamp(low, high)
        return x + (wanted - now)[..., None] * u

    return Edit("clamp", change, len(direction))


def scale(factor: float) -> Edit:
    """factor · x; 0 ablates. Raises MechlabError for a factor that is not finite."""
    _number("factor", factor)
    return Edit("scale", lambda value, _: _wide(value) * factor)


def swap(values: Float[Tensor, "batch pos dim"]) -> Edit:
    """Other values instead of the model's: those of another run, a mean, zeros.

    ``values[:, p]`` goes to position p of the sequence, also while generating with a cache;
    a batch of one serves every row. Every edited position needs a value: to swap a prompt and
    generate freely after it, say ``positions="prompt"``.
    """

    def change(value: Tensor, held: Tensor | None) -> Tensor:
        assert held is not None
        return held.expand(max(len(held), len(value)), -1, -1)

    return Edit("swap", change, values.shape[-1], values)


def splice(
    replacement: Replacement, *, error: bool | Replacement | Float[Tensor, "batch pos dim"] = False
) -> Edit:
    """A reconstruction in place of the value, with or without the part it misses.

    Args:
        replacement: x → x̂ on rows ``[row, dim]`` (float32, or float64 in a float64 model), such
            as a dictionary's decode(encode(x)), possibly with latents changed in between.
        error: False: x̂ alone.
            True: x̂ + (x - x̂), ``replacement`` being the plain reconstruction: changes nothing
            beyond rounding; a check, or the base of a gradient with respect to something inside.
            A callable: the plain reconstruction r that ``replacement`` is a changed version of;
            x̂ + (x - r(x)), so that the change is all that happens (Marks et al. 2024,
            arXiv 2403.19647).
            A tensor ``[batch or 1, pos, dim]``: the error x - r(x) of a clean run, by position.

    A trap: when a latent is ablated inside ``replacement``, ``error=True`` computes the error
    from the ablated reconstruction, x̂ + (x - x̂) = x, and the ablation is cancelled. Give the
    plain reconstruction as ``error``. Likewise below an edit of an earlier site: x is then
    already edited, and what the dictionary misses of that edit passes through the error; give
    the clean run's error as a tensor when it must not.
    """

    def rows(x: Tensor, function: Replacement) -> Tensor:
        made = function(x.reshape(-1, x.shape[-1]))
        if made.shape != (x.shape[0] * x.shape[1], x.shape[-1]):
            raise MechlabError(
                "splice's replacement changed the shape",
                list(made.shape),
                f"it was given {[x.shape[0] * x.shape[1], x.shape[-1]]}",
            )
        return made.reshape(x.shape)

    def change(value: Tensor, held: Tensor | None) -> Tensor:
        x = _wide(value)
        made = rows(x, replacement)
        if held is not None:
            return made + held.to(made)
        if error is False:
            return made
        # bool is not callable, so what is left is True or the plain reconstruction.
        return made + (x - (rows(x, error) if callable(error) else made))

    values = error if isinstance(error, Tensor) else None
    return Edit("splice", change, None if values is None else values.shape[-1], values)


def _wide(value: Tensor) -> Tensor:
    return value if value.dtype in (torch.float32, torch.float64) else value.float()


def _number(name: str, value: float) -> None:
    if not math.isfinite(value):
        raise MechlabError(f"{name} is not a finite number", value, "pass a number")


def _finite(name: str, vector: Tensor) -> None:
    if not bool(torch.isfinite(vector).all()):
        raise MechlabError(f"{name} holds NaN or infinity", list(vector.shape), "check where it comes from")


def _units(name: str, rows: Float[Tensor, "n dim"]) -> Float[Tensor, "n dim"]:
    _finite(name, rows)
    lengths = rows.double().norm(dim=-1, keepdim=True)
    if bool((lengths == 0).any()):
        raise MechlabError(f"{name} has length zero", list(rows.shape), "pass a direction")
    units: Tensor = rows.double() / lengths
    return units
