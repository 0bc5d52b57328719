"""Several processes on one job: who am I, and messages between us.

``torchrun`` sets RANK and WORLD_SIZE; without them a process is alone and nothing here costs
anything. Messages are small Python objects over gloo, which needs no GPU.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch.distributed as dist

from mechlab.errors import MechlabError

# A rank may wait this long for the slowest one; harvests of days differ by minutes.
_PATIENCE = timedelta(hours=12)

Result = TypeVar("Result")


@dataclass(frozen=True)
class Ranks:
    """The processes that work together.

    Attributes:
        rank: number of this process.
        world: how many there are.
    """

    rank: int = 0
    world: int = 1

    def first_does(self, work: Callable[[], Result]) -> Result:
        """Run ``work`` in the first process; its result, or its MechlabError, comes back in every process."""
        found: list[Any] = [None]
        if self.rank == 0:
            found[0] = _attempt(work)
        if self.world > 1:
            dist.broadcast_object_list(found)
        value, error = found[0]
        if error is not None:
            raise error
        return cast(Result, value)

    def each_does(self, work: Callable[[], Result]) -> Result:
        """Run ``work`` in every process; when all have ended, a MechlabError of one is raised in all."""
        found: list[Any] = [None] * self.world
        mine = _attempt(work)
        if self.world > 1:
            dist.all_gather_object(found, mine[1])
        for error in (*found, mine[1]):
            if error is not None:
                raise error
        return cast(Result, mine[0])


def _attempt(work: Callable[[], Result]) -> tuple[Result | None, MechlabError | None]:
    try:
        return work(), None
    except MechlabError as error:
        return None, error


@contextlib.contextmanager
def together() -> Iterator[Ranks]:
    """Join the other processes that ``torchrun`` started; leaves a group that was there before alone."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Ranks()
        return
    ours = not dist.is_initialized()
    if ours:
        try:
            dist.init_process_group("gloo", timeout=_PATIENCE)
        except (ValueError, RuntimeError) as error:
            raise MechlabError(
                "processes do not find each other", error, "start them with torchrun, or unset WORLD_SIZE"
            ) from error
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size())
    finally:
        if ours:
            dist.destroy_process_group()
