"""Activation stores: one row per token on disk, written shard by shard so that a harvest resumes.

A store is an artifact of kind "activations". Each shard is a safetensors file with one
entry per row in ``tokens``, ``document``, ``context`` and ``position`` (position 0 is BOS,
which is never stored) and, for every site, the activations ``[row, dim]``.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from mechlab.activations.capture import read_sites
from mechlab.artifacts import Artifact, open_artifact, writing
from mechlab.data.corpus import Contexts, Corpus, contexts
from mechlab.errors import MechlabError
from mechlab.files import write_atomic
from mechlab.models.subject import Subject

KIND = "activations"
BATCH = 32
# A shard is the unit of resuming: small enough that a kill costs seconds.
_BATCHES_PER_SHARD = 16
_COLUMNS = ("tokens", "document", "context", "position")


@dataclass(frozen=True)
class Store:
    """A finished activation store."""

    artifact: Artifact

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the stored sites."""
        return tuple(self.artifact.manifest.config["sites"])

    @property
    def n_rows(self) -> int:
        """Number of stored tokens."""
        return int(self.artifact.manifest.facts["rows"])

    def column(self, name: str) -> Int[Tensor, "row"]:
        """One of "tokens", "document", "context", "position" for every row, in stream order."""
        if name not in _COLUMNS:
            raise MechlabError("store has no column", name, f"use {', '.join(_COLUMNS)}")
        return torch.cat([shard.get_tensor(name) for shard in self._shards()])

    def activations(self, site: str) -> Float[Tensor, "row dim"]:
        """Activations of every row at ``site``, in stream order, in memory."""
        if site not in self.sites:
            raise MechlabError("store does not hold the site", site, f"it holds {', '.join(self.sites)}")
        return torch.cat([shard.get_tensor(site) for shard in self._shards()])

    def _shards(self) -> Iterator[safe_open]:
        for name in self.artifact.manifest.files:
            with safe_open(str(self.artifact.file(name)), framework="pt") as shard:
                yield shard


def open_store(path: Path | str) -> Store:
    """Open the store at ``path``; MechlabError when there is none or it is damaged."""
    return Store(open_artifact(path, KIND))


def harvest(
    subject: Subject,
    corpus: Corpus,
    sites: str | Sequence[str],
    out: Path | str,
    *,
    tokens: int,
    split: str = "train",
    n_ctx: int | None = None,
    seed: int = 0,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Store:
    """Run the model over a corpus and store the activations of every token but BOS.

    Args:
        sites: one site name or several.
        out: directory of the store; an unfinished harvest of the same settings is resumed.
        tokens: how many rows to store; fewer when the split has fewer.
        split: which documents to read ("train", "validation" or "test").
        n_ctx: context length in tokens, BOS included; the model's own by default.
        progress: called with (rows so far, rows wanted).

    Raises MechlabError for a missing site, a context longer than the model's, an output
    directory that holds something else, a full disk, and NaN or infinite activations.
    """
    names = [sites] if isinstance(sites, str) else list(sites)
    for name in names:
        subject.site(name)
    n_ctx = subject.n_ctx if n_ctx is None else n_ctx
    check_context(subject, n_ctx)
    if tokens < 1:
        raise MechlabError("number of tokens must be positive", tokens, "ask for at least 1")
    config = {
        "sites": names,
        "corpus": corpus.name,
        "column": corpus.column,
        "split": split,
        "tokens": tokens,
        "n_ctx": n_ctx,
        "bos": "stripped" if subject.bos is not None else "none",
    }
    inputs = {"model": subject.fingerprint, "corpus": corpus.fingerprint}
    with writing(out, KIND, config=config, seed=seed, inputs=inputs, overwrite=overwrite) as writer:
        if writer.finished is None:
            shards = _finished_shards(writer.work)
            rows = sum(count for _, count in shards)
            stream = contexts(corpus.documents(split), subject.tokenizer, n_ctx=n_ctx, batch=BATCH)
            stream = itertools.islice(stream, len(shards) * _BATCHES_PER_SHARD, None)
            files = [name for name, _ in shards]
            while rows < tokens and (batches := list(itertools.islice(stream, _BATCHES_PER_SHARD))):
                shard = _read(subject, names, batches, len(files) * _BATCHES_PER_SHARD * BATCH)
                shard = {key: value[: tokens - rows].contiguous() for key, value in shard.items()}
                name = f"shard-{len(files):05d}.safetensors"
                write_atomic(writer.work / name, save(shard))
                files.append(name)
                rows += len(shard["tokens"])
                if progress:
                    progress(rows, tokens)
            if rows == 0:
                raise MechlabError(
                    "corpus has no tokens in this split", f"{corpus.name}, {split}", "add documents"
                )
            writer.commit(files, facts={"rows": rows})
        assert writer.finished is not None
        return Store(writer.finished)


def check_context(subject: Subject, n_ctx: int) -> None:
    """MechlabError unless contexts of ``n_ctx`` tokens, BOS included, fit the model."""
    if not 2 <= n_ctx <= subject.n_ctx:
        raise MechlabError("context length is out of range", n_ctx, f"between 2 and {subject.n_ctx}")


def _read(subject: Subject, sites: list[str], batches: list[Contexts], first: int) -> dict[str, Tensor]:
    """One shard's columns; ``first`` is the number of its first context in the stream."""
    parts: dict[str, list[Tensor]] = {name: [] for name in (*_COLUMNS, *sites)}
    for batch in batches:
        keep = batch.mask.clone()
        if subject.bos is not None:
            keep[:, 0] = False
        row, position = keep.nonzero(as_tuple=True)
        parts["tokens"].append(batch.tokens[keep].to(torch.int32))
        parts["document"].append(batch.document[row])
        parts["context"].append((first + row).to(torch.int32))
        parts["position"].append(position.to(torch.int32))
        first += len(batch.tokens)
        for name, value in read_sites(subject, batch.tokens, sites).items():
            kept = value[keep.to(value.device)].cpu()
            finite = torch.isfinite(kept).all(-1)
            if not finite.all():
                at = int((~finite).nonzero()[0])
                raise MechlabError(
                    f"activations at {name} are NaN or infinite",
                    f"document {int(batch.document[row[at]])}, position {int(position[at])}",
                    "check the model's weights, or load it with --dtype float32",
                )
            parts[name].append(kept)
    return {name: torch.cat(tensors) for name, tensors in parts.items()}


def _finished_shards(work: Path) -> list[tuple[str, int]]:
    """Shards that an interrupted harvest left whole: (name, rows), without gaps."""
    found: list[tuple[str, int]] = []
    for number in itertools.count():
        name = f"shard-{number:05d}.safetensors"
        if not (work / name).is_file():
            return found
        with safe_open(str(work / name), framework="pt") as shard:
            found.append((name, int(shard.get_slice("tokens").get_shape()[0])))
    return found
