"""Does a circuit do what the model does? The metric of circuits, and faithfulness."""

from __future__ import annotations

from bisect import bisect_left
from functools import partial

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechlab import scores
from mechlab.circuits.ablation import Ablation
from mechlab.circuits.graph import Graph
from mechlab.circuits.masked import Masked
from mechlab.circuits.metrics import default_metric, metric_named
from mechlab.circuits.runs import BATCH_SIZE, paired_runs
from mechlab.data.tasks import Task
from mechlab.models.forward import DecomposedForward
from mechlab.scores import Score


def run_circuits(
    forward: DecomposedForward,
    task: Task,
    masks: Bool[Tensor, "circuit n_sources n_readers *pos"],
    *,
    metric: str | None = None,
    ablation: Ablation | None = None,
    batch_size: int = BATCH_SIZE,
) -> tuple[Float[Tensor, "circuit n"], Float[Tensor, "n"], Float[Tensor, "n"]]:
    """The metric per prompt of every circuit, of the whole model m(M), and of no circuit m(∅).

    Args:
        ablation: what edges outside a circuit carry; their source's value on the corrupt prompt when
            None. m(∅) is the run in which every edge carries that: with resampling the corrupt run,
            read with the clean prompts' answers.

    Raises MechlabError for an unknown metric, and when the ablation's constants do not fit the prompts.
    """
    measure = metric_named(metric or default_metric(task))
    ablation = ablation or Ablation("resample")
    columns, whole, empty = [], [], []
    for pair in paired_runs(forward, task, measure, batch_size):
        masked = Masked(forward, pair.clean, ablation.values(pair), pair.task.positions["end"])
        columns.append(masked.metric(masks, pair))
        whole.append(pair.clean.metric)
        if ablation.kind == "resample":
            empty.append(pair.corrupt.metric)
        else:
            none = torch.zeros(1, *masked.real.shape, dtype=torch.bool)
            empty.append(masked.metric(none, pair)[0])
    return torch.cat(columns, 1).cpu(), torch.cat(whole).cpu(), torch.cat(empty).cpu()


def random_circuits(
    graph: Graph, n_edges: int, n_circuits: int, seed: int = 0
) -> Bool[Tensor, "circuit n_sources n_readers"]:
    """Random circuits of at least ``n_edges`` edges, every one of them on a path.

    A found circuit holds only edges between "embed" and the logits; edges drawn at random mostly
    lie on no such path and do nothing. So the model's edges are put in a random order and the
    fewest of them taken whose connected part has ``n_edges`` edges: that part is the circuit.
    """
    generator = torch.Generator().manual_seed(seed)
    edges = graph.real.nonzero()
    masks = torch.zeros(n_circuits, *graph.real.shape, dtype=torch.bool)
    for mask in masks:
        order = edges[torch.randperm(len(edges), generator=generator)]
        # More edges never disconnect any: the size grows with the prefix, so halving finds it.
        prefixes = range(len(edges))
        first = bisect_left(prefixes, n_edges, key=partial(_connected_size, graph, order))
        mask |= graph.connected(_prefix(graph, order, first))
    return masks


def _connected_size(graph: Graph, order: Int[Tensor, "edge 2"], count: int) -> int:
    return int(graph.connected(_prefix(graph, order, count)).sum())


def _prefix(graph: Graph, order: Int[Tensor, "edge 2"], count: int) -> Bool[Tensor, "n_sources n_readers"]:
    mask = torch.zeros_like(graph.real)
    rows, columns = order[:count].T
    mask[rows, columns] = True
    return mask


def faithfulness(
    forward: DecomposedForward,
    task: Task,
    mask: Bool[Tensor, "n_sources n_readers"],
    *,
    metric: str | None = None,
    ablation: Ablation | None = None,
    controls: int = 20,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
) -> Score:
    """Share of the model's metric that a circuit keeps: (m(C) − m(∅)) / (m(M) − m(∅)).

    A ratio of means over prompts (a mean of ratios explodes where one prompt's gap is near
    zero; Miller et al. 2024), with a bootstrap interval over prompts. It can exceed 1; NaN where m(M)
    equals m(∅). The
    null is the same ratio for ``controls`` random connected circuits of at least as many edges
    (see ``random_circuits``), with an interval over circuits; no theory says what it should be.
    """
    mask = mask.cpu()
    graph = Graph(forward.shape)
    n_edges = int((mask & graph.real).sum())
    masks = torch.cat([mask[None], random_circuits(graph, n_edges, controls, seed)])
    values, whole, empty = run_circuits(
        forward, task, masks, metric=metric, ablation=ablation, batch_size=batch_size
    )
    kept, gap = (values - empty).double().numpy(), (whole - empty).double().numpy()
    null = None
    if controls > 0:
        totals = np.stack([kept[1:].sum(1), np.full(controls, gap.sum())], 1)
        null = scores.score("faithfulness of random circuits", totals, scores.mean, seed=seed)
    return scores.score("faithfulness", np.stack([kept[0], gap], 1), scores.mean, seed=seed, null=null)
