"""Rules for the features of real dictionaries: do they know concepts, are they right on new documents?

concepts: a dictionary of the bundled model is explained by rules that were never shown a list of
words or a label; for every concept of Fable the rule that predicts it best is chosen on some documents
and measured on others. Its control: the same with labels of another document. rewriting: the same
rules in place of the dictionary's codes. stories: every live latent of a dictionary of another model.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from mechlab.activations.live import live
from mechlab.bench.measure import Progress
from mechlab.data.corpus import BUNDLED, open_corpus
from mechlab.data.fable.concepts import CONCEPTS
from mechlab.features.explanations import Explanations, explain_features
from mechlab.features.index import FeatureIndex
from mechlab.features.planted.corpora import fable_text
from mechlab.features.rewrite import rewrite, rule_predictor
from mechlab.features.rules import Matcher
from mechlab.features.scoring.score import score_features
from mechlab.features.sources import index_dictionary, model_rows
from mechlab.features.split import Split
from mechlab.models.subject import Subject, load_model
from mechlab.sae.dictionary import Dictionary, train_sae
from mechlab.sae.registry import architecture
from mechlab.scores import Score, wilson

SITE, ARCH, WIDTH, ACTIVE = "blocks.0.hook_resid_post", "batchtopk", 512, 8
KNOWN = 0.8
_LABELLED = 200_000

Table = dict[str, Any]


def fable_dictionary(
    work: Path, *, tokens: int, seed: int, progress: Progress | None
) -> tuple[Subject, Dictionary]:
    """A dictionary of the bundled model, trained as its activations come."""
    subject = load_model(BUNDLED)
    config = architecture(ARCH).Config(site=SITE, d_sae=WIDTH, k=ACTIVE, tokens=tokens)
    source = live(subject, open_corpus(BUNDLED), [SITE])
    found = train_sae(
        source, work / "sae", config, seed=seed,
        progress=lambda done, total, _: progress("concepts: train", done, total, {}) if progress else None,
    )  # fmt: skip
    return subject, found


def concepts(
    *, tokens: int = 4_000_000, rows: int = 500_000, seed: int = 0, progress: Progress | None = None
) -> Table:
    """For every concept the best rule's token F1 on held-out documents; and rewriting with the same rules."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        subject, dictionary = fable_dictionary(work, tokens=tokens, seed=seed, progress=progress)
        source = model_rows(subject, open_corpus(BUNDLED), split="train", tokens=rows)
        index = index_dictionary(dictionary, source, work / "features", seed=seed)
        started = time.perf_counter()
        explanations = explain_features(
            index, progress=lambda n, of: progress("concepts: explain", n, of, {}) if progress else None
        )
        seconds = time.perf_counter() - started
        order = np.argsort(-index.mean * index.active)
        predict = rule_predictor({each.feature: each.rule for each in explanations.items if each.rule})
        live_order = [int(f) for f in order if index.active[f]]
        rewriting = rewrite(
            subject, dictionary, open_corpus(BUNDLED), predict, live_order, counts=(10, 100), seed=seed
        ).to_dict()
    return {
        "dictionary": {"site": SITE, "arch": ARCH, "d_sae": WIDTH, "k": ACTIVE, "tokens": tokens},
        "explained": len(explanations),
        "seconds": seconds,
        **_best_rules(explanations, seed),
        "rewriting": rewriting,
    }


def _best_rules(explanations: Explanations, seed: int) -> Table:
    """The rule for each concept is chosen on validation documents and measured on test documents."""
    (chosen_on, labels), (held, truth) = (
        fable_text(_LABELLED, split=split) for split in ("validation", "test")
    )
    rules = [(each.feature, each.rule) for each in explanations.items if each.rule is not None]
    matchers = Matcher(chosen_on), Matcher(held)
    counts = labels.sum(0)
    f1 = np.stack([_f1(labels, counts, matchers[0].rows(rule)[0]) for _, rule in rules])
    # Labels of other documents: the same numbers of tokens, and nothing to do with the text.
    moved = np.roll(truth, len(truth) // 2, axis=0)
    best = f1.argmax(0)
    found: dict[str, Any] = {}
    for column, concept in enumerate(CONCEPTS):
        feature, rule = rules[int(best[column])]
        rows = matchers[1].rows(rule)[0]
        here = truth[:, column : column + 1]
        value = _f1(here, here.sum(0), rows)
        control = _f1(moved[:, column : column + 1], here.sum(0), rows)
        found[concept.name] = {
            "f1": float(value[0]), "control": float(control[0]), "feature": feature,
            "rule": rule.sentence()[:200], "tokens": int(here.sum()),
        }  # fmt: skip
    values = np.array([each["f1"] for each in found.values()])
    known = int((values >= KNOWN).sum())
    low, high = wilson(known, len(values))
    return {
        "known": Score("concepts known", known / len(values), low, high, len(values)).to_dict(),
        "n_known": known,
        "n_concepts": len(values),
        "f1_mean": float(values.mean()),
        "control_mean": float(np.mean([each["control"] for each in found.values()])),
        "concepts": found,
    }


def _f1(
    labels: Bool[np.ndarray, "row concept"],
    positives: Float[np.ndarray, "concept"] | Any,
    rows: Any,
) -> Float[np.ndarray, "concept"]:
    hits = labels[rows].sum(0)
    value: np.ndarray = 2 * hits / np.maximum(len(rows) + positives, 1)
    return value


def stories(
    model: Path | str,
    data: Path | str,
    *,
    tokens: int = 2_000_000,
    rows: int = 500_000,
    d_sae: int = 1024,
    k: int = 16,
    seed: int = 0,
    progress: Progress | None = None,
) -> Table:
    """Explain and score every live latent of a dictionary of this model, and say how long it took."""
    subject, corpus = load_model(str(model)), open_corpus(data)
    site = f"blocks.{subject.module.config.num_hidden_layers // 2}.hook_resid_post"
    config = architecture("topk").Config(site=site, d_sae=d_sae, k=k, tokens=tokens)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        dictionary = train_sae(
            live(subject, corpus, [site]), work / "sae", config, seed=seed,
            progress=lambda n, of, _: progress("stories: train", n, of, {}) if progress else None,
        )  # fmt: skip
        source = model_rows(subject, corpus, split="train", tokens=rows)
        index = index_dictionary(dictionary, source, work / "features", seed=seed)
        return {"site": site, "d_sae": d_sae, "k": k, **_explained(index, seed, progress)}


def _explained(index: FeatureIndex, seed: int, progress: Progress | None) -> Table:
    split = Split(seed=seed)
    started = time.perf_counter()
    explanations = explain_features(
        index, split=split,
        progress=lambda n, of: progress("stories: explain", n, of, {}) if progress else None,
    )  # fmt: skip
    explained = time.perf_counter()
    card = score_features(index.halves(split)[1], explanations, ("detection", "fuzzing", "tokens"), seed=seed)
    done = time.perf_counter()
    totals = {
        total.scorer: {"mean": total.mean.to_dict(), "median": total.median.to_dict()}
        for total in card.totals()
    }
    return {
        "rows": len(index.text),
        "live": len(index.live),
        "explained": len(explanations),
        "scored": len(card.of("detection")),
        "unscored": len(card.unscored),
        "totals": totals,
        "seconds_explain": explained - started,
        "seconds_score": done - explained,
    }
