"""``mechlab circuit patch``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from mechlab.cli.outcome import Outcome
from mechlab.cli.outputs import require_file, write_file
from mechlab.cli.parse import parse
from mechlab.cli.progress import Reporter
from mechlab.cli.score_table import drawn
from mechlab.settings import Settings

if TYPE_CHECKING:
    from mechlab.circuits.sweeps import Sweep

_ROWS, _COLUMNS = 24, 12


class CircuitPatchConfig(Settings):
    """Sweep activation patching over layers, heads, MLPs or query/key/value inputs.

    Figures are shares of the gap between the clean and the corrupt run.

    Example: mechlab circuit patch --task ioi --sweep heads --by name --out ioi-heads.html
    """

    model: str = "fable"
    """The model: "fable" (bundled), a directory in Hugging Face layout, or a hub name."""
    task: str = "ioi"
    """Task whose prompts to patch (ioi, greater_than, induction, …)."""
    sweep: str = "heads"
    """What to patch: layers, attention, heads, mlps or qkv."""
    by: str = "all"
    """Where: all positions at once, every position, or the positions the task has a name for."""
    direction: str = "noising"
    """noising (corrupt into clean) or denoising (clean into corrupt)."""
    metric: str | None = None
    """How the task is read; by the task by default."""
    prompts: int = 64
    """Prompt pairs."""
    split: str = "test"
    """Prompts to use: test, validation or train."""
    seed: int = 0
    """Decides the prompts."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    dtype: str | None = None
    """Floating type of the model: float32, bfloat16 or float16."""
    revision: str | None = None
    """Revision of a hub model."""
    trust_remote_code: bool = False
    """Allow a hub model to run its own code."""
    out: Path | None = None
    """Heat map to write: .html (interactive, works offline), .svg, .png, .pdf or .json (plotly's)."""


def patch(words: list[str], program: str) -> Outcome:
    """Sweep patching."""
    config = parse(CircuitPatchConfig, words, program)

    from mechlab.circuits.sweeps import patch
    from mechlab.cli.prompts import prompts_for
    from mechlab.models.subject import load_model

    if config.out is not None:
        require_file(config.out, (".svg", ".html", ".json", ".png", ".pdf"))
    subject = load_model(
        config.model, dtype=config.dtype, device=config.device, revision=config.revision,
        trust_remote_code=config.trust_remote_code,
    )  # fmt: skip
    task = prompts_for(subject, config.task, n=config.prompts, seed=config.seed, split=config.split)
    with Reporter() as reporter:
        found = patch(
            subject,
            task,
            config.sweep,
            by=config.by,
            direction=config.direction,
            metric=config.metric,
            progress=lambda done, total: reporter("patch", done, total, {}),
        )
    payload = {"task": task.name, "out": None if config.out is None else str(config.out), **found.to_dict()}
    text = _text(found, task.name)
    if config.out is not None:
        _draw(found, task.name, config.out)
        text += f"\n{config.out}"
    return Outcome(payload, text)


def _draw(found: Sweep, task: str, out: Path) -> None:
    if out.suffix in (".html", ".json"):
        figure = found.figure()
        html = out.suffix == ".html"
        write_file(out, figure.to_html(include_plotlyjs=True) if html else figure.to_json())
        return
    from mechlab.dashboards.figures import save_figure
    from mechlab.dashboards.heat_map import heat_map_svg

    save_figure(heat_map_svg(found, task), out)


def _text(found: Sweep, task: str) -> str:
    """A table of shares, the rows with the largest effects; strong cells in words, not colours."""
    shares = found.recovered
    strongest = shares.abs().amax(1).argsort(descending=True)[:_ROWS].sort().values.tolist()
    columns = shares[strongest].abs().amax(0).argsort(descending=True)[:_COLUMNS].sort().values.tolist()
    table = Table()
    table.add_column("")
    for column in columns:
        table.add_column(found.columns[column], justify="right")
    for row in strongest:
        table.add_row(found.rows[row], *(_cell(float(shares[row, column])) for column in columns))
    left = (len(found.rows) - len(strongest), len(found.columns) - len(columns))
    head = (
        f"{found.direction} {found.what} on {task}, {len(found.clean)} prompts: share of the gap in "
        f"{found.metric} (clean {float(found.clean.mean()):.3f}, corrupt {float(found.corrupt.mean()):.3f})"
    )
    rest = f"\n{left[0]} weaker rows and {left[1]} weaker columns are not shown" if any(left) else ""
    return f"{head}\n{drawn(table)}{rest}"


def _cell(share: float) -> str:
    """A share in two decimals; a dot where it rounds to nothing."""
    return "·" if abs(share) < 0.005 else f"{share:.2f}"
