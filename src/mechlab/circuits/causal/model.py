"""A causal model that a user writes: variables, what they are computed from, and a function each.

    model = CausalModel(
        inputs=("a", "b", "c", "d"),
        variables=(
            Variable("same", ("a", "b"), lambda a, b: int(a == b)),
            Variable("answer", ("same", "c", "d"), lambda same, c, d: c if same else d),
        ),
        output="answer",
    )
    model.run({"a": 1, "b": 2, "c": 3, "d": 4}, {"same": 1})["answer"]  # 3

An intervention sets a variable to a value, whatever its parents are (Pearl's do-operator); an
*interchange* intervention sets it to the value it has on another input, the source (Geiger et al.
2021, *Causal abstractions of neural networks*).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from graphlib import CycleError, TopologicalSorter

from mechlab.errors import MechlabError, near

Setting = Mapping[str, int]


@dataclass(frozen=True)
class Variable:
    """One variable: its name, the names it is computed from, and how (``function(*parents) -> int``)."""

    name: str
    parents: tuple[str, ...]
    function: Callable[..., int]


@dataclass(frozen=True)
class CausalModel:
    """Inputs, variables in any order, and which of them is the output. Values are whole numbers.

    Raises MechlabError for a name given twice, a parent or an output that does not exist, or a cycle.
    """

    inputs: tuple[str, ...]
    variables: tuple[Variable, ...]
    output: str

    def __post_init__(self) -> None:
        names = self.names
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise MechlabError("variable is defined twice", twice[0], "give each a name of its own")
        for variable in self.variables:
            for parent in variable.parents:
                if parent not in names:
                    raise MechlabError(
                        f"parent of {variable.name} does not exist", parent, near(parent, names)
                    )
        if self.output not in names:
            raise MechlabError("output is no variable", self.output, near(self.output, names))
        try:
            _ = self._order
        except CycleError as error:
            cycle = " → ".join(error.args[1])
            raise MechlabError("variables depend on each other in a circle", cycle, "break it") from error

    @property
    def names(self) -> tuple[str, ...]:
        """Inputs first, then variables as given."""
        return (*self.inputs, *(variable.name for variable in self.variables))

    def run(self, inputs: Setting, interventions: Setting | None = None) -> dict[str, int]:
        """Every value, by name.

        Args:
            inputs: a value for every input.
            interventions: values that are set, of variables or inputs.

        Raises MechlabError when an input is missing or a name is unknown.
        """
        forced = dict(interventions or {})
        for name in forced:
            self._known(name)
        if stray := [name for name in inputs if name not in self.inputs]:
            raise MechlabError("model has no input", stray[0], near(stray[0], self.inputs))
        if missing := [name for name in self.inputs if name not in inputs]:
            raise MechlabError("input has no value", missing[0], "give every input one")
        values = {**inputs, **{name: value for name, value in forced.items() if name in self.inputs}}
        for variable in self._order:
            if variable.name in forced:
                values[variable.name] = forced[variable.name]
            else:
                values[variable.name] = int(variable.function(*(values[name] for name in variable.parents)))
        return values

    def counterfactual(self, base: Setting, sources: Mapping[str, Setting]) -> int:
        """The output on ``base`` when each variable named has the value of its own source input.

        Raises MechlabError as ``run`` does.
        """
        for name in sources:
            self._known(name)
        swapped = {name: self.run(source)[name] for name, source in sources.items()}
        return self.run(base, swapped)[self.output]

    @cached_property
    def _order(self) -> tuple[Variable, ...]:
        """Variables with every parent before its children."""
        by_name = {variable.name: variable for variable in self.variables}
        sorter = TopologicalSorter({variable.name: variable.parents for variable in self.variables})
        return tuple(by_name[name] for name in sorter.static_order() if name in by_name)

    def _known(self, name: str) -> None:
        if name not in self.names:
            raise MechlabError("causal model has no variable", name, near(name, self.names))
