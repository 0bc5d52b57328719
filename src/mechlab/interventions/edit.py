"""Replacing the value at a site while the model runs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from jaxtyping import Float
from torch import Tensor

from mechlab.models.subject import Subject

Edit = Callable[[Float[Tensor, "batch pos dim"]], Float[Tensor, "batch pos dim"]]


@contextlib.contextmanager
def editing(subject: Subject, site: str, edit: Edit) -> Iterator[None]:
    """While open, every forward passes the value at ``site`` through ``edit``.

    Heads are flattened into ``dim``. Gradients flow through the edit. The hook is removed
    on the way out, also after an exception; returning the input unchanged changes no logit.
    Raises MechlabError when the site does not exist.
    """
    place = subject.site(site)
    module = subject.module.get_submodule(place.module)

    def before(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (edit(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": edit(kwargs["hidden_states"])}

    def after(_: Any, __: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (edit(output[0]), *output[1:])
        return edit(output)

    if place.side == "input":
        handle = module.register_forward_pre_hook(before, with_kwargs=True)
    else:
        handle = module.register_forward_hook(after)
    try:
        yield
    finally:
        handle.remove()
