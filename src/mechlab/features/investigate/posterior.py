"""How probable a rule is after what was answered, and how much another answer would tell.

Prior: exp(-cost), the cost in nats growing with what a rule has to spell out. Likelihood: the
answer about every token is the rule's with probability 1 - ε, flipped with probability ε, and ε,
which nobody knows, is integrated out under a Beta(a, b) prior:

    p(answers | rule) = B(a + e, b + n - e) / B(a, b),   e flips among n tokens,

so that no rule is ever impossible, and a noisy teacher costs confidence instead of the truth.

Information gain: the mutual information between the rule and the answers to a text is bounded from
below with pairwise distances (Kolchinsky & Tracey 2017, *Estimating Mixture Entropy with Pairwise
Distances*, arXiv 1706.02419, equation 10 with the Bhattacharyya distance),

    I >= -Σ_i w_i ln Σ_j w_j r^d_ij,   r = 2 sqrt(ε (1 - ε)),

d_ij the number of tokens of the text about which rules i and j differ. At ε = 0 this is exact: the
entropy of the partition into rules that answer alike. Distances of several texts add up, so the
gain of a batch needs no more than their sum.
"""

from __future__ import annotations

import functools
import math

import numpy as np
from jaxtyping import Float

from mechlab.features.investigate.facts import Atoms, Hypothesis
from mechlab.features.rules import Atom, Inside, Position, Spelling, Token, Within

FLIPS = (0.5, 30.0)
"""a and b of the prior of ε."""
WORD_COST = 2.0
CLAUSE_COST = 3.0
_KIND_COST = {"inside": 2.5, "repeats": 2.5, "induction": 3.0}


@functools.lru_cache(maxsize=200_000)
def atom_cost(atom: Atom) -> float:
    """Nats to say an atom."""
    cost = 1.0 if atom.negated else 0.0
    if isinstance(atom, Token):
        return cost + {0: 1.0, -1: 2.0}.get(atom.offset, 3.0) + WORD_COST * len(atom.words)
    if isinstance(atom, Within):
        return cost + 2.5 + WORD_COST * len(atom.words)
    if isinstance(atom, Spelling):
        return cost + {"starts": 3.0, "ends": 3.0, "contains": 3.5, "matches": 3.0}[atom.kind]
    if isinstance(atom, Position):
        return cost + 2.5 + (0.0 if atom.first <= 1 or atom.last is None else 1.5)
    if isinstance(atom, Inside):
        return cost + _KIND_COST["inside"]
    return cost + _KIND_COST.get(atom.atom, 3.0)


def clause_cost(atoms: Atoms) -> float:
    """Nats to say a conjunction."""
    return sum(map(atom_cost, atoms))


def rule_cost(hypothesis: Hypothesis) -> float:
    """Nats to say a rule: -ln of its prior, up to a constant."""
    return sum(map(clause_cost, hypothesis)) + CLAUSE_COST * (len(hypothesis) - 1)


@functools.lru_cache(maxsize=64)
def likelihoods(n: int) -> tuple[float, ...]:
    """ln p(answers | rule) for e = 0 … n flips among n tokens."""
    a, b = FLIPS
    constant = math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b) + math.lgamma(a + b + n)
    return tuple(math.lgamma(a + e) + math.lgamma(b + n - e) - constant for e in range(n + 1))


def flip_rate(errors: int, n: int) -> float:
    """Posterior mean of ε under a rule with so many errors."""
    a, b = FLIPS
    return (a + errors) / (a + b + n)


def weights_of(scores: Float[np.ndarray, "rule"]) -> Float[np.ndarray, "rule"]:
    """Posterior weights of rules from the logarithms of prior times likelihood."""
    raw = np.exp(scores - scores.max())
    found: np.ndarray = raw / raw.sum()
    return found


def information(
    distance: Float[np.ndarray, "text rule rule"], weights: Float[np.ndarray, "rule"], flips: float
) -> Float[np.ndarray, "text"]:
    """Nats that the answers to a text are sure to tell about the rule; see the module's head.

    Args:
        distance: tokens about which two rules differ.
        flips: ε, from 0 to a half.
    """
    rate = 2 * math.sqrt(flips * (1 - flips))
    alike = np.power(rate, distance) if rate > 0 else (distance == 0).astype(np.float64)
    found: np.ndarray = -(np.log(alike @ weights) @ weights)
    return found


def binary_entropy(p: float) -> float:
    """Nats in the answer to a yes-no question that is "yes" with probability p."""
    return 0.0 if p in (0.0, 1.0) else -p * math.log(p) - (1 - p) * math.log(1 - p)
