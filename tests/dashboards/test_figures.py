"""Charts as real files, drawn by a real browser."""

from __future__ import annotations

import re
import struct
import xml.etree.ElementTree as ElementTree
import zlib
from pathlib import Path

import pytest
from plotly.graph_objects import Figure, Heatmap, Scatter

from dashboards.conftest import CHROMIUM
from mechlab.dashboards.figures import save_figure
from mechlab.errors import MechlabError

SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" width="120" height="80" viewBox="0 0 120 80">'
    '<rect width="60" height="80" fill="#ff0000"/><text x="70" y="40">words</text></svg>'
)
drawing = pytest.mark.skipif(CHROMIUM is None, reason="no browser on PATH")


def figure() -> Figure:
    made = Figure([Scatter(x=[1, 2, 3], y=[2, 1, 3], name="</script><script>x"), Heatmap(z=[[1, 2], [3, 4]])])
    return made.update_layout(title="A & B", width=300, height=200)


def png_size(content: bytes) -> tuple[int, int]:
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", content[16:24])
    return width, height


def pixels(content: bytes) -> list[bytes]:
    """Rows of an 8-bit RGBA image, its filters undone."""
    width, height = png_size(content)
    data, at = b"", 8
    while at < len(content):
        length, kind = struct.unpack(">I4s", content[at : at + 8])
        data += content[at + 8 : at + 8 + length] if kind == b"IDAT" else b""
        at += 12 + length
    raw, rows, before = zlib.decompress(data), [], bytes(4 * width)
    for y in range(height):
        filtered = raw[y * (4 * width + 1) : (y + 1) * (4 * width + 1)]
        row = bytearray()
        for x, value in enumerate(filtered[1:]):
            a, b, c = (row[x - 4] if x > 3 else 0), before[x], (before[x - 4] if x > 3 else 0)
            nearest = min((abs(b - c), 0, a), (abs(a - c), 1, b), (abs(a + b - 2 * c), 2, c))[2]
            row.append((value + (0, a, b, (a + b) // 2, nearest)[filtered[0]]) % 256)
        rows.append(bytes(row))
        before = bytes(row)
    return rows


def pages(content: bytes) -> list[tuple[float, float]]:
    """Width and height of every page in CSS pixels."""
    assert content.startswith(b"%PDF-")
    assert content.rstrip().endswith(b"%%EOF")
    boxes = re.findall(rb"/MediaBox ?\[0 0 ([\d.]+) ([\d.]+)\]", content)
    return [(float(wide) / 0.75, float(high) / 0.75) for wide, high in boxes]


@pytest.mark.parametrize("made", [SVG, figure()], ids=["svg", "plotly"])
@pytest.mark.browser
@drawing
def test_every_kind_of_file(made: Figure | str, tmp_path: Path) -> None:
    width, height = (120, 80) if made is SVG else (300, 200)
    text = save_figure(made, tmp_path / "a.svg").read_text()
    root = ElementTree.fromstring(text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert (root.get("width"), root.get("height")) == (str(width), str(height))
    assert ("words" if made is SVG else "A & B") in "".join(root.itertext())
    assert png_size(save_figure(made, tmp_path / "a.png").read_bytes()) == (2 * width, 2 * height)
    content = save_figure(made, tmp_path / "sub" / "a.pdf").read_bytes()
    [(wide, high)] = pages(content)
    assert (wide, high) == (pytest.approx(width, abs=1), pytest.approx(height, abs=1))
    assert b"/Type /Font" in content, "text stays text"
    assert {path.name for path in tmp_path.iterdir()} == {"a.svg", "a.png", "sub"}


@pytest.mark.browser
@drawing
def test_dots_are_those_of_the_drawing(tmp_path: Path) -> None:
    rows = pixels(save_figure(SVG, tmp_path / "a.png", scale=1.0).read_bytes())
    assert len(rows) == 80
    assert rows[40][4 * 30 : 4 * 30 + 4] == bytes([255, 0, 0, 255])
    assert rows[5][4 * 100 : 4 * 100 + 4] == bytes([255, 255, 255, 255])


@pytest.mark.browser
@drawing
def test_sizes_can_be_chosen(tmp_path: Path) -> None:
    assert png_size(save_figure(SVG, tmp_path / "a.png", width=60, scale=3.0).read_bytes()) == (180, 240)
    for made, sizes, wanted in (
        (SVG, {"width": 60, "height": 40}, ("60", "40", "0 0 120 80")),
        (figure(), {"height": 150}, ("300", "150", "0 0 300 150")),
        (Figure(Scatter(x=[1], y=[1])), {}, ("700", "450", "0 0 700 450")),
    ):
        root = ElementTree.fromstring(save_figure(made, tmp_path / "a.svg", **sizes).read_text())
        assert (root.get("width"), root.get("height"), root.get("viewBox")) == wanted


@pytest.mark.browser
@drawing
def test_a_picture_that_refers_elsewhere_asks_nobody(tmp_path: Path) -> None:
    outside = SVG.replace("<rect", '<image href="http://127.0.0.1:9/x.png" width="9" height="9"/><rect')
    assert png_size(save_figure(outside, tmp_path / "a.png").read_bytes()) == (240, 160)


def test_an_svg_needs_no_browser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert save_figure(SVG, tmp_path / "a.svg").read_text() == SVG
    for made, name in ((SVG, "a.png"), (SVG, "a.pdf"), (figure(), "a.svg")):
        with pytest.raises(MechlabError, match=r"no browser to draw with: chromium.*install Chromium"):
            save_figure(made, tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["a.svg"]


def test_a_browser_that_fails_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "bin" / "chromium"
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\necho first >&2\necho 'cannot open display' >&2\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{broken.parent}:/usr/bin:/bin")
    for name in ("a.png", "a.pdf"):
        with pytest.raises(MechlabError, match="cannot open display") as caught:
            save_figure(SVG, tmp_path / name)
        assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["bin"]


def test_what_cannot_be_a_figure_is_refused(tmp_path: Path) -> None:
    for made, name, message in (
        (SVG, "a.jpg", "no known ending"),
        ("<p>no</p>", "a.svg", "text is no SVG"),
        ("<svg", "a.svg", "text is no SVG"),
    ):
        with pytest.raises(MechlabError, match=message):
            save_figure(made, tmp_path / name)
    for size in ({"width": 0}, {"height": -3}, {"width": 10**6}, {"scale": 0.0}):
        with pytest.raises(MechlabError, match="no such size"):
            save_figure(SVG, tmp_path / "a.png", **size)
    (tmp_path / "x.svg").mkdir()
    with pytest.raises(MechlabError, match="is a directory"):
        save_figure(SVG, tmp_path / "x.svg")
    assert [path.name for path in tmp_path.iterdir()] == ["x.svg"]
