"""Which positions of a running sequence an edit touches.

A position is a column of the whole sequence, counted from 0, padding included. With a
key-value cache a forward sees only the columns that are not cached yet; the cache's length
says where they start. The *prompt* is what the first forward of a sequence was given, that
is, the forward that began with an empty cache; a forward without a cache is all prompt.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from mechlab.errors import MechlabError, near
from mechlab.models.subject import Subject

Positions = None | int | str | slice | Sequence[int] | Bool[Tensor, "batch pos"]
_NAMED = ("prompt", "new")


@dataclass(frozen=True)
class Step:
    """One forward: the columns ``start`` to ``start + length - 1`` of its sequence.

    Attributes:
        batch: number of rows.
        prompt: columns of the prompt; None when its forward was not seen.
        cached: whether a key-value cache is used, so that more columns may follow.
    """

    start: int
    length: int
    batch: int
    prompt: int | None
    cached: bool


@contextlib.contextmanager
def following(subject: Subject) -> Iterator[Callable[[], Step]]:
    """While open, the yielded function tells which columns the forward now running computes."""
    # The part below the head: it also runs when somebody leaves the head out.
    base = subject.module.base_model
    signature = inspect.signature(base.forward)
    current: Step | None = None

    def before(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal current
        given = {**kwargs, **signature.bind_partial(*args).arguments}
        cache = given.get("past_key_values")
        start = 0 if cache is None else int(cache.get_seq_length())
        tokens = given.get("input_ids")
        shape = (given["inputs_embeds"] if tokens is None else tokens).shape
        seen = None if current is None else current.prompt
        current = Step(
            start=start,
            length=int(shape[1]),
            batch=int(shape[0]),
            prompt=int(shape[1]) if start == 0 else seen,
            cached=cache is not None or bool(given.get("use_cache")),
        )

    def step() -> Step:
        if current is None:
            raise MechlabError(
                "edit ran outside a forward of the model", None, "run subject.module, not a part of it"
            )
        return current

    handle = base.register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield step
    finally:
        handle.remove()


def check_positions(positions: Positions, n_ctx: int) -> None:
    """Refuse what no forward could satisfy, before one is run.

    Raises MechlabError for an unknown name, a position outside ``n_ctx``, a slice that does
    not run forwards, a mask that is not boolean ``[batch, pos]``, or another type.
    """
    if isinstance(positions, str) and positions not in _NAMED:
        raise MechlabError("unknown positions", positions, near(positions, _NAMED))
    if isinstance(positions, slice) and (positions.step or 1) < 1:
        raise MechlabError("positions step backwards", positions, "use a positive step")
    if isinstance(positions, Tensor) and (positions.dtype != torch.bool or positions.ndim != 2):
        shown = f"{positions.dtype} {list(positions.shape)}"
        raise MechlabError("mask of positions is not boolean [batch, pos]", shown, "or pass a list of ints")
    if isinstance(positions, (str, slice, Tensor)) or positions is None:
        return
    for position in _listed(positions):
        if not isinstance(position, int) or isinstance(position, bool):
            raise MechlabError("position is not a whole number", position, "pass ints, a slice or a mask")
        if not -n_ctx <= position < n_ctx:
            raise MechlabError("position is out of range", position, f"the context holds {n_ctx}")


def chosen(positions: Positions, step: Step, device: torch.device) -> Bool[Tensor, "row now"] | bool:
    """Which columns of this forward are wanted: all (True), none (False), or a mask.

    The mask has one row, or as many as the batch. Raises MechlabError when a position does
    not exist, or cannot be told because the prompt was not seen.
    """
    if positions is None:
        return True
    columns = torch.arange(step.start, step.start + step.length)
    if isinstance(positions, str):
        if not step.cached and positions == "new":
            raise MechlabError(
                "a forward without a cache has no new positions", "new", "use slice(n_prompt, None)"
            )
        prompt = _prompt(step, positions)
        wanted = columns < prompt if positions == "prompt" else columns >= prompt
    elif isinstance(positions, slice):
        first = _from_end(positions.start or 0, step)
        wanted = (columns >= first) & ((columns - first) % (positions.step or 1) == 0)
        if positions.stop is not None:
            wanted &= columns < _from_end(positions.stop, step)
    elif isinstance(positions, Tensor):
        return _masked(positions, step, device)
    else:
        listed = _listed(positions)
        places = [p + _prompt(step, p) if p < 0 else p for p in listed]
        for position, place in zip(listed, places, strict=True):
            if place < 0 or (not step.cached and place >= step.length):
                raise MechlabError(
                    "position is out of range",
                    position,
                    f"the {'prompt' if step.cached else 'sequence'} has {step.prompt}",
                )
        wanted = torch.isin(columns, torch.tensor(places, dtype=torch.long))
    if wanted.all():
        return True
    return wanted[None].to(device) if wanted.any() else False


def _listed(positions: int | Sequence[int]) -> list[int]:
    return [positions] if isinstance(positions, int) else list(positions)


def _prompt(step: Step, positions: int | str | slice) -> int:
    if step.prompt is None:
        raise MechlabError(
            "prompt's length is not known, its forward came before the edit", positions, "open it earlier"
        )
    return step.prompt


def _from_end(bound: int, step: Step) -> int:
    """A slice's bound as a column; like Python's, it is clipped at the start."""
    return bound if bound >= 0 else max(0, bound + _prompt(step, bound))


def _masked(
    mask: Bool[Tensor, "row pos"], step: Step, device: torch.device
) -> Bool[Tensor, "row now"] | bool:
    rows, width = mask.shape
    end = step.start + step.length
    if rows not in (1, step.batch) or (step.start == 0 and width < end) or (not step.cached and width != end):
        raise MechlabError(
            "mask of positions has another shape than the tokens",
            [rows, width],
            f"tokens are {[step.batch, end]}",
        )
    now = mask[:, step.start : end]
    if not now.any():
        return False
    # Tokens generated after the mask's end are not chosen.
    beyond = now.new_zeros(rows, step.length - now.shape[1])
    return torch.cat([now, beyond], dim=1).to(device)
