"""``mechlab features note``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import tyro

from mechlab.cli.outcome import Outcome
from mechlab.cli.parse import parse
from mechlab.settings import Settings


class NoteConfig(Settings):
    """Write a note or a label on a feature, or read what was written.

    Notes add up; of labels the last one counts, and an empty one takes the label away.

    Example: mechlab features note runs/features 12 --label "days of the week" --text "not Sunday"
    """

    index: tyro.conf.Positional[Path] = Path("runs/features")
    """Directory of the feature index."""
    feature: tyro.conf.Positional[int | None] = None
    """The feature; with --list none means all."""
    text: str | None = None
    """A note."""
    label: str | None = None
    """A label."""
    author: str | None = None
    """Who says so; your name on this machine by default."""
    list: bool = False
    """Show what was written (also when nothing is written)."""


def note(words: list[str], program: str) -> Outcome:
    """Append to the notes, or show them."""
    config = parse(NoteConfig, words, program)

    from mechlab.errors import MechlabError
    from mechlab.features.notes import Note, add_note, read_notes

    writes = config.text is not None or config.label is not None
    added = None
    if writes:
        if config.feature is None:
            raise MechlabError("no feature was named", None, f"{program} {config.index} 12 --text …")
        added = add_note(
            config.index, config.feature, text=config.text, label=config.label, author=config.author
        )
    found = read_notes(config.index)
    if added is not None and not config.list:
        items: tuple[Note, ...] = (added,)
    else:
        items = found.items if config.feature is None else found.of(config.feature)
    labels = {f: label for f, label in found.labels.items() if config.feature in (None, f)}
    payload = {
        "index": str(config.index),
        "added": None if added is None else asdict(added),
        "labels": [[feature, label] for feature, label in labels.items()],
        "notes": [asdict(each) for each in items],
        "elsewhere": found.elsewhere,
    }
    lines = [f"{feature}  {label}" for feature, label in labels.items()]
    lines += [f"{each.feature}  {each.date}  {each.author}: {each.text}" for each in items if each.text]
    if found.elsewhere:
        lines.append(f"{found.elsewhere} notes were made on another index in this directory")
    return Outcome(payload, "\n".join(lines) if lines else "nothing was written")
