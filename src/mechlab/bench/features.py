"""What indexing, statistics, contexts, rules and their scores cost beside their floor.

The floor of a stage is the bytes that it cannot but read and write, at the speed at which this
machine copies memory: for the build the codes in (8 bytes an entry) and the index out (8 bytes); for
contexts the entries in; for statistics their values in.
"""

from __future__ import annotations

import gc
import shutil
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int

from mechlab.bench.feature_peers import measure_peers
from mechlab.bench.measure import Progress, Variant, interleaved, read_peak, start_peak
from mechlab.bench.peers import FOLDER
from mechlab.features.building import IndexWriter, load_index
from mechlab.features.explanations import Explanation, Explanations
from mechlab.features.index import FeatureIndex
from mechlab.features.rules import explain_rules
from mechlab.features.scoring.score import score_features
from mechlab.features.statistics import statistics_of
from mechlab.features.vocabulary import Vocabulary
from mechlab_kernels.contexts import top_peaks

_CPU = torch.device("cpu")
_WORDS, _PASSAGE, _PASSAGES = 8192, 128, 4
_ROWS = 2**14  # given to the writer at a time
_COUNT, _RADIUS = 20, 12
# Bytes an entry that a stage reads and writes at the least.
_LEAST = {"build": 16, "contexts": 8, "statistics": 4}


@dataclass(frozen=True)
class Sizes:
    """Entries (active features summed over tokens), features, active features of a token."""

    entries: int
    features: int
    active: int

    @property
    def rows(self) -> int:
        """Tokens of the text."""
        return self.entries // self.active


@dataclass(frozen=True)
class Problem:
    """Tokens in passages, and codes that follow from them in part.

    Attributes:
        tokens: word of each row, few of them frequent; vocabulary: what they say.
        values, indices: activations and their features, all active.
    """

    sizes: Sizes
    vocabulary: Vocabulary
    tokens: Int[np.ndarray, "row"]
    values: Float32[np.ndarray, "row k"]
    indices: Int[np.ndarray, "row k"]


def make_problem(sizes: Sizes, seed: int = 0) -> Problem:
    """Of four features one follows from its token, one from the token before, one from neither, one partly.

    Each slot of a row has features of its own, so that a row has none twice.
    """
    generator = np.random.default_rng(seed)
    rows, k = sizes.rows, sizes.active
    tokens = (_WORDS * generator.random(rows, np.float32) ** 3).astype(np.int32)
    before = np.roll(tokens, 1)
    each = sizes.features // k
    values, indices = np.empty((rows, k), np.float32), np.empty((rows, k), np.int32)
    for slot in range(k):
        table = generator.integers(each, size=_WORDS, dtype=np.int32)
        anything = (each * generator.random(rows, np.float32) ** 2).astype(np.int32)
        match slot % 4:
            case 0:
                feature = table[tokens]
            case 1:
                feature = table[before]
            case 2:
                feature = anything
            case _:
                feature = np.where(generator.random(rows, np.float32) < 0.7, table[tokens], anything)
        indices[:, slot] = slot * each + feature
        strength = generator.random(each, np.float32) + np.float32(0.5)
        values[:, slot] = strength[feature] * (generator.random(rows, np.float32) + np.float32(0.5))
    vocabulary = Vocabulary(tuple(f" w{number}" for number in range(_WORDS)))
    return Problem(sizes, vocabulary, tokens, values, indices)


def build(problem: Problem, path: Path, times: int = 1) -> None:
    """Index the problem's rows, ``times`` over with other tokens each time, a batch after the other."""
    sizes = problem.sizes
    shutil.rmtree(path, ignore_errors=True)
    with IndexWriter(path, problem.vocabulary, sizes.features, {"kind": "made up"}, 0, {}) as writer:
        for time_over in range(times):
            for start in range(0, sizes.rows, _ROWS):
                here = slice(start, start + _ROWS)
                # The text repeats nowhere, as duplicates would be looked for among contexts.
                tokens = (problem.tokens[here] + 7 * time_over) % _WORDS
                place = np.arange(start, start + len(tokens)) + time_over * sizes.rows
                passage = place // _PASSAGE
                writer.add(
                    tokens.astype(np.int32), passage, place % _PASSAGE + 1, passage // _PASSAGES,
                    problem.values[here], problem.indices[here],
                )  # fmt: skip
        writer.finish()


def contexts(index: FeatureIndex) -> None:
    """The rows of the top contexts of every feature."""
    text = index.text
    top_peaks(index.indptr, index.row, index.value, text.tokens, text.bounds, _COUNT, _RADIUS)


def compare_stages(
    problem: Problem, work: Path, *, repeats: int, copies: float, progress: Progress | None = None
) -> dict[str, dict[str, Any]]:
    """Seconds, floor and peak memory of the build, of all top contexts and of all statistics.

    Args:
        copies: bytes a second that this machine copies.

    Codes are in memory before; files are in the page cache, as nothing evicts them.
    """
    path = work / "index"
    build(problem, path)
    entries = problem.sizes.entries

    def timed(stage: Callable[[], object]) -> Variant:
        def step() -> float:
            stage()
            return float(entries)

        return Variant(step)

    # Opened anew each time: nothing that a stage needs is there already.
    variants = {
        "build": timed(lambda: build(problem, work / "again")),
        "contexts": timed(lambda: contexts(load_index(path))),
        "statistics": timed(lambda: statistics_of(load_index(path))),
    }
    rounds = interleaved(variants, repeats=repeats, device=_CPU, stage="stages", progress=progress)
    found: dict[str, dict[str, Any]] = {}
    for name in variants:
        seconds = [entries / rate for rate in rounds.rates[name]]
        found[name] = {
            "seconds": statistics.median(seconds),
            "range": [min(seconds), max(seconds)],
            "floor": _LEAST[name] * entries / copies,
            "peak_bytes": rounds.peaks[name],
        }
    return found


def growth(problem: Problem, times: int, work: Path, *, repeats: int = 1) -> dict[str, Any]:
    """The same stages on ``times`` as many rows: the fastest of ``repeats``, and the peak of memory."""
    path = work / "grown"
    seconds: dict[str, list[float]] = {name: [] for name in _LEAST}
    peaks: list[int] = []
    for _ in range(repeats):
        stages: Mapping[str, Callable[[], object]] = {
            "build": lambda: build(problem, path, times),
            "contexts": lambda: contexts(load_index(path)),
            "statistics": lambda: statistics_of(load_index(path)),
        }
        for name, stage in stages.items():
            gc.collect()
            held = start_peak(_CPU)
            started = time.perf_counter()
            stage()
            seconds[name].append(time.perf_counter() - started)
            peak = read_peak(_CPU)
            if held is not None and peak is not None:
                peaks.append(peak - held)
    shutil.rmtree(path)
    return {
        "entries": times * problem.sizes.entries,
        "seconds": {name: min(each) for name, each in seconds.items()},
        "peak_bytes": max(peaks, default=None),
    }


def rates(index: FeatureIndex, sample: int, *, repeats: int, seed: int = 0) -> dict[str, Any]:
    """Features a second that rules are found for, and that rules are scored by detection.

    Args:
        sample: how many live features; drawn.

    Both work on the whole text, as the speed is asked for, not the score.
    """
    generator = np.random.default_rng(seed)
    features = np.sort(generator.choice(index.live, min(sample, len(index.live)), replace=False)).tolist()
    explain_rules(index, features=features[:2])  # compiles
    found: dict[str, list[float]] = {"explain": [], "score": []}
    scored = 0
    for _ in range(repeats):
        started = time.perf_counter()
        rules = explain_rules(index, features=features, seed=seed)
        found["explain"].append(len(features) / (time.perf_counter() - started))
        items = tuple(Explanation(feature, "rules", rule.sentence(), rule) for feature, rule in rules.items())
        if not items:
            continue
        explanations = Explanations(items, (), index.n_features)
        started = time.perf_counter()
        card = score_features(index, explanations, ("detection",), seed=seed)
        found["score"].append(len(items) / (time.perf_counter() - started))
        scored = len({each.feature for each in card.scored})
    return {
        "tokens": len(index.text),
        "features": len(features),
        "scored": scored,
        "explain": statistics.median(found["explain"]),
        "score": statistics.median(found["score"] or [0.0]),
    }


def run(
    sizes: Sizes,
    work: Path,
    *,
    grown: tuple[int, ...] = (),
    rules: int = 1024,
    repeats: int = 5,
    peers: bool = True,
    peer_folder: Path = FOLDER,
    copies: float,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """All figures: stages, growth, rates of rules and scores, and what other tools take.

    Args:
        grown: numbers of entries at which the stages are measured too, with more or fewer rows.
        rules: features that rules are found for; 0 leaves it out.
    """
    problem = make_problem(sizes, seed)
    payload: dict[str, Any] = {
        "sizes": {**asdict(sizes), "rows": sizes.rows},
        "stages": compare_stages(problem, work, repeats=repeats, copies=copies, progress=progress),
        "growth": [],
    }
    for done, entries in enumerate(sorted({*grown, sizes.entries}) if grown else ()):
        if progress:
            progress("growth", done, len(grown) + 1, {"entries": float(entries)})
        times = max(round(entries / sizes.entries), 1)
        smaller = entries < sizes.entries
        case = make_problem(Sizes(entries, sizes.features, sizes.active), seed) if smaller else problem
        payload["growth"].append(growth(case, times, work, repeats=3 if times == 1 else 1))
    index = load_index(work / "index")
    if rules:
        if progress:
            progress("rules", 0, 1, {})
        payload["rules"] = rates(index, rules, repeats=max(repeats // 2, 1), seed=seed)
    if peers:
        payload["peers"], payload["missing"] = measure_peers(
            index, work, folder=peer_folder, progress=progress
        )
        payload["ratios"] = ratios(payload)
    return payload


def ratios(payload: dict[str, Any]) -> dict[str, float]:
    """What other tools take for like work, as multiples of what ours takes."""
    ours = {name: each["seconds"] for name, each in payload["stages"].items()}
    found = {}
    for name, each in payload["peers"].items():
        if name == "delphi":
            theirs = each["save"] + each["load"]
            found["delphi, save and load / build and contexts"] = theirs / (ours["build"] + ours["contexts"])
        else:
            title = f"{name}, all features / contexts and statistics"
            found[title] = each["total"] / (ours["contexts"] + ours["statistics"])
    return found
