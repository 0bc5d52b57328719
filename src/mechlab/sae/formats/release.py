"""Releases on the hub that sae-lens knows, through its own loader."""

from __future__ import annotations

import os
import warnings
from typing import Any

from mechlab.data.corpus import hub_is_offline
from mechlab.errors import MechlabError, near
from mechlab.sae.formats import saelens_folder
from mechlab.sae.formats.found import Found, Named

PREFIX = "sae_lens:"


def read(source: str, named: Named) -> Found:
    """``RELEASE/ID`` of sae-lens' list, or ``USER/REPOSITORY/FOLDER`` on the hub.

    Raises MechlabError for a name that is not there, and when the hub cannot be reached.
    """
    if hub_is_offline() and not os.environ.get("HF_HUB_OFFLINE"):
        raise MechlabError(
            "hub cannot be reached", source, "go online, or set HF_HUB_OFFLINE=1 to use what is in its cache"
        )
    from sae_lens import SAE
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    known = get_pretrained_saes_directory()
    release, _, name = source.removeprefix(PREFIX).partition("/")
    if release not in known:
        repository, _, name = name.partition("/")
        release = f"{release}/{repository}"
        if not name:
            raise MechlabError("sae-lens has no release", source, near(source.partition("/")[0], known))
    elif name not in known[release].saes_map:
        raise MechlabError(f"release {release} has no dictionary", name, near(name, known[release].saes_map))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            sae: Any = SAE.from_pretrained(release, name)
    except Exception as error:  # the hub, the network, the loaders: errors of many kinds
        raise MechlabError(
            f"sae-lens cannot load {release}/{name}",
            f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            "is the hub within reach?",
        ) from error
    tensors = {key: value.detach() for key, value in sae.state_dict().items()}
    return saelens_folder.found(sae.cfg.to_dict(), tensors, source, named)
