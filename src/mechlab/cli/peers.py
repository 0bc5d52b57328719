"""``mechlab bench setup-peers``."""

from __future__ import annotations

from pathlib import Path

from mechlab.cli.outcome import Outcome
from mechlab.cli.parse import parse
from mechlab.cli.progress import Reporter
from mechlab.settings import Settings


class SetupConfig(Settings):
    """Build the environments of the tools that benchmarks compare with, from pinned requirements.

    What is already built stays. Takes about five minutes and 8 GB on disk.

    Example: mechlab bench setup-peers --names sparsify
    """

    names: tuple[str, ...] = ()
    """Peers: sae-lens (lives in our environment), dictionary-learning, sparsify, auto-circuit, delphi,
    saedashboard; all by default."""
    folder: Path = Path(".peers")
    """Where the environments go."""


def setup(words: list[str], program: str) -> Outcome:
    """Build them."""
    config = parse(SetupConfig, words, program)
    from mechlab.bench.peers import setup_peers

    with Reporter() as progress:
        found = setup_peers(config.names, config.folder, progress)
    lines = [", ".join(f"{name} {version}" for name, version in each.items()) for each in found.values()]
    return Outcome({"folder": str(config.folder), "peers": found}, "\n".join(lines))
