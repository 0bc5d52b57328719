"""Prompt pairs of compiled models, and compiled models as subjects."""

from __future__ import annotations

import pytest
import torch

from mechlab.circuits.metrics import metric_named
from mechlab.data.tasks import Task
from mechlab.errors import MechlabError
from mechlab.models.compiled import (
    PROGRAMS,
    Compiled,
    compile_program,
    compiled_subject,
    compiled_task,
    gates,
    program_named,
)
from mechlab.models.compiled.rasp import interpret
from mechlab.models.forward import DecomposedForward
from mechlab.models.subject import load_model


def words(model: Compiled, prompt: str) -> list[object]:
    known = {str(value): value for value in model.program.vocabulary}
    return [known[word] for word in prompt.split()]


def read(model: Compiled, task: Task, tokens: torch.Tensor) -> torch.Tensor:
    logits = DecomposedForward(model).run(tokens, positions=task.positions["end"]).logits
    assert logits is not None
    return logits


@pytest.mark.parametrize("name", PROGRAMS)
def test_pairs_and_their_answers(name: str) -> None:
    model = compile_program(program_named(name))
    task, program = compiled_task(model, 40, 3), model.program
    length = max(program.lengths)
    assert task.clean.shape == task.corrupt.shape == (len(task), length + 1)
    assert task.answers.shape == task.wrong.shape == task.positions["end"].shape
    assert task.positions["end"].tolist() == [list(program.reads(length))] * len(task)
    assert len(set(task.prompts)) == len(task) == (4 if name in ("and", "or") else 40)
    for row in range(len(task)):
        assert torch.equal(model.encode([words(model, task.prompts[row])])[0], task.clean[row])
        clean, corrupt = (
            interpret(program.output, words(model, text[row]), causal=program.causal)[
                program.reads(length)[0] - 1 :
            ]
            for text in (task.prompts, task.corrupt_prompts)
        )
        assert clean != corrupt
        if model.numerical:
            higher = [(a > b) - (a < b) for a, b in zip(clean, corrupt, strict=True)]
            assert (task.wrong[row] - task.answers[row]).tolist() == higher
        else:
            assert [model.outputs[i] for i in task.answers[row]] == clean
            assert [model.outputs[i] for i in task.wrong[row]] == corrupt
    # By how much the two runs differ, where they do: 2 for one-hot outputs, the gap of two numbers.
    measure, (clean_logits, corrupt_logits) = (
        metric_named("logit_difference"),
        (read(model, task, tokens) for tokens in (task.clean, task.corrupt)),
    )
    gap = measure(clean_logits, task, clean_logits) - measure(corrupt_logits, task, clean_logits)
    by_hand = (clean_logits - corrupt_logits).abs().sum(-1).mean(-1)
    torch.testing.assert_close(gap, by_hand)
    assert float(gap.min()) > 0.01


def test_seeds_and_splits() -> None:
    model = compile_program(program_named("reverse"))
    first, again, other = (
        compiled_task(model, 30, 1),
        compiled_task(model, 30, 1),
        compiled_task(model, 30, 2),
    )
    assert first.prompts == again.prompts
    assert first.corrupt_prompts == again.corrupt_prompts
    assert first.prompts != other.prompts
    validation, test = (compiled_task(model, 500, split=part) for part in ("validation", "test"))
    assert len(validation) + len(test) == 3**5
    shared = {*validation.prompts, *validation.corrupt_prompts} & {*test.prompts, *test.corrupt_prompts}
    assert shared == set()


def test_refusals_say_what_to_do() -> None:
    model = compile_program(gates(2))
    with pytest.raises(MechlabError, match=r"split does not exist: tets .*test"):
        compiled_task(model, split="tets")
    with pytest.raises(MechlabError, match="at least 1: 0"):
        compiled_task(model, 0)
    with pytest.raises(MechlabError, match=r"split holds no sequences: test"):
        compiled_task(compile_program(program_named("histogram")), split="test", length=1)
    with pytest.raises(MechlabError, match=r"device is not there|unknown device"):
        compiled_subject("reverse", device="cuda:99")
    with pytest.raises(MechlabError, match=r"unknown program: prportion .*proportion"):
        load_model("compiled/prportion")


def test_subject() -> None:
    subject = load_model("compiled/reverse", device="cpu")
    assert subject.name == "compiled/reverse"
    assert (subject.n_ctx, subject.bos, subject.dtype) == (6, 3, torch.float32)
    assert subject.tokens("1 3 2").tolist() == [3, 0, 2, 1]
    assert subject.logits(subject.tokens("1 3 2")[None])[0, 1:].argmax(-1).tolist() == [1, 2, 0]
    assert subject.fingerprint == compiled_subject(program_named("reverse"), device="cpu").fingerprint
    prints = {compiled_subject(name, device="cpu").fingerprint for name in PROGRAMS}
    assert len(prints) == len(PROGRAMS)
    task = compiled_task(subject.module, 10)
    assert subject.tokens(task.prompts[0]).tolist() == task.clean[0].tolist()
