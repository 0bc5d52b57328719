"""The site table: TransformerLens hook names on untouched Hugging Face modules.

A site is a place in the forward pass where a tensor can be read or replaced. Its name
is the TransformerLens hook name; the table says which submodule holds it, whether it is
that submodule's input or output, and which part of it. Each value equals what
TransformerLens' ``run_with_cache`` gives under the same name (tested within 1e-5).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechlab.errors import MechlabError
from mechlab.models.layouts import KEY, MLP, MODEL, PATTERN, QUERY, Layout, Row, layout_of
from mechlab.models.layouts import supported_architectures as supported_architectures


@dataclass(frozen=True)
class Site:
    """One place in a model.

    Its tensor is flat, ``[batch, pos, dim]`` with heads side by side; an attention pattern is
    ``[batch, head, query, key]``.

    Attributes:
        name: TransformerLens hook name; with ":3" behind it when it is one head's part.
        module: dotted path of the submodule inside the Hugging Face model; "" for a bridge's site.
        side: "input" or "output" of that submodule; "bridge" when only the bridge has the site.
        layer: block index; -1 before the first block, the number of blocks after the last.
        dim: size of the last axis of the flat tensor; 0 for a pattern, whose last axis is as long
            as the context.
        heads: number of heads when the site is per head (the flat axis is heads x d_head). Keys
            and values have the key-value heads of grouped-query attention.
        head: which head, when the site is one head's part.
        part: (groups, count, index) when the hooked tensor holds several sites: its last axis is
            groups x count x width, and this site is number ``index`` of the count.
        pattern: whether the site is an attention pattern (or scores) rather than a value per position.
    """

    name: str
    module: str
    side: str
    layer: int
    dim: int
    heads: int | None = None
    head: int | None = None
    part: tuple[int, int, int] | None = None
    pattern: bool = False

    @property
    def editable(self) -> bool:
        """Whether the value can be replaced: not a pattern, and held by the module itself."""
        return not self.pattern and self.side != "bridge"

    def one_head(self, head: int) -> Site:
        """The site of one head, of dim d_head, called "NAME:HEAD".

        Raises MechlabError when the site has no heads or not so many.
        """
        if self.heads is None or self.pattern:
            raise MechlabError("site is not divided by head", self.name, "leave out the part after the colon")
        if not 0 <= head < self.heads:
            raise MechlabError(f"{self.name} has no head", head, f"heads are 0 to {self.heads - 1}")
        name, dim = f"{self.name}:{head}", self.dim // self.heads
        return dataclasses.replace(self, name=name, dim=dim, heads=None, head=head)

    def read(self, value: Any) -> Float[Tensor, "batch *axes"]:
        """The site's tensor out of what a hook on its module gets.

        Args:
            value: the module's positional arguments (side "input"), its output (side "output"), or
                the hooked tensor itself.

        Returns:
            A view where the layout allows it: copy it to keep it.
        """
        return self._own_head(self._whole(value))

    def read_bridge(self, value: Float[Tensor, "batch *axes"]) -> Float[Tensor, "batch *site_axes"]:
        """The site's tensor out of what a TransformerLens bridge's hook of this name gets."""
        return self._own_head(value if self.pattern or value.ndim == 3 else value.flatten(2))

    def write(self, value: Any, new: Float[Tensor, "batch *axes"]) -> Any:
        """What a hook on the site's module should give back so that the site holds ``new``.

        Nothing is changed in place, and gradients flow to ``new`` and to the rest of ``value``.

        Args:
            value: as in ``read``; the return value has the same structure.
            new: the site's tensor, of the same shape as ``read`` gives.

        Raises MechlabError for a site that cannot be edited.
        """
        if not self.editable:
            why = "an attention pattern" if self.pattern else "only the TransformerLens bridge has it"
            raise MechlabError(
                f"site cannot be edited, {why}", self.name, "edit attn.hook_z or hook_attn_out"
            )
        if self.head is not None:
            whole, start = self._whole(value), self.head * self.dim
            new = torch.cat([whole[..., :start], new, whole[..., start + self.dim :]], dim=-1)
        if self.part is not None:
            groups, count, index = self.part
            parts = list(_split(_first(value), groups, count).unbind(-2))
            parts[index] = new.reshape(*new.shape[:-1], groups, -1)
            new = torch.stack(parts, dim=-2).flatten(-3)
        return (new, *value[1:]) if isinstance(value, tuple) else new

    def _own_head(self, tensor: Tensor) -> Tensor:
        if self.head is None:
            return tensor
        return tensor[..., self.head * self.dim : (self.head + 1) * self.dim]

    def _whole(self, value: Any) -> Tensor:
        """The site's tensor with all heads."""
        if self.pattern:
            # Attention modules put out (hidden states, weights).
            pattern: Tensor = value[1] if isinstance(value, tuple) else value
            return pattern
        tensor = _first(value)
        if self.part is not None:
            groups, count, index = self.part
            tensor = _split(tensor, groups, count)[..., index, :].flatten(-2)
        return tensor


def site_table(module: Any) -> dict[str, Site]:
    """All sites of a Hugging Face language model, in forward order, without single heads.

    Args:
        module: the model; its ``config.model_type`` selects the layout.

    Raises MechlabError for an architecture without a layout.
    """
    config = module.config
    layout = layout_of(config)
    heads = config.num_attention_heads
    key_heads = getattr(config, "num_key_value_heads", None) or heads
    d_head = getattr(config, "head_dim", None) or config.hidden_size // heads
    dims = {
        MODEL: config.hidden_size,
        QUERY: heads * d_head,
        KEY: key_heads * d_head,
        MLP: _mlp_width(module, layout),
        PATTERN: 0,
    }
    head_counts = {QUERY: heads, KEY: key_heads, PATTERN: heads}
    groups = heads if layout.fused_by_head else 1
    n_layers = config.num_hidden_layers

    def site(row: Row, layer: int) -> Site:
        path, name = row.module, row.hook
        if 0 <= layer < n_layers:
            path, name = f"{layout.blocks}.{layer}.{path}".rstrip("."), f"blocks.{layer}.{name}"
        return Site(
            name=name,
            module=path,
            side=row.side,
            layer=layer,
            dim=dims[row.width],
            heads=head_counts.get(row.width),
            part=None if row.third is None else (groups, 3, row.third),
            pattern=row.width == PATTERN,
        )

    sites = [site(row, -1) for row in layout.before]
    sites += [site(row, layer) for layer in range(n_layers) for row in layout.block]
    sites += [site(row, n_layers) for row in layout.after]
    return {each.name: each for each in sites}


def _first(value: Any) -> Tensor:
    tensor: Tensor = value[0] if isinstance(value, tuple) else value
    return tensor


def _split(tensor: Tensor, groups: int, count: int) -> Tensor:
    return tensor.reshape(*tensor.shape[:-1], groups, count, -1)


def _mlp_width(module: Any, layout: Layout) -> int:
    row = next(row for row in layout.block if row.hook == "mlp.hook_post")
    reader = module.get_submodule(f"{layout.blocks}.0.{row.module}")
    # GPT-2's Conv1D has its own name for the number of inputs.
    return int(reader.nx if hasattr(reader, "nx") else reader.in_features)
