"""Who judges in ``mechlab features score``, and whether a language model can be trusted with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mechlab.cli.features_score import ScoreConfig
    from mechlab.features.explanations import Explanations
    from mechlab.features.index import FeatureIndex
    from mechlab.features.llm.job import LlmJob
    from mechlab.features.scoring.readers import Reader

_AUDITED = 10


def judge_of(config: ScoreConfig, index: FeatureIndex, job: LlmJob | None) -> Any:
    """The judge that was asked for; None: rules are executed."""
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

        return SurprisalJudge(reader_of(config, index))
    return None


def reader_of(config: ScoreConfig, index: FeatureIndex) -> Reader:
    """Who reads for judge surprisal."""
    from mechlab.features.scoring.readers import model_reader, word_reader
    from mechlab.models.subject import load_model

    if config.reader == "words":
        return word_reader(index.text.passages())
    return model_reader(load_model(config.reader))


def judge_name(config: ScoreConfig) -> str:
    """How a judge is called in the settings of the scores."""
    detail = {"llm": config.llm, "embedding": config.embedder, "surprisal": config.reader}.get(config.judge)
    return f"{config.judge}:{detail}" if detail else config.judge


def audit(
    config: ScoreConfig, index: FeatureIndex, explanations: Explanations, job: LlmJob
) -> dict[str, Any]:
    """The audit of a language model as judge, on the detection items of a few features."""
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
