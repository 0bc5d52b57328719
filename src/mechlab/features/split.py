"""Division of a text by document: what an explainer sees is never scored."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from mechlab.errors import MechlabError


@dataclass(frozen=True)
class Split:
    """Which documents are for explaining; all others are for scoring.

    A document's half follows from its number and the seed alone, so that it is the same in every
    index in which the document occurs.

    Attributes:
        share: part of the documents that is for explaining, strictly between 0 and 1.
        seed: another seed is another division.
    """

    share: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise MechlabError("share is out of range", self.share, "give a number between 0 and 1")

    def explains(self, document: Int[np.ndarray, "row"]) -> Bool[np.ndarray, "row"]:
        """True on the rows of documents that explainers may see."""
        # splitmix64's finaliser (Steele, Lea & Flood 2014), so that neighbouring numbers share nothing.
        with np.errstate(over="ignore"):
            z = document.astype(np.uint64) + np.uint64((self.seed * 0x9E3779B97F4A7C15) % 2**64)
            z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            z = z ^ (z >> np.uint64(31))
        below: np.ndarray = z < np.uint64(int(self.share * 2**63) * 2)
        return below

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)
