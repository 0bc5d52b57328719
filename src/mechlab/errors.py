"""The one error type of mechlab.

Every mistake a user can make ends here: the message names the field, shows the
value and says what to do. The command line prints it on one line and exits 2.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MechlabError(Exception):
    """Bad input or an impossible request, explained.

    Args:
        what: the field or thing that is wrong, in plain English ("site does not exist").
        value: the value that was given; shown as it is.
        remedy: what to do about it, as a sentence.
    """

    def __init__(self, what: str, value: object = None, remedy: str = "") -> None:
        self.what = what
        self.value = value
        self.remedy = remedy
        shown = "" if value is None else f": {value}"
        advice = f" ({remedy.rstrip('.')})" if remedy else ""
        super().__init__(" ".join(f"{what}{shown}{advice}".split()))


def near(name: str, known: Iterable[str], limit: int = 3) -> str:
    """A remedy that offers the known names nearest to ``name``.

    Returns "did you mean a, b?" when something is near, otherwise "known: a, b, …".
    """
    choices = list(known)
    close = difflib.get_close_matches(name, choices, n=limit, cutoff=0.5)
    if close:
        return f"did you mean {', '.join(close)}?"
    shown = ", ".join(choices[:12])
    return f"known: {shown}{', …' if len(choices) > 12 else ''}"
