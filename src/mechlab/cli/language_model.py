"""Flags of commands that ask a language model, and the job that asks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mechlab.cli.outcome import Outcome
from mechlab.cli.progress import Reporter
from mechlab.errors import MechlabError
from mechlab.settings import Settings

if TYPE_CHECKING:
    from mechlab.features.llm.client import Client
    from mechlab.features.llm.job import LlmJob


class LanguageModelConfig(Settings):
    """Which language model is asked, and what it may cost."""

    llm: str = ""
    """Name of the model, as the server knows it; with --provider local a directory or hub name."""
    provider: Literal["openai", "anthropic", "local"] = "openai"
    """openai: any server of that protocol; anthropic; local: a Hugging Face model on this machine."""
    endpoint: str | None = None
    """Address of the server, such as http://127.0.0.1:8000/v1; keys come from the environment."""
    cache: Path = Path("runs/answers.sqlite")
    """File that keeps every answer and what it cost: the same question is never paid for twice."""
    budget: float | None = None
    """Dollars that everything in --cache may cost; needs the prices."""
    price_in: float | None = None
    """Dollars per million tokens read."""
    price_out: float | None = None
    """Dollars per million tokens written."""
    concurrency: int = 8
    """Requests under way at once."""
    dry_run: bool = False
    """Only say what would be asked and what it would cost."""


def open_job(config: LanguageModelConfig, reporter: Reporter, stage: str) -> LlmJob:
    """The job of a command; close it. MechlabError when no model is named or settings do not fit together."""
    from mechlab.features.llm.job import LlmJob
    from mechlab.features.llm.ledger import Price

    if not config.llm:
        raise MechlabError(
            "no language model is named", remedy="pass --llm, and --endpoint for your own server"
        )
    price = None
    if config.price_in is not None and config.price_out is not None:
        price = Price(config.price_in, config.price_out)
    elif config.price_in is not None or config.price_out is not None:
        raise MechlabError("one price is missing", config.llm, "pass --price-in and --price-out")
    elif config.budget is not None:
        raise MechlabError("budget without prices", config.budget, "pass --price-in and --price-out")

    def report(done: int, total: int, dollars: float | None) -> None:
        reporter(stage, done, total, {} if dollars is None else {"dollars": dollars})

    client = _client(config)
    # A dry run leaves nothing behind, not even an empty file of answers.
    nowhere = config.dry_run and not config.cache.exists()
    return LlmJob(
        client, ":memory:" if nowhere else config.cache, budget=config.budget,
        prices={} if price is None else {client.model: price},
        concurrency=config.concurrency, dry_run=config.dry_run, progress=report, say=reporter.say,
    )  # fmt: skip


def refuse_dry_run(config: LanguageModelConfig, why: str) -> None:
    """MechlabError for --dry-run where no language model is to be asked."""
    if config.dry_run:
        raise MechlabError("nothing would be asked", why, "leave --dry-run out")


def _client(config: LanguageModelConfig) -> Client:
    if config.provider == "anthropic":
        from mechlab.features.llm.anthropic_client import AnthropicClient

        return AnthropicClient(config.llm, base_url=config.endpoint)
    if config.provider == "local":
        from mechlab.features.llm.local import LocalClient
        from mechlab.models.subject import load_model

        return LocalClient(load_model(config.llm))
    from mechlab.features.llm.openai_client import OpenAIClient

    return OpenAIClient(config.llm, base_url=config.endpoint)


def asked_of(job: LlmJob, config: LanguageModelConfig) -> dict[str, Any]:
    """What of a job decides its answers, for an artifact; its budget too, as it may run out."""
    return {"llm": job.client.model, "endpoint": job.client.endpoint, "budget": config.budget}


def planned(job: LlmJob) -> Outcome:
    """What a dry run would have asked and paid."""
    plan = job.planned
    cost = "price not given"
    if plan.dollars is not None and plan.most is not None:
        cost = f"about ${plan.dollars:.4f}, at most ${plan.most:.4f}"
    text = (
        f"dry run: {plan.requests:,} requests not yet answered; about {plan.input_tokens:,} tokens to read, "
        f"at most {plan.output_tokens:,} to write: {cost}"
    )
    return Outcome({"dry_run": asdict(plan)}, text)


def spending(job: LlmJob) -> dict[str, int | float | None]:
    """What the job's cache has cost so far, as plain values."""
    spent = job.spent
    return {
        "answers": spent.answers,
        "input_tokens": spent.input_tokens,
        "output_tokens": spent.output_tokens,
        "dollars": spent.dollars,
    }


def spent_line(money: Mapping[str, int | float | None], cache: Path) -> str:
    """The same for people."""
    dollars = money["dollars"]
    cost = "price not given" if dollars is None else f"${dollars:.4f}"
    return f"{money['answers']:,} answers in {cache}, {cost}"
