"""delphi 0.1.3 on given codes: writing its cache of latents, and making every latent's examples from it.

Writing is ``LatentCache.save_splits``; reading is a pass over a ``LatentDataset``, which sorts each
file by latent, cuts the active windows out of the tokens and draws examples to explain and to test.
Both start from what its ``LatentCache.run`` holds when the model is done: all codes in memory. The
tokenizer's part, one string for every token of the examples drawn, is a look-up in a list here, which
is quicker than any tokenizer.

Requests beside those of every process (``serve.py``):

* ``{"init": {"codes": file, "width": int}}`` → ``{}``. The file holds ``locations [entry 3]`` int64 as
  (row, column, latent), ``activations [entry]`` float32 and ``tokens [row column]`` int64.
* ``{"save": {"folder": str, "splits": int}}`` → ``{"seconds", "bytes"}``.
* ``{"load": {"folder": str, "options": {…}, "limit": int}}`` → ``{"open", "sort", "latent", "latents",
  "examples"}``: seconds to make the dataset, to read and sort its files (one of them is timed), and for
  a latent beyond that; how many latents came out, the pass stopping at ``limit``, and how many active
  windows they had. ``options`` are of its ``ConstructorConfig``.
* ``{"read": {"folder": str, "out": file}}`` → ``{"latents"}``: ``locations``, ``activations`` and
  ``tokens`` as its ``TensorBuffer`` reads them from a folder that anybody wrote.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import torch
from delphi.config import (  # type: ignore[import-not-found]
    CacheConfig,
    ConstructorConfig,
    SamplerConfig,
)
from delphi.latents import LatentCache, LatentDataset  # type: ignore[import-not-found]
from safetensors.torch import load_file, save_file

PACKAGE = "eai-delphi"
_HOOK = "hook"


class _Strings:
    """What delphi asks of a tokenizer."""

    def batch_decode(self, tokens: torch.Tensor) -> list[str]:
        return [f" {token}" for token in tokens.tolist()]


class Session:
    """Codes in memory, and what delphi makes of them."""

    device = torch.device("cpu")

    def init(self, value: dict[str, Any]) -> dict[str, Any]:
        # Warnings about latents with few examples would be written for each.
        logging.disable(logging.WARNING)
        codes = load_file(value["codes"])
        self.cache = LatentCache(None, {}, batch_size=32)
        self.cache.width = value["width"]
        self.cache.cache.latent_locations[_HOOK] = codes["locations"]
        self.cache.cache.latent_activations[_HOOK] = codes["activations"]
        self.cache.cache.tokens[_HOOK] = codes["tokens"]
        self.columns = codes["tokens"].shape[1]
        return {}

    def save(self, value: dict[str, Any]) -> dict[str, Any]:
        folder = Path(value["folder"])
        started = time.perf_counter()
        self.cache.save_splits(value["splits"], folder)
        config = CacheConfig(cache_ctx_len=self.columns, n_splits=value["splits"])
        self.cache.save_config(folder, config, "none")
        seconds = time.perf_counter() - started
        return {"seconds": seconds, "bytes": sum(each.stat().st_size for each in folder.rglob("*.*"))}

    def load(self, value: dict[str, Any]) -> dict[str, Any]:
        started = time.perf_counter()
        dataset = LatentDataset(
            value["folder"], SamplerConfig(), ConstructorConfig(**value["options"]), tokenizer=_Strings()
        )
        opened = time.perf_counter()
        dataset.buffers[0].load_data_per_latent()
        sort = time.perf_counter() - opened
        latents = examples = 0
        begun = time.perf_counter()
        for record in dataset:
            latents += 1
            examples += len(record.examples)
            if latents == value["limit"]:
                break
        seconds = time.perf_counter() - begun
        # Files that the pass has come to; it stops within one where there is a limit.
        files, reached = len(dataset.buffers), 1 if latents == value["limit"] else len(dataset.buffers)
        return {
            "open": opened - started,
            "sort": sort * files,
            "latent": max(seconds - sort * reached, 0.0) / max(latents, 1),
            "latents": latents,
            "examples": examples,
        }

    def read(self, value: dict[str, Any]) -> dict[str, Any]:
        dataset = LatentDataset(value["folder"], SamplerConfig(), ConstructorConfig(), tokenizer=_Strings())
        loaded = [buffer.load() for buffer in dataset.buffers]
        found = {
            "locations": torch.cat([each for each, _, _ in loaded]),
            "activations": torch.cat([each for _, each, _ in loaded]).float(),
            "tokens": dataset.tokens,
        }
        save_file(found, value["out"])
        return {"latents": len(found["locations"][:, 2].unique())}
