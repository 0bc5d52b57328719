"""The three truths of compiled models: against published lists, explicit arithmetic and one another."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mechlab.circuits.graph import Graph
from mechlab.errors import MechlabError
from mechlab.models.compiled import PROGRAMS, Compiled, compile_program, gates, program_named, truth
from mechlab.models.compiled.truth import KINDS, TOLERANCE, sequences, without
from mechlab.models.forward import DecomposedForward

# Needed under zero ablation (ACDC's lists in a graph with one input) and under resample ablation
# (Miller et al. 2024); "weights" adds what is read to no effect: uniform attention, the default.
REVERSE = {
    "resample": "embed>a3.h0.v a3.h0>logits",
    "zero": "embed>a0.h0.v embed>m0 embed>m1 embed>a3.h0.k a0.h0>m0 m0>m1 m1>m2 m2>a3.h0.q",
    "weights": "embed>a0.h0.q embed>a0.h0.k embed>a3.h0.q",
}
PROPORTION = {
    "resample": "embed>m0 m0>a1.h0.v a1.h0>logits",
    "zero": "embed>a1.h0.q embed>a1.h0.k",
    "weights": "",
}
SMALL = [name for name in PROGRAMS if name != "gates"]


def compiled(name: str) -> Compiled:
    return compile_program(gates(4, ("or", "and")) if name == "gates4" else program_named(name))


def edges(model: Compiled, mask: Tensor) -> set[str]:
    graph = Graph(DecomposedForward(model).shape)
    return {f"{edge.source}>{edge.reader}" for edge in graph.edges(mask)}


def every_input(model: Compiled, length: int) -> Tensor:
    return model.encode(sequences(model.program, length, 5000, torch.Generator().manual_seed(0)))


@pytest.mark.parametrize(("name", "lists"), [("reverse", REVERSE), ("proportion", PROPORTION)])
def test_published_lists(name: str, lists: dict[str, str]) -> None:
    model, wanted = compiled(name), set()
    for kind in ("resample", "zero", "weights"):
        wanted |= set(lists[kind].split())
        assert edges(model, truth(model, kind)) == wanted


@pytest.mark.parametrize("kind", ["zero", "resample"])
@pytest.mark.parametrize("name", [*SMALL, "gates4"])
def test_the_needed_edges_are_enough(name: str, kind: str) -> None:
    model = compiled(name)
    forward, needed = DecomposedForward(model), truth(model, kind)
    removed = Graph(forward.shape).real & ~needed
    assert needed.any()
    for length in model.program.lengths:
        tokens, reads = every_input(model, length), list(model.program.reads(length))
        other = None if kind == "zero" else forward.run(tokens.flip(0), keep=True).sources
        found = without(forward, tokens, removed, other)[:, reads]
        torch.testing.assert_close(found, model(tokens).logits[:, reads], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", ["reverse", "proportion", "or"])
def test_every_edge_tried_alone_and_in_turn(name: str) -> None:
    """One at a time, and one after the other from the end as ACDC does with a threshold near 0."""
    model = compiled(name)
    forward = DecomposedForward(model)
    real, length = Graph(forward.shape).real, max(model.program.lengths)
    tokens, reads = every_input(model, length)[:200], list(model.program.reads(length))
    own = model(tokens).logits[:, reads]
    alone, in_turn, by_weights = torch.zeros_like(real), ~real, truth(model, "weights")
    for row, column in reversed(real.nonzero()[real.nonzero()[:, 1].argsort(stable=True)].tolist()):
        single = torch.zeros_like(real)
        single[row, column] = True
        change = float((without(forward, tokens, single)[:, reads] - own).abs().max())
        assert by_weights[row, column] or change < 1e-6
        alone[row, column] = change > TOLERANCE
        trial = in_turn.clone()
        trial[row, column] = True
        if float((without(forward, tokens, trial & real)[:, reads] - own).abs().max()) <= TOLERANCE:
            in_turn = trial
    assert torch.equal(alone, truth(model, "zero"))
    assert torch.equal(~in_turn, alone)


def explicit(model: Compiled, tokens: Tensor, removed: Tensor, other: Tensor) -> Tensor:
    """The masked forward written out: a stream per reader, summed from sources one by one."""
    n_layers, n_heads = model.query.shape[:2]
    sources = [model.embedding(tokens) + model.positions[: tokens.shape[1]]]

    def seen(column: int, upstream: int) -> Tensor:
        return sum(other[s] if removed[s, column] else sources[s] for s in range(upstream))

    for layer in range(n_layers):
        column, upstream = layer * (3 * n_heads + 1), len(sources)
        for head in range(n_heads):
            q, k, v = (
                seen(column + part * n_heads + head, upstream) @ weight[layer, head]
                for part, weight in enumerate((model.query, model.key, model.value))
            )
            scores = q @ k.transpose(1, 2)
            if model.program.causal:
                scores = scores + torch.full(scores.shape[1:], -torch.inf).triu(1)
            sources.append(scores.softmax(-1) @ v @ model.output[layer, head])
        sources.append(model.mlps[layer](seen(column + 3 * n_heads, len(sources))))
    return model.unembed(seen(removed.shape[1] - 1, len(sources)))


@pytest.mark.parametrize("name", ["reverse", "induction", "gates4"])
@pytest.mark.parametrize("seed", [0, 1])
def test_without_equals_explicit_arithmetic(name: str, seed: int) -> None:
    model = compiled(name)
    forward, generator = DecomposedForward(model), torch.Generator().manual_seed(seed)
    tokens = every_input(model, max(model.program.lengths))[:12]
    real = Graph(forward.shape).real
    removed = real & (torch.rand(real.shape, generator=generator) < 0.2)
    other = forward.run(tokens.flip(0), keep=True).sources
    for carried in (other, torch.zeros_like(other)):
        found = without(forward, tokens, removed, carried)
        torch.testing.assert_close(found, explicit(model, tokens, removed, carried), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(without(forward, tokens, removed), found)


def test_no_and_all_edges_removed() -> None:
    model = compiled("gates4")
    forward, tokens = DecomposedForward(model), every_input(model, 4)
    real = Graph(forward.shape).real
    flipped = tokens.flip(0)
    other = forward.run(flipped, keep=True).sources
    torch.testing.assert_close(without(forward, tokens, ~(real | True), other), model(tokens).logits)
    torch.testing.assert_close(without(forward, tokens, real, other), model(flipped).logits)


@pytest.mark.parametrize(("kind", "blind"), [("or", "noising"), ("and", "denoising")])
def test_gates_hide_their_inputs_one_at_a_time(kind: str, blind: str) -> None:
    """From 1 1 to 0 0 both inputs matter; one at a time noising misses an OR's, denoising an AND's."""
    model = compiled(kind)
    forward, graph = DecomposedForward(model), Graph(DecomposedForward(model).shape)
    ones, zeros = model.encode([[1, 1]]), model.encode([[0, 0]])
    inputs = [("embed", "a0.h0.v"), ("embed", "a0.h1.v"), ("a0.h0", "a1.h0.q"), ("a0.h1", "a1.h0.q")]
    for direction, base, patch in (("noising", ones, zeros), ("denoising", zeros, ones)):
        other, own = forward.run(patch, keep=True).sources, model(base).logits[0, -1, 0]
        changes = [without(forward, base, graph.mask([e]), other)[0, -1, 0] - own for e in inputs]
        assert all((abs(float(change)) < 1e-6) == (direction == blind) for change in changes)
    assert set(inputs) <= {(e.source, e.reader) for e in graph.edges(truth(model, "resample"))}


@pytest.mark.slow
def test_sixteen_bits_have_a_truth_of_hundreds_of_candidates() -> None:
    model = compile_program(gates(16))
    graph = Graph(DecomposedForward(model).shape)
    assert graph.n_edges > 8000
    # Each bit: q, k, v. Each gate: two inputs, its threshold, k and v. And the output.
    assert int(truth(model, "weights").sum()) == 3 * 16 + 5 * 15 + 1
    # Positions and thresholds are the same in every sequence: the bits' values and their way up are left.
    found = truth(model, "resample", limit=64, partners=2)
    assert int(found.sum()) == 16 + 2 * 15 + 1
    assert torch.equal(found, graph.connected(found))


def test_truths_are_nested_and_repeatable() -> None:
    model = compiled("sort")
    weights, zero, resample = (truth(model, kind) for kind in KINDS)
    assert bool((zero <= weights).all())
    assert bool((resample <= weights).all())
    assert torch.equal(resample, truth(model, "resample"))
    assert bool((truth(model, "resample", limit=2, partners=1, seed=1) <= resample).all())


def test_refusals_say_what_to_do() -> None:
    model = compiled("and")
    with pytest.raises(MechlabError, match=r"unknown kind of truth: resampling .*resample"):
        truth(model, "resampling")
    with pytest.raises(MechlabError, match=r"and is not for sequences of length: 3"):
        sequences(model.program, 3, 5, torch.Generator())
