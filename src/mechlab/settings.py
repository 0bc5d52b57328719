"""Settings: one class gives a command's flags, its YAML keys and its Python arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from mechlab.errors import MechlabError, near


class Settings(BaseModel):
    """Base of every command's settings: fixed once made, and strict about names."""

    model_config = ConfigDict(frozen=True, extra="forbid")


Kind = TypeVar("Kind", bound=Settings)


def changed(base: Kind, values: Mapping[str, Any], where: str = "") -> Kind:
    """``base`` with some settings replaced.

    Args:
        values: setting → value.
        where: where they were read (" in run.yaml"), for the error.

    Raises MechlabError for an unknown name or a value of a wrong type.
    """
    known = type(base).model_fields
    unknown = [str(name) for name in values if name not in known]
    if unknown:
        raise MechlabError(f"unknown setting{where}", unknown[0], near(unknown[0], known))
    try:
        return type(base).model_validate({**base.model_dump(), **values})
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise MechlabError(f"setting {field}{where} is wrong", first["input"], first["msg"]) from None
