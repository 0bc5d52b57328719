"""A training step of SAELens 6.54: ``TopKTrainingSAE`` under its own ``SAETrainer``.

Timed is what its ``fit`` does for a batch when nothing is logged: ``SAETrainer.step`` (forward,
loss, firing statistics, backward, clipping to norm 1, Adam, schedulers) and the counters around it.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.training.sae_trainer import SAETrainer
from torch import Tensor

PACKAGE = "sae-lens"
_STEPS = 1_000_000


class Trainer:
    """See ``serve.Trainer``.

    Args:
        use_sparse_activations: its COO codes instead of dense ones.
        rescale_acts_by_decoder_norm: its default, but on a CPU it fails with sparse activations
            (backward of a sparse tensor times a vector). Off, it also saves a product the size of
            the codes.
        autocast: its bfloat16 autocast, for which the codes must be dense. The faster one where the
            processor has bfloat16 products (avx512_bf16: 0.79 s of a core against 1.20 s for float32
            with sparse codes, 512 rows, 768 to 24,576); the default stays float32, as ours is.

    Its ``compile_sae`` is not offered: measured there too, it gains nothing on a CPU (1.25 s).
    """

    def __init__(
        self,
        weights: dict[str, Tensor],
        rows: int,
        k: int,
        lr: float,
        dead: Tensor,
        use_sparse_activations: bool = True,
        rescale_acts_by_decoder_norm: bool = False,
        autocast: bool = False,
    ) -> None:
        d_sae, d_in = weights["encoder"].shape
        self.sae = TopKTrainingSAE(
            TopKTrainingSAEConfig(
                d_in=d_in,
                d_sae=d_sae,
                k=k,
                use_sparse_activations=use_sparse_activations,
                rescale_acts_by_decoder_norm=rescale_acts_by_decoder_norm,
            )
        )
        with torch.no_grad():
            self.sae.W_enc.copy_(weights["encoder"].T)
            self.sae.W_dec.copy_(weights["decoder"])
            self.sae.b_enc.copy_(weights["b_enc"])
            self.sae.b_dec.copy_(weights["b_dec"])
        config = SAETrainerConfig(
            total_training_samples=_STEPS * rows,
            train_batch_size_samples=rows,
            lr=lr,
            lr_end=lr,
            autocast=autocast,
            logger=LoggingConfig(log_to_wandb=False),
        )
        nothing: Iterator[Tensor] = iter(())
        self.trainer = SAETrainer(config, self.sae, nothing)
        self.dead = dead

    def prepare(self) -> None:
        self.trainer.n_forward_passes_since_fired[self.dead] = self.trainer.cfg.dead_feature_window + 1.0

    def step(self, x: Tensor) -> Tensor:
        self.trainer.maybe_reset_sparsity()
        found: Tensor = self.trainer.step(x).sae_out
        self.trainer.n_training_steps += 1
        return found

    def reconstruct(self, x: Tensor) -> Tensor:
        found: Tensor = self.sae(x)
        return found
