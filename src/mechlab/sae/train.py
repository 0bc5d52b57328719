"""Training a dictionary on an in-memory table of activations.

The loop follows Gao et al. (2024, arXiv 2406.04093): normalised mean squared error,
the AuxK loss that revives dead latents, unit-norm decoder rows with the gradient along
them removed, Adam. Every step's data follows from (seed, step) alone and the state is
saved at fixed steps, so a killed run resumed from its checkpoint gives the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save
from torch import Tensor

from mechlab.errors import MechlabError
from mechlab.files import write_atomic
from mechlab.sae.topk import Codes, TopK, scatter

_CHECKPOINTS = 10
# Gao et al. use 1/32 for AuxK and half the input dimension for its number of latents.
_AUX_COEFFICIENT = 1 / 32
METRICS = ("step", "loss", "fve", "dead")


@dataclass(frozen=True)
class TrainConfig:
    """Settings of one TopK training run.

    Attributes:
        d_sae: number of latents.
        k: active latents per token.
        tokens: rows to train on, counting repeats.
        batch_size: rows per step.
        lr: peak learning rate; warmed up over 5 % of the steps, decayed to zero over the last 30 %.
        dead_after: a latent is dead when it has not fired for this many rows.
    """

    d_sae: int = 1024
    k: int = 16
    tokens: int = 2_000_000
    batch_size: int = 2048
    lr: float = 2e-3
    dead_after: int = 100_000

    @property
    def steps(self) -> int:
        """Number of optimiser steps."""
        return max(1, math.ceil(self.tokens / self.batch_size))

    def to_dict(self) -> dict[str, int | float]:
        """Plain values."""
        return asdict(self)


def train(
    activations: Float[Tensor, "row d_in"],
    config: TrainConfig,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    checkpoint: Path | None = None,
    progress: Callable[[int, int, dict[str, float]], None] | None = None,
) -> tuple[TopK, list[dict[str, float]]]:
    """Train a TopK dictionary.

    Args:
        activations: the training rows; read only.
        checkpoint: file to save the state in from time to time and to resume from.
        progress: called with (step, steps, last metrics).

    Returns the dictionary, in units of ``activations``, and the metrics along the way
    ("step", "loss" = normalised squared error with AuxK, "fve" = fraction of variance
    explained in the batch, "dead" = share of dead latents).
    Raises MechlabError when sizes are out of range, or the loss stops being finite.
    """
    n, d_in = activations.shape
    if n < config.batch_size:
        raise MechlabError("fewer rows than one batch", n, f"harvest at least {config.batch_size} tokens")
    device = torch.device(device)
    generator = torch.Generator().manual_seed(seed)
    mean = activations.mean(0)
    scale = math.sqrt(d_in) / float(activations.norm(dim=-1).mean())
    variance = float(activations.var(0).sum()) * scale**2
    if variance == 0:
        raise MechlabError(
            "activations do not vary", f"{n} equal rows", "use another site or a richer corpus"
        )
    sae = TopK(d_in, config.d_sae, config.k)
    sae.initialise(mean * scale, generator)
    sae.to(device)
    optimiser = torch.optim.Adam(sae.parameters(), lr=config.lr, fused=True)
    since_fired = torch.zeros(config.d_sae, dtype=torch.long, device=device)
    metrics: list[dict[str, float]] = []
    start = 0
    if checkpoint is not None and checkpoint.is_file():
        start, since_fired = _load(checkpoint, sae, optimiser, metrics, device)
    save_every = max(1, config.steps // _CHECKPOINTS)
    log_every = max(1, config.steps // 100)
    for step, rows in _batches(n, config, seed, start):
        x = activations[rows].to(device, torch.float32) * scale
        for group in optimiser.param_groups:
            group["lr"] = config.lr * _schedule(step, config.steps)
        loss, fve, codes = _loss(sae, x, since_fired >= config.dead_after, variance)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        _remove_parallel_gradient(sae)
        torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
        optimiser.step()
        _normalise_decoder(sae)
        since_fired += len(x)
        since_fired[codes.indices[codes.values > 0]] = 0
        if step % log_every == 0 or step == config.steps - 1:
            row = {
                "step": float(step),
                "loss": loss.item(),
                "fve": fve.item(),
                "dead": (since_fired >= config.dead_after).float().mean().item(),
            }
            if not math.isfinite(row["loss"]):
                raise MechlabError(
                    "training loss is NaN or infinite", f"step {step}", "lower the learning rate"
                )
            metrics.append(row)
            if progress:
                progress(step + 1, config.steps, row)
        if checkpoint is not None and (step + 1) % save_every == 0:
            _save(checkpoint, step + 1, sae, optimiser, since_fired, metrics)
    sae.to("cpu").rescale_input(scale)
    return sae.requires_grad_(False), metrics


def _loss(
    sae: TopK, x: Float[Tensor, "row d_in"], dead: Tensor, variance: float
) -> tuple[Tensor, Tensor, Codes]:
    """Squared error over total variance, plus AuxK: what the dead latents make of the error."""
    pre = sae.pre_activations(x)
    values, indices = pre.topk(sae.k, dim=-1)
    codes = Codes(values.relu(), indices)
    error = x - sae.decode(codes)
    squared = error.pow(2).sum(-1).mean() / variance
    fve = 1 - squared.detach()
    n_dead = int(dead.sum())
    if n_dead == 0:
        return squared, fve, codes
    k_aux = min(max(sae.d_in // 2, sae.k), n_dead)
    aux_values, aux_indices = pre.masked_fill(~dead, -torch.inf).topk(k_aux, dim=-1)
    target = error.detach()
    made = scatter(Codes(aux_values.relu(), aux_indices), sae.d_sae) @ sae.W_dec
    total = (target - target.mean(0)).pow(2).sum(-1).mean()
    auxiliary = (target - made).pow(2).sum(-1).mean() / total.clamp_min(1e-12)
    return squared + _AUX_COEFFICIENT * auxiliary, fve, codes


def _batches(n: int, config: TrainConfig, seed: int, start: int) -> Iterator[tuple[int, Tensor]]:
    """(step, row numbers) from ``start`` on; each epoch is a permutation of its own."""
    per_epoch = n // config.batch_size
    order, current = torch.empty(0, dtype=torch.long), -1
    for step in range(start, config.steps):
        epoch, at = divmod(step, per_epoch)
        if epoch != current:
            generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch + 1)
            order, current = torch.randperm(n, generator=generator), epoch
        yield step, order[at * config.batch_size : (at + 1) * config.batch_size]


def _schedule(step: int, steps: int) -> float:
    warm, cool = 0.05 * steps, 0.3 * steps
    return min(1.0, (step + 1) / max(warm, 1.0), (steps - step) / max(cool, 1.0))


@torch.no_grad()
def _remove_parallel_gradient(sae: TopK) -> None:
    """Drop the part of the decoder's gradient along each row, which normalising would undo."""
    gradient = sae.W_dec.grad
    assert gradient is not None
    gradient -= (gradient * sae.W_dec).sum(-1, keepdim=True) * sae.W_dec


@torch.no_grad()
def _normalise_decoder(sae: TopK) -> None:
    sae.W_dec.div_(sae.W_dec.norm(dim=-1, keepdim=True).clamp_min(1e-8))


def _save(
    path: Path,
    step: int,
    sae: TopK,
    optimiser: torch.optim.Optimizer,
    since_fired: Tensor,
    metrics: list[dict[str, float]],
) -> None:
    tensors = {f"sae.{name}": value.detach().cpu() for name, value in sae.state_dict().items()}
    for name, parameter in sae.named_parameters():
        for key, value in optimiser.state[parameter].items():
            tensors[f"adam.{name}.{key}"] = value.detach().cpu()
    tensors["step"] = torch.tensor(step)
    tensors["since_fired"] = since_fired.cpu()
    tensors["metrics"] = torch.tensor([[row[m] for m in METRICS] for row in metrics], dtype=torch.float64)
    write_atomic(path, save({name: value.contiguous() for name, value in tensors.items()}))


def _load(
    path: Path,
    sae: TopK,
    optimiser: torch.optim.Optimizer,
    metrics: list[dict[str, float]],
    device: torch.device,
) -> tuple[int, Tensor]:
    tensors = load_file(str(path))
    sae.load_state_dict({name[4:]: value for name, value in tensors.items() if name.startswith("sae.")})
    for name, parameter in sae.named_parameters():
        prefix = f"adam.{name}."
        optimiser.state[parameter] = {
            key[len(prefix) :]: value.to(device) for key, value in tensors.items() if key.startswith(prefix)
        }
    metrics.extend(dict(zip(METRICS, row, strict=True)) for row in tensors["metrics"].tolist())
    return int(tensors["step"]), tensors["since_fired"].to(device)
