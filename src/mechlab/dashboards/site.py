"""A site: named blocks of JSON, and one page that shows them without asking the network for anything.

Layout of the directory: ``index.html`` holds the style, the script and, as long as everything stays
below a limit, all blocks. Above the limit it holds the two that the first view needs ("site" and
"overview"), and each other block is a script file ``data/NAME.js``, which the page loads when it is
asked for: browsers refuse ``fetch`` on pages opened from a file, but not scripts.

The content-security policy allows the page's own script by its hash, the scripts which that one
adds, and nothing else. Strings from data reach the document through template escaping or
``textContent``, never as markup.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup

from mechlab.artifacts import Writer, writing
from mechlab.dashboards.templates import environment
from mechlab.errors import MechlabError
from mechlab.files import replacing

KIND = "dashboard"
INDEX = "index.html"
VIEWS = ("features", "circuit", "compare", "tokens", "run")
LIMIT = 30_000_000
CLIENT = Path(__file__).parent / "client"
# In this order; a file that is not there is left out. The live view is added by the server that it needs.
_PARTS = (
    "core",
    "parts",
    "chart",
    "graph",
    "features",
    "feature",
    "circuit",
    "compare",
    "tokens",
    "run",
)
# Blocks that the page holds even where the others are files.
_FIRST = ("site", "overview")


@dataclass(frozen=True)
class Site:
    """What a site shows.

    Attributes:
        title: heading, and title of the browser's tab.
        views: those of ``VIEWS`` that have data, in this order.
        facts: small JSON for every view: model, site (the hook's name), tokens, features, command.
        blocks: makes the blocks anew, one after the other: name (letters, digits and dashes) → JSON value.
        inputs: role → fingerprint of everything the blocks are made from. A site with the same ones is
            not written twice; without any it always is.
        settings: how the blocks were made from these.
    """

    title: str
    views: tuple[str, ...]
    facts: Mapping[str, Any]
    blocks: Callable[[], Iterable[tuple[str, Any]]]
    inputs: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Written:
    """A site on disk.

    Attributes:
        path: its ``index.html``.
        bytes: of all its files.
        n_files: files, the manifest not counted.
        single: whether everything is in ``index.html``.
    """

    path: Path
    bytes: int
    n_files: int
    single: bool


def write_site(site: Site, out: Path, *, limit: int = LIMIT, overwrite: bool = False) -> Written:
    """Write the site into the directory ``out``: an artifact, there as a whole or not at all.

    Args:
        limit: bytes up to which the whole site is one file; memory needed is about as much.
        overwrite: replace a site of other content.

    Raises MechlabError for a view or a name of a block that cannot be, and where ``out`` holds
    something else.
    """
    unknown = [name for name in site.views if name not in VIEWS]
    if unknown:
        raise MechlabError("no such view", unknown[0], f"known: {', '.join(VIEWS)}")
    if limit < 0:
        raise MechlabError("limit must not be negative", limit, "give a number of bytes")
    plan = {
        "views": list(site.views),
        "settings": dict(site.settings),
        "limit": limit,
        "head": _digest(script_json([site.title, dict(site.facts)])),
        "client": client_digest(),
    }
    inputs = dict(site.inputs) or {"content": secrets.token_hex(32)}
    with writing(out, KIND, config=plan, seed=0, inputs=inputs, overwrite=overwrite) as writer:
        if writer.finished is None:
            files = _write(site, writer, limit)
            writer.commit(files)
        assert writer.finished is not None
        listed = writer.finished.manifest.files
        return Written(
            out / INDEX, sum(each["bytes"] for each in listed.values()), len(listed), len(listed) == 1
        )


def _write(site: Site, writer: Writer, limit: int) -> list[str]:
    """All files of the site into the writer's directory; their names."""
    held: dict[str, Markup] = {}  # blocks that go into the page
    shards: list[str] = []
    names: set[str] = {"site"}
    size = len(style()) + len(script())
    for name, value in site.blocks():
        if not re.fullmatch(r"[A-Za-z0-9-]+", name) or name in names:
            raise MechlabError("no name for a block", name, "letters, digits and dashes; each once")
        names.add(name)
        text = script_json(value)
        size += len(text)
        if shards and name not in _FIRST:
            shards.append(_shard(writer.work, name, text))
            continue
        held[name] = text
        if size > limit:
            shards += [_shard(writer.work, each, held.pop(each)) for each in [*held] if each not in _FIRST]
    head = {"title": site.title, "views": site.views, "facts": dict(site.facts), "shards": shards}
    blocks = {"site": script_json(head), **held}
    with replacing(writer.work / INDEX) as handle:
        for piece in page_text(site.title, blocks.items()):
            # Half of a pair of surrogates, which a title may hold, can be stored in no file.
            handle.write(piece.encode("utf-8", "replace"))
    return [INDEX, *(f"data/{name}.js" for name in shards)]


def _shard(work: Path, name: str, text: str) -> str:
    # The block stays a string, which costs little, until it is asked for; JSON is plain ASCII here.
    quoted = str(text).replace("\\", "\\\\").replace("'", "\\'")
    with replacing(work / "data" / f"{name}.js") as handle:
        handle.write(f"mechlab.take('{name}','{quoted}')\n".encode("ascii"))
    return name


def client_digest() -> str:
    """What style and script are, as the manifest of a site records it under "client"."""
    return _digest(style() + script())


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def page_text(title: str, blocks: Iterable[tuple[str, Markup]]) -> Iterator[str]:
    """The page as pieces of HTML text. ``blocks``: name → what ``script_json`` made of it."""
    template = environment().get_template("site.html")
    code = script()
    return template.generate(
        title=title, policy=policy(code), style=Markup(style()), script=Markup(code), blocks=blocks
    )


def policy(code: str) -> str:
    """The content-security policy of a page whose one script is ``code``."""
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    return (
        f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
        f"script-src 'sha256-{digest}' 'strict-dynamic'; base-uri 'none'; form-action 'none'"
    )


def script() -> str:
    """The script of every page: the shell, and the views; without comment lines and indentation.

    Lines are cut as they stand, so no string or template of the client may go over the end of a line.
    """
    lines = map(str.strip, _joined("js").splitlines())
    return "\n".join(line for line in lines if line and not line.startswith("//"))


def style() -> str:
    """The style of every page."""
    return _joined("css")


def _joined(ending: str) -> str:
    files = (CLIENT / f"{part}.{ending}" for part in _PARTS)
    return "\n".join(path.read_text() for path in files if path.is_file())


def script_json(value: Any) -> Markup:
    """JSON that may stand inside ``<script type="application/json">``.

    Pure ASCII, so line separators and lone surrogates are escaped; ``<``, ``>`` and ``&``
    are escaped too, so that no ``</script>`` or ``<!--`` can end or change the block.
    """
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)
