"""The strength of a steering vector, found by the size of its effect.

The same number of units moves one model, layer or direction a lot and another one not at
all, so vectors are compared at equal effect: the strength at which the mean over tokens of

    KL(clean || edited) = Σ_v p_clean(v) (log p_clean(v) - log p_edited(v))

between the next-token distributions equals a target, in nats per token.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechlab.activations.capture import check_tokens, read_sites
from mechlab.errors import MechlabError
from mechlab.interventions.edit import editing
from mechlab.interventions.edits import add
from mechlab.interventions.positions import Positions
from mechlab.models.subject import Subject

_TOLERANCE = 0.01
# Vectors a thousand times shorter or longer than the activations are not searched.
_DOUBLINGS = 10


@dataclass(frozen=True)
class MatchedStrength:
    """A strength for ``add`` and the KL it has, in nats per token.

    Attributes:
        strength: multiple of the vector, positive.
        kl: mean per-token KL(clean || edited) there, within 1 % of the target.
    """

    strength: float
    kl: float


@torch.no_grad()
def strength_for_kl(
    subject: Subject,
    site: str,
    vector: Float[Tensor, "dim"],
    tokens: Int[Tensor, "batch pos"],
    *,
    kl: float = 0.1,
    mask: Bool[Tensor, "batch pos"] | None = None,
    positions: Positions = None,
) -> MatchedStrength:
    """The strength at which ``add(vector, strength)`` at ``site`` has the wanted mean KL.

    Starts where the vector is a tenth as long as the mean activation, doubles or halves until
    the target lies between two strengths, and bisects between them (in the logarithm). One
    forward of the whole batch for each strength tried, about a dozen; the clean distributions
    of the counted tokens are kept in float32.

    Args:
        tokens: the texts it is matched on, ``[batch, pos]``.
        kl: the target, in nats per token.
        mask: the positions whose next-token distributions count; all by default.
        positions: the positions edited, as in ``editing``.

    Raises MechlabError when the target is not a positive number, a token has no embedding,
    nothing is counted, the vector is zero, or the target is not reached on the strengths searched.
    """
    if not (math.isfinite(kl) and kl > 0):
        raise MechlabError("kl is not a positive number", kl, "pass nats per token, such as 0.1")
    counted = torch.ones(tokens.shape, dtype=torch.bool) if mask is None else mask
    check_tokens(subject, tokens)
    if not counted.any():
        raise MechlabError("mask counts no token", list(counted.shape), "mark at least one position")
    length = float(vector.double().norm())
    if length == 0:
        raise MechlabError("vector has length zero", list(vector.shape), "pass a direction")

    clean = _log_probabilities(subject, tokens, counted)

    def effect(strength: float) -> float:
        with editing(subject, site, add(vector, strength), positions):
            edited = _log_probabilities(subject, tokens, counted)
        return float(kl_divergence(clean, edited).double().mean())

    typical = float(read_sites(subject, tokens, [site])[site].double().norm(dim=-1).mean())
    start = 0.1 * typical / length if typical else 1 / length
    low, high = _bracket(effect, start, kl)
    # Far fewer steps are needed unless the effect jumps, as it does in low precision.
    for _ in range(40):
        strength = math.sqrt(low * high)
        reached = effect(strength)
        if abs(reached - kl) <= _TOLERANCE * kl:
            return MatchedStrength(strength, reached)
        low, high = (strength, high) if reached < kl else (low, strength)
    raise MechlabError(
        "KL jumps over the target", f"{kl:g} nats; {reached:.3g} at {strength:.6g}", "use a float32 model"
    )


def kl_divergence(
    clean: Float[Tensor, "*row d_vocab"], edited: Float[Tensor, "*row d_vocab"]
) -> Float[Tensor, "*row"]:
    """KL(clean || edited) in nats between distributions given as log-probabilities."""
    return (clean.exp() * (clean - edited)).sum(-1)


def _bracket(effect: Callable[[float], float], start: float, kl: float) -> tuple[float, float]:
    """Two strengths, one twice the other, with the target between their effects."""
    strength, reached = start, effect(start)
    if reached >= kl:
        for _ in range(_DOUBLINGS):
            strength /= 2
            if effect(strength) < kl:
                return strength, 2 * strength
        raise MechlabError("KL is above the target at every strength", f"{kl:g} nats", "raise kl")
    most, at = reached, strength
    for _ in range(_DOUBLINGS):
        strength *= 2
        reached = effect(strength)
        if reached >= kl:
            return strength / 2, strength
        if reached > most:
            most, at = reached, strength
    raise MechlabError(
        "KL cannot be reached",
        f"{kl:g} nats; at most {most:.3g}, at strength {at:.3g}",
        "lower kl, edit more positions, or take another site",
    )


def _log_probabilities(
    subject: Subject, tokens: Int[Tensor, "batch pos"], counted: Bool[Tensor, "batch pos"]
) -> Float[Tensor, "counted d_vocab"]:
    logits = subject.logits(tokens)
    return logits[counted.to(logits.device)].float().log_softmax(dim=-1)
