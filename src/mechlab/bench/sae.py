"""What a TopK training step costs beside its floor and beside other tools.

The floor is one dense float32 encoder product, 2·B·d·F FLOPs: everything else in a step can be
sparse. All tools start from the same weights and see the same batches; each runs a whole step:
forward, backward, clipping where it clips, Adam, unit decoder rows.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor

from mechlab.activations.batch import Batch
from mechlab.activations.live import live
from mechlab.bench.measure import Progress, Rounds, Variant, interleaved
from mechlab.bench.peers import TRAINERS, Peer, interpreter
from mechlab.data.corpus import open_corpus
from mechlab.models.subject import load_model
from mechlab.sae.scaling import SiteScale
from mechlab.sae.source import mixed
from mechlab.sae.topk import TopKConfig
from mechlab.sae.train import train
from mechlab.sae.trainee import LOOK_EVERY, Trainee
from mechlab_kernels.encode import low_precision_supported

PRODUCT = "bare encoder product"
_SITE = "x"
_LR = 3e-4
_CLIP = TopKConfig().clip
_BATCHES = 4
_HELD_OUT = 4096
# Variant → (peer, its options). SAELens is measured as it comes and in its two faster settings.
PEER_VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "sae-lens, as it comes": (
        "sae-lens",
        {"use_sparse_activations": False, "rescale_acts_by_decoder_norm": True},
    ),
    "sae-lens, sparse codes": ("sae-lens", {}),
    "sae-lens, bfloat16": ("sae-lens", {"use_sparse_activations": False, "autocast": True}),
    "dictionary-learning": ("dictionary-learning", {}),
    "sparsify": ("sparsify", {}),
}


@dataclass(frozen=True)
class Shape:
    """Sizes of a step: width of the site, latents, rows of a batch, active latents."""

    d: int
    f: int
    b: int
    k: int


@dataclass(frozen=True)
class Problem:
    """Initial weights and batches that all tools share.

    Attributes:
        rows: training batches ``[batch, row, d]``; held_out: ``[row, d]``.
        decoder: unit rows ``[latent, d]``; the encoder starts as its transpose, biases at zero.
        folder: where both lie as files for other processes.
    """

    shape: Shape
    rows: Float[Tensor, "batch row d"]
    held_out: Float[Tensor, "other d"]
    decoder: Float[Tensor, "latent d"]
    folder: Path

    @property
    def weights_file(self) -> Path:
        """encoder, decoder, b_enc, b_dec."""
        return self.folder / "weights.safetensors"

    @property
    def batches_file(self) -> Path:
        """The training batches."""
        return self.folder / "batches.safetensors"

    @property
    def held_out_file(self) -> Path:
        """Rows that no step trains on."""
        return self.folder / "held_out.safetensors"


def make_problem(shape: Shape, folder: Path, *, batches: int = _BATCHES, seed: int = 0) -> Problem:
    """Sparse mixtures of four times as many directions as dimensions, with noise; norms about sqrt(d)."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(4 * shape.d, shape.d, generator=generator)
    n = batches * shape.b + _HELD_OUT
    rows = torch.empty(n, shape.d)
    for start in range(0, n, 8192):
        part = rows[start : start + 8192]
        chosen = torch.randint(0, len(directions), (len(part), 16), generator=generator)
        strength = torch.rand(len(part), 16, generator=generator)
        part.copy_(
            torch.nn.functional.embedding_bag(chosen, directions, per_sample_weights=strength, mode="sum")
        )
        part += 0.1 * torch.randn(part.shape, generator=generator)
    rows -= rows.mean(0)
    rows *= shape.d**0.5 / rows.norm(dim=1).mean()
    decoder = torch.randn(shape.f, shape.d, generator=generator)
    decoder /= decoder.norm(dim=1, keepdim=True)
    folder.mkdir(parents=True, exist_ok=True)
    problem = Problem(
        shape, rows[:-_HELD_OUT].view(batches, shape.b, shape.d), rows[-_HELD_OUT:], decoder, folder
    )
    biases = {"b_enc": torch.zeros(shape.f), "b_dec": torch.zeros(shape.d)}
    save_file({"encoder": decoder, "decoder": decoder.clone(), **biases}, str(problem.weights_file))
    save_file({"batches": problem.rows.contiguous()}, str(problem.batches_file))
    save_file({"x": problem.held_out.contiguous()}, str(problem.held_out_file))
    return problem


class OurStep:
    """Our training step on a problem.

    Args:
        search: how the top k are found: "float32" or "bfloat16".
        dead_share: share of latents, the first ones, that count as dead at every step.
    """

    def __init__(self, problem: Problem, device: torch.device, search: str, dead_share: float = 0.0) -> None:
        shape = problem.shape
        config = TopKConfig(
            site=_SITE, d_sae=shape.f, k=shape.k, batch_size=shape.b, tokens=shape.b * 10**6, lr=_LR,
            warmup=0, decay=0, search=search, b_dec="zero",  # type: ignore[arg-type]
        )  # fmt: skip
        flat = problem.rows.flatten(0, 1)
        scale = SiteScale(torch.zeros(shape.d), 1.0, float(flat.var(0, correction=0).sum()))
        self._trainee = Trainee(config, {_SITE: scale}, {_SITE: flat[:16]}, seed=0, device=device)
        sae = self._trainee.sae
        with torch.no_grad():
            sae.W_dec.copy_(problem.decoder)
            assert sae.W_enc is not None
            sae.W_enc.copy_(problem.decoder.T)
        self._batches = [
            Batch({_SITE: rows.to(device)}, torch.arange(shape.b), torch.zeros(shape.b, dtype=torch.long))
            for rows in problem.rows
        ]
        self._n_dead, self._number, self._device = int(dead_share * shape.f), 0, device

    def __call__(self) -> float:
        """One step; returns 1."""
        trainee = self._trainee
        number = self._number
        if self._n_dead:
            # Looked up at every step, which is more than training does.
            trainee.since_fired[: self._n_dead] = trainee.config.dead_after
            number *= LOOK_EVERY
        trainee.step(number, self._batches[self._number % len(self._batches)])
        self._number += 1
        return 1.0

    def fve(self, rows: Float[Tensor, "row d"]) -> float:
        """Fraction of variance that the present weights explain."""
        with torch.no_grad():
            return explained(rows, self._trainee.sae(rows.to(self._device)).cpu())


class ReferenceStep:
    """The same step in plain dense torch, as one would write it down."""

    def __init__(self, problem: Problem, device: torch.device) -> None:
        shape = problem.shape
        self._rows = problem.rows.to(device)
        self._variance = float(problem.rows.flatten(0, 1).var(0, correction=0).sum())
        encoder, decoder = problem.decoder.T.clone().to(device), problem.decoder.clone().to(device)
        biases = torch.zeros(shape.f, device=device), torch.zeros(shape.d, device=device)
        self._weights = [each.requires_grad_() for each in (encoder, decoder, *biases)]
        self._adam = torch.optim.Adam(self._weights, lr=_LR)
        self._k, self._number = shape.k, 0

    def __call__(self) -> float:
        """One step; returns 1."""
        x = self._rows[self._number % len(self._rows)]
        loss = (x - self._forward(x)).pow(2).sum(-1).mean() / self._variance
        self._adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        decoder = self._weights[1]
        with torch.no_grad():
            assert decoder.grad is not None
            decoder.grad -= (decoder.grad * decoder).sum(1, keepdim=True) * decoder
            torch.nn.utils.clip_grad_norm_(self._weights, _CLIP)
            self._adam.step()
            decoder /= decoder.norm(dim=1, keepdim=True)
        self._number += 1
        return 1.0

    def _forward(self, x: Tensor) -> Tensor:
        encoder, decoder, b_enc, b_dec = self._weights
        values, indices = ((x - b_dec) @ encoder + b_enc).topk(self._k, dim=1)
        codes = torch.zeros(len(x), encoder.shape[1], device=x.device).scatter(1, indices, values.relu())
        return codes @ decoder + b_dec

    def fve(self, rows: Float[Tensor, "row d"]) -> float:
        """Fraction of variance that the present weights explain."""
        with torch.no_grad():
            return explained(rows, self._forward(rows.to(self._rows.device)).cpu())


def explained(x: Float[Tensor, "row d"], made: Float[Tensor, "row d"]) -> float:
    """Fraction of the rows' variance that ``made`` explains."""
    return 1 - float((x - made).pow(2).sum() / (x - x.mean(0)).pow(2).sum())


def product(problem: Problem, device: torch.device) -> Callable[[], float]:
    """The floor: one encoder product into an array that is there already."""
    x, weights = problem.rows[0].to(device), problem.decoder.T.to(device)
    out = torch.empty(len(x), weights.shape[1], device=device)

    def step() -> float:
        torch.mm(x, weights, out=out)
        return 1.0

    return step


def compare_steps(
    shape: Shape,
    folder: Path,
    *,
    repeats: int,
    dead_share: float,
    device: torch.device,
    peers: Sequence[str] = TRAINERS,
    peer_folder: Path = Path(".peers"),
    stage: str = "steps",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Time our steps, the floor and the peers' steps in interleaved rounds.

    Args:
        dead_share: 0, or the share of latents that the auxiliary loss works on.

    Returns seconds, ratios and peaks by variant, and the names of missing peers.
    """
    problem = make_problem(shape, folder)
    variants = {PRODUCT: Variant(product(problem, device))}
    searches = ["float32"] + (["bfloat16"] if device.type == "cpu" and low_precision_supported() else [])
    for search in searches:
        variants[f"ours, {search}"] = Variant(OurStep(problem, device, search, dead_share))
    missing: list[str] = []
    own_peaks: dict[str, int | None] = {}
    with ExitStack() as stack:
        for label, (name, options) in PEER_VARIANTS.items():
            if name not in peers:
                continue
            if interpreter(name, peer_folder) is None:
                missing.append(label)
                continue
            peer = stack.enter_context(Peer(name, peer_folder))
            peer.init(
                problem.weights_file,
                problem.batches_file,
                k=shape.k,
                lr=_LR,
                dead_share=dead_share,
                **options,
            )
            variants[label] = Variant(_peer_step(peer, label, own_peaks))
        rounds = interleaved(variants, repeats=repeats, device=device, stage=stage, progress=progress)
    return {
        "shape": vars(shape),
        "dead_share": dead_share,
        "missing": missing,
        "variants": {name: _figures(rounds, name, own_peaks) for name in variants},
    }


def _peer_step(peer: Peer, label: str, peaks: dict[str, int | None]) -> Callable[[], float]:
    done = 0

    def step() -> float:
        nonlocal done
        if done == 0:
            peer.start_peak()
        peer.step(done)
        if done == 0:
            peaks[label] = peer.peak()
        done += 1
        return 1.0

    return step


def _figures(rounds: Rounds, name: str, own_peaks: dict[str, int | None]) -> dict[str, Any]:
    times = [a / b for a, b in zip(rounds.rates[PRODUCT], rounds.rates[name], strict=True)]
    return {
        "seconds": 1 / rounds.rate(name),
        "times_product": statistics.median(times),
        "range": [min(times), max(times)],
        "peak_bytes": own_peaks.get(name, rounds.peaks[name]),
    }


def compare_losses(
    shape: Shape,
    folder: Path,
    *,
    steps: int,
    device: torch.device,
    peers: Sequence[str] = TRAINERS,
    peer_folder: Path = Path(".peers"),
    progress: Progress | None = None,
) -> dict[str, float]:
    """FVE on rows never trained on, after equal steps from equal weights on equal batches."""
    problem = make_problem(shape, folder, batches=32)
    found = {}
    ours = {"reference": ReferenceStep(problem, device)}
    steps_of: dict[str, OurStep | ReferenceStep] = {
        **ours,
        "ours, float32": OurStep(problem, device, "float32"),
    }
    if device.type == "cpu" and low_precision_supported():
        steps_of["ours, bfloat16"] = OurStep(problem, device, "bfloat16")
    for done, (name, step) in enumerate(steps_of.items()):
        if progress:
            progress("equal steps", done, len(steps_of) + len(peers), {})
        for _ in range(steps):
            step()
        found[name] = step.fve(problem.held_out)
    for name in peers:
        if interpreter(name, peer_folder) is None:
            continue
        with Peer(name, peer_folder) as peer:
            peer.init(problem.weights_file, problem.batches_file, k=shape.k, lr=_LR)
            for number in range(steps):
                peer.step(number)
            found[name] = peer.fve(problem.held_out_file)
    return found


def growth(
    widths: Sequence[int],
    shape: Shape,
    folder: Path,
    *,
    repeats: int,
    device: torch.device,
    progress: Progress | None = None,
) -> dict[int, dict[str, float]]:
    """Seconds of the step and of the floor, by number of latents."""
    found = {}
    for width in widths:
        wide = Shape(shape.d, width, shape.b, shape.k)
        part = compare_steps(
            wide,
            folder / str(width),
            repeats=repeats,
            dead_share=0.0,
            device=device,
            peers=(),
            stage=f"F = {width:,}",
            progress=progress,
        )["variants"]
        found[width] = {name: figures["seconds"] for name, figures in part.items()}
    return found


def one_pass(*, dictionaries: int, tokens: int, device: torch.device) -> dict[str, float]:
    """Seconds of training one dictionary, and several on the same pass, on a model that runs meanwhile.

    Returns also the seconds of the pass without any training ("pass").
    """
    subject = load_model("fable", device=str(device))
    site = f"blocks.{subject.module.config.num_hidden_layers // 2}.hook_resid_post"
    source = mixed(live(subject, open_corpus("fable"), site), (site,), str(device))
    base = TopKConfig(site=site, d_sae=1024, k=16, tokens=tokens)
    # Rates differ, work does not.
    configs = [base.model_copy(update={"lr": 1e-3 * (n + 1)}) for n in range(dictionaries)]

    def passing() -> None:
        with source(base.batch_size, 0, None) as batches:
            for _ in range(base.steps):
                next(batches)

    work: dict[str, Callable[[], object]] = {
        "pass": passing,
        "one": lambda: train(source, configs[1:2]),
        "several": lambda: train(source, configs),
    }
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(5):
        for name, call in work.items():
            started = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(each) for name, each in seconds.items()}
