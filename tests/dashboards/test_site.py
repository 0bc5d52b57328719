"""Sites on disk: one file or many, whole or not at all, and nothing in them that could break out."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from dashboards.conftest import HOSTILE
from mechlab.artifacts import open_artifact
from mechlab.dashboards.site import CLIENT, Site, script, script_json, style, write_site
from mechlab.errors import MechlabError


def blocks() -> Iterator[tuple[str, Any]]:
    yield "overview", {"features": 3}
    for number in range(3):
        yield f"features-{number}", {"strings": list(HOSTILE), "pad": "x" * 1000}


SITE = Site("A site", ("features", "run"), {"model": "tiny", "tokens": 1234}, blocks)


def embedded(page: str) -> dict[str, Any]:
    found = re.findall(r'<script type="application/json" id="b-([^"]+)">(.*?)</script>', page)
    return {name: json.loads(text) for name, text in found}


def test_below_the_limit_everything_is_in_one_file(tmp_path):
    written = write_site(SITE, tmp_path / "site")
    assert written.single
    assert written.n_files == 1
    assert written.bytes == written.path.stat().st_size
    assert {entry.name for entry in (tmp_path / "site").iterdir()} == {"index.html", "manifest.json"}
    found = embedded(written.path.read_text())
    assert list(found) == ["site", "overview", "features-0", "features-1", "features-2"]
    assert found["features-2"]["strings"] == list(HOSTILE)
    assert found["site"] == {
        "title": "A site",
        "views": ["features", "run"],
        "facts": {"model": "tiny", "tokens": 1234},
        "shards": [],
    }


@pytest.mark.parametrize("limit", [0, 100_000])
def test_above_the_limit_blocks_are_files(tmp_path, limit):
    """Where the limit falls (here before all blocks, or after some) does not matter."""

    def many() -> Iterator[tuple[str, Any]]:
        yield from blocks()
        for number in range(3, 100):
            yield f"features-{number}", {"strings": list(HOSTILE), "pad": "x" * 1000}

    written = write_site(replace(SITE, blocks=many), tmp_path / "site", limit=limit)
    assert not written.single
    assert written.n_files == 101
    found = embedded(written.path.read_text())
    assert list(found) == ["site", "overview"]
    assert found["site"]["shards"] == [f"features-{number}" for number in range(100)]
    text = (tmp_path / "site/data/features-7.js").read_text()
    name, block = re.fullmatch(r"mechlab\.take\('([^']+)','(.*)'\)\n", text).groups()
    assert name == "features-7"
    assert json.loads(block.replace("\\'", "'").replace("\\\\", "\\"))["strings"] == list(HOSTILE)
    open_artifact(tmp_path / "site", "dashboard").verify()


def test_a_smaller_site_leaves_no_shards_behind(tmp_path):
    write_site(SITE, tmp_path / "site", limit=0)
    written = write_site(SITE, tmp_path / "site", overwrite=True)
    assert written.single
    assert not list((tmp_path / "site").glob("data/*"))


def test_the_same_inputs_are_not_written_twice(tmp_path):
    calls = []

    def counted() -> Iterator[tuple[str, Any]]:
        calls.append(1)
        yield from blocks()

    site = replace(SITE, blocks=counted, inputs={"index": "ab" * 32})
    first = write_site(site, tmp_path / "site")
    assert write_site(site, tmp_path / "site") == first
    assert len(calls) == 1
    with pytest.raises(MechlabError, match="made from another index"):
        write_site(replace(site, inputs={"index": "cd" * 32}), tmp_path / "site")
    with pytest.raises(MechlabError, match="made with another limit"):
        write_site(site, tmp_path / "site", limit=7)


def test_a_failure_leaves_the_old_site(tmp_path):
    write_site(SITE, tmp_path / "site")
    old = (tmp_path / "site/index.html").read_bytes()

    def broken() -> Iterator[tuple[str, Any]]:
        yield "overview", {}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_site(replace(SITE, blocks=broken), tmp_path / "site", overwrite=True)
    assert (tmp_path / "site/index.html").read_bytes() == old
    open_artifact(tmp_path / "site", "dashboard").verify()


@pytest.mark.parametrize("name", ["", "a/b", "../x", "a b", "site", "<", "é"])
def test_names_of_blocks_are_plain(tmp_path, name):
    with pytest.raises(MechlabError, match="no name for a block"):
        write_site(replace(SITE, blocks=lambda: iter([(name, 1)])), tmp_path / "site")
    assert not (tmp_path / "site").exists()


def test_unknown_view(tmp_path):
    with pytest.raises(MechlabError, match="no such view: features2"):
        write_site(replace(SITE, views=("features2",)), tmp_path / "site")


def test_one_script_is_allowed_and_it_is_the_one_that_is_there(tmp_path):
    page = write_site(replace(SITE, title=" ".join(HOSTILE)), tmp_path / "site").path.read_bytes()
    scripts = re.findall(rb"<script>(.*?)</script>", page, re.S)
    assert len(scripts) == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0]).digest())
    assert b"script-src &#39;sha256-" + digest + b"&#39; &#39;strict-dynamic&#39;" in page
    assert b"<img" not in page
    assert b"http" not in re.sub(rb"http-equiv|http://www\.w3\.org/2000/svg", b"", page)


def test_script_json_cannot_end_its_block():
    text = script_json(list(HOSTILE))
    assert not set("<>&") & set(text)
    assert text.isascii()
    assert json.loads(text) == list(HOSTILE)


def test_the_client_never_writes_markup_and_stays_small():
    """Only the live view, which is served, may ask the server."""
    files = sorted(CLIENT.glob("*.js"))
    markup = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|XMLHttp|import\("
    for path in files:
        text = path.read_text()
        assert not re.search(markup, text), path.name
        assert path.name == "live.js" or "fetch(" not in text, path.name
        # Then lines may be cut where they stand: neither templates nor comments go over their end.
        for line in text.splitlines():
            assert line.count("`") % 2 == 0, (path.name, line)
            assert line.count("/* ") == line.count(" */"), (path.name, line)
    assert len(script().encode()) < 100_000
    assert not re.search(r"@import|url\(", style())


def test_the_script_is_the_client_without_comment_lines():
    """The same code: what is left out, line by line, is only a comment or nothing."""
    kept = iter(script().splitlines())
    for path in (CLIENT / f"{name}.js" for name in ("core", "parts", "chart", "graph", "features")):
        for line in map(str.strip, path.read_text().splitlines()):
            assert not line or line.startswith("//") or next(kept) == line
    assert "\n//" not in script()
