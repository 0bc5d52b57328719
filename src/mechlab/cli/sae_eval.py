"""``mechlab sae eval | compare``."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.table import Table

from mechlab.cli.outcome import Outcome
from mechlab.cli.parse import parse
from mechlab.cli.progress import Reporter
from mechlab.errors import MechlabError
from mechlab.settings import Settings


class SaeEvalConfig(Settings):
    """Evaluate a dictionary on documents it never saw.

    Example: mechlab sae eval runs/demo/sae --metrics model,decoder,probing
    """

    dictionary: tyro.conf.Positional[Path] = Path("runs/sae")
    """Directory of the dictionary."""
    model: str = "fable"
    """The model it belongs to: "fable" (bundled), a directory in Hugging Face layout, or a hub name."""
    data: str = "fable"
    """Corpus to evaluate on."""
    column: str = "text"
    """Field of the corpus that holds the text."""
    split: str = "validation"
    """Documents to use: validation, test or train."""
    metrics: str = "model,decoder"
    """Groups, with commas: model, decoder, probing, latents, board, absorption, removal, ravel; or all."""
    tokens: int = 100_000
    """Tokens for the metrics inside the model."""
    documents: int = 200
    """Labelled documents for the metrics on concepts."""
    n_ctx: int | None = None
    """Context length in tokens, BOS included; the model's own by default."""
    seed: int = 0
    """Decides splits and resamples."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    dtype: str | None = None
    """Floating type of the model: float32, bfloat16 or float16."""
    revision: str | None = None
    """Revision of a hub model."""
    trust_remote_code: bool = False
    """Allow a hub model to run its own code."""


class SaeCompareConfig(Settings):
    """How far two dictionaries of one site agree: matched decoder rows, beside random directions.

    Example: mechlab sae compare runs/seed0 runs/seed1
    """

    left: tyro.conf.Positional[Path] = Path("runs/seed0")
    """Directory of the first dictionary."""
    right: tyro.conf.Positional[Path] = Path("runs/seed1")
    """Directory of the second."""
    seed: int = 0
    """Decides the random directions."""


def evaluate(words: list[str], program: str) -> Outcome:
    """Evaluate a dictionary."""
    config = parse(SaeEvalConfig, words, program)

    from mechlab.data.corpus import open_corpus
    from mechlab.models.subject import load_model
    from mechlab.sae.assess import METRICS, assess
    from mechlab.sae.dictionary import load_sae

    if config.tokens < 1 or config.documents < 2:
        raise MechlabError("tokens and documents are too few", (config.tokens, config.documents), "1 and 2")
    dictionary = load_sae(config.dictionary)
    subject = load_model(
        config.model, dtype=config.dtype, device=config.device, revision=config.revision,
        trust_remote_code=config.trust_remote_code,
    )  # fmt: skip
    wanted = METRICS if config.metrics == "all" else [name.strip() for name in config.metrics.split(",")]
    with Reporter() as reporter:
        found = assess(
            subject,
            dictionary,
            open_corpus(config.data, column=config.column),
            metrics=wanted,
            split=config.split,
            tokens=config.tokens,
            n_ctx=config.n_ctx,
            documents=config.documents,
            seed=config.seed,
            progress=lambda stage, done, total: reporter(stage, done, total, {}),
        )
    return Outcome({"dictionary": str(config.dictionary), **found}, _text(found))


def compare(words: list[str], program: str) -> Outcome:
    """Compare two dictionaries."""
    config = parse(SaeCompareConfig, words, program)

    from mechlab.sae.dictionary import load_sae
    from mechlab.sae.metrics.geometry import stability

    left, right = load_sae(config.left), load_sae(config.right)
    if left.sae.d_out != right.sae.d_out:
        raise MechlabError(
            "dictionaries differ in width", (left.sae.d_out, right.sae.d_out), "compare those of one site"
        )
    made = stability(left.sae.W_dec, right.sae.W_dec, seed=config.seed)
    scores = {name: getattr(made, name).to_dict() for name in ("cosine", "share", "max_cosine")}
    table = _table()
    _rows(table, "", scores)
    payload = {"left": str(config.left), "right": str(config.right), **scores}
    return Outcome(payload, _drawn(table))


def _text(found: dict[str, Any]) -> str:
    table = _table()
    for group, figures in found.items():
        _rows(table, group, figures)
    return _drawn(table)


def _table() -> Table:
    table = Table()
    table.add_column("")
    for name in ("value", "95 % interval", "control", "units"):
        table.add_column(name, justify="right")
    return table


def _rows(table: Table, name: str, figures: dict[str, Any]) -> None:
    """Scores as rows, nested names joined; lists and records are left to --json."""
    for key, value in figures.items():
        label = f"{name} {key}".strip()
        if isinstance(value, dict) and "low" in value:
            null = value.get("null")
            interval = f"{_figure(value['low'])}, {_figure(value['high'])}"
            control = _figure(null["value"]) if null else ""
            table.add_row(label, _figure(value["value"]), interval, control, f"{value['n']:,}")
        elif isinstance(value, dict) and key not in ("best", "cosine_histogram"):
            _rows(table, label, value)
        elif isinstance(value, int | float):
            table.add_row(label, f"{value:,}" if isinstance(value, int) else f"{value:,.4g}", "", "", "")


def _figure(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"


def _drawn(table: Table) -> str:
    console = Console(file=io.StringIO(), width=110)
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().rstrip().splitlines())
