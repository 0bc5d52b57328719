"""A scripted model that judges, explains and simulates by executing the rules it reads in prompts."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

import numpy as np

from mechlab.errors import MechlabError
from mechlab.features.index import FeatureIndex, index_of
from mechlab.features.llm.showing import parts, window
from mechlab.features.rules import Clause, Matcher, Rule, Token, parse_rule
from mechlab.features.text import Text, text_of
from mechlab.features.vocabulary import Vocabulary

_BARE = "lily ben cat dog sun tree red blue ran sat on the a big old one"
WORDS = tuple(f" {word}" for word in _BARE.split(" ")) + tuple(f" w{number}" for number in range(24))
_WINDOW = re.compile(r"^Window \d+ \(from position (\d+)\): (.*)$", re.MULTILINE)
_TOPIC = "The feature responds to: "


def random_text(documents: int, length: int, seed: int = 0, first: int = 0) -> Text:
    """Documents of random words."""
    generator = np.random.default_rng(seed)
    passages = [generator.integers(0, len(WORDS), length).astype(np.int32) for _ in range(documents)]
    return text_of(passages, Vocabulary(WORDS), first=first)


def word_rules(count: int) -> list[Rule]:
    """Rules that name one word each."""
    return [Rule((Clause((Token((WORDS[number],)),), 2.0),)) for number in range(count)]


def planted(text: Text, rules: list[Rule]) -> FeatureIndex:
    """An index of features that obey rules."""
    matcher = Matcher(text)
    return index_of(text, {number: matcher.predict(rule) for number, rule in enumerate(rules)})


class Grader:
    """Answers the prompts of judges, explainers, simulators and writers about one text.

    Without an explanation, or with one that is no rule, its verdict is a coin of the window's own.
    """

    def __init__(self, text: Text, width: int) -> None:
        self.text, self.width, self._matcher = text, width, Matcher(text)
        self._known: dict[str, np.ndarray | None] = {}
        self._rows: dict[tuple[int, str], int] = {}
        last = np.append(np.flatnonzero(text.starts)[1:], len(text))[text.passage]
        for row in np.flatnonzero(np.arange(len(text)) + width <= last).tolist():
            self._rows[int(text.position[row]), window(text, row, row + width)] = row

    def __call__(self, body: dict[str, Any]) -> str:
        system, user = body["messages"][0]["content"], body["messages"][-1]["content"]
        if "Predict the feature's activation" in system:
            return self._simulate(user)
        if "Write short texts" in system:
            count = int(re.findall(r"Write (\d+) texts", user)[0])
            return json.dumps({"positive": ["a lily"] * count, "negative": ["a cat"] * count})
        if "in your own words" in system:
            return json.dumps({"explanation": user.removeprefix(_TOPIC)})
        if "Say in one sentence" in system:
            return self._explain(system, user)
        return self._judge(system, user)

    def topic(self, user: str) -> str:
        """What the feature is said to respond to."""
        return user.split("\n")[0].removeprefix(_TOPIC) if user.startswith(_TOPIC) else ""

    def verdict(self, topic: str, position: str, shown: str) -> int:
        """1 where the rule fires in a window, or on most of its marked tokens."""
        bare = shown.replace("<<", "").replace(">>", "")
        start = self._rows[int(position), bare]
        fires = self._fires(topic)
        if fires is None:
            return hashlib.sha256(shown.encode()).digest()[0] % 2
        predicted, marks = fires[start : start + self.width], self.marks(start, shown)
        return int(predicted.any()) if not marks.any() else int(2 * predicted[marks].sum() > marks.sum())

    def _fires(self, topic: str) -> np.ndarray | None:
        """On which rows a rule fires; None for what is no rule."""
        if topic not in self._known:
            try:
                self._known[topic] = self._matcher.predict(parse_rule(topic)) > 0
            except MechlabError:
                self._known[topic] = None
        return self._known[topic]

    def marks(self, start: int, shown: str) -> np.ndarray:
        """Which tokens are marked in what was shown."""
        marks, at = np.zeros(self.width, bool), 0
        for said, first, last in parts(self.text.tokens[start : start + self.width], self.text):
            bare = said.lstrip(" ")
            marked = f"{said[: len(said) - len(bare)]}<<{bare}>>"
            marks[first:last] = shown.startswith(marked, at)
            at += len(marked) if marks[first] else len(said)
        return marks

    def _judge(self, system: str, user: str) -> str:
        topic, windows = self.topic(user), _WINDOW.findall(user)
        if '"intruder"' in system:
            words = [re.findall(r"<<(.*?)>>", shown) for _, shown in windows]
            counts = [
                sum(word in other for other in words for word in own) / max(len(own), 1) for own in words
            ]
            return json.dumps({"intruder": int(np.argmin(counts)) + 1})
        return json.dumps({"answers": [self.verdict(topic, *each) for each in windows]})

    def _explain(self, system: str, user: str) -> str:
        marked = re.findall(r"<<(.*?)>>", user)
        word = max(set(marked), key=marked.count)
        told = {"explanation": Rule((Clause((Token((f" {word}",)),), 2.0),)).sentence()}
        return json.dumps({"reasoning": "all alike", **told} if '"reasoning"' in system else told)

    def _simulate(self, user: str) -> str:
        tokens = [json.loads(line.split(": ", 1)[1]) for line in user.split("\n")[2:]]
        words = parse_rule(self.topic(user)).clauses[0].atoms[0].words  # type: ignore[union-attr]
        return json.dumps({"activations": [10 * (token in words) for token in tokens]})
