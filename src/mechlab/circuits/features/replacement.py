"""The local replacement model of one prompt: linear, and equal to the model on that prompt.

Source: Ameisen et al. (2025), *Circuit Tracing*, transformer-circuits.pub. Every MLP is replaced by
its transcoder (or by its part of a cross-layer transcoder) plus an error, the constant that is
missing to what the MLP wrote. Attention patterns and norm denominators are held at the values they
have on the prompt. What is left between a feature's output and a later feature's pre-activation is
linear:

    stream   x_{l+1} = x_l + Σ_heads A_h V_h n_l(x_l) + b_O + y_l,     n(x) = γ (x − mean)/σ₀ + β
    MLP      y_l = Σ_f a_f W_dec,f + b_dec (+ W_skip n(x)) + error_l
    feature  a_f = r_f · n(x) + c_f   (r_f its encoder row; RMSNorm has no mean and no β)

A layer without a transcoder is all error. Nothing here differentiates: the backward is written out.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechlab.activations.capture import check_tokens, read_sites
from mechlab.errors import MechlabError
from mechlab.models.forward import DecomposedForward, Stage
from mechlab.models.subject import Subject
from mechlab.models.weights import AnyNorm, Attention, Norm, read_weights
from mechlab.sae.base import Sae
from mechlab.sae.clt import Clt
from mechlab.sae.codes import Codes
from mechlab.sae.dictionary import Dictionary
from mechlab.sae.formats.wrapped import refuse_contextual
from mechlab.sae.splice import Placed

_CLOSE = 1e-3


@dataclass(frozen=True)
class FrozenNorm:
    """A norm whose denominator is held: an affine map of the stream at each position."""

    norm: Norm
    inverse: Float[Tensor, "pos 1"]

    def __call__(self, x: Float[Tensor, "pos d_model"]) -> Float[Tensor, "pos d_model"]:
        x = x - x.mean(-1, keepdim=True) if self.norm.centred else x
        out = x * self.inverse * self.norm.weight
        return out if self.norm.bias is None else out + self.norm.bias

    def pull_back(
        self, gradient: Float[Tensor, "reader pos d_model"]
    ) -> tuple[Float[Tensor, "reader pos d_model"], Float[Tensor, "reader"]]:
        """Gradient at the stream, and what the norm's bias gives each reader."""
        bias = self.norm.bias
        constant = gradient.new_zeros(len(gradient)) if bias is None else gradient.sum(1) @ bias
        pulled = gradient * self.norm.weight
        if self.norm.centred:
            pulled = pulled - pulled.mean(-1, keepdim=True)
        return pulled * self.inverse, constant


@dataclass(frozen=True)
class FrozenAttention:
    """A layer's attention with its pattern held."""

    weights: Attention
    norm: FrozenNorm
    pattern: Float[Tensor, "head query key"]

    def pull_back(
        self, gradient: Float[Tensor, "reader pos d_model"]
    ) -> tuple[Float[Tensor, "reader pos d_model"], Float[Tensor, "reader"]]:
        """Gradient at the stream that attention reads, and what its biases give each reader."""
        value, bias = self.weights.inputs[2], self.weights.biases[2]
        mixed = torch.einsum("rqd,hkd->rqhk", gradient, self.weights.output)
        at_values = torch.einsum("rqhk,hqp->rphk", mixed, self.pattern)
        # With grouped queries several heads share one value.
        at_values = at_values.view(*at_values.shape[:2], len(value), -1, value.shape[2]).sum(3)
        pulled, constant = self.norm.pull_back(torch.einsum("rphk,hdk->rpd", at_values, value))
        if bias is not None:
            constant = constant + torch.einsum("rphk,hk->r", at_values, bias)
        if self.weights.output_bias is not None:
            constant = constant + gradient.sum(1) @ self.weights.output_bias
        return pulled, constant


@dataclass(frozen=True)
class LayerFeatures:
    """The features of one layer that are active on the prompt; a slot with code 0 is not in use.

    Attributes:
        codes: activations, one row per position.
        reads: gradient of each activation at the MLP's normalised input.
        constants: activation less ``reads · input``.
        writes: layer → what each feature adds to that layer's MLP output.
    """

    codes: Codes
    reads: Float[Tensor, "pos k d_model"]
    constants: Float[Tensor, "pos k"]
    writes: dict[int, Float[Tensor, "pos k d_model"]]


@dataclass(frozen=True)
class Replacement:
    """The replacement model of one prompt.

    Attributes:
        subject: the model.
        tokens: the prompt ``[pos]``.
        embedded: what enters the stream at each position.
        attentions, mlp_norms, final_norm: with everything frozen that is.
        features: layer → its active features; layers without a transcoder are absent.
        errors: what each layer's MLP wrote beyond features, bias and skip connection.
        biases, skips: of the transcoder of each layer; zero and None where there is none.
        unembed, unembed_bias: rows ``[d_vocab d_model]`` and bias, if any.
        logits: the model's own, at every position.
        parallel: attention and MLP of a layer read the same stream.
    """

    subject: Subject
    tokens: Int[Tensor, "pos"]
    embedded: Float[Tensor, "pos d_model"]
    attentions: tuple[FrozenAttention, ...]
    mlp_norms: tuple[FrozenNorm, ...]
    final_norm: FrozenNorm
    features: dict[int, LayerFeatures]
    errors: Float[Tensor, "layer pos d_model"]
    biases: Float[Tensor, "layer d_model"]
    skips: tuple[Float[Tensor, "d_model d_model"] | None, ...]
    unembed: Float[Tensor, "d_vocab d_model"]
    unembed_bias: Float[Tensor, "d_vocab"] | None
    logits: Float[Tensor, "pos d_vocab"]
    parallel: bool

    @property
    def n_layers(self) -> int:
        """Number of layers."""
        return len(self.attentions)


@torch.no_grad()
def replacement_model(
    subject: Subject, transcoders: Sequence[Placed], tokens: Int[Tensor, "pos"]
) -> Replacement:
    """Run the model on a prompt and freeze it there.

    Args:
        transcoders: dictionaries from "blocks.L.mlp.hook_in" to "blocks.L.hook_mlp_out", at most one
            for each layer, or one cross-layer transcoder; as ``load_sae`` gives them.

    Raises MechlabError when a dictionary reads or writes other sites (or layers out of order), two write
    to the same layer, one was trained on another model or has another size or floating type, its codes
    are not affine in their input one by one, or the prompt is empty or has a token without embedding.
    """
    if tokens.ndim != 1 or not len(tokens):
        raise MechlabError("prompt is not one row of tokens", list(tokens.shape), "task.clean[0], for one")
    check_tokens(subject, tokens[None])
    if not transcoders:
        raise MechlabError("no transcoder was given", None, "train one with target blocks.L.hook_mlp_out")
    forward, weights = DecomposedForward(subject.module), read_weights(subject.module)
    n_layers, tokens = len(weights.attentions), tokens.to(subject.device)
    placed = _by_layer(subject, transcoders, n_layers)
    seen: dict[tuple[str, int], Tensor] = {}

    def read(stage: Stage, stream: Tensor) -> Tensor:
        seen[stage.kind, stage.layer] = stream[0]
        return stream

    run = forward.run(tokens[None], read=read, keep=True)
    assert run.sources is not None
    assert run.logits is not None
    streams = [seen["attention", layer] for layer in range(n_layers)]
    mlp_streams = [seen["mlp", layer] for layer in range(n_layers)]
    mlp_norms = [_freeze(norm, x) for norm, x in zip(weights.mlp_norms, mlp_streams, strict=True)]
    inputs = [norm(x) for norm, x in zip(mlp_norms, mlp_streams, strict=True)]
    outputs = torch.stack(
        [run.sources[stage.writes][0, 0] for stage in forward.shape.stages if stage.kind == "mlp"]
    )
    features: dict[int, LayerFeatures] = {}
    errors, biases = outputs.clone(), outputs.new_zeros(n_layers, outputs.shape[-1])
    skips: list[Tensor | None] = [None] * n_layers
    for sae, layers in placed:
        for part, layer in enumerate(layers):
            features[layer] = _features(sae, part, layers, inputs[layer])
            biases[layer] = sae.b_dec[_span(sae.out_sizes, part)]
        if sae.W_skip is not None:
            skips[layers[0]] = sae.W_skip.detach()
            errors[layers[0]] -= inputs[layers[0]] @ sae.W_skip.T
    errors -= biases[:, None]
    for found in features.values():
        for layer, written in found.writes.items():
            errors[layer] -= written.sum(1)
    patterns = _patterns(subject, tokens, n_layers)
    attentions = [
        FrozenAttention(attention, _freeze(attention.norm, x), pattern)
        for attention, x, pattern in zip(weights.attentions, streams, patterns, strict=True)
    ]
    unembed: Any = weights.unembed
    bias = getattr(unembed, "bias", None)
    return Replacement(
        subject=subject,
        tokens=tokens,
        embedded=run.sources[0, 0],
        attentions=tuple(attentions),
        mlp_norms=tuple(mlp_norms),
        final_norm=_freeze(weights.final_norm, seen["logits", n_layers]),
        features=features,
        errors=errors,
        biases=biases,
        skips=tuple(skips),
        unembed=unembed.weight.detach(),
        unembed_bias=None if bias is None else bias.detach(),
        logits=run.logits[0],
        parallel=weights.parallel,
    )


def _patterns(subject: Subject, tokens: Tensor, n_layers: int) -> list[Tensor]:
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(n_layers)]
    found = read_sites(subject, tokens[None], names)
    return [found[name][0] for name in names]


def _freeze(norm: AnyNorm, x: Float[Tensor, "pos d_model"]) -> FrozenNorm:
    if not isinstance(norm, Norm):
        raise MechlabError("model has no norms to freeze", None, "use a trained language model")
    centred = x - x.mean(-1, keepdim=True) if norm.centred else x
    return FrozenNorm(norm, torch.rsqrt(centred.pow(2).mean(-1, keepdim=True) + norm.eps))


def _by_layer(
    subject: Subject, transcoders: Sequence[Placed], n_layers: int
) -> Iterator[tuple[Sae, list[int]]]:
    """Each dictionary's weights, on the model's device, and the layers it stands for."""
    taken: set[str] = set()
    names = {f"blocks.{n}.mlp.hook_in": (n, f"blocks.{n}.hook_mlp_out") for n in range(n_layers)}
    for placed in transcoders:
        refuse_contextual(placed.sae)
        if isinstance(placed, Dictionary):
            placed.check(subject)
        shown = f"{', '.join(placed.inputs)} → {', '.join(placed.outputs)}"
        pairs = [names.get(site, (0, ""))[1] for site in placed.inputs]
        layers = [names.get(site, (0, ""))[0] for site in placed.inputs]
        single = len(pairs) == 1 or (isinstance(placed.sae, Clt) and layers == sorted(layers))
        if tuple(pairs) != placed.outputs or not single:
            raise MechlabError(
                "dictionary does not stand for an MLP", shown, "mlp.hook_in to hook_mlp_out of one layer"
            )
        for site, size in zip(
            (*placed.inputs, *placed.outputs), (*placed.sae.in_sizes, *placed.sae.out_sizes), strict=True
        ):
            if size != (there := subject.site(site).dim):
                raise MechlabError(f"dictionary has another size than {site}", size, f"the site has {there}")
        if both := taken & set(placed.outputs):
            raise MechlabError("two dictionaries write to one site", min(both), "give one for each layer")
        taken |= set(placed.outputs)
        sae = placed.sae
        if not isinstance(sae, Clt) and type(sae).decode is not Sae.decode:
            raise MechlabError("decoder is not linear in the codes", sae.arch, "use a plain dictionary")
        if sae.b_dec.dtype != subject.dtype:
            raise MechlabError(
                "dictionary and model have different types",
                f"{sae.b_dec.dtype} and {subject.dtype}",
                'load the model with dtype="float32"',
            )
        if sae.b_dec.device != subject.device:
            sae = copy.deepcopy(sae).to(subject.device)
        yield sae, layers


def _features(sae: Sae, part: int, layers: list[int], x: Float[Tensor, "pos d_model"]) -> LayerFeatures:
    if isinstance(sae, Clt):
        codes = sae.encode_layer(part, x)
        reads, constants = _reads(lambda rows, one: sae.layer_differentiable(part, rows, one), x, codes)
        decoder, local = sae.W_write[part], codes.indices - part * sae.per_layer
        sizes, targets = sae.out_sizes[part:], layers[part:]
    else:
        codes = sae.encode(x)
        reads, constants = _reads(sae.differentiable, x, codes)
        decoder, local, sizes, targets = sae.W_dec, codes.indices, sae.out_sizes, layers
    written = decoder.detach()[local] * codes.values[..., None]
    writes = {layer: written[..., _span(sizes, n)] for n, layer in enumerate(targets)}
    return LayerFeatures(codes, reads, constants, writes)


def _reads(
    differentiable: Callable[[Tensor, Codes], Codes], x: Float[Tensor, "pos d_model"], codes: Codes
) -> tuple[Float[Tensor, "pos k d_model"], Float[Tensor, "pos k"]]:
    """Gradient of each code at its row, and the rest of its value; any locally affine encoder."""
    k = codes.values.shape[1]
    rows = x.repeat_interleave(k, 0).requires_grad_()
    with torch.enable_grad():
        alone = differentiable(rows, Codes(codes.values.reshape(-1, 1), codes.indices.reshape(-1, 1)))
        (gradient,) = torch.autograd.grad(alone.values.sum(), rows)
    used = codes.values != 0
    values = alone.values.detach().view_as(codes.values)
    scale = codes.values.abs().max().clamp_min(1.0)
    if bool(((values - codes.values).abs() > _CLOSE * scale)[used].any()):
        raise MechlabError("codes are not affine one by one", "encoder", "use topk, relu, jumprelu or gated")
    gradient = torch.where(used[..., None], gradient.view(len(x), k, -1), 0)
    return gradient, torch.where(used, codes.values - torch.einsum("pkd,pd->pk", gradient, x), 0)


def _span(sizes: Sequence[int], part: int) -> slice:
    start = sum(sizes[:part])
    return slice(start, start + sizes[part])
