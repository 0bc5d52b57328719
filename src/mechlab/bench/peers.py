"""Other tools at work, each in a process of its own environment.

Their requirements clash with ours, so each lives in a virtual environment under ``.peers/``, built
from a pinned list. A peer's process waits without computing until it is asked for a step; its steps
can so be interleaved with ours while only one process computes. ``Peer`` trains a dictionary;
``mechlab.bench.autocircuit`` asks about circuits, ``mechlab.bench.feature_peers`` about features.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from mechlab.errors import MechlabError, near
from mechlab.files import write_atomic

Progress = Callable[[str, int, int, dict[str, float]], None]
FOLDER = Path(".peers")
_STEPS = Path(__file__).parent / "peer_steps"
_STAMP = "built"


@dataclass(frozen=True)
class _Kind:
    """Attributes: module: does the work; pins: requirements, None where our environment serves."""

    module: str
    pins: str | None


PEERS = {
    "sae-lens": _Kind("step_saelens", None),
    "dictionary-learning": _Kind("step_dictionary", "requirements-dictionary-learning.txt"),
    "sparsify": _Kind("step_sparsify", "requirements-sparsify.txt"),
    "auto-circuit": _Kind("step_autocircuit", "requirements-auto-circuit.txt"),
    "delphi": _Kind("step_delphi", "requirements-delphi.txt"),
    "saedashboard": _Kind("step_saedashboard", "requirements-saedashboard.txt"),
}
# Those that train dictionaries.
TRAINERS = ("sae-lens", "dictionary-learning", "sparsify")


@dataclass(frozen=True)
class Step:
    """A training step.

    Attributes:
        seconds: what it took inside the peer's process.
        mse: squared error of the reconstruction before the update: summed over a row, mean over rows.
        fve: fraction of the batch's variance that the reconstruction explains.
    """

    seconds: float
    mse: float
    fve: float


def interpreter(name: str, folder: Path = FOLDER) -> Path | None:
    """Python of a peer's environment; None where that is missing, unfinished or of older pins.

    Raises MechlabError for an unknown name.
    """
    kind = _kind(name)
    if kind.pins is None:
        return Path(sys.executable)
    python, stamp = folder / name / "bin" / "python", folder / name / _STAMP
    try:
        whole = stamp.read_text() == _pins_digest(kind.pins)
    except OSError:
        return None
    # Not resolved: the link's place is what makes it this environment's Python.
    return python.absolute() if whole and python.exists() else None


def setup_peers(
    names: Sequence[str] = (), folder: Path = FOLDER, progress: Progress | None = None
) -> dict[str, dict[str, str]]:
    """Build the environments that are not there yet.

    An environment counts as built when its stamp is there, which is written last, after the peer's
    process has started once; what a stopped build left is built anew.

    Args:
        names: peers; all by default.
        folder: where environments live.
        progress: told ``(stage, done, total, figures)``.

    Returns:
        peer → versions of it and of its torch.

    Raises MechlabError for an unknown peer, and where one cannot be built or does not start.
    """
    names = list(names) or list(PEERS)
    for name in names:
        _kind(name)
    found = {}
    for done, name in enumerate(names):
        if progress:
            progress("peers", done, len(names), {})
        python = interpreter(name, folder) or _build(name, folder)
        with Peer(name, folder, python=python) as peer:
            found[name] = peer.versions
        pins = PEERS[name].pins
        if pins is not None:
            write_atomic(folder / name / _STAMP, _pins_digest(pins))
    if progress:
        progress("peers", len(names), len(names), {})
    return found


class Peer:
    """A peer's process; a context manager that ends it.

    ``init`` comes first. Every method raises MechlabError with the process's last line of stderr
    when it dies.

    Attributes:
        versions: of the peer and of its torch.
        threads: that its torch computes with; as many as ours.
    """

    def __init__(self, name: str, folder: Path = FOLDER, *, python: Path | None = None) -> None:
        """Start the process.

        Args:
            python: instead of the environment's.

        Raises MechlabError where the peer is missing; ``interpreter`` tells beforehand.
        """
        self.name = name
        kind = _kind(name)
        python = python or interpreter(name, folder)
        if python is None:
            raise MechlabError("peer is missing", name, "run: mechlab bench setup-peers")
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 (until the process ends)
        threads = str(torch.get_num_threads())
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        for foreign in ("PYTHONPATH", "PYTHONHOME"):
            environment.pop(foreign, None)
        # A file for stderr, not a pipe: nobody would empty that while a step runs.
        self._process = subprocess.Popen(
            [python, _STEPS / "serve.py", kind.module],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said, text=True, env=environment,
        )  # fmt: skip
        hello = self._answer()
        self.versions: dict[str, str] = hello["versions"]
        self.threads: int = hello["threads"]

    def __enter__(self) -> Peer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._said):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()

    def init(
        self, weights: Path, batches: Path, *, k: int, lr: float, dead_share: float = 0.0, **options: Any
    ) -> None:
        """Make the peer's dictionary and its trainer.

        No step draws random numbers: what is trained follows from the two files.

        Args:
            weights: safetensors file of float32 ``encoder [latent d]``, ``decoder [latent d]``,
                ``b_enc [latent]``, ``b_dec [d]``; decoder rows of norm 1, which two peers insist on.
            batches: safetensors file of float32 ``batches [batch row d]``.
            k: latents that are active in a row.
            lr: learning rate of Adam, without warm-up or decay.
            dead_share: share of latents, the first ones, that count as dead at every step, so that
                each pays for its auxiliary loss.
            options: the peer's own settings, named in its file under ``peer_steps``; by default those
                that were fastest in float32 on a CPU.
        """
        settings = {"k": k, "lr": lr, "dead_share": dead_share, "options": options}
        self.ask("init", {"weights": str(weights), "batches": str(batches), **settings})

    def step(self, number: int) -> Step:
        """Train on batch ``number``, modulo how many there are."""
        return Step(**self.ask("step", number))

    def start_peak(self) -> None:
        """Forget the memory peak so far; without this it counts from before ``init``."""
        self.ask("peak", "start")

    def peak(self) -> int | None:
        """Most resident bytes since ``start_peak`` beyond what was held then; None where unknown."""
        found: int | None = self.ask("peak", "read")["bytes"]
        return found

    def fve(self, rows: Path) -> float:
        """Fraction of variance that the present weights explain.

        Args:
            rows: safetensors file of float32 ``x [row d]``.
        """
        found: float = self.ask("eval", str(rows))["fve"]
        return found

    def ask(self, word: str, value: object) -> dict[str, Any]:
        """One request and its answer; see ``peer_steps/serve.py``."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died; the missing answer tells
            self._process.stdin.write(json.dumps({word: value}) + "\n")
            self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._said.seek(0)
            said = self._said.read().decode(errors="replace")
            code = self._process.returncode
            self.close()
            raise MechlabError(f"peer {self.name} stopped", _last_line(said) or f"exit {code}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def _kind(name: str) -> _Kind:
    if name not in PEERS:
        raise MechlabError("unknown peer", name, near(name, PEERS))
    return PEERS[name]


def _build(name: str, folder: Path) -> Path:
    """Install the pins into a new environment."""
    place, pins = folder / name, _STEPS / str(PEERS[name].pins)
    shutil.rmtree(place, ignore_errors=True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MechlabError("folder of peers cannot be made", folder, str(error.strerror)) from None
    _run(name, [sys.executable, "-m", "venv", str(place)])
    python = (place / "bin" / "python").absolute()
    install = [str(python), "-m", "pip", "install", "--no-input", "--disable-pip-version-check"]
    # torch with what it needs on this system, which differs; then exactly the list.
    [torch_pin] = [line for line in pins.read_text().splitlines() if line.startswith("torch==")]
    _run(name, [*install, "--constraint", str(pins), torch_pin])
    _run(name, [*install, "--no-deps", "--requirement", str(pins)])
    return python


def _run(name: str, words: list[str]) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        # pip's first error names the package; later ones only point to its documentation.
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")]
        said = [*errors, _last_line(done.stderr) or _last_line(done.stdout) or f"exit {done.returncode}"][0]
        raise MechlabError(f"peer {name} cannot be built", said, "is a package index reachable?")


def _pins_digest(pins: str) -> str:
    """What a stamp holds: changes with the list and with our Python."""
    content = (_STEPS / pins).read_bytes() + sys.version.encode()
    return hashlib.sha256(content).hexdigest()


def _last_line(text: str) -> str:
    """The last error's own line, since some messages go on for pages, or else the last line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
    return errors[-1] if errors else lines[-1] if lines else ""
