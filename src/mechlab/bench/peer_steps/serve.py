"""A peer's process: ``serve.py MODULE``; a JSON request a line on stdin, a JSON reply a line on stdout.

MODULE makes the steps: its ``PACKAGE`` names the tool's distribution, its ``Trainer`` is called with
``weights`` (name → tensor), ``rows`` per batch, ``k``, ``lr``, ``dead`` (``[latent]`` bool) and the
options of ``init``. The process says what it is, then answers until stdin closes; between requests it
waits without computing, so that several tools can take turns on one machine. Requests, each an object
with one key:

* ``{"init": {"weights": file, "batches": file, "k": int, "lr": float, "dead_share": float,
  "options": {…}}}`` → ``{}``. ``weights`` holds ``encoder [latent d]``, ``decoder [latent d]``,
  ``b_enc [latent]`` and ``b_dec [d]``, so that all tools start equal; ``batches`` holds
  ``batches [batch row d]``. Both are safetensors files.
* ``{"step": i}`` → ``{"seconds", "mse", "fve"}`` of a training step on batch i (modulo their number).
* ``{"peak": "start"}`` → ``{}``; ``{"peak": "read"}`` → ``{"bytes"}``, most resident memory since
  the start beyond what was held then; null where the system cannot tell.
* ``{"eval": file}`` → ``{"fve"}`` of the present weights on ``x [row d]`` of a safetensors file.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import sys
import time
from pathlib import Path
from typing import Any, Protocol, TextIO

import torch
from safetensors.torch import load_file
from torch import Tensor

# Last, so that no module beside measure.py can stand in for one of the peer's.
sys.path.append(str(Path(__file__).resolve().parent.parent))
from measure import read_peak, start_peak  # type: ignore[import-not-found]

_EVAL_ROWS = 4096
_CPU = torch.device("cpu")


class Trainer(Protocol):
    """A tool's trainer.

    ``prepare`` runs before each step and is not timed (it marks latents as dead); ``step`` trains
    on a batch and returns the tool's reconstruction of it; ``reconstruct`` only reconstructs.
    """

    def prepare(self) -> None: ...
    def step(self, x: Tensor) -> Tensor: ...
    def reconstruct(self, x: Tensor) -> Tensor: ...


def serve(tool: Any, replies: TextIO) -> None:
    """Answer requests until stdin closes."""
    versions = {name: importlib.metadata.version(name) for name in (tool.PACKAGE, "torch")}
    held = start_peak(_CPU)
    trainer: Trainer | Any = None
    batches: Tensor
    reply: dict[str, Any] = {"versions": versions, "threads": torch.get_num_threads()}
    while True:
        print(json.dumps(reply), file=replies, flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        [(word, value)] = json.loads(line).items()
        reply = {}
        if word == "init":
            trainer = None  # an earlier one would be held beside it
            weights = load_file(value["weights"])
            batches = load_file(value["batches"])["batches"]
            # The first latents are the dead ones; which they are makes no difference to the cost.
            dead = torch.arange(len(weights["b_enc"])) < round(value["dead_share"] * len(weights["b_enc"]))
            trainer = tool.Trainer(
                weights=weights, rows=batches.shape[1], k=value["k"], lr=value["lr"], dead=dead,
                **value["options"],
            )  # fmt: skip
            del weights
        elif word == "step":
            x = batches[value % len(batches)]
            trainer.prepare()
            started = time.perf_counter()
            x_hat = trainer.step(x)
            reply["seconds"] = time.perf_counter() - started
            errors, variance = _squares(x, x_hat)
            reply.update(mse=errors / len(x), fve=1 - errors / variance)
            del x_hat
        elif word == "peak" and value == "start":
            held = start_peak(_CPU)
        elif word == "peak":
            peak = read_peak(_CPU)
            reply["bytes"] = None if held is None or peak is None else max(0, peak - held)
        elif word == "eval":
            x = load_file(value)["x"]
            with torch.no_grad():
                x_hat = torch.cat([trainer.reconstruct(rows) for rows in x.split(_EVAL_ROWS)])
            errors, variance = _squares(x, x_hat)
            reply["fve"] = 1 - errors / variance
        else:
            raise ValueError(f"unknown request: {line.strip()}")


def _squares(x: Tensor, x_hat: Tensor) -> tuple[float, float]:
    """Squared error and squared distance to the mean row, each summed over everything."""
    with torch.no_grad():
        errors = (x - x_hat.detach().float()).square().sum()
        return errors.item(), (x - x.mean(0)).square().sum().item()


if __name__ == "__main__":
    # Tools print to stdout, some while they are imported; only replies may go there.
    kept = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    serve(importlib.import_module(sys.argv[1]), kept)
