"""``mechlab dashboard build | compare``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from mechlab.cli.features_inputs import require_same_features, subject_name
from mechlab.cli.outcome import Outcome
from mechlab.cli.outputs import require_directory
from mechlab.cli.parse import parse
from mechlab.cli.progress import Reporter
from mechlab.errors import MechlabError
from mechlab.settings import Settings

if TYPE_CHECKING:
    from mechlab.dashboards.build import Findings
    from mechlab.dashboards.site import Site, Written


class BuildConfig(Settings):
    """Write an offline page of a run, or of single artifacts: features, circuit, texts, how it was made.

    Give the directory of a run, or artifacts by their flags. The page is one file as long as it stays
    below the limit, else an index.html and files beside it that it loads when they are wanted.

    Example: mechlab dashboard build runs/demo --out runs/site
    """

    run: tyro.conf.Positional[Path | None] = None
    """Directory of a run."""
    index: Path | None = None
    """Directory of a feature index."""
    held: Path | None = None
    """The index of the text that explanations were scored on, where it is another one."""
    explanations: Path | None = None
    """Directory of explanations of its features."""
    scores: Path | None = None
    """Directory of their scores."""
    dictionary: Path | None = None
    """Directory of the dictionary that was indexed."""
    circuit: Path | None = None
    """Directory of a circuit."""
    graph: tuple[Path, ...] = ()
    """Attribution graphs that mechlab circuit graph or circuit-tracer wrote, shown with the circuit."""
    subject: str | None = None
    """The model of single artifacts; by default that of the index."""
    without_model: bool = False
    """Load no model: no effects on logits, steering samples, next tokens or attention patterns."""
    trust_remote_code: bool = False
    """Let the model's own code run, whatever the run says."""
    steer: int | None = None
    """Features that get steering samples, the most active ones; 64 by default."""
    documents: int | None = None
    """Documents that can be read token by token; 40 by default."""
    limit: float = 30.0
    """MB up to which the page is one file."""
    out: Path = Path("runs/site")
    """Directory to make."""
    overwrite: bool = False
    """Replace what is at --out."""


class CompareConfig(Settings):
    """Write an offline page that compares two runs, two dictionaries or two circuits.

    Features are matched by their decoder directions, beside random ones; edges are shared or only in one.
    Where runs have a page of their own, their features are linked.

    Example: mechlab dashboard compare runs/one runs/other --out runs/compared
    """

    left: tyro.conf.Positional[Path | None] = None
    """Directory of a run, a dictionary or a circuit."""
    right: tyro.conf.Positional[Path | None] = None
    """Directory of what to compare it with."""
    seed: int = 0
    """Of the random dictionaries and circuits beside them."""
    out: Path = Path("runs/compared")
    """Directory to make."""
    overwrite: bool = False
    """Replace what is at --out."""


def build(words: list[str], program: str) -> Outcome:
    """Write one site."""
    config = parse(BuildConfig, words, program)
    parts = {name: path for name in _PARTS if (path := getattr(config, name)) is not None}
    _check(config, parts)
    require_directory(config.out)

    from mechlab.dashboards.build import STEER, read_run, site_of, with_graphs
    from mechlab.dashboards.site import write_site
    from mechlab.dashboards.token_blocks import DOCUMENTS

    started = time.perf_counter()
    with Reporter() as report:
        report("read", 0, 0, {})
        found = (
            _parts(config, parts)
            if config.run is None
            else read_run(
                config.run, model=not config.without_model, trust_remote_code=config.trust_remote_code
            )
        )
        site = site_of(
            with_graphs(found, config.graph),
            steer=STEER if config.steer is None else config.steer,
            documents=DOCUMENTS if config.documents is None else config.documents,
            progress=lambda step, done, total: report(step, done, total, {}),
        )
        written = write_site(site, config.out, limit=round(1e6 * config.limit), overwrite=config.overwrite)
    return _outcome(site, written, started)


def compare(words: list[str], program: str) -> Outcome:
    """Write one site of two things."""
    config = parse(CompareConfig, words, program)
    if config.left is None or config.right is None:
        raise MechlabError("two things are compared", config.left, "name two runs, dictionaries or circuits")
    require_directory(config.out)

    from mechlab.dashboards.comparison import site_of_comparison
    from mechlab.dashboards.site import write_site

    started = time.perf_counter()
    with Reporter() as report:
        report("compare", 0, 0, {})
        site = site_of_comparison(config.left, config.right, config.out, seed=config.seed)
        written = write_site(site, config.out, overwrite=config.overwrite)
    return _outcome(site, written, started)


def _outcome(site: Site, written: Written, started: float) -> Outcome:
    payload = {
        "path": str(written.path),
        "bytes": written.bytes,
        "files": written.n_files,
        "single": written.single,
        "views": list(site.views),
        "features": site.facts.get("features", 0),
        "seconds": round(time.perf_counter() - started, 3),
    }
    files = "one file" if written.single else f"{written.n_files:,} files"
    return Outcome(
        payload, f"{written.path}: {', '.join(site.views)}; {written.bytes / 1e6:.1f} MB in {files}"
    )


_PARTS = ("index", "held", "explanations", "scores", "dictionary", "circuit")


def _check(config: BuildConfig, parts: dict[str, Path]) -> None:
    if config.run is not None and parts:
        raise MechlabError("a run and a single artifact", f"--{next(iter(parts))}", "give one or the other")
    if config.run is not None and config.subject is not None:
        raise MechlabError("the model of a run is its own", config.subject, "leave --subject out")
    if config.run is None and not config.graph and not ({"index", "circuit"} & parts.keys()):
        raise MechlabError("nothing to show", remedy="name a run, or pass --index, --circuit or --graph")
    for name in ("held", "explanations", "scores", "dictionary"):
        if name in parts and "index" not in parts:
            raise MechlabError(f"--{name} needs the index too", parts[name], "pass --index")
    if "scores" in parts and "explanations" not in parts:
        raise MechlabError("scores of which explanations", parts["scores"], "pass --explanations too")
    if config.subject is not None and config.without_model:
        raise MechlabError("--subject and --without-model", config.subject, "give one of them")
    for name in ("steer", "documents"):
        value = getattr(config, name)
        if value is not None and value < (name == "documents"):
            raise MechlabError(f"{name} is out of range", value, "see --help")
    if not 0 <= config.limit < 1e6:
        raise MechlabError("limit is out of range", config.limit, "MB, from 0 on")


def _parts(config: BuildConfig, parts: dict[str, Path]) -> Findings:
    from mechlab.artifacts import open_artifact
    from mechlab.dashboards.build import read_parts
    from mechlab.features.building import load_index
    from mechlab.models.subject import load_model

    facts: dict[str, Any] = {}
    name = config.subject
    if "index" in parts:
        index = load_index(parts["index"])
        about = index.about
        facts["site"] = about.get("site") or ", ".join(about.get("inputs") or about.get("names") or ())
        facts["model"] = name or (about.get("text") or {}).get("model_name") or ""
        if "dictionary" in parts and not config.without_model:
            name = subject_name(name or "", index)
        if "explanations" in parts:
            require_same_features(open_artifact(parts["explanations"]), parts["index"], index)
    subject = None if name is None or config.without_model else load_model(name)
    named = [facts.get("model") or name, facts.get("site")]
    title = " at ".join(str(each) for each in named if each) or str([*parts.values(), *config.graph][0])
    return read_parts(parts, title=title, facts=facts, subject=subject)
