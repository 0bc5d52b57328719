"""Explanations: what somebody, or something, says that a feature does; and their artifact."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from mechlab.artifacts import Artifact, open_artifact, writing
from mechlab.errors import MechlabError
from mechlab.features.index import FeatureIndex
from mechlab.features.rules import Rule
from mechlab.features.rules.search import explain_rules
from mechlab.features.split import Split
from mechlab.files import canonical_json, write_atomic

KIND = "explanations"
_FILE, _ABOUT = "explanations.jsonl", "about.json"
PERSON = "person"
"""The explainer's name of what somebody wrote by hand."""


@dataclass(frozen=True)
class Explanation:
    """What one feature is said to do.

    Attributes:
        feature: its number in the index.
        explainer: who says so: "rules", "llm:MODEL:PROMPT", "self", "ngrams", "person".
        text: the explanation in English; of a rule, the sentence that parses back to it.
        rule: the same as a program, where it can be executed.
        about: where it comes from (examples seen, prompt, cost); plain JSON values.
    """

    feature: int
    explainer: str
    text: str
    rule: Rule | None = None
    about: Mapping[str, Any] = field(default_factory=dict)

    def of(self, feature: int) -> Explanation:
        """The same words said of another feature: a control."""
        return replace(self, feature=feature)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "feature": self.feature,
            "explainer": self.explainer,
            "text": self.text,
            "rule": None if self.rule is None else self.rule.to_dict(),
            "about": dict(self.about),
        }

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Explanation:
        """The inverse of ``to_dict``."""
        rule = None if fields["rule"] is None else Rule.from_dict(fields["rule"])
        return cls(fields["feature"], fields["explainer"], fields["text"], rule, fields["about"])


@dataclass(frozen=True)
class Explanations:
    """Explanations of features of one index, several of a feature where several explainers spoke.

    Attributes:
        items: ordered by feature, then as they came.
        documents: numbers of the documents that explainers saw, ascending: nothing may be scored on them.
        n_features: features of the index, so that the ones without explanation are known.
        failed: feature → why there is no explanation, where one was asked for.
    """

    items: tuple[Explanation, ...]
    documents: tuple[int, ...]
    n_features: int
    failed: Mapping[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        ordered = tuple(sorted(self.items, key=lambda each: each.feature))
        object.__setattr__(self, "items", ordered)
        object.__setattr__(self, "documents", tuple(sorted({int(each) for each in self.documents})))
        if ordered and not 0 <= ordered[0].feature <= ordered[-1].feature < self.n_features:
            raise MechlabError(
                "explanation of a feature that does not exist",
                ordered[-1].feature,
                f"there are {self.n_features}",
            )

    def __len__(self) -> int:
        return len(self.items)

    def of(self, feature: int) -> tuple[Explanation, ...]:
        """All that is said of one feature."""
        return tuple(each for each in self.items if each.feature == feature)

    def by(self, explainer: str) -> Explanations:
        """Those of one explainer."""
        kept = tuple(each for each in self.items if each.explainer == explainer)
        return replace(self, items=kept)


def rule_explanations(rules: Mapping[int, Rule]) -> list[Explanation]:
    """Rules as explanations."""
    return [Explanation(feature, "rules", rule.sentence(), rule) for feature, rule in sorted(rules.items())]


def explain_features(
    index: FeatureIndex,
    *,
    split: Split | None = None,
    features: Iterable[int] | None = None,
    concepts: Mapping[str, Collection[str]] | None = None,
    promoted: Mapping[int, Collection[str]] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Explanations:
    """A rule for every live feature, learnt from its activations: no language model is asked.

    Args:
        split: learn from its half of the documents only, so that the others can be scored on; None:
            from all documents.
        features, concepts, promoted, progress: as for ``mechlab.features.rules.explain_rules``.
    """
    seen = index if split is None else index.restrict(split.explains(index.text.document))
    rules = explain_rules(seen, features=features, concepts=concepts, promoted=promoted, progress=progress)
    documents = np.unique(seen.text.document).tolist()
    return Explanations(tuple(rule_explanations(rules)), tuple(documents), index.n_features)


def joined(parts: Iterable[Explanations]) -> Explanations:
    """Explanations of one index by several explainers. MechlabError when the indexes differ in size."""
    several = list(parts)
    sizes = {each.n_features for each in several}
    if len(sizes) != 1:
        raise MechlabError(
            "explanations are of indexes of different size", sorted(sizes), "join those of one"
        )
    return Explanations(
        tuple(item for each in several for item in each.items),
        tuple(document for each in several for document in each.documents),
        sizes.pop(),
        {feature: why for each in several for feature, why in each.failed.items()},
    )


def save_explanations(
    made: Explanations | Callable[[], Explanations],
    path: Path | str,
    *,
    config: Mapping[str, Any],
    seed: int,
    inputs: Mapping[str, str],
    overwrite: bool = False,
) -> Artifact:
    """Write explanations as an artifact of kind "explanations".

    Args:
        made: the explanations, or what makes them; not called when they are there already.
        config: settings of the explainers.
        inputs: role → fingerprint of what they were made from ({"index": …}).

    Raises MechlabError as ``mechlab.artifacts.writing`` does.
    """
    with writing(path, KIND, config=dict(config), seed=seed, inputs=inputs, overwrite=overwrite) as writer:
        if writer.finished is not None:
            return writer.finished
        explanations = made() if callable(made) else made
        lines = (json.dumps(each.to_dict(), ensure_ascii=False) + "\n" for each in explanations.items)
        write_atomic(writer.work / _FILE, "".join(lines))
        about = {
            "documents": list(explanations.documents),
            "n_features": explanations.n_features,
            "failed": [[feature, why] for feature, why in sorted(explanations.failed.items())],
        }
        write_atomic(writer.work / _ABOUT, canonical_json(about))
        facts = {"explanations": len(explanations), "failed": len(explanations.failed)}
        return writer.commit([_FILE, _ABOUT], facts)


def load_explanations(path: Path | str) -> Explanations:
    """Read explanations back. MechlabError when ``path`` holds none, or damaged ones."""
    artifact = open_artifact(path, KIND)
    try:
        about = json.loads(artifact.file(_ABOUT).read_text(encoding="utf-8"))
        with artifact.file(_FILE).open(encoding="utf-8") as lines:
            items = tuple(Explanation.from_dict(json.loads(line)) for line in lines)
        return Explanations(items, tuple(about["documents"]), about["n_features"], dict(about["failed"]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise MechlabError("explanations cannot be read", path, "make them again") from error
