"""Latents that stopped firing: the AuxK loss and resampling."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechlab.sae.base import Sae, Step

_AUX_ROWS = 512
# Share of the error's mean square that its variance is at least taken for.
_LEAST_SPREAD = 0.1


def auxk_loss(
    sae: Sae,
    centred: Float[Tensor, "row d_in"],
    error: Float[Tensor, "row d_out"],
    step: Step,
    weight: float,
    aux_k: int | None,
    signed: bool = False,
) -> Float[Tensor, ""]:
    """What the dead latents make of the error that the others leave, times ``weight``.

    Gao et al. (2024, arXiv 2406.04093), section A.2: the top ``aux_k`` dead latents (half the
    width of the output by default) reconstruct the error e as e_hat; the loss is |e - e_hat|^2
    over the variance of e. The error is a constant here and holds b_dec already, so e_hat has no
    bias; gradients reach encoder and decoder of dead latents, and nothing else. ``signed`` selects
    by absolute value and keeps the sign.

    The mean over rows is estimated on some five hundred of the batch's: it only has to point dead
    latents the right way, and on all rows it would cost as much as half the encoder product when
    a tenth of the latents are dead.
    """
    if weight == 0 or len(step.dead) == 0:
        return error.new_zeros(())
    every = max(1, len(error) // _AUX_ROWS)
    target, x = error.detach()[::every], centred.detach()[::every]
    dead = step.dead
    # index_select: its gradient is one pass over memory, unlike that of an index.
    encoder, bias, decoder = (each.index_select(0, dead) for each in (sae.encoder, sae.b_enc, sae.W_dec))
    pre = torch.addmm(bias, x, encoder.T)
    k = min(sae.d_out // 2 if aux_k is None else aux_k, len(dead))
    if 0 < k < len(dead):
        # The k-th largest as a bar: equal values may let in more, which does no harm.
        size = pre.detach().abs() if signed else pre.detach()
        bar = size.topk(k, dim=-1, sorted=False).values.amin(-1, keepdim=True)
        pre = torch.where(size >= bar, pre, 0)
    made = (pre if signed else pre.relu()) @ decoder
    return weight * (target - made).pow(2).sum(-1).mean() / spread(target)


def spread(error: Float[Tensor, "row d_out"]) -> Float[Tensor, ""]:
    """What the AuxK loss is divided by: the error's variance, of few or equal rows their mean square."""
    variance, square = (each.pow(2).sum(-1).mean() for each in (error - error.mean(0), error))
    # One row has no variance; nearly equal ones (the same token) hardly any.
    return torch.maximum(variance, _LEAST_SPREAD * square).clamp_min(1e-12)


@torch.no_grad()
def resample(
    sae: Sae,
    x: Float[Tensor, "row d_in"],
    y: Float[Tensor, "row d_out"],
    dead: Int[Tensor, "dead"],
    generator: torch.Generator,
) -> None:
    """Point dead latents at inputs that the dictionary reconstructs badly.

    Bricken et al. (2023), *Towards Monosemanticity*, "neuron resampling": rows are drawn with
    probability proportional to their squared loss; a dead latent's decoder becomes the row
    (less b_dec and the skip connection, at unit norm), its encoder the same (the input, for a
    transcoder) times 0.2 of the mean encoder norm of the living latents, unless tied; its bias
    zero. The caller resets the optimiser's state of these latents.
    """
    if len(dead) == 0:
        return
    losses = (y - sae(x)).pow(2).sum(-1)
    chance = (losses**2).cpu().double().clamp_min(1e-300)
    rows = torch.multinomial(chance, len(dead), replacement=len(dead) > len(x), generator=generator)
    rows = rows.to(x.device)
    inputs, outputs = sae.centre(x)[rows], (y - sae.add_bias(torch.zeros_like(y), x))[rows]
    alive = torch.ones(sae.d_sae, dtype=torch.bool, device=x.device)
    alive[dead] = False
    norms = sae.encoder.norm(dim=1)
    mean = norms[alive].mean() if bool(alive.any()) else norms.mean()
    if sae.W_enc is not None:
        sae.encoder[dead] = inputs / inputs.norm(dim=1, keepdim=True).clamp_min(1e-8) * 0.2 * mean
    sae.W_dec[dead] = outputs / outputs.norm(dim=1, keepdim=True).clamp_min(1e-8)
    sae.reset(dead)
