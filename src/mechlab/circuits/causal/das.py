"""Distributed alignment search: the subspace of a site that carries a causal variable, with controls.

A k-dimensional subspace of a site is learned by gradient descent so that exchanging the part of the
value within it between base and source prompts changes the output as the causal model says it should
(Geiger et al. 2024, *Finding alignments between interpretable causal variables and distributed neural
representations*). The rows of Q are kept orthonormal by a QR decomposition of free parameters, through
which the gradient flows; the loss is the cross-entropy of the counterfactual output among the tokens
that an output can be. The score is measured on pairs whose inputs were not trained on.

A learned subspace can be made to do much that the model does not do, so a score says little alone.
Beside it stand

* the placebo: a random subspace of the same dimension, the change along it scaled, prompt by prompt,
  to the length of the change in the learned subspace;
* arbitrary labels: the search repeated for a meaningless variable, whose values are drawn by a hash
  of the prompt; what it finds on unseen prompts must stay at chance;
* a random model: the search repeated in the same architecture with new random weights;
* the whole site: what exchanging all of it at this position does, without any search.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from mechlab.activations.capture import read_sites
from mechlab.circuits.causal.interchange import BATCH_SIZE, Place, accuracy, exchange, interchange_logits
from mechlab.circuits.causal.problem import Interchanges, Problem, draw_interchanges
from mechlab.errors import MechlabError
from mechlab.interventions.edit import Function, editing
from mechlab.models.sites import site_table
from mechlab.models.subject import Subject
from mechlab.scores import Score

BATCH = 64


@dataclass(frozen=True, eq=False)
class DasResult:
    """What the search found, and its controls; all scores are on held-out pairs.

    Attributes:
        variable: the causal variable.
        place: site, position and the learned subspace.
        score: interchange accuracy in the subspace; its null is the placebo, its chance the share
            of pairs whose output the interchange leaves unchanged.
        arbitrary: the search for a meaningless variable.
        random_model: the search in the same architecture with random weights.
        whole: exchanging the whole site.
    """

    variable: str
    place: Place
    score: Score
    arbitrary: Score
    random_model: Score
    whole: Score

    @property
    def placebo(self) -> Score:
        """A random subspace whose change is as long as the learned one's."""
        assert self.score.null is not None
        return self.score.null

    @property
    def holds(self) -> bool:
        """Whether the score's interval lies above those of all three controls."""
        return self.score.low > max(
            control.high for control in (self.placebo, self.arbitrary, self.random_model)
        )


def das(
    subject: Subject,
    problem: Problem,
    variable: str,
    place: Place,
    *,
    k: int = 1,
    n_train: int = 512,
    n_test: int = 256,
    steps: int = 200,
    rate: float = 0.02,
    seed: int = 0,
) -> DasResult:
    """Search for ``variable`` at a place, score it on held-out inputs and run all controls.

    Args:
        place: site and position; its subspace must be None.
        k: dimension of the subspace.
        steps: of gradient descent (Adam), each on 64 pairs.

    Raises MechlabError for a ``k`` that the site cannot hold, a place that has a subspace, and as
    ``draw_interchanges`` does.
    """
    train, test = (
        draw_interchanges(problem, variable, n=n, seed=seed, split=split)
        for n, split in ((n_train, "train"), (n_test, "test"))
    )

    def searched(model: Subject, pairs: Interchanges) -> Place:
        rows = learn_subspace(model, pairs, place, k=k, steps=steps, rate=rate, seed=seed)
        return replace(place, subspace=rows)

    def scored(name: str, model: Subject, pairs: Interchanges, found: Place) -> Score:
        logits = interchange_logits(model, pairs, {variable: found})
        return accuracy(name, logits, pairs, chance=_unchanged(pairs), seed=seed)

    found = searched(subject, train)
    generator = torch.Generator().manual_seed(seed + 1)
    logits = _placebo_logits(subject, test, found, generator)
    placebo = accuracy("placebo subspace", logits, test, seed=seed)
    meaningless = [
        draw_interchanges(problem, variable, n=n, seed=seed, split=split, arbitrary=True)
        for n, split in ((n_train, "train"), (n_test, "test"))
    ]
    blank = random_model(subject, seed)
    return DasResult(
        variable=variable,
        place=found,
        score=replace(scored("interchange accuracy", subject, test, found), null=placebo),
        arbitrary=scored("arbitrary labels", subject, meaningless[1], searched(subject, meaningless[0])),
        random_model=scored("random model", blank, test, searched(blank, train)),
        whole=scored("whole site", subject, test, place),
    )


def learn_subspace(
    subject: Subject,
    data: Interchanges,
    place: Place,
    *,
    k: int = 1,
    steps: int = 200,
    rate: float = 0.02,
    seed: int = 0,
) -> Float[Tensor, "k dim"]:
    """Orthonormal rows whose exchange gives the counterfactual outputs of ``data``, by gradient descent.

    ``data`` swaps one variable. Raises MechlabError when the site is not of dimension ``k`` at least,
    the place has a subspace already, or several variables are swapped.
    """
    dim = subject.site(place.site).dim
    if not 1 <= k <= dim:
        raise MechlabError("subspace does not fit the site", k, f"{place.site} has dim {dim}")
    if place.subspace is not None:
        raise MechlabError("place has a subspace already", place.site, "leave it out: it is what is learned")
    if len(data.sources) != 1:
        raise MechlabError("the search is for one variable", ", ".join(data.sources), "swap one at a time")
    generator = torch.Generator().manual_seed(seed)
    device = subject.device
    source = read_sites(subject, next(iter(data.sources.values())), [place.site])[place.site]
    free = _orthonormal(torch.randn(dim, k, generator=generator)).T.to(device).clone().requires_grad_()
    outputs = data.outputs.to(device)
    answers = torch.searchsorted(data.outputs, data.answers).to(device)
    optimizer = torch.optim.Adam([free], lr=rate)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * (1 - step / steps)
        rows = torch.randint(len(data), (min(BATCH, len(data)),), generator=generator)
        edit = exchange(source[rows.to(source.device)], _orthonormal(free))
        with editing(subject, place.site, edit, place.position):
            logits = subject.module(data.base[rows].to(device), use_cache=False).logits[:, -1]
        loss = F.cross_entropy(logits[:, outputs].float(), answers[rows.to(device)])
        (free.grad,) = torch.autograd.grad(loss, [free])
        optimizer.step()
    return _orthonormal(free.detach())


def _orthonormal(columns: Float[Tensor, "dim k"]) -> Float[Tensor, "k dim"]:
    basis: Tensor = torch.linalg.qr(columns)[0]
    return basis.T


def random_model(subject: Subject, seed: int = 0) -> Subject:
    """The same architecture with new random weights, made as its library makes an untrained model."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = type(subject.module)(subject.module.config)
    module = module.to(device=subject.device, dtype=subject.dtype).eval().requires_grad_(False)
    return Subject(f"{subject.name} (random weights)", module, subject.tokenizer, site_table(module))


def _placebo_logits(
    subject: Subject, data: Interchanges, place: Place, generator: torch.Generator
) -> Float[Tensor, "n d_vocab"]:
    """Logits when the change is along random directions and as long as in the place's own subspace."""
    rows = place.subspace
    assert rows is not None
    other = torch.linalg.qr(torch.randn(rows.shape[1], len(rows), generator=generator))[0].T.to(rows)
    found = []
    for first in range(0, len(data), BATCH_SIZE):
        batch = data.rows(slice(first, first + BATCH_SIZE))
        source = read_sites(subject, next(iter(batch.sources.values())), [place.site])[place.site]
        with editing(subject, place.site, matched(source, rows, other), place.position):
            found.append(subject.logits(batch.base)[:, -1].cpu())
    return torch.cat(found)


def matched(
    source: Float[Tensor, "batch pos dim"], rows: Float[Tensor, "k dim"], other: Float[Tensor, "k dim"]
) -> Function:
    """The exchange in ``other``, its change scaled to the length of the change in ``rows``."""

    def change(value: Tensor) -> Tensor:
        # As in ``exchange``: a model of half precision is changed in single precision.
        value = value.to(torch.promote_types(value.dtype, torch.float32))
        gap = source.to(value) - value
        length = (gap @ rows.T).norm(dim=-1, keepdim=True)
        turned = gap @ other.T
        unit = turned / turned.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        moved: Tensor = value + length * (unit @ other)
        return moved

    return change


def _unchanged(data: Interchanges) -> float:
    """Share of pairs whose output stays as it was: what a place that does nothing scores."""
    return float((data.answers == data.unchanged).double().mean())
