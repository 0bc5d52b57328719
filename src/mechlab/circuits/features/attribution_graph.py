"""Attribution graphs: what each active feature, error and token adds to later features and logits.

Source: Ameisen et al. (2025), *Circuit Tracing*; Lindsey et al. (2025), *On the Biology of a Large
Language Model*, transformer-circuits.pub. In the replacement model of a prompt (``replacement``)

    A[s, r] = a_s · (decoder_s · J_{s→r} · encoder_r)

is what source s adds to reader r directly, by the stream and any number of attention layers, but
through no other feature. s: features (activation a_s), and with a_s = 1 errors and embeddings.
r: features, and logits less the mean logit. The model being linear, this is complete:

    Σ_s A[s, r] + constant_r = value_r

with the constants (biases of norms, attention, transcoders) apart. Columns are computed in batches,
from the readers back to the embeddings; no gradient is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechlab.circuits.features.graph import FeatureGraph, FeatureNode
from mechlab.circuits.features.replacement import Replacement
from mechlab.errors import MechlabError

_SHARE, _MOST = 0.95, 10


@dataclass(frozen=True)
class _Readers:
    """Readers side by side; those of layer n_layers are the logits."""

    layer: Int[Tensor, "reader"]
    position: Int[Tensor, "reader"]
    vector: Float[Tensor, "reader d_model"]
    constant: Float[Tensor, "reader"]

    def __getitem__(self, part: slice) -> _Readers:
        return _Readers(self.layer[part], self.position[part], self.vector[part], self.constant[part])


@torch.no_grad()
def attribution_graph(
    replacement: Replacement,
    logits: Sequence[int] | None = None,
    *,
    position: int = -1,
    batch_size: int = 512,
) -> FeatureGraph:
    """The whole attribution graph of a prompt; nodes in the order in which they act.

    Args:
        logits: output tokens; the most likely ones by default: at most 10, no more than make up 95 %.
        position: where they are predicted.
        batch_size: readers at a time; memory is ``batch_size · pos · d_model`` floats, a few times.

    Every node has its value, readers their constant, logits their probability as score (a
    distribution over those chosen: they are divided by their sum). Raises MechlabError for a
    position or token that does not exist, one given twice, no token, or a batch size below 1.
    """
    if batch_size < 1:
        raise MechlabError("batch size must be at least 1", batch_size)
    n_pos = len(replacement.tokens)
    if not -n_pos <= position < n_pos:
        raise MechlabError("prompt has no position", position, f"it has {n_pos} tokens")
    position %= n_pos
    tokens = _tokens(replacement, logits, position)
    nodes, numbers = _nodes(replacement)
    features = [torch.empty(0, dtype=torch.long)] + [
        numbers[layer][numbers[layer] >= 0] for layer in sorted(replacement.features)
    ]
    n_sources = len(nodes)
    probability = replacement.logits[position].softmax(-1)[tokens]
    centred = replacement.logits[position] - replacement.logits[position].mean()
    weights = (probability / probability.sum()).tolist()
    nodes += [
        FeatureNode("logit", "logits", replacement.n_layers, position, token, value, score=weight)
        for token, value, weight in zip(tokens.tolist(), centred[tokens].tolist(), weights, strict=True)
    ]
    readers = _readers(replacement, tokens, position)
    scores = replacement.embedded.new_zeros(n_sources, len(readers.layer))
    constants = readers.constant.clone()
    for first in range(0, len(readers.layer), batch_size):
        part = slice(first, first + batch_size)
        constants[part] += _columns(replacement, readers[part], numbers, scores[:, part])
    columns = torch.cat([*features, torch.arange(n_sources, len(nodes))])
    for number, constant in zip(columns.tolist(), constants.tolist(), strict=True):
        nodes[number] = replace(nodes[number], constant=constant)
    return FeatureGraph(tuple(nodes), torch.arange(n_sources), columns, scores.cpu().float())


def _tokens(replacement: Replacement, logits: Sequence[int] | None, position: int) -> Int[Tensor, "target"]:
    d_vocab = replacement.logits.shape[1]
    if logits is None:
        likely = replacement.logits[position].softmax(-1).topk(min(_MOST, d_vocab))
        before = likely.values.cumsum(0) - likely.values
        return likely.indices[before < _SHARE]
    if not logits:
        raise MechlabError("no output token was given", None, "leave logits out for the most likely ones")
    for number, token in enumerate(logits):
        if not 0 <= token < d_vocab:
            raise MechlabError("token has no logit", token, f"the vocabulary has {d_vocab}")
        if token in logits[:number]:
            raise MechlabError("output token is given twice", token, "give it once")
    return torch.tensor(logits, device=replacement.logits.device)


def _nodes(replacement: Replacement) -> tuple[list[FeatureNode], dict[int, Int[Tensor, "pos k"]]]:
    """All sources; and the number of each layer's features by slot, -1 where none is active.

    Embeddings come first; then layer by layer its features and, last, an error for each position.
    """
    nodes = [
        FeatureNode("embedding", "embed", -1, position, token)
        for position, token in enumerate(replacement.tokens.tolist())
    ]
    numbers = {}
    for layer in range(replacement.n_layers):
        site = f"blocks.{layer}.hook_mlp_out"
        found = replacement.features.get(layer)
        if found is not None:
            active = found.codes.values != 0
            places = torch.full(active.shape, -1, dtype=torch.long)
            places[active.cpu()] = len(nodes) + torch.arange(int(active.sum()))
            numbers[layer] = places
            at = active.nonzero()[:, 0].tolist()
            latents, values = found.codes.indices[active].tolist(), found.codes.values[active].tolist()
            nodes += [
                FeatureNode("feature", site, layer, position, latent, value)
                for position, latent, value in zip(at, latents, values, strict=True)
            ]
        nodes += [FeatureNode("error", site, layer, position) for position in range(len(replacement.tokens))]
    return nodes, numbers


def _readers(replacement: Replacement, tokens: Int[Tensor, "target"], position: int) -> _Readers:
    """Every active feature by layer, then the logits: reader vectors at the normalised stream."""
    parts = []
    for layer, found in sorted(replacement.features.items()):
        active = found.codes.values != 0
        at = active.nonzero()[:, 0]
        layers = torch.full_like(at, layer)
        parts.append(_Readers(layers, at, found.reads[active], found.constants[active]))
    rows, bias = replacement.unembed, replacement.unembed_bias
    vectors = rows[tokens] - rows.mean(0)
    constant = vectors.new_zeros(len(tokens)) if bias is None else bias[tokens] - bias.mean()
    last = torch.full_like(tokens, replacement.n_layers)
    parts.append(_Readers(last, torch.full_like(tokens, position), vectors, constant))
    return _Readers(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(_Readers)))


def _columns(
    replacement: Replacement,
    readers: _Readers,
    numbers: dict[int, Int[Tensor, "pos k"]],
    scores: Float[Tensor, "n_sources reader"],
) -> Float[Tensor, "reader"]:
    """Fill the scores of some readers, from the top down; returns what biases give them."""
    n_pos = len(replacement.tokens)
    start = scores.new_zeros(len(readers.layer), n_pos, readers.vector.shape[1])
    # The row where a layer's errors begin: they follow its features.
    ends = n_pos
    firsts = []
    for layer in range(replacement.n_layers):
        ends += 0 if layer not in numbers else int((numbers[layer] >= 0).sum())
        firsts.append(ends)
        ends += n_pos
    stream, constants = replacement.final_norm.pull_back(_put(start, readers, replacement.n_layers))
    for layer in reversed(range(replacement.n_layers)):
        for owner, found in replacement.features.items():
            if layer in found.writes:
                active = numbers[owner] >= 0
                added = torch.einsum("rpd,pkd->pkr", stream, found.writes[layer])
                scores[numbers[owner][active]] += added[active]
        errors = torch.einsum("rpd,pd->pr", stream, replacement.errors[layer])
        scores[firsts[layer] : firsts[layer] + n_pos] = errors
        constants = constants + stream.sum(1) @ replacement.biases[layer]
        skip = replacement.skips[layer]
        at_input = _put(start if skip is None else stream @ skip, readers, layer)
        at_mlp, constant = replacement.mlp_norms[layer].pull_back(at_input)
        constants = constants + constant
        middle = stream + at_mlp
        at_attention, constant = replacement.attentions[layer].pull_back(
            stream if replacement.parallel else middle
        )
        stream, constants = middle + at_attention, constants + constant
    scores[:n_pos] = torch.einsum("rpd,pd->pr", stream, replacement.embedded)
    return constants


def _put(
    gradient: Float[Tensor, "reader pos d_model"], readers: _Readers, layer: int
) -> Float[Tensor, "reader pos d_model"]:
    """The gradient with a layer's readers added, each at its position."""
    own = (readers.layer == layer).nonzero()[:, 0]
    return gradient.index_put((own, readers.position[own]), readers.vector[own], accumulate=True)
