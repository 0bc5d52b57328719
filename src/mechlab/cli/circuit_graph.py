"""``mechlab circuit graph``."""

from __future__ import annotations

from pathlib import Path

import tyro
from rich.table import Table

from mechlab.cli.outcome import Outcome
from mechlab.cli.outputs import require_file, write_file
from mechlab.cli.parse import parse
from mechlab.cli.score_table import drawn
from mechlab.errors import MechlabError
from mechlab.settings import Settings


class CircuitGraphConfig(Settings):
    """The attribution graph of a prompt: what features, errors and tokens add to later features and outputs.

    Transcoders stand in for the MLPs; attention patterns and norms are held as they are on the prompt.
    --out writes JSON that circuit-tracer and Neuronpedia's graph viewer read, or a page that shows the
    graph offline.

    Example: mechlab circuit graph "Mary gave the ball to" --transcoders runs/t0 runs/t1 --out graph.json
    """

    prompt: tyro.conf.Positional[str] = ""
    """The text; outputs are what the model expects after it."""
    transcoders: tuple[Path, ...] = ()
    """Directories of transcoders from blocks.L.mlp.hook_in to blocks.L.hook_mlp_out, or of one cross-layer
    transcoder."""
    model: str = "fable"
    """The model: "fable" (bundled), a directory in Hugging Face layout, or a hub name."""
    nodes: float = 0.8
    """Keep the nodes that make up this share of the influence on the outputs; 1 keeps all with any."""
    edges: float = 0.98
    """Keep the edges that make up this share of what is left; 1 keeps all."""
    features: int = 20
    """Features to list, the most influential first."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    dtype: str | None = None
    """Floating type of the model: float32, bfloat16 or float16."""
    revision: str | None = None
    """Revision of a hub model."""
    trust_remote_code: bool = False
    """Allow a hub model to run its own code."""
    out: Path | None = None
    """File to write: .json or .html by its ending."""


def graph(words: list[str], program: str) -> Outcome:
    """Make an attribution graph."""
    config = parse(CircuitGraphConfig, words, program)

    from mechlab.circuits.features.attribution_graph import attribution_graph
    from mechlab.circuits.features.circuit_tracer import write_circuit_tracer_graph
    from mechlab.circuits.features.influence import graph_scores, prune
    from mechlab.circuits.features.replacement import replacement_model
    from mechlab.dashboards.circuit_page import graph_page
    from mechlab.models.subject import load_model
    from mechlab.sae.dictionary import load_sae

    if not config.prompt:
        raise MechlabError("no prompt was given", remedy='as in circuit graph "Mary gave the ball to"')
    if not config.transcoders:
        raise MechlabError("no transcoder was named", remedy="pass --transcoders DIR …")
    for name in ("nodes", "edges"):
        if not 0.0 <= getattr(config, name) <= 1.0:
            raise MechlabError(f"share of {name} is out of range", getattr(config, name), "between 0 and 1")
    if config.out is not None:
        require_file(config.out, (".json", ".html"))
    subject = load_model(
        config.model, dtype=config.dtype, device=config.device, revision=config.revision,
        trust_remote_code=config.trust_remote_code,
    )  # fmt: skip
    replacement = replacement_model(
        subject, [load_sae(path) for path in config.transcoders], subject.tokens(config.prompt)
    )
    whole = attribution_graph(replacement)
    kept = prune(whole, config.nodes, config.edges)
    scores = graph_scores(whole)
    if config.out is not None and config.out.suffix == ".html":
        write_file(config.out, graph_page(kept, subject, config.prompt))
    elif config.out is not None:
        write_circuit_tracer_graph(kept, subject, config.out, node_threshold=config.nodes)
    found = [node for node in kept.nodes if node.kind == "feature"]
    strongest = sorted(found, key=lambda node: -(node.score or 0.0))[: max(config.features, 0)]
    outputs = {
        subject.token_text(int(node.index or 0)): node.score for node in kept.nodes if node.kind == "logit"
    }
    n_edges = int((kept.scores != 0).sum())
    payload = {
        "prompt": config.prompt,
        "nodes": len(kept.nodes),
        "nodes_in_all": len(whole.nodes),
        "edges": n_edges,
        "replacement": scores.replacement,
        "completeness": scores.completeness,
        "outputs": outputs,
        "features": [
            {"name": node.name, "activation": node.value, "influence": node.score} for node in strongest
        ],
        "out": None if config.out is None else str(config.out),
    }
    table = Table("feature", "at", "activation", "influence")
    for node in strongest:
        token = int(replacement.tokens[node.position or 0])
        at = f"{node.position} {subject.token_text(token)!r}"
        table.add_row(node.name.partition("@")[0], at, f"{node.value:.3f}", f"{node.score:.3f}")
    lines = [
        f"{len(kept.nodes):,} of {len(whole.nodes):,} nodes, {n_edges:,} edges; of the whole graph: "
        f"replacement {scores.replacement:.3f}, completeness {scores.completeness:.3f}",
        "outputs: " + ", ".join(f"{text!r} {weight:.3f}" for text, weight in outputs.items()),
        drawn(table) if strongest else "no feature is among the nodes: errors carry the influence",
        *([] if config.out is None else [str(config.out)]),
    ]
    return Outcome(payload, "\n".join(lines))
