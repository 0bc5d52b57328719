"""Strength at matched KL: it has the KL it says, and the target it was asked for."""

from __future__ import annotations

import pytest
import torch
from edit_cases import hooks, vector
from torch.nn.functional import kl_div

from mechlab.errors import MechlabError
from mechlab.interventions.edit import editing
from mechlab.interventions.edits import add
from mechlab.interventions.strength import strength_for_kl
from mechlab.models.subject import Subject

SITE = "blocks.0.hook_resid_post"


def mean_kl(
    subject: Subject, tokens: torch.Tensor, edit: object, positions: object, mask: torch.Tensor
) -> float:
    clean = subject.logits(tokens).double().log_softmax(-1)
    with editing(subject, SITE, edit, positions):
        edited = subject.logits(tokens).double().log_softmax(-1)
    per_token = kl_div(edited, clean, log_target=True, reduction="none").sum(-1)
    return float(per_token[mask].mean())


@pytest.mark.parametrize("kl", [0.01, 0.1, 0.5])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_strength_has_the_kl_asked_for(
    subject: Subject, tokens: torch.Tensor, kl: float, seed: int
) -> None:
    push = vector(subject.site(SITE).dim, seed)
    everywhere = torch.ones(tokens.shape, dtype=torch.bool)
    late = everywhere.clone()
    late[:, :3] = False
    for mask, positions in ((None, None), (late, slice(3, None)), (None, range(1, 9))):
        found = strength_for_kl(subject, SITE, push, tokens, kl=kl, mask=mask, positions=positions)
        counted = everywhere if mask is None else mask
        again = mean_kl(subject, tokens, add(push, found.strength), positions, counted)
        assert found.kl == pytest.approx(again, rel=1e-3, abs=1e-6)
        assert found.kl == pytest.approx(kl, rel=0.01)
        assert found.strength > 0
    assert hooks(subject) == 0


def test_the_strength_is_the_same_push_whatever_the_vectors_length(
    subject: Subject, tokens: torch.Tensor
) -> None:
    push = vector(subject.site(SITE).dim)
    one = strength_for_kl(subject, SITE, push, tokens, kl=0.1)
    other = strength_for_kl(subject, SITE, 1024 * push, tokens, kl=0.1)
    assert other.strength * 1024 == pytest.approx(one.strength, rel=1e-3)
    more = strength_for_kl(subject, SITE, push, tokens, kl=0.2)
    assert more.strength > one.strength


def test_refusals(subject: Subject, tokens: torch.Tensor) -> None:
    push = vector(subject.site(SITE).dim)
    with pytest.raises(MechlabError, match=r"KL cannot be reached: 1000 nats; at most .* at strength"):
        strength_for_kl(subject, SITE, push, tokens, kl=1000.0)
    for kl in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(MechlabError, match="kl is not a positive number"):
            strength_for_kl(subject, SITE, push, tokens, kl=kl)
    with pytest.raises(MechlabError, match="mask counts no token"):
        strength_for_kl(subject, SITE, push, tokens, mask=torch.zeros(3, 9, dtype=torch.bool))
    with pytest.raises(MechlabError, match=r"KL cannot be reached: 0\.1 nats; at most 0,"):
        # A causal model: what is counted comes before what is edited.
        strength_for_kl(subject, SITE, push, tokens, mask=torch.arange(9).expand(3, 9) < 4, positions=[5])
    with pytest.raises(MechlabError, match="token has no embedding"):
        strength_for_kl(subject, SITE, push, tokens + 10**6)
    with pytest.raises(MechlabError, match="vector has length zero"):
        strength_for_kl(subject, SITE, 0 * push, tokens)
    with pytest.raises(MechlabError, match="vector holds NaN"):
        strength_for_kl(subject, SITE, float("nan") * push, tokens)
    with pytest.raises(MechlabError, match="add has another size than the site"):
        strength_for_kl(subject, SITE, push[1:], tokens)
    with pytest.raises(MechlabError, match="no site"):
        strength_for_kl(subject, "blocks.0.hook_resid_pots", push, tokens)
