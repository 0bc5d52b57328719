"""The site that compares two runs, two dictionaries or two circuits."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mechlab.artifacts import exists, open_artifact
from mechlab.dashboards.build import RUN, Findings, read_parts, read_run
from mechlab.dashboards.compare_block import Side, compare_block
from mechlab.dashboards.site import INDEX, Site
from mechlab.errors import MechlabError


def site_of_comparison(left: Path, right: Path, out: Path, *, seed: int = 0) -> Site:
    """What both have is compared: dictionaries, circuits, or both.

    Args:
        left, right: directories of finished runs, of dictionaries or of circuits.
        out: where the site will be; the features of runs that have a page are linked from there.
        seed: of the random dictionaries and circuits that are the controls.

    Raises MechlabError for artifacts of another kind, and for two that have nothing in common.
    """
    paths = (left, right)
    names = _names(left, right)
    found = [_read(path) for path in paths]
    sides = [
        Side(
            name=name,
            dictionary=each.dictionary,
            circuit=each.circuit,
            index=each.index,
            explanations=each.explanations,
            scores=each.scores,
            evaluation=each.evaluation,
            page=_page(path, out),
        )
        for name, path, each in zip(names, paths, found, strict=True)
    ]

    def blocks() -> Iterator[tuple[str, Any]]:
        yield "compare", compare_block(*sides, seed=seed)

    inputs = {
        f"{which} {name}": artifact.manifest.fingerprint
        for which, each in zip(("left", "right"), found, strict=True)
        for name, artifact in each.artifacts.items()
    }
    settings = {"seed": seed, "names": names, "pages": [side.page for side in sides]}
    return Site(f"{names[0]} and {names[1]}", ("compare",), {}, blocks, inputs, settings)


def _read(path: Path) -> Findings:
    kind = open_artifact(path, whole=False).manifest.kind
    if kind == RUN:
        return read_run(path, model=False)
    if kind not in ("dictionary", "circuit"):
        raise MechlabError(f"{path} cannot be compared", kind, "name runs, dictionaries or circuits")
    return read_parts({kind: path}, title=str(path))


def _names(left: Path, right: Path) -> list[str]:
    """The last parts of two paths, as many as tell them apart."""
    parts = [path.resolve().parts for path in (left, right)]
    for count in range(1, max(map(len, parts))):
        names = ["/".join(each[-count:]) for each in parts]
        if names[0] != names[1]:
            return names
    raise MechlabError("nothing to compare", left, "name two different ones")


def _page(path: Path, out: Path) -> str | None:
    """Address of a run's own page as seen from the site, where there is one that can be linked."""
    page = path / "dashboard"
    if not exists(page):
        return None
    address = Path(os.path.relpath(page / INDEX, out)).as_posix()
    return None if ":" in address else address
