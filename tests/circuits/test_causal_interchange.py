"""Interchange interventions against hooks written by hand."""

from __future__ import annotations

from random import Random

import pytest
import torch
from torch import Tensor

from mechlab.circuits.causal.interchange import (
    Place,
    accuracy,
    interchange_accuracy,
    interchange_logits,
)
from mechlab.circuits.causal.model import CausalModel, Variable
from mechlab.circuits.causal.problem import Interchanges, Problem, draw_interchanges
from mechlab.errors import MechlabError
from mechlab.models.sites import site_table
from mechlab.models.subject import Subject

VOCABULARY = 30


@pytest.fixture
def subject(random_module, as_subject):
    def make(architecture: str, seed: int = 0) -> Subject:
        module = random_module(architecture, seed)
        return Subject("random", module, as_subject(module).tokenizer, site_table(module))

    return make


def pairs(n: int = 8, pos: int = 5, seed: int = 0, variables: tuple[str, ...] = ("x",)) -> Interchanges:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randint(VOCABULARY, shape, generator=generator)

    return Interchanges(
        draw(n, pos), {name: draw(n, pos) for name in variables}, draw(n), draw(n), torch.arange(VOCABULARY)
    )


def orthonormal(k: int, dim: int, seed: int = 0) -> Tensor:
    drawn = torch.randn(dim, k, generator=torch.Generator().manual_seed(seed))
    return torch.linalg.qr(drawn)[0].T


@pytest.mark.parametrize(
    "place",
    [
        Place("blocks.1.hook_resid_post"),
        Place("blocks.1.attn.hook_z:2", 3),
        Place("blocks.0.hook_mlp_out", -1),
        Place("blocks.2.hook_resid_pre", 4, orthonormal(3, 24)),
        Place("blocks.0.mlp.hook_post", 2, orthonormal(2, 96)),
    ],
    ids=lambda place: place.site,
)
def test_interchange_with_itself_changes_no_bit(subject, place) -> None:
    model, data = subject("gpt2"), pairs()
    same = Interchanges(data.base, {"x": data.base}, data.answers, data.unchanged, data.outputs)
    assert torch.equal(interchange_logits(model, same, {"x": place}), model.logits(data.base)[:, -1])
    other = interchange_logits(model, data, {"x": place})
    assert not torch.allclose(other, model.logits(data.base)[:, -1], atol=1e-3)


def test_whole_stream_interchange_is_the_source_run(architecture, subject) -> None:
    model, data = subject(architecture), pairs()
    logits = interchange_logits(model, data, {"x": Place("blocks.1.hook_resid_pre")}, batch_size=3)
    torch.testing.assert_close(logits, model.logits(data.sources["x"])[:, -1], atol=1e-5, rtol=1e-4)
    full = Place("blocks.1.hook_resid_pre", None, orthonormal(24, 24))
    torch.testing.assert_close(interchange_logits(model, data, {"x": full}), logits, atol=1e-4, rtol=1e-4)


def test_one_head_at_one_position_equals_a_hook_by_hand(subject) -> None:
    model, data = subject("gpt2", 1), pairs(seed=1)
    point = model.module.transformer.h[1].attn.c_proj
    seen = []
    handle = point.register_forward_pre_hook(lambda _m, args: seen.append(args[0].clone()))
    model.module(data.sources["x"])
    handle.remove()

    def replace(_m, args):
        mixed = args[0].clone()
        mixed[:, 3, 12:18] = seen[0][:, 3, 12:18]
        return (mixed,)

    handle = point.register_forward_pre_hook(replace)
    wanted = model.module(data.base).logits[:, -1]
    handle.remove()
    found = interchange_logits(model, data, {"x": Place("blocks.1.attn.hook_z:2", 3)})
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5)


def test_a_subspace_takes_only_what_lies_in_it(subject) -> None:
    model, data, rows = subject("llama"), pairs(seed=2), orthonormal(3, 24, 5)
    layer = model.module.model.layers[1]
    streams = []
    handle = layer.register_forward_pre_hook(lambda _m, args: streams.append(args[0].clone()))
    model.module(data.sources["x"])
    handle.remove()

    def replace(_m, args):
        x = args[0].clone()
        for row in rows:
            x[:, 2] += ((streams[0][:, 2] - args[0][:, 2]) @ row)[:, None] * row
        return (x, *args[1:])

    handle = layer.register_forward_pre_hook(replace)
    wanted = model.module(data.base).logits[:, -1]
    handle.remove()
    found = interchange_logits(model, data, {"x": Place("blocks.1.hook_resid_pre", 2, rows)})
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


def test_several_variables_have_sources_of_their_own(subject) -> None:
    """The stream taken from two sources, position by position, is what a hook by hand makes of them."""
    model, data = subject("gpt2"), pairs(pos=3, variables=("left", "right"))
    site, layer, streams = "blocks.2.hook_resid_pre", model.module.transformer.h[2], []
    handle = layer.register_forward_pre_hook(lambda _m, args: streams.append(args[0].clone()))
    for tokens in data.sources.values():
        model.module(tokens)
    handle.remove()
    mixed = torch.cat([streams[0][:, :2], streams[1][:, 2:]], 1)
    handle = layer.register_forward_pre_hook(lambda _m, args: (mixed, *args[1:]))
    wanted = model.module(data.base).logits[:, -1]
    handle.remove()
    alignment = {"left": (Place(site, 0), Place(site, 1)), "right": Place(site, 2)}
    torch.testing.assert_close(interchange_logits(model, data, alignment), wanted, atol=1e-6, rtol=1e-5)


def test_accuracy_counts_only_the_outputs() -> None:
    logits = torch.tensor([[9.0, 1.0, 2.0], [9.0, 3.0, 2.0], [9.0, 1.0, 2.0], [9.0, 0.0, 1.0]])
    data = pairs(n=4)
    data = Interchanges(
        data.base, data.sources, torch.tensor([2, 1, 1, 2]), data.unchanged, torch.tensor([1, 2])
    )
    assert accuracy("hand", logits, data).value == pytest.approx(0.75)


def last_letter() -> Problem:
    """Says the number in the middle; a model that copies it is made below."""
    causal = CausalModel(("a", "b"), (Variable("out", ("a",), lambda a: a),), "out")

    def draw(rng: Random) -> dict[str, int]:
        return {"a": rng.randrange(12), "b": rng.randrange(12)}

    return Problem(causal, draw, lambda s: [0, 1 + s["b"], 1 + s["a"]], lambda value: 1 + value)


def test_an_aligned_place_scores_one_and_its_null_less(subject) -> None:
    model = subject("gpt2")
    # No layer adds anything, so the stream at the end is the embedding of the last token.
    for block in model.module.transformer.h:
        for part in (block.attn.c_proj, block.mlp.c_proj):
            part.weight.data.zero_()
            part.bias.data.zero_()
    model.module.transformer.wpe.weight.data.zero_()
    embedding = model.module.transformer.wte.weight
    embedding.data.copy_(torch.nn.functional.normalize(embedding - embedding.mean(1, keepdim=True), dim=1))
    model.module.transformer.ln_f.weight.data.fill_(1.0)
    model.module.transformer.ln_f.bias.data.zero_()
    data = draw_interchanges(last_letter(), "out", n=60)
    right = interchange_accuracy(model, data, {"out": Place("blocks.1.hook_resid_post", -1)})
    assert right.value == 1.0
    assert right.beats_null
    nothing = interchange_accuracy(model, data, {"out": Place("blocks.1.hook_resid_post", 0)})
    assert nothing.value == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("alignment", "message"),
    [
        ({}, "aligned with no place: x"),
        ({"x": ()}, "aligned with no place: x"),
        (
            {"x": Place("blocks.1.hook_resid_pre"), "y": Place("blocks.1.hook_resid_pre")},
            "no source prompts.*y",
        ),
        ({"x": Place("blocks.1.hook_resid")}, "no site.*hook_resid"),
        ({"x": Place("blocks.1.hook_resid_pre", 9)}, "position is out of range: 9"),
    ],
)
def test_alignments_that_do_not_fit_are_refused(subject, alignment, message) -> None:
    with pytest.raises(MechlabError, match=message):
        interchange_logits(subject("gpt2"), pairs(), alignment)


def test_a_subspace_must_be_orthonormal_rows_of_the_sites_size(subject) -> None:
    with pytest.raises(MechlabError, match="not orthonormal"):
        Place("blocks.1.hook_resid_pre", 0, torch.ones(2, 24))
    with pytest.raises(MechlabError, match="another size than the site: 4"):
        interchange_logits(subject("gpt2"), pairs(), {"x": Place("blocks.1.hook_resid_pre", 0, torch.eye(4))})


def test_batches_below_one_are_refused(subject) -> None:
    with pytest.raises(MechlabError, match="batch size"):
        interchange_logits(subject("gpt2"), pairs(), {"x": Place("blocks.1.hook_resid_pre")}, batch_size=-1)
