"""Features suppressed in the model: against splicing, and as the graph predicts on the bundled model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from feature_models import clt_over, subject_of, transcoder_at
from torch import nn

import mechlab
from mechlab.activations.live import live
from mechlab.circuits.features.attribution_graph import attribution_graph
from mechlab.circuits.features.influence import graph_scores, prune
from mechlab.circuits.features.replacement import replacement_model
from mechlab.circuits.features.suppression import (
    suppression_agreement,
    suppression_effects,
)
from mechlab.data.corpus import open_corpus
from mechlab.data.tasks import make_task
from mechlab.errors import MechlabError
from mechlab.models.subject import Subject
from mechlab.sae.dictionary import Dictionary, train_saes
from mechlab.sae.splice import splicing
from mechlab.sae.topk import TopKConfig

TOKENS = torch.tensor([0, 7, 3, 3, 21, 9])


@pytest.mark.parametrize("kind", ["transcoders", "clt"])
def test_suppressing_is_splicing_without_the_latent(
    random_module: Callable[..., nn.Module], architecture: str, kind: str
) -> None:
    subject = subject_of(random_module(architecture, scale=0.2))
    given = [clt_over([0, 1, 2])] if kind == "clt" else [transcoder_at(n, skip=True) for n in range(3)]
    replacement = replacement_model(subject, given, TOKENS)
    graph = attribution_graph(replacement, [4, 11], position=-2)
    nodes = graph.of_kind("feature").nonzero()[::11, 0]
    effects = suppression_effects(replacement, graph, nodes, batch_size=4)
    whole = replacement.logits[-2] - replacement.logits[-2].mean()
    for number, effect in zip(nodes.tolist(), effects, strict=True):
        node = graph.nodes[number]
        assert node.index is not None
        dictionary = given[0] if kind == "clt" else given[node.layer]
        with (
            torch.no_grad(),
            splicing(subject, dictionary, ablate=[node.index], positions=[node.position or 0]),
        ):
            after = subject.logits(TOKENS[None])[0, -2]
        expected = (whole - after + after.mean())[[4, 11]]
        torch.testing.assert_close(effect, expected, atol=1e-4, rtol=1e-3)


def test_only_active_features_can_be_suppressed(random_module: Callable[..., nn.Module]) -> None:
    subject = subject_of(random_module("gpt2"))
    replacement = replacement_model(subject, [transcoder_at(1)], TOKENS)
    graph = attribution_graph(replacement)
    with pytest.raises(MechlabError, match="not a feature"):
        suppression_effects(replacement, graph, torch.tensor([0]))
    other = replacement_model(subject, [transcoder_at(1, seed=5)], TOKENS)
    with pytest.raises(MechlabError, match="not active"):
        suppression_effects(other, graph, graph.of_kind("feature").nonzero()[:, 0])


def train(subject: Subject, folder: Path, d_sae: int, k: int, tokens: int) -> list[Dictionary]:
    """A transcoder for each layer, every other one with a skip connection."""
    configs = {
        folder / str(layer): TopKConfig(
            site=f"blocks.{layer}.mlp.hook_in",
            target=f"blocks.{layer}.hook_mlp_out",
            d_sae=d_sae,
            k=k,
            skip=layer % 2 == 1,
            tokens=tokens,
            batch_size=512,
        )
        for layer in range(4)
    }
    sites = [site for config in configs.values() for site in (*config.inputs, *config.outputs)]
    return train_saes(live(subject, open_corpus(), sites), configs)


@pytest.fixture(scope="module")
def fable() -> Subject:
    return mechlab.load_model("fable", device="cpu")


@pytest.mark.slow
def test_on_the_bundled_model_a_graph_says_what_suppression_does(fable: Subject, tmp_path: Path) -> None:
    transcoders = train(fable, tmp_path, 128, 8, 20_000)
    task = make_task("ioi", fable.tokenizer, n=6, split="validation")
    graph = attribution_graph(replacement_model(fable, transcoders, task.clean[0]))
    assert len(prune(graph).nodes) < len(graph.nodes) / 2
    assert graph_scores(graph).completeness > 0.4
    agreement = suppression_agreement(fable, transcoders, task, n_features=32)
    assert agreement.rank.beats_null
    assert agreement.rank.value > 0.2
    assert agreement.sign.value > 0.6
    assert agreement.rank.null is not None
    assert abs(agreement.rank.null.value) < 0.2


@pytest.mark.slow
def test_better_transcoders_leave_less_to_errors(fable: Subject, tmp_path: Path) -> None:
    transcoders = train(fable, tmp_path, 512, 16, 200_000)
    for name, rank in (("ioi", 0.35), ("induction", 0.2)):
        task = make_task(name, fable.tokenizer, n=16, split="validation")
        found = graph_scores(attribution_graph(replacement_model(fable, transcoders, task.clean[0])))
        assert found.replacement > 0.6
        assert found.completeness > 0.8
        agreement = suppression_agreement(fable, transcoders, task)
        assert agreement.rank.value > rank
        assert agreement.rank.beats_null
        assert agreement.sign.beats_null
