"""Compiled transformers against the meaning of their programs, on every input."""

from __future__ import annotations

import itertools

import pytest
import torch

from mechlab.errors import MechlabError
from mechlab.models.compiled import PROGRAMS, Compiled, Program, compile_program, gates, program_named
from mechlab.models.compiled.rasp import (
    Aggregate,
    AtLeast,
    Indices,
    Map,
    Select,
    SelectorWidth,
    SequenceMap,
    Tokens,
    interpret,
)
from mechlab.models.forward import DecomposedForward

TOKENS, INDICES = Tokens(), Indices()


def same(key: object, query: object) -> bool:
    return key == query


def letters_from_half() -> Program:
    """Whether at least half of the tokens so far are "x": a function of a fraction, then of a category."""
    is_x = Map("is_x", lambda token: float(token == "x"), TOKENS, numerical=True)
    share = Aggregate("share", Select(INDICES, INDICES, lambda key, query: key <= query), is_x)
    many = Map("many", lambda number: "many" if number >= 0.5 else "few", share)
    agreeing = SelectorWidth("agreeing", Select(many, many, same))
    return Program("letters", agreeing, ("w", "x"), (1, 2, 3, 4, 5))


def neighbours() -> Program:
    """Two heads of one layer, and an MLP that joins them: the sum of both neighbours."""
    before = Select(INDICES, INDICES, lambda key, query: key == query - 1)
    after = Select(INDICES, INDICES, lambda key, query: key == query + 1)
    total = SequenceMap(
        "sum", lambda a, b: a + b, Aggregate("left", before, TOKENS), Aggregate("right", after, TOKENS)
    )
    passed = Aggregate("passed", Select(INDICES, INDICES, same), total)
    return Program("neighbours", passed, (1, 2, 3), (3,))


def weighted() -> Program:
    """A mean of numbers other than 0 and 1, of a category, where something is selected."""
    earlier = Select(INDICES, INDICES, lambda key, query: key < query)
    return Program("weighted", Aggregate("mean", earlier, TOKENS, function=float), (-2, 5, 9), (1, 2, 4))


OWN = {"letters": letters_from_half, "neighbours": neighbours, "weighted": weighted}
OWN["gates2"], OWN["gates16"] = lambda: gates(2, ("or", "and")), lambda: gates(16)
EVERY = {**PROGRAMS, **OWN}


def inputs(program: Program, length: int, limit: int = 300) -> list[tuple[object, ...]]:
    """All valid sequences of one length, or ``limit`` of them."""
    words, generator = program.vocabulary, torch.Generator().manual_seed(0)
    if len(words) ** length > 5000:
        draws = torch.randint(len(words), (limit, length), generator=generator)
        return [tuple(words[i] for i in row) for row in draws.tolist()]
    found = [row for row in itertools.product(words, repeat=length) if program.valid(row)]
    return [found[i] for i in torch.randperm(len(found), generator=generator)[:limit]]


def one_row(model: Compiled, value: object) -> list[float]:
    """The logits that stand for a value; NaN where the program says nothing."""
    if value is None:
        return [torch.nan] * len(model.outputs)
    return [float(value), 0.0] if model.numerical else [float(each == value) for each in model.outputs]


@pytest.mark.parametrize("name", EVERY)
def test_every_input_gives_what_the_program_means(name: str) -> None:
    model = compile_program(EVERY[name]())
    program, forward = model.program, DecomposedForward(model)
    for length in program.lengths:
        rows = inputs(program, length, limit=2000 if name in ("reverse", "proportion") else 100)
        tokens, reads = model.encode(rows), list(program.reads(length))
        logits = model(tokens).logits
        torch.testing.assert_close(forward.run(tokens).logits, logits, atol=1e-5, rtol=0)
        meanings = [interpret(program.output, row, causal=program.causal) for row in rows]
        wanted = torch.tensor([[one_row(model, row[place - 1]) for place in reads] for row in meanings])
        said = ~wanted.isnan()
        assert said.any(2).any(1).all() or name == "weighted"
        assert said.all() or name not in PROGRAMS
        torch.testing.assert_close(logits[:, reads][said], wanted[said], atol=1e-5, rtol=0)


def test_what_programs_mean() -> None:
    def output(name: str, *row: object) -> list[object]:
        program = program_named(name)
        return interpret(program.output, row, causal=program.causal)

    assert output("reverse", 1, 2, 2, 3) == [3, 2, 2, 1]
    assert output("proportion", "x", "w", "x", "y") == [1, 1 / 2, 2 / 3, 1 / 2]
    assert output("histogram", "a", "b", "a") == [2, 1, 2]
    assert output("sort", 4, 1, 3) == [1, 3, 4]
    assert output("induction", "a", "b", "c", "a")[-1] == "b"
    assert output("and", 1, 0)[-1] == 0
    assert output("and", 1, 1)[-1] == 1
    assert output("or", 1, 0)[-1] == 1
    assert output("or", 0, 0)[-1] == 0
    assert output("gates", 1, 1, 0, 0, 0, 1, 0, 1)[-1] == 0
    assert output("gates", 1, 1, 0, 1, 1, 1, 0, 0)[-1] == 1


def test_tracr_sizes_and_encodings() -> None:
    reverse, proportion = (compile_program(program_named(name)) for name in ("reverse", "proportion"))
    sizes = ("num_hidden_layers", "num_attention_heads", "hidden_size", "head_dim", "intermediate_size")
    assert [getattr(reverse.config, size) for size in sizes] == [4, 1, 41, 12, 30]
    assert [getattr(proportion.config, size) for size in sizes] == [2, 1, 14, 7, 1]
    assert reverse.config.max_position_embeddings == proportion.config.max_position_embeddings == 6
    assert reverse.encoding == {"1": 0, "2": 1, "3": 2, "<bos>": 3, "<pad>": 4}
    assert proportion.encoding == {"<bos>": 0, "<pad>": 1, "w": 2, "x": 3, "y": 4, "z": 5}
    # Which sublayers do anything: attention and MLP, MLP, MLP, attention.
    assert [bool(layer.any()) for layer in reverse.output] == [True, False, False, True]
    assert [bool(mlp[2].weight.any()) for mlp in reverse.mlps] == [True, True, True, False]
    induction = compile_program(program_named("induction"))
    assert induction.config.num_hidden_layers == 2
    assert not any(mlp[2].weight.any() for mlp in induction.mlps)


def test_sources_add_up_to_the_stream() -> None:
    model = compile_program(gates(4))
    forward = DecomposedForward(model)
    run = forward.run(model.encode(inputs(model.program, 4)), keep=True)
    torch.testing.assert_close(run.sources.sum(0), run.x)


def test_compiling_draws_nothing_at_random() -> None:
    before = torch.get_rng_state()
    first, second = compile_program(gates(4)), compile_program(gates(4))
    assert torch.equal(before, torch.get_rng_state())
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name])


def test_refusals_say_what_to_do() -> None:
    def program(output: object) -> Program:
        return Program("mine", output, (0, 2), (3,))

    mean = Aggregate("mean", Select(INDICES, INDICES, same), TOKENS, function=float)
    with pytest.raises(MechlabError, match="cannot select by a number: mean"):
        compile_program(program(Aggregate("out", Select(mean, INDICES, same), TOKENS)))
    with pytest.raises(MechlabError, match="list of the numbers it gets: out"):
        compile_program(program(Map("out", abs, mean)))
    with pytest.raises(MechlabError, match="pair with a number"):
        gate = AtLeast("gate", 1, (mean,))
        compile_program(program(SequenceMap("out", max, gate, TOKENS)))
    with pytest.raises(MechlabError, match="needs no attention"):
        compile_program(program(Map("out", abs, TOKENS)))
    with pytest.raises(MechlabError, match="needs no attention"):
        compile_program(program(TOKENS))
    with pytest.raises(MechlabError, match="two series have one name: mine"):
        compile_program(program(Map("mean", abs, Aggregate("mean", Select(TOKENS, TOKENS, same), TOKENS))))
    with pytest.raises(MechlabError, match="power of two"):
        gates(6)
    with pytest.raises(MechlabError, match="unknown gate: xor"):
        gates(4, ("xor",))
    with pytest.raises(MechlabError, match=r"unknown program: revers .*reverse"):
        program_named("revers")
    with pytest.raises(MechlabError, match="not in the vocabulary of reverse: 7"):
        compile_program(program_named("reverse")).encode([[1, 7]])


@pytest.mark.gpu
def test_compiled_on_cuda() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    model = compile_program(program_named("reverse")).cuda()
    tokens = model.encode(inputs(model.program, 5))
    torch.testing.assert_close(
        DecomposedForward(model).run(tokens).logits, model(tokens).logits, atol=1e-4, rtol=0
    )
