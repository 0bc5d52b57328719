"""Shard files: tensors in safetensors' layout, written as a stream and read through a memory map.

Floating formats store values as they are, rounded to the format. ``int8`` stores
``round(x / scale)`` with one float32 ``scale = max|x| / 127`` per row, under the site's name
and ``<name>.scale``.

The layout is that of safetensors (8 bytes of header length, a JSON header, raw data), so any
safetensors reader opens a shard; written here because the library's writer copies every tensor
first and gives no checksum on the way.
"""

from __future__ import annotations

import ctypes
import json
import mmap
from collections.abc import Mapping
from pathlib import Path

import torch
import xxhash
from jaxtyping import Float, Float32, Int8, Shaped
from torch import Tensor

from mechlab.errors import MechlabError, near
from mechlab.files import streaming

FORMATS = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int8": torch.int8,
}
SCALE = ".scale"
_LIBC = ctypes.CDLL(None)
# Share of a row's largest magnitude by which a stored value may differ from a recomputed one:
# half a step of the format, and room for another order of summation.
TOLERANCE = {"float32": 1e-4, "float16": 1e-3, "bfloat16": 6e-3, "int8": 5e-3}
_NAMES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int8: "I8",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.float64: "F64",
}


def check_format(name: str) -> None:
    """MechlabError unless ``name`` is a storage format."""
    if name not in FORMATS:
        raise MechlabError("unknown storage format", name, near(name, FORMATS))


def quantise(
    x: Float[Tensor, "row dim"],
) -> tuple[Int8[Tensor, "row dim"], Float32[Tensor, "row"]]:
    """Eight-bit values and one scale per row; at most half a scale from ``x``."""
    x = x.to(torch.float32)
    scale = x.abs().amax(-1) / 127
    # A row of zeros has no scale of its own, and a subnormal one would divide into infinity.
    scale = torch.where(scale > torch.finfo(torch.float32).tiny, scale, 1.0)
    return (x / scale[:, None]).round().to(torch.int8), scale


def dequantise(values: Int8[Tensor, "row dim"], scale: Float32[Tensor, "row"]) -> Float32[Tensor, "row dim"]:
    """Activations from eight-bit values."""
    return values.to(torch.float32) * scale[:, None]


def write_tensors(
    path: Path, tensors: Mapping[str, Shaped[Tensor, "..."]], metadata: Mapping[str, str] | None = None
) -> str:
    """Write contiguous CPU tensors to ``path``, whole or not at all; returns the file's ``xxh3_128``."""
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    # Wide elements first, so that every tensor starts at a multiple of its element's size.
    tensors = dict(sorted(tensors.items(), key=lambda item: -item[1].element_size()))
    at = 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [at, at + size],
        }
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # data starts at a multiple of eight bytes
    digest = xxhash.xxh3_128()
    with streaming(path) as handle:
        for piece in (len(text).to_bytes(8, "little"), text):
            handle.write(piece)
            digest.update(piece)
        for tensor in tensors.values():
            if tensor.numel() == 0:
                continue
            data = memoryview(tensor.view(torch.uint8).numpy()).cast("B")  # type: ignore[arg-type]
            handle.write(data)
            digest.update(data)
    return digest.hexdigest()


def will_need(mapped: Shaped[Tensor, "row ..."]) -> None:
    """Ask the system to read mapped rows from disk before they are looked at; returns at once."""
    start = mapped.data_ptr() // mmap.PAGESIZE * mmap.PAGESIZE
    length = mapped.data_ptr() + mapped.numel() * mapped.element_size() - start
    # Advice may be refused, and then the rows are read when they are needed.
    _LIBC.madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), mmap.MADV_WILLNEED)
