"""What a feature promotes by itself: direct logit attribution of directions.

    effect = fold(v) W_U,   less its mean over the vocabulary

with v what the feature adds to the residual stream per unit of activation, fold(v) = v ∘ γ (less the
mean of v first, under LayerNorm) the final norm's linear part, and the norm's scale 1/σ left out. So an
effect is in logits per unit of activation times σ: one feature's effects can be compared with one
another, and features with each other at the same position. The mean is taken out as adding the same
number to all logits changes nothing. What later layers make of a feature is not in it.

Where a direction lives decides what it adds to the stream: as it is at sites of the stream
(``hook_resid_*``) and of what is added to it (``hook_mlp_out``, ``hook_attn_out``), through W_O at
``attn.hook_z`` (all heads or one), through W_out at ``mlp.hook_post``. Other sites write nothing there.

Source: logit lens of directions as in nostalgebraist (2020) and Dar et al. (2023, arXiv 2209.02535);
kurtosis and skew as signs of features that act on the vocabulary: Gurnee et al. (2024, arXiv
2401.12181), *Universal Neurons*, and Bloom & Lin (2024) for dictionaries.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechlab.circuits.weights.vocabulary import folded_unembedding
from mechlab.errors import MechlabError
from mechlab.features.vocabulary import Vocabulary
from mechlab.models.subject import Subject
from mechlab.models.weights import Mlp, at_least_single, read_weights
from mechlab.sae.splice import Placed

_STREAM = re.compile(r"(blocks\.\d+\.hook_(resid_\w+|mlp_out|attn_out)|hook_(pos_)?embed)$")
_ADDED = re.compile(r"blocks\.\d+\.hook_(mlp|attn)_out$")
_BUDGET = 2**25


@dataclass(frozen=True, eq=False)
class LogitEffects:
    """Direct effects of directions on the logits.

    Attributes:
        promoted, suppressed: token ids, strongest first.
        promoted_value, suppressed_value: their effects; see the module's docstring for the unit.
        deviation, skew, kurtosis: of a direction's effects over the vocabulary. Kurtosis is 3 for a
            normal distribution; far above it few tokens are meant. NaN for a direction without effect.
    """

    promoted: Int[Tensor, "direction top"]
    promoted_value: Float[Tensor, "direction top"]
    suppressed: Int[Tensor, "direction top"]
    suppressed_value: Float[Tensor, "direction top"]
    deviation: Float[Tensor, "direction"]
    skew: Float[Tensor, "direction"]
    kurtosis: Float[Tensor, "direction"]

    def words(self, direction: int, vocabulary: Vocabulary, *, suppressed: bool = False) -> tuple[str, ...]:
        """Texts of the tokens that a direction promotes, or suppresses."""
        ids = (self.suppressed if suppressed else self.promoted)[direction]
        return tuple(vocabulary[int(token)] for token in ids)


@torch.no_grad()
def centred_unembedding(subject: Subject) -> Float[Tensor, "d_model d_vocab"]:
    """W_U with the final norm folded in, less its mean over the vocabulary.

    Raises MechlabError when the model's weights are not known to the decomposed forward.
    """
    unembed = folded_unembedding(read_weights(subject.module))
    return unembed - unembed.mean(1, keepdim=True)


@torch.no_grad()
def logit_effects(
    subject: Subject, directions: Float[Tensor, "direction d_model"], *, top: int = 10
) -> LogitEffects:
    """Direct effects on the logits of directions in the residual stream.

    Memory is bounded: all effects of all directions are never held together. Raises MechlabError
    when sizes do not agree or the model's weights are not known to the decomposed forward.
    """
    unembed = centred_unembedding(subject)
    if directions.shape[1] != len(unembed):
        raise MechlabError(
            "directions are not in the residual stream",
            f"size {directions.shape[1]}, not {len(unembed)}",
            "map them with stream_directions",
        )
    if not 1 <= top <= unembed.shape[1]:
        raise MechlabError("top is out of range", top, f"1 to {unembed.shape[1]}")
    parts = [
        _effects(block.to(unembed), unembed, top)
        for block in torch.split(directions, max(1, _BUDGET // unembed.shape[1]))
    ]
    return LogitEffects(*(torch.cat(column).cpu() for column in zip(*parts, strict=True)))


def _effects(v: Tensor, unembed: Tensor, top: int) -> tuple[Tensor, ...]:
    effect = v @ unembed
    highest, lowest = effect.topk(top), effect.topk(top, largest=False)
    deviation = effect.pow(2).mean(1).sqrt()
    unit = effect / deviation[:, None]
    ends = (highest.indices, highest.values, lowest.indices, lowest.values)
    return (*ends, deviation, unit.pow(3).mean(1), unit.pow(4).mean(1))


@torch.no_grad()
def stream_directions(
    subject: Subject, vectors: Float[Tensor, "direction d_site"], site: str
) -> Float[Tensor, "direction d_model"]:
    """What directions at a site add to the residual stream.

    The identity gives every neuron's (``mlp.hook_post``) or head coordinate's (``attn.hook_z``) own.
    Raises MechlabError for a site that does not write to the stream, with a site where it can be asked.
    """
    place = subject.site(site)
    if vectors.shape[1] != place.dim:
        raise MechlabError(
            f"directions have another size than {site}", vectors.shape[1], f"it has {place.dim}"
        )
    base, _, head = site.partition(":")
    single = at_least_single(vectors)
    if _STREAM.match(base):
        return single
    if base.endswith("attn.hook_z"):
        output = at_least_single(read_weights(subject.module).attentions[place.layer].output)
        return single.to(output) @ (output[int(head)] if head else output.flatten(0, 1))
    if base.endswith("mlp.hook_post"):
        mlp = read_weights(subject.module).mlps[place.layer]
        if isinstance(mlp, Mlp):
            zero = single.new_zeros(1, place.dim).to(next(mlp.out.parameters()))
            # A Linear's weight is [out, in], a Conv1D's [in, out]; as a map they are alike.
            found: Tensor = mlp.out(single.to(zero)) - mlp.out(zero)
            return at_least_single(found)
    raise MechlabError(
        "site does not write to the residual stream, so it has no direct effect on the logits",
        site,
        "ask at hook_resid_*, hook_mlp_out, hook_attn_out, mlp.hook_post or attn.hook_z",
    )


@torch.no_grad()
def dictionary_directions(
    subject: Subject, dictionary: Placed, *, site: str | None = None, signs: bool = False
) -> Float[Tensor, "feature d_model"]:
    """What every latent of a dictionary adds to the residual stream per unit of activation.

    A transcoder's latents write at its output. Of several outputs that are all added to the stream
    (cross-layer transcoders) the sum is taken.

    Args:
        site: which output to take, where there are several (crosscoders).
        signs: as for ``index_dictionary``: the opposite directions follow.

    Raises MechlabError when the outputs cannot be added and no ``site`` is given, and as
    ``stream_directions`` does.
    """
    sae, outputs = dictionary.sae, dictionary.outputs
    if site is not None and site not in outputs:
        raise MechlabError(
            "dictionary does not write at the site", site, f"it writes at {', '.join(outputs)}"
        )
    if site is None and len(outputs) > 1 and not all(_ADDED.match(each) for each in outputs):
        raise MechlabError(
            "dictionary writes at several places of one stream", ", ".join(outputs), "name one: site="
        )
    parts = zip(outputs, torch.split(sae.W_dec, list(sae.out_sizes), dim=1), strict=True)
    written = [
        stream_directions(subject, rows, place) for place, rows in parts if site is None or place == site
    ]
    total = torch.stack(written).sum(0)
    return torch.cat([total, -total]) if signs else total
