"""Flags of commands that ask a language model, and the job that asks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mechlab.errors import MechlabError
from mechlab.settings import Settings

if TYPE_CHECKING:
    from mechlab.features.llm.client import Client, Failure, Reply, Request
    from mechlab.features.llm.job import Estimate, LlmJob


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


def open_job(
    config: LanguageModelConfig, progress: Callable[[str, int, int, dict[str, float]], None], stage: str
) -> LlmJob:
    """The job of a command. MechlabError when no model is named or settings do not fit together."""
    from mechlab.features.llm.job import LlmJob
    from mechlab.features.llm.ledger import Price

    if not config.llm:
        raise MechlabError(
            "no language model is named", remedy="pass --llm, and --endpoint for your own server"
        )
    prices = {}
    if config.price_in is not None and config.price_out is not None:
        prices[config.llm] = Price(config.price_in, config.price_out)
    elif config.budget is not None:
        raise MechlabError("budget without prices", config.budget, "pass --price-in and --price-out")

    def report(done: int, total: int, dollars: float | None) -> None:
        progress(stage, done, total, {} if dollars is None else {"dollars": dollars})

    if not config.dry_run:
        config.cache.parent.mkdir(parents=True, exist_ok=True)
    kind = _dry() if config.dry_run else LlmJob
    cache = config.cache if config.cache.exists() or not config.dry_run else Path(":memory:")
    return kind(
        _client(config), cache, budget=config.budget, prices=prices,
        concurrency=config.concurrency, progress=report,
    )  # fmt: skip


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


def _dry() -> type[LlmJob]:
    from mechlab.features.llm.client import Failure
    from mechlab.features.llm.job import LlmJob

    class DryRun(LlmJob):
        """Sends nothing: adds up what the first questions would cost."""

        estimated: list[Estimate]

        def run(self, requests: Sequence[Request]) -> list[Reply | Failure]:
            self.estimated = [*getattr(self, "estimated", []), self.estimate(requests)]
            return [Failure("budget", "dry run: not asked", 0)] * len(requests)

    return DryRun


def estimated(job: LlmJob) -> dict[str, float | None]:
    """What a dry run would have asked and paid, as plain values."""
    found: list[Estimate] = getattr(job, "estimated", [])
    prices = [each.dollars for each in found]
    most = [each.most for each in found]
    return {
        "requests": sum(each.requests for each in found),
        "cached": sum(each.cached for each in found),
        "input_tokens": sum(each.input_tokens for each in found),
        "output_tokens": sum(each.output_tokens for each in found),
        "dollars": sum(price for price in prices if price is not None) if None not in prices else None,
        "dollars_at_most": sum(price for price in most if price is not None) if None not in most else None,
    }


def spending(job: LlmJob) -> dict[str, float | None]:
    """What the job's cache has cost so far, as plain values."""
    spent = job.spent
    return {
        "answers": spent.answers,
        "input_tokens": spent.input_tokens,
        "output_tokens": spent.output_tokens,
        "dollars": spent.dollars,
    }
