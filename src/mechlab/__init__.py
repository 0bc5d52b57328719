"""mechlab: a mechanistic-interpretability workbench.

``import mechlab as ml`` costs next to nothing: a name is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mechlab.activations.batches import shuffled as shuffled
    from mechlab.activations.capture import activations as activations
    from mechlab.activations.harvest import harvest as harvest
    from mechlab.activations.selection import Selection as Selection
    from mechlab.activations.sources import live as live
    from mechlab.activations.store import open_store as open_store
    from mechlab.circuits.find import find_circuit as find_circuit
    from mechlab.circuits.patching import head_patching as head_patching
    from mechlab.data.corpus import open_corpus as open_corpus
    from mechlab.data.tasks import make_task as make_task
    from mechlab.errors import MechlabError as MechlabError
    from mechlab.features.detection import score_explanations as score_explanations
    from mechlab.features.explain import explain_features as explain_features
    from mechlab.interventions.edit import editing as editing
    from mechlab.models.subject import Subject as Subject
    from mechlab.models.subject import load_model as load_model
    from mechlab.pipeline.config import RunConfig as RunConfig
    from mechlab.pipeline.job import run as run
    from mechlab.sae.dictionary import load_sae as load_sae
    from mechlab.sae.dictionary import train_sae as train_sae
    from mechlab.sae.evaluate import evaluate as evaluate
    from mechlab.scores import Score as Score

_HOMES = {
    "MechlabError": "errors",
    "RunConfig": "pipeline.config",
    "Score": "scores",
    "Selection": "activations.selection",
    "Subject": "models.subject",
    "editing": "interventions.edit",
    "evaluate": "sae.evaluate",
    "explain_features": "features.explain",
    "find_circuit": "circuits.find",
    "harvest": "activations.harvest",
    "head_patching": "circuits.patching",
    "live": "activations.sources",
    "load_model": "models.subject",
    "load_sae": "sae.dictionary",
    "make_task": "data.tasks",
    "open_corpus": "data.corpus",
    "open_store": "activations.store",
    "run": "pipeline.job",
    "score_explanations": "features.detection",
    "shuffled": "activations.batches",
    "train_sae": "sae.dictionary",
}
__all__ = sorted([*_HOMES, "activations"])


def __getattr__(name: str) -> Any:
    if name == "activations":  # a room that can be called
        return importlib.import_module("mechlab.activations")
    if name not in _HOMES:
        raise AttributeError(f"module 'mechlab' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"mechlab.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
