"""``mechlab activations harvest | verify``."""

from __future__ import annotations

import io
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro
from rich.console import Console
from rich.table import Table

from mechlab.cli.outcome import Outcome
from mechlab.cli.parse import parse
from mechlab.cli.progress import Reporter
from mechlab.errors import MechlabError
from mechlab.settings import Settings

if TYPE_CHECKING:
    from mechlab.activations.store import Store
    from mechlab.activations.verify import Verification


class HarvestConfig(Settings):
    """Run a model over a corpus and store the activations of its tokens.

    Called again with the same settings it resumes what is unfinished. Under torchrun every process
    makes its share: torchrun --nproc-per-node 8 -m mechlab activations harvest …

    Example: mechlab activations harvest --sites blocks.1.hook_resid_post,blocks.3.hook_mlp_out --tokens 1000
    """

    model: str = "fable"
    """The subject: "fable" (bundled), a directory in Hugging Face layout, or a hub name."""
    data: str = "fable"
    """Corpus: a .txt, .jsonl or .parquet file, a directory of them, a saved dataset, or a hub dataset."""
    column: str = "text"
    """Field of the corpus that holds the text, or the turns of a chat."""
    sites: str = "blocks.2.hook_resid_post"
    """Where to read (TransformerLens hook names, one head as NAME:HEAD), with commas between."""
    tokens: int = 1_000_000
    """Rows to store."""
    out: Path = Path("runs/activations")
    """Directory of the store."""
    split: str = "train"
    """Documents to read: train, validation or test (8 : 1 : 1)."""
    storage: str | None = None
    """float32, float16, bfloat16 or int8 (one scale per row); the model's own type by default."""
    n_ctx: int | None = None
    """Context length in tokens, BOS included; the model's own by default."""
    batch: int | None = None
    """Contexts per forward; about 4,096 tokens on a CPU and 32,768 on a GPU by default."""
    pack: bool = False
    """Fill contexts with several documents; otherwise none ever shares a context."""
    bos: str = "each"
    """BOS before each context (and packed document), before each document only, or none."""
    keep_bos: bool = False
    """Store the rows of BOS tokens too."""
    drop_special: bool = False
    """Leave out all other special tokens of the tokenizer."""
    first: int = 0
    """First position of a context to store."""
    last: int | None = None
    """Positions of a context from here on are not stored."""
    assistant: bool = False
    """Store only the tokens of assistant turns; the column must hold chats."""
    skip_corrupt: bool = False
    """Leave corrupt rows of the corpus out; they are counted and named."""
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


class VerifyConfig(Settings):
    """Check every byte of a store, then run a sample of its contexts through the model again.

    Exit 1 when a value differs by more than the storage format explains.

    Example: mechlab activations verify runs/activations
    """

    store: tyro.conf.Positional[Path] = Path("runs/activations")
    """Directory of the store."""
    model: str | None = None
    """The model it was made from; the name it had then by default."""
    batches: int = 8
    """Forwards to repeat."""
    seed: int = 0
    """Decides which."""
    repair: bool = False
    """Make missing and damaged shards again, from the same corpus; they come out byte for byte."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    dtype: str | None = None
    """Floating type of the model, if it was not the default one."""


def harvest(words: list[str], program: str) -> Outcome:
    """Make a store, or finish one."""
    config = parse(HarvestConfig, words, program)

    from mechlab.activations.harvest import harvest as make
    from mechlab.activations.selection import Selection
    from mechlab.data.corpus import open_corpus
    from mechlab.models.subject import load_model

    select = Selection(
        bos=config.keep_bos,
        special=not config.drop_special,
        first=config.first,
        last=config.last,
        assistant=config.assistant,
    )
    subject = load_model(
        config.model,
        dtype=config.dtype,
        device=_own_device(config.device),
        revision=config.revision,
        trust_remote_code=config.trust_remote_code,
    )
    corpus = open_corpus(config.data, column=config.column, skip_corrupt=config.skip_corrupt)
    started = time.perf_counter()
    with Reporter() as reporter:
        store = make(
            subject,
            corpus,
            [name.strip() for name in config.sites.split(",")],
            config.out,
            tokens=config.tokens,
            split=config.split,
            n_ctx=config.n_ctx,
            batch=config.batch,
            storage=config.storage,
            select=select,
            pack=config.pack,
            bos=config.bos,
            overwrite=config.overwrite,
            progress=lambda done, total: reporter("harvest", done, total, {}),
        )
    seconds = time.perf_counter() - started
    return Outcome({**_summary(store), "seconds": round(seconds, 2)}, _text(store))


def verify(words: list[str], program: str) -> Outcome:
    """Check a store, and repair it where asked to."""
    config = parse(VerifyConfig, words, program)

    from mechlab.activations.repair import damaged_store, repair
    from mechlab.activations.store import open_store
    from mechlab.activations.verify import verify as check
    from mechlab.data.corpus import open_corpus
    from mechlab.models.subject import load_model

    if config.batches < 1:
        raise MechlabError("batches must be positive", config.batches, "ask for at least 1")
    damaged = damaged_store(config.store) if config.repair else open_store(config.store)
    facts, made_with = damaged.artifact.manifest.facts, damaged.artifact.manifest.config
    subject = load_model(config.model or facts["model"], dtype=config.dtype, device=config.device)
    repaired: list[str] = []
    with Reporter() as reporter:
        if config.repair:
            corpus = open_corpus(
                made_with["corpus"], column=made_with["column"], skip_corrupt=made_with["skip_corrupt"]
            )
            repaired = repair(
                damaged, subject, corpus, progress=lambda done, total: reporter("repair", done, total, {})
            )
        store = open_store(config.store)
        found = check(
            store,
            subject,
            batches=config.batches,
            seed=config.seed,
            progress=lambda done, total: reporter("verify", done, total, {}),
        )
    payload = {"store": str(config.store), "repaired": repaired, **found.to_dict()}
    return Outcome(payload, _verdict(store, found, repaired), 0 if found.passed else 1)


def _own_device(device: str) -> str:
    """With several processes on one machine, each has a card of its own."""
    import torch

    local = os.environ.get("LOCAL_RANK")
    if local is None or device not in ("auto", "cuda") or not torch.cuda.is_available():
        return device
    return f"cuda:{int(local) % torch.cuda.device_count()}"


def _summary(store: Store) -> dict[str, Any]:
    manifest = store.artifact.manifest
    figures = ("mean_norm", "max", "massive_share", "storage_error")
    return {
        "store": str(store.artifact.path),
        "rows": store.n_rows,
        "contexts": manifest.facts["contexts"],
        "corrupt": manifest.facts["corrupt"],
        "faults": manifest.facts["faults"],
        "shards": len(store.shards),
        "bytes": sum(file["bytes"] for file in manifest.files.values()),
        "storage": manifest.config["storage"],
        "fingerprint": manifest.fingerprint,
        "sites": {site: {key: store.statistics(site)[key] for key in figures} for site in store.sites},
    }


def _text(store: Store) -> str:
    summary = _summary(store)
    table = Table(title_justify="left")
    table.add_column("site")
    for name in ("dim", "mean norm", "largest", "massive tokens", "storage error"):
        table.add_column(name, justify="right")
    for site, figures in summary["sites"].items():
        table.add_row(
            site,
            f"{len(store.statistics(site)['mean']):,}",
            f"{figures['mean_norm']:.3f}",
            f"{figures['max']:.2f}",
            f"{figures['massive_share']:.2%}",
            f"{figures['storage_error']:.2g}",
        )
    lines = [
        _drawn(table),
        f"{summary['rows']:,} rows of {summary['contexts']:,} contexts, {summary['shards']} shards, "
        f"{summary['bytes'] / 1e6:,.1f} MB as {summary['storage']}: {summary['store']}",
    ]
    if summary["corrupt"]:
        lines.append(
            f"{summary['corrupt']:,} corrupt rows skipped, the first: {'; '.join(summary['faults'])}"
        )
    return "\n".join(lines)


def _verdict(store: Store, found: Verification, repaired: list[str]) -> str:
    lines = [f"repaired {', '.join(repaired)}"] if repaired else []
    lines.append(f"{found.shards} shards whole; {found.rows:,} rows computed again")
    for site, difference in found.difference.items():
        word = "ok " if difference <= found.tolerance else "BAD"
        lines.append(f"{word} {site}  largest difference {difference:.2g} of the row's largest magnitude")
    lines.append(f"{found.equal:.2%} of the values equal bit for bit; tolerance {found.tolerance:.2g}")
    return "\n".join(lines)


def _drawn(table: Table) -> str:
    console = Console(file=io.StringIO(), width=110)
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().rstrip()
