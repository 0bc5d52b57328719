"""Column and row moments of a block of activations, in one pass over memory.

For a block ``x`` and a reference row ``shift`` near its mean:

    first[j]   = sum_i (x[i, j] - shift[j])
    second[j]  = sum_i (x[i, j] - shift[j])^2
    square[i]  = sum_j x[i, j]^2
    largest[i] = max_j |x[i, j]|

Mean and variance follow from the first two without the cancellation that plain sums of
squares suffer when the mean is large against the spread (Chan, Golub and LeVeque, 1983).
A NaN or an infinity anywhere in a row makes its ``square`` NaN or infinite.

The floor is one read of ``x``; separate torch calls read it five times.
"""

from __future__ import annotations

from typing import NamedTuple, no_type_check

import numpy as np
import torch
from jaxtyping import Float
from numba import njit
from torch import Tensor


class Moments(NamedTuple):
    """What ``moments`` returns; float32, on the device of the block."""

    first: Float[Tensor, "dim"]
    second: Float[Tensor, "dim"]
    square: Float[Tensor, "row"]
    largest: Float[Tensor, "row"]


def moments(x: Float[Tensor, "row dim"], shift: Float[Tensor, "dim"]) -> Moments:
    """Moments of a block of a few thousand rows, computed in float32.

    Sums over rows are float32: hand over blocks, and add their results up in float64.
    Compiled for contiguous rows on a CPU; plain torch elsewhere.
    """
    x, shift = x.detach().to(torch.float32), shift.detach().to(torch.float32)
    if x.device.type != "cpu":
        return moments_reference(x, shift)
    rows, dim = x.shape
    first, second = np.zeros(dim, np.float32), np.zeros(dim, np.float32)
    square, largest = np.empty(rows, np.float32), np.empty(rows, np.float32)
    values = x.contiguous().numpy()
    _one_pass(
        values,
        values.view(np.int32),
        shift.contiguous().numpy(),
        first,
        second,
        square,
        largest.view(np.int32),
    )
    return Moments(*(torch.from_numpy(part) for part in (first, second, square, largest)))


def moments_reference(x: Float[Tensor, "row dim"], shift: Float[Tensor, "dim"]) -> Moments:
    """The same by definition."""
    x, apart = x.float(), x.float() - shift.float()
    return Moments(apart.sum(0), apart.square().sum(0), x.square().sum(1), x.abs().amax(1))


# Reassociation lets the compiler use vector registers for the sums; NaN and infinity keep their
# meaning. Magnitudes are compared as integers, which order alike (NaN above infinity): a maximum of
# floats would stay scalar for the sake of NaN, at a fifth of the speed.
@njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})
@no_type_check
def _one_pass(x, bits, shift, first, second, square, largest):
    for i in range(x.shape[0]):
        total, most = np.float32(0), np.int32(0)
        for j in range(x.shape[1]):
            value = x[i, j]
            apart = value - shift[j]
            first[j] += apart
            second[j] += apart * apart
            total += value * value
            magnitude = bits[i, j] & np.int32(0x7FFFFFFF)
            most = magnitude if magnitude > most else most
        square[i] = total
        largest[i] = most
