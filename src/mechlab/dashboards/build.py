"""From the artifacts of a run, or single ones, to the site that shows them."""

from __future__ import annotations

import contextlib
import json
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mechlab.artifacts import Artifact, exists, open_artifact
from mechlab.circuits.circuit import Circuit
from mechlab.circuits.features.circuit_tracer import read_circuit_tracer_graph
from mechlab.circuits.features.graph import FeatureGraph
from mechlab.dashboards.circuit_block import circuit_block, graph_block
from mechlab.dashboards.feature_blocks import feature_blocks
from mechlab.dashboards.feature_judged import DrillDown
from mechlab.dashboards.feature_material import gather_material
from mechlab.dashboards.run_block import run_block
from mechlab.dashboards.site import LIMIT, Site, Written, write_site
from mechlab.dashboards.token_blocks import DOCUMENTS, token_blocks
from mechlab.data.tasks import Task, make_task
from mechlab.errors import MechlabError
from mechlab.features.building import load_index
from mechlab.features.explanations import Explanations, load_explanations
from mechlab.features.index import FeatureIndex
from mechlab.features.notes import NOTES, Notes, read_notes
from mechlab.features.scoring.scorecard import Scorecard, load_scores
from mechlab.features.statistics import STATISTICS_FILE, Statistics, load_statistics
from mechlab.files import file_sha256
from mechlab.models.subject import Subject, load_model
from mechlab.sae.dictionary import Dictionary, load_sae
from mechlab.sae.evaluate import Evaluation

# Features with steering samples, where a model is there.
STEER = 64
# Prompt pairs that circuits are judged on by default.
_PROMPTS = 128
RUN = "run"
# Parts of a run: where each stands in its directory.
PARTS = {
    "index": "features",
    "held": "heldout_features",
    "explanations": "explanations",
    "scores": "scores",
    "dictionary": "sae",
    "circuit": "circuit",
}
# What a part was made from: part, role among its inputs, other part.
_MADE_FROM = (
    ("scores", "explanations", "explanations"),
    ("scores", "index", "held"),
    ("index", "dictionary", "dictionary"),
)
# More of a run, of which the site tells how they were made.
OTHERS = ("activations", "heldout", "evaluation")

Progress = Callable[[str, int, int], None]
"""Called with (step, done, total)."""


@dataclass(frozen=True, eq=False)
class Findings:
    """What a site is made of; what is None is not shown.

    Attributes:
        title: heading of the site.
        facts: what is shown below it: model, site.
        index, statistics: the features; all that follows is of them.
        held: the same features on the text that explanations were scored on.
        subject: the model; without it there are no effects on logits, steering samples or next tokens.
        prompts: for what the nodes of the circuit do.
        graphs: what they are of → attribution graphs, shown with the circuit.
        command, config, inputs, timings: of the run.
        artifacts: name → what everything was read from.
        digests: name → SHA-256 of what was read and is no artifact: notes, graphs.
    """

    title: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    index: FeatureIndex | None = None
    statistics: Statistics | None = None
    held: FeatureIndex | None = None
    explanations: Explanations | None = None
    scores: Scorecard | None = None
    notes: Notes | None = None
    dictionary: Dictionary | None = None
    circuit: Circuit | None = None
    graphs: Mapping[str, FeatureGraph] = field(default_factory=dict)
    subject: Subject | None = None
    prompts: Task | None = None
    evaluation: Evaluation | None = None
    command: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)
    timings: Mapping[str, float] = field(default_factory=dict)
    artifacts: Mapping[str, Artifact] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)


def dashboard(
    run: Path | str,
    out: Path | str,
    *,
    limit: int = LIMIT,
    steer: int = STEER,
    documents: int = DOCUMENTS,
    model: bool = True,
    trust_remote_code: bool = False,
    graphs: Sequence[Path | str] = (),
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Written:
    """Write the site of a run.

    Args:
        run: directory of a finished run.
        out: directory of the site.
        limit: bytes up to which the site is one file.
        steer: so many features get steering samples.
        documents: so many can be read token by token.
        model: load the run's model, for what needs one.
        trust_remote_code: let the model's own code run; a run that somebody else made cannot ask for it.
        graphs: files of attribution graphs, shown with the circuit (see ``with_graphs``).

    Raises MechlabError when there is no finished run, or ``out`` holds something else.
    """
    found = read_run(Path(run), model=model, trust_remote_code=trust_remote_code)
    found = with_graphs(found, [Path(each) for each in graphs])
    site = site_of(found, steer=steer, documents=documents, progress=progress)
    return write_site(site, Path(out), limit=limit, overwrite=overwrite)


def site_of_run(
    path: Path,
    *,
    steer: int = STEER,
    documents: int = DOCUMENTS,
    model: bool = True,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> Site:
    """The site of a finished run; arguments as for ``dashboard``."""
    found = read_run(path, model=model, trust_remote_code=trust_remote_code)
    return site_of(found, steer=steer, documents=documents, progress=progress)


def site_of(
    found: Findings,
    *,
    steer: int = STEER,
    documents: int = DOCUMENTS,
    progress: Progress | None = None,
) -> Site:
    """The site of what was found; arguments as for ``dashboard``. Blocks are made when they are written."""
    index = found.index
    circuits = found.circuit is not None or bool(found.graphs)
    there = {"features": index is not None, "circuit": circuits, "tokens": index is not None}
    views = [name for name, has in there.items() if has]
    facts = {**found.facts, "command": found.command}
    if index is not None:
        facts |= {"tokens": len(index.text), "features": index.n_features}
        outputs = index.about.get("outputs", [])
        facts |= {"writes": outputs[0]} if len(outputs) == 1 else {}
    inputs = {name: each.manifest.fingerprint for name, each in found.artifacts.items()}
    return Site(
        title=found.title,
        views=(*views, "run"),
        facts=facts,
        blocks=lambda: _blocks(found, steer, documents, progress or (lambda *_: None)),
        inputs={**inputs, **found.digests},
        settings={"steer": steer, "documents": documents, "model": found.subject is not None},
    )


def _blocks(found: Findings, steer: int, documents: int, progress: Progress) -> Iterator[tuple[str, Any]]:
    index, subject, dictionary = found.index, found.subject, found.dictionary
    reader = subject if subject is not None and subject.causal else None
    if index is not None:
        material = gather_material(
            index,
            statistics=found.statistics,
            explanations=found.explanations,
            scores=found.scores,
            notes=found.notes,
            drill=_drill(found),
            dictionary=dictionary,
            subject=subject,
            steer=0 if reader is None or dictionary is None else steer,
            progress=progress,
        )
        yield from feature_blocks(material, progress=lambda done, total: progress("features", done, total))
    if found.circuit is not None or found.graphs:
        progress("circuit", 0, 0)
        yield from _circuits(found)
    if index is not None:
        progress("tokens", 0, 0)
        effects = None if reader is None else dictionary
        yield from token_blocks(index, documents=documents, subject=reader, dictionary=effects)
    yield (
        "run",
        run_block(
            command=found.command,
            config=found.config,
            inputs=found.inputs,
            timings=found.timings,
            evaluation=found.evaluation,
            circuit=found.circuit,
            scores=found.scores,
            artifacts=found.artifacts,
        ),
    )


def _circuits(found: Findings) -> Iterator[tuple[str, Any]]:
    """The circuit and the graphs: "circuit", "circuit-1", …; "circuits" names them if they are several."""
    made = [] if found.circuit is None else [circuit_block(found.circuit, found.subject, found.prompts)]
    for prompt, graph in found.graphs.items():
        facts = {"nodes": f"{len(graph.nodes):,}", "edges": f"{int((graph.scores != 0).sum()):,}"}
        made.append(graph_block(graph, f"Attribution graph of “{prompt}”", facts, subject=found.subject))
    if len(made) > 1:
        yield "circuits", [each["title"] for each in made]
    for number, block in enumerate(made):
        yield f"circuit-{number}" if number else "circuit", block


def _drill(found: Findings) -> DrillDown | None:
    """The items behind the scores, where the text that was scored on is there."""
    if found.held is None or found.explanations is None or found.scores is None:
        return None
    settings = found.artifacts["scores"].manifest.config
    return DrillDown.from_settings(found.held, found.explanations, found.scores, settings)


def read_run(path: Path, *, model: bool = True, trust_remote_code: bool = False) -> Findings:
    """What a finished run left in its directory.

    Args:
        model: load the run's model too.
        trust_remote_code: let the model's own code run; a run that somebody else made cannot ask for it.

    Raises MechlabError when the run is not finished or damaged, or its model is not what it was.
    """
    run = open_artifact(path, RUN)
    config, inputs = run.manifest.config, run.manifest.inputs
    summary = json.loads(run.file("summary.json").read_text(encoding="utf-8"))
    subject = None
    if model:
        subject = load_model(
            config["model"],
            dtype=config["dtype"],
            revision=config["revision"],
            trust_remote_code=trust_remote_code,
        )
        if subject.fingerprint != inputs.get("model"):
            raise MechlabError("model is not that of the run", config["model"], "build without the model")
    evaluation = None
    if exists(path / "evaluation"):
        made = open_artifact(path / "evaluation").file("evaluation.json")
        evaluation = Evaluation.from_dict(json.loads(made.read_text(encoding="utf-8")))
    return read_parts(
        {name: path / folder for name, folder in PARTS.items() if exists(path / folder)},
        title=f"{config['model']} at {config['site']}",
        facts={"model": config["model"], "site": config["site"]},
        subject=subject,
        evaluation=evaluation,
        # Runs of before had no command among their facts.
        command=run.manifest.facts.get("command") or shlex.join(run.manifest.command),
        config=config,
        inputs=inputs,
        timings=summary["seconds"],
        others={name: path / name for name in OTHERS if exists(path / name)},
    )


def read_parts(
    parts: Mapping[str, Path],
    *,
    subject: Subject | None = None,
    others: Mapping[str, Path] | None = None,
    **more: Any,
) -> Findings:
    """What stands in single artifacts.

    Args:
        parts: those of ``PARTS`` that are there, by name; "held" is the index of the text that
            explanations were scored on, and need not be named when that is "index".
        subject: the model that they are of.
        others: more artifacts, of which the site only tells how they were made.
        more: other fields of ``Findings``.

    Raises MechlabError where one is not there, is damaged, or is not of the others.
    """
    made = {name: open_artifact(path) for name, path in parts.items()}
    inputs = {name: each.manifest.inputs for name, each in made.items()}
    prints = {name: each.manifest.fingerprint for name, each in made.items()}
    for part, role, other in _MADE_FROM:
        known = inputs.get(part, {}).get(role)
        if other in made and known not in (None, prints[other]):
            raise MechlabError(
                f"{part} and {other} do not belong together", parts[part], f"check {parts[other]}"
            )
    if "index" in parts and inputs.get("scores", {}).get("index") == prints["index"]:
        parts = {"held": parts["index"], **parts}
    index = load_index(parts["index"]) if "index" in parts else None
    has_statistics = "index" in made and STATISTICS_FILE in made["index"].manifest.files
    circuit = Circuit.load(parts["circuit"]) if "circuit" in parts else None
    if circuit is not None and subject is not None and circuit.model != subject.fingerprint:
        raise MechlabError("circuit is of another model", parts["circuit"], f"not of {subject.name}")
    dictionary = load_sae(parts["dictionary"]) if "dictionary" in parts else None
    if dictionary is not None and subject is not None:
        dictionary.check(subject)
    notes = None if index is None else parts["index"] / NOTES
    return Findings(
        **more,
        index=index,
        statistics=load_statistics(parts["index"]) if has_statistics else None,
        held=load_index(parts["held"]) if "held" in parts else None,
        explanations=load_explanations(parts["explanations"]) if "explanations" in parts else None,
        scores=load_scores(parts["scores"]) if "scores" in parts else None,
        notes=None if index is None else read_notes(parts["index"]),
        digests={"notes": file_sha256(notes)} if notes is not None and notes.is_file() else {},
        dictionary=dictionary,
        circuit=circuit,
        subject=subject,
        prompts=None if circuit is None or subject is None else _prompts(circuit, subject),
        artifacts=made | {name: open_artifact(path, whole=False) for name, path in (others or {}).items()},
    )


def with_graphs(found: Findings, paths: Sequence[Path]) -> Findings:
    """The same with attribution graphs beside the circuit.

    Args:
        paths: files in circuit-tracer's JSON, as ``mechlab circuit graph`` writes them.

    Raises MechlabError for a file that holds no such graph, and for two of one prompt.
    """
    graphs = dict(found.graphs)
    for path in paths:
        graph = read_circuit_tracer_graph(path)
        prompt = str(json.loads(path.read_text(encoding="utf-8"))["metadata"].get("prompt") or path.stem)
        if prompt in graphs:
            raise MechlabError("two graphs of one prompt", prompt, "leave one out")
        graphs[prompt] = graph
    digests = {f"graph {number}": file_sha256(path) for number, path in enumerate(paths)}
    return replace(found, graphs=graphs, digests={**found.digests, **digests})


def _prompts(circuit: Circuit, subject: Subject) -> Task | None:
    """Prompts of the circuit's task, its held-out ones where they can be made again; None for other tasks."""
    with contextlib.suppress(MechlabError):
        return make_task(circuit.task, subject.tokenizer, n=_PROMPTS, seed=circuit.seed, split="test")
    return None
