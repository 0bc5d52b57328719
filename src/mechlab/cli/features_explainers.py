"""The explainers of ``mechlab features explain``: rules, a language model, n-grams, the subject itself."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from mechlab.cli.features_inputs import direction, opened, promoted_words
from mechlab.cli.functions import named_functions
from mechlab.cli.progress import Reporter
from mechlab.errors import MechlabError

if TYPE_CHECKING:
    from mechlab.cli.features_explain import ExplainConfig
    from mechlab.features.explanations import Explanations
    from mechlab.features.index import FeatureIndex
    from mechlab.features.llm.job import LlmJob
    from mechlab.features.scoring.written_texts import Module
    from mechlab.features.split import Split


def by_rules(
    config: ExplainConfig,
    index: FeatureIndex,
    wanted: list[int] | None,
    split: Split,
    concepts: Mapping[str, Collection[str]] | None,
    report: Reporter,
) -> Explanations:
    """A program for every feature, learnt from its activations."""
    from mechlab.features.explanations import explain_features

    return explain_features(
        index,
        split=split,
        features=wanted,
        concepts=concepts,
        promoted=_promoted(config, index),
        progress=lambda done, total: report("explain", done, total, {}),
    )


def by_llm(
    config: ExplainConfig, index: FeatureIndex, wanted: list[int] | None, split: Split, job: LlmJob
) -> Explanations:
    """A sentence for every feature, by the job's model."""
    from mechlab.features.llm.explainer import explain_llm
    from mechlab.features.neighbours import co_occurring

    neighbours = None
    if config.prompt == "contrastive":
        explains = index.restrict(split.explains(index.text.document))
        neighbours = co_occurring(explains).lists()
    return explain_llm(
        index, job, wanted, prompt=config.prompt, examples=config.examples, split=split,
        neighbours=neighbours, promoted=_promoted(config, index), seed=config.seed,
    )  # fmt: skip


def by_subject(
    config: ExplainConfig, index: FeatureIndex, wanted: list[int] | None, report: Reporter
) -> Explanations:
    """What the subject says of every feature's direction. It looks at no document."""
    from mechlab.features.explanations import Explanations
    from mechlab.features.self_interpretation import explain_self

    dictionary, subject = opened(config.dictionary, config.subject, index, config.index)
    features = index.live.tolist() if wanted is None else wanted
    items = []
    for done, feature in enumerate(features):
        items += explain_self(subject, {feature: direction(dictionary, feature)}, dictionary.outputs[0])
        report("explain", done + 1, len(features), {})
    return Explanations(tuple(items), (), index.n_features)


def by_ngrams(
    config: ExplainConfig, index: FeatureIndex, wanted: list[int] | None, split: Split, report: Reporter
) -> Explanations:
    """A rule over words for every function, from the n-grams that it responds to most."""
    from mechlab.features.explanations import Explanations
    from mechlab.features.ngrams import explain_ngrams

    modules = function_modules(config.function, index)
    text = index.restrict(split.explains(index.text.document)).text
    bounds = text.bounds.tolist()
    passages = [text.vocabulary.string(text.tokens[start:stop]) for start, stop in pairwise(bounds)]
    features = [each for each in sorted(modules) if wanted is None or each in wanted]
    items, failed = [], {}
    for done, feature in enumerate(features):
        # A function that does not work at all is the user's to mend; one that finds nothing is a result.
        modules[feature](passages[:1])
        try:
            found = explain_ngrams(modules[feature], passages, feature=feature, seed=config.seed)
        except MechlabError as error:
            failed[feature] = str(error)
        else:
            about = {**found.explanation.about, "synthetic": found.score.to_dict()}
            items.append(replace(found.explanation, about=about))
        report("explain", done + 1, len(features), {})
    documents = tuple(np.unique(text.document).tolist())
    return Explanations(tuple(items), documents, index.n_features, failed)


def function_modules(names: str | None, index: FeatureIndex) -> dict[int, Module]:
    """Feature → function of texts, for the functions of an index, or some of them.

    A function of tokens is given a text's words, and its largest value counts. MechlabError for an
    index of something else, and names that are not in it.
    """
    if index.about.get("kind") != "function":
        raise MechlabError(
            "n-grams explain functions of text", f"index of {index.about.get('kind')}",
            "index some: mechlab features index --function module:name",
        )  # fmt: skip
    there = list(index.about["names"])
    functions = named_functions(names if names is not None else ",".join(there))
    for name in functions:
        if name not in there:
            raise MechlabError("function is not in the index", name, f"it has {', '.join(there)}")
    by_tokens = index.about["mode"] == "tokens"
    return {there.index(name): _module(name, each, by_tokens) for name, each in functions.items()}


def _module(name: str, function: Callable[..., Any], by_tokens: bool) -> Module:
    def value(text: str) -> float:
        if by_tokens:
            return max(float(each) for each in function([f" {word}" for word in text.split()] or [""]))
        return float(function(text))

    def module(texts: Sequence[str]) -> np.ndarray:
        try:
            return np.array([value(text) for text in texts], np.float64)
        except Exception as error:  # whatever somebody's function raises
            raise MechlabError(f"function {name} failed", f"{type(error).__name__}: {error}") from error

    return module


def _promoted(config: ExplainConfig, index: FeatureIndex) -> dict[int, tuple[str, ...]] | None:
    if config.dictionary is None:
        return None
    return promoted_words(*opened(config.dictionary, config.subject, index, config.index), index)
