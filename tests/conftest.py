"""Fixtures shared by all rooms."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tiny import WORDS, save_tiny_model

# Before torch is imported: workers that each spin two threads on two cores slow one another
# down several times over. Child processes inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")

# A shell's background job ignores interrupts, and so would the programs that tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared() -> Path:
    """Directory of real models and corpora; the test is skipped where it is absent."""
    path = Path(os.environ.get("MECHLAB_TEST_DATA", ROOT.parent / "shared"))
    if not (path / "models" / "stories260K").is_dir():
        pytest.skip(f"no test data in {path} (set MECHLAB_TEST_DATA)")
    return path


@pytest.fixture(scope="session")
def stories_model(shared: Path) -> Path:
    """A real 260K-parameter Llama with grouped-query attention."""
    return shared / "models" / "stories260K"


@pytest.fixture(scope="session")
def stories_data(shared: Path) -> Path:
    """6,144 stories, one JSON object a line."""
    return shared / "data" / "stories.jsonl"


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a tiny random GPT-2."""
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny", "gpt2")


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A JSONL corpus of 400 short random documents over ``WORDS``."""
    import json
    import random

    generator = random.Random(0)
    path = tmp_path_factory.mktemp("corpus") / "tiny.jsonl"
    rows = []
    for i in range(400):
        words = generator.choices(WORDS[3:], k=generator.randint(10, 60))
        rows.append(json.dumps({"id": i, "text": " ".join(words)}))
    path.write_text("\n".join(rows) + "\n")
    return path
