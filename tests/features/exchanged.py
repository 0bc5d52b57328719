"""Small indexes whose passages differ in length and hold characters split into bytes."""

from __future__ import annotations

import contextlib
import resource
import signal
from collections.abc import Iterator

import numpy as np

from mechlab.features.index import FeatureIndex, index_of
from mechlab.features.text import Text
from mechlab.features.vocabulary import Vocabulary

WORDS = tuple(f" w{number}" for number in range(20))
SMILE = "🙂".encode()
VOCABULARY = Vocabulary(
    (*WORDS, *(f"<0x{byte:02X}>" for byte in SMILE), ""),
    {len(WORDS) + place: bytes([byte]) for place, byte in enumerate(SMILE)},
)
SMILE_IDS = list(range(len(WORDS), len(WORDS) + 4))
EMPTY = len(WORDS) + 4


def random_index(seed: int, passages: int = 12, features: int = 5, longest: int = 30) -> FeatureIndex:
    """Passages of random words and smiles; every third feature is dead, the others are sparse."""
    random = np.random.default_rng(seed)
    tokens: list[int] = []
    lengths = []
    for _ in range(passages):
        passage: list[int] = []
        while len(passage) < random.integers(1, longest):
            passage += SMILE_IDS if random.random() < 0.1 else [int(random.integers(len(WORDS)))]
        tokens += passage
        lengths.append(len(passage))
    document = np.repeat(np.arange(passages) * 3 + 7, lengths)
    position = np.concatenate([np.arange(length) + 1 for length in lengths])
    text = Text(np.array(tokens, np.int32), document + 100, position, document, VOCABULARY)
    found = {}
    for feature in range(features):
        active = random.random(len(text)) < (0 if feature % 3 == 2 else 0.15)
        # Numbers that float16 holds, so that nothing is lost on the way.
        strength = random.integers(1, 64, len(text)) / 8
        found[feature] = (active * strength).astype(np.float64)
    return index_of(text, found, site="blocks.2.hook_resid_post")


@contextlib.contextmanager
def full_disk(size: int) -> Iterator[None]:
    """No file can grow beyond ``size`` bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, old)


def same_index(left: FeatureIndex, right: FeatureIndex) -> None:
    """Assert that two indexes say the same of the same text."""
    for name in ("tokens", "context", "position", "document"):
        np.testing.assert_array_equal(getattr(left.text, name), getattr(right.text, name))
    np.testing.assert_array_equal(left.indptr, right.indptr)
    np.testing.assert_array_equal(left.row, right.row)
    np.testing.assert_array_equal(left.value, right.value)
