"""``mechlab features score``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import tyro

from mechlab.cli.features_explain import opened, read_concepts
from mechlab.cli.language_model import LanguageModelConfig, estimated, open_job, spending
from mechlab.cli.outcome import Outcome
from mechlab.cli.outputs import require_directory
from mechlab.cli.parse import parse
from mechlab.cli.progress import Reporter
from mechlab.cli.score_table import score_table
from mechlab.errors import MechlabError, near

if TYPE_CHECKING:
    from mechlab.features.explanations import Explanations
    from mechlab.features.index import FeatureIndex
    from mechlab.features.llm.job import LlmJob
    from mechlab.features.scoring.scorecard import Scorecard

_SIMULATION, _SYNTHETIC = "simulation", "synthetic"
_AUDITED = 10


class ScoreConfig(LanguageModelConfig):
    """Score explanations on the documents of an index that no explainer saw.

    Scorers: detection, hard (near misses), fuzzing, quantiles, precision (at the true base rate),
    intruder (needs no explanation), tokens (rules, exactly), simulation, synthetic (the subject runs
    on new texts; needs --dictionary). Judges: rules (they are executed), llm (audited as well),
    embedding, surprisal. Every score stands beside that of another feature's explanation.

    Example: mechlab features score runs/explanations --index runs/features --scorers detection,hard,tokens
    """

    explanations: tyro.conf.Positional[Path] = Path("runs/explanations")
    """Directory of the explanations."""
    index: Path = Path("runs/features")
    """Directory of the feature index; documents that explainers saw are passed over."""
    scorers: str = "detection,fuzzing,tokens"
    """Which scores, with commas between."""
    judge: Literal["rules", "llm", "embedding", "surprisal"] = "rules"
    """Who answers for the explanations."""
    embedder: str = "characters"
    """embedding: a sentence-embedding model (directory or hub name); "characters" needs none, and is weak."""
    subject: str = ""
    """surprisal: the model that reads; synthetic: the one that runs. By default that of the index."""
    dictionary: Path | None = None
    """synthetic: the dictionary that was indexed."""
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
    wanted = _wanted(config)

    from mechlab.artifacts import open_artifact
    from mechlab.features.building import load_index
    from mechlab.features.explanations import load_explanations
    from mechlab.features.scoring.scorecard import load_scores, save_scores

    require_directory(config.out)
    explanations, whole = load_explanations(config.explanations), load_index(config.index)
    seen = np.isin(whole.text.document, np.array(explanations.documents, np.int64))
    if seen.all():
        raise MechlabError(
            "explainers saw every document of the index", config.index, "score on another index"
        )
    inputs = {
        "index": open_artifact(config.index).manifest.fingerprint,
        "explanations": open_artifact(config.explanations).manifest.fingerprint,
    }
    settings: dict[str, Any] = {"scorers": list(wanted), "judge": _judge_name(config)}
    settings |= {"samples": config.samples, "width": config.width}
    money: dict[str, Any] = {}
    with Reporter() as report:
        job = open_job(config, report, "judge") if config.judge == "llm" else None

        def made() -> Scorecard:
            return _scored(config, wanted, whole.restrict(~seen), explanations, job, report)

        if config.dry_run and job is not None:
            made()
            return Outcome({"dry_run": estimated(job)}, f"dry run: {estimated(job)}")
        save_scores(
            made, config.out, config=settings, seed=config.seed, inputs=inputs, overwrite=config.overwrite
        )
        if job is not None:
            money = spending(job)
    return _outcome(config, load_scores(config.out), money)


def _wanted(config: ScoreConfig) -> tuple[str, ...]:
    from mechlab.features.scoring.score import SCORERS

    known = (*SCORERS, _SIMULATION, _SYNTHETIC)
    wanted = tuple(dict.fromkeys(name.strip() for name in config.scorers.split(",")))
    for name in wanted:
        if name not in known:
            raise MechlabError("unknown scorer", name, near(name, known))
    if _SYNTHETIC in wanted and config.dictionary is None:
        raise MechlabError(
            "no dictionary is named", _SYNTHETIC, "pass --dictionary, the one that was indexed"
        )
    return wanted


def _judge_name(config: ScoreConfig) -> str:
    detail = {"llm": config.llm, "embedding": config.embedder, "surprisal": config.subject}
    return f"{config.judge}:{detail[config.judge]}" if config.judge in detail else config.judge


def _scored(
    config: ScoreConfig,
    wanted: Sequence[str],
    index: FeatureIndex,
    explanations: Explanations,
    job: LlmJob | None,
    report: Reporter,
) -> Scorecard:
    from mechlab.features.neighbours import co_occurring
    from mechlab.features.rules import Matcher
    from mechlab.features.scoring.score import SCORERS, score_features
    from mechlab.features.scoring.scorecard import together
    from mechlab.features.scoring.simulated import score_simulations
    from mechlab.features.scoring.simulators import RuleSimulator
    from mechlab.features.scoring.synthetic import dictionary_activations, score_synthetic_rules

    def progress(stage: str) -> Callable[[int, int], None]:
        return lambda done, total: report(stage, done, total, {})

    concepts = None if config.concepts is None else read_concepts(config.concepts)
    cards: list[Scorecard] = []
    asked = [name for name in wanted if name in SCORERS]
    if asked:
        neighbours = co_occurring(index).lists() if "hard" in asked else None
        card = score_features(
            index, explanations, asked, _judge(config, index, job), seed=config.seed, neighbours=neighbours,
            samples=config.samples, width=config.width, concepts=concepts, progress=progress("score"),
        )  # fmt: skip
        audit = None if job is None else _audit(config, index, explanations, job)
        cards.append(replace(card, audit=audit))
    if _SIMULATION in wanted:
        if job is None:
            simulator: Any = RuleSimulator(Matcher(index.text, concepts or {}))
            ruled = tuple(each for each in explanations.items if each.rule is not None)
        else:
            from mechlab.features.llm.simulator import LlmSimulator

            simulator, ruled = LlmSimulator(job), explanations.items
        cards.append(
            score_simulations(
                index, replace(explanations, items=ruled), simulator, width=config.width, seed=config.seed,
                progress=progress("simulate"),
            )
        )  # fmt: skip
    if _SYNTHETIC in wanted:
        dictionary, subject = opened(config.dictionary, config.subject, index)
        cards.append(
            score_synthetic_rules(
                index, explanations, dictionary_activations(subject, dictionary), concepts=concepts,
                seed=config.seed, progress=progress("synthetic"),
            )
        )  # fmt: skip
    return together(cards)


def _judge(config: ScoreConfig, index: FeatureIndex, job: LlmJob | None) -> Any:
    if job is not None:
        from mechlab.features.llm.judge import LlmJudge

        return LlmJudge(job, seed=config.seed)
    if config.judge == "embedding":
        from mechlab.features.scoring.embedders import character_embedder, sentence_embedder
        from mechlab.features.scoring.embedding import EmbeddingJudge

        if config.embedder == "characters":
            return EmbeddingJudge(character_embedder(), "")
        return EmbeddingJudge(sentence_embedder(config.embedder))
    if config.judge == "surprisal":
        from mechlab.features.scoring.surprisal import SurprisalJudge
        from mechlab.models.subject import load_model

        name = config.subject or (index.about.get("text") or {}).get("model_name")
        if not name:
            raise MechlabError("no model is named that could read", remedy="pass --subject")
        return SurprisalJudge(load_model(name))
    return None


def _audit(
    config: ScoreConfig, index: FeatureIndex, explanations: Explanations, job: LlmJob
) -> dict[str, Any]:
    """The judge's audit on the detection items of a few features."""
    from mechlab.features.llm.audit import audit_judge
    from mechlab.features.scoring.asking import draw
    from mechlab.features.scoring.held import hold
    from mechlab.features.scoring.items import Question

    held = hold(index, width=config.width, samples=config.samples, seed=config.seed)
    drawn, _ = draw(held, "detection", explanations.items, config.seed)
    step = max(len(drawn) // _AUDITED, 1)
    questions = [Question(each.explanation, each.items) for each in drawn[::step][:_AUDITED]]
    if not questions:
        return {"verdict": "nothing to audit the judge on", "problems": [], "scores": {}}
    return audit_judge(job, index.text, questions, seed=config.seed).to_dict()


def _outcome(config: ScoreConfig, card: Scorecard, money: dict[str, Any]) -> Outcome:
    totals = card.totals()
    features = len({each.feature for each in card})
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
        **({"audit": card.audit} if card.audit is not None else {}),
        **({"spent": money} if money else {}),
    }
    rows = []
    for each in totals:
        name = f"{each.scorer} ({each.explainer})" if each.explainer else each.scorer
        rows += [(f"{name}, mean", each.mean), (f"{name}, median", each.median)]
    lines = [score_table(rows), f"{features:,} features scored: {config.out}"]
    why: dict[str, int] = {}
    for unscored in card.unscored:
        why[unscored.reason] = why.get(unscored.reason, 0) + 1
    lines += [f"  {count:,} without a score: {reason}" for reason, count in sorted(why.items())[:5]]
    if card.audit is not None:
        lines.append(f"judge: {card.audit['verdict']}")
    if money:
        cost = "price not given" if money["dollars"] is None else f"${money['dollars']:.4f}"
        lines.append(f"{money['answers']:,} answers in {config.cache}, {cost}")
    return Outcome(payload, "\n".join(lines))
