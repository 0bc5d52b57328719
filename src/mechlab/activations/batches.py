"""Well-mixed batches of activations, from a store or a live model."""

from __future__ import annotations

from typing import Any

from mechlab.activations.gather import StoreBatches
from mechlab.activations.live import Source
from mechlab.activations.ring import RingBatches
from mechlab.activations.store import Store
from mechlab.errors import MechlabError

BUFFER = 2**16


def shuffled(
    source: Store | Source,
    *,
    batch_size: int = 4096,
    buffer: int = BUFFER,
    seed: int = 0,
    epochs: int | None = 1,
    sites: list[str] | None = None,
    device: str = "cpu",
    state: dict[str, Any] | None = None,
) -> StoreBatches | RingBatches:
    """Mixed batches from a store or a live model; every row once per epoch.

    Args:
        source: a store, or ``live(...)``.
        batch_size: rows per batch; only the last (of an epoch, with a store) may be short.
        buffer: rows that are mixed with one another; rounded down to whole batches. From a live
            model they are held in memory; from a store nothing is held, and a buffer of all
            its rows gives a perfect shuffle.
        seed: decides the order.
        epochs: how often every row is given; None goes on for ever.
        sites, device: for a store, which sites to read (all by default) and where to put them. A
            live model's batches have its sites and stay on its device.
        state: what ``state()`` of an iterator with the same arguments returned: goes on there.

    Use it in a ``with`` block, or ``close`` it: a thread may run ahead of it. Raises MechlabError
    for sizes below 1, for a site that the store does not hold, and for a state that belongs to
    something else.
    """
    for name, value in (("batch_size", batch_size), ("buffer", buffer), ("epochs", epochs)):
        if value is not None and value < 1:
            raise MechlabError(f"{name} must be positive", value, "ask for at least 1")
    if isinstance(source, Store):
        return StoreBatches(
            source, source.sites if sites is None else tuple(sites), batch_size=batch_size, buffer=buffer,
            seed=seed, epochs=epochs, device=device, state=state,
        )  # fmt: skip
    return RingBatches(source, batch_size=batch_size, buffer=buffer, seed=seed, epochs=epochs, state=state)
