"""Charts as files for papers: SVG, PNG and PDF of plotly figures and of the drawings of this package.

A browser that is installed draws them, without a window and without the network: plotly's own script
makes the SVG, and the browser turns an SVG into dots or into a PDF with text and lines kept as such.
"""

from __future__ import annotations

import base64
import html
import json
import os
import re
import shutil
import subprocess
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from mechlab.dashboards.site import script_json
from mechlab.errors import MechlabError
from mechlab.files import disk_errors, write_atomic

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

ENDINGS = (".svg", ".png", ".pdf")
_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_WIDTH, _HEIGHT = 700, 450
_SECONDS = 120
# Pixels beyond which browsers refuse a canvas.
_LARGEST = 16384
_SVG = "give a plotly figure, or what circuit_svg gives"

_PLOTLY = """<!doctype html><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src 'unsafe-inline';
style-src 'unsafe-inline'; img-src data: blob:">
<body><div id="figure"></div><script>{library}</script>
<script type="application/json" id="data">{figure}</script>
<script>
const {{ data, layout }} = JSON.parse(document.getElementById("data").textContent);
Plotly.newPlot("figure", data, layout, {{ staticPlot: true }})
  .then((plot) => Plotly.toImage(plot, {{ format: "svg", width: {width}, height: {height} }}))
  .then((url) => {{ document.body.textContent = url; }},
    (error) => {{ document.body.textContent = `failed: ${{error}}`; }});
</script></body>"""
_DOTS = """<!doctype html><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src 'unsafe-inline';
img-src data:">
<body><script>
const picture = new Image();
picture.onload = () => {{
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [{width}, {height}];
  const brush = canvas.getContext("2d");
  brush.fillStyle = "white";
  brush.fillRect(0, 0, {width}, {height});
  brush.drawImage(picture, 0, 0, {width}, {height});
  document.body.textContent = canvas.toDataURL("image/png");
}};
picture.onerror = () => {{ document.body.textContent = "failed: the picture cannot be drawn"; }};
picture.src = "data:image/svg+xml;base64,{svg}";
</script></body>"""
_PAPER = """<!doctype html><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline';
img-src data:">
<style>@page {{ size: {width}px {height}px; margin: 0 }}
html, body {{ margin: 0; height: 100%; overflow: hidden }}
img {{ display: block; width: 100%; height: 100% }}</style>
<img alt="" src="data:image/svg+xml;base64,{svg}">"""


def save_figure(
    figure: Figure | str,
    path: Path | str,
    *,
    width: int | None = None,
    height: int | None = None,
    scale: float = 2.0,
) -> Path:
    """Write a chart as .svg, .png or .pdf; returns the path.

    Args:
        figure: a plotly figure, or the text of an SVG (``circuit_svg``, ``heat_map_svg``).
        width, height: in CSS pixels (1/96 inch); by default the figure's own, else 700 × 450.
        scale: dots per CSS pixel of a .png.

    Only an SVG that is written as .svg at its own size needs no browser. Raises MechlabError for
    another ending, a size that cannot be, text that is no SVG, and where no browser is found.
    """
    path = Path(path)
    if path.suffix not in ENDINGS:
        raise MechlabError("no known ending of a figure", path, f"use {', '.join(ENDINGS)}")
    if path.is_dir():
        raise MechlabError("output file is a directory", path, "choose another name")
    if any(side is not None and side < 1 for side in (width, height)):
        raise MechlabError("no such size of a figure", f"{width} x {height}", "change width or height")
    svg = figure if isinstance(figure, str) else _plotly_svg(figure, width, height)
    own = _size(svg)
    wide = own[0] if width is None else float(width)
    high = own[1] if height is None else float(height)
    if not (0 < wide * scale <= _LARGEST and 0 < high * scale <= _LARGEST):
        raise MechlabError(
            "no such size of a figure", f"{wide:g} x {high:g}", "change width, height or scale"
        )
    if path.suffix == ".svg":
        content = (svg if (wide, high) == own else _resized(svg, wide, high)).encode()
    elif path.suffix == ".png":
        content = _png(svg, round(wide * scale), round(high * scale))
    else:
        content = _pdf(svg, wide, high)
    with disk_errors(path):
        write_atomic(path, content)
    return path


def find_browser() -> str:
    """Path of an installed browser that can draw without a window. MechlabError when there is none."""
    for name in _BROWSERS:
        if found := shutil.which(name):
            return found
    raise MechlabError("no browser to draw with", ", ".join(_BROWSERS), "install Chromium, or save as .html")


def _plotly_svg(figure: Figure, width: int | None, height: int | None) -> str:
    from plotly.offline import get_plotlyjs

    find_browser()  # before the work
    content = json.loads(figure.to_json())
    size = {
        "width": width or figure.layout.width or _WIDTH,
        "height": height or figure.layout.height or _HEIGHT,
    }
    content["layout"].update(size)
    head, _, drawn = _body(
        _PLOTLY.format(library=get_plotlyjs(), figure=script_json(content), **size)
    ).partition(",")
    if head != "data:image/svg+xml":
        raise MechlabError("figure could not be drawn", head[:200], "look at it with figure.show()")
    return unquote(drawn)


def _png(svg: str, width: int, height: int) -> bytes:
    body = _body(_DOTS.format(svg=_encoded(svg), width=width, height=height))
    head, _, data = body.partition(",")
    if head != "data:image/png;base64" or not data:
        raise MechlabError("figure could not be drawn", body[:200], "check the SVG in a browser")
    return base64.b64decode(data)


def _pdf(svg: str, width: float, height: float) -> bytes:
    with tempfile.TemporaryDirectory(prefix="mechlab-figure-", ignore_cleanup_errors=True) as folder:
        out = Path(folder) / "figure.pdf"
        page = _PAPER.format(svg=_encoded(svg), width=width, height=height)
        said = _browse(page, Path(folder), f"--print-to-pdf={out}", "--no-pdf-header-footer")
        if not out.is_file():
            raise MechlabError("figure could not be printed", said[1], "try another browser")
        return out.read_bytes()


def _body(page: str) -> str:
    """Text of a page's body when its script is through."""
    with tempfile.TemporaryDirectory(prefix="mechlab-figure-", ignore_cleanup_errors=True) as folder:
        shown, said = _browse(page, Path(folder), "--dump-dom", "--virtual-time-budget=60000")
    found = re.search(r"<body>(.*)</body>", shown, re.DOTALL)
    if found is None:
        raise MechlabError("browser drew nothing", said, "try another browser")
    return html.unescape(found[1]).strip()


def _browse(page: str, folder: Path, *how: str) -> tuple[str, str]:
    """Open a page without a window; standard output, and the last line of what went wrong."""
    browser = find_browser()
    (folder / "page.html").write_text(page, encoding="utf-8")
    words = [
        browser, "--headless", "--disable-gpu", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", f"--user-data-dir={folder / 'profile'}",
    ]  # fmt: skip
    if os.geteuid() == 0:  # Chromium's sandbox refuses root; the page is ours and may load nothing
        words.append("--no-sandbox")
    try:
        done = subprocess.run(
            [*words, *how, (folder / "page.html").as_uri()],
            capture_output=True, timeout=_SECONDS, text=True, errors="replace", check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise MechlabError("browser did not finish", f"{_SECONDS} s", "try a smaller figure") from None
    return done.stdout, (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]


def _encoded(svg: str) -> str:
    return base64.b64encode(svg.encode()).decode()


def _size(svg: str) -> tuple[float, float]:
    """Width and height in pixels of an SVG, from its own attributes."""
    try:
        root = ElementTree.fromstring(svg.encode())
    except ElementTree.ParseError as error:
        raise MechlabError("text is no SVG", str(error), _SVG) from None
    if root.tag.rpartition("}")[2] != "svg":
        raise MechlabError("text is no SVG", root.tag, _SVG)
    wide, high = (re.fullmatch(r"\s*([\d.]+)(px)?\s*", root.get(name, "")) for name in ("width", "height"))
    if wide and high:
        return float(wide[1]), float(high[1])
    box = re.fullmatch(r"\s*[-\d.]+[\s,]+[-\d.]+[\s,]+([\d.]+)[\s,]+([\d.]+)\s*", root.get("viewBox", ""))
    return (float(box[1]), float(box[2])) if box else (float(_WIDTH), float(_HEIGHT))


def _resized(svg: str, width: float, height: float) -> str:
    """The SVG drawn at another size: its coordinates are kept in a viewBox."""
    ElementTree.register_namespace("", "http://www.w3.org/2000/svg")
    ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")
    root = ElementTree.fromstring(svg.encode())
    if "viewBox" not in root.attrib:
        root.set("viewBox", "0 0 {:g} {:g}".format(*_size(svg)))
    root.set("width", f"{width:g}")
    root.set("height", f"{height:g}")
    return ElementTree.tostring(root, encoding="unicode")
