"""A training step of dictionary_learning 0.1.0: ``TopKTrainer.update``, timed as it is.

That is forward, loss with AuxK (weight 1/32, its default), backward, removal of the gradient along
decoder directions, clipping to norm 1, Adam, and decoder rows brought back to norm 1. Its step 0,
which sets ``b_dec``, is left out, and so is its learning-rate warm-up. It has no setting that
changes its speed on a CPU.
"""

from __future__ import annotations

import sys
import types

import torch
from torch import Tensor

# Its __init__ imports nnsight for the buffer that runs language models, which a step never touches.
_nnsight = types.ModuleType("nnsight")
_nnsight.LanguageModel = object  # type: ignore[attr-defined]
sys.modules["nnsight"] = _nnsight
from dictionary_learning.trainers.top_k import (  # type: ignore[import-not-found]  # noqa: E402
    AutoEncoderTopK,
    TopKTrainer,
)

PACKAGE = "dictionary-learning"
_STEPS = 1_000_000


class _Remembering(AutoEncoderTopK):  # type: ignore[misc]
    """Keeps what it decoded last, which ``update`` does not return."""

    def decode(self, x: Tensor) -> Tensor:
        self.decoded = super().decode(x)
        return self.decoded  # type: ignore[no-any-return]


class Trainer:
    """See ``serve.Trainer``."""

    def __init__(self, weights: dict[str, Tensor], rows: int, k: int, lr: float, dead: Tensor) -> None:
        d_sae, d_in = weights["encoder"].shape
        self.trainer = TopKTrainer(
            steps=_STEPS, activation_dim=d_in, dict_size=d_sae, k=k, layer=0, lm_name="none",
            dict_class=_Remembering, lr=lr, warmup_steps=0, device="cpu",
        )  # fmt: skip
        self.ae = self.trainer.ae
        with torch.no_grad():
            self.ae.encoder.weight.copy_(weights["encoder"])
            self.ae.encoder.bias.copy_(weights["b_enc"])
            self.ae.decoder.weight.copy_(weights["decoder"].T)
            self.ae.b_dec.copy_(weights["b_dec"])
        self.dead = dead
        self.steps = 0

    def prepare(self) -> None:
        self.trainer.num_tokens_since_fired[self.dead] = self.trainer.dead_feature_threshold

    def step(self, x: Tensor) -> Tensor:
        self.steps += 1
        self.trainer.update(self.steps, x)
        found: Tensor = self.ae.decoded
        self.ae.decoded = None
        return found.detach()

    def reconstruct(self, x: Tensor) -> Tensor:
        found: Tensor = self.ae(x)
        self.ae.decoded = None
        return found
