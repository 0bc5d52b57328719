"""``Evaluation``: everything measured of a circuit on one set of prompts, and under what conditions."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from pydantic import TypeAdapter

from mechlab.circuits.evaluation.completeness import Completeness
from mechlab.circuits.evaluation.curve import Curve
from mechlab.circuits.evaluation.minimality import Minimality
from mechlab.scores import Score


@dataclass(frozen=True)
class Means:
    """Mean of a metric over prompts: of the circuit, of the model, and of no circuit."""

    circuit: float
    model: float
    empty: float


@dataclass(frozen=True)
class Evaluation:
    """What a circuit does on one set of prompts.

    Attributes:
        task, metric, ablation: what it was scored on and under.
        model, prompts: fingerprints.
        differences: in words, how that differs from what the circuit was found on and under
            ("scored under zero, found under resample"); empty where it does not.
        n_edges: size of the circuit.
        means: by metric: the one it is scored with, the logit difference and minus the KL divergence.
        faithfulness: ratio of means; the null is that of random circuits of equal size.
        ratios, undefined: mean of ratios, and on how many prompts a ratio is undefined.
        kl: KL(p_model ‖ p_circuit) in nats, with random circuits as the null.
        cpr, cmd: over sizes, by the circuit's scores.
        completeness, minimality: None when not asked for, or when the circuit has no nodes.
    """

    task: str
    metric: str
    ablation: str
    model: str
    prompts: str
    differences: tuple[str, ...]
    n_edges: int
    means: dict[str, Means]
    faithfulness: Score
    ratios: Score
    undefined: int
    kl: Score
    cpr: Curve
    cmd: Curve
    completeness: Completeness | None = None
    minimality: Minimality | None = None

    def to_dict(self, undefined: str | None = None) -> dict[str, Any]:
        """Plain JSON values; a number that is none becomes ``undefined``."""
        found: dict[str, Any] = plain(self, undefined)
        return found

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Evaluation:
        """The inverse of ``to_dict(undefined="NaN")``."""
        return TypeAdapter(cls).validate_python(values)


def plain(value: Any, undefined: str | None = None) -> Any:
    """Dataclasses, tuples and numbers as JSON values; a number that is none becomes ``undefined``."""
    if is_dataclass(value) and not isinstance(value, type):
        return {each.name: plain(getattr(value, each.name), undefined) for each in fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(each, undefined) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each, undefined) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return undefined
    return value
