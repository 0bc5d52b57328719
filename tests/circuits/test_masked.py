"""The masked forward against a naive one that runs every circuit whole, and its invariants.

In double precision: random weights this large make single precision differ in the fourth digit.
"""

from __future__ import annotations

import pytest
import torch
from reading import masked_logits, soft_logits
from torch import Tensor

from mechlab.circuits.graph import Graph
from mechlab.circuits.masked import Masked
from mechlab.circuits.metrics import logit_difference
from mechlab.circuits.runs import PairedRun, paired_runs
from mechlab.errors import MechlabError
from mechlab.models.forward import DecomposedForward, Stage

CLOSE = {"atol": 1e-6, "rtol": 1e-6}


@pytest.fixture(scope="module")
def prepared(random_module, random_task):
    made: dict[tuple[str, int], tuple[DecomposedForward, PairedRun]] = {}

    def make(architecture: str, seed: int = 0) -> tuple[DecomposedForward, PairedRun]:
        if (architecture, seed) not in made:
            forward = DecomposedForward(random_module(architecture, seed).double())
            pair = next(iter(paired_runs(forward, random_task(seed, n=3, pos=5), logit_difference)))
            made[architecture, seed] = forward, pair
        return made[architecture, seed]

    return make


def naive(forward: DecomposedForward, pair: PairedRun, mask: Tensor, other: Tensor) -> Tensor:
    """Every reader of every stage gets a stream of its own, summed source by source."""
    sources: list[Tensor] = []

    def write(stage: Stage, outputs: Tensor) -> Tensor:
        sources.extend(outputs)
        return outputs

    def read(stage: Stage, stream: Tensor) -> Tensor:
        streams = []
        for reader in range(stage.readers.start, stage.readers.stop):
            own = stream.clone()
            for source in range(stage.upstream):
                gone = ~mask[source, reader]
                where = gone if gone.ndim == 0 else gone[None, :, None]
                own = own - where * (sources[source] - other[source])
            streams.append(own)
        return torch.stack(streams)

    with torch.no_grad():
        run = forward.run(pair.task.clean, positions=pair.task.positions["end"], read=read, write=write)
    assert run.logits is not None
    return run.logits


def random_masks(forward: DecomposedForward, seed: int, pos: int | None = None) -> Tensor:
    """Circuits that keep nearly all, most, some and hardly any edges, and one edge less each."""
    generator = torch.Generator().manual_seed(seed)
    real = Graph(forward.shape).real
    size = real.shape if pos is None else (*real.shape, pos)
    masks = [torch.rand(size, generator=generator) < share for share in (0.99, 0.9, 0.5, 0.02)]
    edges = real.nonzero()
    for row in torch.randint(len(edges), (6,), generator=generator).tolist():
        mask = torch.ones(size, dtype=torch.bool)
        mask[tuple(edges[row])] = False
        masks.append(mask)
    return torch.stack(masks)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("by_position", [False, True])
def test_equals_naive(architecture, seed, by_position, prepared) -> None:
    forward, pair = prepared(architecture, seed)
    masks = random_masks(forward, seed, pair.task.clean.shape[1] if by_position else None)
    for other in (pair.corrupt.sources, torch.zeros(()).expand_as(pair.clean.sources)):
        found = masked_logits(forward, pair.clean, other, masks, pair.task.positions["end"])
        expected = torch.stack([naive(forward, pair, mask, other) for mask in masks])
        torch.testing.assert_close(found, expected, **CLOSE)


def test_nothing_patched_is_the_model_and_everything_patched_the_corrupt_run(architecture, prepared) -> None:
    forward, pair = prepared(architecture)
    real = Graph(forward.shape).real
    masks = torch.stack([torch.ones_like(real), real, torch.zeros_like(real)])
    found = masked_logits(forward, pair.clean, pair.corrupt.sources, masks, pair.task.positions["end"])
    assert torch.equal(found[0], pair.clean.logits)
    assert torch.equal(found[1], pair.clean.logits)
    torch.testing.assert_close(found[2], pair.corrupt.logits, **CLOSE)
    back = masked_logits(forward, pair.corrupt, pair.clean.sources, masks, pair.task.positions["end"])
    assert torch.equal(back[0], pair.corrupt.logits)
    torch.testing.assert_close(back[2], pair.clean.logits, **CLOSE)


def test_batches_of_circuits_equal_one_at_a_time(architecture, prepared, monkeypatch) -> None:
    forward, pair = prepared(architecture)
    masks = random_masks(forward, 5)
    arguments = forward, pair.clean, pair.corrupt.sources
    together = masked_logits(*arguments, masks, pair.task.positions["end"])
    for mask, expected in zip(masks, together, strict=True):
        torch.testing.assert_close(
            masked_logits(*arguments, mask[None], pair.task.positions["end"])[0], expected, **CLOSE
        )
    monkeypatch.setattr("mechlab.circuits.masked._ELEMENTS", 1)
    torch.testing.assert_close(
        masked_logits(*arguments, masks, pair.task.positions["end"]), together, **CLOSE
    )


@pytest.mark.parametrize("by_position", [False, True])
def test_soft_masks(architecture, by_position, prepared) -> None:
    forward, pair = prepared(architecture)
    ends = pair.task.positions["end"]
    masks = random_masks(forward, 2, pair.task.clean.shape[1] if by_position else None)
    for mask in masks[1:4]:
        found = soft_logits(forward, pair.clean, pair.corrupt.sources, mask.double(), ends)
        expected = masked_logits(forward, pair.clean, pair.corrupt.sources, mask[None], ends)[0]
        torch.testing.assert_close(found, expected, **CLOSE)


def test_soft_gradient_is_the_slope(prepared) -> None:
    forward, pair = prepared("llama")
    ends = pair.task.positions["end"]
    masked = Masked(forward, pair.clean, pair.corrupt.sources, ends)
    mask = torch.full(masked.real.shape, 0.7, dtype=torch.float64, requires_grad=True)
    pair.metric(masked.soft(mask)).sum().backward()
    assert mask.grad is not None
    assert (mask.grad[~masked.real] == 0).all()
    steepest = mask.grad.abs().flatten().topk(5).indices
    for place in steepest.tolist():
        values = []
        for step in (-0.01, 0.01):
            moved = mask.detach().clone()
            moved.view(-1)[place] += step
            values.append(float(pair.metric(masked.soft(moved)).sum()))
        slope = (values[1] - values[0]) / 0.02
        assert slope == pytest.approx(float(mask.grad.view(-1)[place]), rel=0.05, abs=1e-3)


def test_several_positions_read(prepared) -> None:
    forward, pair = prepared("gpt2")
    ends = torch.tensor([[1, 4]] * 3)
    base = type(pair.clean)(**{**vars(pair.clean), "logits": pair.clean.logits[:, None].expand(-1, 2, -1)})
    masks = random_masks(forward, 3)
    found = masked_logits(forward, base, pair.corrupt.sources, masks, ends)
    assert found.shape[:3] == (len(masks), 3, 2)
    single = masked_logits(forward, pair.clean, pair.corrupt.sources, masks, ends[:, 1])
    torch.testing.assert_close(found[2:, :, 1], single[2:], **CLOSE)


def test_masks_in_parts_and_of_other_shapes(architecture, prepared, monkeypatch) -> None:
    forward, pair = prepared(architecture)
    masks = random_masks(forward, 4, pair.task.clean.shape[1])
    arguments = forward, pair.clean, pair.corrupt.sources
    ends = pair.task.positions["end"]
    together = masked_logits(*arguments, masks, ends)
    monkeypatch.setattr("mechlab.circuits.masked._ENTRIES", 3 * masks[0].numel())
    torch.testing.assert_close(masked_logits(*arguments, masks, ends), together, **CLOSE)
    masked = Masked(*arguments, ends)
    for bad in (masks[:, :-1], masks[..., :-1], masks[..., None]):
        with pytest.raises(MechlabError, match="mask does not fit"):
            masked.logits(bad)
        with pytest.raises(MechlabError, match="mask does not fit"):
            masked.soft(bad[0].double())


def test_memory_counts_the_sources_that_run_anew(prepared, monkeypatch) -> None:
    forward, pair = prepared("gpt2")
    masked = Masked(forward, pair.clean, pair.corrupt.sources, pair.task.positions["end"])
    # Two edges of early sources only: all later sources are still kept, for every circuit.
    mask = torch.ones_like(masked.real)
    mask[0, 0] = mask[1, -1] = False
    stream = pair.clean.streams[0].numel()
    monkeypatch.setattr("mechlab.circuits.masked._ELEMENTS", 40 * stream)
    for rows, _ in masked.runs(mask.expand(10, -1, -1)):
        assert len(rows) * (forward.shape.n_sources - 1) <= 40
