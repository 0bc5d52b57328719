"""What feature circuits and attribution graphs accept: architectures, sites, types; and what they refuse."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from feature_models import D_MODEL, clt_over, filled, sae_at, subject_of, transcoder_at
from torch import nn

import mechlab
from mechlab.activations.live import live
from mechlab.circuits.features.attribution_graph import attribution_graph
from mechlab.circuits.features.edges import feature_graph
from mechlab.circuits.features.effects import feature_effects
from mechlab.circuits.features.evaluate import feature_faithfulness, run_feature_circuits
from mechlab.circuits.features.graph import FeatureNode, from_json
from mechlab.circuits.features.replacement import replacement_model
from mechlab.circuits.features.sites import mask_of, saes_at, top_nodes
from mechlab.circuits.features.suppression import suppression_agreement, suppression_effects
from mechlab.data.corpus import open_corpus
from mechlab.data.tasks import Task
from mechlab.errors import MechlabError
from mechlab.models.sites import site_table
from mechlab.models.subject import Subject
from mechlab.sae.dictionary import train_saes
from mechlab.sae.registry import architecture
from mechlab.sae.splice import At
from mechlab.sae.topk import TopKConfig

SITES = ("blocks.0.hook_resid_post", "blocks.1.hook_mlp_out")
TOKENS = torch.tensor([0, 7, 3, 3, 21, 9])
Make, MakeTask = Callable[..., nn.Module], Callable[..., Task]


def chain_rule_holds(subject: Subject, dictionaries: list[At], task: Task, slack: float = 1.0) -> None:
    effects = feature_effects(subject, dictionaries, task, method="attribution", ablation="zero")
    nodes = top_nodes(subject, effects, 10_000)
    graph = feature_graph(subject, dictionaries, task, nodes, ablation="zero", batch_size=2)
    scores = torch.tensor([node.score for node in nodes])
    assert float(scores.abs().max()) > 1e-2
    torch.testing.assert_close(graph.scores.sum(1), scores, atol=2e-4 * slack, rtol=2e-3 * slack)


@pytest.mark.parametrize("arch", ["abstopk", "batchtopk", "matryoshka", "relu", "gated", "matching_pursuit"])
def test_every_architecture_has_its_own_gradient(
    random_module: Make, random_task: MakeTask, arch: str
) -> None:
    """Edges out of a node add up to its effect only where codes have their right derivative."""
    sites = (*SITES, "blocks.1.hook_resid_post")
    k = {"k": 5} if arch in ("abstopk", "batchtopk", "matryoshka") else {}
    config = architecture(arch).Config.model_validate({"d_sae": 12, **k})
    dictionaries = [
        At(filled(architecture(arch)(config, D_MODEL), n), (site,), (site,)) for n, site in enumerate(sites)
    ]
    chain_rule_holds(subject_of(random_module("gpt2")), dictionaries, random_task(n=3, pos=5))


def test_heads_and_position_embeddings_are_sites(random_module: Make, random_task: MakeTask) -> None:
    subject, task = subject_of(random_module("gpt2")), random_task(n=3, pos=5)
    config = TopKConfig(d_sae=12, k=4)
    heads = [f"blocks.1.attn.hook_z:{head}" for head in (3, 1)]
    narrow = [At(filled(architecture("topk")(config, 6), n), (h,), (h,)) for n, h in enumerate(heads)]
    given = [sae_at("blocks.1.hook_resid_post", d_sae=12), *narrow, sae_at("hook_pos_embed", d_sae=12)]
    assert list(saes_at(subject, given)) == ["hook_pos_embed", *heads, "blocks.1.hook_resid_post"]
    chain_rule_holds(subject, given, task)


def test_a_half_precision_model_keeps_the_chain_rule(random_module: Make, random_task: MakeTask) -> None:
    subject = subject_of(random_module("llama").to(torch.bfloat16))
    chain_rule_holds(subject, [sae_at(site, d_sae=12) for site in SITES], random_task(n=3, pos=5), 20.0)


@pytest.fixture(scope="module")
def fable() -> Subject:
    return mechlab.load_model("fable", device="cpu")


@pytest.mark.slow
def test_a_dictionary_of_another_model_is_refused_by_name(fable: Subject, tmp_path: Path) -> None:
    pairs = {"sae": (SITES[0], ""), "transcoder": ("blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out")}
    configs = {
        tmp_path / name: TopKConfig(site=site, target=target, d_sae=128, k=4, tokens=2048, batch_size=512)
        for name, (site, target) in pairs.items()
    }
    sites = (SITES[0], *pairs["transcoder"])
    sae, transcoder = train_saes(live(fable, open_corpus(), sites), configs)
    module = copy.deepcopy(fable.module)
    module.transformer.wte.weight.data[0, 0] += 1
    other = Subject("sibling", module, fable.tokenizer, site_table(module))
    task = mechlab.make_task("ioi", fable.tokenizer, n=2, split="validation")
    assert feature_effects(fable, [sae], task, steps=1)
    assert replacement_model(fable, [transcoder], task.clean[0]).features
    with pytest.raises(MechlabError, match=r"trained on another model.*sibling"):
        feature_effects(other, [sae], task, steps=1)
    with pytest.raises(MechlabError, match=r"trained on another model.*sibling"):
        replacement_model(other, [transcoder], task.clean[0])


def test_places_that_no_dictionary_can_have_are_refused(random_module: Make, random_task: MakeTask) -> None:
    subject, sites = subject_of(random_module("gpt2")), SITES
    for given, wrong in (
        ([At(sae_at(SITES[0]).sae, sites, sites)], "does not reconstruct one site"),
        ([clt_over([0, 1])], "does not reconstruct one site"),
        ([sae_at("blocks.1.hook_resid")], "no site"),
    ):
        with pytest.raises(MechlabError, match=wrong):
            feature_effects(subject, given, random_task())
    clt = clt_over([0, 2])
    backwards = At(clt.sae, clt.inputs[::-1], clt.outputs[::-1])
    for transcoder, tokens, wrong in (
        (At(sae_at(SITES[0]).sae, sites, sites), TOKENS, "stand for an MLP"),
        (backwards, TOKENS, "stand for an MLP"),
        (transcoder_at(1, d_model=20), TOKENS, "another size than blocks.1.mlp.hook_in: 20"),
        (transcoder_at(1), TOKENS + 20, "no embedding: 41"),
        (transcoder_at(1), TOKENS[:0], "not one row of tokens"),
    ):
        with pytest.raises(MechlabError, match=wrong):
            replacement_model(subject, [transcoder], tokens)


def test_nodes_that_do_not_exist_are_refused(random_module: Make, random_task: MakeTask) -> None:
    subject, task, at = subject_of(random_module("gpt2")), random_task(), sae_at(SITES[0])
    node = FeatureNode("feature", SITES[0], 0, None, 3)
    n_pos = task.clean.shape[1]
    for wrong in (
        replace(node, index=40),
        replace(node, index=-1),
        replace(node, position=n_pos),
        replace(node, kind="error"),
        FeatureNode("error", SITES[0], 0, -1),
    ):
        with pytest.raises(MechlabError, match="node does not exist"):
            feature_graph(subject, [at], task, [wrong])
        like = {SITES[0]: torch.zeros(1 if wrong.position is None else n_pos, 41)}
        with pytest.raises(MechlabError, match="no such node"):
            mask_of([wrong], like)
    with pytest.raises(MechlabError, match="given twice"):
        feature_graph(subject, [at], task, [node, node])
    with pytest.raises(MechlabError, match="no node was given"):
        feature_graph(subject, [at], task, [])
    with pytest.raises(MechlabError, match="unknown ablation: mean"):
        feature_graph(subject, [at], task, [node], ablation="mean")
    with pytest.raises(MechlabError, match="no gradient"):
        feature_graph(subject, [at], task, [node], metric="accuracy")
    with pytest.raises(MechlabError, match="no gradient"):
        feature_effects(subject, [at], task, metric="accuracy")


def test_masks_must_fit(random_module: Make, random_task: MakeTask) -> None:
    subject, task = subject_of(random_module("gpt2")), random_task()
    given = [sae_at(site) for site in SITES]
    for mask in (
        torch.zeros(3, 41, dtype=torch.bool),
        torch.zeros(1, 60, dtype=torch.bool),
        torch.zeros(1, 40, dtype=torch.bool),
        torch.zeros(1, 41),
    ):
        with pytest.raises(MechlabError, match="mask does not fit"):
            run_feature_circuits(subject, given, task, [{SITES[0]: mask}])
    some = {site: torch.ones(1, 41, dtype=torch.bool) for site in SITES}
    none = {site: torch.zeros(1, 41, dtype=torch.bool) for site in SITES}
    with pytest.raises(MechlabError, match="fewer candidates"):
        feature_faithfulness(subject, given, task, some, none)
    with pytest.raises(MechlabError, match="leave out a site"):
        feature_faithfulness(subject, given, task, {SITES[0]: some[SITES[0]]}, some)


@pytest.mark.parametrize(
    "text", ["null", '{"nodes": ["x"]}', '{"nodes": [], "sources": [4], "readers": [], "edges": []}']
)
def test_damaged_graphs_are_refused(text: str) -> None:
    with pytest.raises(MechlabError, match="cannot be read"):
        from_json(text)


def test_counts_that_make_no_sense_are_refused(random_module: Make, random_task: MakeTask) -> None:
    subject = subject_of(random_module("gpt2"))
    replacement = replacement_model(subject, [transcoder_at(1)], TOKENS)
    graph, task = attribution_graph(replacement, [4]), random_task()
    several = replace(
        task,
        answers=task.answers[:, None],
        wrong=task.wrong[:, None],
        positions={"end": task.positions["end"][:, None]},
    )
    for call, wrong in (
        (lambda: attribution_graph(replacement, batch_size=-1), "batch size"),
        (lambda: suppression_effects(replacement, graph, graph.sources, batch_size=0), "batch size"),
        (lambda: attribution_graph(replacement, [4, 4]), "given twice"),
        (lambda: suppression_agreement(subject, [transcoder_at(1)], task, n_features=1), "two features"),
        (lambda: suppression_agreement(subject, [transcoder_at(1)], several), "several positions"),
    ):
        with pytest.raises(MechlabError, match=wrong):
            call()
