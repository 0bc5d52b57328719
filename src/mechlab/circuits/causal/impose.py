"""Training a transformer so that a given causal model is its circuit.

Interchange intervention training (Geiger et al. 2022, *Inducing causal structure for interpretable
neural networks*) swaps the output of the node that is to hold a variable between base and source
prompts, and trains on the causal model's counterfactual output. By itself it leaves the other nodes
free to take part. The strict variant (Gupta et al. 2024, *InterpBench*) also resamples nodes outside the
circuit and trains the output not to change. Here strictness holds edge by edge, which implies it for
nodes: in every step a random set of the edges outside the circuit, every second time all of them,
carries the source prompt's values, and the answer must stay right.

In the first half of the training throw-away linear probes also read each variable from its node, with
a weight that falls to zero. They tell a node early what it is for, without which training takes far
longer; what is tested afterwards is the model without them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from mechlab.circuits.causal.problem import Problem, draw_pairs, tokens_of, values_of
from mechlab.circuits.graph import Graph
from mechlab.errors import MechlabError, near
from mechlab.models.forward import DecomposedForward, Stage
from mechlab.models.weights import Attention, Norm, Weights

RATE, WARM_UP, BATCH, PAIRS = 4e-3, 50, 64, 1024


@dataclass(frozen=True)
class Home:
    """Where a variable is to live: the output of a source of the graph ("a0.h1", "m0") at a position."""

    source: str
    position: int


def impose(
    module: Any,
    problem: Problem,
    homes: Mapping[str, Home],
    edges: Sequence[tuple[str, str]],
    *,
    seed: int = 0,
    steps: int = 700,
) -> float:
    """Train a GPT-2 in place until ``homes`` hold the variables and only ``edges`` matter.

    Args:
        module: a ``GPT2LMHeadModel`` in eval mode, on the CPU, whose parameters want gradients.
        homes: variable → its node.
        edges: the circuit, as (source, reader) names; all other edges are trained to have no effect
            when they carry their value on a random other prompt.
        steps: of AdamW with a cosine schedule, 64 pairs each.

    Returns:
        The loss, mean of the last 50 steps (nats).

    One seed, one result on the same machine and number of threads. Training inputs are those of the
    part "train". Raises MechlabError for unknown variables, nodes and edges.
    """
    if module.config.model_type != "gpt2":
        raise MechlabError("only GPT-2 models can be imposed on", module.config.model_type, "pass a GPT-2")
    for name in homes:
        if name not in problem.causal.names:
            raise MechlabError("causal model has no variable", name, near(name, problem.causal.names))
    live = _Live(module)
    graph = Graph(DecomposedForward(live).shape)
    outside = graph.real & ~graph.mask(list(edges))
    places = [(graph.source(home.source), home.position) for home in homes.values()]
    data = _draw(problem, tuple(homes), seed)
    generator = torch.Generator().manual_seed(seed)
    probes = nn.ModuleList(nn.Linear(module.config.n_embd, count) for count in data.counts)
    with torch.no_grad():
        for parameter in probes.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    parameters = [*module.parameters(), *probes.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    losses: list[float] = []
    for step in range(steps):
        for group in optimizer.param_groups:
            fall = 0.5 * (1 + math.cos(math.pi * step / steps))
            group["lr"] = RATE * min(1.0, (step + 1) / WARM_UP) * (0.02 + 0.98 * fall)
        rows = torch.randint(len(data.base), (BATCH,), generator=generator)
        share = 1.0 if step % 2 else float(torch.rand((), generator=generator))
        removed = outside & (torch.rand(outside.shape, generator=generator) < share)
        # Weights are read anew: their views belong to the graph of one backward pass.
        forward = DecomposedForward(live)
        swapped, strict, sources = _runs(forward, data, rows, places, removed)
        loss = _loss(swapped, data.answers[rows]) + _loss(strict, data.unchanged[rows])
        losses.append(float(loss.detach()))
        weight = max(0.0, 1 - 2 * step / steps)
        for probe, (row, position), values in zip(probes, places, data.values, strict=True):
            loss = loss + weight * F.cross_entropy(probe(sources[row][:, position]), values[rows])
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    return sum(losses[-50:]) / max(1, len(losses[-50:]))


def _loss(logits: Float[Tensor, "batch d_vocab"], answers: Int[Tensor, "batch"]) -> Tensor:
    # Smoothed labels have their optimum at finite logits, so that whatever moves them at all is punished.
    return F.cross_entropy(logits, answers, label_smoothing=0.1)


@dataclass(frozen=True)
class _Data:
    """Pairs for every variable, and as many in which nothing is swapped.

    ``which`` numbers the variable; ``values`` holds each variable's value on the base prompts as a
    class number, and ``counts`` how many there are.
    """

    which: Int[Tensor, "n"]
    base: Int[Tensor, "n pos"]
    source: Int[Tensor, "n pos"]
    answers: Int[Tensor, "n"]
    unchanged: Int[Tensor, "n"]
    values: tuple[Int[Tensor, "n"], ...]
    counts: tuple[int, ...]


def _draw(problem: Problem, names: tuple[str, ...], seed: int) -> _Data:
    causal, classes = problem.causal, values_of(problem, names)
    pairs, which = [], []
    for number, name in enumerate(names):
        pairs += draw_pairs(problem, (name,), n=PAIRS, seed=seed + number, split="train")
        which += [number] * PAIRS
    # The last rows are plain ones: no variable has their number.
    plain = draw_pairs(problem, names[:1], n=PAIRS, seed=seed + len(names), split="train")
    which += [len(names)] * PAIRS
    runs = [causal.run(pair.base) for pair in [*pairs, *plain]]
    return _Data(
        which=torch.tensor(which),
        base=tokens_of(problem, [pair.base for pair in [*pairs, *plain]]),
        source=tokens_of(problem, [next(iter(pair.sources.values())) for pair in [*pairs, *plain]]),
        answers=torch.tensor(
            [problem.token(pair.after) for pair in pairs] + [problem.token(pair.plain) for pair in plain]
        ),
        unchanged=torch.tensor([problem.token(pair.plain) for pair in [*pairs, *plain]]),
        values=tuple(torch.tensor([classes[name].index(run[name]) for run in runs]) for name in names),
        counts=tuple(len(classes[name]) for name in names),
    )


def _runs(
    forward: DecomposedForward,
    data: _Data,
    rows: Int[Tensor, "batch"],
    places: Sequence[tuple[int, int]],
    removed: Bool[Tensor, "n_sources n_readers"],
) -> tuple[
    Float[Tensor, "batch d_vocab"], Float[Tensor, "batch d_vocab"], Float[Tensor, "source batch pos d_model"]
]:
    """Logits with the variables swapped, logits with edges removed, and the sources of the latter run."""
    base, which = data.base[rows], data.which[rows]
    end = torch.full((len(rows),), base.shape[1] - 1)
    kept: list[Tensor] = []

    def record(stage: Stage, outputs: Tensor) -> Tensor:
        kept.append(outputs)
        return outputs

    forward.run(data.source[rows], write=record)
    source = torch.cat(kept)

    def exchange(stage: Stage, outputs: Tensor) -> Tensor:
        outputs = outputs.clone()
        for number, (row, position) in enumerate(places):
            place = row - stage.writes.start
            if 0 <= place < len(outputs):
                outputs[place, :, position] = torch.where(
                    (which == number)[:, None], source[row][:, position], outputs[place, :, position]
                )
        return outputs

    swapped = forward.run(base, positions=end, write=exchange).logits
    kept.clear()
    cut = removed.to(source.dtype)

    def read(stage: Stage, stream: Tensor) -> Tensor:
        gap = torch.cat(kept) - source[: stage.upstream]
        return stream - torch.einsum("sr,sbpd->rbpd", cut[: stage.upstream, stage.readers], gap)

    strict = forward.run(base, positions=end, read=read, write=record).logits
    assert swapped is not None
    assert strict is not None
    return swapped, strict, torch.cat(kept)


class _Live(nn.Module):
    """A GPT-2 whose weights the decomposed forward reads with their gradients."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module = module

    def read_weights(self) -> Weights:
        body, heads = self.module.transformer, self.module.config.n_head

        def norm(layer: Any) -> Norm:
            return Norm(layer.weight, layer.bias, layer.eps, centred=True)

        def attention(layer: Any) -> Attention:
            attn = layer.attn
            width = attn.head_dim
            return Attention(
                norm(layer.ln_1),
                attn.c_attn.weight.view(-1, 3, heads, width).permute(1, 2, 0, 3).unbind(),
                attn.c_attn.bias.view(3, heads, width).unbind(),
                attn.c_proj.weight.view(heads, width, -1),
                attn.c_proj.bias,
                attn.scaling,
                None,
            )

        return Weights(
            embedding=body.wte,
            positions=body.wpe.weight,
            rotary=None,
            attentions=[attention(layer) for layer in body.h],
            mlp_norms=[norm(layer.ln_2) for layer in body.h],
            mlps=[layer.mlp for layer in body.h],
            final_norm=norm(body.ln_f),
            unembed=self.module.lm_head,
            parallel=False,
        )
