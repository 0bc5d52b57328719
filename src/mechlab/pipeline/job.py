"""The main job: from a model and a corpus to a dictionary, a circuit, scored explanations and a page.

Each stage writes an artifact into the run directory and is skipped when that artifact is
already there, so a run that was interrupted goes on where it stopped. The run itself is an
artifact whose one file is ``summary.json``; the page stands in ``dashboard/``.

Documents are divided once: the dictionary is trained and the features are explained on the
train split, the dictionary is evaluated on validation, and explanations are scored on test.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mechlab.activations.harvest import check_context, harvest
from mechlab.activations.store import Store
from mechlab.artifacts import Writer, exists, open_artifact, writing
from mechlab.circuits.circuit import Circuit, task_fingerprint
from mechlab.circuits.find import find_circuit, require_task
from mechlab.circuits.search.classes import head_classes, rules_for
from mechlab.dashboards.build import OTHERS, PARTS, read_parts, site_of, site_of_run
from mechlab.dashboards.site import INDEX, write_site
from mechlab.data.corpus import BUNDLED, Corpus, open_corpus, require_tokens
from mechlab.data.tasks import Task, make_task
from mechlab.errors import MechlabError
from mechlab.features.building import load_index
from mechlab.features.explanations import (
    Explanations,
    explain_features,
    load_explanations,
    save_explanations,
)
from mechlab.features.index import FeatureIndex
from mechlab.features.scoring.score import score_features
from mechlab.features.scoring.scorecard import Scorecard, load_scores, save_scores
from mechlab.features.sources import index_dictionary, store_rows
from mechlab.features.windows import WIDTH
from mechlab.files import canonical_json, write_atomic
from mechlab.models.subject import Subject, load_model
from mechlab.pipeline.config import RunConfig
from mechlab.pipeline.summary import summarise
from mechlab.sae.dictionary import Dictionary, default_config, train_sae
from mechlab.sae.evaluate import Evaluation, evaluate
from mechlab.settings import changed

KIND = "run"
SUMMARY, PAGE = "summary.json", "dashboard"
# Windows that explanations are scored on have at least so many tokens.
FEWEST_TOKENS = 4
MOST_LATENTS = 2**22
# Rows to train on when the user names no number.
TRAIN_TOKENS = 1_500_000
# Rows of the training store that explanations are learnt from.
EXPLAIN_ROWS = 300_000
# Prompt pairs for choosing a circuit, and as many held-out ones for judging it.
PROMPTS = 128
SCORERS = ("detection", "fuzzing")
# Fewer than on a page that is built by itself, as each takes a while.
STEER, DOCUMENTS = 16, 16
STAGES = ("harvest", "train", "evaluate", "circuit", "explain", "score", "page")

Progress = Callable[[str, int, int, dict[str, float]], None]
"""Called with (stage, done, total, figures worth showing)."""


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        path: the run directory.
        summary: the content of its ``summary.json``.
    """

    path: Path
    summary: dict[str, Any]

    @property
    def dashboard(self) -> Path:
        """The page, to be opened in a browser."""
        return self.path / PAGE / INDEX


def run(config: RunConfig | None = None, *, progress: Progress | None = None, **settings: Any) -> Run:
    """Run the main job.

    Args:
        config: the settings; keywords change single ones (``ml.run(model="fable", out="runs/demo")``).
        progress: called as the stages advance.

    Raises MechlabError for bad settings, before any long work where that can be known, and for
    an output directory that holds something else.
    """
    config = changed(config or RunConfig(), settings)
    subject = load_model(
        config.model,
        dtype=config.dtype,
        device=config.device,
        revision=config.revision,
        trust_remote_code=config.trust_remote_code,
    )
    job = _Job(config, subject, _corpus(config), progress or (lambda *_: None))
    plan = {
        **config.model_dump(exclude={"out", "overwrite", "device"}),
        "site": job.site,
        "n_ctx": job.n_ctx,
        "train": {"arch": job.training.arch, **job.training.model_dump()},
    }
    inputs = {"model": subject.fingerprint, "corpus": job.corpus.fingerprint}
    with writing(
        config.out, KIND, config=plan, seed=config.seed, inputs=inputs, overwrite=config.overwrite
    ) as writer:
        if writer.finished is None:
            job.check()
            # Stages are replaced one by one; an older run must not vouch for them meanwhile.
            writer.withdraw()
            job.run(writer)
        assert writer.finished is not None
        done = Run(config.out, json.loads(writer.finished.file(SUMMARY).read_text()))
    if not exists(config.out / PAGE):  # of a run from before there were such pages, or taken away
        site = site_of_run(
            config.out, steer=STEER, documents=DOCUMENTS, trust_remote_code=config.trust_remote_code
        )
        write_site(site, config.out / PAGE, overwrite=True)
    return done


class _Job:
    """One run under way: its parts, its settings made definite, and the seconds each stage took."""

    def __init__(self, config: RunConfig, subject: Subject, corpus: Corpus, progress: Progress) -> None:
        self.config, self.subject, self.corpus, self.progress = config, subject, corpus, progress
        for name in ("tokens", "train_tokens", "heldout_tokens"):
            value = getattr(config, name)
            if value is not None and value < 1:
                raise MechlabError(f"{name} must be positive", value, "ask for at least 1")
        layers = subject.module.config.num_hidden_layers
        self.site = config.site or f"blocks.{layers // 2}.hook_resid_post"
        self.n_ctx = min(subject.n_ctx, 512) if config.n_ctx is None else config.n_ctx
        train_tokens = TRAIN_TOKENS if config.train_tokens is None else config.train_tokens
        defaults = default_config(self.site, subject.site(self.site).dim, train_tokens)
        given = {name: getattr(config, name) for name in ("d_sae", "k")}
        self.training = changed(defaults, {n: value for n, value in given.items() if value is not None})
        self.seconds: dict[str, float] = {}

    def check(self) -> None:
        """Find out now what would fail late: sizes, the task's tokens, the corpus' length."""
        if not 0 <= self.config.seed < 2**32:
            raise MechlabError("seed is out of range", self.config.seed, "between 0 and 4294967295")
        check_context(self.subject, self.n_ctx)
        room = self.n_ctx - (self.subject.bos is not None)
        if room < FEWEST_TOKENS:
            raise MechlabError("contexts are too short to explain", self.n_ctx, "raise --n-ctx")
        if self.config.tokens < self.training.batch_size:
            raise MechlabError(
                "tokens are fewer than one training batch",
                self.config.tokens,
                f"at least {self.training.batch_size}",
            )
        if self.training.d_sae > MOST_LATENTS:
            raise MechlabError("d_sae is out of range", self.training.d_sae, f"at most {MOST_LATENTS}")
        if self.config.task != "none":
            require_task(self.subject, self._task("validation"))
            self._task("test")
        require_tokens(self.corpus, self.subject.tokenizer, n_ctx=self.n_ctx)

    def run(self, writer: Writer) -> None:
        """All stages in order, then the summary and the page."""
        ledger = writer.work / "seconds.json"
        if ledger.is_file():
            self.seconds = json.loads(ledger.read_text())
        with self._timed("harvest", ledger):
            store = self._harvest("activations", "train", self.config.tokens)
            heldout = self._harvest("heldout", "test", self.config.heldout_tokens)
        with self._timed("train", ledger):
            dictionary = self._train(store)
        with self._timed("evaluate", ledger):
            evaluation = self._evaluate(dictionary)
        with self._timed("circuit", ledger):
            if self.config.task == "none":
                circuit = None
                shutil.rmtree(self.config.out / "circuit", ignore_errors=True)  # of an overwritten run
            else:
                circuit = self._circuit()
        with self._timed("explain", ledger):
            explanations = self._explain(dictionary, store)
        with self._timed("score", ledger):
            scores = self._score(dictionary, heldout, explanations)
        with self._timed("page", ledger):
            self._page(writer, evaluation)
        summary = summarise(store, dictionary, evaluation, circuit, explanations, scores)
        summary = {
            "model": self.config.model,
            **summary,
            "seconds": {stage: round(self.seconds.get(stage, 0.0), 2) for stage in STAGES},
            "dashboard": str(self.config.out / PAGE / INDEX),
        }
        write_atomic(writer.work / SUMMARY, json.dumps(summary, indent=1) + "\n")
        writer.commit([SUMMARY], {"command": self.config.command()})

    def _page(self, writer: Writer, evaluation: Evaluation) -> None:
        """The site of all that has been made; it is of this run whatever was there before."""
        config, out = writer.plan.config, self.config.out
        found = read_parts(
            {name: out / folder for name, folder in PARTS.items() if exists(out / folder)},
            title=f"{config['model']} at {config['site']}",
            facts={"model": config["model"], "site": config["site"]},
            subject=self.subject,
            evaluation=evaluation,
            command=self.config.command(),
            config=config,
            inputs=writer.plan.inputs,
            timings=self.seconds,
            others={name: out / name for name in OTHERS},
        )
        site = site_of(
            found,
            steer=STEER,
            documents=DOCUMENTS,
            progress=lambda step, done, total: self.progress(f"page: {step}", done, total, {}),
        )
        write_site(site, out / PAGE, overwrite=True)

    def _harvest(self, name: str, split: str, tokens: int) -> Store:
        return harvest(
            self.subject,
            self.corpus,
            self.site,
            self.config.out / name,
            tokens=tokens,
            split=split,
            n_ctx=self.n_ctx,
            overwrite=self.config.overwrite,
            progress=lambda done, total: self.progress(
                "harvest" if split == "train" else f"harvest {split}", done, total, {}
            ),
        )

    def _train(self, store: Store) -> Dictionary:
        return train_sae(
            store,
            self.config.out / "sae",
            self.training,
            seed=self.config.seed,
            device=self.subject.device,
            overwrite=self.config.overwrite,
            progress=lambda done, total, figures: self.progress("train", done, total, figures),
        )

    def _evaluate(self, dictionary: Dictionary) -> Evaluation:
        tokens = self.config.heldout_tokens
        fields = self._record(
            "evaluation",
            {"tokens": tokens, "split": "validation", "n_ctx": self.n_ctx},
            {"model": self.subject.fingerprint, "dictionary": dictionary.artifact.manifest.fingerprint},
            lambda: evaluate(
                self.subject,
                dictionary,
                self.corpus,
                tokens=tokens,
                n_ctx=self.n_ctx,
                seed=self.config.seed,
                progress=lambda done, total: self.progress("evaluate", done, total, {}),
            ).to_dict(),
        )
        return Evaluation.from_dict(fields)

    def _circuit(self) -> Circuit:
        path, selection, held_out = self.config.out / "circuit", self._task("validation"), self._task("test")
        if exists(path):
            try:
                found = Circuit.load(path)
            except MechlabError:  # damaged, or written by an older version
                if not self.config.overwrite:
                    raise
            else:
                made_from = (found.model, found.seed, found.selection, found.held_out)
                wanted = (task_fingerprint(selection), task_fingerprint(held_out))
                if made_from == (self.subject.fingerprint, self.config.seed, *wanted):
                    return found
        found = find_circuit(
            self.subject,
            selection,
            held_out,
            seed=self.config.seed,
            progress=lambda done, total: self.progress("circuit", done, total, {}),
        )
        with contextlib.suppress(MechlabError):  # classes are known for some tasks only
            rules = rules_for(held_out)
            self.progress("classes of heads", 0, 0, {})
            labelled = head_classes(self.subject, held_out, rules=rules, seed=self.config.seed)
            found = replace(found, classes={each.head: each.label for each in labelled if each.label})
        found.save(path, overwrite=self.config.overwrite)
        return found

    def _explain(self, dictionary: Dictionary, store: Store) -> Explanations:
        index = self._index("features", dictionary, store, EXPLAIN_ROWS)
        path = self.config.out / "explanations"
        save_explanations(
            lambda: explain_features(
                index, progress=lambda done, total: self.progress("explain", done, total, {})
            ),
            path,
            config={"explainer": "rules"},
            seed=self.config.seed,
            inputs={"index": open_artifact(self.config.out / "features").manifest.fingerprint},
            overwrite=self.config.overwrite,
        )
        return load_explanations(path)

    def _score(self, dictionary: Dictionary, heldout: Store, explanations: Explanations) -> Scorecard:
        index = self._index("heldout_features", dictionary, heldout, None)
        path, width = self.config.out / "scores", _window(index)
        save_scores(
            lambda: score_features(index, explanations, SCORERS, width=width, seed=self.config.seed),
            path,
            config={"scorers": list(SCORERS), "width": width, "split": "test"},
            seed=self.config.seed,
            inputs={
                "index": open_artifact(self.config.out / "heldout_features").manifest.fingerprint,
                "explanations": open_artifact(self.config.out / "explanations").manifest.fingerprint,
            },
            overwrite=self.config.overwrite,
        )
        return load_scores(path)

    def _index(self, name: str, dictionary: Dictionary, store: Store, rows: int | None) -> FeatureIndex:
        path = self.config.out / name
        index_dictionary(
            dictionary,
            store_rows(store, self.subject, device=self.subject.device, rows=rows),
            path,
            signs=getattr(dictionary.sae, "signed", False),
            seed=self.config.seed,
            overwrite=self.config.overwrite,
        )
        return load_index(path)

    def _task(self, split: str) -> Task:
        return make_task(
            self.config.task, self.subject.tokenizer, n=PROMPTS, seed=self.config.seed, split=split
        )

    def _record(
        self, kind: str, config: dict[str, Any], inputs: Mapping[str, str], make: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        """A stage whose whole result is one JSON file: read it if it is there, make it otherwise."""
        name = f"{kind}.json"
        with writing(
            self.config.out / kind,
            kind,
            config=config,
            seed=self.config.seed,
            inputs=inputs,
            overwrite=self.config.overwrite,
        ) as writer:
            if writer.finished is None:
                write_atomic(writer.work / name, canonical_json(make()))
                writer.commit([name])
            assert writer.finished is not None
            content: dict[str, Any] = json.loads(writer.finished.file(name).read_text())
            return content

    @contextlib.contextmanager
    def _timed(self, stage: str, ledger: Path) -> Iterator[None]:
        """Add the seconds spent to the stage's total, which survives an interruption between stages."""
        self.progress(stage, 0, 0, {})
        started = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - started
        write_atomic(ledger, json.dumps(self.seconds))


def _corpus(config: RunConfig) -> Corpus:
    if config.data is None and config.model != BUNDLED:
        raise MechlabError(
            f"model {config.model} needs a corpus",
            "--data is missing",
            "pass a file, a directory or a hub dataset",
        )
    source = BUNDLED if config.data is None else config.data
    return open_corpus(source, column=config.column, skip_corrupt=config.skip_corrupt)


def _window(index: FeatureIndex) -> int:
    """Tokens per scored window: 32, or fewer where a quarter of the contexts are shorter."""
    return int(np.clip(np.quantile(np.diff(index.text.bounds), 0.25), FEWEST_TOKENS, WIDTH))
