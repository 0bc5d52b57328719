"""``Subject``: the untouched Hugging Face model under study, with its sites and fingerprint."""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from torch import Tensor

from mechlab.data.corpus import hub_is_offline
from mechlab.errors import MechlabError, near
from mechlab.files import fingerprint
from mechlab.models.sites import Site, site_table

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


@dataclass(frozen=True, eq=False)
class Subject:
    """A model to be studied.

    Attributes:
        name: the name it was loaded by.
        module: the Hugging Face model, in evaluation mode, not modified in any way.
        tokenizer: its tokenizer.
        sites: name → ``Site`` for every place that can be read or replaced.
    """

    name: str
    module: Any
    tokenizer: Any
    sites: dict[str, Site]

    @property
    def device(self) -> torch.device:
        """Where the embedding lives, which is where token ids must be."""
        return cast(torch.device, self.module.get_input_embeddings().weight.device)

    @property
    def dtype(self) -> torch.dtype:
        """Floating type of the weights."""
        return cast(torch.dtype, self.module.dtype)

    @property
    def n_ctx(self) -> int:
        """Longest context in tokens, BOS included."""
        return int(self.module.config.max_position_embeddings)

    @property
    def bos(self) -> int | None:
        """The beginning-of-sequence token that every context starts with; None when there is none."""
        token: int | None = self.tokenizer.bos_token_id
        return token

    def site(self, name: str) -> Site:
        """The site called ``name``, or one head's part of it ("blocks.0.attn.hook_z:3").

        Raises MechlabError, with near names, when there is none, or no such head.
        """
        base, colon, head = name.partition(":")
        if base not in self.sites:
            raise MechlabError(f"model {self.name} has no site", name, near(base, self.sites))
        site = self.sites[base]
        if not colon:
            return site
        if not head.isdecimal():
            raise MechlabError("head is not a number", name, f"as in {base}:0")
        return site.one_head(int(head))

    def tokens(self, text: str | Sequence[dict[str, str]]) -> Int[Tensor, "pos"]:
        """Token ids of a text, or of a chat given as a list of {"role", "content"}, with BOS exactly once.

        Raises MechlabError for a chat when the tokenizer has no chat template.
        """
        if isinstance(text, str):
            ids = self.tokenizer.encode(text, add_special_tokens=False)
        else:
            if not self.tokenizer.chat_template:
                raise MechlabError(f"tokenizer of {self.name} has no chat template", None, "pass plain text")
            rendered = self.tokenizer.apply_chat_template(list(text), tokenize=False)
            ids = self.tokenizer.encode(rendered, add_special_tokens=False)
        if self.bos is not None and ids[:1] != [self.bos]:
            ids = [self.bos, *ids]
        return torch.tensor(ids, dtype=torch.long)

    def token_text(self, token: int) -> str:
        """One token as it would be written, its leading space kept.

        A token that is part of a character shows its vocabulary entry.
        """
        entry: str = self.tokenizer.convert_ids_to_tokens(token)
        if entry.startswith("▁"):
            return entry.replace("▁", " ")
        text: str = self.tokenizer.decode([token])
        if "\ufffd" in text:
            return entry
        # Word-level vocabularies have no spaces; texts are words divided by them.
        return f" {text}" if self._word_level and text.isalnum() else text

    @functools.cached_property
    def _word_level(self) -> bool:
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        return type(getattr(backend, "model", None)).__name__ == "WordLevel"

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 over everything that decides what the model computes.

        Covers weights, tokenizer, class, config, dtype, attention implementation and the
        BOS policy. Reads every weight once.
        """
        weights = hashlib.sha256()
        for name, tensor in sorted(self.module.state_dict().items()):
            flat = tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8)
            weights.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            weights.update(flat.numpy())
        config = self.module.config.to_dict()
        # The place a model was loaded from and the version that saved it change nothing it computes.
        for key in ("_name_or_path", "transformers_version"):
            config.pop(key, None)
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        vocabulary = self.tokenizer.get_vocab()
        if backend is not None:
            # Whoever encoded last may have set truncation and padding.
            state = json.loads(backend.to_str())
            vocabulary = {key: part for key, part in state.items() if key not in ("truncation", "padding")}
        return fingerprint(
            {
                "weights": weights.hexdigest(),
                "processing": "none",
                "class": type(self.module).__name__,
                "config": _plain(config),
                "dtype": str(self.dtype),
                "attention": self.module.config._attn_implementation,
                "tokenizer": vocabulary,
                "chat_template": self.tokenizer.chat_template,
                "bos": self.bos,
            }
        )

    def bridge(self) -> Any:
        """A TransformerLens ``TransformerBridge`` of this model, on a copy of its own.

        The bridge rewrites the module it wraps, so it never gets ours. It forces eager
        attention and is slower than the module; use it for hooks that the site table lacks.
        """
        from transformer_lens.model_bridge import TransformerBridge

        # A copy keeps hooks and buffers apart, and needs no second download.
        return TransformerBridge.boot_transformers(
            str(self.module.config._name_or_path),
            hf_model=copy.deepcopy(self.module),
            tokenizer=copy.deepcopy(self.tokenizer),
            device=self.device,
            dtype=self.dtype,
        )

    @torch.no_grad()
    def logits(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_vocab"]:
        """Logits of a batch of equally long token rows (no padding)."""
        output: Tensor = self.module(tokens.to(self.device), use_cache=False).logits
        return output


def bundled_path() -> Path:
    """Directory of the bundled model inside the installed package."""
    return Path(str(resources.files("mechlab") / "models" / BUNDLED))


def load_model(
    name: str | Path = BUNDLED,
    *,
    dtype: str | torch.dtype | None = None,
    device: str = "auto",
    device_map: str | dict[str, Any] | None = None,
    revision: str | None = None,
    token: str | None = None,
    quantisation: str | None = None,
    trust_remote_code: bool = False,
) -> Subject:
    """Load a model to study.

    Args:
        name: "fable" (bundled), a directory in Hugging Face layout, or a hub name.
        dtype: weights' floating type; float32 on a CPU and the checkpoint's own type elsewhere by default.
        device: "auto", "cpu", "cuda" or "cuda:N"; ignored when ``device_map`` is given.
        device_map, revision, token, trust_remote_code: as in ``transformers``.
        quantisation: "8bit" or "4bit" through bitsandbytes (CUDA only).

    Raises MechlabError when the model is not found, has no tokenizer, is of an
    architecture without a site table, cannot be reached offline, or when the device is absent.
    """
    place = resolve_device(device)
    kind = _dtype(dtype, place)
    extra = _quantisation(quantisation)
    source = _source(str(name))
    local = Path(source).is_dir()
    options: dict[str, Any] = {"revision": revision, "token": token, "trust_remote_code": trust_remote_code}
    if not local and hub_is_offline():
        options["local_files_only"] = True
    with _loading_errors(str(name), local):
        from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

        config = AutoConfig.from_pretrained(source, **options)
        tokenizer = _load_tokenizer(AutoTokenizer, source, str(name), options)
        with _quiet():
            module, report = AutoModelForCausalLM.from_pretrained(
                source,
                config=config,
                dtype=kind,
                device_map=device_map,
                output_loading_info=True,
                **options,
                **extra,
            )
        absent = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
        if absent:  # transformers would fill them at random
            raise MechlabError(
                f"weights of {name} are missing or of another shape", absent[0], "check the checkpoint"
            )
    if device_map is None and quantisation is None:
        module = module.to(place)
    module = module.eval()
    module.requires_grad_(False)
    return Subject(str(name), module, tokenizer, site_table(module))


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


def _dtype(dtype: str | torch.dtype | None, place: torch.device) -> torch.dtype | str:
    if dtype is None:
        return torch.float32 if place.type == "cpu" else "auto"
    if isinstance(dtype, torch.dtype):
        return dtype
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype not in known:
        raise MechlabError("unknown dtype", dtype, near(dtype, known))
    return known[dtype]


def _source(name: str) -> str:
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
def _loading_errors(name: str, local: bool) -> Any:
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


def _load_tokenizer(auto: Any, source: str, name: str, options: dict[str, Any]) -> Any:
    names = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")
    if Path(source).is_dir() and not any((Path(source) / n).is_file() for n in names):
        raise MechlabError("model has no tokenizer", name, "save its tokenizer into the same directory")
    return auto.from_pretrained(source, **options)


def _quantisation(quantisation: str | None) -> dict[str, Any]:
    if quantisation is None:
        return {}
    if quantisation not in ("8bit", "4bit"):
        raise MechlabError("unknown quantisation", quantisation, "use 8bit or 4bit")
    if not torch.cuda.is_available():
        raise MechlabError("quantisation needs a CUDA device", quantisation, "leave it out")
    from transformers import BitsAndBytesConfig

    return {"quantization_config": BitsAndBytesConfig(**{f"load_in_{quantisation}": True})}


@contextlib.contextmanager
def _quiet() -> Any:
    """Keep transformers' own weight-loading bar off the terminal; the switch is put back."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
