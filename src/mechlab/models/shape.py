"""The sources and readers of a residual stream, and the order in which they act."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Stage:
    """One step of the pass.

    Attributes:
        kind: "embed", "attention", "mlp" or "logits".
        layer: the layer it belongs to; 0 for "embed", n_layers for "logits".
        readers: its columns among all readers (attention: queries, then keys, then values).
        writes: the sources it adds to the stream.
        upstream: sources ``0 … upstream-1`` are in the stream that its readers read.
    """

    kind: str
    layer: int
    readers: slice
    writes: slice
    upstream: int


@dataclass(frozen=True)
class Shape:
    """How many sources and readers a model has, and in which order they act.

    Sources: embed, then per layer its heads and its MLP. Readers: per layer ``n_heads``
    queries, ``n_key_value_heads`` keys, as many values, and the MLP; at the end the logits.
    With ``parallel`` blocks (GPT-NeoX) the MLP reads the stream that entered the layer.
    """

    n_layers: int
    n_heads: int
    n_key_value_heads: int
    parallel: bool

    @property
    def n_sources(self) -> int:
        """Rows of a score or mask."""
        return 1 + self.n_layers * (self.n_heads + 1)

    @property
    def n_readers(self) -> int:
        """Columns of a score or mask."""
        return 1 + self.n_layers * self.readers_per_layer

    @property
    def readers_per_layer(self) -> int:
        """Queries, keys, values and the MLP of one layer."""
        return self.n_heads + 2 * self.n_key_value_heads + 1

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        """Every stage in the order of execution."""
        none, found = slice(0, 0), [Stage("embed", 0, slice(0, 0), slice(0, 1), 0)]
        for layer in range(self.n_layers):
            first = 1 + layer * (self.n_heads + 1)
            mlp = first + self.n_heads
            column = layer * self.readers_per_layer
            end = column + self.readers_per_layer
            found += [
                Stage("attention", layer, slice(column, end - 1), slice(first, mlp), first),
                Stage(
                    "mlp", layer, slice(end - 1, end), slice(mlp, mlp + 1), first if self.parallel else mlp
                ),
            ]
        last = self.n_readers - 1
        found.append(Stage("logits", self.n_layers, slice(last, last + 1), none, self.n_sources))
        return tuple(found)
