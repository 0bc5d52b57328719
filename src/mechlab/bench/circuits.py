"""What attribution, exact tests of edges and circuit search cost beside a plain forward and auto-circuit.

The unit is one forward of the Hugging Face module on the same prompts, logits at every position. Peaks
are memory beyond what was held before, weights excluded.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechlab.bench.autocircuit import NAME, AutoCircuit
from mechlab.bench.measure import Progress, Rounds, Variant, interleaved
from mechlab.bench.models import random_tokens
from mechlab.bench.peers import FOLDER, interpreter
from mechlab.circuits.attribution import edge_scores
from mechlab.circuits.evaluate import run_circuits
from mechlab.circuits.evaluation.curve import SHARES
from mechlab.circuits.graph import Graph
from mechlab.circuits.masked import Masked
from mechlab.circuits.metrics import logit_difference
from mechlab.circuits.runs import PairedRun, paired_runs
from mechlab.circuits.search.acdc import acdc
from mechlab.circuits.search.prune import top_edges
from mechlab.data.tasks import Task, make_task
from mechlab.models.forward import DecomposedForward
from mechlab.models.subject import Subject, load_model

FORWARD, EAP, EAP_IG = "plain forward", "ours, EAP", "ours, EAP-IG"
PEER_FORWARD, PEER_EAP = f"{NAME}, forward", f"{NAME}, EAP"
EDGES, LOGIT_EDGES, CURVE = "ours, single edges", "ours, edges into the logits", "ours, 10 circuits"
PEER_EDGES, PEER_LOGIT_EDGES = f"{NAME}, single edges", f"{NAME}, edges into the logits"
# What a job's cost is divided by.
COMPARED = {EAP_IG: EAP, EAP: PEER_EAP, EDGES: PEER_EDGES, LOGIT_EDGES: PEER_LOGIT_EDGES}
# How many edges are tested in one batch; None leaves it to ACDC, which looks at size and device.
ACDC_RUNS = {"one by one": 1, "16 ahead": 16, "as it comes": None}
_METRIC = "logit_difference"


def random_prompts(subject: Subject, *, n: int, n_ctx: int, seed: int = 0) -> Task:
    """Pairs of unrelated random prompts with random answers, read at the last position."""
    clean = random_tokens(subject, n, n_ctx, seed)
    answers, wrong = random_tokens(subject, n, 2, seed + 2).unbind(1)
    return Task(
        name="random",
        clean=clean,
        corrupt=random_tokens(subject, n, n_ctx, seed + 1),
        answers=answers,
        wrong=wrong,
        positions={"end": torch.full((n,), n_ctx - 1)},
        prompts=tuple(f"clean {row}" for row in range(n)),
        corrupt_prompts=tuple(f"corrupt {row}" for row in range(n)),
    )


def without_each(graph: Graph, edges: Int[Tensor, "edge 2"]) -> Bool[Tensor, "edge n_sources n_readers"]:
    """The whole model without one edge, for every edge (row, column)."""
    masks = graph.real.repeat(len(edges), 1, 1)
    masks[torch.arange(len(edges)), edges[:, 0], edges[:, 1]] = False
    return masks


class EdgeTests:
    """Exact tests of single edges: all in one masked call, on runs made beforehand."""

    def __init__(self, forward: DecomposedForward, task: Task, edges: Int[Tensor, "edge 2"]) -> None:
        self._forward, self._task = forward, task
        self._masks = without_each(Graph(forward.shape), edges)
        self.values: Tensor = torch.zeros(len(edges))

    def ready(self) -> None:
        """Make both runs."""
        self._pair: PairedRun = next(
            paired_runs(self._forward, self._task, logit_difference, len(self._task))
        )
        self._masked = Masked(
            self._forward,
            self._pair.clean,
            self._pair.corrupt.sources,
            self._pair.task.positions["end"],
        )

    def __call__(self) -> float:
        """Test them; returns how many there are."""
        logits = self._masked.logits(self._masks)
        self.values = torch.stack([self._pair.metric(each).mean() for each in logits]).cpu()
        return float(len(self._masks))


def floors(subject: Subject, task: Task, edges: Int[Tensor, "edge 2"], steps: int) -> dict[str, float]:
    """The least that each job can cost, in plain forwards, by counting multiplications.

    A forward is the blocks' matrices for every position and the unembedding for every position;
    attribution reads one position of each prompt. EAP: two forwards through the blocks, one backward
    without gradients of weights (as much as a forward), and one product of every edge's difference
    and gradient. EAP-IG: a forward and a backward for each of ``steps`` points, and both ends. An edge:
    the layers from its reader's on, but one into the logits is no more than the unembedding.
    """
    module: Any = subject.module
    config = module.config
    shape = DecomposedForward(module).shape
    d_model, layers = config.hidden_size, shape.n_layers
    block = 12.0 * d_model * d_model
    unembed = float(d_model * config.vocab_size)
    n_ctx = task.clean.shape[1]
    whole = layers * block + unembed
    product = float(Graph(shape).n_edges * d_model)
    layer_of = torch.tensor(
        [stage.layer for stage in shape.stages for _ in range(stage.readers.stop - stage.readers.start)]
    )
    rest = (layers - layer_of[edges[:, 1]]).double().mean().item()
    blocks, once = layers * block, unembed / n_ctx
    return {
        EAP: (3 * blocks + 3 * once + product) / whole,
        EAP_IG: ((2 + 2 * steps) * blocks + (2 + 2 * steps) * once + steps * product) / whole,
        EDGES: (rest * block + once) / whole,
        LOGIT_EDGES: once / whole,
        CURVE: (blocks + once) / whole,
    }


def compare_attribution(
    subject: Subject,
    task: Task,
    work: Path,
    *,
    repeats: int,
    steps: int,
    n_edges: int,
    device: torch.device,
    peer_folder: Path | None = FOLDER,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Time attribution, tests of edges and a faithfulness curve in interleaved rounds.

    Args:
        steps: gradient points of EAP-IG.
        n_edges: size of the random sample of edges that are tested exactly, and of that of edges into
            the logits.
        peer_folder: where auto-circuit's environment is; None leaves it out.

    Returns figures by variant, the ratios of ``COMPARED``, the floors, what is missing, and relative
    errors ‖ours − theirs‖/‖theirs‖ (of the logits the largest difference); None without auto-circuit.
    """
    module, forward = subject.module, DecomposedForward(subject.module)
    graph = Graph(forward.shape)
    generator = torch.Generator().manual_seed(seed)
    every = graph.real.nonzero()
    every = every[torch.randperm(len(every), generator=generator)]
    sample = every[:n_edges]
    into_logits = every[every[:, 1] == forward.shape.n_readers - 1][:n_edges]
    tokens = task.clean.to(device)
    found: dict[str, Tensor] = {}

    def plain() -> float:
        with torch.no_grad():
            module(tokens)
        return 1.0

    def attribute(name: str, method: str) -> Callable[[], float]:
        def step() -> float:
            found[name] = edge_scores(
                forward, task, method=method, steps=steps, metric=_METRIC, batch_size=len(task)
            )
            return 1.0

        return step

    circuits = curve_circuits(graph, edge_scores(forward, task, method="eap", metric=_METRIC))

    def curve() -> float:
        run_circuits(forward, task, circuits, metric=_METRIC, batch_size=len(task))
        return float(len(circuits))

    ours = {EDGES: EdgeTests(forward, task, sample), LOGIT_EDGES: EdgeTests(forward, task, into_logits)}
    variants = {
        FORWARD: Variant(plain),
        EAP: Variant(attribute(EAP, "eap")),
        EAP_IG: Variant(attribute(EAP_IG, "eap-ig")),
        CURVE: Variant(curve),
        **{name: Variant(tests, tests.ready) for name, tests in ours.items()},
    }
    errors: dict[str, float] | None = None
    peaks: dict[str, int | None] = {}
    with ExitStack() as stack:
        peer: AutoCircuit | None = None
        if peer_folder is not None and interpreter(NAME, peer_folder) is not None:
            peer = AutoCircuit(module, task, work, device, peer_folder)
            stack.callback(peer.close)
            theirs = {PEER_EDGES: sample, PEER_LOGIT_EDGES: into_logits}
            variants |= _peer_variants(peer, theirs, found, peaks)
        rounds = interleaved(variants, repeats=repeats, device=device, stage="rounds", progress=progress)
        if peer is not None:
            with torch.no_grad():
                logits = module(tokens).logits[:, -1].cpu()
            errors = {
                "logits": float((logits - peer.logits).abs().max()),
                "EAP": _relative(found[EAP], peer.scores()),
                "single edges": _relative(ours[EDGES].values, found[PEER_EDGES]),
                "edges into the logits": _relative(ours[LOGIT_EDGES].values, found[PEER_LOGIT_EDGES]),
            }
    return {
        "n_edges": graph.n_edges,
        "tested": len(sample),
        "variants": {name: _figures(rounds, name, peaks) for name in variants},
        "ratios": {
            f"{name} / {base}": rounds.ratio(base, name)
            for name, base in COMPARED.items()
            if base in variants
        },
        "floors": floors(subject, task, sample, steps),
        "errors": errors,
        "missing": [NAME] if peer is None and peer_folder is not None else [],
    }


def curve_circuits(
    graph: Graph, scores: Float[Tensor, "n_sources n_readers"]
) -> Bool[Tensor, "circuit n_sources n_readers"]:
    """Circuits of the ten sizes of a faithfulness curve, each pruned to edges on a path."""
    sizes = [int(share * graph.n_edges) for share in SHARES]
    return torch.stack([graph.connected(top_edges(graph, scores, size)) for size in sizes])


def _peer_variants(
    peer: AutoCircuit,
    edges: dict[str, Int[Tensor, "edge 2"]],
    found: dict[str, Tensor],
    peaks: dict[str, int | None],
) -> dict[str, Variant]:
    """Its jobs; the first run of attribution is watched for its memory."""

    def forward() -> float:
        peer.forward()
        return 1.0

    def eap() -> float:
        if PEER_EAP not in peaks:
            peer.start_peak()
        peer.eap()
        peaks.setdefault(PEER_EAP, peer.peak())
        return 1.0

    def tests(name: str) -> Callable[[], float]:
        places = [(source, reader) for source, reader in edges[name].tolist()]

        def step() -> float:
            found[name] = peer.edges(places)[1]
            return float(len(places))

        return step

    several = {name: Variant(tests(name), peer.ready) for name in edges}
    return {PEER_FORWARD: Variant(forward), PEER_EAP: Variant(eap), **several}


def _figures(rounds: Rounds, name: str, peaks: dict[str, int | None]) -> dict[str, Any]:
    """``forwards`` is the cost of one job (an attribution, an edge, a circuit) in plain forwards."""
    ratios = rounds.ratios(FORWARD, name)
    return {
        "seconds": 1 / rounds.rate(name),
        "forwards": rounds.ratio(FORWARD, name),
        "range": [min(ratios), max(ratios)],
        "peak_bytes": peaks.get(name, None if name.startswith(NAME) else rounds.peaks[name]),
    }


def _relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


def time_acdc(
    *, prompts: int, threshold: float, device: str, progress: Progress | None = None
) -> dict[str, Any]:
    """ACDC on the bundled model's IOI: one edge at a time, with edges tested ahead, and as it comes.

    Returns seconds, calls of the model and circuits run in them, for each; also the circuit's size and
    whether it is the same each time.
    """
    subject = load_model("fable", device=device)
    forward = DecomposedForward(subject.module)
    task = make_task("ioi", subject.tokenizer, n=prompts, seed=0, split="validation")
    runs, masks = {}, []
    for number, (name, width) in enumerate(ACDC_RUNS.items()):
        if progress:
            progress(f"ACDC, {name}", number, len(ACDC_RUNS), {})
        run = acdc(forward, task, threshold, ahead=width)
        runs[name] = {"seconds": run.seconds, "calls": run.calls, "circuits": run.rows}
        masks.append(run.mask)
    return {
        "prompts": prompts,
        "threshold": threshold,
        "edges": Graph(forward.shape).n_edges,
        "kept": int(masks[0].sum()),
        "same": all(torch.equal(mask, masks[0]) for mask in masks),
        "runs": runs,
    }
