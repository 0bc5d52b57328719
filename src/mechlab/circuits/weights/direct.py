"""Direct logit attribution: how much each source adds to the logit difference by itself.

With the final norm's scale σ frozen at its value in the run, the logits are linear in the stream, so

    logit difference = Σ_sources (source/σ, centred, · γ) · (u_right − u_wrong) + constant

where the constant holds attention output biases, the final norm's bias and the unembedding's (Elhage et
al. 2021; Wang et al. 2022, who look for name movers with it). It is an account of the logits, not of
causes: a source whose effect goes through later layers shows nothing.

This needs a run. A head's part is also split by the position that it attends to.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mechlab.circuits.runs import BATCH_SIZE, batches
from mechlab.circuits.weights.attention import attention_patterns
from mechlab.data.tasks import Task
from mechlab.models.forward import DecomposedForward
from mechlab.models.weights import AnyNorm, Norm, Weights, read_weights


@dataclass(frozen=True)
class DirectLogits:
    """Direct contributions to the logit difference of each prompt, in logits.

    Where a task reads several positions these are means over them.

    Attributes:
        sources: of every source, in graph order.
        constant: of what belongs to no source.
        positions: of every head, by the position attended to; sums over positions to its row of ``sources``.
    """

    sources: Float[Tensor, "source n"]
    constant: Float[Tensor, "n"]
    positions: Float[Tensor, "layer head n pos"]


@torch.no_grad()
def direct_logits(module: nn.Module, task: Task, *, batch_size: int = BATCH_SIZE) -> DirectLogits:
    """Direct logit attribution of every source on the clean prompts.

    ``sources.sum(0) + constant`` is the logit difference. Raises MechlabError for a model without a
    decomposed forward.
    """
    forward, weights = DecomposedForward(module), read_weights(module)
    parts = [_batch(forward, weights, batch) for batch in batches(task, batch_size, forward.device)]
    sources, constant, positions = zip(*parts, strict=True)
    return DirectLogits(torch.cat(sources, 1), torch.cat(constant), torch.cat(positions, 2))


def _batch(forward: DecomposedForward, weights: Weights, task: Task) -> tuple[Tensor, Tensor, Tensor]:
    run = forward.run(task.clean, stop=forward.shape.n_layers, keep=True)
    assert run.sources is not None
    # One row per position read: [n, read].
    ends, answers, wrong = (
        each[:, None] if each.ndim == 1 else each
        for each in (task.positions["end"], task.answers, task.wrong)
    )
    rows = torch.arange(len(task), device=forward.device)[:, None]
    basis = torch.eye(run.x.shape[-1], dtype=run.x.dtype, device=forward.device)
    bias = weights.unembed(torch.zeros_like(basis[:1]))[0]
    unembed = (weights.unembed(basis) - bias).T
    direction = unembed[answers] - unembed[wrong]
    constant = (direction * _bias(weights.final_norm, basis[0])).sum(-1) + bias[answers] - bias[wrong]

    # The frozen norm moved onto the direction: what a stream's entries are multiplied by.
    along = _frozen(weights.final_norm, run.x[rows, ends], direction)
    for attention in weights.attentions:
        if attention.output_bias is not None:
            constant = constant + (along * attention.output_bias).sum(-1)
    sources = torch.einsum("snrd,nrd->snr", run.sources[:, rows, ends], along)
    positions = []
    traces = forward.run(task.clean, stop=forward.shape.n_layers, trace=True).traces
    values = [trace.parts[2] for trace in traces if trace.stage.kind == "attention"]
    for pattern, value, attention in zip(
        attention_patterns(forward, task.clean), values, weights.attentions, strict=True
    ):
        group = pattern.shape[1] // value.shape[2]
        written = torch.einsum("nrd,hkd->nrhk", along, attention.output)
        each = torch.einsum("nphk,nrhk->nrhp", value.repeat_interleave(group, 2), written)
        attended = pattern[rows, :, ends]  # [n, read, head, pos]
        positions.append((each * attended).mean(1).transpose(0, 1).cpu())
    return sources.mean(-1).cpu(), constant.mean(-1).cpu(), torch.stack(positions)


def _bias(norm: AnyNorm, like: Float[Tensor, "d_model"]) -> Float[Tensor, "d_model"]:
    return torch.zeros_like(like) if not isinstance(norm, Norm) or norm.bias is None else norm.bias


def _frozen(
    norm: AnyNorm, x: Float[Tensor, "n read d_model"], direction: Float[Tensor, "n read d_model"]
) -> Float[Tensor, "n read d_model"]:
    """What gives, times any stream, the direction's part in that stream normed at the scale of ``x``."""
    if not isinstance(norm, Norm):
        return direction
    along = direction * norm.weight
    if norm.centred:
        along = along - along.mean(-1, keepdim=True)
    return along * norm.scale(x)[1]
