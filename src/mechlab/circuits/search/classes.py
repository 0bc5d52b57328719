"""What the heads of a circuit do, found by following paths back from the logits.

After Wang et al. (2022, section 3): first the heads whose own path to the logits matters, then those
that matter through the queries of these, then those that matter through the keys and values of those.
A ``Rule`` is one such step: a head gets its label when

1. its path effect on the rule's receivers, of the rule's sign, has an interval that excludes 0 and is at
   least ``least`` of the gap between the model and its run with every edge replaced,
2. it attends where the label says, more than the other heads do (its interval lies above theirs), and
3. where the label says so, its OV circuit copies (or suppresses) what it attends to, more than random
   heads do in its place (``copying_scores``).

As in the source a path may pass through MLPs but through no other head. Heads whose paths matter, but
which do not attend or copy as any rule says, are listed without a label. A model need not have all
classes: a small one may look at the repeated name from the last position, and need no duplicate heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mechlab import scores
from mechlab.circuits.ablation import Ablation
from mechlab.circuits.evaluate import run_circuits
from mechlab.circuits.graph import Graph
from mechlab.circuits.paths import path_effects
from mechlab.circuits.runs import BATCH_SIZE, batches
from mechlab.circuits.weights.attention import attention_patterns
from mechlab.circuits.weights.vocabulary import HeadScores, copying_scores
from mechlab.data.tasks import Task
from mechlab.errors import MechlabError, near
from mechlab.models.forward import DecomposedForward, Shape
from mechlab.models.subject import Subject
from mechlab.scores import Score

Place = tuple[str, int]
"""A named position of the task, and how many positions after it."""


@dataclass(frozen=True)
class Rule:
    """One class of heads.

    Attributes:
        label: its name.
        parts: inputs of ``of``'s heads that the path ends at, such as "q" or "kv"; unused for the logits.
        of: label of the heads whose inputs receive the path; None for the logits.
        attends: from where to where.
        sign: 1 where the path supports the metric, −1 where it works against it.
        copies: whether the head must copy what it attends to (or suppress it, where ``sign`` is −1).
    """

    label: str
    attends: tuple[Place, Place]
    of: str | None = None
    parts: str = ""
    sign: float = 1.0
    copies: bool = False


_END: Place = ("end", 0)
RULES: dict[str, tuple[Rule, ...]] = {
    "ioi": (
        Rule("name mover", (_END, ("IO", 0)), copies=True),
        Rule("negative name mover", (_END, ("IO", 0)), sign=-1.0, copies=True),
        Rule("S-inhibition", (_END, ("S2", 0)), "name mover", "q"),
        Rule("duplicate token", (("S2", 0), ("S1", 0)), "S-inhibition", "kv"),
        Rule("induction", (("S2", 0), ("S1", 1)), "S-inhibition", "kv"),
        Rule("previous token", (("S1", 1), ("S1", 0)), "induction", "k"),
    ),
    "induction": (
        Rule("induction", (_END, ("B1", 0)), copies=True),
        Rule("previous token", (("B1", 0), ("A1", 0)), "induction", "k"),
    ),
}
_PUBLISHED = {"published_ioi": "ioi", "published_ioi_flip": "ioi"}


@dataclass(frozen=True)
class HeadClass:
    """A head that matters, what it is called, and why.

    Attributes:
        head: its name in the graph.
        label: its class; None where the path matters but no rule's evidence is there.
        path: what the effect goes through: "logits", or such as "name mover q".
        effect: fall of the metric when the path carries the other value; null: the other heads'.
        attention: mean attention from and to the rule's places; null: the other heads'.
        copying: share of answers copied (suppressed, in a rule of sign −1).
        copying_control: the most that random heads in the same model copy.
    """

    head: str
    label: str | None
    path: str
    effect: Score
    attention: Score
    copying: float
    copying_control: float

    def __str__(self) -> str:
        return (
            f"{self.head} {self.label or 'no label'}: through {self.path} {self.effect}; "
            f"attention {self.attention}; copying {self.copying:.2f} (random {self.copying_control:.2f})"
        )


def rules_for(task: Task) -> tuple[Rule, ...]:
    """The rules of a task's name; MechlabError when there are none."""
    name = _PUBLISHED.get(task.name, task.name)
    if name not in RULES:
        raise MechlabError("no head classes are known for this task", task.name, near(name, RULES))
    return RULES[name]


def head_classes(
    subject: Subject,
    task: Task,
    *,
    rules: Sequence[Rule] | None = None,
    least: float = 0.02,
    through_mlps: bool = True,
    metric: str | None = None,
    ablation: Ablation | None = None,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
) -> tuple[HeadClass, ...]:
    """The heads that matter for a task, by class, the strongest of each class first.

    Args:
        task: prompts that read one position each.
        rules: classes in the order they are sought; a head keeps the first label it earns. Those of the
            task when None.
        least: smallest path effect that counts, as a share of the gap between the whole model and no edges.
        through_mlps: whether MLPs pass the change on; without, a path is a single edge.
        ablation: what paths carry; the corrupt prompt's values when None, and then only heads are found
            that carry what the corrupt prompts change.
        seed: of the bootstrap and of the random heads.

    Raises MechlabError for a task without rules, positions that it lacks, rules that make no sense, or a
    model that does not do the task.
    """
    rules = rules_for(task) if rules is None else rules
    _require_fitting(rules, task)
    forward = DecomposedForward(subject.module)
    graph = Graph(forward.shape)
    none = torch.zeros(0, *graph.real.shape, dtype=torch.bool)
    _, whole, empty = run_circuits(
        forward, task, none, metric=metric, ablation=ablation, batch_size=batch_size
    )
    gap = float((whole - empty).mean())
    if not gap > 0:
        raise MechlabError(
            f"model {subject.name} does not do the task {task.name}: clean minus corrupt", f"{gap:.3g}"
        )
    heads = tuple(name for name in graph.sources if name.startswith("a"))
    attention = _attention(forward, task, rules, batch_size)
    words = torch.tensor(sorted({*task.answers.tolist(), *task.wrong.tolist()}))
    copying = {
        sign: copying_scores(subject.module, words, suppress=sign < 0, seed=seed) for sign in (1.0, -1.0)
    }

    labelled: dict[str, HeadClass] = {}
    others: dict[str, HeadClass] = {}
    known: dict[tuple[str, ...], Float[Tensor, "sender n"]] = {}
    for rule in rules:
        receivers = _receivers(rule, labelled, forward.shape)
        columns = [graph.reader(name) for name in receivers]
        can = [row for row, name in enumerate(heads) if graph.real[graph.source(name), columns].any()]
        if not can:  # no head has the label, or those that have it are in the first layer
            continue
        if receivers not in known:
            known[receivers] = path_effects(
                forward,
                task,
                [heads[row] for row in can],
                receivers,
                through_mlps=through_mlps,
                metric=metric,
                ablation=ablation,
                batch_size=batch_size,
            )
        effects = rule.sign * known[receivers].double().numpy()
        attended = attention[rule.attends].double().numpy()
        for at in np.argsort(-effects.mean(1), kind="stable").tolist():
            row, effect = can[at], _score("path effect", effects, at, seed)
            if heads[row] in labelled or not (effect.low > 0 and effect.value >= least * gap):
                continue
            found = HeadClass(
                heads[row],
                rule.label,
                "logits" if rule.of is None else f"{rule.of} {'/'.join(rule.parts)}",
                _signed(effect, rule.sign),
                _score("attention", attended, row, seed),
                float(copying[rule.sign].scores.flatten()[row]),
                float(copying[rule.sign].control.max()),
            )
            if found.attention.beats_null and (not rule.copies or _copies(copying[rule.sign], row)):
                labelled[heads[row]] = found
            else:
                others.setdefault(heads[row], replace(found, label=None))
    return (*labelled.values(), *(each for head, each in others.items() if head not in labelled))


def _require_fitting(rules: Sequence[Rule], task: Task) -> None:
    missing = {name for rule in rules for name, _ in rule.attends} - set(task.positions)
    if missing or task.positions["end"].ndim != 1:
        raise MechlabError(
            "task lacks positions that the rules name", sorted(missing) or "one end", "give other rules"
        )
    for number, rule in enumerate(rules):
        for name, after in rule.attends:
            places = task.positions[name] + after
            if int(places.min()) < 0 or int(places.max()) >= task.clean.shape[1]:
                raise MechlabError(
                    f"rule {rule.label} attends to a place outside the prompt", f"{name} + {after}"
                )
        if rule.of is not None and rule.of not in {earlier.label for earlier in rules[:number]}:
            raise MechlabError(f"rule {rule.label} is about heads that no earlier rule labels", rule.of)
        if rule.of is not None and not (rule.parts and set(rule.parts) <= set("qkv")):
            raise MechlabError(f"rule {rule.label} has no such inputs", rule.parts, "use some of q, k and v")


def _receivers(rule: Rule, labelled: dict[str, HeadClass], shape: Shape) -> tuple[str, ...]:
    """The readers a rule's paths end at: the logits, or inputs of the heads labelled so far."""
    if rule.of is None:
        return ("logits",)
    group = shape.n_heads // shape.n_key_value_heads
    found: dict[str, None] = {}
    for head in (each.head for each in labelled.values() if each.label == rule.of):
        layer, _, number = head.partition(".h")
        for part in rule.parts:
            found[f"{layer}.h{number if part == 'q' else int(number) // group}.{part}"] = None
    return tuple(found)


def _attention(
    forward: DecomposedForward, task: Task, rules: Sequence[Rule], batch_size: int
) -> dict[tuple[Place, Place], Float[Tensor, "head n"]]:
    """Attention of every head between the places that rules name, per prompt."""
    found: dict[tuple[Place, Place], list[Tensor]] = {rule.attends: [] for rule in rules}
    for batch in batches(task, batch_size, forward.device):
        rows = torch.arange(len(batch), device=forward.device)
        patterns = list(attention_patterns(forward, batch.clean))
        for (start, stop), parts in found.items():
            query, key = (batch.positions[name] + after for name, after in (start, stop))
            parts.append(torch.cat([pattern[rows, :, query, key].T for pattern in patterns]).cpu())
    return {places: torch.cat(parts, 1) for places, parts in found.items()}


def _score(name: str, values: Float[np.ndarray, "head n"], at: int, seed: int) -> Score:
    """Mean over prompts of one head, with the other heads' means as the null."""
    rest = np.delete(values.mean(1), at)
    null = (
        scores.score(f"{name} of other heads", _counted(rest), scores.mean, seed=seed) if len(rest) else None
    )
    return scores.score(name, _counted(values[at]), scores.mean, seed=seed, null=null)


def _counted(values: Float[np.ndarray, "unit"]) -> Float[np.ndarray, "unit 2"]:
    return np.stack([values, np.ones_like(values)], 1)


def _signed(score: Score, sign: float) -> Score:
    """The score in the metric's own direction."""
    if sign > 0:
        return score
    null = None if score.null is None else _signed(score.null, sign)
    return replace(score, value=-score.value, low=-score.high, high=-score.low, null=null)


def _copies(copying: HeadScores, row: int) -> bool:
    return bool(copying.beyond_control.flatten()[row])
