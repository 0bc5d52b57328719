"""Scores of many features, their totals, and their artifact."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mechlab.artifacts import Artifact, open_artifact, writing
from mechlab.features.scoring.metrics import over_features
from mechlab.files import canonical_json, write_atomic
from mechlab.scores import Score

KIND = "feature-scores"
_FILE = "scores.json"


@dataclass(frozen=True)
class Scored:
    """One score of one explanation.

    Attributes:
        feature, explainer: what was scored; the explainer is "" where no explanation is needed.
        scorer: what was measured ("detection", "token f1").
        score: with interval, and the score of another feature's explanation as its null.
        base_rate: share of the windows (of the tokens, for token scores) in which the feature is active.
        failed: items without a usable answer; they do not count for or against.
        n_positive, n_negative: items that do count.
    """

    feature: int
    explainer: str
    scorer: str
    score: Score
    base_rate: float
    failed: int
    n_positive: int
    n_negative: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**self.__dict__, "score": self.score.to_dict()}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Scored:
        """The inverse of ``to_dict``."""
        return cls(**{**fields, "score": Score.from_dict(fields["score"])})


@dataclass(frozen=True)
class Unscored:
    """Why an explanation has no score from a scorer; both names are "" where no scorer was to blame."""

    feature: int
    explainer: str
    scorer: str
    reason: str


@dataclass(frozen=True)
class Total:
    """One measure of one explainer over all features that have it.

    Attributes:
        mean, median: over features, with intervals over features and the same of the nulls.
        unscored: explanations without it, or whose value is not a number: they are in neither.
        failed: answers that could not be used.
    """

    explainer: str
    scorer: str
    mean: Score
    median: Score
    unscored: int
    failed: int


@dataclass(frozen=True)
class Scorecard:
    """Scores in order of feature, and features without.

    Attributes:
        seed: the intervals of the totals are drawn with.
        audit: of the language model that judged: whether it can be trusted; plain JSON values.
        rewriting: the model's loss with its features as explained (``mechlab.features.rewrite``), the
            same way.
    """

    scored: tuple[Scored, ...]
    unscored: tuple[Unscored, ...]
    seed: int = 0
    audit: Mapping[str, Any] | None = None
    rewriting: Mapping[str, Any] | None = None

    def __iter__(self) -> Iterator[Scored]:
        return iter(self.scored)

    def __len__(self) -> int:
        return len(self.scored)

    def of(self, scorer: str, explainer: str | None = None) -> dict[int, Scored]:
        """Feature → its score by one scorer (of one explainer)."""
        return {
            each.feature: each
            for each in self.scored
            if each.scorer == scorer and explainer in (None, each.explainer)
        }

    def totals(self) -> list[Total]:
        """Every measure of every explainer over its features, in order of first appearance."""
        kinds: dict[tuple[str, str], list[Scored]] = {}
        for each in self.scored:
            kinds.setdefault((each.explainer, each.scorer), []).append(each)
        without = Counter((each.explainer, each.scorer) for each in self.unscored)
        undefined = Counter(
            (each.explainer, each.scorer) for each in self.scored if not math.isfinite(each.score.value)
        )
        found = []
        for (explainer, scorer), members in kinds.items():
            total = over_features(scorer, [each.score for each in members], self.seed)
            if total is not None:
                failed = sum(each.failed for each in members)
                # "simulation" is also for "simulation correlation", and so on.
                lost = sum(
                    count
                    for (who, what), count in without.items()
                    if who == explainer and (scorer == what or scorer.startswith(f"{what} "))
                )
                lost += undefined[explainer, scorer]
                found.append(Total(explainer, scorer, *total, lost, failed))
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "seed": self.seed,
            "scored": [each.to_dict() for each in self.scored],
            "unscored": [asdict(each) for each in self.unscored],
            "audit": self.audit,
            "rewriting": self.rewriting,
        }

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Scorecard:
        """The inverse of ``to_dict``."""
        scored = tuple(Scored.from_dict(each) for each in fields["scored"])
        unscored = tuple(Unscored(**each) for each in fields["unscored"])
        return cls(scored, unscored, fields["seed"], fields["audit"], fields.get("rewriting"))


def together(cards: Sequence[Scorecard]) -> Scorecard:
    """Scores of one index by several scorers."""
    scored = sorted((each for card in cards for each in card.scored), key=lambda each: each.feature)
    audits = [card.audit for card in cards if card.audit is not None]
    unscored = dict.fromkeys(each for card in cards for each in card.unscored)
    return Scorecard(tuple(scored), tuple(unscored), cards[0].seed, audits[0] if audits else None)


def save_scores(
    made: Scorecard | Callable[[], Scorecard],
    path: Path | str,
    *,
    config: Mapping[str, Any],
    seed: int,
    inputs: Mapping[str, str],
    overwrite: bool = False,
) -> Artifact:
    """Write scores as an artifact of kind "feature-scores".

    Args:
        made: the scores, or what makes them; not called when they are there already.
        config: how they were made (scorers, judge, samples, width).
        inputs: role → fingerprint of what was scored ({"index": …, "explanations": …}).

    Raises MechlabError as ``mechlab.artifacts.writing`` does.
    """
    with writing(path, KIND, config=config, seed=seed, inputs=inputs, overwrite=overwrite) as writer:
        if writer.finished is not None:
            return writer.finished
        card = made() if callable(made) else made
        write_atomic(writer.work / _FILE, canonical_json(card.to_dict()))
        facts = {
            "totals": [
                {**asdict(total), "mean": total.mean.to_dict(), "median": total.median.to_dict()}
                for total in card.totals()
            ],
            "unscored": len(card.unscored),
        }
        return writer.commit([_FILE], facts)


def load_scores(path: Path | str) -> Scorecard:
    """Read scores back. MechlabError when ``path`` holds none."""
    return Scorecard.from_dict(json.loads(open_artifact(path, KIND).file(_FILE).read_text(encoding="utf-8")))
