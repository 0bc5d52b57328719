"""``mechlab features score``."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import tyro

from mechlab.cli.features_explain import cut
from mechlab.cli.features_inputs import ranges, read_concepts, require_same_features
from mechlab.cli.features_judges import judge_name
from mechlab.cli.features_scorers import Scoring, wanted_scorers
from mechlab.cli.language_model import (
    LanguageModelConfig,
    asked_of,
    open_job,
    planned,
    refuse_dry_run,
    spending,
    spent_line,
)
from mechlab.cli.outcome import Outcome
from mechlab.cli.outputs import require_directory
from mechlab.cli.parse import parse
from mechlab.cli.progress import Reporter
from mechlab.cli.score_table import score_table
from mechlab.errors import MechlabError

if TYPE_CHECKING:
    from mechlab.features.explanations import Explanations
    from mechlab.features.index import FeatureIndex
    from mechlab.features.llm.job import LlmJob
    from mechlab.features.scoring.scorecard import Scorecard
    from mechlab.scores import Score


class ScoreConfig(LanguageModelConfig):
    """Score explanations on the documents of an index that no explainer saw.

    Scorers: detection, hard (near misses), fuzzing, quantiles, precision (at the true base rate),
    intruder (needs no explanation), tokens (rules, exactly), simulation. With --dictionary: synthetic
    (the subject runs on new texts), intervention (steered along the feature at matched KL: are the words
    it promotes written, and does a judge llm or surprisal hear it? slow: name --features) and rewriting
    (the model's loss with features as explained). Judges: rules (they are executed), llm (audited as
    well), embedding, surprisal. Every score stands beside its control: that of another feature's
    explanation, or of random directions.

    Example: mechlab features score runs/explanations --index runs/features --scorers detection,hard,tokens
    """

    explanations: tyro.conf.Positional[Path] = Path("runs/explanations")
    """Directory of the explanations."""
    index: Path = Path("runs/features")
    """Directory of the feature index; documents that explainers saw are passed over."""
    scorers: str = "detection,fuzzing,tokens"
    """Which scores, with commas between."""
    features: str | None = None
    """Features to score, "0-99" or "3,17,40-49"; all that are explained by default."""
    judge: Literal["rules", "llm", "embedding", "surprisal"] = "rules"
    """Who answers for the explanations."""
    embedder: str = "characters"
    """embedding: a sentence-embedding model (directory or hub name); "characters" needs none, and is weak."""
    reader: str = "words"
    """surprisal: a causal model that reads (directory or hub name); "words" needs none, and is weak."""
    subject: str = ""
    """With --dictionary: the model that runs; that of the index by default."""
    dictionary: Path | None = None
    """The dictionary that was indexed."""
    data: str = ""
    """rewriting: the corpus whose unseen documents are read; that of the index by default."""
    column: str = "text"
    """rewriting: field of the corpus that holds the text."""
    tokens: int = 10_000
    """rewriting: tokens whose loss is measured."""
    concepts: Path | None = None
    """The JSON file of word lists that rules refer to."""
    out: Path = Path("runs/scores")
    """Directory of the scores."""
    samples: int = 50
    """Items of either class, at most."""
    width: int = 32
    """Tokens of an item."""
    seed: int = 0
    """Decides the items, the controls and the resamples."""
    overwrite: bool = False
    """Replace what is at --out when it was made with other settings."""


def score(words: list[str], program: str) -> Outcome:
    """Score explanations."""
    config = parse(ScoreConfig, words, program)
    wanted = wanted_scorers(config.scorers, config.dictionary)
    if config.judge != "llm":
        refuse_dry_run(config, f"judge {config.judge}")

    from mechlab.artifacts import open_artifact
    from mechlab.features.building import load_index
    from mechlab.features.explanations import KIND, load_explanations
    from mechlab.features.scoring.scorecard import load_scores, save_scores

    require_directory(config.out)
    said, whole = open_artifact(config.explanations, KIND), load_index(config.index)
    explanations = _chosen(config, load_explanations(config.explanations), whole)
    require_same_features(said, config.index, whole)
    seen = np.isin(whole.text.document, np.array(explanations.documents, np.int64))
    if seen.all():
        raise MechlabError(
            "explainers saw every document of the index", config.index, "score on another index"
        )
    inputs = {
        "index": open_artifact(config.index).manifest.fingerprint,
        "explanations": said.manifest.fingerprint,
    }
    if config.dictionary is not None:
        inputs["dictionary"] = open_artifact(config.dictionary).manifest.fingerprint
    settings = _settings(config, wanted)
    money: dict[str, Any] = {}
    with Reporter() as report, ExitStack() as stack:
        job: LlmJob | None = None
        if config.judge == "llm":
            job = stack.enter_context(closing(open_job(config, report, "judge")))
            settings |= asked_of(job, config)

        def made() -> Scorecard:
            return Scoring(config, whole.restrict(~seen), explanations, job, report).card(wanted)

        if config.dry_run and job is not None:
            made()
            return planned(job)
        save_scores(
            made, config.out, config=settings, seed=config.seed, inputs=inputs, overwrite=config.overwrite
        )
        if job is not None:
            money = spending(job)
    return _outcome(config, load_scores(config.out), money)


def _settings(config: ScoreConfig, wanted: tuple[str, ...]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "scorers": list(wanted),
        "judge": judge_name(config),
        "features": config.features,
    }
    found |= {"samples": config.samples, "width": config.width, "subject": config.subject}
    if config.concepts is not None:
        concepts = read_concepts(config.concepts)
        found["concepts"] = {name: sorted(words) for name, words in concepts.items()}
    if "rewriting" in wanted:
        found |= {"data": config.data, "column": config.column, "tokens": config.tokens}
    return found


def _chosen(config: ScoreConfig, explanations: Explanations, index: FeatureIndex) -> Explanations:
    """The explanations to score. MechlabError when there are none."""
    if config.features is not None:
        wanted = set(ranges(config.features))
        for feature in wanted:
            index.entries(feature)
        explanations = replace(
            explanations,
            items=tuple(each for each in explanations.items if each.feature in wanted),
            failed={feature: why for feature, why in explanations.failed.items() if feature in wanted},
        )
    if not explanations.items:
        raise MechlabError(
            "nothing is explained here", config.features or config.explanations, "choose other features"
        )
    return explanations


def _outcome(config: ScoreConfig, card: Scorecard, money: dict[str, Any]) -> Outcome:
    totals = card.totals()
    features = len({each.feature for each in card})
    why = Counter(each.reason.split(":")[0] for each in card.unscored)
    payload = {
        "scores": str(config.out),
        "features": features,
        "totals": [
            {
                "explainer": each.explainer,
                "scorer": each.scorer,
                "mean": each.mean.to_dict(),
                "median": each.median.to_dict(),
                "unscored": each.unscored,
                "failed": each.failed,
            }
            for each in totals
        ],
        "unscored": len(card.unscored),
        "reasons": dict(why.most_common()),
        **({"rewriting": card.rewriting} if card.rewriting is not None else {}),
        **({"audit": card.audit} if card.audit is not None else {}),
        **({"spent": money} if money else {}),
    }
    what = "1 feature scored" if features == 1 else f"{features:,} features scored, means over features"
    lines = [f"{what}: {config.out}"]
    for explainer in dict.fromkeys(each.explainer for each in totals):
        rows = [(each.scorer, each.mean) for each in totals if each.explainer == explainer]
        lines += [explainer or "no explanation needed", score_table(rows)]
    if card.rewriting is not None:
        lines += ["rewriting: the model with features as explained", score_table(_rewritten(card.rewriting))]
    for reason, count in why.most_common(5):
        example = next(each.reason for each in card.unscored if each.reason.startswith(reason))
        lines.append(cut(f"{count:,} without a score: {example}"))
    for each in totals:
        if each.failed:
            lines.append(f"{each.failed:,} answers to {each.scorer} could not be used")
    if card.audit is not None:
        failures = ", ".join(f"{count:,} {kind}" for kind, count in card.audit.get("failures", {}).items())
        lines.append(f"judge: {card.audit['verdict']}" + (f"; batches lost: {failures}" if failures else ""))
    if money:
        lines.append(spent_line(money, config.cache))
    return Outcome(payload, "\n".join(lines))


def _rewritten(found: Any) -> list[tuple[str, Score]]:
    from mechlab.scores import Score

    rows = [(f"loss, {name}", Score.from_dict(found["ce"][name])) for name in ("clean", "reconstruction")]
    for share in found["shares"]:
        rows.append((f"recovered, {share['features']:,} features", Score.from_dict(share["recovered"])))
    return rows
