"""A sweep of patching as an SVG heat map, with no script and nothing from the network."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mechlab.circuits.sweeps import Sweep
from mechlab.dashboards.templates import environment

_CELL, _ROW, _LEFT, _TOP = 46, 20, 110, 70
_RED, _BLUE = (178, 24, 43), (33, 102, 172)


@dataclass(frozen=True)
class _Cell:
    """One cell: corner, colour, whether its text is white, and its share of the gap."""

    x: int
    y: int
    colour: str
    dark: bool
    name: str
    share: float


def heat_map_svg(sweep: Sweep, task: str) -> str:
    """Shares of the gap: red supports the metric, blue works against it, white is nothing."""
    shares = sweep.recovered.double()
    high = float(shares.abs().max()) or 1.0
    cells = []
    for i, row in enumerate(sweep.rows):
        for j, column in enumerate(sweep.columns):
            strength, share = float(shares[i, j]) / high, float(shares[i, j])
            ink = torch.tensor(_RED if strength > 0 else _BLUE)
            red, green, blue = (255 + abs(strength) * (ink - 255)).round().int().tolist()
            colour = f"#{red:02x}{green:02x}{blue:02x}"
            x, y = _LEFT + _CELL * j, _TOP + _ROW * i
            cells.append(_Cell(x, y, colour, abs(strength) > 0.6, f"{row} at {column}", share))
    return (
        environment()
        .get_template("heat_map_svg.html")
        .render(
            sweep=sweep, task=task, cells=cells, cell=_CELL, row=_ROW, left=_LEFT, top=_TOP,
            width=max(_LEFT + _CELL * len(sweep.columns) + 60, 460), height=_TOP + _ROW * len(sweep.rows) + 8,
        )
    )  # fmt: skip
