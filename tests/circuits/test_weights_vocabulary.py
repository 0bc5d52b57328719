"""Copying, suppression, succession and positivity: planted heads, naive formulas, random controls."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from mechlab.circuits.weights.heads import read_heads
from mechlab.circuits.weights.vocabulary import (
    copying_scores,
    effective_embeddings,
    eigenvalue_positivity,
    successor_scores,
)
from mechlab.errors import MechlabError
from mechlab.models.weights import read_weights

VOCABULARY = 30
ALL = torch.arange(VOCABULARY)


def naive_logits(module: nn.Module, layer: int, head: int, *, embedding: bool) -> Tensor:
    """Token by token, with real norms: subtracting what a zero value gives leaves the linear part."""
    weights = read_weights(module)
    attention = weights.attentions[layer]
    value = attention.inputs[2].repeat_interleave(4 // attention.inputs[2].shape[0], 0)[head]
    rows = []
    for token in range(VOCABULARY):
        x = weights.embedding(torch.tensor([[token]]))
        made = weights.mlps[0](weights.mlp_norms[0](x)) + (x if embedding else 0)
        norm = attention.norm
        unit = (norm(made) - (0 if norm.bias is None else norm.bias))[0, 0]
        written = unit @ value @ attention.output[head]
        final = weights.final_norm
        centred = written - written.mean() if final.centred else written
        rows.append((centred * final.weight) @ weights.unembed.weight.T)
    return torch.stack(rows)


def set_head(module: nn.Module, layer: int, head: int, reads: Tensor, writes: Tensor) -> None:
    attention = read_weights(module).attentions[layer]
    attention.inputs[2][head] = reads
    attention.output[head] = writes


def test_copying_is_the_share_of_tokens_that_come_back_on_top(
    architecture: str, random_module: Callable[..., nn.Module]
) -> None:
    module = random_module(architecture, seed=4)
    tokens = torch.tensor([3, 7, 8, 20, 29])
    for suppress in (False, True):
        found = copying_scores(module, tokens, top=6, suppress=suppress)
        assert found.scores.shape == (3, 4)
        for layer, head in ((0, 1), (2, 3)):
            logits = naive_logits(module, layer, head, embedding=True)
            ranked = logits.argsort(dim=1, descending=not suppress)
            right = [int(token) in ranked[token, :6].tolist() for token in tokens]
            assert found.scores[layer, head] == pytest.approx(sum(right) / len(right))


def test_a_head_that_copies_stands_out_and_its_opposite_suppresses(
    random_module: Callable[..., nn.Module],
) -> None:
    module = random_module("gpt2", seed=1)
    # Embeddings and the head's small space agree on 6 of 24 directions, the strongest of the embeddings.
    weights = read_weights(module)
    embeddings = effective_embeddings(weights, ALL, embedding=True)
    unembed = weights.unembed.weight.detach() * weights.final_norm.weight
    unembed = unembed - unembed.mean(1, keepdim=True)
    left, _, right = torch.linalg.svd(torch.linalg.pinv(embeddings) @ (8 * torch.eye(VOCABULARY)) @ unembed)
    norm = weights.attentions[1].norm.weight[:, None]
    set_head(module, 1, 2, left[:, :6] / norm, right[:6])
    set_head(module, 2, 0, left[:, :6] / weights.attentions[2].norm.weight[:, None], -right[:6])
    copying = copying_scores(module, ALL, top=3)
    suppressing = copying_scores(module, ALL, top=3, suppress=True)
    positivity = eigenvalue_positivity(module)
    assert copying.scores.argmax() == 4 + 2
    assert suppressing.scores.argmax() == 2 * 4
    assert positivity.scores.argmax() == 4 + 2
    assert positivity.scores.argmin() == 2 * 4
    for found, place in ((copying, (1, 2)), (suppressing, (2, 0)), (positivity, (1, 2))):
        assert found.beyond_control[place] == 1
    # Random heads sit near what ranks at random give.
    assert copying.control.mean() == pytest.approx(3 / VOCABULARY, abs=0.06)


def test_eigenvalues_are_those_of_the_whole_map(
    architecture: str, random_module: Callable[..., nn.Module]
) -> None:
    module = random_module(architecture, seed=2)
    for tokens in (None, torch.tensor([1, 5, 9, 11, 12, 25])):
        found = eigenvalue_positivity(module, tokens)
        kept = ALL if tokens is None else tokens
        for layer, head in ((0, 0), (1, 3), (2, 2)):
            whole = naive_logits(module, layer, head, embedding=True)[kept][:, kept]
            values = torch.linalg.eigvals(whole.double())
            expected = values.real.sum() / values.abs().sum()
            # Eigenvalues that are zero in theory are rounding noise in a 30 × 30 matrix.
            assert found.scores[layer, head] == pytest.approx(float(expected), abs=2e-3)


def test_succession_needs_the_next_member_on_top(
    architecture: str, random_module: Callable[..., nn.Module]
) -> None:
    module = random_module(architecture, seed=3)
    sequences = [torch.tensor([2, 9, 4, 17]), torch.tensor([5, 6, 7])]
    found = successor_scores(module, sequences)
    for layer, head in ((0, 2), (1, 0), (2, 3)):
        logits = naive_logits(module, layer, head, embedding=False)
        right = []
        for sequence in sequences:
            for now, after in pairwise(sequence):
                right.append(bool(logits[now, sequence].argmax() == (sequence == after).nonzero()))
        assert found.scores[layer, head] == pytest.approx(sum(right) / 5)


def test_a_head_that_counts_on_stands_out(random_module: Callable[..., nn.Module]) -> None:
    module = random_module("gpt2", seed=5)
    weights, sequence = read_weights(module), torch.arange(10, 17)
    # Six steps through six dimensions: each member's value is its successor's unembedding.
    x = effective_embeddings(weights, sequence[:-1], embedding=False)
    x = x - x.mean(1, keepdim=True)
    unembed = weights.unembed.weight.detach()[sequence[1:]] * weights.final_norm.weight
    norm = weights.attentions[0].norm.weight[:, None]
    set_head(module, 0, 3, torch.linalg.pinv(x) / norm, unembed - unembed.mean(1, keepdim=True))
    found = successor_scores(module, [sequence])
    assert found.scores[0, 3] == found.scores.max() > 0.9
    assert found.beyond_control[0, 3] == 1
    assert found.control.mean() < 0.4


def test_the_same_seed_gives_the_same_control(random_module: Callable[..., nn.Module]) -> None:
    module = random_module("llama")
    first, again, other = (eigenvalue_positivity(module, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.control, again.control)
    assert not torch.equal(first.control, other.control)
    assert read_heads(module).names[5] == "a1.h1"


def test_bad_requests_are_named(random_module: Callable[..., nn.Module]) -> None:
    module = random_module("gpt2")
    none = torch.zeros(0, dtype=torch.int64)
    with pytest.raises(MechlabError, match="no tokens"):
        copying_scores(module, none)
    with pytest.raises(MechlabError, match="no tokens"):
        eigenvalue_positivity(module, none)
    with pytest.raises(MechlabError, match="top must be between 1 and"):
        copying_scores(module, ALL, top=31)
    with pytest.raises(MechlabError, match="at least three"):
        successor_scores(module, [torch.tensor([1, 2])])
    for token in (-1, 30):
        with pytest.raises(MechlabError, match=f"not in the model's vocabulary: {token} "):
            copying_scores(module, torch.tensor([1, token]))


def test_half_precision(random_module: Callable[..., nn.Module]) -> None:
    module, half = random_module("llama"), random_module("llama").to(torch.bfloat16)
    expected, found = (eigenvalue_positivity(each).scores for each in (module, half))
    torch.testing.assert_close(found, expected, atol=0.1, rtol=0.1)
