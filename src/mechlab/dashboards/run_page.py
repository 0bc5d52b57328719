"""What the page of a run shows, put together from the run's results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mechlab.circuits.circuit import Circuit
from mechlab.dashboards.circuit_page import circuit_record
from mechlab.dashboards.page import Page, Result
from mechlab.dashboards.records import feature_records
from mechlab.features.explanations import Explanations
from mechlab.features.index import FeatureIndex
from mechlab.features.scoring.scorecard import Scorecard
from mechlab.features.statistics import Statistics
from mechlab.sae.evaluate import Evaluation

# Scorers whose means stand among the results.
_SHOWN = {"detection": "Detection", "fuzzing": "Fuzzing"}


def run_page(
    *,
    model: str,
    site: str,
    tokens: int,
    command: str,
    config: Mapping[str, Any],
    fingerprints: Mapping[str, str],
    timings: Mapping[str, float],
    evaluation: Evaluation,
    circuit: Circuit | None,
    index: FeatureIndex,
    statistics: Statistics,
    explanations: Explanations,
    scores: Scorecard,
) -> Page:
    """The page of one run.

    Args:
        tokens: rows the dictionary was trained on.
        command: the exact command that makes the run again.
        timings: stage → seconds.
    """
    results = [
        Result.of(evaluation.l0, "L0", "active latents per held-out token"),
        Result.of(evaluation.fve, "Fraction of variance explained"),
        Result.of(evaluation.ce_recovered, "CE loss recovered", "against mean ablation"),
        Result.of(evaluation.ce_recovered_zero, "CE loss recovered", "against zero ablation"),
        Result("Dead latents", evaluation.dead, note=f"on {evaluation.tokens:,} held-out tokens"),
    ]
    if circuit is not None:
        results.append(Result.of(circuit.faithfulness, "Circuit faithfulness", f"{circuit.n_edges} edges"))
    for total in scores.totals():
        if total.scorer in _SHOWN:
            note = f"mean of {total.mean.n:,} features"
            results.append(Result.of(total.mean, _SHOWN[total.scorer], note))
    return Page(
        title=f"{model} at {site}",
        model=model,
        site=site,
        tokens=tokens,
        command=command,
        config=config,
        fingerprints=fingerprints,
        results=tuple(results),
        timings=timings,
        features=feature_records(index, statistics, explanations, scores),
        circuit=None if circuit is None else circuit_record(circuit),
    )
