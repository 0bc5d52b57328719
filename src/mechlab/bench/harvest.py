"""What harvesting costs beside the bare forward, and beside SAELens.

Every variant runs the same forwards over the same contexts: through one block in the middle of
the model, with the same number of contexts in a forward. The bare forward is the Hugging Face
base model cut after that block, without any hook.
"""

from __future__ import annotations

import itertools
import shutil
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from mechlab.activations.batches import shuffled
from mechlab.activations.capture import reading
from mechlab.activations.harvest import fill, make_plan, publish
from mechlab.activations.live import LiveSource
from mechlab.activations.selection import Selection
from mechlab.activations.store import KIND, Store, open_store
from mechlab.artifacts import PARTIAL, writing
from mechlab.bench.measure import Progress, Rounds, Variant, interleaved
from mechlab.bench.models import flops_per_token, random_tokens, truncated
from mechlab.bench.saelens import saelens_batches
from mechlab.data.stream import Contexts, Position
from mechlab.models.subject import Subject

BARE = "bare forward"
# Forwards whose rows a buffer mixes, in our iterator as in SAELens'; SAELens keeps half of it.
_BUFFER = 4
_MIX = 0.5


@dataclass(frozen=True)
class Load:
    """The same work for every variant.

    Attributes:
        subject: the model; without BOS, so that each token is a row.
        block: the last block that runs.
        tokens: the contexts ``[context, pos]``, gone through again and again.
        batch: contexts per forward; divides the number of contexts.
        batch_rows: rows in a batch of an iterator; divides the rows of a forward.
        forwards: forwards per step; even, so that SAELens' buffer is refilled a whole number of times.
    """

    subject: Subject
    block: int
    tokens: Int[Tensor, "context pos"]
    batch: int
    batch_rows: int
    forwards: int

    @property
    def rows(self) -> int:
        """Rows per step."""
        return self.forwards * self.batch * self.tokens.shape[1]

    @property
    def site(self) -> str:
        """The one site: what the bare forward ends in."""
        return f"blocks.{self.block}.hook_resid_post"

    @property
    def sites(self) -> tuple[str, ...]:
        """Four sites, all outputs of modules, all d_model wide."""
        block = f"blocks.{self.block}"
        return (
            f"blocks.{self.block - 1}.hook_resid_post",
            f"{block}.hook_attn_out",
            f"{block}.hook_mlp_out",
            self.site,
        )

    def batches(self) -> Iterator[Int[Tensor, "batch pos"]]:
        """The contexts of one step's forwards."""
        starts = itertools.cycle(range(0, len(self.tokens), self.batch))
        for start in itertools.islice(starts, self.forwards):
            yield self.tokens[start : start + self.batch]

    def contexts(self) -> Iterator[Contexts]:
        """The same as a stream for mechlab."""
        for number, tokens in enumerate(self.batches(), 1):
            first = (number - 1) * self.batch
            document = torch.arange(first, first + len(tokens))[:, None].expand(tokens.shape).contiguous()
            mask = torch.ones_like(tokens, dtype=torch.bool)
            yield Contexts(tokens, mask, document, None, (), Position(row=first + len(tokens)))


def make_load(
    subject: Subject, *, batch: int, n_ctx: int, forwards: int = 2, batch_rows: int | None = None
) -> Load:
    """A load in the middle of the model: 16 forwards' worth of random contexts."""
    block = max(1, subject.module.config.num_hidden_layers // 2)
    tokens = random_tokens(subject, 16 * batch, n_ctx)
    rows = batch * n_ctx
    return Load(subject, block, tokens, batch, rows if batch_rows is None else batch_rows, forwards)


def bare(load: Load) -> Variant:
    """The forward alone."""
    model = truncated(load.subject, load.block)

    @torch.no_grad()
    def step() -> float:
        for tokens in load.batches():
            model(tokens.to(load.subject.device), use_cache=False)
        return float(load.rows)

    return Variant(step)


def capture(load: Load, sites: Sequence[str]) -> Variant:
    """Each site's value copied once, into a buffer made beforehand; nothing is stored."""
    shape = (load.batch, load.tokens.shape[1])
    place, kind = load.subject.device, load.subject.dtype
    room = {
        name: torch.empty(*shape, load.subject.site(name).dim, device=place, dtype=kind) for name in sites
    }

    def keep(name: str, value: Tensor) -> None:
        room[name].copy_(value)

    def step() -> float:
        with reading(load.subject, sites, keep) as run:
            for tokens in load.batches():
                run(tokens)
        return float(load.rows)

    return Variant(step)


def store(load: Load, sites: Sequence[str], out: Path) -> Variant:
    """A whole harvest into a new directory: statistics, checksums, manifest, everything but tokenising."""

    def prepare() -> None:
        shutil.rmtree(out, ignore_errors=True)

    def step() -> float:
        store_rows(load, sites, out)
        return float(load.rows)

    return Variant(step, prepare)


def store_rows(load: Load, sites: Sequence[str], out: Path) -> Store:
    """Store one step's rows at ``out``."""
    subject = load.subject
    plan = make_plan(
        subject, sites, n_ctx=load.tokens.shape[1], batch=load.batch, storage="float32", select=Selection()
    )
    inputs = {"model": subject.fingerprint, "corpus": "random"}
    with writing(out, KIND, config={"sites": list(sites)}, seed=0, inputs=inputs) as writer:
        fill(subject, plan, lambda _: load.contexts(), out / PARTIAL, load.rows)
        publish(writer, plan, subject.name, "random", load.rows)
    return open_store(out)


def live(load: Load, sites: Sequence[str]) -> Variant:
    """The shuffled iterator over the running model, from the first forward to the last row.

    A fresh iterator each step: its thread runs ahead, and would otherwise run during the steps of others.
    """
    plan = make_plan(load.subject, sites, n_ctx=load.tokens.shape[1], batch=load.batch, select=Selection())

    def step() -> float:
        source = LiveSource(load.subject, plan, lambda _: load.contexts(), "random")
        buffer = _BUFFER * load.batch * load.tokens.shape[1]
        with shuffled(source, batch_size=load.batch_rows, buffer=buffer) as batches:
            return float(sum(len(each) for each in batches))

    return Variant(step)


def saelens(load: Load, sites: Sequence[str], *, mixed: bool) -> Variant:
    """SAELens' store, going on from step to step (it never ends); see ``saelens_batches``.

    Args:
        mixed: with the buffer that ours has, or else none beyond a forward and no shuffling at all.
    """
    batches = saelens_batches(
        load.subject, load.tokens, sites, batch=load.batch, batch_rows=load.batch_rows,
        buffer=(_BUFFER if mixed else 1) * load.batch, mix=_MIX if mixed else 0.0,
    )  # fmt: skip

    def step() -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            taken = itertools.islice(batches, load.rows // load.batch_rows)
            return float(sum(len(each[sites[0]]) for each in taken))

    return Variant(step)


def variants(load: Load, work: Path) -> dict[str, Variant]:
    """All of them; files go to ``work``."""
    one, four = [load.site], list(load.sites)
    return {
        BARE: bare(load),
        "capture, 1 site": capture(load, one),
        "capture, 4 sites": capture(load, four),
        "store, 1 site": store(load, one, work / "one"),
        "store, 4 sites": store(load, four, work / "four"),
        "live, 1 site": live(load, one),
        "live, 4 sites": live(load, four),
        "SAELens, 1 site": saelens(load, one, mixed=True),
        "SAELens unmixed, 1 site": saelens(load, one, mixed=False),
        "SAELens, 4 sites": saelens(load, four, mixed=True),
    }


# (variant, base, goal); the first goal of GPT-2's shape is higher than that of other models.
_GOALS = (
    ("capture, 1 site", BARE, 0.90),
    ("store, 4 sites", BARE, 0.90),
    ("live, 1 site", BARE, 0.90),
    ("live, 1 site", "SAELens, 1 site", 1.5),
    ("live, 1 site", "SAELens unmixed, 1 site", 1.5),
    ("live, 4 sites", "SAELens, 4 sites", 1.5),
)


def compare(
    load: Load,
    work: Path,
    *,
    repeats: int,
    machine: dict[str, float],
    capture_goal: float = 0.90,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure every variant on one model.

    Args:
        work: directory for stores, which are removed again.
        machine: "flops", "bytes" and "disk", what the machine can do in a second.
        capture_goal: least ratio of capturing one site to the bare forward.

    Returns:
        plain values: tokens a second, ratios to the bare forward, peaks, floors, goals.
    """
    subject = load.subject
    rounds = interleaved(
        variants(load, work), repeats=repeats, device=subject.device, stage=subject.name, progress=progress
    )
    for name in ("one", "four"):
        shutil.rmtree(work / name, ignore_errors=True)
    return {
        "block": load.block,
        "sites": list(load.sites),
        "batch": load.batch,
        "n_ctx": load.tokens.shape[1],
        "batch_rows": load.batch_rows,
        "forwards_per_step": load.forwards,
        "floors": floors(load, machine),
        "variants": {name: _summary(rounds, name) for name in rounds.rates},
        "goals": [
            goal(f"{name} / {base}", rounds.ratio(name, base), capture_goal if i == 0 else least)
            for i, (name, base, least) in enumerate(_GOALS)
        ],
    }


def floors(load: Load, machine: dict[str, float]) -> dict[str, float]:
    """Tokens a second that nothing can exceed: arithmetic, copying, writing."""
    row = 4.0 * sum(load.subject.site(name).dim for name in load.sites)
    return {
        "forward": machine["flops"] / flops_per_token(load.subject, load.block, load.tokens.shape[1]),
        "copy of 4 sites": machine["bytes"] / (2 * row),
        "write of 4 sites": machine["disk"] / row,
    }


def goal(name: str, value: float, least: float) -> dict[str, Any]:
    """A ratio beside the least that is wanted."""
    return {"ratio": name, "value": value, "goal": least, "met": value >= least}


def _summary(rounds: Rounds, name: str) -> dict[str, Any]:
    ratios = rounds.ratios(name, BARE)
    return {
        "tokens_per_s": rounds.rate(name),
        "ratio": rounds.ratio(name, BARE),
        "ratio_range": [min(ratios), max(ratios)],
        "peak_bytes": rounds.peaks[name],
    }
