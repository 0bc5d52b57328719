"""Editing a site: identities change nothing, positions hold, edits compose, hooks go away."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from edit_cases import KINDS, hooks, surprise, vector

from mechlab.activations.capture import read_sites
from mechlab.errors import MechlabError
from mechlab.interventions.edit import editing
from mechlab.interventions.edits import add, clamp, project_out, scale, splice, swap
from mechlab.models.subject import Subject, load_model


def test_identities_change_no_logit_at_any_site(subject: Subject, tokens: torch.Tensor) -> None:
    before = subject.logits(tokens)
    names = [name for name, site in subject.sites.items() if site.editable]
    own = read_sites(subject, tokens, names)
    for name in names:
        dim = subject.site(name).dim
        exact = {
            "function": lambda value: value,
            "add": add(vector(dim), 0.0),
            "scale": scale(1.0),
            "swap": swap(own[name]),
            "clamp within its bounds": clamp(vector(dim), low=-1e6, high=1e6),
        }
        for what, edit in exact.items():
            with editing(subject, name, edit):
                assert torch.equal(subject.logits(tokens), before), (name, what)


def test_every_architecture_can_be_edited_at_every_site(other: Subject) -> None:
    tokens = torch.arange(3, 19).view(2, 8)
    before = other.logits(tokens)
    for name, site in other.sites.items():
        for part in (name, *([f"{name}:1"] if (site.heads or 1) > 1 else [])):
            if site.editable:
                with editing(other, part, add(vector(other.site(part).dim), 0.0)):
                    assert torch.equal(other.logits(tokens), before), part
                with editing(other, part, clamp(vector(other.site(part).dim), 3.0), slice(2, 5)):
                    assert not torch.allclose(other.logits(tokens), before, atol=1e-3), part
    assert hooks(other) == 0


@pytest.mark.parametrize("site", KINDS)
def test_splice_with_its_error_changes_no_logit(subject: Subject, tokens: torch.Tensor, site: str) -> None:
    dim = subject.site(site).dim
    bad = vector(dim * dim).view(dim, dim)
    before = subject.logits(tokens)
    x = read_sites(subject, tokens, [site])[site]
    for error in (True, lambda rows: rows @ bad, x - x @ bad):
        with editing(subject, site, splice(lambda rows: rows @ bad, error=error)):
            # x̂ + (x - x̂) rounds; the tiny models' logits are of the order of 10.
            torch.testing.assert_close(subject.logits(tokens), before, atol=2e-4, rtol=1e-4)
    with editing(subject, site, splice(lambda rows: rows @ bad)):
        assert not torch.allclose(subject.logits(tokens), before, atol=1e-3)


def test_another_runs_residual_stream_gives_its_logits(subject: Subject, tokens: torch.Tensor) -> None:
    other = tokens.flip(0).roll(1, dims=1)
    want = subject.logits(other)
    for name in ("blocks.0.hook_resid_post", "blocks.1.hook_resid_pre", "hook_embed"):
        values = read_sites(subject, other, [name])[name]
        with editing(subject, name, swap(values)):
            assert torch.equal(subject.logits(tokens), want), name
    with editing(subject, name, swap(values[1:2])):  # one row serves all
        torch.testing.assert_close(subject.logits(tokens), want[1:2].expand_as(want), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("site", KINDS)
def test_other_positions_and_other_parts_stay_to_the_bit(
    subject: Subject, tokens: torch.Tensor, site: str
) -> None:
    names = [site.split(":")[0]]
    value = read_sites(subject, tokens, [site])[site]
    whole = read_sites(subject, tokens, names)[names[0]]
    push = vector(value.shape[-1])
    mask = torch.zeros(3, 9, dtype=torch.bool)
    mask[0, 2] = mask[2, 4:] = True
    with editing(subject, site, add(push, 3.0), positions=mask):
        part = read_sites(subject, tokens, [site])[site]
        edited = read_sites(subject, tokens, names)[names[0]]
    assert torch.equal(part[~mask], value[~mask])
    torch.testing.assert_close(part[mask], value[mask] + 3 * push)
    # Nothing else of the module's output has moved.
    start = int(site.split(":")[1]) * len(push) if ":" in site else 0
    elsewhere = torch.ones(whole.shape[-1], dtype=torch.bool)
    elsewhere[start : start + len(push)] = False
    assert torch.equal(edited[..., elsewhere], whole[..., elsewhere])


def test_the_other_parts_of_a_fused_projection_stay(subject: Subject, tokens: torch.Tensor) -> None:
    names = [f"blocks.0.attn.hook_{part}" for part in "qkv"]
    before = read_sites(subject, tokens, names)
    for changed in (*names, *(f"{name}:1" for name in names)):
        with editing(subject, changed, scale(-2.0)):
            after = read_sites(subject, tokens, names)
        for name in names:
            assert torch.equal(after[name], before[name]) == (name != changed.split(":")[0]), (changed, name)


@pytest.mark.parametrize(
    ("positions", "want"),
    [
        (None, range(9)),
        (4, [4]),
        (-1, [8]),
        ([0, -2, 3], [0, 3, 7]),
        ([], []),
        (range(2, 5), [2, 3, 4]),
        (slice(3, None), range(3, 9)),
        (slice(None, -6), range(3)),
        (slice(-4, 100, 2), [5, 7]),
        (slice(7, 3), []),
        ("prompt", range(9)),
    ],
)
def test_positions(subject: Subject, tokens: torch.Tensor, positions: Any, want: Any) -> None:
    site = "blocks.0.hook_resid_post"
    before = read_sites(subject, tokens, [site])[site]
    with editing(subject, site, scale(2.0), positions):
        after = read_sites(subject, tokens, [site])[site]
    changed = (after != before).any(-1)
    assert changed.all(0).nonzero()[:, 0].tolist() == list(want)
    assert torch.equal(changed.any(0), changed.all(0))


def test_a_mask_of_one_row_serves_every_row(subject: Subject, tokens: torch.Tensor) -> None:
    mask = torch.arange(9)[None] % 2 == 0
    for site in ("blocks.0.hook_resid_post", *[s for s in ("hook_pos_embed",) if s in subject.sites]):
        with editing(subject, site, scale(0.0), mask):
            one = subject.logits(tokens)
        with editing(subject, site, scale(0.0), mask.expand(3, 9)):
            assert torch.equal(subject.logits(tokens), one)


def test_edits_at_one_site_act_in_the_order_opened(subject: Subject, tokens: torch.Tensor) -> None:
    site = "blocks.0.hook_mlp_out"
    x = read_sites(subject, tokens, [site])[site]
    push = vector(x.shape[-1])
    with editing(subject, site, add(push)), editing(subject, site, scale(2.0), slice(3, None)):
        after = read_sites(subject, tokens, [site])[site]
    torch.testing.assert_close(after[:, :3], x[:, :3] + push)
    torch.testing.assert_close(after[:, 3:], 2 * (x[:, 3:] + push))
    with editing(subject, site, scale(2.0)), editing(subject, site, add(push)):
        torch.testing.assert_close(read_sites(subject, tokens, [site])[site], 2 * x + push)


def test_edits_at_several_sites_and_heads_act_together(subject: Subject, tokens: torch.Tensor) -> None:
    site = "blocks.0.attn.hook_z"
    x = read_sites(subject, tokens, [site])[site].unflatten(-1, (subject.site(site).heads, -1))
    with contextlib.ExitStack() as stack:
        for head in (0, 2):
            stack.enter_context(editing(subject, f"{site}:{head}", scale(float(head))))
        stack.enter_context(editing(subject, "blocks.1.hook_resid_pre", scale(0.0)))
        after = read_sites(subject, tokens, [site])[site].unflatten(-1, (x.shape[2], -1))
        assert read_sites(subject, tokens, ["blocks.1.hook_resid_pre"])["blocks.1.hook_resid_pre"].eq(0).all()
    want = x.clone()
    want[:, :, 0], want[:, :, 2] = 0, 2 * want[:, :, 2]
    assert torch.equal(after, want)
    assert hooks(subject) == 0


@pytest.mark.parametrize("site", KINDS)
def test_an_edit_is_what_the_module_computes_with(subject: Subject, tokens: torch.Tensor, site: str) -> None:
    """The gradient of a loss with respect to an added vector equals finite differences."""
    push = (0.1 * vector(subject.site(site).dim)).double().requires_grad_()

    def loss(push: torch.Tensor) -> torch.Tensor:
        with editing(subject, site, add(push, 2.0), slice(2, 6)):
            return surprise(subject, tokens)

    # Llama's norms compute in float32 all the same; the step has to stand above their rounding.
    step, slack = (1e-3, 1e-3) if subject.module.config.model_type == "llama" else (1e-5, 1e-6)
    subject.module.double()
    try:
        (gradient,) = torch.autograd.grad(loss(push), push)
        direction = vector(len(push), 2).double()
        with torch.no_grad():
            slope = (loss(push + step * direction) - loss(push - step * direction)) / (2 * step)
    finally:
        subject.module.float()
    assert gradient.norm() > 0
    assert abs(gradient @ direction - slope) < slack * gradient.norm() * direction.norm()


def test_hooks_go_away(subject: Subject, tokens: torch.Tensor) -> None:
    before = subject.logits(tokens)
    assert hooks(subject) == 0
    with (
        pytest.raises(ZeroDivisionError),
        editing(subject, "hook_embed", scale(0.0)),
        editing(subject, "blocks.0.hook_mlp_out", scale(2.0)),
    ):
        assert hooks(subject) == 4
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError), editing(subject, "hook_embed", lambda value: 1 // 0):
        subject.logits(tokens)
    with pytest.raises(MechlabError), editing(subject, "hook_embed", swap(torch.zeros(2, 9, 3))):
        pass
    assert hooks(subject) == 0
    assert torch.equal(subject.logits(tokens), before)


def test_a_half_precision_model_stays_one(subject: Subject, tokens: torch.Tensor) -> None:
    half = load_model(subject.name, dtype="bfloat16")
    site = "blocks.0.hook_resid_post"
    x = read_sites(half, tokens, [site])[site]
    dim = x.shape[-1]
    before = half.logits(tokens)
    direction = vector(dim).double()
    edits = {
        "add": (add(direction, 0.5), x.double() + 0.5 * direction),
        "project_out": (project_out(direction), None),
        "clamp": (clamp(direction, 1.0), None),
        "scale": (scale(0.3), 0.3 * x.double()),
        "swap": (swap(x.double()), x.double()),
        "splice": (splice(lambda rows: rows * 0.5), 0.5 * x.double()),
        "function": (lambda value: value.double() * 2, 2 * x.double()),
    }
    for name, (edit, want) in edits.items():
        with editing(half, site, edit):
            after = read_sites(half, tokens, [site])[site]
            assert after.dtype == half.logits(tokens).dtype == torch.bfloat16
        if want is not None:  # rounded once
            torch.testing.assert_close(after.double(), want, atol=1e-6, rtol=2**-8, msg=name)
    for edit in (add(direction, 0.0), scale(1.0), splice(lambda rows: rows * 0.9, error=True), swap(x)):
        with editing(half, site, edit):
            assert torch.equal(half.logits(tokens), before)


def test_refusals(subject: Subject, tokens: torch.Tensor) -> None:
    site, dim = "blocks.0.hook_resid_post", subject.site("hook_embed").dim
    push = add(torch.ones(dim))

    def run(site: str, edit: Any, positions: Any = None) -> None:
        with editing(subject, site, edit, positions):
            subject.logits(tokens)

    context = subject.n_ctx
    cases = {
        "no site.*did you mean": ("blocks.0.hook_resid_pots", push, None),
        "has no head: 9": ("blocks.0.attn.hook_z:9", scale(0.0), None),
        "can be read but not edited: blocks.0.attn.hook_pattern": (
            "blocks.0.attn.hook_pattern",
            scale(0.0),
            None,
        ),
        rf"add has another size than the site: {dim + 1} .*dim {dim}": (site, add(torch.ones(dim + 1)), None),
        "swap has another size": (site, swap(torch.zeros(3, 9, dim + 1)), None),
        rf"another size.*:1 has dim {dim // subject.module.config.num_attention_heads}": (
            "blocks.0.attn.hook_z:1",
            push,
            None,
        ),
        "position is out of range: 9 .*sequence has 9": (site, push, [3, 9]),
        "position is out of range: -10 .*sequence has 9": (site, push, -10),
        f"position is out of range: {context} .*holds {context}": (site, push, [context]),
        "unknown positions: promt .*did you mean prompt": (site, push, "promt"),
        "step backwards": (site, push, slice(None, None, -1)),
        "a forward without a cache has no new positions": (site, push, "new"),
        r"mask of positions has another shape than the tokens: \[3, 8\]": (
            site,
            push,
            torch.ones(3, 8, dtype=torch.bool),
        ),
        r"mask of positions has another shape than the tokens: \[2, 9\]": (
            site,
            push,
            torch.ones(2, 9, dtype=torch.bool),
        ),
        "swap has values for another batch: 2": (site, swap(torch.zeros(2, 9, dim)), None),
        "swap has no value for a position: 7 .*values end at 7": (site, swap(torch.zeros(3, 7, dim)), None),
        "edit changed the shape of blocks.0.hook_resid_post": (site, lambda value: value[:, 1:], None),
        "splice's replacement changed the shape": (site, splice(lambda rows: rows[1:]), None),
    }
    for message, (name, edit, positions) in cases.items():
        with pytest.raises(MechlabError, match=message) as caught:
            run(name, edit, positions)
        assert "\n" not in str(caught.value)
    assert hooks(subject) == 0
    run(site, swap(torch.zeros(3, 7, dim)), slice(None, 7))  # narrowed, it fits


def test_an_edit_needs_a_forward_of_the_model(subject: Subject) -> None:
    block = subject.module.get_submodule(subject.site("blocks.0.mlp.hook_in").module)
    with editing(subject, "blocks.0.mlp.hook_in", scale(0.0)), pytest.raises(MechlabError, match="outside"):
        block(torch.zeros(1, 2, subject.site("blocks.0.mlp.hook_in").dim))
