"""``mechlab features explain``."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from mechlab.cli.features_export import ranges
from mechlab.cli.language_model import LanguageModelConfig, estimated, open_job, spending
from mechlab.cli.outcome import Outcome
from mechlab.cli.outputs import require_directory
from mechlab.cli.parse import parse
from mechlab.cli.progress import Reporter
from mechlab.errors import MechlabError

if TYPE_CHECKING:
    from mechlab.features.explanations import Explanations
    from mechlab.features.index import FeatureIndex
    from mechlab.features.llm.job import LlmJob
    from mechlab.features.split import Split
    from mechlab.models.subject import Subject
    from mechlab.sae.dictionary import Dictionary

_SHOWN = 10


class ExplainConfig(LanguageModelConfig):
    """Explain the features of an index on half of its documents; the other half is for scoring.

    rules: a program for every live feature, without a language model. llm: a sentence by the model
    of --llm. self: what the subject itself says of each feature's direction (needs --dictionary).

    Example: mechlab features explain runs/features --out runs/explanations
    """

    index: tyro.conf.Positional[Path] = Path("runs/features")
    """Directory of the feature index."""
    explainer: Literal["rules", "llm", "self"] = "rules"
    """Who explains."""
    features: str | None = None
    """Features to explain, "0-99" or "3,17,40-49"; all live ones by default."""
    out: Path = Path("runs/explanations")
    """Directory of the explanations."""
    share: float = 0.5
    """Share of the documents that explainers may see."""
    concepts: Path | None = None
    """rules: a JSON file {name: [word, …]} of lists that rules may refer to."""
    dictionary: Path | None = None
    """Dictionary that was indexed: rules and prompts then know the words that features promote."""
    subject: str = ""
    """Subject of --dictionary; by default that of the index."""
    prompt: Literal["max-activating", "contrastive", "chain-of-thought"] = "max-activating"
    """llm: what is shown and asked."""
    examples: int = 20
    """llm: contexts shown of each feature."""
    seed: int = 0
    """Decides which documents are for explaining, and which contexts are shown."""
    overwrite: bool = False
    """Replace what is at --out when it was made with other settings."""


def explain(words: list[str], program: str) -> Outcome:
    """Explain features."""
    config = parse(ExplainConfig, words, program)
    wanted = None if config.features is None else ranges(config.features)

    from mechlab.artifacts import open_artifact
    from mechlab.features.building import load_index
    from mechlab.features.explanations import load_explanations, save_explanations
    from mechlab.features.split import Split

    require_directory(config.out)
    index, split = load_index(config.index), Split(config.share, config.seed)
    for feature in wanted or ():
        index.entries(feature)
    inputs = {"index": open_artifact(config.index).manifest.fingerprint}
    if config.dictionary is not None:
        inputs["dictionary"] = open_artifact(config.dictionary).manifest.fingerprint
    settings: dict[str, Any] = {"explainer": config.explainer, "features": config.features}
    settings["split"] = split.to_dict()
    money: dict[str, Any] = {}
    job: LlmJob | None = None
    with Reporter() as report:
        concepts = None
        if config.explainer == "llm":
            job = open_job(config, report, "explain")
            settings |= {"llm": config.llm, "endpoint": job.client.endpoint, "prompt": config.prompt}
            settings["examples"] = config.examples
        elif config.explainer == "rules" and config.concepts is not None:
            concepts = read_concepts(config.concepts)
            settings["concepts"] = {name: sorted(words) for name, words in concepts.items()}

        def made() -> Explanations:
            if job is not None:
                return _by_llm(config, index, job, wanted, split)
            if config.explainer == "self":
                return _by_subject(config, index, wanted, report)
            return _by_rules(config, index, wanted, split, concepts, report)

        if config.dry_run and job is not None:
            made()
            return _estimate(estimated(job))
        save_explanations(
            made, config.out, config=settings, seed=config.seed, inputs=inputs, overwrite=config.overwrite
        )
        if job is not None:
            money = spending(job)
    found = load_explanations(config.out)
    return _outcome(config, index, found, money)


def _by_rules(
    config: ExplainConfig,
    index: FeatureIndex,
    wanted: list[int] | None,
    split: Split,
    concepts: Mapping[str, Collection[str]] | None,
    report: Reporter,
) -> Explanations:
    from mechlab.features.explanations import explain_features

    return explain_features(
        index,
        split=split,
        features=wanted,
        concepts=concepts,
        promoted=_promoted(config, index),
        progress=lambda done, total: report("explain", done, total, {}),
    )


def _by_llm(
    config: ExplainConfig, index: FeatureIndex, job: LlmJob, wanted: list[int] | None, split: Split
) -> Explanations:
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


def _by_subject(
    config: ExplainConfig, index: FeatureIndex, wanted: list[int] | None, report: Reporter
) -> Explanations:
    from mechlab.features.explanations import Explanation, Explanations
    from mechlab.features.self_interpretation import account

    dictionary, subject = opened(config.dictionary, config.subject, index)
    site = dictionary.outputs[0]
    items = []
    features = index.live.tolist() if wanted is None else wanted
    for done, feature in enumerate(features):
        said = account(subject, dictionary.sae.W_dec[feature % dictionary.sae.d_sae], site)
        about = {"relevance": list(said.relevance), "site": said.site, "scale": said.scale}
        items.append(Explanation(feature, "self", said.text.strip(), None, about))
        report("explain", done + 1, len(features), {})
    # No document was looked at: all of them are left for scoring.
    return Explanations(tuple(items), (), index.n_features)


def opened(dictionary: Path | None, subject: str, index: FeatureIndex) -> tuple[Dictionary, Subject]:
    """The dictionary that was indexed, and its subject. MechlabError when one is not named."""
    from mechlab.models.subject import load_model
    from mechlab.sae.dictionary import load_sae

    if dictionary is None:
        raise MechlabError("no dictionary is named", remedy="pass --dictionary, the one that was indexed")
    name = subject or (index.about.get("text") or {}).get("model_name")
    if not name:
        raise MechlabError("no subject is named", dictionary, "pass --subject")
    found, model = load_sae(dictionary), load_model(name)
    found.check(model)
    if index.n_features not in (found.sae.d_sae, 2 * found.sae.d_sae):
        raise MechlabError("dictionary is not the one that was indexed", dictionary, "check --dictionary")
    return found, model


def _promoted(config: ExplainConfig, index: FeatureIndex) -> dict[int, tuple[str, ...]] | None:
    if config.dictionary is None:
        return None
    from mechlab.features.logits import dictionary_directions, logit_effects

    dictionary, subject = opened(config.dictionary, config.subject, index)
    directions = dictionary_directions(subject, dictionary, signs=bool(index.about.get("signs")))
    effects = logit_effects(subject, directions)
    return {feature: effects.words(feature, index.text.vocabulary) for feature in range(index.n_features)}


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


def _estimate(figures: Mapping[str, float | None]) -> Outcome:
    price = figures["dollars"]
    cost = (
        "price not given"
        if price is None
        else f"about ${price:.4f}, at most ${figures['dollars_at_most']:.4f}"
    )
    text = (
        f"dry run: {figures['requests']} requests, {figures['cached']} answered already; "
        f"{figures['input_tokens']} tokens to read, at most {figures['output_tokens']} to write: {cost}"
    )
    return Outcome({"dry_run": dict(figures)}, text)


def _outcome(
    config: ExplainConfig, index: FeatureIndex, found: Explanations, money: Mapping[str, Any]
) -> Outcome:
    payload = {
        "explanations": str(config.out),
        "explained": len({each.feature for each in found.items}),
        "live": len(index.live),
        "features": index.n_features,
        "failed": len(found.failed),
        "documents_seen": len(found.documents),
        **({"spent": dict(money)} if money else {}),
    }
    lines = [
        f"{payload['explained']:,} features explained ({len(index.live):,} are live), "
        f"{len(found.failed):,} without an explanation: {config.out}"
    ]
    if money:
        cost = "price not given" if money["dollars"] is None else f"${money['dollars']:.4f}"
        lines.append(f"{money['answers']:,} answers in {config.cache}, {cost}")
    lines += [f"  {each.feature}: {each.text}" for each in found.items[:_SHOWN]]
    lines += [f"  … {len(found) - _SHOWN:,} more"] if len(found) > _SHOWN else []
    lines += [f"  {feature}: {why}" for feature, why in list(found.failed.items())[:3]]
    return Outcome(payload, "\n".join(lines))
