"""Editing a site: identity is a no-op, hooks go away."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mechlab.activations.capture import read_sites
from mechlab.interventions.edit import editing
from mechlab.models.subject import Subject, load_model

TOKENS = torch.tensor([[2, 3, 4, 6, 8], [2, 5, 7, 9, 10]])


@pytest.fixture(scope="module")
def subject(tiny_model: Path) -> Subject:
    return load_model(tiny_model)


def test_identity_changes_no_logit_at_any_site(subject: Subject) -> None:
    before = subject.logits(TOKENS)
    for site in subject.sites:
        with editing(subject, site, lambda value: value):
            assert torch.equal(subject.logits(TOKENS), before), site


def test_an_edit_is_what_later_layers_see(subject: Subject) -> None:
    for site in ("blocks.0.hook_resid_post", "blocks.1.hook_resid_pre", "blocks.0.hook_mlp_out"):
        value = read_sites(subject, TOKENS, [site])[site]
        with editing(subject, site, lambda value: value * 2):
            changed = read_sites(subject, TOKENS, ["blocks.1.hook_resid_pre"])["blocks.1.hook_resid_pre"]
        base = read_sites(subject, TOKENS, ["blocks.1.hook_resid_pre"])["blocks.1.hook_resid_pre"]
        torch.testing.assert_close(changed - base, value, atol=1e-5, rtol=1e-4)


def test_patching_in_the_other_run_gives_the_other_run(subject: Subject) -> None:
    site = "blocks.0.hook_resid_post"
    other = read_sites(subject, TOKENS.flip(0), [site])[site]
    with editing(subject, site, lambda value: other):
        torch.testing.assert_close(subject.logits(TOKENS), subject.logits(TOKENS.flip(0)))


def test_the_hook_goes_away_after_an_exception(subject: Subject) -> None:
    before = subject.logits(TOKENS)
    with pytest.raises(RuntimeError), editing(subject, "blocks.0.hook_resid_post", lambda value: value * 0):
        raise RuntimeError
    assert torch.equal(subject.logits(TOKENS), before)
