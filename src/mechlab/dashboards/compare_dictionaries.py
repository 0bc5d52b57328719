"""Two dictionaries side by side: features matched by their decoder directions, and what only one has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechlab.dashboards.block_values import score_value, short
from mechlab.errors import MechlabError
from mechlab.features.index import FeatureIndex
from mechlab.sae.metrics.geometry import MATCH, stability
from mechlab.scores import Score, wilson
from mechlab_kernels.contexts import top_peaks

if TYPE_CHECKING:
    from mechlab.dashboards.compare_block import Side

_BLOCK = 1024
_TOKENS = 3
_BINS = 40
_MEASURES = ("fve", "l0", "ce_recovered", "kl_recovered", "dead", "dense")


def compare_dictionaries(left: Side, right: Side, *, seed: int = 0) -> dict[str, Any]:
    """What two dictionaries share.

    Features are paired one to one so that the sum of the cosines of their decoder rows is largest; a
    feature that has cosine ≥ 0.7 with no feature of the other dictionary is there in one only. Where both
    have an index of the same text, a pair also has the share of tokens on which both are active among
    those on which any is.

    Raises MechlabError when the dictionaries differ in width, or an index or explanations are not of them.
    """
    assert left.dictionary is not None
    assert right.dictionary is not None
    saes = left.dictionary.sae, right.dictionary.sae
    if saes[0].d_out != saes[1].d_out:
        raise MechlabError(
            "dictionaries differ in width", (saes[0].d_out, saes[1].d_out), "compare those of one site"
        )
    directions = [sae.W_dec.detach().float().cpu() for sae in saes]
    made = stability(*directions, seed=seed)
    nearest = [_nearest(*directions), _nearest(*directions[::-1])]
    pairs = [(one, int(made.partner[one])) for one in range(len(made.partner)) if made.partner[one] >= 0]
    cosines = [float(made.matched[one]) for one, _ in pairs]
    counts, edges = np.histogram(cosines, _BINS, (min(0.0, *cosines), 1.0))
    sides = [
        _side(side, near, len(rows))
        for side, near, rows in zip((left, right), nearest, directions, strict=True)
    ]
    return {
        "match": MATCH,
        "facts": [
            [name, one, other] for (name, one), (_, other) in zip(_facts(left), _facts(right), strict=True)
        ],
        "agreement": [
            *(score_value(each) for each in (made.cosine, made.share, made.max_cosine)),
            *(_alone(side.name, cosine) for side, (cosine, _) in zip((left, right), nearest, strict=True)),
        ],
        "metrics": _metrics(left, right),
        "sides": sides,
        "pairs": {
            "left": [one for one, _ in pairs],
            "right": [other for _, other in pairs],
            "cosine": [short(cosine) for cosine in cosines],
            "together": _together(left.index, right.index, pairs),
        },
        "histogram": {"counts": counts.tolist(), "edges": [short(float(edge)) for edge in edges]},
    }


def _nearest(
    rows: Float[Tensor, "left d"], others: Float[Tensor, "right d"]
) -> tuple[Float[Tensor, "left"], Int[Tensor, "left"]]:
    """Largest cosine of each row with any of the others, and with which."""
    unit = others / others.norm(dim=1, keepdim=True).clamp_min(1e-12)
    cosines, which = [], []
    for part in torch.split(rows, _BLOCK):
        best = (part / part.norm(dim=1, keepdim=True).clamp_min(1e-12) @ unit.T).max(1)
        cosines.append(best.values)
        which.append(best.indices)
    return torch.cat(cosines).clamp(-1, 1), torch.cat(which)


def _alone(name: str, cosine: Float[Tensor, "feature"]) -> dict[str, Any]:
    n, count = len(cosine), int((cosine < MATCH).sum())
    return score_value(Score(f"share only in {name}", count / n, *wilson(count, n), n))


def _facts(side: Side) -> list[tuple[str, str]]:
    assert side.dictionary is not None
    manifest, sae = side.dictionary.artifact.manifest, side.dictionary.sae
    return [
        ("architecture", sae.arch),
        ("features", f"{sae.d_sae:,}"),
        ("reads", ", ".join(side.dictionary.inputs)),
        ("writes", ", ".join(side.dictionary.outputs)),
        ("trained on", f"{manifest.config['tokens']:,} tokens" if "tokens" in manifest.config else "–"),
        ("seed", str(manifest.seed)),
        ("model", str(manifest.inputs.get("model", "–"))[:16]),
        ("fingerprint", manifest.fingerprint[:16]),
    ]


def _metrics(left: Side, right: Side) -> list[list[Any]]:
    """Name, and the figure of either side with its interval; None where it was not measured."""
    found: dict[str, list[dict[str, Any] | None]] = {}
    for number, side in enumerate((left, right)):
        for name, value in _measured(side).items():
            found.setdefault(name, [None, None])[number] = value
    return [[name, *values] for name, values in found.items()]


def _measured(side: Side) -> dict[str, dict[str, Any]]:
    figures: dict[str, dict[str, Any]] = {}
    for name in () if side.evaluation is None else _MEASURES:
        value = getattr(side.evaluation, name)
        label = name.replace("_", " ")
        figures[label] = score_value(value) if isinstance(value, Score) else {"value": short(value)}
    for total in () if side.scores is None else side.scores.totals():
        figures[f"{total.scorer} of explanations by {total.explainer}"] = score_value(total.mean)
    return figures


def _side(side: Side, nearest: tuple[Tensor, Tensor], count: int) -> dict[str, Any]:
    """Columns over the features of one side."""
    cosine, other = nearest
    found: dict[str, Any] = {
        "page": side.page,
        "n": count,
        "nearest": [short(value) for value in cosine.tolist()],
        "other": other.tolist(),
    }
    index, explanations = side.index, side.explanations
    if index is not None:
        if index.n_features != count:
            raise MechlabError(
                "index is of other features", f"{index.n_features}, not {count}", "index the dictionary again"
            )
        found["density"] = [short(value) for value in index.density.tolist()]
        found["tokens"] = _peaks(index)
    if explanations is not None:
        if explanations.n_features != count:
            raise MechlabError(
                "explanations are of other features", f"{explanations.n_features}, not {count}"
            )
        said = {each.feature: each.text for each in reversed(explanations.items)}
        found["said"] = [said.get(feature, "") for feature in range(count)]
    return found


def _peaks(index: FeatureIndex) -> list[list[str]]:
    """The different tokens at which each feature is strongest."""
    text = index.text
    peaks = top_peaks(index.indptr, index.row, index.value, text.tokens, text.bounds, _TOKENS, 0)
    words = text.vocabulary
    return [
        list(dict.fromkeys(words[int(text.tokens[row])] for row in rows if row >= 0))
        for rows in peaks.tolist()
    ]


def _together(
    left: FeatureIndex | None, right: FeatureIndex | None, pairs: list[tuple[int, int]]
) -> list[float | int | None] | None:
    """Jaccard index of the tokens on which the two of a pair are active; None where texts differ."""
    if left is None or right is None or not _same_text(left, right):
        return None
    found = []
    for one, other in pairs:
        rows, others = left.entries(one)[0], right.entries(other)[0]
        both = len(np.intersect1d(rows, others, assume_unique=True))
        either = len(rows) + len(others) - both
        found.append(short(both / either) if either else None)
    return found


def _same_text(left: FeatureIndex, right: FeatureIndex) -> bool:
    return np.array_equal(left.text.tokens, right.text.tokens) and np.array_equal(
        left.text.document, right.text.document
    )
