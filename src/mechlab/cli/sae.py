"""``mechlab sae train``."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mechlab.cli.outcome import Outcome
from mechlab.cli.parse import parse, read_yaml
from mechlab.cli.progress import Reporter
from mechlab.errors import MechlabError
from mechlab.settings import Settings, changed

if TYPE_CHECKING:
    from mechlab.activations.live import LiveSource
    from mechlab.activations.store import Store
    from mechlab.sae.config import TrainConfig
    from mechlab.sae.dictionary import Dictionary


class SaeTrainConfig(Settings):
    """Train a dictionary on a store, or on a model that runs meanwhile.

    --arch NAME chooses the architecture, and with it the flags: --arch gated --help lists Gated's.
    Called again with the same settings it resumes what is unfinished.

    Example: mechlab sae train --site blocks.2.hook_resid_post --arch topk --k 16 --d-sae 1024
    """

    model: str = "fable"
    """The subject: "fable" (bundled), a directory in Hugging Face layout, or a hub name."""
    data: str = "fable"
    """Corpus: a .txt, .jsonl or .parquet file, a directory of them, a saved dataset, or a hub dataset."""
    column: str = "text"
    """Field of the corpus that holds the text."""
    skip_corrupt: bool = False
    """Leave corrupt rows of the corpus out; they are counted and named."""
    store: Path | None = None
    """Train on this store instead; model and data are not needed then."""
    split: str = "train"
    """Documents to read from a live model: train, validation or test."""
    n_ctx: int | None = None
    """Context length in tokens, BOS included; the model's own by default."""
    out: Path = Path("runs/sae")
    """Directory of the dictionary; with --several, of their directories."""
    several: Path | None = None
    """YAML: name → settings (arch and any flag) of dictionaries to train side by side on one pass."""
    seed: int = 0
    """Decides initial weights and the order of rows."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    dtype: str | None = None
    """Floating type of the model: float32, bfloat16 or float16."""
    revision: str | None = None
    """Revision of a hub model."""
    trust_remote_code: bool = False
    """Allow a hub model to run its own code."""
    objective: Literal["mse", "kl", "kl+mse"] = "mse"
    """mse: squared error; kl, kl+mse: end to end, by what the spliced model predicts (needs the model)."""
    start: Path | None = None
    """Fine-tune this dictionary, of the same architecture, sites and size, instead of starting anew."""
    wandb: str | None = None
    """Also log to this Weights & Biases project."""
    tensorboard: Path | None = None
    """Also log to TensorBoard files in this directory."""
    overwrite: bool = False
    """Replace what the directory holds when it was made with other settings."""


def train(words: list[str], program: str) -> Outcome:
    """Train one dictionary, or several side by side."""
    from mechlab.sae.registry import architecture

    words, arch = _take(words, "--arch", _in_file(words, "arch", "topk"))
    kind = architecture(arch).Config
    # One flat set of flags: the command's own and the architecture's.
    command: Any = type("SaeTrainConfig", (SaeTrainConfig, kind), {"__doc__": SaeTrainConfig.__doc__})
    config = parse(command, words, program, apart=["arch"])
    own = {name: getattr(config, name) for name in kind.model_fields}

    from mechlab.models.loading import resolve_device
    from mechlab.models.subject import load_model
    from mechlab.sae.dictionary import load_sae, train_saes

    layers = None
    subject = None
    if config.store is None:
        subject = load_model(
            config.model, dtype=config.dtype, device=config.device, revision=config.revision,
            trust_remote_code=config.trust_remote_code,
        )  # fmt: skip
        layers = subject.module.config.num_hidden_layers
    configs = _configs(config, kind, own)
    if layers is not None:
        middle = f"blocks.{layers // 2}.hook_resid_post"
        configs = {out: one if one.site else changed(one, {"site": middle}) for out, one in configs.items()}
    started = time.perf_counter()
    with Reporter() as reporter, contextlib.ExitStack() as stack:
        shown: dict[str, Any] = {
            "seed": config.seed,
            "overwrite": config.overwrite,
            "log": _loggers(config, [out.name for out in configs], stack),
            "progress": lambda done, total, figures: reporter("train", done, total, figures),
        }
        if config.objective != "mse":
            made = [_end_to_end(config, subject, configs, shown)]
        else:
            source = _source(config, subject, configs)
            sites = source.sites
            configs = {
                out: one if one.site else changed(one, {"site": sites[0]}) for out, one in configs.items()
            }
            begin = None if config.start is None else load_sae(config.start)
            if begin is not None:
                for one in configs.values():
                    begin.check_start(one)
            extra = {} if begin is None else {"start": begin.artifact.manifest.fingerprint}
            made = train_saes(
                source, configs, start=None if begin is None else [begin.sae] * len(configs), extra=extra,
                device=resolve_device(config.device), **shown,
            )  # fmt: skip
    seconds = time.perf_counter() - started
    results = [_summary(each) for each in made]
    payload = results[0] if config.several is None else {"dictionaries": results}
    return Outcome({**payload, "seconds": round(seconds, 2)}, "\n".join(map(_line, results)))


def _end_to_end(
    config: Any, subject: Any, configs: dict[Path, TrainConfig], shown: dict[str, Any]
) -> Dictionary:
    from mechlab.data.corpus import open_corpus
    from mechlab.sae.dictionary import load_sae
    from mechlab.sae.e2e import train_e2e

    if subject is None or config.several is not None:
        given = "store" if subject is None else "several"
        raise MechlabError(
            f"objective {config.objective} trains one dictionary inside its model",
            f"--{given} {getattr(config, given)}",
            f"leave out --{given}",
        )
    ((out, one),) = configs.items()
    corpus = open_corpus(config.data, column=config.column, skip_corrupt=config.skip_corrupt)
    begin = None if config.start is None else load_sae(config.start)
    return train_e2e(
        subject, corpus, out, one, objective=config.objective, start=begin, split=config.split,
        n_ctx=config.n_ctx, **shown,
    )  # fmt: skip


def _configs(config: Any, kind: type[TrainConfig], own: dict[str, Any]) -> dict[Path, TrainConfig]:
    from mechlab.sae.registry import architecture

    if config.several is None:
        return {config.out: kind(**own)}
    found: dict[Path, TrainConfig] = {}
    for name, given in read_yaml(config.several).items():
        if str(name) in (".", "..") or Path(str(name)).name != str(name):
            raise MechlabError("name of a dictionary is no name of a directory", name, "use one plain word")
        if not isinstance(given, dict):
            raise MechlabError("settings of a dictionary must be keys and values", name, "see --help")
        arch = architecture(str(given.pop("arch", kind.arch))).Config
        # Flags count for all, defaults for the architecture that they belong to.
        shared = {
            key: value
            for key, value in own.items()
            if key in arch.model_fields and value != kind.model_fields[key].default
        }
        # Checked once what the file says is in, too.
        base = arch.model_construct(**shared)
        found[config.out / str(name)] = changed(base, given, where=f" of {name} in {config.several}")
    if not found:
        raise MechlabError("no dictionary to train", config.several, "name: {arch: topk, k: 16}")
    return found


def _source(config: Any, subject: Any, configs: dict[Path, TrainConfig]) -> Store | LiveSource:
    from mechlab.activations.live import live
    from mechlab.activations.store import open_store
    from mechlab.data.corpus import open_corpus

    if config.store is not None:
        return open_store(config.store)
    sites = dict.fromkeys(site for one in configs.values() for site in (*one.inputs, *one.outputs))
    corpus = open_corpus(config.data, column=config.column, skip_corrupt=config.skip_corrupt)
    return live(subject, corpus, list(sites), split=config.split, n_ctx=config.n_ctx)


def _loggers(config: Any, names: list[str], stack: contextlib.ExitStack) -> Callable[..., None]:
    from mechlab.sae.loggers import to_tensorboard, to_wandb

    logs = []
    if config.wandb is not None:
        logs.append(stack.enter_context(to_wandb(config.wandb, names, config.model_dump(mode="json"))))
    if config.tensorboard is not None:
        logs.append(stack.enter_context(to_tensorboard(config.tensorboard, names)))

    def log(number: int, row: dict[str, float]) -> None:
        for each in logs:
            each(number, row)

    return log


def _in_file(words: list[str], key: str, default: str) -> str:
    """A key's value in the --config file, if there is one."""
    _, path = _take(words, "--config", "")
    return str(read_yaml(Path(path)).get(key, default)) if path else default


def _take(words: list[str], flag: str, default: str) -> tuple[list[str], str]:
    """A flag's value, and the words without it."""
    words = [
        part for word in words for part in (word.split("=", 1) if word.startswith(f"{flag}=") else [word])
    ]
    if flag not in words:
        return words, default
    at = words.index(flag)
    if at + 1 == len(words):
        raise MechlabError(f"{flag} needs a name", None, "see --help")
    return words[:at] + words[at + 2 :], words[at + 1]


def _summary(dictionary: Dictionary) -> dict[str, Any]:
    manifest = dictionary.artifact.manifest
    return {
        "dictionary": str(dictionary.artifact.path),
        "arch": manifest.config["arch"],
        "inputs": list(dictionary.inputs),
        "outputs": list(dictionary.outputs),
        "d_sae": dictionary.sae.d_sae,
        "fingerprint": manifest.fingerprint,
        **manifest.facts,
    }


def _line(result: dict[str, Any]) -> str:
    sites = ", ".join(result["inputs"])
    if result["outputs"] != result["inputs"]:
        sites += f" → {', '.join(result['outputs'])}"
    return (
        f"{result['arch']}, {result['d_sae']:,} latents at {sites}: FVE {result['fve']:.3f}, "
        f"L0 {result['l0']:.1f}, dead {result['dead']:.1%} (last batch): {result['dictionary']}"
    )
