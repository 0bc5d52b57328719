"""Explanations as an artifact: there and back whatever they say, and damage that is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from mechlab.errors import MechlabError
from mechlab.features.explanations import Explanation, Explanations, load_explanations, save_explanations
from mechlab.features.rules import Clause, Rule, Token

RULE = Rule((Clause((Token((" a",)),), 1.5),))
HOSTILE = "</script>\u2028\r\n\u202eabc 🙂\0"


def test_there_and_back(tmp_path: Path) -> None:
    items = (Explanation(2, "person", HOSTILE, about={"n": [1]}), Explanation(0, "rules", "a", RULE))
    made = Explanations(items, (2**40, 3), 3, {1: HOSTILE})
    save_explanations(made, tmp_path / "e", config={}, seed=0, inputs={})
    assert load_explanations(tmp_path / "e") == made
    assert made.documents == (3, 2**40)


@pytest.mark.parametrize("name", ["explanations.jsonl", "about.json"])
@pytest.mark.parametrize("first", [b"[", b"\xff"])
def test_damage_is_named(name: str, first: bytes, tmp_path: Path) -> None:
    made = Explanations((Explanation(0, "person", "a"),), (), 1)
    file = save_explanations(made, tmp_path, config={}, seed=0, inputs={}).file(name)
    file.write_bytes(first + file.read_bytes()[1:])
    with pytest.raises(MechlabError, match="explanations cannot be read"):
        load_explanations(tmp_path)


def test_a_feature_outside_the_index_is_refused() -> None:
    for feature in (-1, 1):
        with pytest.raises(MechlabError, match="explanation of a feature that does not exist"):
            Explanations((Explanation(feature, "person", "a"),), (), 1)
