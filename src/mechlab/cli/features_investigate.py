"""``mechlab features investigate``."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from mechlab.cli.language_model import LanguageModelConfig, open_job, spending
from mechlab.cli.outcome import Outcome
from mechlab.cli.outputs import require_directory, require_file, write_file
from mechlab.cli.parse import parse
from mechlab.cli.progress import Reporter
from mechlab.errors import MechlabError

if TYPE_CHECKING:
    from mechlab.features.investigate.curves import Curves
    from mechlab.features.investigate.interact import Interaction
    from mechlab.features.investigate.loop import Investigation

_SHOWN = 4


class InvestigateConfig(LanguageModelConfig):
    """Explain a feature by asking questions about it, with a quiz after every turn.

    A student asks the model for activations on texts of its choice, beside students that are shown
    examples, read its transcript, or have a noisy or weaker teacher. --planted does the same with
    rules whose truth is known; --contexts lets language models teach each other documents.

    Example: mechlab features investigate runs/sae --feature 7 --model fable --out runs/investigation
    """

    dictionary: tyro.conf.Positional[Path | None] = None
    """Directory of the dictionary whose feature is asked about."""
    feature: int = 0
    """Number of the feature."""
    model: str = "fable"
    """The subject: "fable" (bundled), a directory, or a hub name."""
    data: str = "fable"
    """Corpus that examples and quizzes come from."""
    tokens: int = 60_000
    """Tokens of the corpus that are read, half of them for quizzes."""
    student: Literal["rules", "llm"] = "rules"
    """Who asks: the rule learner, or the model of --llm."""
    planted: int = 0
    """Investigate so many planted rules instead."""
    contexts: Path | None = None
    """Documents to teach (.txt/.md directory, .jsonl, .csv) with --llm as teacher and student."""
    weak: str | None = None
    """--contexts: name of a weaker teacher's model."""
    example: Literal["none", "interact"] = "none"
    """interact: the whole protocol of --contexts with a scripted model on a local server."""
    turns: int | None = None
    """Turns of asking; 12 by default, 5 with documents."""
    budget_per_turn: int = 2
    """Queries a student may ask in a turn."""
    seeds: int = 3
    """Students and quizzes, for the intervals."""
    seed: int = 0
    """The first seed."""
    processes: int = 2
    """--planted: processes that share the work."""
    out: Path | None = None
    """Directory for the curves."""
    figure: Path | None = None
    """Figure of the curves: .html (works offline), .svg, .png, .pdf or .json (plotly's)."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    overwrite: bool = False
    """Replace what is at --out when it was made with other settings."""


def investigate(words: list[str], program: str) -> Outcome:
    """Investigate a feature, planted rules, or documents."""
    config = parse(InvestigateConfig, words, program)
    asked = {
        "a dictionary": config.dictionary is not None,
        "--planted": config.planted > 0,
        "--contexts": config.contexts is not None,
        "--example interact": config.example == "interact",
    }
    given = [name for name, value in asked.items() if value]
    if len(given) != 1:
        raise MechlabError(
            "name one thing to investigate", ", ".join(given) or "none", f"one of {', '.join(asked)}"
        )
    if config.seeds < 2:
        raise MechlabError("too few seeds for an interval", config.seeds, "give 2 or more")
    if config.out is not None:
        require_directory(config.out)
    if config.figure is not None:
        require_file(config.figure, (".html", ".svg", ".png", ".pdf", ".json"))
    with Reporter() as report:
        if config.planted:
            return _planted(config, report)
        if config.dictionary is not None:
            return _feature(config, report)
        return _documents(config, report)


def _seeds(config: InvestigateConfig) -> tuple[int, ...]:
    return tuple(range(config.seed, config.seed + config.seeds))


def _planted(config: InvestigateConfig, report: Reporter) -> Outcome:
    from mechlab.features.investigate.planted import planted_investigation

    found = planted_investigation(
        config.planted, config.turns or 12, budget=config.budget_per_turn, seeds=_seeds(config),
        seed=config.seed, processes=config.processes,
        progress=lambda done, total: report("investigate", done, total, {}),
    )  # fmt: skip
    pairs = (("active", "passive"), ("noisy", "noisy passive"), ("active", "borrowed"))
    text = f"{config.planted} planted rules\n{_table(found.curves)}\n{_differences(found.curves, pairs)}"
    _save(config, found.curves, {})
    return Outcome({"table": found.table(), "by kind": found.by_kind(), **_places(config)}, text)


def _feature(config: InvestigateConfig, report: Reporter) -> Outcome:
    from mechlab.features.investigate.fragments import fragments_of
    from mechlab.features.investigate.llm_student import LlmStudent
    from mechlab.features.investigate.loop import investigate
    from mechlab.features.investigate.model_teacher import FeatureTeacher, Latent, quantised
    from mechlab.features.planted.corpora import corpus_text
    from mechlab.features.split import Split
    from mechlab.models.subject import load_model
    from mechlab.sae.dictionary import load_sae

    assert config.dictionary is not None
    subject, dictionary = load_model(config.model, device=config.device), load_sae(config.dictionary)
    dictionary.check(subject)
    latent = Latent(dictionary, config.feature)
    job = open_job(config, report, "ask") if config.student == "llm" else None
    text = corpus_text(subject, config.data, config.tokens)
    explains = Split(seed=config.seed).explains(text.document)
    halves = [text.select(explains), text.select(~explains)]
    taught, held_out = (fragments_of(half, min(2000, len(half) // 40), seed=config.seed) for half in halves)
    first, weaker = FeatureTeacher(subject, latent, taught), quantised(subject)
    worse = FeatureTeacher(weaker, latent, taught)

    def student(seed: int) -> LlmStudent:
        assert job is not None
        return LlmStudent(
            job, first.vocabulary, first.passage, tools=first.tools, feature=config.feature, seed=seed
        )

    found = investigate(
        lambda seed: FeatureTeacher(subject, latent, taught, seed=seed, known=first.known),
        taught,
        held_out,
        student=None if job is None else student,
        weak=lambda seed: FeatureTeacher(weaker, latent, taught, seed=seed, known=worse.known),
        feature=config.feature,
        turns=config.turns or 12,
        budget=config.budget_per_turn,
        seeds=_seeds(config),
        progress=lambda done, total: report("investigate", done, total, {}),
    )
    _save(config, found.curves, {"dictionary": dictionary.artifact.manifest.fingerprint})
    said = None if found.lessons[0].explanation is None else found.lessons[0].explanation.to_dict()
    payload: dict[str, Any] = {"explanation": said, "curves": found.curves.table(), **_places(config)}
    if job is not None:
        payload["spent"] = spending(job)
    pairs = (("active", "passive"), ("noisy", "noisy passive"))
    lines = [
        _transcript(found, first.vocabulary.texts),
        f"in the end: {said['text'] if said else 'no idea'}",
        _table(found.curves),
        _differences(found.curves, pairs),
    ]
    return Outcome(payload, "\n".join(lines))


def _documents(config: InvestigateConfig, report: Reporter) -> Outcome:
    from mechlab.features.investigate.documents import load_documents
    from mechlab.features.investigate.interact import interact

    turns, seeds = config.turns or 5, _seeds(config)
    if config.contexts is not None:
        documents = load_documents(config.contexts)
        job = open_job(config, report, "ask")
        found = interact(job, documents, weak=config.weak, turns=turns, seeds=seeds)
        return _interaction(config, found, spending(job), "")
    from mechlab.features.investigate.interact_example import NAMES, NOTICE, example_documents, scripted
    from mechlab.features.llm.job import LlmJob
    from mechlab.features.llm.openai_client import OpenAIClient
    from mechlab.features.llm.server import ScriptedServer

    with ScriptedServer(scripted) as server, tempfile.TemporaryDirectory() as folder:
        job = LlmJob(OpenAIClient(NAMES[0], base_url=server.url, key="none"), Path(folder) / "answers.sqlite")
        found = interact(job, example_documents(), weak=NAMES[1], turns=turns, seeds=seeds)
        spent = spending(job)
        job.close()
    return _interaction(config, found, spent, NOTICE)


def _interaction(
    config: InvestigateConfig, found: Interaction, spent: dict[str, int | float | None], notice: str
) -> Outcome:
    _save(config, found.curves, {})
    payload = {"notice": notice, "curves": found.curves.table(), "spent": spent, "failed": found.failed}
    talk = [f"student: {asked}\nteacher: {answered}" for asked, answered in found.dialogues[0][:2]]
    pairs = (("dynamic", "nothing"), ("dynamic", "lesson"), ("dynamic", "borrowed"))
    kept = [pair for pair in pairs if all(name in found.curves.values for name in pair)]
    failed = f"requests that failed: {found.failed or 'none'}; answers paid for: {spent['answers']}"
    lines = [notice, *talk, _table(found.curves), _differences(found.curves, kept), failed, notice]
    return Outcome({**payload, **_places(config)}, "\n".join(line for line in lines if line))


def _transcript(found: Investigation, texts: tuple[str, ...]) -> str:
    """The first turns as lines: what was asked, where it was active, and what was believed then."""
    lines = []
    pairs = zip(found.lessons[0].answers, found.lessons[0].sentences, found.lessons[0].marks[1:], strict=True)
    for turn, (answers, sentence, mark) in enumerate(pairs, 1):
        if turn > _SHOWN and turn < len(found.lessons[0].answers):
            continue
        for answer in answers:
            for passage, values in answer.shown:
                words = [texts[token] for token in passage]
                marked = [f"<<{w}>>" if v > 0 else w for w, v in zip(words, values, strict=True)]
                lines.append(f"turn {turn:2} {answer.query.tool}: {''.join(marked)}")
        lines.append(f"turn {turn:2} believes: {sentence or 'nothing yet'} (quiz {mark.quiz:.2f})")
    return "\n".join(lines)


def _table(curves: Curves) -> str:
    from rich.table import Table

    from mechlab.cli.score_table import drawn

    turns = [turn for turn in (0, 1, 2, 5, 8, 12) if turn <= curves.turns]
    table = Table(title=f"quiz accuracy by turn, {curves.queries:g} queries each")
    table.add_column("condition")
    for turn in turns:
        table.add_column(str(turn), justify="right")
    for condition in curves.values:
        scores = [curves.score(condition, turn) for turn in turns]
        table.add_row(condition, *(f"{each.value:.2f} [{each.low:.2f}, {each.high:.2f}]" for each in scores))
    return drawn(table)


def _differences(curves: Curves, pairs: Any) -> str:
    lines = []
    for left, right in pairs:
        for turn in dict.fromkeys(turn for turn in (5, curves.turns) if turn <= curves.turns):
            found = curves.difference(left, right, turn)
            bounds = f"[{found.low:+.3f}, {found.high:+.3f}]"
            lines.append(f"{left} - {right}, turn {turn}: {found.value:+.3f} {bounds}, paired, n={found.n}")
    return "\n".join(lines)


def _save(config: InvestigateConfig, curves: Curves, inputs: dict[str, str]) -> None:
    from mechlab.dashboards.figures import ENDINGS, save_figure
    from mechlab.features.investigate.curves import save_curves

    if config.figure is not None:
        figure = curves.figure()
        if config.figure.suffix in ENDINGS:
            save_figure(figure, config.figure)
        else:
            html = config.figure.suffix == ".html"
            write_file(config.figure, figure.to_html(include_plotlyjs=True) if html else figure.to_json())
    if config.out is not None:
        named = (
            "feature",
            "model",
            "data",
            "tokens",
            "student",
            "planted",
            "example",
            "turns",
            "seeds",
            "llm",
        )
        settings = {name: getattr(config, name) for name in (*named, "weak", "budget_per_turn")}
        settings["contexts"] = None if config.contexts is None else str(config.contexts)
        save_curves(
            curves, config.out, config=settings, seed=config.seed, inputs=inputs, overwrite=config.overwrite
        )


def _places(config: InvestigateConfig) -> dict[str, str]:
    named = {"out": config.out, "figure": config.figure}
    return {name: str(path) for name, path in named.items() if path is not None}
