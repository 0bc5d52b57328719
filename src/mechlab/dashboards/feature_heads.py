"""Which attention heads write what a feature reads.

For a dictionary that reads the residual stream at some layer, the direct contribution of a head h to a
feature's pre-activation on a token is

    (output of h on the token) · (encoder row of the feature)

and its mean over the tokens on which the feature is active says which heads the feature hears. Outputs of
heads add up to the stream together with embeddings and MLPs, so contributions can be compared with one
another, not with the activation alone. The mean is taken first, as the product is linear: of the heads'
mixed values z, before W_O.

Source: direct attribution through the residual stream (Elhage et al. 2021), here to a feature.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Int

from mechlab.activations.capture import read_sites
from mechlab.features.index import FeatureIndex
from mechlab.features.text import Text
from mechlab.models.subject import Subject
from mechlab.models.weights import at_least_single, read_weights
from mechlab.sae.splice import Placed

TOKENS, TOP = 16_000, 5
_STREAM = re.compile(r"blocks\.(\d+)\.hook_resid_(pre|mid|post)$")
_BATCH, _BLOCK = 32, 512

Heads = dict[int, list[tuple[str, float]]]


@torch.no_grad()
def head_contributions(
    subject: Subject, dictionary: Placed, index: FeatureIndex, *, tokens: int = TOKENS, seed: int = 0
) -> Heads:
    """Feature → the heads that write most along its encoder row, with the mean contribution; strongest first.

    Names are those of circuits ("a1.h3"). Empty where the dictionary does not read one place of the
    residual stream; features that are not active on the sample are left out.

    Args:
        tokens: about so many tokens of random contexts are run.

    Raises MechlabError when the model's weights are not known to the decomposed forward.
    """
    place = _STREAM.match(dictionary.inputs[0]) if len(dictionary.inputs) == 1 else None
    if place is None:
        return {}
    attentions = read_weights(subject.module).attentions[: int(place[1]) + (place[2] != "pre")]
    sampled, rows = _sample(index.text, subject, tokens, np.random.default_rng(seed))
    features, averaging = _averaging(index, rows)
    if not attentions or not len(features):
        return {}
    encoder = at_least_single(dictionary.sae.encoder.detach()).cpu()
    if index.about.get("signs"):
        encoder = torch.cat([encoder, -encoder])
    mixed = _mixed(subject, sampled, len(attentions))
    names = [f"a{layer}.h{head}" for layer, each in enumerate(attentions) for head in range(len(each.output))]
    found: Heads = {}
    for start in range(0, len(features), _BLOCK):
        some = features[start : start + _BLOCK]
        means = torch.from_numpy(averaging[start : start + _BLOCK] @ mixed)
        contributions, first = [], 0
        for attention in attentions:
            output = at_least_single(attention.output).cpu()
            heads, d_head = output.shape[:2]
            z = means[:, first : first + heads * d_head].view(-1, heads, d_head)
            reads = torch.einsum("hkd,fd->fhk", output, encoder[some])
            contributions.append((z * reads).sum(-1))
            first += heads * d_head
        values = torch.cat(contributions, dim=1)
        best = values.abs().topk(min(TOP, len(names)), dim=1).indices
        for feature, which, row in zip(some.tolist(), best.tolist(), values.tolist(), strict=True):
            found[feature] = [(names[head], row[head]) for head in which]
    return found


def _sample(
    text: Text, subject: Subject, tokens: int, generator: np.random.Generator
) -> tuple[list[Int[np.ndarray, "_"]], Int[np.ndarray, "sampled"]]:
    """Random contexts as the model saw them, and their rows, one after the other.

    A context of which the text lacks the beginning cannot be run as it was, and is left out.
    """
    first = np.flatnonzero(np.append(True, text.context[1:] != text.context[:-1])[: len(text)])
    last = np.append(first, len(text))[1:]
    begins = int(subject.bos is not None)
    whole = (text.position[first] == begins) & (last - first + begins <= subject.n_ctx)
    whole &= text.position[last - 1] - text.position[first] == last - first - 1
    found, rows, have = [], [np.zeros(0, np.int64)], 0
    for at in generator.permutation(np.flatnonzero(whole)).tolist():
        if have >= tokens:
            break
        here = np.arange(first[at], last[at])
        ids = text.tokens[here].astype(np.int64)
        found.append(ids if subject.bos is None else np.append(subject.bos, ids))
        rows.append(here)
        have += len(here)
    return found, np.concatenate(rows)


def _mixed(subject: Subject, sampled: Sequence[Int[np.ndarray, "_"]], layers: int) -> Any:
    """Every head's mixed values on the sampled rows ``[row, layer * heads * d]``."""
    sites = [f"blocks.{layer}.attn.hook_z" for layer in range(layers)]
    begins = int(subject.bos is not None)
    order = sorted(range(len(sampled)), key=lambda at: len(sampled[at]))
    found: dict[int, np.ndarray] = {}
    for start in range(0, len(order), _BATCH):
        some = order[start : start + _BATCH]
        lengths = [len(sampled[at]) for at in some]
        tokens = torch.zeros(len(some), max(lengths), dtype=torch.long)
        for row, at in enumerate(some):
            tokens[row, : lengths[row]] = torch.from_numpy(sampled[at])
        mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
        read = read_sites(subject, tokens, sites, mask)
        values = torch.cat([read[site] for site in sites], dim=-1).float().cpu().numpy()
        found |= {at: values[row, begins : lengths[row]] for row, at in enumerate(some)}
    return np.concatenate([found[at] for at in range(len(sampled))])


def _averaging(
    index: FeatureIndex, rows: Int[np.ndarray, "sampled"]
) -> tuple[Int[np.ndarray, "feature"], Any]:
    """Features that are active on some of the rows, and a sparse matrix that takes means over those rows."""
    # scipy is heavy to import and wanted only here.
    from scipy.sparse import csr_matrix  # type: ignore[import-untyped]

    place = np.full(len(index.text), -1, np.int32)
    place[rows] = np.arange(len(rows))
    at = place[index.row]
    here = at >= 0
    counts = np.diff(np.concatenate([[0], np.cumsum(here)])[index.indptr])
    features = np.flatnonzero(counts)
    weight = np.repeat(1 / np.maximum(counts, 1), counts).astype(np.float32)
    indptr = np.concatenate([[0], np.cumsum(counts)])
    return features, csr_matrix((weight, at[here], indptr), (index.n_features, len(rows)))[features]
