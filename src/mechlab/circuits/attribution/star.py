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

from mechlab.circuits.attribution.backward import Step
from mechlab.circuits.attribution.clean import CleanRun, per_head


def star_scores(clean: CleanRun) -> Float[Tensor, "node batch"]:
    """|Scores| per prompt, of all sources and then all readers."""
    shape, moved = clean.forward.shape, _moved(clean)

    def attention(step: Step, number: int) -> tuple[Tensor, Tensor]:
        assert step.wrote is not None
        by_query, by_key = moved[number]
        keys = per_head(by_key * step.wrote)
        return per_head(by_query * step.wrote), keys.view(shape.n_key_value_heads, -1, keys.shape[1]).sum(1)

    layer_of = torch.full((shape.n_sources + shape.n_readers,), -1)
    for stage in shape.stages:
        if stage.kind in ("attention", "mlp"):
            layer_of[stage.writes] = stage.layer
            layer_of[shape.n_sources :][stage.readers] = stage.layer
    total, counts = torch.zeros(()), torch.zeros(len(layer_of))
    # With one layer there is no other to hold, so nothing is.
    layers = list(range(shape.n_layers)) if shape.n_layers > 1 else [shape.n_layers]
    for layer in layers:
        scores = clean.scores(held=layer, retain=layer != layers[-1], attention=attention).abs()
        elsewhere = layer_of != layer
        total = total.to(scores) + scores * elsewhere[:, None].to(scores)
        counts += elsewhere
    return total / counts.clamp(min=1)[:, None].to(total)


@torch.no_grad()
def _moved(clean: CleanRun) -> dict[int, tuple[Tensor, Tensor]]:
    """Per attention trace, how far its mixed values move when the queries, or the keys, are ablated."""
    found = {}
    for number, trace in enumerate(clean.traces):
        if trace.stage.kind == "attention":
            (q, k, v), (dq, dk, _) = trace.parts, clean.changes[number]
            attention, z = clean.forward.attentions[trace.stage.layer], trace.wrote
            assert z is not None
            by_query = z - clean.forward.attend(attention, q - dq, k, v)
            found[number] = (by_query, z - clean.forward.attend(attention, q, k - dk, v))
    return found
