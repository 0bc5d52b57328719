"""A dictionary of the bundled model and its index on disk, and commands as a user runs them."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from features.llm_grader import Grader
from mechlab.activations.harvest import harvest
from mechlab.cli.main import main
from mechlab.data.corpus import open_corpus
from mechlab.features.building import load_index
from mechlab.features.explanations import load_explanations
from mechlab.features.sources import index_dictionary, store_rows
from mechlab.models.subject import load_model
from mechlab.sae.dictionary import train_sae
from mechlab.sae.topk import TopKConfig

SITE = "blocks.2.hook_resid_post"
WIDTH = 16
LATENTS = 96
_PROGRESS = re.compile(r"mechlab: \w+ \d+/\d")
PRICES = ["--price-in", 1, "--price-out", 4]


@functools.cache
def made(base: Path) -> Path:
    """A folder with sae, other (another dictionary), index and elsewhere (the index of the other)."""
    folder = base / "features-made"
    folder.mkdir()
    subject = load_model("fable")
    store = harvest(subject, open_corpus("fable"), SITE, folder / "store", tokens=12_000)
    for seed, (sae, index) in enumerate((("sae", "index"), ("other", "elsewhere"))):
        config = TopKConfig(site=SITE, d_sae=LATENTS, k=4, tokens=30_000 if seed == 0 else 2048)
        index_dictionary(
            train_sae(store, folder / sae, config, seed=seed), store_rows(store, subject), folder / index
        )
    return folder


def run(*words: object) -> int:
    """Exit status of a command."""
    with pytest.raises(SystemExit) as stopped:
        main(["features", *(str(word) for word in words)])
    assert isinstance(stopped.value.code, int)
    return stopped.value.code


def payload(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    """What a command that succeeds says to --json."""
    capsys.readouterr()
    assert run(*words, "--json") == 0
    [line] = capsys.readouterr().out.splitlines()
    found: dict[str, Any] = json.loads(line)
    return found


def said(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """What a command that succeeds says to people."""
    capsys.readouterr()
    assert run(*words) == 0
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The one line of a command that is refused."""
    capsys.readouterr()
    assert run(*words) == 2
    seen = capsys.readouterr()
    assert not seen.out
    lines = [line for line in seen.err.splitlines() if not _PROGRESS.match(line)]
    assert len(lines) == 1, lines
    return lines[0]


def held_out(folder: Path, explanations: Path) -> Grader:
    """A language model that judges by executing rules, on the documents that are left for scoring."""
    index, documents = load_index(folder / "index"), load_explanations(explanations).documents
    return Grader(index.restrict(~np.isin(index.text.document, documents)).text, WIDTH)


def asking(url: str, cache: Path) -> list[object]:
    """Flags that name a scripted server."""
    return ["--llm", "scripted", "--endpoint", url, "--cache", cache, *PRICES]
