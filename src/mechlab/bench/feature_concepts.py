"""Which concepts do rules for the features of a small model's dictionaries know?

Nothing that makes the rules sees a label or a list of words: dictionaries are trained on activations,
rules are learnt from features and text. Labels only choose, on validation documents, the rule for each
concept; its F1 is measured on test documents. No single dictionary has a latent for every concept (a
narrow one splits words into broad classes, a wide one into narrow classes, and only later layers know the
context), so a family is trained in one pass:

    hook_embed                      TopK, k = 1: 12, 16, 20, 24, 32, 40, 48, 64, 80, 96, 128 latents;
                                    k = 2: 64, 96, 128, 192, 256; k = 3: 64, 128
                                    BatchTopK, k = 1: 32, 48, 64, 128; k = 2: 64, 96, 128, 192, 256
    blocks.{0,1,2,3}.hook_resid_post    TopK, 128 latents with k = 2 and 256 with k = 4
                                    BatchTopK, 256 latents with k = 3
    blocks.0.hook_resid_post        BatchTopK, 512 latents, k = 8: also the one whose codes are rewritten

A latent is also weakly active on much that it does not stand for. So a feature may be a latent's strong
activations alone: those of at least some share of the 99th percentile of its activations. At hook_embed every
latent is three features, of shares 0, 0.35 and 0.5; behind the blocks it is one, of share 0.35 (TopK) or
0.5 (BatchTopK); of the last dictionary all latents are plain. The payload lists the dictionaries; it says how
many rules were chosen among, and what the best dictionary knows by its own rules alone.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from mechlab.activations.harvest import harvest
from mechlab.bench.measure import Progress
from mechlab.data.corpus import BUNDLED, open_corpus
from mechlab.data.fable.concepts import CONCEPTS
from mechlab.features.explanations import explain_features
from mechlab.features.index import FeatureIndex
from mechlab.features.planted.corpora import fable_text
from mechlab.features.rewrite import rewrite, rule_predictor
from mechlab.features.rules import Matcher, Rule
from mechlab.features.sources import index_dictionary, store_rows
from mechlab.models.subject import load_model
from mechlab.sae.batchtopk import BatchTopKConfig
from mechlab.sae.dictionary import train_saes
from mechlab.sae.topk import TopKConfig
from mechlab.scores import Score, wilson

KNOWN = 0.8
# Architecture → (k, widths) at the embeddings, where a dictionary sorts the words into classes.
_CLASSES: dict[type[TopKConfig], tuple[tuple[int, tuple[int, ...]], ...]] = {
    TopKConfig: (
        (1, (12, 16, 20, 24, 32, 40, 48, 64, 80, 96, 128)),
        (2, (64, 96, 128, 192, 256)),
        (3, (64, 128)),
    ),
    BatchTopKConfig: ((1, (32, 48, 64, 128)), (2, (64, 96, 128, 192, 256))),
}
_EMBED, _BLOCKS = "hook_embed", tuple(f"blocks.{layer}.hook_resid_post" for layer in range(4))
_FREQUENT = 60
_LABELLED = 100_000

Table = dict[str, Any]


def family(tokens: int) -> dict[str, tuple[TopKConfig, tuple[float, ...]]]:
    """Name → settings of a dictionary, and the shares of its latents' strength from which they are features.

    The last is the one that is rewritten.
    """
    made: dict[str, tuple[TopKConfig, tuple[float, ...]]] = {}

    def add(kind: type[TopKConfig], site: str, d_sae: int, k: int, *shares: float) -> None:
        config = kind(site=site, d_sae=d_sae, k=k, tokens=tokens, batch_size=1024)
        made[f"{site}-{config.arch}-{d_sae}-{k}"] = config, shares

    for kind, widths_of in _CLASSES.items():
        for k, widths in widths_of:
            for width in widths:
                add(kind, _EMBED, width, k, 0.0, 0.35, 0.5)
    for site in _BLOCKS:
        add(TopKConfig, site, 128, 2, 0.35)
        add(TopKConfig, site, 256, 4, 0.35)
        add(BatchTopKConfig, site, 256, 3, 0.5)
    add(BatchTopKConfig, _BLOCKS[0], 512, 8, 0.0)
    return made


def strong(index: FeatureIndex, share: float) -> FeatureIndex:
    """The index of activations of at least ``share`` times the 99th percentile of their feature's."""
    least = np.zeros(index.n_features)
    for feature in index.live:
        least[feature] = share * np.quantile(index.entries(int(feature))[1], 0.99)
    keep = index.value >= np.repeat(least, index.active)
    before = np.concatenate([[0], np.cumsum(keep)])
    return FeatureIndex(
        index.text, before[index.indptr], index.row[keep], index.value[keep], {**index.about, "share": share}
    )


def side_by_side(parts: Sequence[FeatureIndex]) -> tuple[FeatureIndex, Int[np.ndarray, "part_plus_1"]]:
    """Indexes of one text as one, and where each one's features begin in it."""
    offsets = np.concatenate([[0], np.cumsum([part.n_features for part in parts])])
    entries = np.concatenate([[0], np.cumsum([len(part.row) for part in parts])])
    begins = [part.indptr[:-1] + start for part, start in zip(parts, entries[:-1], strict=True)]
    found = FeatureIndex(
        parts[0].text,
        np.concatenate([*begins, entries[-1:]]),
        np.concatenate([part.row for part in parts]),
        np.concatenate([part.value for part in parts]),
    )
    return found, offsets


def f1_of(
    labels: Bool[np.ndarray, "row concept"],
    positives: Int[np.ndarray, "concept"],
    rows: Int[np.ndarray, "hit"],
) -> Float[np.ndarray, "concept"]:
    """F1 for each concept of saying that these rows, and no others, carry it.

    Args:
        positives: rows that carry each concept, ``labels.sum(0)``.
    """
    value: np.ndarray = 2 * labels[rows].sum(0) / np.maximum(len(rows) + positives, 1)
    return value


def concepts(
    *, tokens: int = 320_000, rows: int = 160_000, seed: int = 0, progress: Progress | None = None
) -> Table:
    """For every concept the test F1 of the rule chosen for it; and rewriting with one dictionary's rules.

    Args:
        tokens: rows of training, counting repeats, of each dictionary.
        rows: rows that activations are harvested of, and rules are learnt from.
    """

    def tell(stage: str, done: int, total: int) -> None:
        if progress is not None:
            progress(f"concepts: {stage}", done, total, {})

    subject, corpus, members = load_model(BUNDLED), open_corpus(BUNDLED), family(tokens)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        store = harvest(
            subject, corpus, [_EMBED, *_BLOCKS], work / "store", tokens=rows,
            progress=lambda done, total: tell("harvest", done, total),
        )  # fmt: skip
        trained = train_saes(
            store, {work / name: config for name, (config, _) in members.items()}, seed=seed,
            progress=lambda done, total, _: tell("train", done, total),
        )  # fmt: skip
        source = store_rows(store, subject)
        parts, named = [], []
        for (name, (_, shares)), dictionary in zip(members.items(), trained, strict=True):
            index = index_dictionary(dictionary, source, work / f"{name}-index", seed=seed)
            parts += [strong(index, share) if share else index for share in shares]
            named += [(name, share) for share in shares]
        whole, offsets = side_by_side(parts)
        prepared = time.perf_counter()
        explanations = explain_features(whole, progress=lambda done, total: tell("explain", done, total))
        explained = time.perf_counter()
        rules = {each.feature: each.rule for each in explanations.items if each.rule is not None}
        last = {feature - int(offsets[-2]): rule for feature, rule in rules.items() if feature >= offsets[-2]}
        order = [int(f) for f in np.argsort(-index.mean * index.active, kind="stable") if int(f) in last]
        rewriting = rewrite(
            subject, dictionary, corpus, rule_predictor(last), order, counts=(10, 100), seed=seed
        ).to_dict()
    sources = [named[part] for part in np.searchsorted(offsets, list(rules), side="right") - 1]
    found = {
        "dictionaries": [
            {"site": config.site, "arch": config.arch, "d_sae": config.d_sae, "k": config.k,
             "shares": list(shares)} for config, shares in members.values()
        ],
        "tokens": tokens,
        "rows": rows,
        "seconds_prepare": prepared - started,
        "seconds_explain": explained - prepared,
        **best_rules(list(rules.values()), sources),
        "rewriting": rewriting,
    }  # fmt: skip
    return {**found, "seconds": time.perf_counter() - started}


def best_rules(rules: Sequence[Rule], sources: Sequence[tuple[str, float]]) -> Table:
    """The rule for each concept is chosen on validation documents and measured on test documents.

    Args:
        sources: of each rule, the dictionary and share that its feature comes from.
    """
    (chosen_on, labels), (held, truth) = (
        fable_text(_LABELLED, split=split) for split in ("validation", "test")
    )
    matchers = Matcher(chosen_on), Matcher(held)
    # Labels of other documents: the same numbers of tokens, and nothing to do with the text.
    moved = np.roll(truth, len(truth) // 2, axis=0)
    positives, true_positives = labels.sum(0), truth.sum(0)
    f1 = np.stack([f1_of(labels, positives, matchers[0].rows(rule)[0]) for rule in rules])
    measured: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def measure(best: Int[np.ndarray, "concept"]) -> Float[np.ndarray, "true_or_control concept"]:
        for each in set(best.tolist()) - set(measured):
            rows = matchers[1].rows(rules[each])[0]
            measured[each] = f1_of(truth, true_positives, rows), f1_of(moved, true_positives, rows)
        pairs = [
            (measured[each][0][column], measured[each][1][column])
            for column, each in enumerate(best.tolist())
        ]
        return np.array(pairs).T

    best = f1.argmax(0)
    values, control = measure(best)
    alone = {}
    for name in dict.fromkeys(name for name, _ in sources):
        own = np.flatnonzero([source == name for source, _ in sources])
        alone[name] = int((measure(own[f1[own].argmax(0)])[0] >= KNOWN).sum())
    known = int((values >= KNOWN).sum())
    frequent = np.argsort(-true_positives, kind="stable")[:_FREQUENT]
    low, high = wilson(known, len(values))
    single = max(alone, key=lambda name: alone[name])
    return {
        "rules": len(rules),
        "known": Score("concepts known", known / len(values), low, high, len(values)).to_dict(),
        "n_known": known,
        "n_concepts": len(values),
        "n_known_of_most_frequent": {"known": int((values[frequent] >= KNOWN).sum()), "of": _FREQUENT},
        "n_known_control": int((control >= KNOWN).sum()),
        "best_single_dictionary": {"name": single, "n_known": alone[single]},
        "n_known_alone": alone,
        "f1_mean": float(values.mean()),
        "control_mean": float(control.mean()),
        "control_max": float(control.max()),
        "concepts": {
            concept.name: {
                "f1": float(values[column]), "f1_validation": float(f1[best[column], column]),
                "control": float(control[column]), "dictionary": sources[best[column]][0],
                "share": sources[best[column]][1], "rule": rules[best[column]].sentence()[:200],
                "tokens": int(true_positives[column]),
            } for column, concept in enumerate(CONCEPTS)
        },
    }  # fmt: skip
