"""``mechlab features explain``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from mechlab.cli.features_inputs import features_fingerprint, ranges, read_concepts
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
from mechlab.errors import MechlabError

if TYPE_CHECKING:
    from mechlab.features.explanations import Explanations
    from mechlab.features.index import FeatureIndex
    from mechlab.features.llm.job import LlmJob

_SHOWN, _WIDE = 10, 150
# Flags that only one explainer heeds.
_ONLY = {"concepts": "rules", "function": "ngrams"}


class ExplainConfig(LanguageModelConfig):
    """Explain the features of an index on half of its documents; the other half is for scoring.

    rules: a program for every live feature, without a language model. llm: a sentence by the model
    of --llm. ngrams: rules over words for an index of functions, from the n-grams they respond to most
    (SASC). self: what the subject itself says of each feature's direction (needs --dictionary).

    Example: mechlab features explain runs/features --out runs/explanations
    """

    index: tyro.conf.Positional[Path] = Path("runs/features")
    """Directory of the feature index."""
    explainer: Literal["rules", "llm", "ngrams", "self"] = "rules"
    """Who explains."""
    features: str | None = None
    """Features to explain, "0-99" or "3,17,40-49"; all live ones by default."""
    out: Path = Path("runs/explanations")
    """Directory of the explanations."""
    share: float = 0.5
    """Share of the documents that explainers may see."""
    concepts: Path | None = None
    """rules: a JSON file {name: [word, …]} of lists that rules may refer to."""
    function: str | None = None
    """ngrams: the functions, as they were named to features index; all of the index by default."""
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
    for name, explainer in _ONLY.items():
        if getattr(config, name) is not None and config.explainer != explainer:
            raise MechlabError(f"--{name} is for explainer {explainer}", config.explainer, "leave it out")
    if config.explainer != "llm":
        refuse_dry_run(config, f"explainer {config.explainer}")
    concepts = None if config.concepts is None else read_concepts(config.concepts)

    from mechlab.artifacts import open_artifact
    from mechlab.cli.features_explainers import by_llm, by_ngrams, by_rules, by_subject
    from mechlab.features.building import load_index
    from mechlab.features.explanations import load_explanations, save_explanations
    from mechlab.features.split import Split

    require_directory(config.out)
    index, split = load_index(config.index), Split(config.share, config.seed)
    for feature in wanted or ():
        index.entries(feature)
    inputs = {
        "index": open_artifact(config.index).manifest.fingerprint,
        "features": features_fingerprint(config.index, index),
    }
    if config.dictionary is not None:
        inputs["dictionary"] = open_artifact(config.dictionary).manifest.fingerprint
    settings: dict[str, Any] = {"explainer": config.explainer, "features": config.features}
    settings["split"] = split.to_dict()
    if concepts is not None:
        settings["concepts"] = {name: sorted(words) for name, words in concepts.items()}
    if config.function is not None:
        settings["function"] = config.function
    money: dict[str, Any] = {}
    with Reporter() as report, ExitStack() as stack:
        job: LlmJob | None = None
        if config.explainer == "llm":
            job = stack.enter_context(closing(open_job(config, report, "explain")))

        def made() -> Explanations:
            if job is not None:
                return by_llm(config, index, wanted, split, job)
            if config.explainer == "self":
                return by_subject(config, index, wanted, report)
            if config.explainer == "ngrams":
                return by_ngrams(config, index, wanted, split, report)
            return by_rules(config, index, wanted, split, concepts, report)

        if job is not None:
            settings |= asked_of(job, config) | {"prompt": config.prompt, "examples": config.examples}
            if config.dry_run:
                made()
                return planned(job)
        save_explanations(
            made, config.out, config=settings, seed=config.seed, inputs=inputs, overwrite=config.overwrite
        )
        if job is not None:
            money = spending(job)
    return _outcome(config, index, load_explanations(config.out), money)


def _outcome(
    config: ExplainConfig, index: FeatureIndex, found: Explanations, money: Mapping[str, Any]
) -> Outcome:
    why = Counter(reason.split(":")[0] for reason in found.failed.values())
    payload = {
        "explanations": str(config.out),
        "explained": len({each.feature for each in found.items}),
        "live": len(index.live),
        "features": index.n_features,
        "failed": len(found.failed),
        "reasons": dict(why.most_common()),
        "documents_seen": len(found.documents),
        **({"spent": dict(money)} if money else {}),
    }
    lines = [
        f"{payload['explained']:,} features explained of {len(index.live):,} live ones, "
        f"from {len(found.documents):,} documents: {config.out}"
    ]
    for reason, count in why.most_common():
        example = next(each for each in found.failed.values() if each.startswith(reason))
        lines.append(cut(f"{count:,} without an explanation: {example}"))
    if money:
        lines.append(spent_line(money, config.cache))
    lines += [cut(f"  {each.feature}: {each.text}") for each in found.items[:_SHOWN]]
    lines += [f"  … {len(found) - _SHOWN:,} more"] if len(found) > _SHOWN else []
    return Outcome(payload, "\n".join(lines))


def cut(line: str) -> str:
    """One line, not too long for a terminal."""
    one = line[: len(line) - len(line.lstrip())] + " ".join(line.split())
    return one if len(one) <= _WIDE else f"{one[: _WIDE - 1]}…"
