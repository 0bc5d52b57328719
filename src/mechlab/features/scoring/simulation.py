"""Simulation scores: how well do predicted activations follow the true ones, token by token?

With truth a and prediction s over all tokens of all windows of a feature together (correlations of
single windows are not averaged):

    correlation                   Pearson's, of a and s
    r_squared                     1 - Σ(a-s)² / Σ(a-mean a)²
    r_squared_uncentred           1 - Σ(a-s)² / Σa²; it flatters predictions of features that are seldom 0
    absolute_deviation_explained  1 - Σ|a-s| / Σ|a|

Half the windows hold the feature's largest activations and half are drawn at random. Predictions are
in units of their own, so all but the correlation need a calibration: a map from predicted to true
activations fitted on the windows of other documents than those that are scored.

Source: Bills et al. (2023), *Language models can explain neurons in language models*; its code calls
the uncentred variant "rsquared" and the correlation "ev_correlation_score". Interval: bootstrap over
documents; that of the correlation is no narrower than Fisher's (1921) for as many independent tokens:
where hardly a token is active in both, resamples know of no other. Null: the same windows under
another feature's predictions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from statistics import NormalDist

import numpy as np
from jaxtyping import Bool, Float, Int

from mechlab.errors import MechlabError, near
from mechlab.scores import LEVEL, Score, Statistic, ratio, score

Calibrate = Callable[[Float[np.ndarray, "token"]], Float[np.ndarray, "token"]]

LEVELS = 10
_LEVELS = frozenset(str(level) for level in range(LEVELS + 1))


def levels(activation: Float[np.ndarray, "*shape"], maximum: float) -> Int[np.ndarray, "*shape"]:
    """Activations as whole numbers from 0 to 10, as explainers and simulators are shown them.

    min(10, floor(10 · max(a, 0) / maximum)) (Bills et al. 2023). MechlabError unless ``maximum`` > 0.
    """
    if not maximum > 0:
        raise MechlabError("feature has no largest activation", maximum, "it is dead here; leave it out")
    found: np.ndarray = np.minimum(LEVELS, np.floor(LEVELS * np.maximum(activation, 0) / maximum))
    return found.astype(np.int64)


def expected_level(logprobs: Mapping[str, float]) -> float:
    """Expected level under a model's probabilities for the next token.

    E[v] = Σ v q(v), where q is the probability of the tokens "0" to "10" among the alternatives that
    the model returned, made to sum to 1 (Bills et al. 2023). Space around a token is ignored; spellings
    of one number add up. NaN when no number is among them.

    Args:
        logprobs: token text → log probability.
    """
    weights: dict[int, float] = {}
    for token, logprob in logprobs.items():
        if token.strip() in _LEVELS:
            level = int(token.strip())
            weights[level] = weights.get(level, 0.0) + math.exp(logprob)
    total = sum(weights.values())
    return sum(level * weight for level, weight in weights.items()) / total if total > 0 else math.nan


def simulation_scores(
    truth: Float[np.ndarray, "window pos"],
    predicted: Float[np.ndarray, "window pos"],
    document: Int[np.ndarray, "window"],
    *,
    seed: int = 0,
    nulls: Mapping[str, Score] | None = None,
) -> dict[str, Score]:
    """All four scores. Windows in which a prediction is NaN are left out.

    Args:
        truth: activations, 0 where the feature is silent.
        predicted: predictions, calibrated beforehand if at all.
        document: of each window; documents are what the bootstrap draws.
        nulls: the same scores of a control, by name.

    A score is NaN where it is undefined: a constant prediction has no correlation.
    """
    usable = np.isfinite(predicted).all(1)
    a, s = truth[usable].astype(np.float64), predicted[usable].astype(np.float64)
    moments = (np.ones_like(a), a, s, a * a, s * s, a * s, np.abs(a - s), np.abs(a))
    _, unit = np.unique(document[usable], return_inverse=True)
    sums = np.zeros((int(unit.max(initial=-1)) + 1, len(moments)))
    np.add.at(sums, unit, np.stack([each.sum(1) for each in moments], axis=1))
    known = nulls or {}
    found = {
        name: score(name, sums, statistic, seed=seed, null=known.get(name), chance=_CHANCE.get(name))
        for name, statistic in STATISTICS.items()
    }
    found["correlation"] = _no_narrower(found["correlation"], a.size)
    return found


def _no_narrower(correlation: Score, tokens: int) -> Score:
    """With an interval that holds Fisher's."""
    if tokens <= 3 or not abs(correlation.value) < 1 or math.isnan(correlation.low):
        return correlation
    centre = math.atanh(correlation.value)
    reach = NormalDist().inv_cdf((1 + LEVEL) / 2) / math.sqrt(tokens - 3)
    low, high = math.tanh(centre - reach), math.tanh(centre + reach)
    return replace(correlation, low=min(correlation.low, low), high=max(correlation.high, high))


def linear_calibration(predicted: Float[np.ndarray, "token"], truth: Float[np.ndarray, "token"]) -> Calibrate:
    """The least-squares line from predictions to activations; their mean when predictions do not vary."""
    centred = predicted - predicted.mean()
    spread = float(centred @ centred)
    slope = float(centred @ (truth - truth.mean())) / spread if spread > 0 else 0.0
    offset = float(truth.mean() - slope * predicted.mean())
    return lambda values: slope * values + offset


def percentile_calibration(
    predicted: Float[np.ndarray, "token"], truth: Float[np.ndarray, "token"]
) -> Calibrate:
    """The prediction at a percentile of the predictions becomes the activation at that percentile.

    Equal predictions get the mean of the activations at their percentiles. Linear in between; beyond
    the ends the nearest end.
    """
    order, ranked = np.sort(predicted), np.sort(truth)
    distinct, inverse, counts = np.unique(order, return_inverse=True, return_counts=True)
    level = np.zeros(len(distinct))
    np.add.at(level, inverse, ranked)
    level /= counts
    return lambda values: np.interp(values, distinct, level).astype(np.float64)


CALIBRATIONS: dict[str, Callable[..., Calibrate]] = {
    "linear": linear_calibration,
    "percentile": percentile_calibration,
}


def calibrated(
    truth: Float[np.ndarray, "window pos"],
    predicted: Float[np.ndarray, "window pos"],
    fits: Bool[np.ndarray, "window"],
    method: str,
) -> Float[np.ndarray, "window pos"]:
    """Predictions in units of the activations.

    Args:
        fits: the windows to fit the calibration on; score the others.
        method: "linear" or "percentile".

    Raises MechlabError for an unknown method. NaN when there is no usable window to fit on.
    """
    if method not in CALIBRATIONS:
        raise MechlabError("unknown calibration", method, near(method, CALIBRATIONS))
    usable = fits & np.isfinite(predicted).all(1)
    if not usable.any():
        return np.full(predicted.shape, np.nan)
    change = CALIBRATIONS[method](
        predicted[usable].ravel().astype(np.float64), truth[usable].ravel().astype(np.float64)
    )
    return change(predicted.ravel().astype(np.float64)).reshape(predicted.shape)


def _correlation(totals: Float[np.ndarray, "resample 8"]) -> Float[np.ndarray, "resample"]:
    n, a, s, aa, ss, product, _, _ = totals.T
    spread_a, spread_s = n * aa - a * a, n * ss - s * s
    # What is left of a constant after rounding is no spread.
    spread_a[spread_a <= 1e-12 * n * aa] = 0
    spread_s[spread_s <= 1e-12 * n * ss] = 0
    return ratio(n * product - a * s, np.sqrt(spread_a * spread_s))


def _r_squared(totals: Float[np.ndarray, "resample 8"]) -> Float[np.ndarray, "resample"]:
    n, a, _, aa, ss, product, _, _ = totals.T
    value: np.ndarray = 1 - ratio(aa - 2 * product + ss, aa - ratio(a * a, n))
    return value


def _uncentred(totals: Float[np.ndarray, "resample 8"]) -> Float[np.ndarray, "resample"]:
    _, _, _, aa, ss, product, _, _ = totals.T
    value: np.ndarray = 1 - ratio(aa - 2 * product + ss, aa)
    return value


def _absolute(totals: Float[np.ndarray, "resample 8"]) -> Float[np.ndarray, "resample"]:
    value: np.ndarray = 1 - ratio(totals[:, 6], totals[:, 7])
    return value


STATISTICS: dict[str, Statistic] = {
    "correlation": _correlation,
    "r_squared": _r_squared,
    "r_squared_uncentred": _uncentred,
    "absolute_deviation_explained": _absolute,
}
# Predicting nothing has no r² of a fixed value; after a calibration it is near 0, and below before.
_CHANCE = {"correlation": 0.0}
