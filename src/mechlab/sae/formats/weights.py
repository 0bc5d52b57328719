"""Weight files and the tensors in them, with what is wrong explained on one line."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mechlab.errors import MechlabError, near

_DAMAGE = (OSError, ValueError, RuntimeError, EOFError, KeyError, SafetensorError, zipfile.BadZipFile)


class Weights:
    """The tensors of one file. Each is taken once, checked, in float32 at least, on the CPU.

    Args:
        tensors: name → tensor.
        path: the file they come from, for errors.
    """

    def __init__(self, tensors: Mapping[str, Tensor], path: Path | str) -> None:
        self._left, self.path = dict(tensors), path

    def __contains__(self, name: str) -> bool:
        return name in self._left

    def take(self, name: str, *shape: int | None) -> Tensor:
        """The tensor called ``name``.

        Args:
            shape: sizes it must have; None where any will do.

        Raises MechlabError when it is missing, has another shape, or holds NaN (or infinities, which
        only a threshold may hold).
        """
        if name not in self._left:
            raise MechlabError(f"{self.path} lacks the tensor", name, near(name, self._left))
        tensor = self._left.pop(name).detach().cpu()
        if tensor.is_floating_point() and tensor.dtype != torch.float64:
            tensor = tensor.to(torch.float32)
        if len(shape) != tensor.ndim or any(
            w not in (None, h) for w, h in zip(shape, tensor.shape, strict=True)
        ):
            wanted = ", ".join("any" if size is None else str(size) for size in shape)
            raise MechlabError(
                f"{self.path}: {name} has the wrong shape", list(tensor.shape), f"not [{wanted}]"
            )
        bad = tensor.isnan() if "threshold" in name else ~tensor.isfinite()
        if bool(bad.any()):
            raise MechlabError(
                f"{self.path}: {name} holds NaN or infinite values", int(bad.sum()), "fetch it again"
            )
        return tensor

    def all(self) -> dict[str, Tensor]:
        """Every tensor that is left, as it is stored, unchecked."""
        return dict(self._left)

    def done(self, *spare: str) -> None:
        """MechlabError when a tensor outside ``spare`` was not taken: it may change the result."""
        left = [name for name in self._left if name not in spare]
        if left:
            raise MechlabError(
                f"{self.path} holds a tensor that mechlab does not know", left[0], "check the format"
            )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; MechlabError when it is missing or is none."""
    content = _reading(path, lambda: json.loads(path.read_text(encoding="utf-8")))
    if not isinstance(content, dict):
        raise MechlabError("file holds no JSON object", path, "check the source")
    return content


def read_safetensors(path: Path) -> Weights:
    """A safetensors file."""
    return Weights(_reading(path, lambda: load_file(str(path))), path)


def read_npz(path: Path) -> Weights:
    """A NumPy archive, without pickled objects."""

    def load() -> dict[str, Tensor]:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays}

    return Weights(_reading(path, load), path)


def read_pickle(path: Path) -> dict[str, Any]:
    """A state dict saved by torch, without running what else a pickle may hold."""
    try:
        content = _reading(path, lambda: torch.load(path, map_location="cpu", weights_only=True))
    except pickle.UnpicklingError as error:
        raise MechlabError(
            "file is damaged, or holds more than tensors", path, "save its state dict alone"
        ) from error
    if not isinstance(content, dict):
        raise MechlabError("file holds no state dict", path, "save the state dict")
    return content


def setting(config: Mapping[str, Any], name: str, path: Path | str, kind: type = int) -> Any:
    """A value of a config file; MechlabError when it is missing or of another type."""
    if name not in config:
        raise MechlabError(f"{path} lacks the key", name, near(name, config))
    value = config[name]
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise MechlabError(f"{path}: {name} is wrong", value, f"{kind.__name__} expected")
    return value


def _reading(path: Path, load: Callable[[], Any]) -> Any:
    if not path.is_file():
        raise MechlabError("file is missing", path, "check the source")
    try:
        return load()
    except pickle.UnpicklingError:
        raise
    except _DAMAGE as error:
        raise MechlabError("file is damaged or cut short", path, "fetch it again") from error
