"""Circuits of the bundled model, found once, and a graph of features."""

from __future__ import annotations

import functools
from dataclasses import replace

import torch

from mechlab.circuits.circuit import Circuit
from mechlab.circuits.features.graph import FeatureGraph, FeatureNode
from mechlab.circuits.find import find_circuit
from mechlab.data.tasks import Task, make_task
from mechlab.models.subject import Subject, load_model

CLASSES = {"a2.h2": "name mover", "a0.h0": "S-inhibition"}


@functools.cache
def prompts() -> tuple[Subject, Task, Task]:
    """The bundled model, with prompts to select on and held-out ones."""
    subject = load_model("fable")
    select, judge = (
        make_task("ioi", subject.tokenizer, n=24, split=split) for split in ("validation", "test")
    )
    return subject, select, judge


@functools.cache
def found(method: str = "eap-ig") -> Circuit:
    """The circuit of indirect objects, by edges' scores, or by following paths."""
    subject, select, judge = prompts()
    threshold = 0.05 if method == "path" else None
    made = find_circuit(subject, select, judge, method=method, threshold=threshold, controls=4, checked=6)
    return replace(made, classes=CLASSES)


def feature_graph(
    site: str = "blocks.2.hook_resid_post", other: str = "blocks.1.hook_resid_post"
) -> FeatureGraph:
    """Two tokens, three features of two sites and what one dictionary misses, and an output."""
    nodes = (
        FeatureNode("embedding", "embed", -1, 0, 5),
        FeatureNode("embedding", "embed", -1, 1, 6),
        FeatureNode("feature", other, 1, 0, 7, value=2.0, score=0.5),
        FeatureNode("feature", other, 1, 1, 8, value=1.0, score=-0.25),
        FeatureNode("error", other, 1, 1),
        FeatureNode("feature", site, 2, 1, 1, value=3.0, score=0.75),
        FeatureNode("logit", "logits", 4, 1, 9, score=1.0),
    )
    scores = torch.zeros(6, 4)  # readers: the three features and the output
    for row, column, score in [
        (0, 0, 1.5),
        (1, 1, -0.5),
        (2, 2, 0.75),
        (3, 2, 0.1),
        (4, 3, 0.2),
        (5, 3, 2.0),
    ]:
        scores[row, column] = score
    return FeatureGraph(nodes, torch.arange(6), torch.tensor([2, 3, 5, 6]), scores)
