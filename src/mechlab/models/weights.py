"""A model's weights as the decomposed forward reads them: one layout for every architecture.

Everything is a view of the module's parameters, without gradient. A module that is no Hugging Face
model states its weights itself (``StatesWeights``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from mechlab.errors import MechlabError

SUPPORTED = ("gpt2", "gpt_neox", "llama", "mistral", "qwen2")
# Names of the norms that some architectures put between a sublayer's output and the stream.
_POST_NORMS = (
    "post_feedforward_layernorm",
    "post_self_attn_layernorm",
    "post_mlp_layernorm",
    "post_attn_norm",
)


@dataclass(frozen=True)
class Norm:
    """LayerNorm (``centred``) or RMSNorm, with its backward in closed form."""

    weight: Float[Tensor, "d_model"]
    bias: Float[Tensor, "d_model"] | None
    eps: float
    centred: bool

    def __call__(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        if self.centred:
            return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)
        return self.weight * F.rms_norm(at_least_single(x), self.weight.shape, None, self.eps).to(x.dtype)

    def pull_back(
        self, x: Float[Tensor, "batch pos d_model"], gradient: Float[Tensor, "reader batch pos d_model"]
    ) -> Float[Tensor, "reader batch pos d_model"]:
        """Gradient at the input ``x`` from gradients at the output, for many readers of one ``x``.

        With u = (x − mean)/σ:  σ · g_x = γg − mean(γg) − u · mean(u · γg)  (no mean for RMSNorm).
        """
        if self.centred:
            x = x - x.mean(-1, keepdim=True)
        inverse = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)
        unit = x * inverse
        pulled = gradient * self.weight
        along = torch.einsum("rbpd,bpd->rbp", pulled, unit / unit.shape[-1])
        # In place from here: with a stream per head these are the largest arrays of the backward.
        if self.centred:
            pulled -= pulled.mean(-1, keepdim=True)
        return pulled.addcmul_(along[..., None], unit, value=-1).mul_(inverse)

    def scale(
        self, x: Float[Tensor, "batch pos d_model"]
    ) -> tuple[Float[Tensor, "batch pos d_model"] | None, Float[Tensor, "batch pos 1"]]:
        """The stream as the norm scales it, u, and the scale 1/σ."""
        if self.centred:
            x = x - x.mean(-1, keepdim=True)
        inverse = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)
        return x * inverse, inverse

    def fold(
        self, weight: Float[Tensor, "_heads d_model d_head"], bias: Float[Tensor, "_heads d_head"] | None
    ) -> tuple[Float[Tensor, "_heads d_model d_head"], Float[Tensor, "_heads d_head"]]:
        """Weights F and constant c that read u as ``weight`` and ``bias`` read the norm's output: Fᵀu + c."""
        folded = weight * self.weight[:, None]
        if self.centred:
            folded -= folded.mean(1, keepdim=True)
        constant = weight.new_zeros(len(weight), weight.shape[2]) if bias is None else bias
        if self.bias is not None:
            constant = constant + torch.einsum("d,hdk->hk", self.bias, weight)
        return folded, constant


class NoNorm:
    """Readers see the stream as it is (compiled models)."""

    def __call__(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        # A tensor of its own: the gradient at what a reader sees leaves out the stream that goes on.
        return x.view_as(x)

    def pull_back(
        self, x: Float[Tensor, "batch pos d_model"], gradient: Float[Tensor, "reader batch pos d_model"]
    ) -> Float[Tensor, "reader batch pos d_model"]:
        """The gradient itself."""
        return gradient

    def scale(self, x: Float[Tensor, "batch pos d_model"]) -> tuple[None, Float[Tensor, "batch pos 1"]]:
        """No scale: ones."""
        return None, torch.ones_like(x[..., :1])

    def fold(
        self, weight: Float[Tensor, "_heads d_model d_head"], bias: Float[Tensor, "_heads d_head"] | None
    ) -> tuple[Float[Tensor, "_heads d_model d_head"], Float[Tensor, "_heads d_head"]]:
        """The weights and bias themselves."""
        return weight, weight.new_zeros(len(weight), weight.shape[2]) if bias is None else bias


AnyNorm = Norm | NoNorm


@dataclass(frozen=True)
class Attention:
    """One layer's attention weights, as views of the module's parameters.

    ``inputs`` and ``biases`` hold query, key and value in this order. Attention that is not
    ``causal`` sees every position and has no window.
    """

    norm: AnyNorm
    inputs: tuple[Float[Tensor, "_heads d_model d_head"], ...]
    biases: tuple[Float[Tensor, "_heads d_head"] | None, ...]
    output: Float[Tensor, "_heads d_head d_model"]
    output_bias: Float[Tensor, "d_model"] | None
    scale: float
    window: int | None
    causal: bool = True


@dataclass(frozen=True)
class Weights:
    """All that the decomposed forward needs of a module.

    Attributes:
        embedding, unembed: the module's own submodules.
        mlps: the module's own submodules or what equals them (an MLP includes its biases).
        positions: learned position embeddings ``[n_ctx, d_model]``, where there are any.
        rotary: the module's rotary embedding ``(x, position_ids) -> (cos, sin)``, where there is one.
        parallel: attention and MLP of a layer read the same stream.
    """

    embedding: nn.Module
    positions: Float[Tensor, "n_ctx d_model"] | None
    rotary: nn.Module | None
    attentions: list[Attention]
    mlp_norms: Sequence[AnyNorm]
    mlps: Sequence[Callable[[Tensor], Tensor]]
    final_norm: AnyNorm
    unembed: nn.Module
    parallel: bool


@runtime_checkable
class StatesWeights(Protocol):
    """A module that brings its own ``Weights``."""

    def read_weights(self) -> Weights:
        """Views of its weights."""


def read_weights(module: nn.Module) -> Weights:
    """Views of the weights of a causal language model in eval mode, or of a module that states its own.

    Raises MechlabError for an unknown architecture, norms after attention or MLP (Gemma 2),
    cross-attention, quantised weights, or a module in training mode.
    """
    if isinstance(module, StatesWeights):
        return module.read_weights()
    config: Any = module.config
    kind = config.model_type
    body: Any = getattr(module, "model", None)
    body = getattr(module, {"gpt2": "transformer", "gpt_neox": "gpt_neox"}.get(kind, "model"), body)
    layers = getattr(body, "h" if kind == "gpt2" else "layers", None)
    remedy = f"use one of {', '.join(SUPPORTED)}"
    if layers is not None and any(hasattr(layers[0], name) for name in _POST_NORMS):
        raise MechlabError("head outputs are not additive: a norm follows attention or MLP", kind, remedy)
    if kind not in SUPPORTED or layers is None:
        raise MechlabError("no decomposed forward for this architecture", kind, remedy)
    if getattr(config, "add_cross_attention", False):
        raise MechlabError("model has cross-attention", kind, "use a decoder-only model")
    if not all(p.is_floating_point() for p in module.parameters()):
        raise MechlabError("weights are quantised", kind, "load the model without quantisation")
    if module.training:
        raise MechlabError("model is in training mode", kind, "call module.eval() first")
    read = {"gpt2": _gpt2, "gpt_neox": _gpt_neox}.get(kind, _llama)
    attentions, mlp_norms, final_norm = read(body, layers, config)
    return Weights(
        embedding=body.get_input_embeddings(),
        positions=body.wpe.weight.detach() if kind == "gpt2" else None,
        rotary=getattr(body, "rotary_emb", None),
        attentions=attentions,
        mlp_norms=mlp_norms,
        mlps=[_mlp(layer.mlp, config) for layer in layers],
        final_norm=final_norm,
        unembed=module.get_output_embeddings(),  # type: ignore[operator]
        parallel=bool(kind == "gpt_neox" and config.use_parallel_residual),
    )


def at_least_single(values: Float[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
    """Half precision made single, for sums over a vocabulary and for matrix decompositions."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def require_fitting(
    tokens: Int[Tensor, "batch pos"], embedding: nn.Module, positions: Float[Tensor, "n_ctx d_model"] | None
) -> None:
    """MechlabError for tokens that the vocabulary lacks, and more of them than there are positions."""
    size = next(embedding.parameters()).shape[0]
    outside = tokens[(tokens < 0) | (tokens >= size)]
    if len(outside):
        raise MechlabError(
            "token is not in the model's vocabulary", int(outside[0]), f"tokens are 0 … {size - 1}"
        )
    if positions is not None and tokens.shape[1] > len(positions):
        raise MechlabError(
            "prompts are longer than the model's context", tokens.shape[1], f"at most {len(positions)} tokens"
        )


class _Beside(torch.autograd.Function):
    """``x @ weight + bias`` of two batches as one product; only the first has a gradient."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, rest: Tensor, weight: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        ctx.weight = weight
        both = F.linear(torch.cat([x, rest]), weight.T, bias)
        found = both[: len(x)], both[len(x) :]
        ctx.mark_non_differentiable(found[1])
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        return gradients[0] @ ctx.weight.T, None, None, None


@dataclass(frozen=True)
class Mlp:
    """An MLP whose parts are known: ``out(act(*ins))``, the same operations as the module's own."""

    ins: tuple[nn.Module, ...]
    act: Callable[..., Tensor]
    out: nn.Module

    def __call__(self, x: Tensor) -> Tensor:
        found: Tensor = self.out(self.act(*(part(x) for part in self.ins)))
        return found

    def beside(
        self, x: Float[Tensor, "batch pos d_model"], rest: Float[Tensor, "other pos d_model"]
    ) -> tuple[Float[Tensor, "batch pos d_model"], Float[Tensor, "other pos d_model"]]:
        """Outputs of two batches, of which only the first has a gradient.

        Products of twice the rows are quicker by a quarter on two cores where rows are few.
        """
        hidden, others = zip(*(_linear_beside(part, x, rest) for part in self.ins), strict=True)
        with torch.no_grad():
            other = self.act(*others)
        return _linear_beside(self.out, self.act(*hidden), other)


def _linear_beside(layer: Any, x: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
    weight = layer.weight.detach()  # a Linear's is [out, in], a Conv1D's [in, out]
    found: tuple[Tensor, Tensor] = _Beside.apply(  # type: ignore[no-untyped-call]
        x, rest, weight.T if isinstance(layer, nn.Linear) else weight, _detached(layer.bias)
    )
    return found


def _mlp(mlp: Any, config: Any) -> Callable[[Tensor], Tensor]:
    """The MLP, GPT-2's with its GELU as one operation: as the module's eight it is a third of a forward."""
    if config.model_type == "gpt2" and config.activation_function == "gelu_new":
        return Mlp((mlp.c_fc,), partial(F.gelu, approximate="tanh"), mlp.c_proj)
    if config.model_type == "gpt_neox":
        return Mlp((mlp.dense_h_to_4h,), mlp.act, mlp.dense_4h_to_h)
    if config.model_type == "gpt2":
        return Mlp((mlp.c_fc,), mlp.act, mlp.c_proj)
    return Mlp((mlp.gate_proj, mlp.up_proj), lambda gate, up: mlp.act_fn(gate) * up, mlp.down_proj)


_Read = tuple[list[Attention], list[Norm], Norm]


def _read_norm(norm: Any) -> Norm:
    if isinstance(norm, nn.LayerNorm):
        return Norm(norm.weight.detach(), _detached(norm.bias), norm.eps, centred=True)
    return Norm(norm.weight.detach(), None, norm.variance_epsilon, centred=False)


def _detached(parameter: Tensor | None) -> Tensor | None:
    return None if parameter is None else parameter.detach()


def _gpt2(body: Any, layers: Any, config: Any) -> _Read:
    heads, found = config.n_head, []
    for layer in layers:
        attn = layer.attn
        weight, width = attn.c_attn.weight.detach(), attn.head_dim
        found.append(
            Attention(
                _read_norm(layer.ln_1),
                weight.view(-1, 3, heads, width).permute(1, 2, 0, 3).unbind(),
                attn.c_attn.bias.detach().view(3, heads, width).unbind(),
                attn.c_proj.weight.detach().view(heads, width, -1),
                attn.c_proj.bias.detach(),
                attn.scaling,
                None,
            )
        )
    return found, [_read_norm(layer.ln_2) for layer in layers], _read_norm(body.ln_f)


def _gpt_neox(body: Any, layers: Any, config: Any) -> _Read:
    heads, found = config.num_attention_heads, []
    for layer in layers:
        attn, qkv = layer.attention, layer.attention.query_key_value
        weight, width = qkv.weight.detach(), attn.head_size
        bias = None if qkv.bias is None else qkv.bias.detach().view(heads, 3, width).unbind(1)
        found.append(
            Attention(
                _read_norm(layer.input_layernorm),
                weight.view(heads, 3, width, -1).permute(1, 0, 3, 2).unbind(),
                bias or (None, None, None),
                attn.dense.weight.detach().view(-1, heads, width).permute(1, 2, 0),
                _detached(attn.dense.bias),
                attn.scaling,
                None,
            )
        )
    norms = [_read_norm(layer.post_attention_layernorm) for layer in layers]
    return found, norms, _read_norm(body.final_layer_norm)


def _llama(body: Any, layers: Any, config: Any) -> _Read:
    found = []
    for layer in layers:
        attn = layer.self_attn
        width = attn.head_dim
        parts = (attn.q_proj, attn.k_proj, attn.v_proj)
        # Mistral keeps its window in the config, Qwen 2 in each layer's attention.
        window = config.sliding_window if config.model_type == "mistral" else None
        found.append(
            Attention(
                _read_norm(layer.input_layernorm),
                tuple(p.weight.detach().view(-1, width, p.in_features).transpose(1, 2) for p in parts),
                tuple(None if p.bias is None else p.bias.detach().view(-1, width) for p in parts),
                attn.o_proj.weight.detach().view(-1, config.num_attention_heads, width).permute(1, 2, 0),
                _detached(attn.o_proj.bias),
                attn.scaling,
                getattr(attn, "sliding_window", None) or window,
            )
        )
    return found, [_read_norm(layer.post_attention_layernorm) for layer in layers], _read_norm(body.norm)


def rotate(
    x: Float[Tensor, "batch pos head d_head"],
    cos: Float[Tensor, "#batch pos d_rotary"],
    sin: Float[Tensor, "#batch pos d_rotary"],
) -> Float[Tensor, "batch pos head d_head"]:
    """Rotary embedding in the half-split layout, on the leading coordinates that ``cos`` covers."""
    cos, sin, width = cos[:, :, None], sin[:, :, None], cos.shape[-1]
    turned, rest = x[..., :width], x[..., width:]
    left, right = turned.chunk(2, dim=-1)
    turned = turned * cos + torch.cat([-right, left], dim=-1) * sin
    return torch.cat([turned, rest], dim=-1)
