"""``mechlab features index``."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from mechlab.cli.functions import named_functions
from mechlab.cli.outcome import Outcome
from mechlab.cli.outputs import require_directory
from mechlab.cli.parse import parse
from mechlab.cli.progress import Reporter
from mechlab.errors import MechlabError
from mechlab.settings import Settings

if TYPE_CHECKING:
    from torch import Tensor

    from mechlab.features.index import FeatureIndex
    from mechlab.features.sources.rows import RowSource
    from mechlab.models.subject import Subject

_TOKENS = 100_000
# Flags that have no effect beside another one.
_IGNORED = {
    "dictionary": ("threshold", "share", "mode", "window"),
    "site": ("mode", "window"),
    "heads": ("signs", "mode", "window"),
    "function": ("signs", "threshold", "share"),
    "store": ("data", "column", "split", "tokens", "n_ctx", "pack"),
}


class FeaturesIndexConfig(Settings):
    """Index where features are active: a dictionary's latents, or neurons, heads, vectors, functions.

    Activations come from a store, or from the model as it runs over a corpus.

    Example: mechlab features index runs/sae --store runs/activations --out runs/features
    """

    dictionary: tyro.conf.Positional[Path | None] = None
    """Directory of a dictionary; leave it out to index something else."""
    site: str | None = None
    """Index the coordinates of this site (neurons: blocks.1.mlp.hook_post); of --vectors, their site."""
    vectors: Path | None = None
    """Index these directions at --site: a .npy file [n, d], or .safetensors with vectors and perhaps bias."""
    heads: bool = False
    """Index attention heads, by the norm of what each adds to the residual stream."""
    function: str | None = None
    """Index Python functions of text, as module:name or file.py:name, with commas between."""
    mode: str = "prefix"
    """What a function is given: prefix, window, passage (text → number) or tokens (texts → numbers)."""
    window: int = 8
    """Tokens in a window."""
    store: Path | None = None
    """Activation store to read; by default the model runs over --data."""
    model: str | None = None
    """The subject: "fable" (bundled), a directory, or a hub name; the store's by default."""
    data: str = "fable"
    """Corpus, without --store."""
    column: str = "text"
    """Field of the corpus that holds the text."""
    split: str = "train"
    """Documents to read: train, validation or test."""
    tokens: int | None = None
    """Rows to index, without --store; 100,000 by default."""
    n_ctx: int | None = None
    """Context length in tokens, BOS included; the model's own by default."""
    pack: bool = False
    """Fill contexts with several documents."""
    signs: bool = False
    """Index negative activations too, as features of their own behind the others."""
    threshold: float = 0.0
    """Leave out values up to this (not of dictionaries and functions)."""
    share: float | None = None
    """Keep this top share of every feature's values; by default 0.05 of neurons and heads, all of vectors."""
    out: Path = Path("runs/features")
    """Directory of the index."""
    seed: int = 0
    """Recorded with the index; nothing here is random."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    dtype: str | None = None
    """Floating type of the model: float32, bfloat16 or float16."""
    revision: str | None = None
    """Revision of a hub model."""
    trust_remote_code: bool = False
    """Allow a hub model to run its own code."""
    overwrite: bool = False
    """Replace what the directory holds when it was made with other settings."""


def index(words: list[str], program: str) -> Outcome:
    """Make an index, or open the one that is there."""
    config = parse(FeaturesIndexConfig, words, program)
    _require_one(config)
    _refuse_ignored(config)
    require_directory(config.out)
    started = time.perf_counter()
    subject, source = _source(config)
    with Reporter() as reporter:
        found = _made(config, subject, source, lambda done, total: reporter("index", done, total, {}))
    seconds = time.perf_counter() - started
    return _outcome(config.out, found, seconds)


def _require_one(config: FeaturesIndexConfig) -> None:
    asked = {
        "a dictionary": config.dictionary,
        "--site": config.site if config.vectors is None else None,
        "--vectors": config.vectors,
        "--heads": config.heads or None,
        "--function": config.function,
    }
    given = [name for name, value in asked.items() if value is not None]
    if len(given) != 1:
        raise MechlabError(
            "name one thing to index", ", ".join(given) or "none", f"one of {', '.join(asked)}"
        )
    if config.vectors is not None and config.site is None:
        raise MechlabError("vectors need a site", config.vectors, "pass --site")


def _refuse_ignored(config: FeaturesIndexConfig) -> None:
    def given(name: str) -> bool:
        return bool(getattr(config, name) != FeaturesIndexConfig.model_fields[name].default)

    for name, ignored in _IGNORED.items():
        for other in filter(given, ignored if given(name) else ()):
            beside = "a dictionary" if name == "dictionary" else f"--{name}"
            flag = f"--{other.replace('_', '-')}"
            raise MechlabError(f"{flag} has no effect with {beside}", remedy="leave it out")


def _source(config: FeaturesIndexConfig) -> tuple[Subject, RowSource]:
    from mechlab.activations.store import open_store
    from mechlab.data.corpus import open_corpus
    from mechlab.features.sources.rows import model_rows, store_rows
    from mechlab.models.subject import load_model

    store = None if config.store is None else open_store(config.store)
    name = config.model or ("fable" if store is None else store.artifact.manifest.facts["model"])
    subject = load_model(
        name, dtype=config.dtype, device=config.device, revision=config.revision,
        trust_remote_code=config.trust_remote_code,
    )  # fmt: skip
    if store is not None:
        return subject, store_rows(store, subject, device=subject.device)
    corpus = open_corpus(config.data, column=config.column)
    tokens = _TOKENS if config.tokens is None else config.tokens
    return subject, model_rows(
        subject, corpus, split=config.split, tokens=tokens, n_ctx=config.n_ctx, pack=config.pack
    )


def _made(
    config: FeaturesIndexConfig, subject: Subject, source: RowSource, progress: Callable[[int, int], None]
) -> FeatureIndex:
    from mechlab.features import sources
    from mechlab.sae.dictionary import load_sae

    common: dict[str, Any] = {"seed": config.seed, "overwrite": config.overwrite, "progress": progress}
    bounds: dict[str, Any] = {"threshold": config.threshold}
    if config.share is not None:
        bounds["share"] = config.share
    if config.dictionary is not None:
        dictionary = load_sae(config.dictionary)
        return sources.index_dictionary(dictionary, source, config.out, signs=config.signs, **common)
    if config.function is not None:
        return sources.index_function(
            named_functions(config.function),
            source,
            config.out,
            mode=config.mode,
            window=config.window,
            **common,
        )
    if config.heads:
        return sources.index_heads(subject, source, config.out, **bounds, **common)
    assert config.site is not None
    subject.site(config.site)  # a mistyped name is explained with near ones
    if config.vectors is None:
        return sources.index_site(config.site, source, config.out, signs=config.signs, **bounds, **common)
    vectors, bias = _vectors(config.vectors)
    return sources.index_vectors(
        vectors, config.site, source, config.out, bias=bias, signs=config.signs, **bounds, **common
    )


def _vectors(path: Path) -> tuple[Tensor, Tensor | None]:
    import numpy as np
    import torch
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            tensors = load_file(path)
        else:
            tensors = {"vectors": torch.from_numpy(np.load(path, allow_pickle=False))}
    except Exception as error:  # numpy and safetensors have errors of their own
        raise MechlabError("vectors cannot be read", path, "give a .npy or .safetensors file") from error
    vectors, bias = tensors.get("vectors"), tensors.get("bias")
    if vectors is None or vectors.ndim != 2 or (bias is not None and bias.ndim != 1):
        shapes = {name: list(each.shape) for name, each in tensors.items()}
        raise MechlabError(f"{path} holds no vectors [n, d]", shapes, "and perhaps bias [n]")
    return vectors.float(), None if bias is None else bias.float()


def _outcome(out: Path, found: FeatureIndex, seconds: float) -> Outcome:
    import numpy as np

    from mechlab.artifacts import open_artifact

    rows, live = len(found.text), len(found.live)
    density = np.sort(found.density[found.live]) if live else np.zeros(1)
    middle = [float(np.quantile(density, at)) for at in (0.05, 0.5, 0.95)]
    documents = len(np.unique(found.text.document))
    entries = len(found.row)
    payload = {
        "index": str(out),
        "kind": found.about.get("kind"),
        "fingerprint": open_artifact(out).manifest.fingerprint,
        "features": found.n_features,
        "live": live,
        "dead": found.n_features - live,
        "dense": int((found.density > 0.1).sum()),
        "rows": rows,
        "documents": documents,
        "entries": entries,
        "l0": entries / max(rows, 1),
        "density": dict(zip(("q05", "median", "q95"), middle, strict=True)),
        "seconds": round(seconds, 2),
    }
    lines = [
        f"{found.n_features:,} features on {rows:,} tokens of {documents:,} documents: {out}",
        f"live {live:,}, dead {found.n_features - live:,}, "
        f"active on more than a tenth of the tokens {payload['dense']:,}",
        f"active a token {payload['l0']:.2f}; density of live features: "
        f"median {middle[1]:.2g}, 90 % between {middle[0]:.2g} and {middle[2]:.2g}",
    ]
    return Outcome(payload, "\n".join(lines))
