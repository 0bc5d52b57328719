"""Edits while generating with a key-value cache equal edits in full forwards without one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from edit_cases import hooks, vector
from transformers import DynamicCache

from mechlab.activations.capture import read_sites
from mechlab.errors import MechlabError
from mechlab.interventions.edit import editing
from mechlab.interventions.edits import add, clamp, project_out, scale, splice, swap
from mechlab.models.subject import Subject

NEW = 6


def generated(subject: Subject, tokens: torch.Tensor, **options: Any) -> torch.Tensor:
    out = subject.module.generate(
        tokens,
        attention_mask=torch.ones_like(tokens),
        max_new_tokens=NEW,
        min_new_tokens=NEW,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
        **options,
    )
    return torch.cat([out.sequences[:, tokens.shape[1] :, None].float(), torch.stack(out.logits, 1)], dim=-1)


def without_cache(
    subject: Subject, tokens: torch.Tensor, site: str, edit: Any, positions: Any
) -> torch.Tensor:
    """The same by full forwards, each of them edited anew."""
    sequence, rows = tokens, []
    for _ in range(NEW):
        # A list must not name positions that are not there yet.
        at = [p for p in positions if p < sequence.shape[1]] if isinstance(positions, list) else positions
        with editing(subject, site, edit, at):
            logits = subject.logits(sequence)[:, -1]
        allowed = logits.clone()
        allowed[:, subject.module.generation_config.eos_token_id] = -torch.inf
        best = allowed.argmax(-1, keepdim=True)
        sequence = torch.cat([sequence, best], dim=1)
        rows.append(torch.cat([best.float(), logits], dim=-1))
    return torch.stack(rows, dim=1)


SITES = (
    "hook_embed",
    "blocks.0.hook_resid_post",
    "blocks.0.attn.hook_q",
    "blocks.1.attn.hook_k",
    "blocks.0.attn.hook_v:1",
    "blocks.1.attn.hook_z:0",
)


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("positions", [None, slice(9, None), slice(2, 11), slice(0, 9), [0, 4, 12]])
def test_generation_equals_full_forwards(
    subject: Subject, tokens: torch.Tensor, site: str, positions: Any
) -> None:
    edit = clamp(vector(subject.site(site).dim), 5.0)
    with editing(subject, site, edit, positions):
        got = generated(subject, tokens)
    want = without_cache(subject, tokens, site, edit, positions)
    torch.testing.assert_close(got, want, atol=1e-3, rtol=1e-4)
    assert not torch.allclose(got, generated(subject, tokens), atol=1e-2)
    assert hooks(subject) == 0


def test_other_caches_tell_positions_too(other: Subject) -> None:
    """Sliding windows forget columns but go on counting them."""
    if not other.causal:
        pytest.skip("cannot generate")
    tokens = torch.arange(3, 17).view(2, 7)
    for site in ("blocks.0.hook_resid_post", "blocks.0.attn.hook_v"):
        edit = clamp(vector(other.site(site).dim), 5.0)
        for positions in (slice(1, 9), slice(10, None)):
            with editing(other, site, edit, positions):
                got = generated(other, tokens)
            want = without_cache(other, tokens, site, edit, positions)
            torch.testing.assert_close(got, want, atol=1e-3, rtol=1e-4)
            assert not torch.allclose(got, generated(other, tokens), atol=1e-2)


def test_every_kind_of_edit_while_generating(subject: Subject, tokens: torch.Tensor) -> None:
    site = "blocks.0.hook_resid_post"
    dim = subject.site(site).dim
    weight = torch.eye(dim) + 0.1 * vector(dim * dim).view(dim, dim)
    values = vector(3 * 16 * dim).view(3, 16, dim)
    for edit in (
        project_out(torch.stack([vector(dim), vector(dim, 1)])),
        clamp(vector(dim), 2.0),
        scale(0.5),
        swap(values),
        swap(values[:1]),
        splice(lambda rows: rows @ weight),
        splice(lambda rows: rows @ weight, error=values),
        lambda value: value.tanh(),
    ):
        for positions in (None, slice(None, 12, 3)):
            with editing(subject, site, edit, positions):
                got = generated(subject, tokens)
            want = without_cache(subject, tokens, site, edit, positions)
            torch.testing.assert_close(got, want, atol=1e-3, rtol=1e-4)


def test_named_positions_and_negative_ones_mean_the_prompt(subject: Subject, tokens: torch.Tensor) -> None:
    site = "blocks.1.hook_resid_pre"
    edit = add(vector(subject.site(site).dim), 3.0)
    mask = torch.zeros(3, 9, dtype=torch.bool)
    mask[1, 3] = mask[2, 8] = True
    same = [
        ("prompt", slice(0, 9)),
        ("new", slice(9, None)),
        ([-1, -9], [0, 8]),
        (slice(-2, None), slice(7, None)),
    ]
    same += [(mask, torch.cat([mask, torch.zeros(3, 7, dtype=torch.bool)], dim=1)), (slice(-9, -1), range(8))]
    for one, other in same:
        with editing(subject, site, edit, one):
            first = generated(subject, tokens)
        with editing(subject, site, edit, other):
            assert torch.equal(generated(subject, tokens), first), one
    # Opened once, it serves prompts of other lengths after one another.
    with editing(subject, site, edit, slice(-2, None)):
        generated(subject, tokens[:1, :4])
        again = generated(subject, tokens)
    with editing(subject, site, edit, slice(7, None)):
        assert torch.equal(generated(subject, tokens), again)
    whole = torch.ones(3, 15, dtype=torch.bool)
    with editing(subject, site, edit, whole):
        masked = generated(subject, tokens)
    with editing(subject, site, edit):
        assert torch.equal(generated(subject, tokens), masked)


def test_identities_while_generating(subject: Subject, tokens: torch.Tensor) -> None:
    site = "blocks.0.hook_mlp_out"
    before = generated(subject, tokens)
    own = read_sites(subject, tokens, [site])[site]
    for edit in (scale(1.0), add(vector(own.shape[-1]), 0.0), lambda value: value):
        with editing(subject, site, edit):
            assert torch.equal(generated(subject, tokens), before)
    with editing(subject, site, swap(own), "prompt"):
        assert torch.equal(generated(subject, tokens), before)
    with editing(subject, site, scale(0.0), []):
        assert torch.equal(generated(subject, tokens), before)


def test_a_cache_filled_in_chunks_gives_each_its_own_columns(subject: Subject, tokens: torch.Tensor) -> None:
    site = "blocks.0.hook_resid_post"
    edit = swap(vector(3 * 9 * subject.site(site).dim).view(3, 9, -1))
    for positions in (None, slice(3, 8), [0, 5, 8]):
        with editing(subject, site, edit, positions):
            want = subject.logits(tokens)
            cache, parts = DynamicCache(), []
            for chunk in tokens.split([4, 1, 4], dim=1):
                parts.append(subject.module(chunk, past_key_values=cache).logits)
        torch.testing.assert_close(torch.cat(parts, 1), want, atol=1e-4, rtol=1e-4)


def test_refusals(subject: Subject, tokens: torch.Tensor) -> None:
    site = "blocks.0.hook_resid_post"
    dim = subject.site(site).dim
    with editing(subject, site, scale(0.0), [-10]), pytest.raises(MechlabError, match="the prompt has 9"):
        generated(subject, tokens)
    values = swap(torch.zeros(3, 9, dim))
    with (
        editing(subject, site, values),
        pytest.raises(MechlabError, match=r"no value for a position: 9 .*prompt"),
    ):
        generated(subject, tokens)
    with editing(subject, site, scale(0.0), "new"), pytest.raises(MechlabError, match="without a cache"):
        generated(subject, tokens, use_cache=False)
    mask = torch.ones(3, 4, dtype=torch.bool)
    with editing(subject, site, scale(0.0), mask), pytest.raises(MechlabError, match="mask of positions"):
        generated(subject, tokens)
    cache = subject.module(tokens, use_cache=True).past_key_values
    with (
        editing(subject, site, scale(0.0), "prompt"),
        pytest.raises(MechlabError, match="length is not known"),
    ):
        subject.module(tokens[:, :1], past_key_values=cache)
    assert hooks(subject) == 0
