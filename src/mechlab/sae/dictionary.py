"""A trained dictionary on disk: SAELens' layout inside an artifact."""

from __future__ import annotations

import contextlib
import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import save
from torch import Tensor

from mechlab.activations.live import LiveSource
from mechlab.activations.store import Store
from mechlab.artifacts import Artifact, Writer, open_artifact, writing
from mechlab.errors import MechlabError
from mechlab.files import write_atomic
from mechlab.models.subject import Subject
from mechlab.sae.base import Sae
from mechlab.sae.checkpoint import METRICS
from mechlab.sae.codes import Codes, concatenate
from mechlab.sae.config import TrainConfig
from mechlab.sae.formats import saelens
from mechlab.sae.formats.weights import read_json, read_safetensors
from mechlab.sae.formats.wrapped import refuse_contextual
from mechlab.sae.processing import refuse_processed
from mechlab.sae.source import Feed, mixed
from mechlab.sae.topk import TopKConfig
from mechlab.sae.train import Log, Progress, Trained, train
from mechlab.sae.trainee import Loss

KIND = "dictionary"
STATISTICS = "statistics.safetensors"
_FILES = (saelens.WEIGHTS, saelens.CONFIG, STATISTICS, METRICS)


@dataclass(frozen=True)
class Dictionary:
    """A trained dictionary with what it was trained on.

    Attributes:
        artifact: where it is stored; its inputs name the model and the activations by fingerprint.
        sae: the weights.
        inputs, outputs: the sites it reads and those it predicts (the same, unless a transcoder).
        mean: mean of the outputs over the training rows ``[d_out]`` (for mean ablation); where those
            are not at hand (a converted dictionary), the bias of the decoder.
    """

    artifact: Artifact
    sae: Sae
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    mean: Float[Tensor, "d_out"]

    @property
    def site(self) -> str:
        """The one site it reads and reconstructs; MechlabError for transcoders and crosscoders."""
        if self.inputs != self.outputs or len(self.inputs) > 1:
            raise MechlabError(
                "dictionary does not reconstruct one site",
                f"{', '.join(self.inputs)} → {', '.join(self.outputs)}",
                "use its inputs and outputs",
            )
        return self.inputs[0]

    @property
    def processing(self) -> tuple[str, ...]:
        """Steps of weight processing that its model went through (see ``mechlab.sae.processing``)."""
        return tuple(self.artifact.manifest.facts.get("processing", ()))

    def check(self, subject: Subject) -> None:
        """MechlabError when the dictionary was trained on another model.

        Where the model's fingerprint is not known (a converted dictionary), when a site is not
        there or has another width, or held other values under the processing it was trained with.
        """
        refuse_contextual(self.sae)
        refuse_processed(self.processing, (*self.inputs, *self.outputs), subject)
        trained_on = self.artifact.manifest.inputs.get("model")
        if trained_on is None:
            self._check_widths(subject)
        elif trained_on != subject.fingerprint:
            raise MechlabError(
                "dictionary was trained on another model",
                f"fingerprint {str(trained_on)[:12]}, not {subject.fingerprint[:12]} ({subject.name})",
                "load the model it was trained on",
            )

    def check_start(self, config: TrainConfig) -> None:
        """MechlabError unless a training of this config can begin from it: architecture, size and sites."""
        # A finished BatchTopK dictionary is a JumpReLU one, and can go on as either.
        arch = config.arch if config.arch == getattr(self.sae, "trained_as", None) else self.sae.arch
        here = (config.arch, config.d_sae, config.inputs, config.outputs)
        there = (arch, self.sae.d_sae, self.inputs, self.outputs)
        for name, wanted, value in zip(("arch", "d_sae", "site", "target"), here, there, strict=True):
            if wanted != value:
                value, wanted = (
                    each if not isinstance(each, tuple) else ",".join(each) for each in (value, wanted)
                )
                raise MechlabError(
                    f"dictionary to start from has another {name}",
                    f"{value}, not {wanted}",
                    "start from one of the same architecture, size and sites",
                )

    def _check_widths(self, subject: Subject) -> None:
        name = self.artifact.manifest.facts.get("model_name") or "a model that is not recorded"
        sizes = [*zip(self.inputs, self.sae.in_sizes, strict=True)]
        for site, size in [*sizes, *zip(self.outputs, self.sae.out_sizes, strict=True)]:
            there = subject.site(site).dim
            if there != size:
                raise MechlabError(
                    f"dictionary of {name} does not fit {subject.name} at {site}",
                    f"width {size}, not {there}",
                    "load the model it was trained on",
                )


def train_sae(
    source: Store | LiveSource | Feed,
    out: Path | str,
    config: TrainConfig,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    overwrite: bool = False,
    log: Log | None = None,
    progress: Progress | None = None,
) -> Dictionary:
    """Train a dictionary on a store or a live model and save it at ``out``.

    The config's class decides the architecture, its ``site`` (and ``target``) what is read and
    predicted. An unfinished training of the same settings is resumed from its last checkpoint
    and ends with the same bytes as one that was never interrupted. Raises MechlabError when a
    site is not there, sizes are out of range, ``out`` holds something else, or the loss stops
    being finite; warns when a target L0 was not reached.
    """
    return train_saes(
        source, {Path(out): config}, seed=seed, device=device, overwrite=overwrite, log=log, progress=progress
    )[0]


def train_saes(
    source: Store | LiveSource | Feed,
    configs: Mapping[Path, TrainConfig],
    *,
    loss: Loss | None = None,
    start: Sequence[Sae | None] | None = None,
    extra: Mapping[str, str] | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    overwrite: bool = False,
    log: Log | None = None,
    progress: Progress | None = None,
) -> list[Dictionary]:
    """Train several dictionaries on one pass over the activations; directory → config.

    Like ``train_sae`` for each; batch size and number of tokens must agree. ``loss`` and ``start``
    as for ``train``; ``extra`` is recorded among the inputs, and names what they were.
    """
    sites = _sites(source, configs.values())
    opener = (
        source.opener(sites, str(device)) if isinstance(source, Feed) else mixed(source, sites, str(device))
    )
    inputs = {**_fingerprints(source), **(extra or {})}
    with contextlib.ExitStack() as stack:
        writers: dict[Writer, TrainConfig] = {}
        numbers: list[int] = []
        begin: list[Sae | None] = []
        firsts = start or [None] * len(configs)
        for number, ((out, config), first) in enumerate(zip(configs.items(), firsts, strict=True)):
            plan = {"arch": config.arch, **config.model_dump()}
            writer = stack.enter_context(
                writing(out, KIND, config=plan, seed=seed, inputs=inputs, overwrite=overwrite)
            )
            if writer.finished is None:
                writers[writer] = config
                begin.append(first)
                numbers.append(number)
        if writers:
            made = train(
                opener, list(writers.values()), seed=seed, device=device, loss=loss, start=begin,
                work=[writer.work for writer in writers], progress=progress,
                # Those that are finished already are not trained, and still count.
                log=None if log is None else lambda number, row: log(numbers[number], row),
            )  # fmt: skip
            for (writer, config), trained in zip(writers.items(), made, strict=True):
                if isinstance(source, Store) and all(site in source.sites for site in config.outputs):
                    means = [source.statistics(site)["mean"] for site in config.outputs]
                    mean = torch.cat([torch.tensor(each, dtype=torch.float32) for each in means])
                else:
                    mean = trained.mean
                _write(writer, trained, config.inputs, config.outputs, mean)
    return [load_sae(out) for out in configs]


def _fingerprints(source: Store | LiveSource | Feed) -> dict[str, str]:
    """What a dictionary records of its activations: role → fingerprint."""
    if isinstance(source, Feed):
        return source.fingerprints()
    if isinstance(source, Store):
        manifest = source.artifact.manifest
        return {"model": manifest.inputs["model"], "activations": manifest.fingerprint}
    return {"model": source.subject.fingerprint, "activations": source.identity()}


def _sites(source: Store | LiveSource | Feed, configs: Any) -> tuple[str, ...]:
    wanted = dict.fromkeys(site for config in configs for site in (*config.inputs, *config.outputs))
    for site in wanted:
        if site not in source.sites:
            raise MechlabError("activations lack the site", site, f"they hold {', '.join(source.sites)}")
    return tuple(wanted)


def _write(
    writer: Writer, trained: Trained, inputs: tuple[str, ...], outputs: tuple[str, ...], mean: Tensor
) -> None:
    save_sae(writer.work, trained.sae, inputs, outputs, mean)
    facts: dict[str, Any] = {**trained.metrics[-1]}
    if trained.missed:
        facts["missed"] = trained.missed
        warnings.warn(trained.missed, stacklevel=2)
    write_atomic(writer.work / METRICS, "".join(json.dumps(row) + "\n" for row in trained.metrics))
    writer.commit(list(_FILES), facts=facts)


def save_sae(
    folder: Path,
    sae: Sae,
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
    mean: Float[Tensor, "d_out"],
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write a dictionary's files into a folder: SAELens' two, and the mean of the outputs.

    ``metadata`` goes into SAELens' config.
    """
    config, tensors = saelens.to_saelens(sae, inputs, outputs, metadata)
    write_atomic(folder / saelens.WEIGHTS, save(tensors))
    write_atomic(folder / saelens.CONFIG, json.dumps(config, indent=1))
    write_atomic(folder / STATISTICS, save({"mean": mean.contiguous()}))


def load_sae(path: Path | str) -> Dictionary:
    """Load a dictionary made by ``train_sae`` or ``convert``.

    Raises MechlabError when there is none or it is damaged.
    """
    artifact = open_artifact(path, KIND)
    config, weights = read_json(artifact.file(saelens.CONFIG)), artifact.file(saelens.WEIGHTS)
    sae = saelens.from_saelens(config, read_safetensors(weights).all(), weights)
    mean = read_safetensors(artifact.file(STATISTICS)).take("mean", sae.d_out)
    site, target = saelens.sites(config)
    inputs = tuple(site.split(","))
    outputs = tuple(target.split(",")) if target else inputs
    return Dictionary(artifact, sae.requires_grad_(False).eval(), inputs, outputs, mean)


@torch.no_grad()
def encode_store(
    dictionary: Dictionary, store: Store, *, rows: int | None = None, batch: int = 8192
) -> Codes:
    """Sparse codes of the first ``rows`` rows of a store (all by default), in stream order.

    Raises MechlabError when the store lacks the dictionary's sites or comes from another model.
    """
    there, wanted = store.artifact.manifest.inputs["model"], dictionary.artifact.manifest.inputs.get("model")
    refuse_contextual(dictionary.sae)
    refuse_processed(dictionary.processing, dictionary.inputs, None)
    if wanted is not None and there != wanted:
        raise MechlabError(
            "store and dictionary come from different models",
            f"fingerprints {there[:12]} and {str(wanted)[:12]}",
            "harvest again",
        )
    x = torch.cat([store.activations(site)[:rows].to(torch.float32) for site in dictionary.inputs], dim=1)
    if x.shape[1] != dictionary.sae.d_in:
        raise MechlabError(
            f"dictionary does not fit the store at {', '.join(dictionary.inputs)}",
            f"width {dictionary.sae.d_in}, not {x.shape[1]}",
            "harvest from the model it was trained on",
        )
    return concatenate([dictionary.sae.encode(x[i : i + batch]) for i in range(0, len(x), batch)])


def default_config(site: str, d_in: int, tokens: int) -> TopKConfig:
    """Settings when the user names none: eight times as wide as the site, at least 1,024; k of 16, or 32."""
    width = max(1024, 2 ** math.ceil(math.log2(8 * d_in)))
    return TopKConfig(site=site, d_sae=width, k=16 if d_in <= 256 else 32, tokens=tokens)
