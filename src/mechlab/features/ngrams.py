"""Explanations of any function of text from the n-grams it responds to most.

Summarise and score: rank the corpus's n-grams (of up to three words) by the function's response, keep
the top 75, say what they have in common in several ways, and keep the candidate whose synthetic texts
move the function most. Here the summary needs no language model: candidates are rules over words,
words of unusual log-odds among the top n-grams or affixes that their words share
(``mechlab.features.ngram_writer`` asks one instead).

Sources: Singh et al. (2023), *Explaining black box text modules in natural language with language
models* (SASC, arXiv 2305.09863); Monroe, Colaresi & Quinn (2008), *Fightin' words* (log-odds with an
informative Dirichlet prior), for the offline summary.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float

from mechlab.errors import MechlabError
from mechlab.features.explanations import Explanation
from mechlab.features.rules import Atom, Clause, Matcher, Rule, Spelling, Token
from mechlab.features.scoring.rule_texts import rule_texts
from mechlab.features.scoring.synthetic import TEXTS, synthetic_score
from mechlab.features.scoring.written_texts import Module
from mechlab.features.text import Text, text_of
from mechlab.features.vocabulary import Vocabulary
from mechlab.scores import Score

EXPLAINER = "ngrams"
KEPT = 75
_WORD = re.compile(r"\w+(?:'\w+)?|[^\w\s]")
# z-scores above which a word is unusual among the top n-grams.
_UNUSUAL = 1.96
_MOST_WORDS = 12
_AFFIXES = range(2, 5)


@dataclass(frozen=True, eq=False)
class Ranked:
    """A corpus's n-grams in order of the response to them.

    Attributes:
        ngrams: distinct, words joined by spaces; the strongest first.
        response: the function's value on each.
        words: the corpus as a text whose tokens are words, each with a leading space.
    """

    ngrams: tuple[str, ...]
    response: Float[np.ndarray, "ngram"]
    words: Text

    @property
    def sigma(self) -> float:
        """Standard deviation of the response over all n-grams: the unit of SASC's scores."""
        return float(self.response.std())


@dataclass(frozen=True)
class NgramExplanation:
    """What was found.

    Attributes:
        explanation: with a rule over words; strengths are in σ above the mean response.
        score: its synthetic-text score on texts that had no part in the choice; the null is that of
            words drawn at random from the corpus.
        candidates: every rule that was tried and the score by which one was chosen, best first.
    """

    explanation: Explanation
    score: Score
    candidates: tuple[tuple[str, float], ...]


def rank_ngrams(
    module: Module, texts: Iterable[str], *, longest: int = 3, batch: int = 4096, seed: int = 0
) -> Ranked:
    """Every n-gram of 1 to ``longest`` words of a corpus, by the response to it; ties in random order.

    Raises MechlabError for a corpus without words, and a function that does not give one finite
    number for each text.
    """
    passages = [found for each in texts if (found := _WORD.findall(each))]
    if not passages:
        raise MechlabError("corpus has no words", len(passages), "pass some text")
    grams = list(
        dict.fromkeys(
            " ".join(words[at : at + n])
            for words in passages
            for n in range(1, longest + 1)
            for at in range(len(words) - n + 1)
        )
    )
    parts = []
    for begin in range(0, len(grams), batch):
        given = grams[begin : begin + batch]
        values = np.asarray(module(given), np.float64)
        if values.shape != (len(given),) or not np.isfinite(values).all():
            raise MechlabError(
                "function does not give a finite number for each text", list(values.shape), "mend it"
            )
        parts.append(values)
    response = np.concatenate(parts)
    order = np.lexsort((np.random.default_rng(seed).permutation(len(grams)), -response))
    vocabulary = Vocabulary(tuple(f" {word}" for word in dict.fromkeys(w for p in passages for w in p)))
    number = {word: i for i, word in enumerate(vocabulary.texts)}
    text = text_of([[number[f" {word}"] for word in words] for words in passages], vocabulary)
    return Ranked(tuple(grams[place] for place in order), response[order], text)


def summaries(ranked: Ranked, *, keep: int = KEPT) -> list[Rule]:
    """Rules over words that the top n-grams have in common; none when nothing is unusual."""
    top = ranked.ngrams[:keep]
    strength = max(float(ranked.response[:keep].mean() - ranked.response.mean()), 0.0)
    strength = strength / ranked.sigma if ranked.sigma > 0 else 0.0
    if strength <= 0:
        return []
    unusual = [word for word, z in _unusual(top, ranked.ngrams) if z > _UNUSUAL][:_MOST_WORDS]
    said: list[tuple[Atom, ...]] = []
    for count in sorted({1, 2, 3, 5, 8, len(unusual)}):
        if count <= len(unusual):
            said.append((Token(tuple(f" {word}" for word in unusual[:count])),))
    said += [(atom,) for atom in _affixes(top, ranked.ngrams)]
    pair = _pair(top, unusual)
    if pair is not None:
        said.append((Token((f" {pair[1]}",)), Token((f" {pair[0]}",), -1)))
    return [Rule((Clause(atoms, strength),)) for atoms in dict.fromkeys(said)]


def explain_ngrams(
    module: Module,
    texts: Iterable[str],
    *,
    feature: int = 0,
    keep: int = KEPT,
    longest: int = 3,
    trials: int = TEXTS,
    seed: int = 0,
) -> NgramExplanation:
    """Explain a function of text by a rule over words, without a language model.

    Args:
        module: texts → numbers.
        texts: the corpus whose n-grams it is tried on.
        feature: number to put in the explanation.
        keep: how many top n-grams are summarised.
        longest: words of the longest n-gram; synthetic texts are as long.
        trials: synthetic texts on either side, of every candidate and of the final score.

    Raises MechlabError as ``rank_ngrams``, and when the response does not vary or no candidate is left.
    """
    ranked = rank_ngrams(module, texts, longest=longest, seed=seed)
    tried: list[tuple[Score, Rule]] = []
    for rule in summaries(ranked, keep=keep):
        found = rule_score(module, rule, ranked, trials=trials, seed=seed)
        if found is not None:
            tried.append((found, rule))
    if not tried:
        raise MechlabError("top n-grams have nothing in common", ranked.ngrams[0], "use a larger corpus")
    tried.sort(key=lambda each: -each[0].value)
    # One word may move the function as much as all of them do: of those as good as the best, the
    # one that says most.
    good = [rule for found, rule in tried if found.value >= tried[0][0].low]
    best = max(good, key=lambda rule: _coverage(rule, ranked, keep))
    chosen_by = next(found for found, rule in tried if rule == best)
    final = rule_score(module, best, ranked, trials=trials, seed=seed + 1)
    about = {"top": list(ranked.ngrams[:10]), "sigma": ranked.sigma, "candidates": len(tried)}
    explanation = Explanation(feature, EXPLAINER, best.sentence(), best, about)
    score = chosen_by if final is None else final
    return NgramExplanation(explanation, score, tuple((rule.sentence(), each.value) for each, rule in tried))


def rule_score(
    module: Module, rule: Rule, ranked: Ranked, *, trials: int = TEXTS, seed: int = 0
) -> Score | None:
    """Synthetic-text score of a rule over words; None when no text could be made for it.

    The null puts as many random words of the corpus in the places of the rule's.
    """
    width = min(3, int(np.diff(ranked.words.bounds).max()))

    def measured(each: Rule, number: int, null: Score | None) -> Score:
        generator = np.random.default_rng([seed, number])
        made = rule_texts(each, ranked.words, trials, generator, width=width)
        on, off = _responses(module, made.positive), _responses(module, made.negative)
        return synthetic_score(on, off, ranked.sigma, null=null)

    try:
        return measured(rule, 0, measured(_random_words(ranked, seed), 1, None))
    except MechlabError:
        return None


def _coverage(rule: Rule, ranked: Ranked, keep: int) -> int:
    """Number of the top n-grams that a rule over words fires on."""
    vocabulary = ranked.words.vocabulary
    number = {said: token for token, said in enumerate(vocabulary.texts)}
    text = text_of(
        [[number[f" {word}"] for word in gram.split()] for gram in ranked.ngrams[:keep]], vocabulary
    )
    return len(np.unique(text.passage[Matcher(text).rows(rule)[0]]))


def _responses(module: Module, text: Text) -> Float[np.ndarray, "text"]:
    pairs = zip(text.bounds[:-1].tolist(), text.bounds[1:].tolist(), strict=True)
    said = [text.vocabulary.string(text.tokens[start:stop]).strip() for start, stop in pairs]
    return np.asarray(module(said), np.float64)


def _random_words(ranked: Ranked, seed: int) -> Rule:
    generator = np.random.default_rng([seed, 2])
    size = min(3, len(ranked.words.vocabulary))
    drawn = generator.choice(len(ranked.words.vocabulary), size, replace=False)
    return Rule((Clause((Token(tuple(ranked.words.vocabulary[int(word)] for word in drawn)),)),))


def _unusual(top: Sequence[str], every: Sequence[str]) -> list[tuple[str, float]]:
    """Words of the top n-grams with the z-score of their log-odds against all n-grams, largest first.

    With counts y in the top, w in the rest and the prior a = w's shares times the size of the top
    (Monroe et al. 2008, equations 16, 19 and 20 with the prior taken from the corpus).
    """
    here = Counter(word for gram in top for word in gram.split())
    all_counts = Counter(word for gram in every for word in gram.split())
    n_top, n_all = sum(here.values()), sum(all_counts.values())
    found = []
    for word, count in here.items():
        prior = n_top * all_counts[word] / n_all
        rest = all_counts[word] - count
        first = np.log((count + prior) / max(2 * n_top - count - prior, 1e-9))
        second = np.log((rest + prior) / max(n_all - rest - prior, 1e-9))
        z = (first - second) / np.sqrt(1 / (count + prior) + 1 / (rest + prior))
        found.append((word, float(z)))
    return sorted(found, key=lambda each: (-each[1], each[0]))


def _affixes(top: Sequence[str], every: Sequence[str]) -> list[Atom]:
    """At most three beginnings or endings that unusually many words of the top share, at least four."""
    here = {word for gram in top for word in gram.split()}
    everywhere = {word for gram in every for word in gram.split()}
    found: list[tuple[float, str, str]] = []
    for kind in ("starts", "ends"):
        for size in _AFFIXES:
            counts = Counter(_affix(word, kind, size) for word in here if len(word) > size)
            background = Counter(_affix(word, kind, size) for word in everywhere if len(word) > size)
            for affix, count in counts.items():
                share = background[affix] / len(everywhere)
                expected = share * len(here)
                z = (count - expected) / np.sqrt(max(expected * (1 - share), 1e-9))
                if count >= 4 and z > _UNUSUAL:
                    found.append((float(z), kind, f" {affix}" if kind == "starts" else affix))
    found.sort(key=lambda each: (-each[0], each[1:]))
    return [Spelling(kind, affix) for _, kind, affix in found[:3]]


def _affix(word: str, kind: str, size: int) -> str:
    return word[:size] if kind == "starts" else word[-size:]


def _pair(top: Sequence[str], unusual: Sequence[str]) -> tuple[str, str] | None:
    """The commonest pair of unusual neighbours, when a third of the longer top n-grams have it."""
    split = [words for gram in top if len(words := gram.split()) > 1]
    counts = Counter(pair for words in split for pair in set(pairwise(words)))
    known = [(count, pair) for pair, count in counts.items() if set(pair) <= set(unusual)]
    if not known:
        return None
    count, pair = max(known)
    return pair if 3 * count >= len(split) else None
