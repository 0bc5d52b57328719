"""Composition and channels: against the definition, on planted weights, and against random ones."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mechlab.circuits.weights.composition import PARTS, channels, composition, random_composition
from mechlab.circuits.weights.heads import Heads, read_heads
from mechlab.errors import MechlabError
from mechlab.models.weights import read_weights

D, K = 32, 4


def made(seed: int = 0, n_layers: int = 2, n_heads: int = 2) -> Heads:
    """Heads of Gaussian matrices."""
    generator = torch.Generator().manual_seed(seed)
    n = n_layers * n_heads
    q, k, v = torch.randn(3, n, D, K, generator=generator)
    return Heads(n_layers, n_heads, q, k, v, torch.randn(n, K, D, generator=generator))


def slow_scores(heads: Heads, part: str) -> Tensor:
    """The definition with whole d_model × d_model matrices."""
    n = len(heads.value)
    found = torch.full((n, n), torch.nan)
    for one in range(n):
        for two in range(n):
            if one // heads.n_heads < two // heads.n_heads:
                write = heads.value[one] @ heads.output[one]
                match = {
                    "q": heads.query[two] @ heads.key[two].T,
                    "k": heads.key[two] @ heads.query[two].T,
                    "v": heads.value[two] @ heads.output[two],
                }
                found[one, two] = (write @ match[part]).norm() / write.norm() / match[part].norm()
    return found


@pytest.mark.parametrize("part", PARTS)
def test_scores_are_the_definition(
    architecture: str, part: str, random_module: Callable[..., nn.Module]
) -> None:
    for seed in range(2):
        heads = read_heads(random_module(architecture, seed))
        found = composition(heads, part)
        torch.testing.assert_close(found.scores + found.baseline, slow_scores(heads, part), equal_nan=True)
        assert found.scores[0, heads.n_heads :].isfinite().all()
        assert found.scores[heads.n_heads, : 2 * heads.n_heads].isnan().all()


def test_heads_hold_the_norm_and_share_their_group_s_keys(
    architecture: str, random_module: Callable[..., nn.Module]
) -> None:
    """Streams read through folded matrices equal streams read through the norm, up to its scale and bias."""
    module = random_module(architecture)
    heads, attentions = read_heads(module), read_weights(module).attentions
    assert len(heads.names) == len(heads.value) == 12
    x, y = torch.randn(2, 3, 24)
    for layer, attention in enumerate(attentions):
        for part, folded in enumerate((heads.query, heads.key, heads.value)):
            weight = attention.inputs[part]
            group = 4 // weight.shape[0]
            for head in range(4):
                # Differences of two streams of one scale leave the norm's bias out.
                scale_x, scale_y = attention.norm.scale(x[None])[1], attention.norm.scale(y[None])[1]
                direct = attention.norm(x) @ weight[head // group] - attention.norm(y) @ weight[head // group]
                through = (x * scale_x[0] - y * scale_y[0]) @ folded[heads.row(f"a{layer}.h{head}")]
                torch.testing.assert_close(through, direct, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("part", PARTS)
def test_a_planted_pair_stands_out_and_random_ones_score_nothing(part: str) -> None:
    # A head of K equal directions scores at most 1/√K = 0.5, less the baseline.
    heads = made(1)
    scores = composition(heads, part).scores[:2, 2:]
    assert scores.abs().max() < 0.1
    # Head 3 reads what head 0 writes and nothing else.
    target = {"q": heads.query, "k": heads.key, "v": heads.value}[part]
    target[3] = heads.output[0].T
    planted = composition(heads, part).scores[:2, 2:]
    assert planted[0, 1] > 0.25
    others = torch.tensor([planted[0, 0], planted[1, 0], planted[1, 1]])
    assert others.abs().max() < 0.1


def test_the_baseline_falls_with_the_width_of_the_stream() -> None:
    assert random_composition(64, 8) == random_composition(64, 8)
    # Random K-dimensional spaces of a D-dimensional stream share little: a direction's share is 1/√D.
    assert random_composition(64, 8) == pytest.approx(64**-0.5, rel=0.1)
    assert random_composition(256, 8) == pytest.approx(256**-0.5, rel=0.1)


def test_channels_split_the_composition_of_a_head() -> None:
    heads = made(2)
    found = channels(heads, "a0.h1", "a1.h0.k")
    whole = slow_scores(heads, "k")[1, 2]
    # Squares of components' scores, weighted by squared size, make up the whole score.
    shares = found.sizes.square() / found.sizes.square().sum()
    torch.testing.assert_close((shares * found.scores.square()).sum().sqrt(), whole)
    assert len(found.scores) == K
    torch.testing.assert_close(found.directions @ found.directions.T, torch.eye(K), rtol=1e-4, atol=1e-5)


def test_a_channel_through_one_component_is_found() -> None:
    heads = made(3)
    clean = channels(heads, "a0.h0", "a1.h1.q")
    assert clean.chance == pytest.approx(D**-0.5)
    assert clean.scores.max() < 4 * clean.chance
    # The reader's query now sees one of the writer's four directions, and random ones besides.
    heads.query[3, :, 0] = 20 * clean.directions[2]
    planted = channels(heads, "a0.h0", "a1.h1.q")
    assert planted.scores.argmax() == 2
    assert planted.scores[2] > 3 * planted.chance
    assert planted.scores[[0, 1, 3]].max() < 3 * planted.chance


def test_random_directions_score_chance() -> None:
    # The claim behind Channels.chance, over many random writers.
    scores = torch.cat([channels(made(seed), "a0.h0", "a1.h0.v").scores for seed in range(60)])
    assert scores.square().mean().sqrt() == pytest.approx(D**-0.5, rel=0.1)


def test_impossible_requests_are_refused() -> None:
    heads = made()
    with pytest.raises(MechlabError, match=r"no head: a9.h0 \(heads are a0.h0 … a1.h1"):
        channels(heads, "a9.h0", "a1.h0.q")
    with pytest.raises(MechlabError, match="no head: embed"):
        heads.row("embed")
    with pytest.raises(MechlabError, match="no such input: z"):
        channels(heads, "a0.h0", "a1.h0.z")
    with pytest.raises(MechlabError, match="no such input"):
        composition(heads, "o")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype, architecture, random_module) -> None:
    module = random_module(architecture)
    half = random_module(architecture).to(dtype)
    expected, found = (composition(read_heads(each), "k").scores for each in (module, half))
    torch.testing.assert_close(found, expected, atol=0.01, rtol=0.02, equal_nan=True)


def test_requests_for_no_path_are_refused() -> None:
    heads = made()
    with pytest.raises(MechlabError, match="no later layer"):
        channels(heads, "a1.h0", "a1.h1.q")
