"""A sparse feature circuit of the bundled model, end to end."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import mechlab
from mechlab.activations.live import live
from mechlab.circuits.features.edges import feature_graph
from mechlab.circuits.features.effects import feature_effects
from mechlab.circuits.features.evaluate import exact_effects, feature_faithfulness
from mechlab.circuits.features.sites import mask_of, top_nodes
from mechlab.data.corpus import open_corpus
from mechlab.data.tasks import make_task
from mechlab.sae.dictionary import train_saes
from mechlab.sae.topk import TopKConfig


@pytest.mark.slow
def test_few_features_do_induction(tmp_path: Path) -> None:
    subject = mechlab.load_model("fable", device="cpu")
    sites = [f"blocks.{layer}.hook_resid_post" for layer in (0, 1, 2)]
    configs = {
        tmp_path / site: TopKConfig(site=site, d_sae=512, k=16, tokens=200_000, batch_size=512)
        for site in sites
    }
    saes = train_saes(live(subject, open_corpus(), sites), configs)
    task = make_task("induction", subject.tokenizer, n=32, split="validation")
    effects = feature_effects(subject, saes, task, steps=5)
    nodes = top_nodes(subject, effects, 40)
    exact = exact_effects(subject, saes, task, nodes, effects).mean(1)
    scores = torch.tensor([node.score for node in nodes])
    assert float((exact.sign() == scores.sign()).float().mean()) > 0.9
    graph = feature_graph(subject, saes, task, nodes)
    assert len(list(graph.edges())) > 40
    test = make_task("induction", subject.tokenizer, n=32, split="test")
    candidates = {site: effect != 0 for site, effect in effects.items()}
    many = mask_of(top_nodes(subject, effects, 300), effects)
    kept = feature_faithfulness(subject, saes, test, many, candidates, errors="keep", controls=5)
    assert kept.beats_null
    assert kept.value > 0.3
    lost = feature_faithfulness(subject, saes, test, many, candidates, complement=True, controls=5)
    assert lost.null is not None
    assert lost.value < lost.null.value
