"""The prompts that circuit commands ask for by name."""

from __future__ import annotations

from mechlab.data.tasks import Task, make_task
from mechlab.errors import MechlabError
from mechlab.models.compiled import Compiled, compiled_task
from mechlab.models.subject import Subject


def prompts_for(subject: Subject, task: str, *, n: int, seed: int, split: str) -> Task:
    """Prompt pairs of a task for a model; a compiled model's task is the program that it runs.

    Raises MechlabError for a task that the model has none of, and what the makers of prompts refuse.
    """
    module = subject.module
    if not isinstance(module, Compiled):
        return make_task(task, subject.tokenizer, n=n, seed=seed, split=split)
    if task != module.program.name:
        raise MechlabError(f"{subject.name} runs another program", task, f"--task {module.program.name}")
    return compiled_task(module, n, seed, split=split)
