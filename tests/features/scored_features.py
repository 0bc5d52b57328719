"""A random text and features of every difficult kind on it, with the rules that they obey."""

from __future__ import annotations

import numpy as np

from mechlab.features.explanations import Explanations, rule_explanations
from mechlab.features.index import FeatureIndex, index_of
from mechlab.features.rules import Clause, Matcher, Position, Rule, Token
from mechlab.features.split import Split
from mechlab.features.text import Text
from mechlab.features.vocabulary import Vocabulary

WORDS = tuple(f" w{i}" for i in range(200))
VOCABULARY = Vocabulary(WORDS)
RULES = {
    "token": Rule((Clause((Token((" w30",)),), 2.0),)),
    "set": Rule((Clause((Token((" w20", " w41", " w77")),), 2.0),)),
    "either": Rule((Clause((Token((" w25",)),), 2.0), Clause((Token((" w12",), offset=-1),), 1.0))),
    "position": Rule((Clause((Position(1, 3),), 2.0),)),
    "dense": Rule((Clause((Token(tuple(WORDS[2:12])),), 2.0),)),
    "rare": Rule((Clause((Token((" w150",)),), 2.0),)),
    "later": Rule((Clause((Position(40, 44),), 2.0),)),
}
KINDS = (*RULES, "noise")
NOISE = KINDS.index("noise")


def random_text(documents: int = 600, length: int = 110, seed: int = 0) -> Text:
    """Documents of ``length`` ± 40 words, each of two passages, word i with probability ∝ 1 / (i + 5)."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(length - 40, length + 41, documents)
    share = 1 / (np.arange(len(WORDS)) + 5.0)
    tokens = generator.choice(len(WORDS), int(lengths.sum()), p=share / share.sum()).astype(np.int32)
    document = np.repeat(np.arange(documents), lengths)
    within = np.arange(len(tokens)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    second = within >= 66
    position = np.where(second, within - 66, within) + 1
    return Text(tokens, 2 * document + second, position, document, VOCABULARY)


def features_of(text: Text, seed: int = 0) -> FeatureIndex:
    """One feature of every kind in ``KINDS``, with activations between half and all of the rule's."""
    generator = np.random.default_rng(seed)
    matcher = Matcher(text)
    found = {}
    for number, kind in enumerate(KINDS):
        strength = generator.uniform(0.5, 1.0, len(text))
        clean = matcher.predict(RULES[kind]) if kind in RULES else generator.random(len(text)) < 0.01
        found[number] = clean * strength
    return index_of(text, found)


def true_rules(index: FeatureIndex, documents: tuple[int, ...] = ()) -> Explanations:
    """What every feature obeys; of noise, the rule of a word."""
    rules = dict(enumerate(RULES.values())) | {NOISE: Rule((Clause((Token((" w33",)),), 1.0),))}
    return Explanations(tuple(rule_explanations(rules)), documents, index.n_features)


def halves(seed: int = 0) -> tuple[FeatureIndex, FeatureIndex]:
    """The features on the documents to explain and on those to score."""
    return features_of(random_text(seed=seed), seed).halves(Split(0.3, seed))
