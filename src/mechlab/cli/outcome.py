"""What a command hands back to be printed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """A command's result.

    Attributes:
        payload: the JSON object that ``--json`` prints.
        text: what is printed for people.
        exit: exit status; 1 when a check that the command makes has failed.
    """

    payload: dict[str, Any]
    text: str
    exit: int = 0
