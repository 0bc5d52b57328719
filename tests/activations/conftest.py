"""A tiny model and corpus for the tests of this room."""

from __future__ import annotations

from pathlib import Path

import pytest

from mechlab.data.corpus import Corpus, open_corpus
from mechlab.models.subject import Subject, load_model


@pytest.fixture(scope="module")
def subject(tiny_model: Path) -> Subject:
    return load_model(tiny_model)


@pytest.fixture(scope="module")
def corpus(tiny_corpus: Path) -> Corpus:
    return open_corpus(tiny_corpus)
