"""A corpus of random tokens with features planted in it, whose true rules are known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from mechlab.features.token_rows import Rows, context_starts, split_by_document

VOCABULARY = 400
TOKEN, SET, PAIR, AFTER, NOISE, DEAD, DENSE, RARE = range(8)
NAMES = ("token", "set", "pair", "after", "noise", "dead", "dense", "rare")


@dataclass(frozen=True)
class Planted:
    rows: Rows
    explain: Rows
    held_out: Rows


def plant(seed: int = 0, documents: int = 600, contexts: int = 2, length: int = 70) -> Rows:
    """Random tokens; ten ids near 0 are four times as frequent as the others."""
    rng = np.random.default_rng(seed)
    weights = np.ones(VOCABULARY)
    weights[:10] = 4
    n = documents * contexts * length
    tokens = rng.choice(VOCABULARY, n, p=weights / weights.sum())
    context = np.repeat(np.arange(documents * contexts), length)
    document = context // contexts
    # Pairs 30 → 31 are rare by chance: write some in, inside contexts.
    inside = np.flatnonzero(~context_starts(context))
    at = rng.choice(inside, n // 60, replace=False)
    tokens[at - 1], tokens[at] = 30, 31
    tokens[tokens == VOCABULARY - 1] = 0
    tokens[(document < 2) & (np.arange(n) % length == 5)] = VOCABULARY - 1
    before = np.roll(tokens, 1)
    before[context_starts(context)] = -1
    active = np.zeros((n, 8), bool)
    active[:, TOKEN] = tokens == 50
    active[:, SET] = np.isin(tokens, np.arange(60, 66))
    active[:, PAIR] = (before == 30) & (tokens == 31)
    active[:, AFTER] = before == 80
    active[:, NOISE] = rng.random(n) < 0.01
    active[:, DENSE] = True
    active[:, RARE] = tokens == VOCABULARY - 1
    strength = rng.uniform(0.5, 2.0, (n, 8)).astype(np.float32)
    return Rows(
        tokens=tokens.astype(np.int64),
        context=context,
        position=np.arange(n) % length + 1,
        document=document,
        values=np.where(active, strength, np.float32(0)),
        indices=np.tile(np.arange(8), (n, 1)),
        d_sae=8,
    )


@pytest.fixture(scope="session")
def planted() -> Planted:
    rows = plant()
    return Planted(rows, *split_by_document(rows, seed=1))


@pytest.fixture
def decode():
    return lambda token: f" t{token}"
