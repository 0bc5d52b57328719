"""Faithfulness per circuit, both ways of averaging it.

    ratio of means   (m̄(C) − m̄(∅)) / (m̄(M) − m̄(∅))
    mean of ratios   mean over prompts of (m(C) − m(∅)) / (m(M) − m(∅))

The second explodes where one prompt's gap m(M) − m(∅) is near zero and is undefined where it is zero
(Miller et al. 2024, *Transformer circuit faithfulness metrics are not robust*, find differences of
tens of thousands of percent on single prompts), so both are given, with intervals.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from torch import Tensor

from mechlab import scores
from mechlab.scores import Score

# A gap below this share of the largest one is rounding, not a difference between the runs.
_NOTHING = 1e-6


def ratio_of_means(
    values: Float[Tensor, "n"], whole: Float[Tensor, "n"], empty: Float[Tensor, "n"], *, seed: int = 0
) -> Score:
    """Faithfulness as a ratio of means over prompts, with a bootstrap interval over prompts.

    Args:
        values, whole, empty: the metric of the circuit, the model and no circuit, per prompt.
    """
    sums = np.stack([(values - empty).double().numpy(), (whole - empty).double().numpy()], 1)
    return scores.score("faithfulness", sums, scores.mean, seed=seed)


def mean_of_ratios(
    values: Float[Tensor, "n"], whole: Float[Tensor, "n"], empty: Float[Tensor, "n"], *, seed: int = 0
) -> tuple[Score, int]:
    """Faithfulness as a mean of ratios over the prompts where it is defined, and how many it is not.

    A prompt's ratio is undefined where m(M) equals m(∅) but for rounding. NaN when all are.
    """
    kept, gap = (values - empty).double(), (whole - empty).double()
    defined = gap.abs() > _NOTHING * gap.abs().max()
    ratios = (kept[defined] / gap[defined]).numpy()
    sums = np.stack([ratios, np.ones_like(ratios)], 1)
    found = scores.score("faithfulness, mean of ratios", sums, scores.mean, seed=seed)
    return found, int((~defined).sum())
