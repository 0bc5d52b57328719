"""``mechlab COMMAND …``: finds the command, runs it, turns mistakes into one line and exit 2."""

from __future__ import annotations

import json
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from mechlab.cli.outcome import Outcome
from mechlab.errors import MechlabError, near

Command = Callable[[list[str], str], Outcome]

# Program words → (module, function, one-line help). Modules load when their command runs.
COMMANDS: dict[str, tuple[str, str, str]] = {
    "run": ("mechlab.cli.run", "run", "the whole job: harvest, train, evaluate, find, explain, score, show"),
    "activations harvest": (
        "mechlab.cli.activations",
        "harvest",
        "store a model's activations over a corpus",
    ),
    "activations verify": (
        "mechlab.cli.activations",
        "verify",
        "check a store; --repair makes lost shards again",
    ),
    "sae train": ("mechlab.cli.sae", "train", "train dictionaries (sparse autoencoders, transcoders, …)"),
    "sae eval": ("mechlab.cli.sae_eval", "evaluate", "evaluate a dictionary on documents it never saw"),
    "sae compare": ("mechlab.cli.sae_eval", "compare", "how far two dictionaries agree"),
    "sae convert": (
        "mechlab.cli.sae_convert",
        "convert",
        "read other tools' dictionaries, or export for SAELens",
    ),
    "circuit find": (
        "mechlab.cli.circuit",
        "find",
        "the edges that carry a task, judged on held-out prompts",
    ),
    "circuit eval": (
        "mechlab.cli.circuit_eval",
        "evaluate",
        "faithful, complete, minimal? beside random circuits",
    ),
    "circuit graph": (
        "mechlab.cli.circuit_graph",
        "graph",
        "the attribution graph of a prompt, for circuit-tracer's and Neuronpedia's viewers",
    ),
    "circuit show": ("mechlab.cli.circuit", "show", "a circuit as text, SVG, HTML, PNG, PDF or JSON"),
    "circuit compare": ("mechlab.cli.circuit_eval", "compare", "what two circuits share"),
    "circuit patch": (
        "mechlab.cli.circuit_patch",
        "patch",
        "sweep activation patching over layers, heads, inputs",
    ),
    "features index": (
        "mechlab.cli.features_index",
        "index",
        "for every feature, where it is active, with statistics and neighbours",
    ),
    "features explain": (
        "mechlab.cli.features_explain",
        "explain",
        "explain features by rules or with a language model",
    ),
    "features score": (
        "mechlab.cli.features_score",
        "score",
        "test explanations on documents that nobody explained",
    ),
    "features investigate": (
        "mechlab.cli.features_investigate",
        "investigate",
        "explain a feature by asking it questions, with a quiz after every turn",
    ),
    "features export": (
        "mechlab.cli.features_export",
        "export",
        "features, explanations and notes in other tools' formats",
    ),
    "features note": ("mechlab.cli.features_note", "note", "notes and labels of your own on a feature"),
    "model list": ("mechlab.cli.model", "list_models", "models that can be named right away"),
    "model info": ("mechlab.cli.model", "info", "sites, sizes and fingerprint of a model"),
    "model train-fable": ("mechlab.cli.model", "train", "train the bundled model from scratch"),
    "model check-fable": ("mechlab.cli.model", "check", "measure every behaviour of the bundled model"),
    "dashboard build": (
        "mechlab.cli.dashboard",
        "build",
        "an offline page of a run: features, circuit, texts, how it was made",
    ),
    "dashboard compare": (
        "mechlab.cli.dashboard",
        "compare",
        "an offline page of two runs, dictionaries or circuits side by side",
    ),
    "dashboard serve": (
        "mechlab.cli.dashboard_serve",
        "serve",
        "a run's dashboard with the model loaded: type a text, change features",
    ),
    "bench harvest": (
        "mechlab.cli.bench",
        "harvest",
        "what harvesting costs beside the bare forward and SAELens",
    ),
    "bench sae": (
        "mechlab.cli.bench_sae",
        "sae",
        "what a training step costs beside its floor and other tools",
    ),
    "bench circuits": (
        "mechlab.cli.bench_circuits",
        "circuits",
        "what attribution and edge tests cost beside a plain forward and auto-circuit",
    ),
    "bench features": (
        "mechlab.cli.bench_features",
        "features",
        "what indexing, contexts, rules and their scores cost beside delphi and SAEDashboard",
    ),
    "bench dashboard": (
        "mechlab.cli.bench_dashboard",
        "dashboard",
        "how fast a dashboard is built, shown and filtered, beside SAEDashboard",
    ),
    "bench truth": (
        "mechlab.cli.bench_sae",
        "truth",
        "every architecture against planted features and known concepts",
    ),
    "bench setup-peers": ("mechlab.cli.peers", "setup", "make the environments of the tools compared with"),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point. Exits 0 when done, 1 when a check fails, 2 for bad input, 130 when interrupted."""
    words = list(sys.argv[1:] if argv is None else argv)
    warnings.showwarning = _warn
    if os.environ.get("RANK", "0") != "0":  # of several processes, the first speaks for all
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (until the process ends)
    try:
        sys.exit(_run(words))
    except MechlabError as error:
        print(f"mechlab: {error}", file=sys.stderr)
        sys.exit(2)
    except (KeyboardInterrupt, SystemError) as error:
        # An interrupt that falls into a call of compiled code comes out as a SystemError.
        if isinstance(error, SystemError) and "with an exception set" not in str(error):
            raise
        print(f"\nmechlab: interrupted; to go on: mechlab {shlex.join(words)}", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # Whoever read our output stopped reading; that is not an error of ours.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(_help(COMMANDS))
        return 0
    if words[0] == "--version":
        from importlib.metadata import version

        print(f"mechlab {version('mechlab')}")
        return 0
    name = next((n for n in (" ".join(words[:2]), words[0]) if n in COMMANDS), None)
    if name is None:
        group = {n: c for n, c in COMMANDS.items() if n.split()[0] == words[0]}
        if group and (len(words) == 1 or words[1] in ("-h", "--help")):
            print(_help(group))
            return 0
        given = " ".join(words[:2]) if group else words[0]
        raise MechlabError("unknown command", given, near(given, group or COMMANDS))
    module, function, _ = COMMANDS[name]
    command: Command = getattr(__import__(module, fromlist=[function]), function)
    rest = words[len(name.split()) :]
    as_json = "--json" in rest
    outcome = command([word for word in rest if word != "--json"], f"mechlab {name}")
    print(json.dumps(outcome.payload) if as_json else outcome.text)
    return outcome.exit


def _warn(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"mechlab: warning: {message}", file=sys.stderr)


def _help(commands: dict[str, tuple[str, str, str]]) -> str:
    lines = [f"  mechlab {name:<20} {about}" for name, (_, _, about) in commands.items()]
    return "\n".join(
        [
            "mechlab: a mechanistic-interpretability workbench",
            "",
            *lines,
            "",
            "Every command takes --help and --json (one JSON object on the last line of stdout).",
        ]
    )
