"""The headline figures of a run."""

from __future__ import annotations

from typing import Any

from mechlab.activations.store import Store
from mechlab.circuits.circuit import Circuit
from mechlab.features.explanations import Explanations
from mechlab.features.scoring.scorecard import Scorecard
from mechlab.sae.dictionary import Dictionary
from mechlab.sae.evaluate import Evaluation


def summarise(
    store: Store,
    dictionary: Dictionary,
    evaluation: Evaluation,
    circuit: Circuit | None,
    explanations: Explanations,
    scores: Scorecard,
) -> dict[str, Any]:
    """The figures of ``summary.json``, all but the model's name, the seconds and the page."""
    totals = {each.scorer: each.mean for each in scores.totals()}
    total = totals.get("detection")
    return {
        "site": dictionary.site,
        "tokens": store.n_rows,
        "sae": {
            "d_sae": dictionary.sae.d_sae,
            "k": dictionary.sae.k,
            "l0": evaluation.l0.value,
            "fve": evaluation.fve.value,
            "ce_recovered": evaluation.ce_recovered.value,
            "ce_recovered_zero": evaluation.ce_recovered_zero.value,
            "dead": evaluation.dead,
        },
        "circuit": None
        if circuit is None
        else {
            "task": circuit.task,
            "method": circuit.method,
            "n_edges": circuit.n_edges,
            "faithfulness": circuit.faithfulness.value,
            "faithfulness_null": circuit.faithfulness.null and circuit.faithfulness.null.value,
        },
        "features": {
            "explained": len({each.feature for each in explanations.items}),
            "scored": len(scores.of("detection")),
            "detection_mean": total and total.value,
            "detection_interval": total and [total.low, total.high],
            "detection_null": total and total.null and total.null.value,
            "fuzzing_mean": totals["fuzzing"].value if "fuzzing" in totals else None,
        },
    }
