"""Scoring circuits again, under the same conditions and others."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mechlab.circuits.ablation import make_ablation
from mechlab.circuits.circuit import Circuit
from mechlab.circuits.evaluate import faithfulness, run_circuits
from mechlab.circuits.evaluation.judge import evaluate_circuit, evaluate_mask
from mechlab.circuits.evaluation.record import Evaluation
from mechlab.circuits.find import find_circuit
from mechlab.circuits.graph import Graph
from mechlab.errors import MechlabError
from mechlab.models.forward import DecomposedForward


@pytest.fixture(scope="module")
def parts(random_module, random_task, as_subject):
    """A subject, prompts for selection, for holding out and for references, and a circuit under means."""
    module = random_module("llama", 6)
    forward = DecomposedForward(module)
    tasks = []
    for seed in (6, 7, 8):
        task = random_task(seed, n=10)
        _, whole, empty = run_circuits(forward, task, Graph(forward.shape).real[None])
        flip = whole < empty
        answers = torch.where(flip, task.wrong, task.answers)
        tasks.append(replace(task, answers=answers, wrong=torch.where(flip, task.answers, task.wrong)))
    subject = as_subject(module)
    circuit = find_circuit(
        subject, *tasks[:2], ablation="mean-positional", reference=tasks[2], top=60, controls=3, checked=3
    )
    return subject, *tasks, circuit


def test_scored_as_it_was_found(parts, tmp_path) -> None:
    subject, _, test, _, circuit = parts
    circuit.save(tmp_path / "c")
    back = Circuit.load(tmp_path / "c")
    assert back.evaluation == circuit.evaluation
    assert back.record == circuit.record
    assert torch.equal(back.ablation.constant, circuit.ablation.constant)
    # The stored constants are enough: no reference is needed.
    again = evaluate_circuit(subject, back, test, knockouts=False, controls=3)
    assert again == circuit.evaluation
    assert again.differences == ()
    assert again.n_edges == circuit.n_edges


def test_figures_are_those_of_the_parts(parts) -> None:
    subject, _, test, _, circuit = parts
    forward = DecomposedForward(subject.module)
    found = circuit.evaluation
    same = faithfulness(forward, test, circuit.mask, ablation=circuit.ablation, controls=3)
    assert found.faithfulness.value == pytest.approx(same.value, rel=1e-4)
    assert found.faithfulness.null.value == pytest.approx(same.null.value, rel=1e-4)
    for name in ("logit_difference", "negative_kl"):
        values, whole, empty = run_circuits(
            forward, test, circuit.mask[None], metric=name, ablation=circuit.ablation
        )
        means = found.means[name]
        expected = [float(each.mean()) for each in (values[0], whole, empty)]
        assert [means.circuit, means.model, means.empty] == pytest.approx(expected, abs=1e-4)
    assert found.kl.value == pytest.approx(-found.means["negative_kl"].circuit)
    assert found.kl.null.n == 3


def test_other_conditions_are_named(parts, random_module, as_subject) -> None:
    subject, train, test, reference, circuit = parts

    def named(**settings):
        task, model = settings.pop("task", test), settings.pop("model", subject)
        return evaluate_circuit(model, circuit, task, knockouts=False, controls=2, **settings).differences

    assert named(ablation="zero") == ("scored under zero, found under mean-positional",)
    assert named(ablation="mean", reference=reference)[0].startswith("scored under mean,")
    assert named(metric="negative_kl") == ("scored with negative_kl, found with logit_difference",)
    assert named(task=train) == ("scored on the prompts it was chosen on",)
    assert named(task=reference)[0].startswith("scored on other prompts")
    theirs = "constants of the ablation are those of the {} it was found with"
    assert named(task=replace(test, name="other")) == (
        "scored on other, found on random",
        theirs.format("task"),
    )
    other = as_subject(random_module("llama", 5))
    assert named(model=other) == ("scored on another model than it was found in", theirs.format("model"))
    assert len(named(model=other, ablation="zero", metric="negative_kl")) == 3


def test_the_whole_model(parts) -> None:
    subject, _, test, _, _ = parts
    forward = DecomposedForward(subject.module)
    real = Graph(forward.shape).real
    found = evaluate_mask(
        forward, test, real, real.float(), metric="logit_difference",
        ablation=make_ablation(forward, "zero"), controls=0,
    )  # fmt: skip
    assert found.faithfulness.value == pytest.approx(1, abs=1e-4)
    assert found.ratios.value == pytest.approx(1, abs=1e-3)
    assert found.kl.value == pytest.approx(0, abs=1e-4)
    assert found.faithfulness.null is found.kl.null is None


def test_everything_is_plain_json_and_back(parts) -> None:
    import json

    subject, _, test, _, circuit = parts
    seen = []
    found = evaluate_circuit(
        subject,
        circuit,
        test,
        classes={"some": ["a0.h0", "a0.h1", "a1.h0"]},
        controls=2,
        progress=lambda *at: seen.append(at),
    )
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert found.completeness is not None
    assert found.minimality is not None
    text = json.dumps(found.to_dict("NaN"), allow_nan=False)
    assert Evaluation.from_dict(json.loads(text)) == found
    undefined = replace(found, ratios=replace(found.ratios, value=float("nan")))
    assert undefined.to_dict()["ratios"]["value"] is None
    assert str(Evaluation.from_dict(undefined.to_dict("NaN")).ratios.value) == "nan"


def test_mistakes(parts, random_module, as_subject) -> None:
    subject, _, test, reference, circuit = parts
    with pytest.raises(MechlabError, match="model of another shape"):
        evaluate_circuit(as_subject(random_module("gpt2")), circuit, test)
    with pytest.raises(MechlabError, match="unknown ablation: mena"):
        evaluate_circuit(subject, circuit, test, ablation="mena")
    with pytest.raises(MechlabError, match="mean ablation needs reference prompts"):
        evaluate_circuit(subject, circuit, test, ablation="mean")
    with pytest.raises(MechlabError, match="constants were made from"):
        evaluate_circuit(subject, circuit, reference, ablation="mean", reference=reference)
