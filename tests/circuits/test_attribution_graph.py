"""Attribution graphs against the replacement model run forward, on every architecture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from feature_models import clt_over, linear_forward, subject_of, transcoder_at
from torch import Tensor, nn

from mechlab.circuits.features.attribution_graph import attribution_graph
from mechlab.circuits.features.graph import FeatureGraph
from mechlab.circuits.features.replacement import Replacement, replacement_model
from mechlab.errors import MechlabError
from mechlab.models.subject import load_model
from mechlab.sae.splice import At

TOKENS = torch.tensor([0, 7, 3, 3, 21, 9])
DICTIONARIES: dict[str, Callable[[], list[At]]] = {
    "topk": lambda: [transcoder_at(layer) for layer in range(3)],
    "skip": lambda: [transcoder_at(layer, skip=True) for layer in range(3)],
    "relu-gap": lambda: [transcoder_at(0, "relu"), transcoder_at(2, "relu")],
    "jumprelu": lambda: [transcoder_at(layer, "jumprelu") for layer in range(3)],
    "gated": lambda: [transcoder_at(layer, "gated", skip=True) for layer in range(3)],
    "clt": lambda: [clt_over([0, 1, 2])],
}
Make = Callable[..., nn.Module]


def replaced(make: Make, architecture: str, kind: str, seed: int = 0) -> Replacement:
    subject = subject_of(make(architecture, seed=seed, scale=0.2))
    return replacement_model(subject, DICTIONARIES[kind](), TOKENS)


def ones(replacement: Replacement) -> dict[int, Tensor]:
    return {layer: torch.ones_like(f.codes.values) for layer, f in replacement.features.items()}


@pytest.mark.parametrize("kind", DICTIONARIES)
def test_on_its_prompt_the_replacement_model_is_the_model(
    random_module: Make, architecture: str, kind: str
) -> None:
    replacement = replaced(random_module, architecture, kind)
    found, logits = linear_forward(replacement, replacement.embedded, ones(replacement), replacement.errors)
    own = replacement.subject.logits(TOKENS[None])[0]
    torch.testing.assert_close(logits, own, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(replacement.logits, own, atol=1e-4, rtol=1e-4)
    for layer, features in replacement.features.items():
        torch.testing.assert_close(found[layer], features.codes.values, atol=1e-4, rtol=1e-4)
    assert sum(int((f.codes.values != 0).sum()) for f in replacement.features.values()) > 20


@pytest.mark.parametrize("kind", DICTIONARIES)
def test_edges_into_a_reader_sum_to_its_value(random_module: Make, architecture: str, kind: str) -> None:
    replacement = replaced(random_module, architecture, kind, seed=1)
    graph = attribution_graph(replacement, batch_size=17)
    values, constants = graph.values()[graph.readers], graph.values("constant")[graph.readers]
    torch.testing.assert_close(graph.scores.sum(0) + constants, values, atol=1e-4, rtol=1e-4)
    logits = replacement.logits[-1]
    for node in graph.nodes:
        if node.kind == "logit":
            assert node.value == pytest.approx(float(logits[node.index] - logits.mean()), abs=1e-4)
    assert int(graph.of_kind("logit").sum()) >= 1


@pytest.mark.parametrize("kind", ["skip", "relu-gap", "clt"])
def test_an_edge_is_what_its_source_adds_in_a_forward_run(
    random_module: Make, architecture: str, kind: str
) -> None:
    replacement = replaced(random_module, architecture, kind)
    graph = attribution_graph(replacement, [4, 11], position=-2)
    found, logits = linear_forward(replacement, replacement.embedded, ones(replacement), replacement.errors)
    centred = logits - logits.mean(-1, keepdim=True)
    active = {layer: f.codes.values != 0 for layer, f in replacement.features.items()}
    for number in range(0, len(graph.nodes) - 2, 7):
        node = graph.nodes[number]
        embedded, errors, codes = replacement.embedded.clone(), replacement.errors.clone(), ones(replacement)
        assert node.position is not None
        if node.kind == "embedding":
            embedded[node.position] = 0
        elif node.kind == "error":
            errors[node.layer, node.position] = 0
        else:
            own = replacement.features[node.layer].codes
            slot = (own.indices[node.position] == node.index) & (own.values[node.position] != 0)
            codes[node.layer][node.position, slot] = 0
        without, out = linear_forward(replacement, embedded, codes, errors)
        lost = [(found[layer] - without[layer])[active[layer]] for layer in sorted(found)]
        lost.append((centred - out + out.mean(-1, keepdim=True))[-2, [4, 11]])
        torch.testing.assert_close(graph.scores[number], torch.cat(lost), atol=1e-4, rtol=1e-4)


def test_batches_of_readers_change_nothing(random_module: Make) -> None:
    replacement = replaced(random_module, "llama", "skip")
    whole, parts = attribution_graph(replacement), attribution_graph(replacement, batch_size=3)
    torch.testing.assert_close(whole.scores, parts.scores, atol=1e-5, rtol=1e-4)
    assert whole.names == parts.names


def test_the_likeliest_outputs_are_taken_up_to_a_share(random_module: Make) -> None:
    replacement = replaced(random_module, "gpt2", "topk")
    graph = attribution_graph(replacement)
    tokens = [node.index for node in graph.nodes if node.kind == "logit"]
    probability = replacement.logits[-1].softmax(-1)
    assert probability[tokens].sum() >= 0.95 or len(tokens) == 10
    assert len(tokens) == 1 or probability[tokens[:-1]].sum() < 0.95
    assert tokens == probability.argsort(descending=True)[: len(tokens)].tolist()
    assert float(graph.values("score").sum()) == pytest.approx(1.0, abs=1e-5)


def test_names_tell_layer_latent_and_position(random_module: Make) -> None:
    graph: FeatureGraph = attribution_graph(replaced(random_module, "gpt2", "topk"), [4])
    assert graph.names[0] == "embed@0"
    assert graph.names[-1] == "logits/t4@5"
    assert "blocks.1.hook_mlp_out/error@3" in graph.names
    feature = next(node for node in graph.nodes if node.kind == "feature")
    assert feature.name == f"blocks.0.hook_mlp_out/f{feature.index}@{feature.position}"
    assert len(set(graph.names)) == len(graph.names)


def test_what_cannot_be_replaced_is_refused(random_module: Make) -> None:
    subject = subject_of(random_module("gpt2"))
    one = transcoder_at(1)
    crossed = At(one.sae, one.inputs, ("blocks.2.hook_mlp_out",))
    for given, wrong in (
        ([], "no transcoder"),
        ([one, one], "two dictionaries"),
        ([crossed], "stand for an MLP"),
    ):
        with pytest.raises(MechlabError, match=wrong):
            replacement_model(subject, given, TOKENS)
    with pytest.raises(MechlabError, match="different types"):
        replacement_model(subject, [At(transcoder_at(1).sae.double(), one.inputs, one.outputs)], TOKENS)
    replacement = replacement_model(subject, [one], TOKENS)
    with pytest.raises(MechlabError, match="no position"):
        attribution_graph(replacement, position=6)
    with pytest.raises(MechlabError, match="no logit"):
        attribution_graph(replacement, [30])
    with pytest.raises(MechlabError, match="no output token"):
        attribution_graph(replacement, [])


def test_a_real_model_with_grouped_queries(stories_model: Path) -> None:
    # In double precision (but for the softmax): what random transcoders write is far more than the
    # MLPs do, and errors take it back.
    subject = load_model(stories_model, device="cpu", dtype=torch.float64)
    tokens = subject.tokens("Once upon a time there was a little dog")
    d_model, n_layers = subject.site("blocks.0.hook_mlp_out").dim, subject.module.config.num_hidden_layers
    transcoders = [transcoder_at(layer, skip=True, d_model=d_model) for layer in range(n_layers)]
    for each in transcoders:
        each.sae.double()
    replacement = replacement_model(subject, transcoders, tokens)
    _, logits = linear_forward(replacement, replacement.embedded, ones(replacement), replacement.errors)
    torch.testing.assert_close(logits, subject.logits(tokens[None])[0], atol=1e-4, rtol=1e-4)
    graph = attribution_graph(replacement)
    values, constants = graph.values()[graph.readers], graph.values("constant")[graph.readers]
    torch.testing.assert_close((graph.scores.sum(0) + constants).float(), values, atol=1e-4, rtol=1e-4)


@pytest.mark.gpu
def test_on_a_gpu(random_module: Make) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    found = []
    for device in ("cpu", "cuda"):
        subject = subject_of(random_module("llama", scale=0.2).to(device))
        graph = attribution_graph(replacement_model(subject, DICTIONARIES["skip"](), TOKENS), [4])
        found.append(graph.scores)
    torch.testing.assert_close(found[0], found[1], atol=1e-4, rtol=1e-3)
