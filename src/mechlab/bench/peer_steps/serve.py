"""A peer's process: ``serve.py MODULE``; a JSON request a line on stdin, a JSON reply a line on stdout.

MODULE does the work: its ``PACKAGE`` names the tool's distribution. The process says what it is, then
answers until stdin closes; between requests it waits without computing, so that several tools can take
turns on one machine. Requests are objects with one key. All tools know:

* ``{"peak": "start"}`` → ``{}``; ``{"peak": "read"}`` → ``{"bytes"}``, most memory since the start
  beyond what was held then, resident or on the card that ``init`` named; null where unknown.

Other keys are methods of MODULE's ``Session``, called with the value; the reply is what they return.
A MODULE without one trains dictionaries: its ``Trainer`` is called with ``weights`` (name → tensor),
``rows`` per batch, ``k``, ``lr``, ``dead`` (``[latent]`` bool) and the options of ``init``, and the
requests are:

* ``{"init": {"weights": file, "batches": file, "k": int, "lr": float, "dead_share": float,
  "options": {…}}}`` → ``{}``. ``weights`` holds ``encoder [latent d]``, ``decoder [latent d]``,
  ``b_enc [latent]`` and ``b_dec [d]``, so that all tools start equal; ``batches`` holds
  ``batches [batch row d]``. Both are safetensors files.
* ``{"step": i}`` → ``{"seconds", "mse", "fve"}`` of a training step on batch i (modulo their number).
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


class Trainer(Protocol):
    """A tool's trainer.

    ``prepare`` runs before each step and is not timed (it marks latents as dead); ``step`` trains
    on a batch and returns the tool's reconstruction of it; ``reconstruct`` only reconstructs.
    """

    def prepare(self) -> None: ...
    def step(self, x: Tensor) -> Tensor: ...
    def reconstruct(self, x: Tensor) -> Tensor: ...


class Training:
    """The requests of a tool that trains dictionaries."""

    device = torch.device("cpu")

    def __init__(self, tool: Any) -> None:
        self.tool = tool

    def init(self, value: dict[str, Any]) -> dict[str, Any]:
        self.trainer: Trainer | Any = None  # an earlier one would be held beside it
        weights = load_file(value["weights"])
        self.batches = load_file(value["batches"])["batches"]
        # The first latents are the dead ones; which they are makes no difference to the cost.
        dead = torch.arange(len(weights["b_enc"])) < round(value["dead_share"] * len(weights["b_enc"]))
        self.trainer = self.tool.Trainer(
            weights=weights, rows=self.batches.shape[1], k=value["k"], lr=value["lr"], dead=dead,
            **value["options"],
        )  # fmt: skip
        return {}

    def step(self, number: int) -> dict[str, Any]:
        x = self.batches[number % len(self.batches)]
        self.trainer.prepare()
        started = time.perf_counter()
        x_hat = self.trainer.step(x)
        seconds = time.perf_counter() - started
        errors, variance = _squares(x, x_hat)
        return {"seconds": seconds, "mse": errors / len(x), "fve": 1 - errors / variance}

    def eval(self, file: str) -> dict[str, Any]:
        x = load_file(file)["x"]
        with torch.no_grad():
            x_hat = torch.cat([self.trainer.reconstruct(rows) for rows in x.split(_EVAL_ROWS)])
        errors, variance = _squares(x, x_hat)
        return {"fve": 1 - errors / variance}


def serve(tool: Any, replies: TextIO) -> None:
    """Answer requests until stdin closes."""
    versions = {name: importlib.metadata.version(name) for name in (tool.PACKAGE, "torch")}
    session = tool.Session() if hasattr(tool, "Session") else Training(tool)
    held = start_peak(session.device)
    reply: dict[str, Any] = {"versions": versions, "threads": torch.get_num_threads()}
    while True:
        print(json.dumps(reply), file=replies, flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        [(word, value)] = json.loads(line).items()
        if word == "peak" and value == "start":
            held = start_peak(session.device)
            reply = {}
        elif word == "peak":
            peak = read_peak(session.device)
            reply = {"bytes": None if held is None or peak is None else max(0, peak - held)}
        else:
            reply = getattr(session, word)(value)


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
