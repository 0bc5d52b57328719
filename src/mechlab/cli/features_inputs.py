"""What the commands on features are given beside an index: some of its features, its dictionary, words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from mechlab.errors import MechlabError

if TYPE_CHECKING:
    from torch import Tensor

    from mechlab.artifacts import Artifact
    from mechlab.features.index import FeatureIndex
    from mechlab.models.subject import Subject
    from mechlab.sae.dictionary import Dictionary

# Of an index's inputs, those that say on which text it is.
_TEXT = ("text", "activations")
_DIGITS, _MOST = 10, 10_000_000


def ranges(words: str) -> list[int]:
    """Numbers of "3,17,40-49", ascending. MechlabError for anything else."""
    found: set[int] = set()
    for part in words.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or (dash and int(last) < int(first)):
            raise MechlabError("features cannot be read", words, "like 0-99 or 3,17,40-49")
        if len(last or first) > _DIGITS or (dash and int(last) - int(first) > _MOST):
            raise MechlabError("too many features are named", words, f"{_MOST:,} at a time")
        found.update(range(int(first), int(last if dash else first) + 1))
    return sorted(found)


def subject_name(subject: str, index: FeatureIndex) -> str:
    """The subject that was named, or else the index's. MechlabError when neither is."""
    name = subject or (index.about.get("text") or {}).get("model_name")
    if not name:
        raise MechlabError("no subject is named", remedy="pass --subject")
    return str(name)


def opened(
    dictionary: Path | None, subject: str, index: FeatureIndex, path: Path
) -> tuple[Dictionary, Subject]:
    """The dictionary that was indexed at ``path``, and its subject. MechlabError when it is another one."""
    from mechlab.artifacts import open_artifact
    from mechlab.models.subject import load_model
    from mechlab.sae.dictionary import load_sae

    if dictionary is None:
        raise MechlabError("no dictionary is named", remedy="pass --dictionary, the one that was indexed")
    kind = index.about.get("kind")
    if kind not in (None, "dictionary"):
        names = index.about.get("site") or ", ".join(index.about.get("names", ()))
        raise MechlabError(
            "index was not made from a dictionary", f"{path} is of {kind} {names}", "leave --dictionary out"
        )
    found, indexed = load_sae(dictionary), open_artifact(path).manifest.inputs.get("dictionary")
    own = found.artifact.manifest.fingerprint
    if indexed not in (None, own) or index.n_features not in (found.sae.d_sae, 2 * found.sae.d_sae):
        raise MechlabError("dictionary is not the one that was indexed", dictionary, "check --dictionary")
    model = load_model(subject_name(subject, index))
    found.check(model)
    return found, model


def direction(dictionary: Dictionary, feature: int) -> Tensor:
    """Decoder row of a feature; of the second half of an index of both signs, the opposite."""
    row: Tensor = dictionary.sae.W_dec[feature % dictionary.sae.d_sae].detach()
    return row if feature < dictionary.sae.d_sae else -row


def promoted_words(
    dictionary: Dictionary, subject: Subject, index: FeatureIndex
) -> dict[int, tuple[str, ...]]:
    """For every feature the words whose logits it raises most."""
    from mechlab.features.logits import dictionary_directions, logit_effects

    directions = dictionary_directions(subject, dictionary, signs=bool(index.about.get("signs")))
    effects = logit_effects(subject, directions)
    return {feature: effects.words(feature, index.text.vocabulary) for feature in range(index.n_features)}


def features_fingerprint(path: Path, index: FeatureIndex) -> str:
    """Equal for indexes of the same features, on whatever text."""
    from mechlab.artifacts import open_artifact
    from mechlab.files import fingerprint

    inputs = open_artifact(path).manifest.inputs
    made_from = {role: value for role, value in inputs.items() if role not in _TEXT}
    about = {name: value for name, value in index.about.items() if name != "text"}
    return fingerprint([made_from, about, index.n_features])


def require_same_features(explanations: Artifact, path: Path, index: FeatureIndex) -> None:
    """MechlabError when explanations are known to be of others than the features of the index at ``path``."""
    known = explanations.manifest.inputs.get("features")
    if known not in (None, features_fingerprint(path, index)):
        raise MechlabError(
            "explanations are of other features", explanations.path, f"give those of the features of {path}"
        )


def read_concepts(path: Path) -> dict[str, list[str]]:
    """Named lists of words from a JSON file. MechlabError for anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise MechlabError("concepts cannot be read", path, str(error).splitlines()[0]) from None
    if not isinstance(content, dict) or not all(
        isinstance(words, list) and all(isinstance(word, str) for word in words) for words in content.values()
    ):
        raise MechlabError("concepts are not lists of words", path, 'like {"colour": [" red", " blue"]}')
    return content
