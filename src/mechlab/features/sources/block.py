"""Blocks of consecutive rows, and ways to cut them: equally large, or by passage."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

BLOCK = 4096
COLUMNS = ("tokens", "context", "position", "document")


@dataclass(frozen=True)
class Block:
    """Consecutive rows of a source.

    Attributes:
        tokens, context, position, document: as in ``Text``.
        values: site → activations.
    """

    tokens: Int[np.ndarray, "row"]
    context: Int[np.ndarray, "row"]
    position: Int[np.ndarray, "row"]
    document: Int[np.ndarray, "row"]
    values: dict[str, Float[Tensor, "row _dim"]]

    def __len__(self) -> int:
        return len(self.tokens)

    def cut(self, start: int, stop: int) -> Block:
        """Rows ``start`` to ``stop``."""
        columns = {name: getattr(self, name)[start:stop] for name in COLUMNS}
        return Block(**columns, values={site: value[start:stop] for site, value in self.values.items()})


def apart(blocks: Iterable[Block]) -> Generator[Block, None, None]:
    """Contexts renumbered where tokens were left out inside a document, so that passages have no holes.

    Numbers stay as they are without such holes.
    """
    gaps, before = 0, (-1, 0, 0)
    for block in blocks:
        context, position, document = (
            np.concatenate([[last], getattr(block, name).astype(np.int64)])
            for last, name in zip(before, ("context", "position", "document"), strict=True)
        )
        same = (np.diff(context) == 0) & (np.diff(document) == 0)
        number = gaps + np.cumsum(same & (np.diff(position) != 1))
        if len(block):
            before = (int(context[-1]), int(position[-1]), int(document[-1]))
            gaps = int(number[-1])
        yield replace(block, context=(block.context + number).astype(np.int32))


def regrouped(blocks: Iterable[Block], size: int = BLOCK) -> Iterator[Block]:
    """The same rows in blocks of ``size``, the last one perhaps smaller."""
    held: list[Block] = []
    count = 0
    for block in blocks:
        while count + len(block) >= size:
            first = size - count
            yield joined([*held, block.cut(0, first)])
            block, held, count = block.cut(first, len(block)), [], 0
        if len(block):
            held.append(block)
            count += len(block)
    if held:
        yield joined(held)


def passages(blocks: Iterable[Block]) -> Iterator[Block]:
    """The same rows, a passage (a run of one context within one document) at a time."""
    held: list[Block] = []
    for block in blocks:
        if not len(block):
            continue
        if held and not _continues(held[-1], block):
            yield joined(held)
            held = []
        new = (np.diff(block.context) != 0) | (np.diff(block.document) != 0)
        cuts = [0, *(np.flatnonzero(new) + 1).tolist(), len(block)]
        for start, stop in itertools.pairwise(cuts):
            held.append(block.cut(start, stop))
            if stop < len(block):
                yield joined(held)
                held = []
    if held:
        yield joined(held)


def _continues(before: Block, block: Block) -> bool:
    same = before.context[-1] == block.context[0] and before.document[-1] == block.document[0]
    return bool(same)


def joined(parts: Sequence[Block]) -> Block:
    """Blocks one after another."""
    if len(parts) == 1:
        return parts[0]
    columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in COLUMNS}
    values = {site: torch.cat([part.values[site] for part in parts]) for site in parts[0].values}
    return Block(**columns, values=values)
