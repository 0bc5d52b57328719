"""A model, a dictionary and a site to be served."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cli.features_made import SITE, made
from mechlab.artifacts import Artifact, open_artifact, writing
from mechlab.dashboards.live import Live
from mechlab.dashboards.site import Site, write_site
from mechlab.features.statistics import load_statistics
from mechlab.models.subject import load_model
from mechlab.sae.dictionary import load_sae

TEXT = "Once upon a time a child found a red box, and it was heavy."


@functools.cache
def live_of(base: Path) -> Live:
    """The bundled model with a small dictionary trained on it."""
    folder = made(base)
    return Live(load_model("fable"), load_sae(folder / "sae"), load_statistics(folder / "index").maximum)


def _blocks() -> Iterator[tuple[str, Any]]:
    numbers = list(range(96))
    yield (
        "overview",
        {
            "features": 96,
            "chunk": 64,
            "scorers": [],
            "columns": {
                "n": numbers,
                "density": [0.1] * 96,
                "max": [1.0] * 96,
                "mean": [0.5] * 96,
                "said": [f"explanation {n} </script><img src=x onerror=window.hit=1>" for n in numbers],
                "scores": {},
            },
        },
    )
    for chunk in range(2):
        top = {"d": 0, "c": 1, "t": [0, 1, 2], "a": [[1, 1.0]], "at": 1}
        features = {str(n): {"contexts": {"top": [top]}} for n in numbers if n // 64 == chunk}
        yield f"features-{chunk}", {"strings": [" The", " cat", " ran"], "features": features}


def site_at(path: Path, *, limit: int = 0) -> Artifact:
    """A small site in shards."""
    write_site(Site("Served", ("features",), {"model": "fable"}, _blocks), path, limit=limit)
    return open_artifact(path)


def run_at(path: Path, base: Path) -> Path:
    """A run directory with what serving needs."""
    folder = made(base)
    config = {"model": "fable", "site": SITE, "dtype": None, "revision": None}
    inputs = {"model": live_of(base).subject.fingerprint}
    with writing(path, "run", config=config, seed=0, inputs=inputs) as writer:
        (writer.work / "summary.json").write_text(json.dumps({"seconds": {}}))
        writer.commit(["summary.json"])
    shutil.copytree(folder / "sae", path / "sae")
    shutil.copytree(folder / "index", path / "features")
    site_at(path / "dashboard")
    return path


def resid(live: Live, text: str, change: Any = None) -> tuple[Tensor, Tensor]:
    """By plain hooks: value behind the third block, and log-probabilities, of a text with BOS.

    ``change`` is added to the value at every position but the first.
    """
    subject, seen = live.subject, []

    def hook(_: Any, __: Any, output: Any) -> Any:
        value = output[0] if isinstance(output, tuple) else output
        seen.append(value.clone())
        if change is None:
            return None
        value = value.clone()
        value[:, 1:] += change(seen[-1][0, 1:])
        return (value, *output[1:]) if isinstance(output, tuple) else value

    handle = subject.module.get_submodule(
        subject.site("blocks.2.hook_resid_post").module
    ).register_forward_hook(hook)
    try:
        with torch.no_grad():
            logits = subject.module(subject.tokens(text)[None]).logits[0]
    finally:
        handle.remove()
    return seen[0][0, 1:], logits.double().log_softmax(-1)


def codes_of(live: Live, x: Tensor) -> Tensor:
    """TopK by definition: the k largest pre-activations, where positive."""
    sae = live.dictionary.sae
    pre = (x - sae.b_dec) @ sae.encoder.T + sae.b_enc
    least = pre.topk(sae.config.k).values[:, -1:]
    return torch.where(pre >= least, pre, 0).relu()
