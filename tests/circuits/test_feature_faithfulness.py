"""Feature circuits run in the model: bounds, references, and what the scores are made of."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from feature_models import sae_at, subject_of
from torch import Tensor, nn

from mechlab.circuits.features.effects import feature_effects
from mechlab.circuits.features.evaluate import _random, feature_faithfulness, run_feature_circuits
from mechlab.circuits.features.sites import mask_of, top_nodes
from mechlab.data.tasks import Task
from mechlab.errors import MechlabError
from mechlab.interventions.edit import editing
from mechlab.sae.codes import scatter

SITES = ("blocks.0.hook_resid_post", "blocks.1.hook_mlp_out")
LAST = "blocks.2.hook_resid_post"
D_SAE = 40
Make, MakeTask = Callable[..., nn.Module], Callable[..., Task]


def masks(value: bool, sites: tuple[str, ...] = SITES, places: int = 1) -> dict[str, Tensor]:
    return {site: torch.full((places, D_SAE + 1), value) for site in sites}


def difference(logits: Tensor, task: Task) -> Tensor:
    rows = torch.arange(len(task))
    return logits[rows, -1, task.answers] - logits[rows, -1, task.wrong]


def test_the_whole_is_the_model_and_nothing_is_the_ablation(
    random_module: Make, random_task: MakeTask, architecture: str
) -> None:
    subject, task = subject_of(random_module(architecture)), random_task()
    dictionaries = [sae_at(site) for site in (*SITES, LAST)]
    all_sites = (*SITES, LAST)
    for ablation in ("resample", "zero"):
        values, whole = run_feature_circuits(
            subject, dictionaries, task, [masks(True, all_sites), masks(False, all_sites)],
            ablation=ablation, batch_size=4,
        )  # fmt: skip
        assert torch.equal(values[0], whole)
        torch.testing.assert_close(whole, difference(subject.logits(task.clean), task))
        if ablation == "resample":
            # The last stream is all that the logits see.
            corrupt = difference(subject.logits(task.corrupt), task)
            torch.testing.assert_close(values[1], corrupt, atol=1e-4, rtol=1e-4)
        else:
            bias = dictionaries[-1].sae.b_dec.expand(*task.clean.shape, -1)
            with editing(subject, LAST, lambda _, bias=bias: bias):
                none = difference(subject.logits(task.clean), task)
            torch.testing.assert_close(values[1], none, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("ablation", ["resample", "zero", "mean", "mean-positional"])
@pytest.mark.parametrize("places", [1, 7])
def test_a_circuit_equals_codes_exchanged_one_by_one(
    random_module: Make, random_task: MakeTask, ablation: str, places: int
) -> None:
    subject, task, other = subject_of(random_module("llama")), random_task(), random_task(seed=9, n=5)
    dictionaries = {site: sae_at(site, seed=seed) for seed, site in enumerate(SITES)}
    generator = torch.Generator().manual_seed(0)
    circuit = {site: torch.rand(places, D_SAE + 1, generator=generator) < 0.6 for site in SITES}

    def apart(site: str, x: Tensor) -> tuple[Tensor, Tensor]:
        sae = dictionaries[site].sae
        codes = scatter(sae.encode(x.flatten(0, 1)), D_SAE).view(*x.shape[:2], -1)
        return codes, x - codes @ sae.W_dec - sae.b_dec

    def seen(tokens: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        found = {}

        def keep(site: str, x: Tensor) -> Tensor:
            found[site] = apart(site, x)
            return x

        with (
            editing(subject, SITES[0], lambda x: keep(SITES[0], x)),
            editing(subject, SITES[1], lambda x: keep(SITES[1], x)),
        ):
            subject.logits(tokens)
        return found

    corrupt, reference = seen(task.corrupt), seen(other.clean)

    def exchanged(site: str, x: Tensor) -> Tensor:
        now = apart(site, x)
        held = [
            {
                "resample": corrupt[site][part],
                "zero": torch.zeros(1),
                "mean": reference[site][part].mean((0, 1)),
                "mean-positional": reference[site][part].mean(0),
            }[ablation].expand_as(now[part])
            for part in (0, 1)
        ]
        kept = circuit[site]
        codes = torch.where(kept[:, :-1], now[0], held[0])
        error = torch.where(kept[:, -1:], now[1], held[1])
        return codes @ dictionaries[site].sae.W_dec + dictionaries[site].sae.b_dec + error

    with (
        editing(subject, SITES[0], lambda x: exchanged(SITES[0], x)),
        editing(subject, SITES[1], lambda x: exchanged(SITES[1], x)),
    ):
        expected = difference(subject.logits(task.clean), task)
    values, _ = run_feature_circuits(
        subject, list(dictionaries.values()), task, [circuit],
        ablation=ablation, reference=other, batch_size=4,
    )  # fmt: skip
    torch.testing.assert_close(values[0], expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("errors", ["keep", "ablate", "circuit"])
def test_faithfulness_is_the_ratio_of_means(random_module: Make, random_task: MakeTask, errors: str) -> None:
    subject, task = subject_of(random_module("gpt2", scale=0.2)), random_task(n=10)
    dictionaries = [sae_at(site, seed=seed) for seed, site in enumerate(SITES)]
    effects = feature_effects(subject, dictionaries, task, method="attribution")
    candidates = {site: effect != 0 for site, effect in effects.items()}
    circuit = mask_of(top_nodes(subject, effects, 15), effects)
    for complement in (False, True):
        score = feature_faithfulness(
            subject, dictionaries, task, circuit, candidates,
            complement=complement, errors=errors, controls=2,
        )  # fmt: skip
        kept = {site: ~mask if complement else mask.clone() for site, mask in circuit.items()}
        empty = masks(False)
        if errors != "circuit":
            for mask in (*kept.values(), *empty.values()):
                mask[:, -1] = errors == "keep"
        values, whole = run_feature_circuits(subject, dictionaries, task, [kept, empty])
        gap = whole.mean() - values[1].mean()
        assert score.value == pytest.approx(float((values[0].mean() - values[1].mean()) / gap), rel=1e-3)
        assert score.n == 10
        assert score.low <= score.value <= score.high
        assert score.null is not None
        assert score.null.n == 2
        assert score.name == ("completeness" if complement else "faithfulness")
    full = feature_faithfulness(
        subject, dictionaries, task, masks(True), masks(True), errors="circuit", controls=1
    )
    assert full.value == pytest.approx(1.0)
    assert full.null is not None
    assert np.isclose(full.null.value, 1.0)


@pytest.mark.parametrize("latents", [True, False])
def test_random_sets_are_drawn_from_the_candidates(latents: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    circuit = {site: torch.rand(1, D_SAE + 1, generator=generator) < 0.2 for site in SITES}
    candidates = {site: torch.rand(1, D_SAE + 1, generator=generator) < 0.7 for site in SITES}
    for mask in (*circuit.values(), *candidates.values()):
        mask[:, -1] = True
    size = sum(int(mask[:, : D_SAE if latents else None].sum()) for mask in circuit.values())
    drawn = [_random(circuit, candidates, latents, generator) for _ in range(40)]
    for one in drawn:
        assert sum(int(mask.sum()) for mask in one.values()) == size
        assert all(bool((candidates[site] | ~mask).all()) for site, mask in one.items())
        assert not latents or not any(bool(mask[0, -1]) for mask in one.values())
    for site, candidate in candidates.items():
        often = torch.stack([one[site] for one in drawn]).float().mean(0)[candidate]
        allowed = often[:-1] if latents else often
        assert float(allowed.min()) > 0
        assert float(allowed.max()) < 0.8


def test_errors_say_what_is_wrong(random_module: Make, random_task: MakeTask) -> None:
    subject, task = subject_of(random_module("gpt2")), random_task()
    dictionaries = [sae_at(site) for site in SITES]

    def run(**settings: object) -> None:
        run_feature_circuits(subject, dictionaries, task, [masks(True)], **settings)  # type: ignore[arg-type]

    with pytest.raises(MechlabError, match="unknown ablation"):
        run(ablation="patch")
    with pytest.raises(MechlabError, match="reference prompts"):
        run(ablation="mean")
    with pytest.raises(MechlabError, match="another length"):
        run(ablation="mean-positional", reference=random_task(pos=9))
    run(ablation="mean", reference=random_task(pos=9))
    with pytest.raises(MechlabError, match="no dictionary at the circuit's site"):
        run_feature_circuits(subject, dictionaries, task, [masks(True, (LAST,))])
    with pytest.raises(MechlabError, match="treatment of errors"):
        feature_faithfulness(subject, dictionaries, task, masks(True), masks(True), errors="drop")
