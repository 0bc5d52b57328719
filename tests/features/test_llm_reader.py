"""The scorer of interventions behind a (scripted) server, over real HTTP."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from features.llm_questions import job
from mechlab.features.explanations import Explanation
from mechlab.features.llm.server import Answer, ScriptedServer, first
from mechlab.features.scoring.intervention import Steered, intervention_score
from mechlab.features.scoring.llm_reader import llm_reader
from mechlab.features.vocabulary import Vocabulary


def answer(body: dict[str, Any]) -> Answer:
    """Yes to a passage that has the described word."""
    passage, word = body["messages"][-1]["content"].split("\n\nDescription: ")
    return Answer(json.dumps({"answers": [int(word in passage)]}), 0.8)


@pytest.mark.parametrize(("logprobs", "sure"), [(True, 0.8), (False, 0.99)])
def test_the_score_is_the_change_of_log_yes(tmp_path: Path, logprobs: bool, sure: float) -> None:
    vocabulary = Vocabulary((" stone", " dog"))
    clean, steered, random = (torch.tensor(rows) for rows in ([[0], [0]], [[1], [1]], [[[0], [0]]]))
    written = Steered(vocabulary, clean, steered, random, 1.0, (1.0,), 0.5)
    with ScriptedServer(answer, faults=first("429")) as server:
        reader = llm_reader(job(server.url, tmp_path / "cache"), logprobs=logprobs)
        found = intervention_score(Explanation(0, "person", "dog"), written, reader)
    assert found.value == pytest.approx(math.log(sure) - math.log(1 - sure))
    assert found.null is not None
    assert found.null.value == pytest.approx(0.0)


def test_refusals_are_no_answers(tmp_path: Path) -> None:
    with ScriptedServer(answer, faults=first("refusal", "refusal", "refusal")) as server:
        assert np.isnan(llm_reader(job(server.url, tmp_path / "cache"))(["a dog"], "dog")).all()
