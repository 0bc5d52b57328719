"""Dictionaries inside the running model: codes ablated or clamped, gradients at every latent.

At the output site(s) of a dictionary, while ``splicing`` is open,

    y' = decode(f', x) + e,    f = encode(x),   f' = f with the changes asked for,
    e = y - decode(f, x)

with x the value at the input site(s) in the same forward. The error e is always that of the
*unchanged* codes: taken from the changed ones it would undo the change, y' = y (the fault of
SAELens' issue 326). Without changes and with the error nothing moves beyond rounding.

For gradients, f is one node in decode(f') and another in e, so that the gradient found at
``codes.values`` holds the error constant (Marks et al. 2024, arXiv 2403.19647), while what flows on
to x is the exact derivative of y', here of the identity.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from mechlab.errors import MechlabError, near
from mechlab.interventions.edit import editing
from mechlab.interventions.positions import Positions, Step, chosen
from mechlab.models.subject import Subject
from mechlab.sae.base import Sae
from mechlab.sae.clt import Clt
from mechlab.sae.codes import Codes, scatter, side_by_side
from mechlab.sae.dictionary import Dictionary
from mechlab.sae.formats.wrapped import refuse_contextual

Value = Float[Tensor, "batch pos dim"]
Change = Callable[[Codes], Codes]


@runtime_checkable
class Placed(Protocol):
    """Weights and the sites that they read and write: a ``Dictionary``."""

    @property
    def sae(self) -> Sae:
        """The weights."""
        ...

    @property
    def inputs(self) -> tuple[str, ...]:
        """Sites that are read."""
        ...

    @property
    def outputs(self) -> tuple[str, ...]:
        """Sites that are written."""
        ...


@dataclass(frozen=True)
class At:
    """Weights and the sites they belong to, without an artifact."""

    sae: Sae
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class Splice:
    """What passed through a dictionary in the latest forward; made by ``splicing``.

    Attributes:
        error: what the reconstruction missed at each output site, ``[batch, pos, d]``, as a node of
            the graph: after a backward pass its ``grad`` is there. Empty without errors.
        shape: batch and positions; a row of codes is one of the ``batch * pos``, row-major.
    """

    def __init__(self, dictionary: Placed, error: bool | Mapping[str, Value], change: Change | None) -> None:
        self.error: dict[str, Tensor] = {}
        self.shape = (0, 0)
        self._sae, self._inputs, self._outputs = dictionary.sae, dictionary.inputs, dictionary.outputs
        self._given, self._change = error, change
        self._seen: dict[str, Tensor] = {}
        # One of all inputs; one for each layer of a cross-layer transcoder.
        self._parts: list[Codes] = []
        # What each part writes to its outputs, with the changes and without.
        self._made: list[tuple[Tensor, Tensor]] = []

    @property
    def codes(self) -> Codes:
        """Codes before any change ``[batch * pos, k]``; MechlabError before the first forward."""
        if not self._parts:
            raise MechlabError("no forward has passed through the dictionary", None, "run the model first")
        return side_by_side(self._parts)

    @property
    def gradient(self) -> Codes:
        """The gradient of a metric at each latent in ``codes``, the error held constant.

        MechlabError when no backward pass came by.
        """
        found = [part.values.grad for part in self._parts]
        values = [gradient for gradient in found if gradient is not None]
        if not values:
            raise MechlabError("codes have no gradient", None, "call backward on a metric of the forward")
        codes = self.codes
        # A slot that is not in use stands for no latent.
        return Codes(torch.where(codes.values != 0, torch.cat(values, dim=1), 0), codes.indices)

    def dense(self, codes: Codes) -> Float[Tensor, "batch pos d_sae"]:
        """``codes`` or ``gradient`` as a dense array, 0 where a latent is not active."""
        return scatter(codes, self._sae.d_sae).view(*self.shape, -1)

    def passed(self, site: str, value: Value) -> Value:
        """What the model goes on with at a site of the dictionary."""
        x = value.to(self._sae.b_dec.dtype)
        if site in self._inputs:
            self._read(site, x)
        if site not in self._outputs:
            return value
        number = self._outputs.index(site)
        needed = number + 1 if isinstance(self._sae, Clt) else 1
        if len(self._made) < needed:
            raise MechlabError(
                "dictionary writes a site before it has read all of its inputs",
                f"{site}; inputs {', '.join(self._inputs)}",
                "splice dictionaries that read only earlier sites (crosscoders do not)",
            )
        made, plain = (
            self._written(number, [pair[which] for pair in self._made[:needed]]) for which in (0, 1)
        )
        if self._given is False:
            return made.view_as(x).to(value)
        error = x - plain.view_as(x) if self._given is True else self._given[site].to(x).expand_as(x)
        self.error[site] = error = _node(error)
        return (made.view_as(x) + error).to(value)

    def _read(self, site: str, x: Value) -> None:
        if site in self._seen or len(self._seen) == len(self._inputs):  # another forward has begun
            self._seen, self._parts, self._made, self.error = {}, [], [], {}
        self.shape = (x.shape[0], x.shape[1])
        self._seen[site] = rows = x.flatten(0, 1)
        sae = self._sae
        if isinstance(sae, Clt):
            layer = self._inputs.index(site)
            codes = sae.encode_layer(layer, rows)
            codes = sae.layer_differentiable(layer, rows, codes) if rows.requires_grad else codes
            # The first layer writes to all outputs, so it brings their bias.
            bias = sae.b_dec if layer == 0 else 0
            self._add(codes, lambda codes: sae.write(layer, codes) + bias)
        elif len(self._seen) == len(self._inputs):
            rows = torch.cat([self._seen[name] for name in self._inputs], dim=1)
            codes = sae.encode(rows)
            codes = sae.differentiable(rows, codes) if rows.requires_grad else codes
            self._add(codes, lambda codes: sae.decode(codes, rows))

    def _add(self, codes: Codes, write: Callable[[Codes], Tensor]) -> None:
        part = Codes(_node(codes.values), codes.indices)
        self._parts.append(part)
        made = write(part if self._change is None else self._change(part))
        # The same values; but what flows back through the error must not pass the part's node.
        same = self._change is None and not codes.values.requires_grad
        self._made.append((made, made.detach() if same or self._given is not True else write(codes)))

    def _written(self, number: int, parts: list[Tensor]) -> Float[Tensor, "row d"]:
        sizes = self._sae.out_sizes
        start = sum(sizes[:number])
        # A part ends with the last output, wherever it begins.
        columns = [slice(start - first, start - first + sizes[number])
                   for first in (self._sae.d_out - part.shape[1] for part in parts)]  # fmt: skip
        return torch.stack([part[:, c] for part, c in zip(parts, columns, strict=True)]).sum(0)


@contextlib.contextmanager
def splicing(
    model: Any,
    dictionary: Placed,
    *,
    error: bool | Mapping[str, Value] = True,
    ablate: Collection[int] = (),
    clamp: Mapping[int, float] | None = None,
    positions: Positions = None,
) -> Iterator[Splice]:
    """While open, every forward of the model passes through the dictionary.

    An SAE replaces the value at its site, a transcoder that of its output site from the value at
    its input site in the same forward, a cross-layer transcoder the outputs of all its layers.

    Args:
        model: a ``Subject``, or the TransformerLens bridge that ``subject.bridge()`` gives.
        dictionary: what ``load_sae`` gives; any object with ``sae``, ``inputs`` and ``outputs``.
        error: whether to add what the dictionary misses; or the error of another run, as its
            ``error`` holds it, ``[batch or 1, pos, d]`` for each output site.
        ablate: latents whose activation becomes 0.
        clamp: latent → activation at every position edited, whether it was active or not.
        positions: the positions replaced, as in ``editing``; elsewhere the value stays to the bit.
            With a bridge each forward counts as a prompt of its own.

    Yields what passed in the latest forward: ``codes``, ``error`` and after a backward pass of some
    metric their gradients. Several may be open at once. Hooks are removed on the way out, also after
    an exception. Raises MechlabError when a site does not exist or comes too late in the forward
    to be read (a crosscoder reads sites that come after those it writes), a latent does not exist, or the
    dictionary reads whole contexts.
    """
    refuse_contextual(dictionary.sae)
    on_bridge = not isinstance(model, Subject)
    sites = dict.fromkeys((*dictionary.inputs, *dictionary.outputs))
    sizes = dict(zip(dictionary.inputs, dictionary.sae.in_sizes, strict=True))
    sizes |= dict(zip(dictionary.outputs, dictionary.sae.out_sizes, strict=True))
    for site in sites:
        if on_bridge and site not in model.hook_dict:
            raise MechlabError("bridge has no hook", site, near(site, model.hook_dict))
        if not on_bridge and model.site(site).dim != sizes[site]:
            raise MechlabError(
                f"dictionary has another size than {site}",
                sizes[site],
                f"the site has {model.site(site).dim}",
            )
    if isinstance(dictionary, Dictionary) and not on_bridge:
        dictionary.check(model)
    if isinstance(error, Mapping) and set(error) != set(dictionary.outputs):
        raise MechlabError("errors belong to other sites", ", ".join(error), ", ".join(dictionary.outputs))
    change = _change(dictionary.sae.d_sae, ablate, clamp or {})
    device = next(model.parameters()).device if on_bridge else model.device
    sae = dictionary.sae
    if sae.b_dec.device != device:
        sae = copy.deepcopy(sae).to(device)
    splice = Splice(At(sae, dictionary.inputs, dictionary.outputs), error, change)
    with contextlib.ExitStack() as stack:
        for site in sites:
            passed = functools.partial(splice.passed, site)
            where = positions if site in dictionary.outputs else None
            if on_bridge:
                hook = _bridge_hook(passed, where)
                stack.enter_context(model.hooks(fwd_hooks=[(site, hook)]))
            else:
                stack.enter_context(editing(model, site, passed, where))
        yield splice


def _node(values: Tensor) -> Tensor:
    """The same values as a node of their own whose gradient is kept, where gradients are wanted."""
    if not torch.is_grad_enabled():
        return values
    node = values.view_as(values) if values.requires_grad else values.detach().requires_grad_()
    node.retain_grad()
    return node


def _change(d_sae: int, ablate: Collection[int], clamp: Mapping[int, float]) -> Change | None:
    for latent in (*ablate, *clamp):
        if not 0 <= latent < d_sae:
            raise MechlabError("dictionary has no latent", latent, f"latents are 0 to {d_sae - 1}")
    if both := set(ablate) & set(clamp):
        raise MechlabError("latent is both ablated and clamped", min(both), "choose one")
    if not ablate and not clamp:
        return None
    changed = torch.tensor([*ablate, *clamp])

    def change(codes: Codes) -> Codes:
        off = torch.isin(codes.indices, changed.to(codes.indices.device))
        kept = Codes(codes.values.masked_fill(off, 0), codes.indices)
        if not clamp:
            return kept
        rows = len(codes.values)
        values = codes.values.new_tensor(list(clamp.values())).expand(rows, -1)
        indices = codes.indices.new_tensor(list(clamp)).expand(rows, -1)
        return side_by_side([kept, Codes(values, indices)])

    return change


def _bridge_hook(passed: Callable[[Tensor], Tensor], positions: Positions) -> Callable[..., Tensor]:
    def hook(tensor: Tensor, hook: Any) -> Tensor:
        flat = tensor if tensor.ndim == 3 else tensor.flatten(2)
        batch, length = flat.shape[:2]
        wanted = chosen(positions, Step(0, length, batch, length, False), flat.device)
        if wanted is False:
            return tensor
        new = passed(flat)
        if not isinstance(wanted, bool):
            new = torch.where(wanted[..., None], new, flat)
        return new.view_as(tensor)

    return hook
