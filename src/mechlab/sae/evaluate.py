"""How good a dictionary is, on documents it never saw.

All totals are kept per document, so every figure has a bootstrap interval over documents.

* L0: mean number of active latents per token.
* Fraction of variance explained: 1 - sum ||x - x_hat||^2 / sum ||x - mean(x)||^2, over all
  held-out tokens and dimensions, the mean being theirs (the definition that divides one
  total by the other; averaging per-dimension ratios gives another number).
* CE loss recovered: (CE_ablated - CE_spliced) / (CE_ablated - CE_clean), where the site is
  replaced by the reconstruction, or by zero or by the training mean (SAEBench's definition,
  Karvonen et al. 2025, arXiv 2503.09532). BOS is never replaced and never counted.
* Dead: share of latents that fire on no held-out token.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from mechlab import scores
from mechlab.activations.capture import read_sites
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


@dataclass(frozen=True)
class Evaluation:
    """Held-out figures of a dictionary.

    Attributes:
        tokens, documents: how many were used.
        l0, fve: see the module docstring.
        ce_recovered: CE loss recovered against mean ablation; ce_recovered_zero: against zero ablation.
        ce: mean next-token cross-entropy in nats, by condition (clean, spliced, mean, zero).
        dead: share of latents that fired on none of the tokens.
    """

    tokens: int
    documents: int
    l0: Score
    fve: Score
    ce_recovered: Score
    ce_recovered_zero: Score
    ce: dict[str, float]
    dead: float

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        figures = ("l0", "fve", "ce_recovered", "ce_recovered_zero")
        return {
            "tokens": self.tokens,
            "documents": self.documents,
            **{name: getattr(self, name).to_dict() for name in figures},
            "ce": self.ce,
            "dead": self.dead,
        }

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Evaluation:
        """The inverse of ``to_dict``."""
        figures = ("l0", "fve", "ce_recovered", "ce_recovered_zero")
        return cls(**{**fields, **{name: Score.from_dict(fields[name]) for name in figures}})


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

    Raises MechlabError when the dictionary belongs to another model or the split is empty.
    """
    dictionary.check(subject)
    # On a copy: the caller's dictionary stays on its own device.
    sae = copy.deepcopy(dictionary.sae).to(subject.device)
    n_ctx = subject.n_ctx if n_ctx is None else n_ctx
    batch = max(1, min(32, _LOGIT_BUDGET // (n_ctx * subject.module.config.vocab_size)))
    totals: dict[int, np.ndarray] = {}
    fired = torch.zeros(dictionary.sae.d_sae, dtype=torch.bool)
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
    ce = {name: float(whole[_CE + i] / whole[_PREDICTED]) for i, name in enumerate(_CONDITIONS)}
    return Evaluation(
        tokens=seen,
        documents=len(sums),
        l0=scores.score("l0", sums[:, [_L0, _TOKENS]], scores.mean, seed=seed),
        fve=scores.score("fve", sums, fraction_of_variance_explained, seed=seed),
        ce_recovered=_recovered("ce_recovered", sums, "mean", seed),
        ce_recovered_zero=_recovered("ce_recovered_zero", sums, "zero", seed),
        ce=ce,
        dead=float((~fired).float().mean()),
    )


_CONDITIONS = ("clean", "spliced", "mean", "zero")
# Columns of the per-document totals; the last d_in columns hold the sum of x itself.
_TOKENS, _L0, _SSE, _SQUARES, _PREDICTED, _CE = 0, 1, 2, 3, 4, 5
_SUM = _CE + len(_CONDITIONS)


def fraction_of_variance_explained(
    totals: Float[np.ndarray, "resample column"],
) -> Float[np.ndarray, "resample"]:
    """1 - squared error / total variance, from the module's columns of totals."""
    centre = (totals[:, _SUM:] ** 2).sum(1) / totals[:, _TOKENS]
    explained: np.ndarray = 1 - scores.ratio(totals[:, _SSE], totals[:, _SQUARES] - centre)
    return explained


def _recovered(name: str, sums: np.ndarray, ablation: str, seed: int) -> Score:
    clean, spliced, ablated = (_CE + _CONDITIONS.index(c) for c in ("clean", "spliced", ablation))
    columns = np.stack([sums[:, ablated] - sums[:, spliced], sums[:, ablated] - sums[:, clean]], axis=1)
    return scores.score(name, columns, scores.mean, seed=seed)


def _batch_sums(
    subject: Subject,
    sae: Sae,
    dictionary: Dictionary,
    tokens: Int[Tensor, "context pos"],
    real: Bool[Tensor, "context pos"],
    fired: Bool[Tensor, "d_sae"],
) -> list[np.ndarray]:
    """Per-context totals in the module's column order; marks latents in ``fired``."""
    site = dictionary.site
    x = read_sites(subject, tokens, [site])[site].to(torch.float32)
    place = real.to(x.device)
    codes = sae.encode(x[place])
    fired[codes.indices[codes.values > 0].cpu()] = True
    made = x.clone()
    made[place] = sae.decode(codes)
    l0 = torch.zeros(place.shape, device=x.device)
    l0[place] = (codes.values > 0).sum(-1).float()
    replacements = {
        "clean": None,
        "spliced": made,
        "mean": torch.where(place[..., None], dictionary.mean.to(x), x),
        "zero": x.masked_fill(place[..., None], 0),
    }
    # The prediction made at a position is counted when that position was replaced.
    counted = real[:, :-1] & real[:, 1:] if real.shape[1] > 1 else real[:, :0]
    losses = [_loss(subject, site, tokens, value, counted) for value in replacements.values()]
    columns = [
        place.sum(1),
        l0.sum(1),
        ((x - made) ** 2).sum(-1).masked_fill(~place, 0).sum(1),
        # In double precision: the variance is a small difference when the mean is large.
        (x.double() ** 2).sum(-1).masked_fill(~place, 0).sum(1),
        counted.sum(1),
        *losses,
    ]
    head = torch.stack([column.to("cpu", torch.float64) for column in columns], dim=1)
    total = x.double().masked_fill(~place[..., None], 0).sum(1).cpu()
    return list(torch.cat([head, total], dim=1).numpy())


def _loss(
    subject: Subject,
    site: str,
    tokens: Int[Tensor, "context pos"],
    replacement: Float[Tensor, "context pos d_in"] | None,
    counted: Bool[Tensor, "context predicted"],
) -> Float[Tensor, "context"]:
    """Summed next-token cross-entropy of each context, in nats, with the site replaced."""
    if replacement is None:
        logits = subject.logits(tokens)
    else:
        with editing(subject, site, lambda value: replacement.to(value.dtype)):
            logits = subject.logits(tokens)
    targets = tokens[:, 1:].to(logits.device)
    loss = cross_entropy(logits[:, :-1].float().transpose(1, 2), targets, reduction="none")
    return loss.masked_fill(~counted.to(loss.device), 0).sum(1)
