"""Replacing the value at a site while the model runs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mechlab.errors import MechlabError
from mechlab.interventions.edits import Edit
from mechlab.interventions.positions import Positions, Step, check_positions, chosen, following
from mechlab.models.subject import Subject

Function = Callable[[Float[Tensor, "batch pos dim"]], Float[Tensor, "batch pos dim"]]


@contextlib.contextmanager
def editing(
    subject: Subject, site: str, edit: Edit | Function, positions: Positions = None
) -> Iterator[None]:
    """While open, every forward of the model passes the value at ``site`` through ``edit``.

    Args:
        subject: the model.
        site: a site of the table, or one head of it ("blocks.0.attn.hook_z:3").
        edit: one of ``add``, ``project_out``, ``clamp``, ``scale``, ``swap``, ``splice``, or a
            function of the value ``[batch, pos, dim]`` (heads flattened into ``dim``), which is
            given all positions of the forward, one of them when decoding with a cache.
        positions: which positions of the sequence it touches; the others stay as they are, to
            the bit. None: all. A position, a list of them, or a slice: columns of the sequence
            counted from 0, the same ones while generating with a cache; negative ones count from
            the prompt's end. "prompt" or "new": what the first forward was given, or what a cache
            was continued with. A boolean mask ``[batch or 1, pos]``: tokens beyond it are not
            touched.

    Several may be open at once; at one site they act in the order opened. Scoring and
    ``subject.module.generate`` both see the edit, with gradients flowing; the decomposed forward
    and the bridge do not. Without a cache each forward is a prompt of its own. Hooks are
    removed on the way out, also after an exception.

    Raises MechlabError when the site does not exist or cannot be edited, the edit's vector has
    another size than the site, or a position does not exist.
    """
    place = subject.site(site)
    if not place.editable:
        raise MechlabError("site can be read but not edited", site, "edit what it is made from, or hook_z")
    if isinstance(edit, Edit) and edit.dim not in (None, place.dim):
        raise MechlabError(
            f"{edit.name} has another size than the site", edit.dim, f"{site} has dim {place.dim}"
        )
    check_positions(positions, subject.n_ctx)
    module = subject.module.get_submodule(place.module)

    with contextlib.ExitStack() as stack:
        step = stack.enter_context(following(subject))

        def passed(raw: Any) -> Any:
            value = place.read(raw)
            now = step()
            wanted = chosen(positions, now, value.device)
            if wanted is False:
                return raw
            new = _changed(edit, value, now, wanted, site)
            return place.write(raw, new)

        def before(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if args:
                return (passed(args[0]), *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": passed(kwargs["hidden_states"])}

        if place.side == "input":
            handle = module.register_forward_pre_hook(before, with_kwargs=True)
        else:
            handle = module.register_forward_hook(lambda _, __, output: passed(output))
        stack.callback(handle.remove)
        yield


def _changed(
    edit: Edit | Function,
    value: Float[Tensor, "batch pos dim"],
    step: Step,
    wanted: Bool[Tensor, "row pos"] | bool,
    site: str,
) -> Float[Tensor, "rows pos dim"]:
    """The edited value at the wanted positions, the value itself elsewhere."""
    if isinstance(edit, Edit):
        held = None if edit.values is None else _held(edit, edit.values, step, wanted).to(value.device)
        new = edit.change(value, held)
    else:
        new = edit(value)
    # GPT-2 computes its position embeddings once for all rows; an edit may tell the rows apart.
    if new.shape[1:] != value.shape[1:] or new.shape[0] not in (value.shape[0], step.batch):
        raise MechlabError(
            f"edit changed the shape of {site}", list(new.shape), f"it was given {list(value.shape)}"
        )
    new = new.to(value)
    return new if isinstance(wanted, bool) else torch.where(wanted[..., None], new, value)


def _held(
    edit: Edit, values: Float[Tensor, "batch pos dim"], step: Step, wanted: Bool[Tensor, "row now"] | bool
) -> Float[Tensor, "batch now dim"]:
    """The edit's values for the columns of this forward; zeros where none is wanted."""
    if values.shape[0] not in (1, step.batch):
        raise MechlabError(
            f"{edit.name} has values for another batch", values.shape[0], f"the batch has {step.batch}"
        )
    held = values[:, step.start : step.start + step.length]
    n = held.shape[1]
    lacking = n < step.length if isinstance(wanted, bool) else bool(wanted[:, n:].any())
    if lacking:
        raise MechlabError(
            f"{edit.name} has no value for a position",
            max(values.shape[1], step.start),
            f"values end at {values.shape[1]}; narrow positions=, to the prompt for one",
        )
    return torch.nn.functional.pad(held, (0, 0, 0, step.length - n))
