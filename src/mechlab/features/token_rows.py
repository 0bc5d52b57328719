"""The sparse codes of a slice of a corpus, and its division by document."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Bool, Float, Int

from mechlab.errors import MechlabError


@dataclass(frozen=True)
class Rows:
    """One row per token, in stream order.

    Attributes:
        tokens: token id of each row. The BOS token is not among the rows.
        context: which forward pass a row came from; contiguous rows with equal context
            are consecutive tokens of one document.
        position: place of the token in its context, as the model saw it.
        document: document of the row. A context never crosses documents.
        values: activations, ≥ 0; 0 means not active.
        indices: feature of each value, in ``[0, d_sae)``.
        d_sae: number of features in the dictionary.

    Raises MechlabError for arrays that do not fit together, and for activations that are
    negative or not finite.
    """

    tokens: Int[np.ndarray, "row"]
    context: Int[np.ndarray, "row"]
    position: Int[np.ndarray, "row"]
    document: Int[np.ndarray, "row"]
    values: Float[np.ndarray, "row k"]
    indices: Int[np.ndarray, "row k"]
    d_sae: int

    def __post_init__(self) -> None:
        lengths = {len(getattr(self, each.name)) for each in fields(self) if each.name != "d_sae"}
        if len(lengths) != 1:
            raise MechlabError("rows differ in length", sorted(lengths), "give one entry per token")
        if self.values.shape != self.indices.shape:
            raise MechlabError(
                "values and indices differ in shape",
                f"{self.values.shape} and {self.indices.shape}",
                "give one feature per activation",
            )
        if not np.isfinite(self.values).all() or (self.values < 0).any():
            raise MechlabError(
                "activations are negative or not finite",
                f"minimum {self.values.min()}",
                "give codes after the activation function; index the two signs of abstopk apart",
            )

    def __len__(self) -> int:
        return len(self.tokens)

    def select(self, keep: Bool[np.ndarray, "row"]) -> Rows:
        """The rows where ``keep`` is true, in the same order. Keep whole contexts."""
        arrays = {each.name: getattr(self, each.name)[keep] for each in fields(self) if each.name != "d_sae"}
        return Rows(**arrays, d_sae=self.d_sae)


def context_starts(context: Int[np.ndarray, "row"]) -> Bool[np.ndarray, "row"]:
    """True on the first row of every run of equal ``context``."""
    first = np.ones(len(context), bool)
    first[1:] = context[1:] != context[:-1]
    return first


def split_by_document(rows: Rows, *, share: float = 0.5, seed: int = 0) -> tuple[Rows, Rows]:
    """Two slices with no document in common: to explain on, and to score on.

    Args:
        share: part of the documents that goes to the first slice, in (0, 1).

    Raises MechlabError when there are fewer than two documents or ``share`` is out of range.
    """
    documents = np.unique(rows.document)
    if len(documents) < 2:
        raise MechlabError("rows cannot be divided by document", f"{len(documents)} documents", "add text")
    if not 0 < share < 1:
        raise MechlabError("share is out of range", share, "give a number between 0 and 1")
    count = min(max(round(share * len(documents)), 1), len(documents) - 1)
    chosen = np.random.default_rng(seed).permutation(documents)[:count]
    first = np.isin(rows.document, chosen)
    return rows.select(first), rows.select(~first)
