"""Who reads for scorers that ask how probable a text is after another: a causal model, or word counts."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from jaxtyping import Float

from mechlab.errors import MechlabError
from mechlab.features.continuations import log_probabilities
from mechlab.models.subject import Subject

Reader = Callable[[Sequence[tuple[str, str]]], Float[np.ndarray, "pair"]]
"""(first, second) texts → log p(second | first) in nats; NaN for a pair that it cannot read."""

_EDGES = ".,;:!?\"'()[]"


def model_reader(subject: Subject, *, batch: int = 16) -> Reader:
    """A causal model; pairs longer than its context are not read.

    Args:
        subject: not necessarily the model that is explained.
        batch: pairs in one forward.

    Raises MechlabError for a model that is not causal, when it reads.
    """
    return lambda pairs: log_probabilities(subject, pairs, batch=batch)


def word_reader(texts: Iterable[str], *, copied: float = 0.1) -> Reader:
    """Word counts, with the words of the first text more probable: needs no weights, and no file.

        p(w | first) = (1 - c) n(w) / N + c n_first(w) / N_first

    A cache language model (Kuhn & De Mori 1990, *A cache-based natural language model for speech
    recognition*) whose cache is the first text alone. What is no word of the texts, such as "ing", is
    taken for a piece of words: it counts for those that begin or end with it, as frequent as they are.
    A weak reader: it sees what is named, and nothing of what is said about it. Scores with it are a
    floor, for offline use and tests.

    Args:
        texts: what the counts are of; a word that is not in them counts half a time.
        copied: c, the share of words that are taken from the first text.

    Raises MechlabError when the texts hold no words, or the share is not between 0 and 1.
    """
    if not 0 < copied < 1:
        raise MechlabError("share of copied words is not between 0 and 1", copied, "use 0.1")
    counts = Counter(word for text in texts for word in words_of(text))
    total = counts.total()
    if not total:
        raise MechlabError("texts to count words in are empty", remedy="give some text")

    @functools.cache
    def meant(named: str) -> dict[str, float]:
        """Words that a string of the first text stands for, with shares of 1."""
        whole = {word: n for word, n in counts.items() if word.startswith(named) or word.endswith(named)}
        if named in counts or not whole:
            return {named: 1.0}
        return {word: n / sum(whole.values()) for word, n in whole.items()}

    @functools.lru_cache(4)
    def cached(first: str) -> tuple[dict[str, float], int]:
        words: dict[str, float] = {}
        for named, n in Counter(words_of(first)).items():
            for word, share in meant(named).items():
                words[word] = words.get(word, 0.0) + n * share
        return words, max(len(words_of(first)), 1)

    def read(pairs: Sequence[tuple[str, str]]) -> Float[np.ndarray, "pair"]:
        found = np.zeros(len(pairs))
        for row, (first, second) in enumerate(pairs):
            cache, size = cached(first)
            for word in words_of(second):
                usual = max(counts[word], 0.5) / total
                found[row] += np.log((1 - copied) * usual + copied * cache.get(word, 0.0) / size)
        return found

    return read


def words_of(text: str) -> list[str]:
    """Lower-case words without the punctuation beside them."""
    stripped = (word.strip(_EDGES) for word in text.lower().split())
    return [word for word in stripped if word]
