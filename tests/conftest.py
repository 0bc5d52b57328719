"""Fixtures shared by all rooms."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

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
