"""Models of three architectures and the bundled one, with tokens of theirs."""

from __future__ import annotations

import pytest
import torch

from mechlab.models.subject import Subject, load_model
from tiny import TINY, save_tiny_model

MAIN = ("gpt2", "gpt_neox", "llama")


@pytest.fixture(scope="session", params=[*MAIN, "fable"])
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    if request.param == "fable":
        return load_model("fable")
    return load_model(save_tiny_model(tmp_path_factory.mktemp("edits") / request.param, request.param))


@pytest.fixture(scope="session", params=[name for name in TINY if name not in MAIN])
def other(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """The other architectures: sliding windows, norms of queries, masked language models."""
    return load_model(save_tiny_model(tmp_path_factory.mktemp("others") / request.param, request.param))


@pytest.fixture(scope="session")
def tokens(subject: Subject) -> torch.Tensor:
    """Three rows of nine tokens, BOS first."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(3, subject.module.config.vocab_size, (3, 9), generator=generator)
    rows[:, 0] = subject.bos
    return rows
