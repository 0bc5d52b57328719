"""delphi and SAEDashboard, each in its own process, on the codes of an index of ours.

Both are given what our own indexing is given, codes and tokens, in files that are not part of any
time; see ``peer_steps/step_delphi.py`` and ``peer_steps/step_saedashboard.py`` for what is timed. What
takes them too long for a benchmark is measured on a sample, and the whole is an extrapolation that is
named as one.
"""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from safetensors.torch import save_file

from mechlab.bench.peers import FOLDER, Peer, interpreter
from mechlab.features.formats.delphi import layout
from mechlab.features.index import FeatureIndex

Progress = Callable[[str, int, int, dict[str, float]], None]
NAMES = ("delphi", "saedashboard")
# delphi's defaults drop latents with fewer than 200 examples and cut contexts into windows of 32.
_WINDOW, _SPLITS = 32, 5


@dataclass(frozen=True)
class DelphiFigures:
    """Medians over repeats, in seconds.

    Attributes:
        versions: of delphi and its torch.
        save: writing the cache of all latents.
        size: bytes of it.
        open: making the dataset, which reads the tokens.
        sort: reading a file of the cache and sorting it by latent, times the number of files.
        latent: one latent's examples beyond that, mean over ``sampled`` latents.
        load: ``open``, ``sort`` and all live latents' examples together; an extrapolation where
            ``sampled`` is less than ``latents``.
        latents: live latents.
        sampled: those that examples were made of.
    """

    versions: dict[str, str]
    save: float
    size: int
    open: float
    sort: float
    latent: float
    load: float
    latents: int
    sampled: int


@dataclass(frozen=True)
class SaeDashboardFigures:
    """Medians over repeats, in seconds.

    Attributes:
        versions: of SAEDashboard and its torch.
        feature: statistics, histogram and sequences of one feature, mean over ``sampled`` features.
        total: of all live features, an extrapolation from ``feature``.
        features: live features.
        sampled: those that were done.
    """

    versions: dict[str, str]
    feature: float
    total: float
    features: int
    sampled: int


def measure_peers(
    index: FeatureIndex,
    work: Path,
    *,
    names: Sequence[str] = NAMES,
    sample: int = 128,
    repeats: int = 3,
    folder: Path = FOLDER,
    progress: Progress | None = None,
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Figures of the peers that are there, by name, and the names of those that are missing.

    Args:
        work: folder for the files that are exchanged; 20 bytes an entry, and delphi's cache.
        names: those to measure.
        sample: features that examples, statistics and sequences are made of: live ones, evenly spaced.
        folder: where the peers' environments live.

    Raises MechlabError where a peer stops, and ValueError for an index without live features.
    """
    if not len(index.live):
        raise ValueError("no feature is active anywhere")
    missing = [name for name in names if interpreter(name, folder) is None]
    there = set(names) - set(missing)
    found: dict[str, dict[str, Any]] = {}
    if not there:
        return found, missing
    codes = write_codes(index, work / "codes.safetensors")
    try:
        if "delphi" in there:
            found["delphi"] = asdict(_delphi(index, codes, work, sample, repeats, folder, progress))
        if "saedashboard" in there:
            found["saedashboard"] = asdict(_saedashboard(index, codes, sample, repeats, folder, progress))
    finally:
        codes.unlink(missing_ok=True)
    return found, missing


def write_codes(index: FeatureIndex, path: Path) -> Path:
    """The codes as the peers are given them: ``locations``, ``activations`` and ``tokens``.

    A passage is a row, padded to the longest; entries are ordered by row and column, as a model would
    have made them.
    """
    tokens, place = layout(index.text, multiple=_WINDOW)
    feature = np.repeat(np.arange(index.n_features, dtype=np.int64), index.active)
    order = np.argsort(index.row, kind="stable")
    row = index.row[order]
    locations = np.stack([index.text.passage[row].astype(np.int64), place[row], feature[order]], 1)
    data = {"locations": locations, "activations": np.asarray(index.value)[order], "tokens": tokens}
    save_file({name: torch.from_numpy(np.ascontiguousarray(each)) for name, each in data.items()}, path)
    return path


def _delphi(
    index: FeatureIndex,
    codes: Path,
    work: Path,
    sample: int,
    repeats: int,
    folder: Path,
    progress: Progress | None,
) -> DelphiFigures:
    # Its least work: every latent, no examples without activation.
    options = {"example_ctx_len": _WINDOW, "min_examples": 1, "n_non_activating": 0}
    rounds: list[dict[str, float]] = []
    with Peer("delphi", folder) as peer:
        peer.ask("init", {"codes": str(codes), "width": index.n_features})
        for done in range(repeats):
            cache = work / "delphi"
            saved = peer.ask("save", {"folder": str(cache), "splits": _SPLITS})
            loaded = peer.ask("load", {"folder": str(cache), "options": options, "limit": sample})
            shutil.rmtree(cache)
            rounds.append({"save": saved["seconds"], "size": saved["bytes"], **loaded})
            if progress:
                progress("delphi", done + 1, repeats, {"save s": saved["seconds"]})
        versions = peer.versions
    middle = {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}
    live, sampled = len(index.live), int(middle["latents"])
    load = middle["open"] + middle["sort"] + live * middle["latent"]
    return DelphiFigures(
        versions, middle["save"], int(middle["size"]), middle["open"], middle["sort"], middle["latent"],
        load, live, sampled,
    )  # fmt: skip


def _saedashboard(
    index: FeatureIndex, codes: Path, sample: int, repeats: int, folder: Path, progress: Progress | None
) -> SaeDashboardFigures:
    features = _spread(index.live, sample)
    seconds = []
    with Peer("saedashboard", folder) as peer:
        peer.ask("init", {"codes": str(codes), "features": features.tolist()})
        for done in range(repeats):
            seconds.append(peer.ask("features", None)["seconds"])
            if progress:
                progress("saedashboard", done + 1, repeats, {"s": seconds[-1]})
        versions = peer.versions
    each = statistics.median(seconds) / len(features)
    return SaeDashboardFigures(versions, each, each * len(index.live), len(index.live), len(features))


def _spread(live: Int[np.ndarray, "live"], sample: int) -> Int[np.ndarray, "sampled"]:
    """So many of them, evenly spaced, the first and the last among them."""
    chosen: np.ndarray = live[np.unique(np.linspace(0, len(live) - 1, sample).round().astype(np.int64))]
    return chosen
