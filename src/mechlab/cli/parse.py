"""From words on the command line to a config object, with mistakes explained on one line."""

from __future__ import annotations

import contextlib
import inspect
import io
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro
import yaml

from mechlab.errors import MechlabError, near
from mechlab.settings import Settings, changed

Config = TypeVar("Config", bound=Settings)
_COMMON = (
    "Also: --config FILE (YAML with the same fields; flags win over it), "
    "--json (one JSON object on the last line of stdout)."
)


def parse(kind: type[Config], words: Sequence[str], program: str, apart: Sequence[str] = ()) -> Config:
    """Parse the flags of ``kind``; ``--config FILE`` (YAML, same fields) sets their defaults.

    ``apart`` names keys of the file that the command reads itself.

    Raises MechlabError for unknown flags or keys, for values of the wrong type and for
    seeds out of range.
    """
    words = [
        part for word in words for part in (word.split("=", 1) if word.startswith("--config=") else [word])
    ]
    defaults = kind()
    if "--config" in words:
        at = words.index("--config")
        if at + 1 == len(words):
            raise MechlabError("--config needs a file", None, "name a YAML file")
        defaults = read_config(kind, Path(words[at + 1]), apart)
        del words[at : at + 2]
    said = io.StringIO()
    # tyro draws its messages in a box as wide as the terminal; a wide one keeps sentences whole.
    columns = os.environ.get("COLUMNS")
    if not {"-h", "--help"} & set(words):
        os.environ["COLUMNS"] = "1000"
    try:
        with contextlib.redirect_stderr(said):
            config = tyro.cli(
                kind,
                args=words,
                prog=program,
                description=f"{inspect.getdoc(kind)}\n\n{_COMMON}",
                default=defaults,
                config=(tyro.conf.FlagCreatePairsOff,),
            )
        seed = getattr(config, "seed", 0)
        if seed is not None and not 0 <= seed < 2**32:
            raise MechlabError("seed is out of range", seed, "between 0 and 4294967295")
        return config
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise _explain(said.getvalue(), kind, program) from None
    finally:
        if columns is None:
            os.environ.pop("COLUMNS", None)
        else:
            os.environ["COLUMNS"] = columns


def read_config(kind: type[Config], path: Path, apart: Sequence[str] = ()) -> Config:
    """Read a YAML file with the fields of ``kind``; MechlabError names what is wrong in it."""
    content = {key: value for key, value in read_yaml(path).items() if key not in apart}
    return changed(kind(), content, where=f" in {path}")


def read_yaml(path: Path) -> dict[str, Any]:
    """Keys and values of a YAML file; MechlabError when it cannot be read or holds something else."""
    try:
        content: Any = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except OSError:
        raise MechlabError("config file cannot be read", path, "check --config") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise MechlabError("config file is not YAML", path, str(error).splitlines()[0]) from None
    if not isinstance(content, dict):
        raise MechlabError("config file must hold keys and values", path, "one 'key: value' a line")
    return content


def _explain(message: str, kind: type[Settings], program: str) -> MechlabError:
    # tyro draws a box with the title in its border, or, where it cannot, a title above a rule.
    inner = [line.strip(" │|") for line in message.splitlines() if not line.startswith(("╭", "╰"))]
    lines = [line for line in inner if line]
    if "╭" not in message:
        lines = lines[2:]
    text = "\n".join(lines)
    unknown = re.search(r"Unrecognized options?: *([^\n]*)", text)
    help_line = f"see {program} --help"
    if unknown:
        given = unknown.group(1).split(",")[0].strip()
        flags = [f"--{name.replace('_', '-')}" for name in kind.model_fields]
        return MechlabError("unknown option", given, f"{near(given.split('=')[0], flags)}; {help_line}")
    wrong = re.search(r"Error parsing (--[\w-]+): *([^\n]*)", text)
    if wrong:
        return MechlabError(f"option {wrong.group(1)} is wrong", wrong.group(2), help_line)
    return MechlabError(lines[0] if lines else "command line cannot be read", None, help_line)
