"""What loading a model needs before there is a ``Subject``: names, devices, types and clear errors."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from mechlab.errors import MechlabError, near

BUNDLED = "fable"
# Offered when a name is mistyped; any other hub name works as well.
WELL_KNOWN = (
    BUNDLED,
    "gpt2",
    "EleutherAI/pythia-70m",
    "EleutherAI/pythia-160m",
    "EleutherAI/pythia-410m",
    "google/gemma-2b",
    "meta-llama/Llama-3.2-1B",
    "Qwen/Qwen2.5-0.5B",
)


def bundled_path() -> Path:
    """Directory of the bundled model inside the installed package."""
    return Path(str(resources.files("mechlab") / "models" / BUNDLED))


def resolve_device(device: str) -> torch.device:
    """Turn "auto" into the best device there is; MechlabError when the one asked for is absent."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
    except RuntimeError:
        raise MechlabError("unknown device", device, "use auto, cpu, cuda or cuda:N") from None
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise MechlabError("device is not there", device, "use --device cpu")
    if place.type not in ("cpu", "cuda"):
        raise MechlabError("unknown device", device, "use auto, cpu, cuda or cuda:N")
    return place


def resolve_dtype(dtype: str | torch.dtype | None, place: torch.device) -> torch.dtype | str:
    """The type to load; by default float32 on a CPU and the checkpoint's own elsewhere ("auto")."""
    if dtype is None:
        return torch.float32 if place.type == "cpu" else "auto"
    if isinstance(dtype, torch.dtype):
        return dtype
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype not in known:
        raise MechlabError("unknown dtype", dtype, near(dtype, known))
    return known[dtype]


def find_source(name: str) -> str:
    """The directory of a model, or its hub name as it is; MechlabError for a directory that is not there."""
    if name == BUNDLED:
        return str(bundled_path())
    path = Path(name).expanduser()
    if not name or not os.access(path if path.exists() else ".", os.R_OK):
        raise MechlabError("model cannot be read", repr(name), "check --model")
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise MechlabError("directory holds no model (config.json is missing)", name, "check --model")
        return str(path)
    if path.exists() or path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        around = [str(p) for p in path.parent.iterdir() if p.is_dir()] if path.parent.is_dir() else []
        remedy = near(str(path), around) if around else "check the path"
        raise MechlabError("model directory does not exist", name, remedy)
    return name


@contextlib.contextmanager
def loading_errors(name: str, local: bool) -> Iterator[None]:
    """Turns what goes wrong while a model is loaded into a MechlabError that says what to do."""
    try:
        yield
    except MechlabError:
        raise
    except ImportError as error:
        raise MechlabError(f"model {name} needs a package that is missing", error, "install it") from error
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        causes = [type(e).__name__ for e in (error, error.__cause__, error.__context__) if e is not None]
        if any(c in ("GatedRepoError",) for c in causes):
            raise MechlabError(
                "model is gated", name, "accept its licence on the hub, pass token="
            ) from error
        if any(
            c in ("RepositoryNotFoundError", "RevisionNotFoundError", "HFValidationError") for c in causes
        ):
            raise MechlabError("model does not exist", name, near(name, WELL_KNOWN)) from error
        if not local and (any("LocalEntryNotFound" in c for c in causes) or "connect" in str(error)):
            raise MechlabError(
                "model is neither bundled, nor a directory, nor cached, and the hub cannot be reached",
                name,
                f"go online, pass a directory, or use {BUNDLED}"
                + ("" if name in WELL_KNOWN else f"; {near(name, WELL_KNOWN)}"),
            ) from error
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise MechlabError(f"model {name} cannot be loaded", first_line, "check its files") from error


def load_tokenizer(source: str, name: str, options: dict[str, Any]) -> Any:
    """The tokenizer that lies with a model; MechlabError when there is none."""
    from transformers import AutoTokenizer

    names = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")
    if Path(source).is_dir() and not any((Path(source) / n).is_file() for n in names):
        raise MechlabError("model has no tokenizer", name, "save its tokenizer into the same directory")
    return AutoTokenizer.from_pretrained(source, **options)


def quantisation_options(quantisation: str | None) -> dict[str, Any]:
    """Arguments of ``from_pretrained`` for "8bit", "4bit" or None."""
    if quantisation is None:
        return {}
    if quantisation not in ("8bit", "4bit"):
        raise MechlabError("unknown quantisation", quantisation, "use 8bit or 4bit")
    if not torch.cuda.is_available():
        raise MechlabError("quantisation needs a CUDA device", quantisation, "leave it out")
    from transformers import BitsAndBytesConfig

    return {"quantization_config": BitsAndBytesConfig(**{f"load_in_{quantisation}": True})}


@contextlib.contextmanager
def no_loading_bar() -> Iterator[None]:
    """Keep transformers' own weight-loading bar off the terminal; the switch is put back."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
