"""A harvest to be killed, started by a fork server that has the imports behind it."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

from mechlab.activations import harvest as module
from mechlab.cli.main import main

SHARD_ROWS = 128


def harvest(arguments: list[str], log: Path) -> None:
    """The command with small shards, as a process would run it."""
    module._SHARD_ROWS = SHARD_ROWS
    warnings.simplefilter("ignore")
    sys.stdout = sys.stderr = log.open("a")
    main(arguments)
