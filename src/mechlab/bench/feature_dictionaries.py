"""Rules for the features of a real dictionary: all live latents are explained, then scored elsewhere."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from mechlab.activations.live import live
from mechlab.bench.measure import Progress
from mechlab.data.corpus import open_corpus
from mechlab.features.explanations import explain_features
from mechlab.features.index import FeatureIndex
from mechlab.features.scoring.score import score_features
from mechlab.features.sources import index_dictionary, model_rows
from mechlab.features.split import Split
from mechlab.models.subject import load_model
from mechlab.sae.dictionary import train_sae
from mechlab.sae.topk import TopKConfig

Table = dict[str, Any]


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
    config = TopKConfig(site=site, d_sae=d_sae, k=k, tokens=tokens)
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
