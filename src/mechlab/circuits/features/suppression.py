"""Does the model do what its attribution graph says? Features suppressed in the model itself.

A graph is exact about the replacement model; that it holds for the model has to be seen. Suppressing
a feature takes what it adds to the MLP output(s) away at its position, errors kept, and everything
after it (attention patterns, norms, MLPs) is the model's own again (Ameisen et al. 2025, validation
by perturbation). What a feature does to attention patterns is not in the graph, so agreement is poor
where that is how it acts, most of all early in the model; the last layer's features agree best.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechlab import scores
from mechlab.circuits.features.attribution_graph import attribution_graph
from mechlab.circuits.features.graph import FeatureGraph
from mechlab.circuits.features.influence import total_effects
from mechlab.circuits.features.replacement import Replacement, replacement_model
from mechlab.data.tasks import Task
from mechlab.errors import MechlabError
from mechlab.interventions.edit import editing
from mechlab.models.subject import Subject
from mechlab.sae.splice import Placed
from mechlab.scores import Score


@dataclass(frozen=True)
class Agreement:
    """How well predicted effects of suppressing features agree with measured ones.

    Attributes:
        rank: Spearman's rank correlation over the features of a prompt, mean over the prompts that
            have one.
        sign: share of the features whose effect has the sign predicted.

    Intervals are over prompts; the null pairs predictions with the effects of other features.
    """

    rank: Score
    sign: Score


@torch.no_grad()
def suppression_effects(
    replacement: Replacement, graph: FeatureGraph, nodes: Int[Tensor, "suppressed"], *, batch_size: int = 64
) -> Float[Tensor, "suppressed logit"]:
    """What the graph's logits (less the mean logit) lose in the model when each feature goes, in logits.

    ``total_effects`` at the rows of ``nodes`` predicts it. ``batch_size`` features run at a time.
    Raises MechlabError for a node that is not an active feature of the prompt, or a batch size below 1.
    """
    if batch_size < 1:
        raise MechlabError("batch size must be at least 1", batch_size)
    outputs = [node for node in graph.nodes if node.kind == "logit"]
    at, tokens = outputs[0].position, [node.index for node in outputs]
    before = _centred(replacement.logits[at])[tokens]
    found = []
    for first in range(0, len(nodes), batch_size):
        part = nodes[first : first + batch_size]
        removed = _removed(replacement, graph, part)
        prompts = replacement.tokens.expand(len(part), -1)
        with contextlib.ExitStack() as stack:
            for site, gone in removed.items():
                stack.enter_context(
                    editing(replacement.subject, site, functools.partial(torch.sub, other=gone))
                )
            after = _centred(replacement.subject.logits(prompts)[:, at])[:, tokens]
        found.append(before - after)
    return torch.cat(found).cpu() if found else torch.zeros(0, len(outputs))


def suppression_agreement(
    subject: Subject,
    transcoders: Sequence[Placed],
    task: Task,
    *,
    n_features: int = 64,
    seed: int = 0,
) -> Agreement:
    """Predicted and measured effects on the logit difference of a task's clean prompts.

    Args:
        n_features: of each prompt the features with the largest predicted effects.
        seed: of the shuffled null and the bootstrap.

    Raises MechlabError for fewer than two features, a task that reads several positions, and as
    ``replacement_model`` does.
    """
    if n_features < 2:
        raise MechlabError("agreement needs at least two features", n_features)
    if task.answers.ndim > 1:
        raise MechlabError("task reads several positions", task.name, "use one with a single answer")
    generator = torch.Generator().manual_seed(seed)
    rows: dict[str, list[tuple[float, float]]] = {"rank": [], "sign": [], "rank0": [], "sign0": []}
    for prompt, right, wrong, end in zip(
        task.clean, task.answers.tolist(), task.wrong.tolist(), task.positions["end"].tolist(), strict=True
    ):
        replacement = replacement_model(subject, transcoders, prompt)
        graph = attribution_graph(replacement, [right, wrong], position=end)
        gap = torch.tensor([1.0, -1.0])
        predicted = total_effects(graph) @ gap
        predicted[~graph.of_kind("feature")[graph.sources]] = 0
        chosen = predicted.abs().topk(min(n_features, len(predicted))).indices
        chosen = chosen[predicted[chosen] != 0]
        measured = suppression_effects(replacement, graph, graph.sources[chosen]) @ gap
        shuffled = measured[torch.randperm(len(measured), generator=generator)]
        for suffix, effects in (("", measured), ("0", shuffled)):
            rank = scores.rank_correlation(predicted[chosen].double().numpy(), effects.double().numpy())
            rows["rank" + suffix].append((0.0, 0.0) if np.isnan(rank) else (rank, 1.0))
            same = float((predicted[chosen].sign() == effects.sign()).sum())
            rows["sign" + suffix].append((same, float(len(chosen))))
    made = {}
    for name, title in (("rank", "rank agreement"), ("sign", "sign agreement")):
        sums, null = (np.array(rows[key], dtype=np.float64) for key in (name, name + "0"))
        control = scores.score(f"{title} of shuffled effects", null, scores.mean, seed=seed)
        made[name] = scores.score(title, sums, scores.mean, seed=seed, null=control)
    return Agreement(made["rank"], made["sign"])


def _centred(logits: Float[Tensor, "*batch d_vocab"]) -> Float[Tensor, "*batch d_vocab"]:
    return logits - logits.mean(-1, keepdim=True)


def _removed(
    replacement: Replacement, graph: FeatureGraph, nodes: Int[Tensor, "suppressed"]
) -> dict[str, Float[Tensor, "suppressed pos d_model"]]:
    """What each feature adds to the output of every MLP that it writes to."""
    removed: dict[str, Tensor] = {}
    for row, number in enumerate(nodes.tolist()):
        node = graph.nodes[number]
        features = replacement.features.get(node.layer) if node.kind == "feature" else None
        if features is None or node.position is None:
            raise MechlabError("node is not a feature", node.name, "suppress nodes of kind feature")
        own = features.codes
        slot = (own.indices[node.position] == node.index) & (own.values[node.position] != 0)
        if not bool(slot.any()):
            raise MechlabError(
                "feature is not active on the prompt", node.name, "take the prompt's own graph"
            )
        for layer, writes in features.writes.items():
            site = f"blocks.{layer}.hook_mlp_out"
            if site not in removed:
                removed[site] = replacement.embedded.new_zeros(len(nodes), *replacement.embedded.shape)
            removed[site][row, node.position] = writes[node.position][slot].sum(0)
    return removed
