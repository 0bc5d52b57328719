"""The bundled model: trained by our own loop, loadable offline, and above every bar."""

from __future__ import annotations

from collections import Counter
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mechlab.circuits import metrics
from mechlab.data import fable
from mechlab.data.tasks import Task, make_task
from mechlab.errors import MechlabError
from mechlab.models.check_fable import BARS, Check, check_fable, end_logits, probability_difference
from mechlab.models.train_fable import build_model, train_fable

BUNDLED = Path(str(resources.files("mechlab"))) / "models" / "fable"


@pytest.fixture(scope="module")
def bundled() -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(BUNDLED, local_files_only=True).eval()
    return model, AutoTokenizer.from_pretrained(BUNDLED, local_files_only=True)


class Oracle(nn.Module):
    """Stands in for a model that puts all its weight on the answers it was told."""

    def __init__(self, told: dict[tuple[int, ...], int]) -> None:
        super().__init__()
        self.told = told
        self.embedding = nn.Embedding(1, 1)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embedding

    def forward(self, input_ids: torch.Tensor) -> Any:
        logits = torch.zeros(*input_ids.shape, len(fable.VOCABULARY))
        for row, ids in enumerate(input_ids.tolist()):
            logits[row, -1, self.told[tuple(ids)]] = 50.0

        class Output:
            pass

        output = Output()
        output.logits = logits  # type: ignore[attr-defined]
        return output


def test_an_untrained_model_fails_the_check() -> None:
    found = check_fable(build_model(), fable.build_tokenizer(), n=20)
    assert set(found) == set(BARS)
    for name in ("ioi_top_1", "successor", "facts", "greater_than", "induction", "closing", "translation"):
        assert not found[name]["passed"]
        assert found[name]["value"] < 0.3


def test_probability_difference_reads_the_sets() -> None:
    tokenizer = fable.build_tokenizer()
    task = make_task("greater_than", tokenizer, n=16)
    for targets, expected in ((task.answers, 1.0), (task.wrong, -1.0)):
        told = {tuple(row.tolist()): int(token) for row, token in zip(task.clean, targets, strict=True)}
        logits = end_logits(Oracle(told), task.clean)
        assert probability_difference(logits, task).tolist() == pytest.approx([expected] * 16, abs=1e-6)


def read_by_circuits(logits: torch.Tensor, task: Task) -> torch.Tensor:
    return metrics.probability_difference(logits, task, logits)


@pytest.mark.parametrize("metric", [probability_difference, read_by_circuits])
@pytest.mark.parametrize("width", [900, 1024])
def test_answer_sets_fit_a_vocabulary_of_another_width(metric: Any, width: int) -> None:
    task = make_task("greater_than", fable.build_tokenizer(), n=8)
    assert task.answer_sets is not None
    right, _ = (nn.functional.pad(mask, (0, 64))[:, :width] for mask in task.answer_sets)
    logits = torch.zeros(8, width)
    logits[:, : right.shape[1]][right] = 50.0
    assert metric(logits, task).tolist() == pytest.approx([1.0] * 8, abs=1e-6)


def test_training_is_deterministic_and_writes_a_loadable_directory(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    steps: list[dict[str, int | float]] = []
    first = train_fable(tmp_path / "a", tokens=12_000, threads=1)
    again = train_fable(tmp_path / "b", tokens=12_000, threads=1, progress=steps.append)
    assert first["loss"] == again["loss"]
    assert first["tokens"] >= 12_000
    names = {path.name for path in (tmp_path / "a").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= names
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (
        tmp_path / "b" / "model.safetensors"
    ).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "a")
    assert len(tokenizer) == model.config.vocab_size == len(fable.VOCABULARY)
    assert model.config.bos_token_id == tokenizer.bos_token_id == fable.TOKEN_ID["<bos>"]


def test_training_refuses_bad_requests(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note").write_text("mine")
    with pytest.raises(MechlabError, match="not empty"):
        train_fable(tmp_path / "full", tokens=12_000)
    with pytest.raises(MechlabError, match="a file, not a directory"):
        train_fable(tmp_path / "full" / "note", tokens=12_000)
    with pytest.raises(MechlabError, match="threads must be at least 1: 0"):
        train_fable(tmp_path / "new", tokens=12_000, threads=0)
    with pytest.raises(MechlabError, match="budget"):
        train_fable(tmp_path / "new", tokens=10)
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_training_learns_more_than_how_frequent_words_are(tmp_path: Path) -> None:
    counts = Counter(token for i in range(2000) for token in fable.document("validation", i).tokens)
    shares = np.array(list(counts.values())) / counts.total()
    unigram_entropy = float(-(shares * np.log(shares)).sum())
    losses: list[float] = []
    train_fable(tmp_path / "a", tokens=600_000, progress=lambda found: losses.append(found["loss"]))
    assert losses[-1] < unigram_entropy < losses[0]


def test_the_bundled_files_are_small_and_complete(bundled: tuple[Any, Any]) -> None:
    model, tokenizer = bundled
    assert sum(path.stat().st_size for path in BUNDLED.iterdir()) <= 6_000_000
    assert model.config.model_type == "gpt2"
    assert model.config.n_positions == 128
    assert model.config.activation_function == "gelu_new"
    assert next(model.parameters()).dtype == torch.float32
    assert tokenizer.get_vocab() == fable.TOKEN_ID
    text = fable.document("test", 0).text
    assert tokenizer(text)["input_ids"] == fable.build_tokenizer()(text)["input_ids"]


@pytest.fixture(scope="module")
def checked(bundled: tuple[Any, Any]) -> dict[str, Check]:
    return check_fable(*bundled, n=200)


@pytest.mark.slow
def test_the_bundled_model_clears_every_bar(checked: dict[str, Check]) -> None:
    found = checked
    assert {name: check["value"] for name, check in found.items() if not check["passed"]} == {}
    assert min(check["n"] for check in found.values()) >= 200
    for check in found.values():
        assert check["low"] <= check["value"] <= check["high"]


@pytest.mark.slow
def test_the_model_card_shows_what_the_check_measures(checked: dict[str, Check]) -> None:
    card = (BUNDLED / "README.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in card.splitlines() if line[:1] == "|"]
    recorded = {name: (metric, float(value), int(n)) for name, metric, value, _, _, n, _ in rows[2:]}
    assert set(recorded) == set(checked)
    for name, found in checked.items():
        metric, value, n = recorded[name]
        assert metric == found["metric"]
        # A prompt or two may tip over between processors.
        assert value == pytest.approx(found["value"], abs=5e-3), name
        assert n == found["n"]
