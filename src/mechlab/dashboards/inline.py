"""What notebooks show inline: features, contexts, scores, circuits, runs, figures.

Static HTML with styles of its own class only, no script, and colours that lie over those of the page,
so that it reads on a light and on a dark one; what a front end strips (styles, on forges) costs no
content. Beside it stands the same as plain text, active tokens between << and >>.
"""

from __future__ import annotations

import base64
import contextlib
import json
import math
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mechlab.artifacts import exists
from mechlab.circuits.circuit import Circuit, node_classes
from mechlab.dashboards.build import RUN, read_run
from mechlab.dashboards.circuit_svg import circuit_svg
from mechlab.dashboards.figures import save_figure
from mechlab.dashboards.run_block import run_block
from mechlab.dashboards.site import INDEX
from mechlab.dashboards.templates import environment
from mechlab.errors import MechlabError
from mechlab.features.contexts import Context, Shown, shown, top_contexts
from mechlab.features.explanations import Explanation, Explanations
from mechlab.features.index import FeatureIndex
from mechlab.features.scoring.scorecard import Scorecard
from mechlab.sae.evaluate import Evaluation
from mechlab.scores import Score

COUNT, RADIUS = 5, 12
_COLUMNS = ("value", "95 % interval", "control", "units")
# Dots of a picture per pixel of its figure.
_DOTS = 1.5
# Characters shown of an explanation.
_LONGEST = 320
# Strongest edges in the text of a circuit.
_EDGES = 10
# Characters that are invisible or reorder their neighbours, line breaks and tabs left out.
_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\xa0\xad\u061c\u200b\u200e\u200f\u2028-\u202f\u2060-\u206f\ufeff\ud800-\udfff]"
)

Row = tuple[str, ...]


@dataclass(frozen=True)
class Inline:
    """Something to be shown, in every form that a notebook may ask for.

    Attributes:
        forms: MIME type → content; "text/plain" is always among them.
    """

    forms: Mapping[str, Any] = field(repr=False)

    def __repr__(self) -> str:
        return str(self.forms["text/plain"])

    def _repr_html_(self) -> str | None:
        # Nothing for a drawing: as HTML, forges would take it apart.
        html: str | None = self.forms.get("text/html")
        return html

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        return dict(self.forms)


def show(what: Any) -> Inline:
    """Show a circuit, scores, a run or a figure in a notebook.

    Args:
        what: a ``Circuit``; a ``Scorecard``, an ``Evaluation``, a ``Score`` or a mapping from names to
            scores and numbers; a finished run, or its directory; a plotly figure, or anything that has
            one (``.figure()``: a sweep, investigation curves).

    Raises MechlabError for anything else, and for a directory without a finished run.
    """
    if isinstance(what, Circuit):
        return _circuit(what)
    if isinstance(what, Scorecard):
        return _card(what)
    if isinstance(what, Evaluation):
        return _evaluation(what)
    if isinstance(what, Score):
        return _table("", [_row(what.name, what)])
    if isinstance(what, Mapping):
        return _table("", [_row(str(name), value) for name, value in what.items()])
    if isinstance(what, str | Path):
        return _run(Path(what))
    if isinstance(getattr(what, "path", None), Path):
        return _run(what.path)
    figure = what.figure() if callable(getattr(what, "figure", None)) else what
    if callable(getattr(figure, "to_plotly_json", None)):
        return _drawn(figure)
    raise MechlabError(
        "cannot be shown", type(what).__name__, "give a circuit, scores, a run or a figure; "
        "features have show_feature and show_contexts",
    )  # fmt: skip


def show_feature(
    index: FeatureIndex,
    feature: int,
    explanations: Explanations | Iterable[Explanation] | None = None,
    scores: Scorecard | None = None,
    *,
    count: int = COUNT,
    radius: int = RADIUS,
) -> Inline:
    """A feature with what is said of it, its scores and its strongest contexts.

    Args:
        explanations: those of other features are passed over, as are their scores.
        count: contexts, one of a passage; radius: tokens on either side of the strongest.

    Raises MechlabError for a feature that does not exist.
    """
    contexts = top_contexts(index, feature, count, radius) if count else []
    items = explanations.items if isinstance(explanations, Explanations) else tuple(explanations or ())
    said = [each for each in items if each.feature == feature]
    scored = [each for each in scores or () if each.feature == feature]
    several = len({each.explainer for each in scored if each.explainer}) > 1
    rows = [
        _row(f"{each.scorer} ({each.explainer})" if several and each.explainer else each.scorer, each.score)
        for each in scored
    ]
    active = int(index.active[feature])
    facts = f"active on {index.density[feature]:.3%} of {len(index.text):,} tokens, " if active else "dead"
    if active:
        facts += f"up to {index.maximum[feature]:.3g}, {index.mean[feature]:.3g} on average"
    notes = [
        f"no {each.scorer or 'score'} of {each.explainer or 'it'}: {each.reason}"
        for each in (() if scores is None else scores.unscored)
        if each.feature == feature
    ]
    return _parts(
        f"feature {feature}", facts, said=said, rows=rows, notes=notes,
        contexts=[shown(index, feature, each) for each in contexts],
    )  # fmt: skip


def show_contexts(
    index: FeatureIndex, feature: int, contexts: Sequence[Context], *, title: str = ""
) -> Inline:
    """Contexts with a feature's activations.

    Args:
        contexts: as the samplers of ``mechlab.features.contexts`` give them.

    Raises MechlabError for a feature that does not exist.
    """
    pieces = [shown(index, feature, each) for each in contexts]
    return _parts(title or f"feature {feature}", f"{len(pieces)} contexts", contexts=pieces)


def _drawn(figure: Any) -> Inline:
    title = figure.layout.title.text or "figure"
    names = [trace.name for trace in figure.data if trace.name]
    forms = {
        "text/plain": spelled(": ".join(filter(None, (title, ", ".join(names))))),
        "application/vnd.plotly.v1+json": json.loads(figure.to_json()),
    }
    # Pages that render no plotly figure (forges, documentation) take the picture, where a browser can draw.
    with contextlib.suppress(MechlabError), tempfile.TemporaryDirectory() as folder:
        picture = save_figure(figure, Path(folder) / "figure.png", scale=_DOTS)
        forms["image/png"] = base64.b64encode(picture.read_bytes()).decode()
    return Inline(forms)


def _circuit(circuit: Circuit) -> Inline:
    classes = node_classes(circuit)
    title = (
        f"{circuit.task} by {circuit.method}: {circuit.n_edges} of {circuit.graph.n_edges} edges, "
        f"faithfulness {circuit.faithfulness} under {circuit.ablation.kind} ablation"
    )
    strongest = sorted(circuit.edges, key=lambda edge: -abs(edge.score or 0.0))
    lines = [
        f"  {_named(e.source, classes)} → {_named(e.reader, classes)}  {e.score or 0.0:+.3g}"
        for e in strongest
    ]
    more = [f"  … and {len(lines) - _EDGES} weaker ones"] if len(lines) > _EDGES else []
    text = "\n".join([title, *lines[:_EDGES], *more])
    return Inline({"text/plain": spelled(text), "image/svg+xml": circuit_svg(circuit, classes)})


def _named(node: str, classes: Mapping[str, str]) -> str:
    known = classes.get(node)
    return f"{node} ({known})" if known else node


def _card(card: Scorecard) -> Inline:
    totals = card.totals()
    several = len({each.explainer for each in totals if each.explainer}) > 1
    rows = [
        _row(f"{each.scorer} ({each.explainer})" if several and each.explainer else each.scorer, each.mean)
        for each in totals
    ]
    features = len({each.feature for each in card})
    notes = [f"{len(card.unscored)} scores could not be had"] if card.unscored else []
    return _parts("means over features", f"{features} features scored", rows=rows, notes=notes)


def _evaluation(found: Evaluation) -> Inline:
    rows: dict[str, Score | float] = {
        "L0": found.l0,
        "fraction of variance explained": found.fve,
        "CE loss recovered, against the mean": found.ce_recovered,
        "CE loss recovered, against zero": found.ce_recovered_zero,
        "KL recovered, against the mean": found.kl_recovered,
        "dead latents": found.dead,
        "dense latents": found.dense,
    }
    facts = f"{found.tokens:,} held-out tokens of {found.documents:,} documents"
    return _parts("dictionary in its model", facts, rows=[_row(name, value) for name, value in rows.items()])


def _run(path: Path) -> Inline:
    if not exists(path):
        raise MechlabError("no finished run", path, "give the directory of a run")
    found = read_run(path, model=False)
    block = run_block(evaluation=found.evaluation, circuit=found.circuit, scores=found.scores)
    rows = [
        _row(f"{each['name']}, {each['note']}" if "note" in each else each["name"], Score.from_dict(each))
        for each in block["results"]
    ]
    seconds = sum(found.timings.values())
    page = path / "dashboard" / INDEX
    notes = [f"page: {page}"] if page.is_file() else []
    return _parts(found.title, f"{RUN}, {seconds:.0f} s", rows=rows, notes=notes)


def _row(name: str, value: Any) -> Row:
    if isinstance(value, Score):
        known = math.isfinite(value.low) and math.isfinite(value.high)
        interval = f"{_figure(value.low)} – {_figure(value.high)}" if known else ""
        control = "" if value.null is None else _figure(value.null.value)
        return name, _figure(value.value), interval, control, f"{value.n:,}"
    return name, _figure(value), "", "", ""


def _figure(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(environment().filters["shown"](value))


def _table(title: str, rows: list[Row]) -> Inline:
    return _parts(title, rows=rows)


def _parts(
    title: str,
    facts: str = "",
    *,
    said: Sequence[Explanation] = (),
    rows: Sequence[Row] = (),
    contexts: Sequence[Sequence[Shown]] = (),
    notes: Sequence[str] = (),
) -> Inline:
    """The parts that are there, as HTML and as text."""
    largest = max((piece.activation for pieces in contexts for piece in pieces), default=0.0) or 1.0
    html = environment().get_template("inline.html").render(
        title=title, facts=facts, said=said, rows=rows, columns=_COLUMNS, contexts=contexts,
        largest=largest, notes=notes, spelled=spelled, marked=marked, short=short,
    )  # fmt: skip
    lines = [f"{title} ({facts})" if facts else title] if title else []
    lines += [f"{each.explainer}: {short(each.text)}" for each in said]
    lines += _aligned([("", *_COLUMNS), *rows]) if rows else []
    lines += [f"{place}. {_plain(pieces)}" for place, pieces in enumerate(contexts, 1)]
    text = "\n".join(spelled(line) for line in [*lines, *notes])
    return Inline({"text/plain": text, "text/html": html})


def _plain(pieces: Sequence[Shown]) -> str:
    """A context with << and >> around what is active."""
    return "".join(f"<<{piece.text}>>" if piece.activation > 0 else piece.text for piece in pieces).replace(
        "\n", "↵"
    )


def _aligned(rows: Sequence[Row]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def short(text: str) -> str:
    """The beginning of an explanation that would fill the page: rules can be very long."""
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "…"


def spelled(text: str) -> str:
    """A string whose invisible characters are written out; white space stays as it is."""
    return _HIDDEN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def marked(text: str) -> str:
    """The same of an active token: it is the white space that a feature may fire on."""
    return spelled(text).replace(" ", "·").replace("\n", "↵\n").replace("\t", "⇥\t") or "∅"
