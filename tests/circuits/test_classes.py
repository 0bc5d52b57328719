"""Head classes: what the bundled model's heads do, and that every label rests on measured evidence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

import mechlab
from mechlab.circuits.ablation import make_ablation
from mechlab.circuits.paths import path_effects
from mechlab.circuits.search.classes import RULES, HeadClass, Rule, head_classes, rules_for
from mechlab.circuits.weights.attention import attention_patterns
from mechlab.data.tasks import Task, make_task
from mechlab.errors import MechlabError
from mechlab.models.forward import DecomposedForward
from mechlab.models.subject import Subject


@pytest.fixture(scope="module")
def subject() -> Subject:
    return mechlab.load_model("fable")


@pytest.fixture(scope="module")
def ioi(subject: Subject) -> Task:
    return make_task("ioi", subject.tokenizer, n=24)


@pytest.fixture(scope="module")
def found(subject: Subject, ioi: Task) -> tuple[HeadClass, ...]:
    return head_classes(subject, ioi)


def labels(classes: tuple[HeadClass, ...]) -> dict[str | None, list[str]]:
    by_label: dict[str | None, list[str]] = {}
    for each in classes:
        by_label.setdefault(each.label, []).append(each.head)
    return by_label


def test_fable_has_name_movers_and_heads_that_inhibit_the_subject(found: tuple[HeadClass, ...]) -> None:
    by_label = labels(found)
    # The strongest first; these two also have by far the highest copying scores of the model.
    assert by_label["name mover"][:2] == ["a2.h2", "a2.h1"]
    assert by_label["S-inhibition"] == ["a0.h0", "a0.h1"]
    # The inhibiting heads are in the first layer: no head comes before them, so none tells of the repeat.
    assert not {"duplicate token", "induction", "previous token"} & set(by_label)


def test_every_label_carries_its_evidence(subject: Subject, ioi: Task, found: tuple[HeadClass, ...]) -> None:
    forward, rules = DecomposedForward(subject.module), {rule.label: rule for rule in RULES["ioi"]}
    movers = [each.head for each in found if each.label == "name mover"]
    patterns = list(attention_patterns(forward, ioi.clean))
    rows = torch.arange(len(ioi))
    assert len({each.head for each in found}) == len(found)
    for each in found:
        if each.label is None:
            continue
        rule = rules[each.label]
        receivers = ["logits"] if rule.of is None else [f"{head}.q" for head in movers]
        slow = path_effects(forward, ioi, [each.head], receivers, through_mlps=True)
        assert each.effect.value == pytest.approx(float(slow.mean()), rel=1e-3)
        assert 0 < each.effect.low <= each.effect.value <= each.effect.high
        (start, _), (stop, _) = rule.attends
        layer, head = int(each.head[1]), int(each.head[4])
        attended = patterns[layer][rows, head, ioi.positions[start], ioi.positions[stop]]
        assert each.attention.value == pytest.approx(float(attended.mean()), rel=1e-3)
        assert each.attention.beats_null
        assert each.effect.null is not None
        assert each.effect.n == each.attention.n == len(ioi)
        assert each.copying > each.copying_control or not rule.copies
        assert each.label in str(each)


def test_induction_heads_rest_on_a_head_that_looks_at_the_previous_token(subject: Subject) -> None:
    task = make_task("induction", subject.tokenizer, n=24)
    reference = make_task("induction", subject.tokenizer, n=64, split="validation")
    # The corrupt prompts change the answer's token only, nothing that a key would carry: means do.
    ablation = make_ablation(DecomposedForward(subject.module), "mean", reference)
    by_label = labels(head_classes(subject, task, ablation=ablation))
    assert set(by_label["induction"]) == {"a2.h1", "a2.h2"}
    assert "a0.h0" in by_label["previous token"]


def test_a_rule_without_its_evidence_labels_no_head(subject: Subject, ioi: Task) -> None:
    # Heads that support the answer do not copy what the last token shows.
    wrong = Rule("wrong", (("end", 0), ("S2", 0)), copies=True)
    by_label = labels(head_classes(subject, ioi, rules=[wrong], through_mlps=False))
    assert "wrong" not in by_label
    assert "a2.h2" in by_label[None]
    # And nothing counts where everything asked for is larger than any effect.
    assert head_classes(subject, ioi, rules=[wrong], through_mlps=False, least=1.0) == ()


def with_places(task: Task) -> Task:
    places = {name: torch.full_like(task.positions["end"], at) for name, at in (("here", 5), ("there", 2))}
    return replace(task, positions={**task.positions, **places})


def test_grouped_keys_receive_for_every_head_of_the_group(
    architecture: str,
    random_module: Callable[..., nn.Module],
    random_task: Callable[..., Task],
    as_subject: Callable[[nn.Module], Subject],
) -> None:
    module, task = random_module(architecture, seed=1), with_places(random_task(3, n=8))
    forward = DecomposedForward(module)
    first = Rule("late", (("here", 0), ("there", 0)))
    second = Rule("early", (("here", 0), ("there", 1)), "late", "kv")
    rules = [first, second]
    # Random models have no gap in a given direction: answers and their contrasts may need swapping.
    for asked in (task, replace(task, answers=task.wrong, wrong=task.answers)):
        try:
            classes = head_classes(as_subject(module), asked, rules=rules, least=0.0, through_mlps=False)
        except MechlabError:
            continue
        late = [each.head for each in classes if each.label == "late"]
        group = 4 // forward.shape.n_key_value_heads
        columns = sorted({f"a{h[1]}.h{int(h[4]) // group}.{part}" for h in late for part in "kv"})
        for each in classes:
            receivers = columns if each.path == "late k/v" else ["logits"]
            exact = path_effects(forward, asked, [each.head], receivers)
            assert each.effect.value == pytest.approx(float(exact.mean()), rel=1e-3, abs=1e-6)
        return
    pytest.fail("neither direction has a gap")


def test_a_head_that_works_against_the_answer_has_a_negative_effect(
    random_module: Callable[..., nn.Module],
    random_task: Callable[..., Task],
    as_subject: Callable[[nn.Module], Subject],
) -> None:
    module, task = random_module("gpt2", seed=2), with_places(random_task(5, n=8))
    forward = DecomposedForward(module)
    rules = [
        Rule("for", (("here", 0), ("there", 0))),
        Rule("against", (("here", 0), ("there", 0)), sign=-1.0),
    ]
    ran = 0
    for asked in (task, replace(task, answers=task.wrong, wrong=task.answers)):
        try:
            classes = head_classes(as_subject(module), asked, rules=rules, least=0.0, through_mlps=False)
        except MechlabError:  # the model does the task one of the two ways round
            continue
        ran += 1
        against = [each for each in classes if each.effect.value < 0]
        assert against
        for each in classes:
            exact = path_effects(forward, asked, [each.head], ["logits"]).mean()
            assert each.effect.value == pytest.approx(float(exact), rel=1e-3, abs=1e-6)
            assert each.effect.low <= each.effect.value <= each.effect.high
            assert each.label != ("for" if exact < 0 else "against")
    assert ran == 1


def test_rules_go_by_the_task_s_name(ioi: Task) -> None:
    assert rules_for(replace(ioi, name="published_ioi_flip")) == RULES["ioi"]
    with pytest.raises(MechlabError, match=r"no head classes are known.*closing"):
        rules_for(replace(ioi, name="closing"))


def test_impossible_requests_are_refused(subject: Subject, ioi: Task) -> None:
    positions = {name: at for name, at in ioi.positions.items() if name != "IO"}
    with pytest.raises(MechlabError, match=r"lacks positions.*IO"):
        head_classes(subject, replace(ioi, positions=positions))
    swapped = replace(ioi, answers=ioi.wrong, wrong=ioi.answers)
    with pytest.raises(MechlabError, match="does not do the task ioi"):
        head_classes(subject, swapped)
    first = Rule("first", (("end", 0), ("IO", 0)))
    for rule, said in (
        (Rule("x", (("end", 0), ("end", 1))), "outside the prompt: end"),
        (Rule("x", (("end", 0), ("IO", -20))), "outside the prompt: IO"),
        (Rule("x", first.attends, "second", "q"), "no earlier rule labels: second"),
        (Rule("x", first.attends, "first", "qx"), "no such inputs: qx"),
    ):
        with pytest.raises(MechlabError, match=said):
            head_classes(subject, ioi, rules=[first, rule])
