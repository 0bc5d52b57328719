"""A training step of sparsify 1.3.3: its ``SparseCoder`` inside the step that its ``Trainer`` makes.

Its ``Trainer`` cannot be had without a language model, so its step is spelt out here in its order,
without accumulation, several processes or masked tokens: decoder rows brought to norm 1, forward
(FVU, and AuxK where latents are dead), firing mask, backward, removal of the gradient along decoder
directions, optimiser, counters. AuxK is off by default; with dead latents its weight is 1/32.
Its first step, which sets ``b_dec``, and its learning-rate warm-up are left out.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from schedulefree import ScheduleFreeWrapper  # type: ignore[import-not-found]
from sparsify import SparseCoder, SparseCoderConfig  # type: ignore[import-not-found]
from sparsify.sign_sgd import SignSGD  # type: ignore[import-not-found]
from torch import Tensor

PACKAGE = "eai-sparsify"
_DEAD_TOKENS = 10_000_000


class Trainer:
    """See ``serve.Trainer``.

    Args:
        optimizer: "adam", or its default "signum" (schedule-free sign descent, momentum 0.95).
    """

    def __init__(
        self,
        weights: dict[str, Tensor],
        rows: int,
        k: int,
        lr: float,
        dead: Tensor,
        optimizer: Literal["adam", "signum"] = "adam",
    ) -> None:
        # As its Trainer does before the first step.
        torch.set_float32_matmul_precision("high")
        d_sae, d_in = weights["encoder"].shape
        self.sae = SparseCoder(d_in, SparseCoderConfig(num_latents=d_sae, k=k), dtype=torch.float32)
        with torch.no_grad():
            self.sae.encoder.weight.copy_(weights["encoder"])
            self.sae.encoder.bias.copy_(weights["b_enc"])
            self.sae.W_dec.copy_(weights["decoder"])
            self.sae.b_dec.copy_(weights["b_dec"])
        self.optimizer: Any = torch.optim.Adam(self.sae.parameters(), lr=lr)
        if optimizer == "signum":
            self.optimizer = ScheduleFreeWrapper(SignSGD(self.sae.parameters(), lr=lr), momentum=0.95)
            self.optimizer.train()
        self.dead = dead
        self.auxk_alpha = 1 / 32 if dead.any() else 0.0
        self.since_fired = torch.zeros(d_sae, dtype=torch.long)
        self.fired = torch.zeros(d_sae, dtype=torch.bool)

    def prepare(self) -> None:
        self.since_fired[self.dead] = _DEAD_TOKENS + 1

    def step(self, x: Tensor) -> Tensor:
        self.sae.set_decoder_norm_to_unit_norm()
        dead_mask = self.since_fired > _DEAD_TOKENS if self.auxk_alpha > 0 else None
        total_variance = (x - x.mean(0)).pow(2).sum()
        out = self.sae(x, dead_mask=dead_mask, total_variance=total_variance)
        self.fired[out.latent_indices.flatten()] = True
        loss = out.fvu + self.auxk_alpha * out.auxk_loss + out.multi_topk_fvu / 8
        loss.backward()
        self.sae.remove_gradient_parallel_to_decoder_directions()
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            self.since_fired += len(x)
            self.since_fired[self.fired] = 0
            self.fired.zero_()
        found: Tensor = out.sae_out
        return found.detach()

    def reconstruct(self, x: Tensor) -> Tensor:
        found: Tensor = self.sae(x).sae_out
        return found
