"""A transformer whose weights were written, not trained: no norms, no biases, ReLU MLPs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mechlab.errors import MechlabError
from mechlab.models.compiled.programs import BOS, Program
from mechlab.models.weights import Attention, NoNorm, Weights


@dataclass(frozen=True)
class CompiledConfig:
    """A compiled model's sizes, under the names a Hugging Face config gives them."""

    program: str
    causal: bool
    max_position_embeddings: int
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    head_dim: int
    intermediate_size: int
    model_type: str = "compiled"
    _attn_implementation: str = "eager"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Output:
    """What a forward pass gives, as from a Hugging Face model."""

    logits: Float[Tensor, "batch pos d_vocab"]


@dataclass(frozen=True)
class Matrices:
    """Every weight: query, key, value and ``mlp_in`` read the stream, the outputs add to it."""

    embedding: Float[Tensor, "d_vocab d_model"]
    positions: Float[Tensor, "n_ctx d_model"]
    query: Float[Tensor, "layer head d_model d_head"]
    key: Float[Tensor, "layer head d_model d_head"]
    value: Float[Tensor, "layer head d_model d_head"]
    output: Float[Tensor, "layer head d_head d_model"]
    mlp_in: Float[Tensor, "layer d_model d_mlp"]
    mlp_out: Float[Tensor, "layer d_mlp d_model"]
    unembed: Float[Tensor, "d_model d_out"]


class Compiled(nn.Module):
    """A compiled program.

    Logits are one-hot over ``outputs`` for a categorical program. A numerical program has two
    logits, the number and a constant zero, so that a difference of logits is the number.

    Attributes:
        program: what was compiled.
        labels: the name of every direction of the residual stream.
        encoding: token id of every word, BOS and padding included.
        outputs: what each logit stands for.
        numerical: whether the output is a number.
    """

    embedding: nn.Embedding
    positions: Tensor
    query: Tensor
    key: Tensor
    value: Tensor
    output: Tensor

    def __init__(
        self,
        program: Program,
        matrices: Matrices,
        labels: tuple[str, ...],
        encoding: dict[str, int],
        outputs: tuple[Any, ...],
        numerical: bool,
    ) -> None:
        super().__init__()
        self.program, self.labels, self.encoding = program, labels, encoding
        self.outputs, self.numerical = outputs, numerical
        for name, matrix in vars(matrices).items():
            if name not in ("embedding", "mlp_in", "mlp_out", "unembed"):
                self.register_parameter(name, nn.Parameter(matrix.float()))
        d_vocab, d_model = matrices.embedding.shape
        self.embedding = nn.Embedding(d_vocab, d_model, _weight=matrices.embedding.float())
        self.mlps = nn.ModuleList(
            nn.Sequential(_linear(into), nn.ReLU(), _linear(out))
            for into, out in zip(matrices.mlp_in, matrices.mlp_out, strict=True)
        )
        self.unembed = _linear(matrices.unembed)
        n_layers, n_heads, _, d_head = matrices.query.shape
        self.config = CompiledConfig(
            program=program.name,
            causal=program.causal,
            max_position_embeddings=len(matrices.positions),
            vocab_size=len(encoding),
            hidden_size=d_model,
            num_hidden_layers=n_layers,
            num_attention_heads=n_heads,
            head_dim=d_head,
            intermediate_size=matrices.mlp_in.shape[2],
        )
        self.eval().requires_grad_(False)

    @property
    def dtype(self) -> torch.dtype:
        """Floating type of the weights."""
        return self.positions.dtype

    def get_input_embeddings(self) -> nn.Embedding:
        """The token embedding."""
        return self.embedding

    def encode(self, sequences: Sequence[Sequence[Any]]) -> Int[Tensor, "batch pos"]:
        """Token ids of sequences of one length, BOS in front; MechlabError for a value that is no token."""
        known = {value: self.encoding[str(value)] for value in self.program.vocabulary}
        try:
            rows = [[self.encoding[BOS], *(known[value] for value in row)] for row in sequences]
        except KeyError as error:
            raise MechlabError(
                f"not in the vocabulary of {self.program.name}", error, f"use {self.program.vocabulary}"
            ) from None
        return torch.tensor(rows, device=self.embedding.weight.device)

    def read_weights(self) -> Weights:
        """The weights as the decomposed forward reads them."""
        n_layers, none = self.config.num_hidden_layers, NoNorm()
        attentions = [
            Attention(
                norm=none,
                inputs=(self.query[layer], self.key[layer], self.value[layer]),
                biases=(None, None, None),
                output=self.output[layer],
                output_bias=None,
                scale=1.0,
                window=None,
                causal=self.program.causal,
            )
            for layer in range(n_layers)
        ]
        return Weights(
            embedding=self.embedding,
            positions=self.positions,
            rotary=None,
            attentions=attentions,
            mlp_norms=[none] * n_layers,
            mlps=list(self.mlps),
            final_norm=none,
            unembed=self.unembed,
            parallel=False,
        )

    def forward(self, input_ids: Int[Tensor, "batch pos"], use_cache: bool = False) -> Output:
        """Logits at every position, BOS's included. Nothing is ever cached."""
        x = self.embedding(input_ids) + self.positions[: input_ids.shape[1]]
        n_pos = x.shape[1]
        unseen = torch.ones(n_pos, n_pos, dtype=torch.bool, device=x.device).triu(1)
        for layer, mlp in enumerate(self.mlps):
            q, k, v = (
                torch.einsum("bpd,hdk->bhpk", x, weight[layer])
                for weight in (self.query, self.key, self.value)
            )
            scores = q @ k.transpose(-1, -2)
            if self.program.causal:
                scores = scores.masked_fill(unseen, -torch.inf)
            x = x + torch.einsum("bhpk,hkd->bpd", scores.softmax(-1) @ v, self.output[layer])
            x = x + mlp(x)
        return Output(self.unembed(x))


def _linear(weight: Float[Tensor, "d_in d_out"]) -> nn.Linear:
    # Made without storage: filling it would draw from the global generator.
    d_in, d_out = weight.shape
    layer = nn.Linear(d_in, d_out, bias=False, device="meta")
    layer.weight = nn.Parameter(weight.T.float().contiguous())
    return layer
