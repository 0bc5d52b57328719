"""All that can be said of a dictionary, as plain JSON values: what ``mechlab sae eval`` prints.

Groups of metrics: "model" (held-out reconstruction inside the model), "decoder" (geometry), and, where
tokens carry known concepts (the bundled model on its corpus): "probing", "latents" (best latent per
concept), "board" (reconstruction from high-precision latents), "absorption", "removal" (TPP and SCR)
and "ravel" (disentanglement of facts).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from mechlab.data.corpus import Corpus
from mechlab.errors import MechlabError, near
from mechlab.models.subject import Subject
from mechlab.sae.codes import Codes, concatenate
from mechlab.sae.dictionary import Dictionary
from mechlab.sae.evaluate import evaluate
from mechlab.sae.formats.wrapped import Fixed
from mechlab.sae.metrics.absorption import absorption
from mechlab.sae.metrics.geometry import cosine_histogram, largest_cosines
from mechlab.sae.metrics.latents import best_latent_f1, board_reconstruction
from mechlab.sae.metrics.probing import sparse_probing
from mechlab.sae.metrics.ravel import ravel
from mechlab.sae.metrics.removal import spurious_removal, targeted_removal
from mechlab.sae.metrics.rows import ConceptRows, concept_rows
from mechlab.scores import Score

ON_CONCEPTS = ("probing", "latents", "board", "absorption", "removal", "ravel")
METRICS = ("model", "decoder", *ON_CONCEPTS)
# Those that compare decoder rows with directions among the inputs.
_OF_ONE_SITE = ("absorption", "removal", "ravel")


def assess(
    subject: Subject,
    dictionary: Dictionary,
    corpus: Corpus,
    *,
    metrics: Sequence[str] = ("model", "decoder"),
    split: str = "validation",
    tokens: int = 100_000,
    n_ctx: int | None = None,
    documents: int = 200,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Any]:
    """Evaluate a dictionary by groups of metrics.

    Args:
        tokens, n_ctx: for "model", as in ``evaluate``.
        documents: labelled documents for the metrics on concepts; half choose, half score.
        progress: called with (group, done, total).

    Raises MechlabError for an unknown group, a dictionary of another model or one that a group has
    no meaning for, and concepts asked of a model that does not read Fable's words.
    """
    for name in metrics:
        if name not in METRICS:
            raise MechlabError("unknown metric", name, near(name, METRICS))
        if name in _OF_ONE_SITE:
            _refuse_without_directions(name, dictionary)
    say = progress or (lambda *_: None)
    dictionary.check(subject)
    found: dict[str, Any] = {}
    wanted = [name for name in ON_CONCEPTS if name in metrics]
    rows = None
    if wanted:  # first, since it may be refused
        rows = concept_rows(subject, list(dictionary.inputs), split=split, documents=documents)
    if "model" in metrics:
        found["model"] = evaluate(
            subject, dictionary, corpus, split=split, tokens=tokens, n_ctx=n_ctx, seed=seed,
            progress=lambda done, total: say("model", done, total),
        ).to_dict()  # fmt: skip
    if "decoder" in metrics:
        counts, edges = cosine_histogram(dictionary.sae.W_dec)
        found["decoder"] = {
            "mean_largest_cosine": float(largest_cosines(dictionary.sae.W_dec).mean()),
            "cosine_histogram": {"counts": counts.tolist(), "edges": edges.tolist()},
        }
    if rows is None:
        return found
    x = torch.cat([rows.activations[site] for site in dictionary.inputs], dim=1)
    with torch.no_grad():
        codes = concatenate([dictionary.sae.encode(part) for part in torch.split(x, 8192)])
    for done, name in enumerate(wanted):
        say("concepts", done, len(wanted))
        found[name] = _MEASURES[name](subject, dictionary, codes, x, rows, seed)
    say("concepts", len(wanted), len(wanted))
    return found


def _refuse_without_directions(metric: str, dictionary: Dictionary) -> None:
    """MechlabError unless code times decoder row is what a latent adds to one site."""
    several = len(dictionary.inputs) > 1 or dictionary.inputs != dictionary.outputs
    if several or isinstance(dictionary.sae, Fixed):
        wanted = "of raw activations" if isinstance(dictionary.sae, Fixed) else "that reconstructs one site"
        raise MechlabError(
            f"metric {metric} needs a dictionary {wanted}",
            ", ".join(dict.fromkeys((*dictionary.inputs, *dictionary.outputs))),
            f"ask for {','.join(name for name in METRICS if name not in _OF_ONE_SITE)}",
        )


def _probing(
    subject: Subject, dictionary: Dictionary, codes: Codes, x: Tensor, rows: ConceptRows, seed: int
) -> dict[str, Any]:
    made = sparse_probing(codes, x, rows.labels, rows.documents, dictionary.sae.d_sae, seed=seed)
    return {
        "concepts": len(made.concepts),
        "accuracy": {str(k): each.accuracy.to_dict() for k, each in made.sparse.items()},
        "auroc": {str(k): each.auroc.to_dict() for k, each in made.sparse.items()},
        "random": {str(k): each.accuracy.to_dict() for k, each in made.random.items()},
        "dense": made.dense.accuracy.to_dict(),
    }


def _latents(
    subject: Subject, dictionary: Dictionary, codes: Codes, x: Tensor, rows: ConceptRows, seed: int
) -> dict[str, Any]:
    made = best_latent_f1(codes, rows.labels, rows.documents, dictionary.sae.d_sae, seed=seed)
    best = {
        rows.concepts[concept]: {
            "latent": int(latent),
            "f1": float(made.held_out_f1[at, latent]),
        }
        for at, (concept, latent) in enumerate(zip(made.concepts, made.latent, strict=True))
    }
    return {"coverage": made.f1.to_dict(), "best": best}


def _board(
    subject: Subject, dictionary: Dictionary, codes: Codes, x: Tensor, rows: ConceptRows, seed: int
) -> dict[str, Any]:
    made = board_reconstruction(codes, rows.labels, rows.documents, dictionary.sae.d_sae, seed=seed)
    return {"f1": made.f1.to_dict(), "detectors": made.detectors.tolist()}


def _absorption(
    subject: Subject, dictionary: Dictionary, codes: Codes, x: Tensor, rows: ConceptRows, seed: int
) -> dict[str, Any]:
    made = absorption(codes, x, dictionary.sae.W_dec, rows.labels, rows.documents, seed=seed)
    return {"full": made.full.to_dict(), "fraction": made.fraction.to_dict()}


def _removal(
    subject: Subject, dictionary: Dictionary, codes: Codes, x: Tensor, rows: ConceptRows, seed: int
) -> dict[str, Any]:
    decoder = dictionary.sae.W_dec
    tpp = targeted_removal(codes, x, decoder, rows.labels, rows.documents, seed=seed)
    one, other = _most_crossed(rows.labels)
    scr = spurious_removal(
        codes, x, decoder, rows.labels[:, one], rows.labels[:, other], rows.documents, seed=seed
    )
    return {
        "tpp": _by_number(tpp.tpp),
        "scr": _by_number(scr.scr),
        "scr_pair": [rows.concepts[one], rows.concepts[other]],
    }


def _ravel(
    subject: Subject, dictionary: Dictionary, codes: Codes, x: Tensor, rows: ConceptRows, seed: int
) -> dict[str, Any]:
    # The other groups work where the rows are; this one inside the model.
    sae = copy.deepcopy(dictionary.sae).to(subject.device)
    made = ravel(subject, dictionary.site, sae, seed=seed)
    return {
        "cause": _by_number(made.cause),
        "isolation": _by_number(made.isolation),
        "whole": made.whole.to_dict(),
        "pairs": made.pairs,
    }


_MEASURES = {
    "probing": _probing,
    "latents": _latents,
    "board": _board,
    "absorption": _absorption,
    "removal": _removal,
    "ravel": _ravel,
}


def _by_number(scores: dict[int, Score]) -> dict[str, Any]:
    return {str(n): score.to_dict() for n, score in scores.items()}


def _most_crossed(labels: Bool[Tensor, "row concept"]) -> tuple[int, int]:
    """The pair of concepts whose rarest combination (both, either, neither) is the most frequent."""
    y = labels.double()
    both, count = y.T @ y, y.sum(0)
    cells = [
        both,
        count[:, None] - both,
        count[None, :] - both,
        len(y) - count[:, None] - count[None, :] + both,
    ]
    rarest = torch.stack(cells).amin(0).fill_diagonal_(-1)
    at = int(rarest.argmax())
    return divmod(at, labels.shape[1])
