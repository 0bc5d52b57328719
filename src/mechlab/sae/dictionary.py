"""A trained dictionary on disk: SAELens' layout inside an artifact.

``cfg.json`` and ``sae_weights.safetensors`` follow SAELens 6 (architecture "topk"), so the
directory also loads with ``sae_lens.SAE.load_from_disk``. SAELens sends files without
``metadata.sae_lens_version`` >= 6 through an old-format converter, hence that key.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save
from torch import Tensor

from mechlab.activations.store import Store
from mechlab.artifacts import Artifact, open_artifact, writing
from mechlab.errors import MechlabError
from mechlab.files import write_atomic
from mechlab.models.subject import Subject
from mechlab.sae.topk import Codes, TopK
from mechlab.sae.train import TrainConfig, train

KIND = "dictionary"
_SAELENS_FORMAT = "6.54.12"
_WEIGHTS, _CONFIG, _METRICS, _STATISTICS = (
    "sae_weights.safetensors",
    "cfg.json",
    "metrics.jsonl",
    "statistics.safetensors",
)


@dataclass(frozen=True)
class Dictionary:
    """A trained dictionary with what it was trained on.

    Attributes:
        artifact: where it is stored; its inputs name the model and the store by fingerprint.
        sae: the weights.
        site: the site that it reads and reconstructs.
        mean: mean activation over the training rows ``[d_in]`` (for mean ablation).
    """

    artifact: Artifact
    sae: TopK
    site: str
    mean: Float[Tensor, "d_in"]

    def check(self, subject: Subject) -> None:
        """MechlabError when the dictionary was trained on another model."""
        trained_on = self.artifact.manifest.inputs["model"]
        if trained_on != subject.fingerprint:
            raise MechlabError(
                "dictionary was trained on another model",
                f"fingerprint {trained_on[:12]}, not {subject.fingerprint[:12]} ({subject.name})",
                "load the model it was trained on",
            )


def train_sae(
    store: Store,
    site: str,
    out: Path | str,
    config: TrainConfig | None = None,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    overwrite: bool = False,
    progress: Callable[[int, int, dict[str, float]], None] | None = None,
) -> Dictionary:
    """Train a TopK dictionary on one site of a store and save it at ``out``.

    An unfinished training of the same settings is resumed from its last checkpoint and
    ends with the same bytes as one that was never interrupted. Raises MechlabError when
    the site is not in the store, sizes are out of range, ``out`` holds something else,
    or the loss stops being finite.
    """
    config = config or TrainConfig()
    if site not in store.sites:
        raise MechlabError("store does not hold the site", site, f"it holds {', '.join(store.sites)}")
    inputs = {
        "model": store.artifact.manifest.inputs["model"],
        "activations": store.artifact.manifest.fingerprint,
    }
    plan = {"site": site, "architecture": "topk", **config.to_dict()}
    with writing(out, KIND, config=plan, seed=seed, inputs=inputs, overwrite=overwrite) as writer:
        if writer.finished is None:
            activations = store.activations(site).to(torch.float32)
            sae, metrics = train(
                activations,
                config,
                seed=seed,
                device=device,
                checkpoint=writer.work / "checkpoint.safetensors",
                progress=progress,
            )
            weights = {name: value.contiguous() for name, value in sae.state_dict().items()}
            write_atomic(writer.work / _WEIGHTS, save(weights))
            write_atomic(writer.work / _STATISTICS, save({"mean": activations.mean(0)}))
            write_atomic(writer.work / _CONFIG, json.dumps(_saelens_config(sae, site), indent=1))
            write_atomic(writer.work / _METRICS, "".join(json.dumps(row) + "\n" for row in metrics))
            writer.commit([_WEIGHTS, _STATISTICS, _CONFIG, _METRICS], facts=metrics[-1])
    return load_sae(out)


def load_sae(path: Path | str) -> Dictionary:
    """Load a dictionary made by ``train_sae``; MechlabError when there is none or it is damaged."""
    artifact = open_artifact(path, KIND)
    config = json.loads(artifact.file(_CONFIG).read_text())
    if config["architecture"] != "topk":
        raise MechlabError("unknown dictionary architecture", config["architecture"], "known: topk")
    sae = TopK(config["d_in"], config["d_sae"], config["k"])
    sae.load_state_dict(load_file(str(artifact.file(_WEIGHTS))))
    mean = load_file(str(artifact.file(_STATISTICS)))["mean"]
    return Dictionary(artifact, sae.requires_grad_(False).eval(), config["metadata"]["hook_name"], mean)


@torch.no_grad()
def encode_store(
    dictionary: Dictionary, store: Store, *, rows: int | None = None, batch: int = 8192
) -> Codes:
    """Sparse codes of the first ``rows`` rows of a store (all by default), in stream order.

    Raises MechlabError when the store lacks the dictionary's site or comes from another model.
    """
    there, wanted = store.artifact.manifest.inputs["model"], dictionary.artifact.manifest.inputs["model"]
    if there != wanted:
        raise MechlabError(
            "store and dictionary come from different models",
            f"fingerprints {there[:12]} and {wanted[:12]}",
            "harvest again",
        )
    x = store.activations(dictionary.site)[:rows].to(torch.float32)
    parts = [dictionary.sae.encode(x[i : i + batch]) for i in range(0, len(x), batch)]
    return Codes(torch.cat([p.values for p in parts]), torch.cat([p.indices for p in parts]))


def default_config(d_in: int, tokens: int) -> TrainConfig:
    """Settings when the user names none: eight times as wide as the site, at least 1,024; k of 16, or 32."""
    return TrainConfig(
        d_sae=max(1024, 2 ** math.ceil(math.log2(8 * d_in))), k=16 if d_in <= 256 else 32, tokens=tokens
    )


def _saelens_config(sae: TopK, site: str) -> dict[str, object]:
    return {
        "architecture": "topk",
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "k": sae.k,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "rescale_acts_by_decoder_norm": False,
        "metadata": {"sae_lens_version": _SAELENS_FORMAT, "hook_name": site},
    }
