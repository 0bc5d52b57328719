"""End-to-end training: a dictionary judged by what the model makes of its reconstruction.

With the reconstruction in the site's place, KL is the mean over real tokens of
KL(p_clean || p_spliced) of the next-token distributions, in nats. BOS and padding are neither
replaced nor counted; the model is frozen.

* "kl": KL + penalties (Braun et al. 2024, arXiv 2405.12241, "SAE_e2e"). Penalties are what the
  architecture adds to its squared error: sparsity, AuxK (Matryoshka: the smaller prefixes' errors).
* "kl+mse": (a KL + MSE) / 2 + penalties, MSE being the squared error over total variance and a = MSE / KL
  of the same step, taken as a constant: both terms pull with the same weight, and the penalties keep
  the size they had beside the MSE alone (Karvonen 2025, arXiv 2503.17272). The paper's use is a
  short fine-tuning of a finished dictionary, which is ``finetune``.

A batch is whole contexts. One forward gives activations and clean predictions, shared by all
dictionaries of a pass; each dictionary takes one more, with gradient from its site on.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor

from mechlab.activations.batch import Batch
from mechlab.data.corpus import Corpus
from mechlab.errors import MechlabError, near
from mechlab.interventions.edit import editing
from mechlab.models.subject import Subject
from mechlab.sae.base import Sae, Step, StepLoss
from mechlab.sae.config import TrainConfig
from mechlab.sae.contexts import ContextBatch, ContextFeed, predictions
from mechlab.sae.dictionary import Dictionary, train_saes
from mechlab.sae.train import Log, Progress
from mechlab.sae.trainee import Loss, Trainee
from mechlab.settings import changed

Objective = Literal["kl", "kl+mse"]
_OBJECTIVES = ("kl", "kl+mse")


def end_to_end(subject: Subject, objective: str = "kl") -> Loss:
    """The loss of end-to-end training, for ``train``; see the module docstring.

    It takes batches of a ``ContextFeed``, and raises MechlabError for others, for dictionaries
    that write several sites, and for architectures without an end-to-end loss.
    """
    if objective not in _OBJECTIVES:
        raise MechlabError("unknown objective", objective, near(objective, _OBJECTIVES))

    def loss(trainee: Trainee, batch: Batch, step: Step) -> StepLoss:
        if not isinstance(batch, ContextBatch):
            raise MechlabError("end-to-end training needs whole contexts", None, "train on a ContextFeed")
        outputs = trainee.config.outputs
        if len(outputs) > 1:
            raise MechlabError(
                "end-to-end training replaces one site", ", ".join(outputs), "train one site at a time"
            )
        x, y = trainee.scaled(batch)
        own = trainee.sae.loss(x, y, step)
        if own.made is None or own.penalty is None:
            raise MechlabError("architecture has no end-to-end loss", trainee.sae.arch, "use topk or relu")
        kl = _divergence(subject, outputs[0], batch, own.made / trainee.y_scale)
        total = kl
        if objective == "kl+mse":
            squared = (y - own.made).pow(2).sum(-1).mean() / step.variance
            weight = (squared / kl.clamp_min(1e-12)).detach()
            total = (weight * kl + squared) / 2
        figures = {**own.figures, "kl": kl.detach()}
        return StepLoss(total + own.penalty, own.error, own.l0, own.fired, figures)

    return loss


def _divergence(
    subject: Subject, site: str, batch: ContextBatch, made: Float[Tensor, "row d_out"]
) -> Float[Tensor, ""]:
    """Mean KL of clean to spliced predictions over the batch's rows, in nats."""

    def put(value: Tensor) -> Tensor:
        place = batch.chosen.to(value.device)
        return value.index_put(place.nonzero(as_tuple=True), made.to(value))

    with editing(subject, site, put):
        spliced = predictions(subject, batch.tokens, batch.mask, batch.chosen)
    return (batch.clean.exp() * (batch.clean - spliced)).sum(-1).mean()


def train_e2e(
    subject: Subject,
    corpus: Corpus,
    out: Path | str,
    config: TrainConfig,
    *,
    objective: Objective = "kl",
    start: Dictionary | None = None,
    split: str = "train",
    n_ctx: int | None = None,
    pack: bool = True,
    seed: int = 0,
    overwrite: bool = False,
    log: Log | None = None,
    progress: Progress | None = None,
) -> Dictionary:
    """Train a dictionary end to end and save it at ``out``; resumed like ``train_sae``.

    Args:
        config: as for ``train_sae``; it has one target. Tokens and batch size count context by context.
        objective: "kl" or "kl+mse".
        start: a finished dictionary of the same architecture, sites and size to begin from.
        split, n_ctx, pack: the contexts; packed ones are all of full length.

    Raises MechlabError when ``start`` does not fit, and what ``train_sae`` and ``end_to_end`` raise.
    """
    feed = ContextFeed(
        subject, corpus, list(dict.fromkeys((*config.inputs, *config.outputs))),
        split=split, n_ctx=n_ctx, pack=pack,
    )  # fmt: skip
    begin: Sae | None = None
    extra: dict[str, str] = {"objective": objective}
    if start is not None:
        start.check(subject)
        start.check_start(config)
        begin, extra["start"] = start.sae, start.artifact.manifest.fingerprint
    return train_saes(
        feed, {Path(out): config}, loss=end_to_end(subject, objective), start=[begin], extra=extra,
        seed=seed, device=subject.device, overwrite=overwrite, log=log, progress=progress,
    )[0]  # fmt: skip


def finetune(
    subject: Subject,
    corpus: Corpus,
    dictionary: Dictionary,
    out: Path | str,
    *,
    tokens: int,
    lr: float,
    batch_size: int = 2048,
    settings: Mapping[str, Any] | None = None,
    objective: Objective = "kl+mse",
    **options: Any,
) -> Dictionary:
    """Fine-tune a finished dictionary end to end, the rate falling linearly to zero.

    Args:
        tokens: a few percent of what it was trained on (25 M in the paper).
        lr: the rate to start from; a tenth of the training's is a good first choice.
        settings: further settings of its architecture (``sparsity``, which files do not keep).
        options: as for ``train_e2e``.

    Raises what ``train_e2e`` raises.
    """
    sae = dictionary.sae
    norms = sae.W_dec.norm(dim=1)
    unit = bool((norms - norms.mean()).abs().max() <= 1e-3 * norms.mean())
    base: dict[str, Any] = {
        "site": ",".join(dictionary.inputs),
        "target": ",".join(dictionary.outputs) if dictionary.outputs != dictionary.inputs else "",
        "decoder": "unit" if unit else "free",
        "tokens": tokens,
        "batch_size": batch_size,
        "lr": lr,
        "warmup": 0.0,
        "decay": 1.0,
        "sparsity_warmup": 0.0,
    }
    config = changed(sae.config, {**base, **(settings or {})})
    return train_e2e(subject, corpus, out, config, objective=objective, start=dictionary, **options)
