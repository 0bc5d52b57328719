"""Blockwise encoding against its dense definition."""

from __future__ import annotations

import pytest
import torch
from jaxtyping import config
from torch import Tensor

from mechlab_kernels import encode_bf16, encode_cpu
from mechlab_kernels.encode import (
    encode_above,
    encode_above_reference,
    encode_topk,
    encode_topk_reference,
    low_precision_supported,
)

SHAPES = [
    (1, 1, 1, 1),
    (1, 3, 5, 1),
    (40, 37, 1000, 7),
    (300, 64, 1500, 33),
    (70, 130, 513, 513),
    (33, 5, 9, 9),
]
SEARCHES = ["float32", "bfloat16"]


def weights(seed: int, rows: int, d: int, latents: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(rows, d, generator=generator),
        torch.randn(latents, d, generator=generator),
        torch.randn(latents, generator=generator),
    )


def ordered(values: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    indices, order = indices.sort(1)
    return values.gather(1, order), indices


def agree(x: Tensor, encoder: Tensor, bias: Tensor, k: int, absolute: bool, search: str) -> None:
    """The chosen are the exact k largest, but for choices within the rounding of a float32 dot product."""
    values, indices = encode_topk(x, encoder, bias, k, absolute=absolute, search=search)
    exact = x.double() @ encoder.double().T + bias.double()
    rounding = (
        (x.shape[1] + 2)
        * 2.0**-24
        * (x.double().norm(dim=1)[:, None] * encoder.double().norm(dim=1) + bias.double().abs())
    )
    chosen = exact.gather(1, indices)
    assert ((values.double() - chosen).abs() <= rounding.gather(1, indices)).all()
    assert (indices.sort(1).values.diff(dim=1) > 0).all()
    key = exact.abs() if absolute else exact
    left = key.scatter(1, indices, -torch.inf)
    worst = (chosen.abs() if absolute else chosen).amin(1, keepdim=True)
    assert (left - rounding <= worst + rounding.amax(1, keepdim=True)).all()


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode_cpu, "LATENTS", 384)
    monkeypatch.setattr(encode_cpu, "ROWS", 128)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("seed", range(2))
def test_topk_equals_the_definition(shape, absolute, search, seed) -> None:
    rows, d, latents, k = shape
    x, encoder, bias = weights(seed, rows, d, latents)
    agree(x, encoder, bias, k, absolute, search)
    found = ordered(*encode_topk(x, encoder, bias, k, absolute=absolute, search=search))
    values, indices = ordered(*encode_topk_reference(x, encoder, bias, k, absolute=absolute))
    torch.testing.assert_close(found[0], values, rtol=1e-5, atol=1e-4)
    assert (found[1] == indices).float().mean() > 0.999


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("search", SEARCHES)
def test_ties_go_to_the_lower_latent(absolute, search) -> None:
    generator = torch.Generator().manual_seed(0)
    # Small integers: exact in every precision, with many equal values.
    x, encoder = (torch.randint(-2, 3, shape, generator=generator).float() for shape in ((50, 6), (1100, 6)))
    bias = torch.zeros(1100)
    found = ordered(*encode_topk(x, encoder, bias, 19, absolute=absolute, search=search))
    expected = ordered(*encode_topk_reference(x, encoder, bias, 19, absolute=absolute))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_zero_rows_leave_the_bias(search, sign) -> None:
    x, encoder, _ = weights(0, 40, 8, 100)
    x[::2] = 0
    bias = sign * torch.arange(100).float()
    values, indices = ordered(*encode_topk(x, encoder, bias, 2, search=search))
    assert indices[0].tolist() == ([98, 99] if sign > 0 else [0, 1])
    assert values[0].tolist() == ([98.0, 99.0] if sign > 0 else [0.0, -1.0])


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize(
    "case", ["negative", "opposite", "outliers", "large", "tiny", "common", "unlike", "subnormal"]
)
def test_hard_inputs(absolute, search, case) -> None:
    x, encoder, bias = weights(1, 130, 96, 1400)
    match case:
        case "negative":
            bias -= 100
        case "opposite":
            x, encoder, bias = x.abs() / 1000, -encoder.abs(), bias / 1000
        case "outliers":
            x[:, 3] *= 300
            encoder[:, 3] *= 20
        case "large":
            x, encoder, bias = x * 1e9, encoder * 1e9, bias * 1e17
        case "tiny":
            x, encoder, bias = x * 1e-9, encoder * 1e-9, bias * 1e-18
        case "common":  # most of every pre-activation is the same: bfloat16 tells little apart
            x, encoder = x + 20, encoder + 3
        case "unlike":
            encoder *= torch.logspace(-6, 6, 1400)[
                torch.randperm(1400, generator=torch.Generator().manual_seed(0))
            ][:, None]
        case "subnormal":
            x *= 1e-22
            encoder *= 1e-17
            bias *= 1e-39
            values, _ = encode_topk(x, encoder, bias, 24, absolute=absolute, search=search)
            assert values.isfinite().all()
            return
    agree(x, encoder, bias, 24, absolute, search)


def test_the_bound_holds_and_is_of_use() -> None:
    """The bfloat16 search must not fall back on ordinary input, nor rely on luck."""
    x, encoder, bias = weights(2, 64, 256, 3000)
    calls = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encode_cpu, "topk", lambda *a: calls.append(len(a[0])))
        encode_topk(x, encoder, bias, 16, search="bfloat16")
    assert not calls
    low, norm, gap = encode_bf16._rounded(x)
    encoder_low, encoder_norm, encoder_gap = encode_bf16._rounded(encoder)
    spread = torch.from_numpy(encode_bf16._spread(encoder_norm, encoder_gap, 256)).double()
    product = torch.mm(low, encoder_low.T).double()
    error = (product - x.double() @ encoder.double().T).abs()
    norm, gap, encoder_norm = (torch.from_numpy(part).double() for part in (norm, gap, encoder_norm))
    bound = gap[:, None] * encoder_norm + (norm + gap)[:, None] * spread + product.abs() / 254
    assert (error <= bound).all()
    assert (bound / norm[:, None] / encoder_norm).max() < 0.01


def test_rows_with_more_candidates_than_room_are_exact() -> None:
    x, _, _ = weights(3, 40, 64, 1)
    # All latents nearly alike: bfloat16 rules out none of them.
    encoder = torch.randn(1, 64) + 1e-5 * torch.randn(2000, 64)
    agree(x, encoder, torch.zeros(2000), 5, False, "bfloat16")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("where", ["x", "encoder", "bias"])
def test_bad_numbers_as_in_the_definition(bad, search, where) -> None:
    x, encoder, bias = weights(4, 40, 6, 700)
    {"x": x[5], "encoder": encoder[600], "bias": bias[3:4]}[where][0] = bad
    for absolute in (False, True):
        found = ordered(*encode_topk(x, encoder, bias, 9, absolute=absolute, search=search))
        expected = ordered(*encode_topk_reference(x, encoder, bias, 9, absolute=absolute))
        assert torch.equal(found[1], expected[1])
        torch.testing.assert_close(found[0], expected[0], equal_nan=True)


def test_nan_makes_its_row_nan_and_no_other() -> None:
    x, encoder, bias = weights(5, 9, 6, 70)
    x[4, 2] = torch.nan
    for search in SEARCHES:
        values, indices = encode_topk(x, encoder, bias, 3, search=search)
        assert values.isnan().all(1).tolist() == [i == 4 for i in range(9)]
        assert indices[4].tolist() == [0, 1, 2]


def test_other_layouts_and_dtypes() -> None:
    x, encoder, bias = weights(6, 90, 20, 600)
    expected = encode_topk(x, encoder, bias, 8)
    strided = encode_topk(x.T.contiguous().T, encoder.T.contiguous().T, bias.repeat(2, 1).T[:, 1], 8)
    assert all(torch.equal(a, b) for a, b in zip(strided, expected, strict=True))
    values, indices = encode_topk(x.double(), encoder.double(), bias.double(), 8)
    assert values.dtype == torch.float64
    torch.testing.assert_close(ordered(values, indices)[0].float(), ordered(*expected)[0])
    low = encode_topk(x.bfloat16(), encoder.bfloat16(), bias.bfloat16(), 8)
    assert low[0].dtype == torch.bfloat16
    assert encode_topk(x[:0], encoder, bias, 8)[0].shape == (0, 8)
    assert encode_topk(x[:0], encoder, bias, 8, search="bfloat16")[0].shape == (0, 8)


@pytest.mark.parametrize("search", SEARCHES)
def test_same_input_same_bits(search) -> None:
    inputs = weights(7, 200, 31, 1300)
    first, second = (encode_topk(*inputs, 12, search=search) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(("rows", "d", "latents"), [(1, 1, 1), (1, 7, 600), (130, 33, 1000), (200, 5, 64)])
@pytest.mark.parametrize("level", [-9.0, 0.0, 3.0, 1000.0])
def test_above_equals_the_definition(rows, d, latents, level) -> None:
    x, encoder, bias = weights(8, rows, d, latents)
    threshold = level + torch.rand(latents)
    values, indices = encode_above(x, encoder, bias, threshold)
    expected = encode_above_reference(x, encoder, bias, threshold)
    assert torch.equal(indices, expected[1])
    torch.testing.assert_close(values, expected[0])
    assert ((values > threshold[indices]) | (values == 0)).all()


def test_above_by_hand() -> None:
    x, encoder = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 5.0], [2.0, 0.0], [3.0, 6.0]])
    for above in (encode_above, encode_above_reference):
        values, indices = above(x, encoder, torch.tensor([0.0, 0.0, 1.0]), torch.tensor([1.0, 1.0, 5.0]))
        assert values.tolist() == [[2.0, 0.0], [5.0, 7.0]]
        assert indices.tolist() == [[1, 0], [0, 2]]
    assert encode_above(x[:0], encoder, torch.zeros(3), torch.zeros(3))[0].shape == (0, 1)


def test_above_shows_nan() -> None:
    x, encoder, bias = weights(9, 20, 4, 50)
    x[7, 1] = torch.nan
    for above in (encode_above, encode_above_reference):
        values, _ = above(x, encoder, bias, torch.full((50,), 1e6))
        assert values.shape == (20, 50)
        assert values.isnan().all(1).tolist() == [i == 7 for i in range(20)]


@pytest.mark.parametrize("k", [0, -1, 11])
def test_k_outside_the_dictionary_is_refused(k) -> None:
    with pytest.raises(ValueError, match="outside"):
        encode_topk(*weights(0, 3, 4, 10), k)


def test_shapes_that_do_not_fit_are_refused(monkeypatch) -> None:
    # The checks of array types are the tests' own: users run without them.
    monkeypatch.setattr(config, "jaxtyping_disable", True)
    x, encoder, bias = weights(0, 3, 4, 10)
    for wrong in [
        (x[:, 1:], encoder, bias),
        (x, encoder, bias[1:]),
        (x[0], encoder, bias),
        (x, x[:0], bias[:0]),
    ]:
        with pytest.raises(ValueError, match="fit"):
            encode_topk(*wrong, 1)
    with pytest.raises(ValueError, match="threshold"):
        encode_above(x, encoder, bias, bias[1:])


def test_auto_search_asks_the_processor() -> None:
    x, encoder, bias = weights(0, 300, 16, 200)
    chosen = encode_topk(x, encoder, bias, 4, search="auto")
    search = "bfloat16" if low_precision_supported() else "float32"
    expected = encode_topk(x, encoder, bias, 4, search=search)
    assert all(torch.equal(a, b) for a, b in zip(chosen, expected, strict=True))
