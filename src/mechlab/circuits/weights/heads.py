"""The matrices of every head, with the norm before it folded in.

Rows of a stream multiply from the left: a head moves x·W_V·W_O to the positions that attend, and
attends by x_q·W_Q·W_Kᵀ·x_kᵀ. Folding (``Norm.fold``) multiplies by the norm's weight and, for LayerNorm,
removes the mean; what stays out is the scale 1/σ, which changes no direction. With grouped-query attention
every head has its group's keys and values.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mechlab.errors import MechlabError
from mechlab.models.weights import at_least_single, read_weights

_HEAD = re.compile(r"a(\d+)\.h(\d+)")


@dataclass(frozen=True)
class Heads:
    """All heads of a model, layer by layer: head h of layer l is row l · n_heads + h.

    Attributes:
        n_layers, n_heads: their numbers.
        query, key, value: what a head reads with.
        output: what it writes with.
    """

    n_layers: int
    n_heads: int
    query: Float[Tensor, "head d_model d_head"]
    key: Float[Tensor, "head d_model d_head"]
    value: Float[Tensor, "head d_model d_head"]
    output: Float[Tensor, "head d_head d_model"]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the rows, as in the graph: "a2.h1"."""
        return tuple(f"a{layer}.h{head}" for layer in range(self.n_layers) for head in range(self.n_heads))

    def row(self, name: str) -> int:
        """Row of a head such as "a2.h1"; MechlabError when there is none."""
        found = _HEAD.fullmatch(name)
        layer, head = (-1, -1) if found is None else map(int, found.groups())
        if not (0 <= layer < self.n_layers and 0 <= head < self.n_heads):
            last = f"a{self.n_layers - 1}.h{self.n_heads - 1}"
            raise MechlabError("model has no head", name, f"heads are a0.h0 … {last}")
        return layer * self.n_heads + head


@torch.no_grad()
def read_heads(module: nn.Module) -> Heads:
    """The heads of a model, in single precision at least. Raises MechlabError as ``read_weights`` does."""
    attentions = read_weights(module).attentions
    n_heads = attentions[0].inputs[0].shape[0]
    parts = [
        torch.cat(
            [
                attention.norm.fold(weight := attention.inputs[part], None)[0].repeat_interleave(
                    n_heads // weight.shape[0], 0
                )
                for attention in attentions
            ]
        )
        for part in range(3)
    ]
    parts.append(torch.cat([attention.output for attention in attentions]))
    query, key, value, output = map(at_least_single, parts)
    return Heads(len(attentions), n_heads, query, key, value, output)
