"""From a program to the weights of a transformer.

Every series gets directions of the residual stream of its own: one per value, or one for a number.
A series is computed as early as its operands allow, by a head (Aggregate, SelectorWidth, AtLeast) or
by an MLP (Map, SequenceMap, and the second half of SelectorWidth):

* A head's score is ``SHARP`` where the key fits the query, half of that on BOS, and zero elsewhere.
  So a softmax is as good as exact, and a query that nothing fits looks at BOS, which holds nothing.
* SelectorWidth looks at BOS as much as at what it selects and reads BOS's share, 1 / (1 + width);
  an MLP of steps turns it into a category.
* An MLP looks values up: a neuron per value, or per pair of values with "one" as its threshold.

The layout follows Tracr (Lindner et al. 2023, *Tracr: compiled transformers as a laboratory for
interpretability*), as do the sizes; there are no biases, "one" is a direction of the embedding.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from mechlab.errors import MechlabError
from mechlab.models.compiled.model import Compiled, Matrices
from mechlab.models.compiled.programs import BOS, PAD, Program
from mechlab.models.compiled.rasp import (
    Aggregate,
    AtLeast,
    Domain,
    Indices,
    Map,
    Select,
    SelectorWidth,
    SequenceMap,
    Series,
    Tokens,
    domain,
    in_order,
    operands,
)

# The score of a key that fits. Half of it decides between a fit, BOS and the rest: e^-50 is nothing.
SHARP = 100.0
_ONE = "one"

Vector = Float[np.ndarray, "d_model"]
Columns = Float[np.ndarray, "d_model _columns"]


def compile_program(program: Program) -> Compiled:
    """The transformer that computes a program.

    Raises:
        MechlabError: the program selects by numbers, maps numbers that nobody listed, or needs no
            attention at all.
    """
    return _Compiler(program).compiled()


@dataclass
class _Head:
    """One head: what it reads as columns over the stream, and where it writes."""

    query: Columns
    key: Columns
    value: Columns
    output: Columns


@dataclass
class _Layer:
    heads: list[_Head] = field(default_factory=list)
    neurons: list[tuple[Vector, Vector]] = field(default_factory=list)


class _Compiler:
    def __init__(self, program: Program) -> None:
        self.program = program
        self.length = max(program.lengths)
        self.words = tuple(sorted((*map(str, program.vocabulary), BOS, PAD)))
        # The words that every model has come first, then the positions and "one".
        self.labels = [f"tokens:{word}" for word in self.words]
        self.labels += [f"indices:{place}" for place in range(self.length)] + [_ONE]
        self.series = in_order(program.output)
        self.domains = {each: domain(each, program.vocabulary, self.length) for each in self.series}
        for each in self.series:
            if isinstance(each, (Tokens, Indices)):
                continue
            if isinstance(each, SelectorWidth):
                self.labels.append(_share(each))
            self.labels += self._names(each)
        if len(set(self.labels)) < len(self.labels):
            raise MechlabError("two series have one name", program.name, "name each of them differently")
        self.at = {label: place for place, label in enumerate(self.labels)}
        self.layers: list[_Layer] = []

    def compiled(self) -> Compiled:
        """The model."""
        done: dict[Series, int] = {}  # series -> sublayer it is written in; layer l has 2l and 2l + 1
        for each in self.series:
            ready = max((done[operand] for operand in operands(each)), default=-1)
            if isinstance(each, (Tokens, Indices)):
                done[each] = -1
            elif isinstance(each, (Map, SequenceMap)):
                done[each] = self._mlp(ready, self._lookup(each))
            else:
                head = self._threshold(each) if isinstance(each, AtLeast) else self._attend(each)
                done[each] = self._attention(ready, head)
                if isinstance(each, SelectorWidth):
                    shares = {1 / (1 + width): width for width in self._values(each)}
                    done[each] = self._mlp(done[each], self._steps(_share(each), shares, each))
        return self._assemble()

    # Where things go

    def _names(self, series: Series) -> list[str]:
        known = self.domains[series]
        if known.numerical:
            return [series.name]
        return [f"{series.name}:{value}" for value in self._values(series)]

    def _values(self, series: Series) -> tuple[Any, ...]:
        return self.domains[series].values or ()

    def _along(self, *labels: str) -> Vector:
        """The sum of the directions of these labels."""
        vector = np.zeros(len(self.labels))
        for label in labels:
            vector[self.at[label]] += 1
        return vector

    def _of(self, series: Series, value: Any) -> Vector:
        """How ``value`` is written into the directions of a series."""
        if self.domains[series].numerical:
            return float(value) * self._along(series.name)
        return self._along(f"{series.name}:{value}")

    @property
    def _bos(self) -> Vector:
        return self._along(f"tokens:{BOS}")

    def _layer(self, number: int) -> _Layer:
        while len(self.layers) <= number:
            self.layers.append(_Layer())
        return self.layers[number]

    def _attention(self, ready: int, head: _Head) -> int:
        layer = (ready + 2) // 2  # the first even sublayer after ``ready``
        self._layer(layer).heads.append(head)
        return 2 * layer

    def _mlp(self, ready: int, neurons: list[tuple[Vector, Vector]]) -> int:
        layer = (ready + 1) // 2  # the first odd sublayer after ``ready``
        self._layer(layer).neurons += neurons
        return 2 * layer + 1

    # Heads

    def _scores(self, select: Select, bos: float) -> tuple[Columns, Columns]:
        """Query and key columns: one per value of the queries, one for BOS, one that is free.

        The last column reads BOS and meets no key: Tracr has it too, which keeps the sizes alike.
        """
        for each in (select.keys, select.queries):
            if self.domains[each].numerical:
                raise MechlabError("cannot select by a number", each.name, "map it to categories")
        queries, keys = self._values(select.queries), self._values(select.keys)
        read = [self._of(select.queries, query) for query in queries]
        fits = [
            SHARP
            * sum(
                (self._of(select.keys, key) for key in keys if select.predicate(key, query)),
                start=0 * self._bos,
            )
            for query in queries
        ]
        nothing = np.zeros(len(self.labels))
        query_columns = np.stack([*read, self._along(_ONE), self._bos], 1)
        return query_columns, np.stack([*fits, bos * SHARP * self._bos, nothing], 1)

    def _attend(self, series: Series) -> _Head:
        """The head of an Aggregate, or the first half of a SelectorWidth."""
        if isinstance(series, SelectorWidth):
            query, key = self._scores(series.select, bos=1.0)
            return _Head(query, key, self._bos[:, None], self._along(_share(series))[:, None])
        assert isinstance(series, Aggregate)
        query, key = self._scores(series.select, bos=0.5)
        of = series.of
        if self.domains[series].numerical:
            if self.domains[of].numerical:
                value = self._along(of.name)
            else:
                mean = series.function or float
                value = sum((mean(v) * self._of(of, v) for v in self._values(of)), start=0 * self._bos)
            return _Head(query, key, value[:, None], self._along(series.name)[:, None])
        values = self._values(series)
        held, put = ([self._of(each, v) for v in values] for each in (of, series))
        return _Head(query, key, np.stack(held, 1), np.stack(put, 1))

    def _threshold(self, series: AtLeast) -> _Head:
        """A head that looks away from BOS, at all other positions alike, where enough inputs are 1."""
        query = sum((self._along(each.name) for each in series.of), start=0 * self._bos)
        # Nearer to the count than half: an input that is 2/3 by a fault of its own does not pass.
        query = query - (series.count - 0.25) * self._along(_ONE)
        elsewhere = self._along(_ONE) - self._bos
        return _Head(
            query[:, None], SHARP * elsewhere[:, None], elsewhere[:, None], self._along(series.name)[:, None]
        )

    # MLPs

    def _lookup(self, series: Map | SequenceMap) -> list[tuple[Vector, Vector]]:
        if isinstance(series, SequenceMap):
            if any(self.domains[each].numerical for each in (series.left, series.right)):
                raise MechlabError("cannot look up a pair with a number", series.name, "map it to categories")
            found = [
                (
                    self._of(series.left, a) + self._of(series.right, b) - self._along(_ONE),
                    self._of(series, series.function(a, b)),
                )
                for a in self._values(series.left)
                for b in self._values(series.right)
            ]
        elif self.domains[series.of].numerical:
            found = self._steps(
                series.of.name, {v: series.function(v) for v in self._values(series.of)}, series
            )
        else:
            found = [
                (self._of(series.of, v), self._of(series, series.function(v)))
                for v in self._values(series.of)
            ]
        return [(read, write) for read, write in found if write.any()]

    def _steps(self, label: str, outcome: dict[float, Any], series: Series) -> list[tuple[Vector, Vector]]:
        """Neurons that write ``outcome[x]`` when the direction ``label`` holds x.

        Half-way between neighbouring numbers a pair of neurons steps from 0 to 1:
        relu(s(x - t) + 1/2) - relu(s(x - t) - 1/2), steep enough to be exact at both.
        """
        numbers, nothing = sorted(outcome), 0 * self._bos
        one, number = self._along(_ONE) - self._bos, self._along(label)
        written = {x: self._of(series, outcome[x]) for x in numbers}
        if numbers[0] > 0:  # zero is then no number: nothing is known, and nothing is written
            numbers, written[0.0] = [0.0, *numbers], nothing
        neurons = [(one, written[numbers[0]])]
        for low, high in pairwise(numbers):
            slope, middle, change = 2 / (high - low), (low + high) / 2, written[high] - written[low]
            # On BOS "one" is gone and the number held down: no series has a value there.
            ramp = slope * (number - middle * one - max(0, numbers[-1]) * self._bos)
            neurons += [(ramp + one / 2, change), (ramp - one / 2, -change)]
        return [(read, write) for read, write in neurons if write.any()]

    # Everything together

    def _assemble(self) -> Compiled:
        # Every layer gets as many heads and neurons as the fullest; those it does not use are zero.
        d_model, n_layers = len(self.labels), len(self.layers)
        heads = [head for layer in self.layers for head in layer.heads]
        if not heads:
            raise MechlabError("program needs no attention", self.program.name, "select something")
        n_heads = max(len(layer.heads) for layer in self.layers)
        d_mlp = max(1, *(len(layer.neurons) for layer in self.layers))
        d_head = max(max(head.query.shape[1], head.value.shape[1]) for head in heads)
        wide, flat = (n_layers, n_heads, d_model, d_head), (n_layers, d_model, d_mlp)
        parts = {name: np.zeros(wide) for name in ("query", "key", "value", "output")}
        mlp_in, mlp_out = np.zeros(flat), np.zeros(flat)
        for number, layer in enumerate(self.layers):
            for slot, head in enumerate(layer.heads):
                for name, part in parts.items():
                    columns = getattr(head, name)
                    part[number, slot, :, : columns.shape[1]] = columns
            for slot, (read, write) in enumerate(layer.neurons):
                mlp_in[number, :, slot], mlp_out[number, :, slot] = read, write
        embedding = np.stack([self._along(f"tokens:{word}", _ONE) for word in self.words])
        places = [self._along(f"indices:{place}") for place in range(self.length)]
        positions = np.stack([np.zeros(d_model), *places])
        result = self.program.output
        final: Domain = self.domains[result]
        written = [self._along(name) for name in self._names(result)]
        if final.numerical:
            written.append(np.zeros(d_model))
        matrices = Matrices(
            embedding=_tensor(embedding),
            positions=_tensor(positions),
            query=_tensor(parts["query"]),
            key=_tensor(parts["key"]),
            value=_tensor(parts["value"]),
            output=_tensor(parts["output"].swapaxes(2, 3)),
            mlp_in=_tensor(mlp_in),
            mlp_out=_tensor(mlp_out.swapaxes(1, 2)),
            unembed=_tensor(np.stack(written, 1)),
        )
        return Compiled(
            self.program,
            matrices,
            tuple(self.labels),
            {word: number for number, word in enumerate(self.words)},
            ("number", "zero") if final.numerical else self._values(result),
            final.numerical,
        )


def _share(series: SelectorWidth) -> str:
    """The direction that holds BOS's share of the attention."""
    return f"{series.name}.share"


def _tensor(array: Float[np.ndarray, "*axes"]) -> Float[torch.Tensor, "*axes"]:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
