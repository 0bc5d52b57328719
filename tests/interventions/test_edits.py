"""Each kind of edit against its formula."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from edit_cases import KINDS, surprise, vector

from mechlab.activations.capture import read_sites
from mechlab.errors import MechlabError
from mechlab.interventions.edit import editing
from mechlab.interventions.edits import add, clamp, project_out, scale, splice, swap
from mechlab.models.subject import Subject


def edited(subject: Subject, tokens: torch.Tensor, site: str, edit: Any) -> torch.Tensor:
    with editing(subject, site, edit):
        return read_sites(subject, tokens, [site])[site]


@pytest.mark.parametrize("site", KINDS)
def test_project_out_leaves_nothing_along_the_directions(
    subject: Subject, tokens: torch.Tensor, site: str
) -> None:
    x = read_sites(subject, tokens, [site])[site]
    dim = x.shape[-1]
    for n in (1, 2, dim - 1, dim):
        directions = 5 * torch.stack([vector(dim, seed) for seed in range(n)])
        after = edited(subject, tokens, site, project_out(directions))
        size = float(x.norm(dim=-1).max())
        assert (after @ directions.T).abs().max() < 1e-5 * size * float(directions.norm(dim=-1).max())
        # What is left is the residual of a least-squares fit by the directions.
        basis = directions.double().T
        fit = basis @ torch.linalg.lstsq(basis, x.double().reshape(-1, dim).T).solution
        torch.testing.assert_close(
            after.double().reshape(-1, dim), x.double().reshape(-1, dim) - fit.T, atol=1e-5 * size, rtol=0
        )
    single = edited(subject, tokens, site, project_out(directions[0]))
    assert torch.equal(single, edited(subject, tokens, site, project_out(directions[:1])))


@pytest.mark.parametrize("site", KINDS)
def test_clamp_sets_the_coordinate_and_nothing_else(
    subject: Subject, tokens: torch.Tensor, site: str
) -> None:
    x = read_sites(subject, tokens, [site])[site]
    direction = 3 * vector(x.shape[-1])
    unit = direction / direction.norm()
    size = float(x.norm(dim=-1).max()) + 2
    after = edited(subject, tokens, site, clamp(direction, -1.5))
    torch.testing.assert_close(after @ unit, torch.full(x.shape[:2], -1.5), atol=1e-6 * size, rtol=0)
    rest = project_out(direction).change
    torch.testing.assert_close(rest(after, None), rest(x, None), atol=1e-6 * size, rtol=0)
    now = x @ unit
    low, high = float(now.quantile(0.3)), float(now.quantile(0.7))
    for bounds in ({"low": low}, {"high": high}, {"low": low, "high": high}):
        after = edited(subject, tokens, site, clamp(direction, **bounds))
        torch.testing.assert_close(
            after @ unit, now.clamp(bounds.get("low"), bounds.get("high")), atol=1e-6 * size, rtol=0
        )
        within = (now > bounds.get("low", -torch.inf) + 1e-5) & (now < bounds.get("high", torch.inf) - 1e-5)
        assert within.any()
        assert torch.equal(after[within], x[within])


def test_add_scale_and_swap(subject: Subject, tokens: torch.Tensor) -> None:
    site = "blocks.1.hook_resid_pre"
    x = read_sites(subject, tokens, [site])[site]
    push = vector(x.shape[-1])
    assert torch.equal(edited(subject, tokens, site, add(push, 2.5)), x + 2.5 * push)
    assert torch.equal(edited(subject, tokens, site, scale(-0.5)), -0.5 * x)
    assert torch.equal(edited(subject, tokens, site, swap(x.flip(0))), x.flip(0))
    mean = x.mean((0, 1), keepdim=True).expand(1, 9, -1)
    assert torch.equal(edited(subject, tokens, site, swap(mean)), mean.expand_as(x))


class Autoencoder:
    """A dictionary that misses part of its input; single latents can be ablated."""

    def __init__(self, dim: int) -> None:
        self.encoder = vector(dim * 2 * dim).view(dim, 2 * dim) / dim**0.5
        self.decoder = vector(2 * dim * dim, 1).view(2 * dim, dim) / dim**0.5

    def __call__(self, rows: torch.Tensor, ablate: tuple[int, ...] = ()) -> torch.Tensor:
        codes = (rows @ self.encoder).relu()
        codes[:, list(ablate)] = 0
        return codes @ self.decoder


def test_the_error_of_an_ablated_reconstruction_is_the_plain_ones(
    subject: Subject, tokens: torch.Tensor
) -> None:
    site = "blocks.0.hook_resid_post"
    x = read_sites(subject, tokens, [site])[site]
    sae = Autoencoder(x.shape[-1])

    def ablated(rows: torch.Tensor) -> torch.Tensor:
        return sae(rows, ablate=(0, 1, 2))

    codes = (x @ sae.encoder).relu()[..., :3]
    assert codes.any()
    want = x - codes @ sae.decoder[:3]
    torch.testing.assert_close(
        edited(subject, tokens, site, splice(ablated, error=sae)), want, atol=1e-4, rtol=1e-4
    )
    torch.testing.assert_close(
        edited(subject, tokens, site, splice(ablated, error=x - sae(x.flatten(0, 1)).view_as(x))),
        want,
        atol=1e-4,
        rtol=1e-4,
    )
    assert torch.equal(edited(subject, tokens, site, splice(ablated)), ablated(x.flatten(0, 1)).view_as(x))
    # The trap: recomputed from the ablated reconstruction, the error puts back what was taken out.
    torch.testing.assert_close(
        edited(subject, tokens, site, splice(ablated, error=True)), x, atol=1e-4, rtol=1e-4
    )


def test_only_a_clean_runs_error_leaves_out_an_earlier_edit(subject: Subject, tokens: torch.Tensor) -> None:
    site = "blocks.1.hook_resid_post"
    x = read_sites(subject, tokens, [site])[site]
    sae = Autoencoder(x.shape[-1])

    def reconstructed(x: torch.Tensor) -> torch.Tensor:
        return sae(x.flatten(0, 1)).view_as(x)

    with editing(subject, "blocks.0.hook_mlp_out", scale(0.0)):
        moved = read_sites(subject, tokens, [site])[site]
        recomputed = edited(subject, tokens, site, splice(sae, error=True))
        clean = edited(subject, tokens, site, splice(sae, error=x - reconstructed(x)))
    # Recomputed, the error carries all that the dictionary misses of the edit.
    torch.testing.assert_close(recomputed, moved, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(clean, reconstructed(moved) + x - reconstructed(x), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(clean, moved, atol=1e-2)


def test_gradients_flow_to_directions_values_and_errors(subject: Subject, tokens: torch.Tensor) -> None:
    site = "blocks.0.hook_resid_post"
    dim = subject.site(site).dim
    directions = torch.stack([vector(dim, 3), vector(dim, 4)]).requires_grad_()
    values = vector(9 * dim, 5).view(1, 9, dim).requires_grad_()
    weight = torch.eye(dim).requires_grad_()
    for edit, leaf in (
        (project_out(directions), directions),
        (clamp(directions[0], 1.0), directions),
        (swap(values), values),
        (splice(lambda rows: rows @ weight, error=values), weight),
        (splice(lambda rows: rows @ weight, error=values), values),
    ):
        with editing(subject, site, edit):
            loss = surprise(subject, tokens)
        (gradient,) = torch.autograd.grad(loss, leaf)
        assert torch.isfinite(gradient).all()
        assert gradient.norm() > 0


def test_refusals() -> None:
    ones, nan = torch.ones(4), float("nan")
    cases = {
        "strength is not a finite number: nan": lambda: add(ones, nan),
        "factor is not a finite number: inf": lambda: scale(float("inf")),
        "vector holds NaN": lambda: add(ones * nan),
        "direction holds NaN": lambda: project_out(ones * nan),
        "direction has length zero": lambda: project_out(torch.zeros(4)),
        r"direction has length zero: \[2, 4\]": lambda: project_out(torch.stack([ones, 0 * ones])),
        r"not \[dim\] or \[n, dim\]: \[0, 4\]": lambda: project_out(torch.zeros(0, 4)),
        r"not \[dim\] or \[n, dim\]: \[1, 1, 4\]": lambda: project_out(ones[None, None]),
        r"depend on each other: \[2, 4\]": lambda: project_out(torch.stack([ones, -2 * ones])),
        r"depend on each other: \[5, 4\]": lambda: project_out(vector(20).view(5, 4)),
        "clamp takes a value or bounds": lambda: clamp(ones),
        "clamp takes a value or bounds: .*pass value": lambda: clamp(ones, 1.0, low=0.0),
        "bounds of clamp cross: low 2.0, high 1.0": lambda: clamp(ones, low=2.0, high=1.0),
        "value is not a finite number": lambda: clamp(ones, nan),
    }
    for message, make in cases.items():
        with pytest.raises(MechlabError, match=message) as caught:
            make()
        assert "\n" not in str(caught.value)
