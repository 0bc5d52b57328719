"""The scorers of ``mechlab features score``, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mechlab.cli.features_inputs import direction, opened, promoted_words, read_concepts
from mechlab.cli.features_judges import audit, judge_of, reader_of
from mechlab.cli.progress import Reporter
from mechlab.errors import MechlabError, near

if TYPE_CHECKING:
    from mechlab.cli.features_score import ScoreConfig
    from mechlab.features.explanations import Explanation, Explanations
    from mechlab.features.index import FeatureIndex
    from mechlab.features.llm.job import LlmJob
    from mechlab.features.scoring.intervention import Plausibility
    from mechlab.features.scoring.scorecard import Scorecard
    from mechlab.features.scoring.synthetic import Activate
    from mechlab.models.subject import Subject

SIMULATION, SYNTHETIC, INTERVENTION, REWRITING = "simulation", "synthetic", "intervention", "rewriting"
NEED_DICTIONARY = (SYNTHETIC, INTERVENTION, REWRITING)
_PROMPTS, _PROMPT_TOKENS = 16, 12
_TEXTS = 10

Progress = Callable[[int, int], None]


class Scoring:
    """What one run of the command scores, and with what.

    Args:
        index: the documents that no explainer saw.
        job: who is asked, when a language model judges.
    """

    def __init__(
        self,
        config: ScoreConfig,
        index: FeatureIndex,
        explanations: Explanations,
        job: LlmJob | None,
        report: Reporter,
    ) -> None:
        self._config, self._index, self._explanations = config, index, explanations
        self._job, self._report = job, report
        self._concepts = None if config.concepts is None else read_concepts(config.concepts)

    def card(self, wanted: Sequence[str]) -> Scorecard:
        """All scores. MechlabError as the scorers raise it."""
        from mechlab.features.scoring.score import SCORERS
        from mechlab.features.scoring.scorecard import Scorecard, together

        asked = [name for name in wanted if name in SCORERS]
        cards = [Scorecard((), (), self._config.seed)]
        if asked:
            cards.append(self._items(asked))
        for name, scored in (
            (SIMULATION, self._simulation),
            (SYNTHETIC, self._synthetic),
            (INTERVENTION, self._intervention),
        ):
            if name in wanted:
                cards.append(scored())
        card = together(cards)
        return replace(card, rewriting=self._rewriting(card)) if REWRITING in wanted else card

    def _progress(self, stage: str) -> Progress:
        return lambda done, total: self._report(stage, done, total, {})

    def _items(self, asked: Sequence[str]) -> Scorecard:
        from mechlab.features.neighbours import co_occurring
        from mechlab.features.scoring.score import score_features

        config, index, job = self._config, self._index, self._job
        judge = judge_of(config, index, job)
        card = score_features(
            index, self._explanations, asked, judge, seed=config.seed,
            neighbours=co_occurring(index).lists() if "hard" in asked else None,
            samples=config.samples, width=config.width, concepts=self._concepts,
            progress=None if job is not None else self._progress("score"),
        )  # fmt: skip
        if job is None:
            return card
        failures = dict(judge.failures)
        return replace(card, audit={**audit(config, index, self._explanations, job), "failures": failures})

    def _simulation(self) -> Scorecard:
        from mechlab.features.rules import Matcher
        from mechlab.features.scoring.simulated import score_simulations
        from mechlab.features.scoring.simulators import RuleSimulator

        config, index, explanations = self._config, self._index, self._explanations
        if self._job is None:
            simulator: Any = RuleSimulator(Matcher(index.text, self._concepts or {}))
            ruled = tuple(each for each in explanations.items if each.rule is not None)
            explanations = replace(explanations, items=ruled)
        else:
            from mechlab.features.llm.simulator import LlmSimulator

            simulator = LlmSimulator(self._job)
        return score_simulations(
            index, explanations, simulator, width=config.width, seed=config.seed,
            progress=self._progress("simulate"),
        )  # fmt: skip

    def _synthetic(self) -> Scorecard:
        from mechlab.features.scoring.scorecard import together
        from mechlab.features.scoring.synthetic import dictionary_activations, score_synthetic_rules

        config = self._config
        dictionary, subject = opened(config.dictionary, config.subject, self._index, config.index)
        activate = dictionary_activations(subject, dictionary)
        items = self._explanations.items
        said = [] if self._job is None else [each for each in items if each.rule is None]
        ruled = tuple(each for each in items if each not in said)
        card = score_synthetic_rules(
            self._index, replace(self._explanations, items=ruled), activate, concepts=self._concepts,
            seed=config.seed, progress=self._progress("synthetic"),
        )  # fmt: skip
        if self._job is None or not said:
            return card
        return together([card, self._written(self._job, said, subject, activate)])

    def _written(
        self, job: LlmJob, said: Sequence[Explanation], subject: Subject, activate: Activate
    ) -> Scorecard:
        """On texts that the language model writes for explanations that are no rules."""
        from mechlab.features.llm.simulator import Written, write_texts
        from mechlab.features.scoring.scorecard import Scorecard, Scored, Unscored
        from mechlab.features.scoring.written_texts import Module, Texts, feature_module, score_written

        def module_of(feature: int) -> Module:
            module = feature_module(subject, activate, feature)

            def number(text: str) -> float:
                try:
                    return float(module([text])[0])
                except MechlabError:  # too long for the subject: left out
                    return float("nan")

            return lambda texts: np.array([number(text) for text in texts])

        texts: dict[str, dict[int, Texts]] = {}
        unscored = []
        for each, outcome in zip(said, write_texts(job, said, _TEXTS), strict=True):
            dead = not self._index.active[each.feature]
            if isinstance(outcome, Written) and not dead:
                made = Texts(outcome.positive, outcome.negative)
                texts.setdefault(each.explainer, {})[each.feature] = made
            else:
                why = "feature is dead on this text" if dead else "no texts were written for it"
                unscored.append(Unscored(each.feature, each.explainer, SYNTHETIC, why))
        scored = []
        for explainer, made_for in texts.items():
            found = score_written(self._index, made_for, module_of, seed=self._config.seed)
            for feature, score in found.items():
                rate = float(self._index.density[feature])
                scored.append(Scored(feature, explainer, score.name, score, rate, 0, _TEXTS, _TEXTS))
        return Scorecard(tuple(scored), tuple(unscored), self._config.seed)

    def _intervention(self) -> Scorecard:
        from mechlab.features.scoring.intervention import plausibility_of
        from mechlab.features.scoring.interventions import prompts_of, score_interventions
        from mechlab.features.scoring.llm_reader import llm_reader

        config, index = self._config, self._index
        dictionary, subject = opened(config.dictionary, config.subject, index, config.index)
        if len(dictionary.outputs) != 1:
            raise MechlabError(
                "dictionary writes at several sites", ", ".join(dictionary.outputs), "leave intervention out"
            )
        plausibility: Plausibility | None = None
        if self._job is not None:
            plausibility = _fatal(llm_reader(self._job))
        elif config.judge == "surprisal":
            plausibility = plausibility_of(reader_of(config, index))
        generator = np.random.default_rng(config.seed)
        try:
            return score_interventions(
                subject,
                dictionary.outputs[0],
                {each.feature: direction(dictionary, each.feature) for each in self._explanations.items},
                self._explanations,
                prompts_of(subject, index.text, _PROMPTS, _PROMPT_TOKENS, generator),
                plausibility=plausibility,
                promoted=promoted_words(dictionary, subject, index),
                seed=config.seed,
                progress=self._progress("steer"),
            )
        except _Stop as stop:
            raise stop.error from None

    def _rewriting(self, card: Scorecard) -> dict[str, Any]:
        """Best explained features first; by activation mass where there is no detection score."""
        from mechlab.data.corpus import open_corpus
        from mechlab.features.rewrite import rewrite, rule_predictor

        config, index = self._config, self._index
        dictionary, subject = opened(config.dictionary, config.subject, index, config.index)
        rules = {
            each.feature: each.rule
            for each in reversed(self._explanations.items)
            if each.rule is not None and each.feature < dictionary.sae.d_sae
        }
        if not rules:
            raise MechlabError("no explanation is a rule that can be executed", REWRITING, "explain by rules")
        detected = {feature: each.score.value for feature, each in card.of("detection").items()}
        mass = index.density * index.mean
        order = sorted(rules, key=lambda each: (-np.nan_to_num(detected.get(each, 0.0)), -mass[each], each))
        about = index.about.get("text") or {}
        name = config.data or about.get("corpus")
        if not name:
            raise MechlabError("index does not say of which corpus it is", config.index, "pass --data")
        found = rewrite(
            subject,
            dictionary,
            open_corpus(str(name), column=config.column),
            rule_predictor(rules, self._concepts),
            order,
            counts=(len(order) // 4, len(order) // 2),
            # Documents that neither the dictionary nor any explainer has met.
            split="test" if about.get("split") == "validation" else "validation",
            tokens=config.tokens,
            n_ctx=about.get("n_ctx"),
            seed=config.seed,
            progress=self._progress("rewrite"),
        )
        return found.to_dict()


class _Stop(Exception):
    def __init__(self, error: MechlabError) -> None:
        super().__init__(str(error))
        self.error = error


def _fatal(plausibility: Plausibility) -> Plausibility:
    """What stops a language model (no server, a wrong key) stops everything, not one feature."""

    def told(passages: list[str], explanation: str) -> Any:
        try:
            return plausibility(passages, explanation)
        except MechlabError as error:
            raise _Stop(error) from None

    return told


def wanted_scorers(names: str, dictionary: Path | None) -> tuple[str, ...]:
    """Scorers by name. MechlabError for an unknown one, or without the dictionary that it needs."""
    from mechlab.features.scoring.score import SCORERS

    known = (*SCORERS, SIMULATION, *NEED_DICTIONARY)
    wanted = tuple(dict.fromkeys(name.strip() for name in names.split(",")))
    for name in wanted:
        if name not in known:
            raise MechlabError("unknown scorer", name, near(name, known))
        if name in NEED_DICTIONARY and dictionary is None:
            raise MechlabError("no dictionary is named", name, "pass --dictionary, the one that was indexed")
    return wanted
