"""Rows of two models on the same tokens, for the latents of dictionaries that compare them."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mechlab.activations.store import Store
from mechlab.errors import MechlabError
from mechlab.features.sources.block import Block, regrouped
from mechlab.features.sources.rows import StoreRows, store_rows
from mechlab.features.vocabulary import Vocabulary
from mechlab.models.subject import Subject
from mechlab.sae.pairs import A, B, StorePair, pairs


@dataclass(frozen=True)
class PairRows:
    """Rows of two stores; made by ``pair_rows``. Sites have "A:" or "B:" in front, as in training."""

    pair: StorePair
    a: StoreRows
    b: StoreRows

    @property
    def vocabulary(self) -> Vocabulary:
        """The first model's; the tokens are the same."""
        return self.a.vocabulary

    @property
    def n_rows(self) -> int:
        """Rows in either store."""
        return self.a.n_rows

    @property
    def sites(self) -> tuple[str, ...] | None:
        """Sites of both stores."""
        return self.pair.sites

    @property
    def device(self) -> torch.device:
        """Where activations are."""
        return self.a.device

    def inputs(self) -> dict[str, str]:
        """Fingerprints of both models, and of the stores."""
        return self.pair.fingerprints()

    def about(self) -> dict[str, Any]:
        """Corpus and split, with both models' names."""
        return {**self.a.about(), "other_model_name": self.b.about()["model_name"]}

    def blocks(self, sites: Sequence[str]) -> Generator[Block, None, None]:
        """See ``RowSource``."""
        own = {model: [site[len(A) :] for site in sites if site.startswith(model)] for model in (A, B)}
        both = (regrouped(rows.blocks(own[model])) for model, rows in ((A, self.a), (B, self.b)))
        for left, right in zip(*both, strict=True):
            values = {A + site: value for site, value in left.values.items()}
            values |= {B + site: value for site, value in right.values.items()}
            yield Block(left.tokens, left.context, left.position, left.document, values)


def pair_rows(
    a: Store, b: Store, subjects: tuple[Subject, Subject], *, device: torch.device | str = "cpu"
) -> PairRows:
    """Rows of two stores made from two models on the same tokens.

    Raises MechlabError when they differ in their tokens, or come from other models.
    """
    first, second = (store_rows(each, who, device=device) for each, who in zip((a, b), subjects, strict=True))
    if first.bos != second.bos:
        raise MechlabError("models have different BOS tokens", (first.bos, second.bos), "compare others")
    return PairRows(pairs(a, b), first, second)
