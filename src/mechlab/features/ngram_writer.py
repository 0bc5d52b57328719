"""The summary of top n-grams written by a language model, and the choice among several.

SASC as published: a random 30 of the 50 strongest n-grams are summarised several times, texts are
written for every summary, and the summary whose texts move the function most is kept.

Source: Singh et al. (2023, arXiv 2305.09863). Theirs reports the score by which the summary was
chosen; here another set of texts is written for the one that is kept.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from mechlab.errors import MechlabError
from mechlab.features.explanations import Explanation
from mechlab.features.llm.client import Message, Reply, Request
from mechlab.features.llm.job import LlmJob
from mechlab.features.llm.schema import STRING, parse, record
from mechlab.features.llm.simulator import Written, write_texts
from mechlab.features.ngrams import EXPLAINER, NgramExplanation, Ranked, rank_ngrams
from mechlab.features.scoring.synthetic import synthetic_score
from mechlab.features.scoring.written_texts import Module
from mechlab.scores import Score

SHOWN, POOL = 30, 50
_SUMMARISE = (
    "You are given phrases to which a text function responds strongly. Say in a few words what they "
    "have in common, as specifically as they allow, without listing them. "
    'Answer in JSON: {"explanation": "..."}.'
)


def explain_ngrams_llm(
    module: Module,
    texts: Iterable[str],
    job: LlmJob,
    *,
    feature: int = 0,
    candidates: int = 3,
    trials: int = 10,
    longest: int = 3,
    temperature: float | None = 0.0,
    seed: int = 0,
) -> NgramExplanation:
    """Explain a function of text in words, by a language model.

    Args:
        module: texts → numbers.
        texts: the corpus whose n-grams it is tried on.
        job: who writes; every answer is kept in its cache.
        candidates: summaries, each of another draw of n-grams.
        trials: texts on either side for each summary, and anew for the final score.

    Raises MechlabError as ``rank_ngrams``, when the response does not vary, and when no summary, or
    no texts for one, could be had. Answers without use are counted in the explanation's ``about``.
    """
    ranked = rank_ngrams(module, texts, longest=longest, seed=seed)
    if not ranked.sigma > 0:
        raise MechlabError("function does not vary over the corpus", ranked.sigma, "use a larger corpus")
    asked = [_request(job, ranked, number, temperature, seed) for number in range(candidates)]
    replies = job.run(asked)
    summaries = [
        str(parse(each.text, request.schema or {})["explanation"]).strip()
        for each, request in zip(replies, asked, strict=True)
        if isinstance(each, Reply)
    ]
    said = [
        Explanation(feature, f"{EXPLAINER}:{job.client.model}", each) for each in dict.fromkeys(summaries)
    ]
    written = write_texts(job, said, trials, temperature=temperature)
    tried = [
        (_score(module, each, ranked, seed), explanation)
        for explanation, each in zip(said, written, strict=True)
        if isinstance(each, Written)
    ]
    if not tried:
        raise MechlabError("no summary could be had", f"of {candidates} asked for", "see the job's failures")
    tried.sort(key=lambda each: -each[0].value)
    chosen, best = tried[0]
    # One text more on either side makes it another question, with answers of its own.
    fresh = write_texts(job, [best], trials + 1, temperature=temperature)[0]
    final = _score(module, fresh, ranked, seed) if isinstance(fresh, Written) else chosen
    about = {
        "top": list(ranked.ngrams[:10]),
        "sigma": ranked.sigma,
        "candidates": len(tried),
        "failed": len(replies) - len(summaries) + len(said) - len(tried),
        "fresh": isinstance(fresh, Written),
    }
    others = tuple((explanation.text, found.value) for found, explanation in tried)
    return NgramExplanation(replace(best, about=about), final, others)


def _request(job: LlmJob, ranked: Ranked, number: int, temperature: float | None, seed: int) -> Request:
    generator = np.random.default_rng([seed, number])
    pool = ranked.ngrams[:POOL]
    drawn = generator.permutation(len(pool))[:SHOWN]
    phrases = "\n".join(f"- {pool[int(place)]}" for place in drawn)
    return Request(
        (Message("system", _SUMMARISE), Message("user", phrases)),
        job.client.model,
        max_tokens=120,
        temperature=temperature,
        schema=record(explanation=STRING),
    )


def _score(module: Module, texts: Written, ranked: Ranked, seed: int) -> Score:
    """The null deals the same texts to the two sides at random."""
    values = np.asarray(module([*texts.positive, *texts.negative]), np.float64)
    count = len(texts.positive)
    dealt = np.random.default_rng(seed).permutation(values)
    null = synthetic_score(dealt[:count], dealt[count:], ranked.sigma)
    return synthetic_score(values[:count], values[count:], ranked.sigma, null=null)
