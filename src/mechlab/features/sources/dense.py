"""Neurons, attention heads and directions as features.

They are never quite silent, so an index keeps what lies above a threshold: one number for all, or
for every feature the value that a given share of the tokens exceeds. What is kept has its own
value, not what is left above the threshold. An index holds positive values; with ``signs`` the
negative side of feature f is feature n + f, with the opposite value.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mechlab.errors import MechlabError
from mechlab.features.index import FeatureIndex
from mechlab.features.sources.block import Block, regrouped
from mechlab.features.sources.build import Progress, build, padded
from mechlab.features.sources.rows import RowSource, require_sites
from mechlab.files import fingerprint
from mechlab.models.subject import Subject
from mechlab.models.weights import at_least_single, read_weights
from mechlab.sae.codes import Codes

SAMPLE = 16_384
"""Rows from the start that thresholds of a share are taken from."""
SHARE = 0.05
_Read = Callable[[dict[str, Tensor]], Tensor]


def index_site(
    site: str,
    source: RowSource,
    path: Path | str,
    *,
    threshold: float = 0.0,
    share: float | None = SHARE,
    signs: bool = False,
    seed: int = 0,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> FeatureIndex:
    """Index the coordinates of a site: neurons, at ``blocks.1.mlp.hook_post``.

    Args:
        threshold: values up to this are left out; 0 at least counts.
        share: leave out, for every feature, what is not among its top share of values (about: the
            bound is the quantile over the first 16,384 rows); None keeps all above the threshold.
        signs: the other side of every coordinate is a feature too.

    Raises MechlabError for settings out of range and a site that the source lacks.
    """
    return _index(
        (site,), lambda values: values[site], {"kind": "site", "site": site}, {}, source, path,
        threshold=threshold, share=share, signs=signs, seed=seed, overwrite=overwrite, progress=progress,
    )  # fmt: skip


def index_vectors(
    vectors: Float[Tensor, "feature d"],
    site: str,
    source: RowSource,
    path: Path | str,
    *,
    bias: Float[Tensor, "feature"] | None = None,
    names: Sequence[str] = (),
    threshold: float = 0.0,
    share: float | None = None,
    signs: bool = False,
    seed: int = 0,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> FeatureIndex:
    """Index directions at a site, probes for one: feature f is x · v_f + b_f where that is positive.

    Args:
        vectors: used as they are, not normalised.
        names: of the features, kept in ``about``.
        threshold, share, signs: as for ``index_site``.

    Raises MechlabError when sizes do not agree, and as ``index_site`` does.
    """
    for wrong, what in ((bias, "biases"), (names or None, "names")):
        if wrong is not None and len(wrong) != len(vectors):
            raise MechlabError(f"vectors and {what} differ in number", (len(vectors), len(wrong)))
    weights = vectors.detach().to(source.device, torch.float32)
    offset = torch.zeros(len(vectors)) if bias is None else bias.detach().float()
    offset = offset.to(source.device)

    def read(values: dict[str, Tensor]) -> Tensor:
        x = values[site]
        if x.shape[1] != weights.shape[1]:
            raise MechlabError(
                f"vectors have another size than {site}", weights.shape[1], f"it has {x.shape[1]}"
            )
        return torch.addmm(offset, x, weights.T)

    numbers = [weights.cpu().tolist(), offset.cpu().tolist()]
    return _index(
        (site,), read, {"kind": "vectors", "site": site, "names": list(names)},
        {"vectors": fingerprint(numbers)}, source, path,
        threshold=threshold, share=share, signs=signs, seed=seed, overwrite=overwrite, progress=progress,
        n_features=len(vectors),
    )  # fmt: skip


def index_heads(
    subject: Subject,
    source: RowSource,
    path: Path | str,
    *,
    layers: Sequence[int] | None = None,
    norm: Literal["result", "z"] = "result",
    threshold: float = 0.0,
    share: float | None = SHARE,
    seed: int = 0,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> FeatureIndex:
    """Index attention heads, layer by layer: head h of the i-th layer is feature i · n_heads + h.

    A head's activation is the norm of what it adds to the residual stream, |z_h W_O,h| (the norm of
    ``attn.hook_result``, output bias left out), computed from ``attn.hook_z``. With ``norm="z"`` it is
    |z_h|, for models whose weights the decomposed forward does not know; heads are then not
    comparable with each other.

    Args:
        layers: all by default.
        threshold, share: as for ``index_site``.

    Raises MechlabError for a source of another model, a layer that does not exist, or one named twice,
    and as ``read_weights`` does.
    """
    there = source.inputs().get("model")
    if there != subject.fingerprint:
        raise MechlabError(
            "text comes from another model than the heads",
            f"fingerprint {str(there)[:12]}, not {subject.fingerprint[:12]} ({subject.name})",
            "use the same",
        )
    n_layers = int(subject.module.config.num_hidden_layers)
    chosen = list(range(n_layers)) if layers is None else list(layers)
    if not chosen or len(set(chosen)) < len(chosen) or not all(0 <= layer < n_layers for layer in chosen):
        raise MechlabError("layers do not exist", chosen, f"they are 0 to {n_layers - 1}, each named once")
    sites = tuple(f"blocks.{layer}.attn.hook_z" for layer in chosen)
    heads = subject.site(sites[0]).heads
    assert heads is not None
    grams: dict[str, Tensor] = {}
    if norm == "result":
        attentions = read_weights(subject.module).attentions
        for site, layer in zip(sites, chosen, strict=True):
            output = at_least_single(attentions[layer].output).to(source.device)
            grams[site] = output @ output.transpose(1, 2)

    def read(values: dict[str, Tensor]) -> Tensor:
        parts = []
        for site in sites:
            z = values[site].view(-1, heads, values[site].shape[1] // heads)
            # |z W|² = z (W Wᵀ) z: d_head² products a head, where writing the result takes d_head · d_model.
            seen = torch.einsum("rhk,hkj->rhj", z, grams[site]) if grams else z
            parts.append((seen * z).sum(-1).clamp_min(0).sqrt())
        return torch.cat(parts, dim=1)

    about = {"kind": "heads", "layers": chosen, "heads": heads, "norm": norm}
    return _index(
        sites, read, about, {}, source, path, n_features=heads * len(chosen),
        threshold=threshold, share=share, signs=False, seed=seed, overwrite=overwrite, progress=progress,
    )  # fmt: skip


def _index(
    sites: tuple[str, ...],
    read: _Read,
    about: Mapping[str, Any],
    inputs: Mapping[str, str],
    source: RowSource,
    path: Path | str,
    *,
    threshold: float,
    share: float | None,
    signs: bool,
    seed: int,
    overwrite: bool,
    progress: Progress | None,
    n_features: int | None = None,
) -> FeatureIndex:
    if threshold < 0:
        raise MechlabError("threshold is negative", threshold, "an index holds positive values; see signs")
    if share is not None and not 0 < share <= 1:
        raise MechlabError("share is out of range", share, "above 0 and up to 1, or None")
    require_sites(source, sites)
    if n_features is None:
        # The source alone knows how wide the site is.
        with contextlib.closing(source.blocks(sites)) as blocks:
            first = next(blocks, None)
        if first is None:
            raise MechlabError("source has no rows", None, "give text")
        n_features = sum(first.values[site].shape[1] for site in sites)

    def dense(block: Block) -> Tensor:
        found = read(block.values)
        return torch.cat([found, -found], dim=1) if signs else found

    @functools.cache
    def bound() -> Tensor:
        if share is None:
            return torch.tensor(threshold, device=source.device)
        with contextlib.closing(source.blocks(sites)) as first:
            return _bounds(map(dense, regrouped(first)), share).clamp_min(threshold)

    def encode(block: Block) -> Codes:
        found = dense(block)
        # A NaN must not pass for silence.
        row, feature = torch.nonzero(~(found <= bound()), as_tuple=True)
        return padded(row, feature, found[row, feature], len(block))

    settings = {"threshold": threshold, "share": share, "signs": signs}
    return build(
        source, path, 2 * n_features if signs else n_features,
        lambda: regrouped(source.blocks(sites)), encode,
        about={**about, **settings}, inputs=inputs, seed=seed, overwrite=overwrite, progress=progress,
    )  # fmt: skip


def _bounds(dense: Iterator[Float[Tensor, "row feature"]], share: float) -> Float[Tensor, "feature"]:
    """The quantile 1 − share of every feature over the first rows; 0 at least."""
    parts: list[Tensor] = []
    for part in dense:
        parts.append(part)
        if sum(map(len, parts)) >= SAMPLE:
            break
    sample = torch.cat(parts)[:SAMPLE]
    # What is strictly above the value after the top share is that share.
    kept = round(share * len(sample))
    if kept >= len(sample):
        return sample.new_zeros(sample.shape[1])
    return sample.topk(kept + 1, dim=0).values[-1].clamp_min(0)
