"""How good a dictionary is inside its model, on documents it never saw.

All totals are kept per document, so every figure has a bootstrap interval over documents.

* L0: mean number of active latents per token.
* Fraction of variance explained, in the two definitions in use:
  ``fve`` = 1 - sum ||y - y_hat||^2 / sum ||y - mean(y)||^2 over all held-out tokens, the mean
  being theirs (one total by the other; SAELens' "explained_variance");
  ``fve_per_token`` = the mean over tokens of 1 - ||y - y_hat||^2 / ||y - m||^2, m being the
  training mean (SAELens' "explained_variance_legacy", in SAEBench's published tables, takes the
  batch's).
* CE loss recovered: (CE_ablated - CE_spliced) / (CE_ablated - CE_clean), where the output is
  replaced by the dictionary's, or by zero or by the training mean (SAEBench's definition,
  Karvonen et al. 2025, arXiv 2503.09532). KL recovered: 1 - KL_spliced / KL_ablated, KL being
  that of the clean run's next-token distribution to the other's. BOS is never replaced and
  never counted.
* Dead: share of latents that fire on no held-out token. Dense: share that fire on more than a
  tenth of them.

y is the site that is read, or for a transcoder the site it predicts; a crosscoder's sites are
replaced together. A converted dictionary comes without a training mean; the one it keeps instead (see
``Dictionary.mean``) stands in, with a warning: its ``fve_per_token`` and mean ablations are not
comparable with others'.
"""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechlab import scores
from mechlab.activations.capture import read_sites
from mechlab.activations.harvest import check_context
from mechlab.data.corpus import Corpus
from mechlab.data.stream import contexts
from mechlab.errors import MechlabError
from mechlab.interventions.edit import editing
from mechlab.models.subject import Subject
from mechlab.sae.base import Sae
from mechlab.sae.dictionary import Dictionary
from mechlab.scores import Score

# Logits of one batch stay under about half a gigabyte in float32.
_LOGIT_BUDGET = 2**27
_DENSE = 0.1
_SCORES = (
    "l0",
    "fve",
    "fve_per_token",
    "ce_recovered",
    "ce_recovered_zero",
    "kl_recovered",
    "kl_recovered_zero",
)


@dataclass(frozen=True)
class Evaluation:
    """Held-out figures of a dictionary.

    Attributes:
        tokens, documents: how many were used.
        l0, fve: see the module docstring.
        ce_recovered: CE loss recovered against mean ablation; ce_recovered_zero: against zero ablation.
        kl_recovered, kl_recovered_zero: the same for KL.
        ce: mean next-token cross-entropy in nats, by condition (clean, spliced, mean, zero).
        kl: mean divergence from the clean run in nats, by condition (spliced, mean, zero).
        dead, dense: shares of latents that fired on none of the tokens, and on more than a tenth.
    """

    tokens: int
    documents: int
    l0: Score
    fve: Score
    fve_per_token: Score
    ce_recovered: Score
    ce_recovered_zero: Score
    kl_recovered: Score
    kl_recovered_zero: Score
    ce: dict[str, float]
    kl: dict[str, float]
    dead: float
    dense: float

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: v.to_dict() if isinstance(v, Score) else v for name, v in found.items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Evaluation:
        """The inverse of ``to_dict``; MechlabError when a figure is missing, as in older records."""
        for field in fields(cls):
            if field.name not in values:
                raise MechlabError("evaluation lacks a figure", field.name, "evaluate again")
        return cls(**{**values, **{name: Score.from_dict(values[name]) for name in _SCORES}})


@torch.no_grad()
def evaluate(
    subject: Subject,
    dictionary: Dictionary,
    corpus: Corpus,
    *,
    split: str = "validation",
    tokens: int = 100_000,
    n_ctx: int | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Evaluate a dictionary inside its model on documents of a held-out split.

    Args:
        tokens: stop after about this many tokens (BOS not counted).
        n_ctx: context length in tokens; the model's own by default.
        progress: called with (tokens so far, tokens wanted).

    Raises MechlabError when the dictionary belongs to another model, the model predicts no next
    tokens, contexts do not fit it, or the split is empty.
    """
    dictionary.check(subject)
    if not subject.causal:
        raise MechlabError(
            "evaluation inside a model needs one that predicts the next token", subject.name,
            "ask for the metrics on the decoder",
        )  # fmt: skip
    instead = dictionary.artifact.manifest.facts.get("mean")
    if instead is not None:
        warnings.warn(
            f"mean of the training rows is not recorded, so mean ablation and fve_per_token use {instead}",
            stacklevel=2,
        )
    # On a copy: the caller's dictionary stays on its own device.
    sae = copy.deepcopy(dictionary.sae).to(subject.device)
    n_ctx = subject.n_ctx if n_ctx is None else n_ctx
    check_context(subject, n_ctx)
    batch = max(1, min(32, _LOGIT_BUDGET // (n_ctx * subject.module.config.vocab_size)))
    totals: dict[int, np.ndarray] = {}
    fired = torch.zeros(sae.d_sae, dtype=torch.long)
    seen = 0
    for group in contexts(corpus, split, subject.tokenizer, n_ctx=n_ctx, batch=batch):
        real = group.mask.clone()
        if subject.bos is not None:
            real[:, 0] = False
        columns = _batch_sums(subject, sae, dictionary, group.tokens, real, fired)
        for document, row in zip(group.document[:, 0].tolist(), columns, strict=True):
            totals[document] = totals.get(document, 0) + row
        seen += int(real.sum())
        if progress:
            progress(min(seen, tokens), tokens)
        if seen >= tokens:
            break
    if seen == 0:
        raise MechlabError("corpus has no tokens in this split", f"{corpus.name}, {split}", "add documents")
    sums = np.stack(list(totals.values()))
    whole = sums.sum(0)
    counted = whole[_PREDICTED]
    if counted == 0:
        raise MechlabError(
            "no token is predicted from another but BOS", f"n_ctx {n_ctx}", "use longer contexts"
        )
    return Evaluation(
        tokens=seen,
        documents=len(sums),
        l0=scores.score("l0", sums[:, [_L0, _TOKENS]], scores.mean, seed=seed),
        fve=scores.score("fve", sums, fraction_of_variance_explained, seed=seed),
        fve_per_token=scores.score("fve_per_token", sums[:, [_TOKEN_FVE, _TOKENS]], scores.mean, seed=seed),
        ce_recovered=_recovered("ce_recovered", sums, _CE, "mean", seed),
        ce_recovered_zero=_recovered("ce_recovered_zero", sums, _CE, "zero", seed),
        kl_recovered=_recovered("kl_recovered", sums, _KL, "mean", seed),
        kl_recovered_zero=_recovered("kl_recovered_zero", sums, _KL, "zero", seed),
        ce={name: float(whole[_CE + i] / counted) for i, name in enumerate(_CONDITIONS)},
        kl={name: float(whole[_KL + i] / counted) for i, name in enumerate(_CONDITIONS) if i},
        dead=float((fired == 0).float().mean()),
        dense=float((fired > _DENSE * seen).float().mean()),
    )


_CONDITIONS = ("clean", "spliced", "mean", "zero")
# Columns of the per-document totals; the last d_out columns hold the sum of y itself.
_TOKENS, _L0, _SSE, _TOKEN_FVE, _SQUARES, _PREDICTED, _CE = range(7)
_KL = _CE + len(_CONDITIONS)
_SUM = _KL + len(_CONDITIONS)


def fraction_of_variance_explained(
    totals: Float[np.ndarray, "resample column"],
) -> Float[np.ndarray, "resample"]:
    """1 - squared error / total variance, from the module's columns of totals."""
    centre = (totals[:, _SUM:] ** 2).sum(1) / totals[:, _TOKENS]
    explained: np.ndarray = 1 - scores.ratio(totals[:, _SSE], totals[:, _SQUARES] - centre)
    return explained


def _recovered(name: str, sums: np.ndarray, first: int, ablation: str, seed: int) -> Score:
    """Of the cross-entropies or the divergences that start in column ``first``; clean KL is 0."""
    clean, spliced, ablated = (first + _CONDITIONS.index(c) for c in ("clean", "spliced", ablation))
    columns = np.stack([sums[:, ablated] - sums[:, spliced], sums[:, ablated] - sums[:, clean]], axis=1)
    return scores.score(name, columns, scores.mean, seed=seed)


def _batch_sums(
    subject: Subject,
    sae: Sae,
    dictionary: Dictionary,
    tokens: Int[Tensor, "context pos"],
    real: Bool[Tensor, "context pos"],
    fired: Int[Tensor, "d_sae"],
) -> list[np.ndarray]:
    """Per-context totals in the module's column order; adds to the latents' counts in ``fired``."""
    sites = list(dict.fromkeys((*dictionary.inputs, *dictionary.outputs)))
    values = {site: value.to(torch.float32) for site, value in read_sites(subject, tokens, sites).items()}
    x, y = (
        torch.cat([values[site] for site in names], dim=-1)
        for names in (dictionary.inputs, dictionary.outputs)
    )
    place = real.to(x.device)
    codes = sae.encode(x[place])
    active = codes.values != 0
    fired += torch.bincount(codes.indices[active], minlength=len(fired)).cpu()
    made = y.clone()
    made[place] = sae.decode(codes, x[place])
    l0 = torch.zeros(place.shape, device=x.device)
    l0[place] = active.sum(-1).float()
    mean = dictionary.mean.to(y)
    replacements = (
        None,
        made,
        torch.where(place[..., None], mean, y),
        y.masked_fill(place[..., None], 0),
    )
    # The prediction made at a position is counted when that position was replaced.
    counted = real[:, :-1] & real[:, 1:] if real.shape[1] > 1 else real[:, :0]
    clean: Tensor | None = None
    losses, divergences = [], []
    for replacement in replacements:
        log_p = _log_probabilities(subject, dictionary.outputs, sae.out_sizes, tokens, replacement)
        where = counted.to(log_p.device)
        clean = log_p if clean is None else clean
        ce = -log_p.gather(2, tokens[:, 1:, None].to(log_p.device)).squeeze(2)
        kl = (clean.exp() * (clean - log_p)).sum(-1)
        losses.append(ce.masked_fill(~where, 0).sum(1))
        divergences.append(kl.masked_fill(~where, 0).sum(1))
    squared = ((y - made) ** 2).sum(-1)
    spread = ((y - mean) ** 2).sum(-1).clamp_min(1e-12)
    columns = [
        place.sum(1),
        l0.sum(1),
        squared.masked_fill(~place, 0).sum(1),
        (1 - squared / spread).masked_fill(~place, 0).sum(1),
        # In double precision: the variance is a small difference when the mean is large.
        (y.double() ** 2).sum(-1).masked_fill(~place, 0).sum(1),
        counted.sum(1),
        *losses,
        *divergences,
    ]
    head = torch.stack([column.to("cpu", torch.float64) for column in columns], dim=1)
    total = y.double().masked_fill(~place[..., None], 0).sum(1).cpu()
    return list(torch.cat([head, total], dim=1).numpy())


def _log_probabilities(
    subject: Subject,
    sites: tuple[str, ...],
    sizes: tuple[int, ...],
    tokens: Int[Tensor, "context pos"],
    replacement: Float[Tensor, "context pos d_out"] | None,
) -> Float[Tensor, "context predicted vocabulary"]:
    """Log probabilities of every next token, with the sites replaced."""
    with contextlib.ExitStack() as stack:
        if replacement is not None:
            for site, value in zip(sites, torch.split(replacement, list(sizes), dim=-1), strict=True):
                stack.enter_context(editing(subject, site, _constant(value)))
        logits = subject.logits(tokens)
    return logits[:, :-1].float().log_softmax(-1)


def _constant(value: Float[Tensor, "context pos d"]) -> Callable[[Tensor], Tensor]:
    return lambda old: value.to(old.dtype)
