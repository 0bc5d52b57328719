"""Gradients through a spliced dictionary: at latents, at errors, and upstream."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from spliced import (
    KINDS,
    LAYERS_OUT,
    clt_at,
    metric,
    tokens_of,
)
from torch import Tensor

from mechlab.interventions.edit import editing
from mechlab.models.subject import Subject, load_model
from mechlab.sae.splice import splicing
from tiny import save_tiny_model


@pytest.fixture(scope="module", params=["gpt2", "gpt_neox", "llama", "fable"])
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    if request.param == "fable":
        return load_model("fable")
    return load_model(save_tiny_model(tmp_path_factory.mktemp("m") / request.param, request.param))


@pytest.fixture(scope="module")
def tiny(tiny_model: Path) -> Subject:
    return load_model(tiny_model)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("error", [True, False])
def test_gradients_at_latents_and_errors_equal_finite_differences(
    tiny_model: Path, kind: str, error: bool
) -> None:
    subject = load_model(tiny_model, dtype=torch.float64)
    tokens, at = tokens_of(subject), KINDS[kind](subject)
    at.sae.double()
    with splicing(subject, at, error=error) as run:
        metric(subject, tokens).backward()
    assert all(p.grad is None for p in [*subject.module.parameters(), *at.sae.parameters()])
    gradient, h, last = run.dense(run.gradient), 1e-5, at.outputs[-1]
    dense = run.dense(run.codes)
    active = dense.nonzero().tolist()
    # Latents that write to the last site alone, so that moving the site there is moving the latent.
    tried = [place for place in active if kind != "clt" or place[2] >= 20][::9]
    assert len(tried) > 2
    with torch.no_grad():
        for row, position, latent in tried:
            values = []
            for sign in (1, -1):
                moved = torch.zeros(2, 7, 16, dtype=torch.float64)
                moved[row, position] = sign * h * at.sae.W_dec[latent, -16:]
                with splicing(subject, at, error=error), editing(subject, last, lambda y, m=moved: y + m):
                    values.append(float(metric(subject, tokens)))
            slope = (values[0] - values[1]) / (2 * h)
            assert float(gradient[row, position, latent]) == pytest.approx(slope, rel=1e-5, abs=1e-8)
    if error:
        node = run.error[last].grad
        assert node is not None
        if kind != "clt":
            # Latents and error enter by the same sum.
            torch.testing.assert_close(
                (node @ at.sae.W_dec[:, -16:].T)[dense != 0], gradient[dense != 0], rtol=1e-9, atol=1e-12
            )


def test_a_latent_that_writes_to_several_layers_has_the_gradient_of_all(tiny_model: Path) -> None:
    subject = load_model(tiny_model, dtype=torch.float64)
    tokens, at = tokens_of(subject), clt_at(subject)
    at.sae.double()
    with splicing(subject, at, error=False) as run:
        metric(subject, tokens).backward()
    dense, gradient = run.dense(run.codes), run.dense(run.gradient)
    row, position, latent = next(place for place in dense.nonzero().tolist() if place[2] < 20)
    h, values = 1e-5, []
    with torch.no_grad():
        for sign in (1, -1):
            delta = torch.zeros(2, 7, 1, dtype=torch.float64)
            delta[row, position] = sign * h
            both = at.sae.W_dec[latent]
            with (
                splicing(subject, at, error=False),
                editing(subject, LAYERS_OUT[0], lambda y, d=delta * both[:16]: y + d),
                editing(subject, LAYERS_OUT[1], lambda y, d=delta * both[16:]: y + d),
            ):
                values.append(float(metric(subject, tokens)))
    slope = (values[0] - values[1]) / (2 * h)
    assert float(gradient[row, position, latent]) == pytest.approx(slope, rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("error", [True, False])
def test_gradients_pass_on_to_what_lies_upstream(tiny_model: Path, kind: str, error: bool) -> None:
    """With its error an unchanged splice is the identity, in gradients too; without, the true derivative."""
    subject = load_model(tiny_model, dtype=torch.float64)
    tokens, at = tokens_of(subject), KINDS[kind](subject)
    at.sae.double()
    embedded = subject.module.get_input_embeddings()(tokens)

    def value(inputs: Tensor) -> Tensor:
        return subject.module(inputs_embeds=inputs, use_cache=False).logits[:, -1, 5].sum()

    leaf = embedded.clone().requires_grad_()
    with splicing(subject, at, error=error):
        value(leaf).backward()
    if error:
        other = embedded.clone().requires_grad_()
        value(other).backward()
        torch.testing.assert_close(leaf.grad, other.grad, rtol=1e-9, atol=1e-12)
        return
    generator = torch.Generator().manual_seed(1)
    step = 1e-6 * torch.randn(embedded.shape, generator=generator, dtype=torch.float64)
    with torch.no_grad(), splicing(subject, at, error=False):
        slope = float(value(embedded + step) - value(embedded - step)) / 2
    assert float((leaf.grad * step).sum()) == pytest.approx(slope, rel=1e-4)
