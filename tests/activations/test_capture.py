"""Reading sites: exact, tidy, and clear about mistakes. Equality with the bridge: tests/models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import mechlab as ml
from mechlab.activations.capture import read_sites, reading
from mechlab.errors import MechlabError
from mechlab.models.subject import Subject, load_model


@pytest.fixture(scope="module")
def subject(tiny_model: Path) -> Subject:
    return load_model(tiny_model)


def hook_count(subject: Subject) -> int:
    modules = subject.module.modules()
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules)


def test_values_are_bit_equal_to_a_naive_hook(subject: Subject) -> None:
    tokens = torch.randint(3, 20, (3, 9), generator=torch.Generator().manual_seed(0))
    kept = []
    handle = subject.module.transformer.h[0].register_forward_hook(lambda _, __, out: kept.append(out))
    subject.module(tokens)
    handle.remove()
    value = kept[0][0] if isinstance(kept[0], tuple) else kept[0]
    assert torch.equal(
        read_sites(subject, tokens, ["blocks.0.hook_resid_post"])["blocks.0.hook_resid_post"], value
    )


def test_padding_changes_nothing(subject: Subject) -> None:
    texts = ["the cat sat on a mat .", "a red dog"]
    together = ml.activations(subject, texts, "blocks.1.hook_resid_post")
    for i, text in enumerate(texts):
        alone = ml.activations(subject, text, "blocks.1.hook_resid_post")["blocks.1.hook_resid_post"][0]
        found = together["blocks.1.hook_resid_post"][i]
        torch.testing.assert_close(found[: len(alone)], alone, atol=1e-6, rtol=1e-6)
        assert not found[len(alone) :].any()
    assert together.mask.sum(1).tolist() == [8, 4]


def test_forward_stops_after_the_last_site(subject: Subject) -> None:
    ran = []
    handle = subject.module.transformer.h[1].register_forward_hook(lambda *_: ran.append(1))
    read_sites(subject, torch.tensor([[2, 3]]), ["blocks.0.hook_resid_post", "hook_embed"])
    handle.remove()
    assert ran == []


def test_sites_of_one_module_and_any_order(subject: Subject) -> None:
    names = ["blocks.1.hook_resid_post", "blocks.0.hook_resid_post", "blocks.1.hook_resid_pre"]
    found = read_sites(subject, torch.tensor([[2, 3, 4]]), names)
    assert set(found) == set(names)
    assert torch.equal(found["blocks.0.hook_resid_post"], found["blocks.1.hook_resid_pre"])


def test_heads_are_kept_apart(subject: Subject) -> None:
    assert ml.activations(subject, "the cat", "blocks.0.attn.hook_z")["blocks.0.attn.hook_z"].shape == (
        1,
        3,
        4,
        4,
    )


def test_hooks_are_removed_also_after_an_exception(subject: Subject) -> None:
    before = hook_count(subject)
    broken = subject.module.transformer.h[0].mlp.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        read_sites(subject, torch.tensor([[2]]), ["blocks.0.hook_resid_post"])
    broken.remove()
    assert hook_count(subject) == before
    with pytest.raises(RuntimeError), reading(subject, ["blocks.0.hook_resid_post"]):
        assert hook_count(subject) == before + 1
        raise RuntimeError
    assert hook_count(subject) == before


def test_learned_positions_are_there_for_every_row(subject: Subject) -> None:
    tokens = torch.tensor([[2, 3, 4], [2, 5, 6]])
    found = read_sites(subject, tokens, ["hook_pos_embed"])["hook_pos_embed"]
    assert found.shape == (2, 3, 16)
    assert torch.equal(found[0], subject.module.transformer.wpe.weight[:3])


def test_mistakes(subject: Subject) -> None:
    with pytest.raises(MechlabError, match="token has no embedding: 99 of 20"):
        read_sites(subject, torch.tensor([[2, 99]]), ["hook_embed"])
    with pytest.raises(MechlabError, match=r"no site: blocks\.0\.hook_resid"):
        ml.activations(subject, "the cat", "blocks.0.hook_resid")
    with pytest.raises(MechlabError, match="longer than the model's context: 41 tokens"):
        ml.activations(subject, "the " * 40, "hook_embed")
    with pytest.raises(MechlabError, match="no texts"):
        ml.activations(subject, [], "hook_embed")
