"""Every notebook runs from top to bottom, offline and soon, and is committed with the outputs of one run.

Cells tagged ``network`` need the hub: they are left out here and committed without output.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
NETWORK = "network"
# Seconds of processor time: two minutes on the two cores that the notebooks are meant for.
SECONDS = 240
_CLOCK = "import time; print(time.process_time())"
# Directories of a machine, and names of its users and kernels.
_MACHINE = re.compile(
    r"(?<![\w.<])/(home|work|tmp|usr|root|var|private|Users)\b/?[\w.-]*|site-packages|ipykernel"
)


def code(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def offline(cell: Any) -> bool:
    return NETWORK not in cell.metadata.get("tags", [])


def text_of(output: Any) -> str:
    """All that can be read in an output; pictures are left out."""
    if output.output_type == "stream":
        return str(output.text)
    return "\n".join(str(value) for form, value in output.data.items() if form != "image/png")


def kinds(cell: Any) -> set[str]:
    """What a cell gives; what libraries complain of on stderr is left out."""
    return {output.output_type for output in cell.outputs if output.get("name") != "stderr"}


def test_there_are_seven_in_order() -> None:
    assert [path.stem[:2] for path in NOTEBOOKS] == [f"{number}_" for number in range(1, 8)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_with_the_outputs_of_one_run_in_order(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in code(notebook) if offline(cell)]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not [
        cell for cell in code(notebook) if not offline(cell) and (cell.outputs or cell.execution_count)
    ]
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [each for each in outputs if each.output_type == "error" or each.get("name") == "stderr"]
    # What a cell ends with is shown, and so stands in the file.
    assert not [
        cell.source
        for cell in cells
        if re.search(r"^(ml\.show|print)", cell.source, re.M) and not cell.outputs
    ]
    for output in outputs:
        assert not _MACHINE.search(text_of(output))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_figures_have_a_picture_beside_them(path: Path) -> None:
    """Forges and the documentation draw no plotly figures."""
    outputs = [output for cell in code(nbformat.read(path, as_version=4)) for output in cell.outputs]
    drawn = [output.data for output in outputs if "application/vnd.plotly.v1+json" in output.get("data", {})]
    assert drawn
    assert all("image/png" in data for data in drawn)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_question_evidence_conclusion(path: Path) -> None:
    said = "\n".join(
        cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown"
    )
    for part in ("**Question.**", "**Evidence", "## Conclusion"):
        assert part in said


@pytest.mark.notebooks
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_from_top_to_bottom(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    notebook = nbformat.read(path, as_version=4)
    for cell in code(notebook):
        cell.outputs = []
    notebook.cells.append(nbformat.v4.new_code_cell(_CLOCK))
    NotebookClient(
        notebook,
        timeout=900,
        kernel_name="python3",
        skip_cells_with_tag=NETWORK,
        resources={"metadata": {"path": str(tmp_path)}},
    ).execute()
    (clock,) = notebook.cells.pop().outputs
    assert float(clock.text) < SECONDS
    committed = code(nbformat.read(path, as_version=4))
    for now, before in zip(code(notebook), committed, strict=True):
        assert kinds(now) == kinds(before)
