"""Which version of a function runs: compiled for the CPU, Triton on CUDA, or the definition."""

from __future__ import annotations

import importlib.util
from functools import cache

import torch
from torch import Tensor


def on_cpu(*tensors: Tensor) -> bool:
    """Whether the compiled version takes them: all float32 on a CPU."""
    return all(tensor.device.type == "cpu" and tensor.dtype == torch.float32 for tensor in tensors)


def on_cuda(*tensors: Tensor) -> bool:
    """Whether the Triton version takes them: all float32 or bfloat16 on CUDA, and Triton is there."""
    dtypes = torch.float32, torch.bfloat16
    return all(t.device.type == "cuda" and t.dtype in dtypes for t in tensors) and _triton_installed()


@cache
def _triton_installed() -> bool:
    return importlib.util.find_spec("triton") is not None
