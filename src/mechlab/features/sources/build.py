"""From rows with codes to an index: what all sources of features share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechlab.features.building import IndexWriter, load_index
from mechlab.features.index import FeatureIndex
from mechlab.features.sources.block import Block
from mechlab.features.sources.rows import RowSource
from mechlab.sae.codes import Codes

Progress = Callable[[int, int], None]


def build(
    source: RowSource,
    path: Path | str,
    n_features: int,
    blocks: Callable[[], Iterable[Block]],
    encode: Callable[[Block], Codes],
    *,
    about: Mapping[str, Any],
    inputs: Mapping[str, str],
    seed: int = 0,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> FeatureIndex:
    """Write an index of rows and their codes, or open the one that is there already.

    A build that was interrupted goes on: of rows that are stored already no codes are computed.

    Args:
        blocks: opens the rows, block by block; not called when there is nothing to do.
        encode: codes of a block, at least 0.
        about: what the features are; the source adds which text it is.
        inputs: role → fingerprint of what the features are made from; the source adds its own.
        progress: called with (rows so far, rows there will be or 0).

    Raises MechlabError as ``IndexWriter`` does.
    """
    told, given = {**about, "text": source.about()}, {**source.inputs(), **inputs}
    with IndexWriter(path, source.vocabulary, n_features, told, seed, given, overwrite) as writer:
        done = 0
        for block in blocks() if writer.finished is None else ():
            if not writer.skip(len(block)):
                codes = encode(block)
                values, indices = codes.values.to("cpu", torch.float32), codes.indices.cpu()
                writer.add(
                    block.tokens, block.context, block.position, block.document,
                    values.numpy(), indices.numpy(),
                )  # fmt: skip
            done += len(block)
            if progress:
                progress(done, source.n_rows and max(done, source.n_rows))
        if writer.finished is None:
            writer.finish()
    return load_index(path)


def padded(
    row: Int[Tensor, "entry"], feature: Int[Tensor, "entry"], value: Float[Tensor, "entry"], n_rows: int
) -> Codes:
    """Codes of entries ordered by row."""
    counts = torch.bincount(row, minlength=n_rows)
    k = max(1, int(counts.max())) if n_rows else 1
    slot = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
    values, indices = value.new_zeros(n_rows, k), feature.new_zeros(n_rows, k)
    values[row, slot], indices[row, slot] = value, feature
    return Codes(values, indices)
