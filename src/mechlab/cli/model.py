"""``mechlab model list | info | train-fable | check-fable``."""

from __future__ import annotations

from pathlib import Path

from mechlab.cli.outcome import Outcome
from mechlab.cli.parse import parse
from mechlab.cli.progress import Reporter
from mechlab.settings import Settings


class ListConfig(Settings):
    """Models that can be named right away; any other causal language model of the hub works as well.

    Example: mechlab model list
    """


class InfoConfig(Settings):
    """Sizes, sites and fingerprint of a model.

    Example: mechlab model info --model fable
    """

    model: str = "fable"
    """"fable", a directory in Hugging Face layout, or a hub name."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""


class TrainConfig(Settings):
    """Train the bundled model from scratch and save it in Hugging Face layout.

    Example: mechlab model train-fable --out my-fable
    """

    out: Path = Path("runs/fable")
    """Directory to write; must not exist yet."""
    seed: int = 0
    """Decides weights and text."""
    tokens: int | None = None
    """Training tokens; the bundled model's own number by default."""


class CheckConfig(Settings):
    """Measure every behaviour of the bundled model on prompts it never saw; exit 1 if one is below its bar.

    Example: mechlab model check-fable --json
    """

    model: str = "fable"
    """"fable", or a directory made by train-fable."""
    n: int = 200
    """Prompts per behaviour and prompt length."""
    seed: int = 0
    """Decides which prompts are drawn."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""


def list_models(words: list[str], program: str) -> Outcome:
    """Names that are offered when another is mistyped."""
    from mechlab.models.compiled import PROGRAMS
    from mechlab.models.sites import supported_architectures
    from mechlab.models.subject import WELL_KNOWN, bundled_path

    parse(ListConfig, words, program)
    compiled = [f"compiled/{name}" for name in PROGRAMS]
    payload = {
        "bundled": str(bundled_path()),
        "models": list(WELL_KNOWN),
        "compiled": compiled,
        "architectures": list(supported_architectures()),
    }
    lines = [f"{name}{'  (bundled)' if name == 'fable' else ''}" for name in WELL_KNOWN]
    lines.append(f"compiled, with known circuits: {', '.join(compiled)}")
    return Outcome(payload, "\n".join([*lines, f"architectures: {', '.join(supported_architectures())}"]))


def info(words: list[str], program: str) -> Outcome:
    """What is known of a model."""
    from mechlab.models.subject import load_model

    config = parse(InfoConfig, words, program)
    subject = load_model(config.model, device=config.device)
    model = subject.module.config
    payload = {
        "model": config.model,
        "class": type(subject.module).__name__,
        "parameters": sum(p.numel() for p in subject.module.parameters()),
        "layers": model.num_hidden_layers,
        "d_model": model.hidden_size,
        "heads": model.num_attention_heads,
        "vocabulary": model.vocab_size,
        "n_ctx": subject.n_ctx,
        "dtype": str(subject.dtype).removeprefix("torch."),
        "fingerprint": subject.fingerprint,
        "sites": {name: site.dim for name, site in subject.sites.items()},
    }
    facts = [f"{key:<12} {value}" for key, value in payload.items() if key != "sites"]
    sites = [f"  {n} [{'head, query, key' if s.pattern else s.dim}]" for n, s in subject.sites.items()]
    return Outcome(payload, "\n".join([*facts, "sites:", *sites]))


def train(words: list[str], program: str) -> Outcome:
    """Train Fable and measure it for its model card."""
    from mechlab.models.fable_card import write_card
    from mechlab.models.train_fable import TOKENS, train_fable

    config = parse(TrainConfig, words, program)
    tokens = TOKENS if config.tokens is None else config.tokens
    with Reporter() as reporter:
        record = train_fable(
            config.out,
            seed=config.seed,
            tokens=tokens,
            progress=lambda now: reporter("train-fable", int(now["tokens"]), tokens, {"loss": now["loss"]}),
        )
    write_card(config.out, tokens=int(record["tokens"]), train_seed=config.seed)
    size, loss = record["parameters"], record["loss"]
    text = f"{config.out}: {size:,.0f} parameters, loss {loss:.4f}, {record['seconds']:.0f} s"
    return Outcome({"out": str(config.out), **record}, text)


def check(words: list[str], program: str) -> Outcome:
    """Check Fable's behaviours against their bars."""
    from mechlab.models.check_fable import check_fable
    from mechlab.models.subject import load_model

    config = parse(CheckConfig, words, program)
    subject = load_model(config.model, device=config.device)
    checks = check_fable(subject.module, subject.tokenizer, n=config.n, seed=config.seed)
    passed = all(each["passed"] for each in checks.values())
    lines = [
        f"{'ok  ' if each['passed'] else 'LOW '} {name:<18} {each['value']:.3f} "
        f"[{each['low']:.3f}, {each['high']:.3f}]  bar {each['bar']:.2f}  n={each['n']}"
        for name, each in checks.items()
    ]
    return Outcome({"passed": passed, "checks": checks}, "\n".join(lines), 0 if passed else 1)
