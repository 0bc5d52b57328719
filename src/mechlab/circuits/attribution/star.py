"""AtP*: attribution patching with two repairs.

Kramár et al. (2024, *AtP\\*: An efficient and scalable method for localizing LLM behaviour to components*):

- QK fix. The score of a query or key is (z − z') · ∂m/∂z, where z' are its head's mixed values with the
  softmax computed anew from the ablated queries or keys: a saturated softmax has no gradient, but may change
  all the same. The paper changes one position's key at a time; here all positions change at once,
  because a node of the graph is a head at all positions.
- GradDrop. A score is the mean of |score| over gradients that each hold the outputs of one layer at
  their clean values, so that effects along different paths do not cancel in all of them. Holding a node's
  own layer leaves it no effect; that one is left out of its mean, the paper's factor 1/(L − 1).

Scores are per prompt and unsigned. Costs one backward per layer.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from mechlab.circuits.attribution.clean import CleanRun, per_head


def star_scores(clean: CleanRun) -> Float[Tensor, "node batch"]:
    """|Scores| per prompt, of all sources and then all readers."""
    shape = clean.forward.shape
    changes, held = _attention_changes(clean), [-1]
    hooks = [
        trace.wrote.register_hook(  # type: ignore[no-untyped-call]
            lambda g, layer=trace.stage.layer: torch.zeros_like(g) if held[0] == layer else g
        )
        for trace in clean.traces
        if trace.wrote is not None
    ]
    layer_of = torch.full((shape.n_sources + shape.n_readers,), -1)
    for stage in shape.stages:
        if stage.kind in ("attention", "mlp"):
            layer_of[stage.writes] = stage.layer
            layer_of[shape.n_sources :][stage.readers] = stage.layer
    total, counts = None, torch.zeros(len(layer_of))
    for layer in range(shape.n_layers):
        held[0] = layer
        gradients = clean.gradients(retain=layer < shape.n_layers - 1)
        scores = clean.linear(gradients)
        attentions = [stage for stage in shape.stages if stage.kind == "attention"]
        for stage, (by_query, by_key), g in zip(attentions, changes, gradients.mixed, strict=True):
            queries, keys = per_head(by_query * g), per_head(by_key * g)
            keys = keys.view(shape.n_key_value_heads, -1, keys.shape[1]).sum(1)
            first = shape.n_sources + stage.readers.start
            scores[first : first + len(queries) + len(keys)] = torch.cat([queries, keys])
        elsewhere = layer_of != layer
        scores = scores.abs() * elsewhere[:, None].to(scores)
        total = scores if total is None else total + scores
        counts += elsewhere
    for hook in hooks:
        hook.remove()
    assert total is not None
    return total / counts.clamp(min=1)[:, None].to(total)


@torch.no_grad()
def _attention_changes(clean: CleanRun) -> list[tuple[Tensor, Tensor]]:
    """Per layer, how far the mixed values move when the queries, or the keys, are ablated."""
    found, first = [], 0
    for trace in clean.traces:
        if trace.stage.kind == "attention":
            (q, k, v), (dq, dk, _) = clean.parts[first : first + 3], clean.changes[first : first + 3]
            attention, z = clean.forward.attentions[trace.stage.layer], trace.wrote
            assert z is not None
            by_query = z - clean.forward.attend(attention, q - dq, k, v)
            found.append((by_query, z - clean.forward.attend(attention, q, k - dk, v)))
        first += len(trace.parts)
    return found
