"""Ground truth: dictionaries against planted features and Fable's concepts; circuits against known ones.

Part "features" is ``mechlab.bench.feature_tables``. Part "circuits" is ``mechlab.bench.circuit_truth``, a
table for each model, and ``circuit_ioi``, the table "fable-ioi". Part "sae" is here, every architecture in
three tables, each with the same figures for random directions beside it:


* toy: independent features in superposition, as many latents as features. A dictionary that is any
  good finds them all (mean max cosine similarity near 1).
* synthsaebench: the scaled clone of SynthSAEBench's recipe (arXiv 2602.14687): Zipf frequencies,
  hierarchy, correlation; a quarter as many latents as features, so no dictionary can have them all.
* fable: dictionaries of the bundled model's activations against the concept labels of its corpus.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechlab.bench.circuit_ioi import ioi_circuits, ioi_goals
from mechlab.bench.circuit_truth import MODELS, against_truth, truth_goals
from mechlab.bench.feature_tables import feature_goals, feature_tables
from mechlab.bench.measure import Progress
from mechlab.data.synthetic import Planted, Recipe, plant, synthsaebench
from mechlab.errors import MechlabError, near
from mechlab.models.subject import load_model
from mechlab.sae.base import Sae
from mechlab.sae.codes import concatenate
from mechlab.sae.config import TrainConfig
from mechlab.sae.metrics.latents import best_latent_f1
from mechlab.sae.metrics.probing import sparse_probing
from mechlab.sae.metrics.rows import ConceptRows, concept_rows, random_codes
from mechlab.sae.registry import ARCHITECTURES, architecture
from mechlab.sae.source import Opener, generated, tables
from mechlab.sae.train import train
from mechlab.sae.truth import measure

_SITE = "planted"
# Seeds of rows: those that are scored are never those that are trained on.
_SCORED = 10_001
IOI = "fable-ioi"
SINGLE_SITE = tuple(name for name in ARCHITECTURES if name != "clt")
_BLOCK = 2
_RESID, _EARLIER = f"blocks.{_BLOCK}.hook_resid_post", f"blocks.{_BLOCK - 1}.hook_resid_post"
_MLP_IN, _MLP_OUT = f"blocks.{_BLOCK}.mlp.hook_in", f"blocks.{_BLOCK}.hook_mlp_out"
_MLPS = tuple((f"blocks.{n}.mlp.hook_in", f"blocks.{n}.hook_mlp_out") for n in (_BLOCK - 1, _BLOCK))


def config_of(arch: str, *, d_sae: int, active: int, **common: Any) -> TrainConfig:
    """An architecture's settings with about ``active`` latents per row, all else as it comes."""
    kind = architecture(arch).Config
    wanted: dict[str, Any] = {"k": active, "max_iterations": active, "target_l0": float(active)}
    own = {name: value for name, value in wanted.items() if name in kind.model_fields}
    return kind(d_sae=d_sae, **own, **common)


def planted_source(planted: Planted) -> Opener:
    """Fresh rows of a planted model, batch after batch."""

    def rows(size: int, seed: int, number: int) -> Mapping[str, Tensor]:
        return {_SITE: planted.batch(size, seed, number)[0]}

    return generated(rows)


def toy(seed: int = 0) -> Planted:
    """64 independent features in 32 dimensions, about three of which fire at a time."""
    return plant(
        Recipe(features=64, d=32, p_max=0.047, p_min=0.047, mean_first=1.0, mean_last=1.0, seed=seed)
    )


def against_planted(
    planted: Planted,
    *,
    d_sae: int,
    active: int,
    tokens: int,
    architectures: tuple[str, ...],
    seed: int,
    device: str,
    progress: Progress | None,
    stage: str,
) -> dict[str, Any]:
    """Train every architecture on a planted model and measure it on fresh rows; name → figures."""
    found = {}
    for done, arch in enumerate(architectures):
        if progress:
            progress(stage, done, len(architectures), {})
        config = config_of(arch, d_sae=d_sae, active=active, site=_SITE, tokens=tokens, batch_size=1024)
        started = time.perf_counter()
        (made,) = train(planted_source(planted), [config], seed=seed, device=device)
        figures = measure(made.sae, planted, rows=20_000, seed=_SCORED + seed).to_dict()
        found[arch] = {**figures, "missed": made.missed, "seconds": time.perf_counter() - started}
    if progress:
        progress(stage, len(architectures), len(architectures), {})
    return found


def against_fable(
    *, tokens: int, d_sae: int, active: int, documents: int, seed: int, device: str, progress: Progress | None
) -> dict[str, Any]:
    """Train every architecture on the bundled model and score its latents on held-out documents."""
    subject = load_model("fable", device=device)
    pairs = [site for pair in _MLPS for site in pair]
    sites = list(dict.fromkeys([_RESID, _EARLIER, _MLP_IN, _MLP_OUT, *pairs]))
    rows = _training_rows(subject, sites, tokens)
    scored = concept_rows(subject, sites, split="validation", documents=documents)
    common: dict[str, Any] = {"d_sae": d_sae, "active": active, "tokens": tokens, "batch_size": 2048}
    configs = {name: config_of(name, site=_RESID, **common) for name in SINGLE_SITE}
    configs["transcoder (topk)"] = config_of("topk", site=_MLP_IN, target=_MLP_OUT, **common)
    configs["skip transcoder (topk)"] = config_of("topk", site=_MLP_IN, target=_MLP_OUT, skip=True, **common)
    configs["crosscoder (relu)"] = config_of("relu", site=f"{_EARLIER},{_RESID}", decoder="free", **common)
    configs["crosscoder (batchtopk)"] = config_of("batchtopk", site=f"{_EARLIER},{_RESID}", **common)
    inputs, outputs = zip(*_MLPS, strict=True)
    configs["clt"] = config_of("clt", site=",".join(inputs), target=",".join(outputs), **common)
    found = {}
    for done, (name, config) in enumerate(configs.items()):
        if progress:
            progress("fable", done, len(configs), {})
        started = time.perf_counter()
        (made,) = train(tables(rows), [config], seed=seed, device=device)
        x = torch.cat([scored.activations[site] for site in config.inputs], dim=1)
        found[name] = {
            "fve": made.metrics[-1]["fve"],
            "l0": made.metrics[-1]["l0"],
            "missed": made.missed,
            **_concepts(made.sae.cpu(), x, scored, seed),
            "seconds": time.perf_counter() - started,
        }
    if progress:
        progress("fable", len(configs), len(configs), {})
    return found


def _training_rows(subject: Any, sites: list[str], tokens: int) -> dict[str, Tensor]:
    """Activations of training documents, in memory; as many as are trained on, or half a million."""
    from mechlab.activations.live import live
    from mechlab.data.corpus import open_corpus

    source = live(subject, open_corpus("fable"), sites)
    parts: dict[str, list[Tensor]] = {site: [] for site in sites}
    have = 0
    for chunk in source.chunks(None):
        for site in sites:
            parts[site].append(chunk.values[site].cpu())
        have += len(chunk.row)
        if have >= min(tokens, 500_000):
            break
    return {site: torch.cat(values) for site, values in parts.items()}


@torch.no_grad()
def _concepts(sae: Sae, x: Float[Tensor, "row d_in"], rows: ConceptRows, seed: int) -> dict[str, Any]:
    codes = concatenate([sae.encode(part) for part in torch.split(x, 8192)])
    probing = sparse_probing(codes, x, rows.labels, rows.documents, sae.d_sae, seed=seed)
    best = best_latent_f1(codes, rows.labels, rows.documents, sae.d_sae, seed=seed)
    random = random_codes(x, codes, sae.d_sae, seed)
    control = best_latent_f1(random, rows.labels, rows.documents, sae.d_sae, seed=seed)
    return {
        "concepts": len(best.concepts),
        "l0_held_out": float(codes.l0().float().mean()),
        "best_f1": best.f1.to_dict(),
        "best_f1_random": control.f1.to_dict(),
        "probing": {str(k): each.accuracy.to_dict() for k, each in probing.sparse.items()},
        "probing_random": {str(k): each.accuracy.to_dict() for k, each in probing.random.items()},
        "probing_dense": probing.dense.accuracy.to_dict(),
    }


def run_truth(
    *,
    part: str,
    tables_wanted: tuple[str, ...] = (),
    seed: int = 0,
    device: str = "cpu",
    model: Path | None = None,
    data: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """The tables of a part, all of them when none is named; MechlabError for an unknown part or table.

    Args:
        model, data: features: a model and a corpus for the table "stories".
    """
    if part not in PARTS:
        raise MechlabError("unknown part", part, near(part, PARTS))
    makers = PARTS[part](seed, device, progress)
    if part == FEATURES:
        makers = feature_tables(seed, progress, model=model, data=data)
    for name in tables_wanted:
        if name not in makers:
            raise MechlabError("unknown table", name, near(name, makers))
    found = {name: makers[name]() for name in tables_wanted or makers}
    goals = {"sae": _goals, "circuits": _circuit_goals, FEATURES: feature_goals}[part](found)
    return {**found, "goals": goals, "met": all(each["met"] for each in goals)}


Makers = dict[str, Callable[[], dict[str, Any]]]


def _sae_tables(seed: int, device: str, progress: Progress | None) -> Makers:
    clone = synthsaebench(1 / 32)
    return {
        "toy": lambda: against_planted(
            toy(seed), d_sae=64, active=3, tokens=1_000_000, architectures=SINGLE_SITE, seed=seed,
            device=device, progress=progress, stage="toy",
        ),
        "synthsaebench": lambda: against_planted(
            plant(clone), d_sae=clone.features // 4, active=_l0(plant(clone)), tokens=2_000_000,
            architectures=SINGLE_SITE, seed=seed, device=device, progress=progress, stage="synthsaebench",
        ),
        "fable": lambda: against_fable(
            tokens=1_000_000, d_sae=512, active=16, documents=200, seed=seed, device=device,
            progress=progress,
        ),
    }  # fmt: skip


def _circuit_tables(seed: int, device: str, progress: Progress | None) -> Makers:
    def on(model: str) -> Callable[[], dict[str, Any]]:
        return lambda: against_truth(model, seed=seed, device=device, progress=progress)

    return {
        **{model: on(model) for model in MODELS},
        IOI: lambda: ioi_circuits(seed=seed, device=device, progress=progress),
    }


def _feature_tables(seed: int, device: str, progress: Progress | None) -> Makers:
    return feature_tables(seed, progress)


FEATURES = "features"
PARTS: dict[str, Callable[[int, str, Progress | None], Makers]] = {
    "sae": _sae_tables,
    "circuits": _circuit_tables,
    FEATURES: _feature_tables,
}


def _circuit_goals(found: dict[str, Any]) -> list[dict[str, Any]]:
    goals = truth_goals({name: each for name, each in found.items() if name in MODELS})
    return goals + (ioi_goals(found[IOI]) if IOI in found else [])


def _goals(found: dict[str, Any]) -> list[dict[str, Any]]:
    goals = []
    for arch in ("topk", "matryoshka"):
        if "toy" in found:
            value = found["toy"][arch]["mmcs_features"]
            goals.append({"name": f"toy, {arch}: MMCS {value:.3f} >= 0.95", "met": value >= 0.95})
    for arch, figures in found.get("fable", {}).items():
        for k, score in figures["probing"].items():
            value, control = score["value"], figures["probing_random"][k]["value"]
            name = f"fable, {arch}: sparse probe at k={k} {value:.3f} > random dictionary's {control:.3f}"
            goals.append({"name": name, "met": value > control})
    return goals


def _l0(planted: Planted) -> int:
    """How many of the most frequent features, those that a narrow dictionary can have, fire per row."""
    _, features = planted.batch(20_000, _SCORED, 0)
    quarter = features.shape[1] // 4
    return max(1, round(float((features[:, :quarter] != 0).sum(1).float().mean())))
