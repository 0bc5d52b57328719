"""SAEDashboard 0.8.0 on given codes: the statistics, histogram and sequences of a batch of features.

These are the steps that its ``SaeVisRunner.run`` makes once the activations of a batch of features are
there, with the settings of its ``NeuronpediaRunner``: ``FeatureStatistics.create`` on all of them, then
for every feature the histogram of its activations and ``SequenceDataGenerator.get_sequences_data`` (20
strongest, 5 intervals of 5, whole prompts). Left out is what needs a model or a dictionary: the forward
pass, the encoding, which it repeats for every batch, correlations, and logits.

Requests beside those of every process (``serve.py``):

* ``{"init": {"codes": file, "features": [int]}}`` → ``{}``. The file holds what
  ``step_delphi`` reads; the activations of these features are made dense ``[row column feature]``.
* ``{"features": null}`` → ``{"seconds", "features", "sequences"}``: how many features it did, and how
  many sequences came out.
* ``{"batch": file}`` → ``{"features"}``: how many features its ``NeuronpediaDashboardBatch`` finds in
  a batch file that anybody wrote; fails where it cannot read it or would write it otherwise.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import einops
import torch
from sae_dashboard.components import ActsHistogramData  # type: ignore[import-not-found]
from sae_dashboard.components_config import (  # type: ignore[import-not-found]
    ActsHistogramConfig,
    Column,
    FeatureTablesConfig,
    LogitsHistogramConfig,
    LogitsTableConfig,
    SequencesConfig,
)
from sae_dashboard.layout import SaeVisLayoutConfig  # type: ignore[import-not-found]
from sae_dashboard.neuronpedia.neuronpedia_dashboard import (  # type: ignore[import-not-found]
    NeuronpediaDashboardBatch,
)
from sae_dashboard.sae_vis_data import SaeVisConfig  # type: ignore[import-not-found]
from sae_dashboard.sequence_data_generator import (  # type: ignore[import-not-found]
    SequenceDataGenerator,
)
from sae_dashboard.utils_fns import FeatureStatistics  # type: ignore[import-not-found]
from safetensors.torch import load_file

PACKAGE = "sae-dashboard"


class Session:
    """Dense activations of some features."""

    device = torch.device("cpu")

    def init(self, value: dict[str, Any]) -> dict[str, Any]:
        codes = load_file(value["codes"])
        features = torch.tensor(value["features"])
        self.tokens = codes["tokens"]
        place = torch.full((int(max(codes["locations"][:, 2].max(), features.max())) + 1,), -1)
        place[features] = torch.arange(len(features))
        row, column, latent = codes["locations"].unbind(1)
        wanted = place[latent] >= 0
        self.acts = torch.zeros(*self.tokens.shape, len(features))
        self.acts[row[wanted], column[wanted], place[latent[wanted]]] = codes["activations"][wanted]
        sequences = SequencesConfig(
            stack_mode="stack-all", buffer=None, compute_buffer=True,
            n_quantiles=5, top_acts_group_size=20, quantile_group_size=5,
        )  # fmt: skip
        others = (
            ActsHistogramConfig(),
            LogitsHistogramConfig(),
            LogitsTableConfig(),
            FeatureTablesConfig(n_rows=3),
        )
        layout = SaeVisLayoutConfig(columns=[Column(sequences, *others)])
        self.config = SaeVisConfig(
            hook_point="hook", features=value["features"], feature_centric_layout=layout
        )
        return {}

    @torch.inference_mode()
    def features(self, _: None) -> dict[str, Any]:
        logits = torch.zeros(int(self.tokens.max()) + 1)
        started = time.perf_counter()
        generator = SequenceDataGenerator(cfg=self.config, tokens=self.tokens, W_U=torch.zeros(1, 1))
        FeatureStatistics.create(
            data=einops.rearrange(self.acts, "b s feats -> feats (b s)"),
            batch_size=self.config.quantile_feature_batch_size,
        )
        sequences = 0
        for number in range(self.acts.shape[-1]):
            acts = self.acts[..., number]
            active = acts[acts > 0]
            ActsHistogramData.from_data(data=active, n_bins=50, tickmode="5 ticks", title="")
            found = generator.get_sequences_data(
                feat_acts=acts,
                feat_logits=logits,
                resid_post=torch.tensor([]),
                feature_resid_dir=torch.zeros(1),
            )
            sequences += sum(len(group.seq_data) for group in found.seq_group_data)
        seconds = time.perf_counter() - started
        return {"seconds": seconds, "features": self.acts.shape[-1], "sequences": sequences}

    def batch(self, file: str) -> dict[str, Any]:
        content = json.loads(Path(file).read_text())
        batch = NeuronpediaDashboardBatch(**content)
        assert batch.to_dict() == content, "it would write this batch otherwise"
        return {"features": len(batch.features)}
