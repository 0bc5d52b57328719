"""mechlab: a mechanistic-interpretability workbench.

``import mechlab as ml`` costs next to nothing: a name is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mechlab.activations.batch import mixing as mixing
    from mechlab.activations.batches import shuffled as shuffled
    from mechlab.activations.capture import activations as activations
    from mechlab.activations.generate import generation as generation
    from mechlab.activations.harvest import harvest as harvest
    from mechlab.activations.live import live as live
    from mechlab.activations.selection import Selection as Selection
    from mechlab.activations.store import open_store as open_store
    from mechlab.circuits.attribution import edge_scores as edge_scores
    from mechlab.circuits.circuit import Circuit as Circuit
    from mechlab.circuits.evaluation.judge import evaluate_circuit as evaluate_circuit
    from mechlab.circuits.find import find_circuit as find_circuit
    from mechlab.circuits.patching import head_patching as head_patching
    from mechlab.circuits.sweeps import patch as patch
    from mechlab.dashboards.build import dashboard as dashboard
    from mechlab.dashboards.figures import save_figure as save_figure
    from mechlab.dashboards.inline import show as show
    from mechlab.dashboards.inline import show_contexts as show_contexts
    from mechlab.dashboards.inline import show_feature as show_feature
    from mechlab.data.corpus import open_corpus as open_corpus
    from mechlab.data.tasks import make_task as make_task
    from mechlab.errors import MechlabError as MechlabError
    from mechlab.features.building import load_index as load_index
    from mechlab.features.explanations import explain_features as explain_features
    from mechlab.features.explanations import load_explanations as load_explanations
    from mechlab.features.llm.explainer import explain_llm as explain_llm
    from mechlab.features.llm.job import LlmJob as LlmJob
    from mechlab.features.rewrite import rewrite as rewrite
    from mechlab.features.rules import parse_rule as parse_rule
    from mechlab.features.scoring.score import score_features as score_features
    from mechlab.features.scoring.scorecard import load_scores as load_scores
    from mechlab.features.sources import index_dictionary as index_dictionary
    from mechlab.features.sources import index_function as index_function
    from mechlab.features.sources import index_heads as index_heads
    from mechlab.features.sources import index_site as index_site
    from mechlab.features.sources import index_vectors as index_vectors
    from mechlab.features.sources import model_rows as model_rows
    from mechlab.features.sources import store_rows as store_rows
    from mechlab.interventions.edit import editing as editing
    from mechlab.interventions.edits import add as add
    from mechlab.interventions.edits import clamp as clamp
    from mechlab.interventions.edits import project_out as project_out
    from mechlab.interventions.edits import scale as scale
    from mechlab.interventions.edits import splice as splice
    from mechlab.interventions.edits import swap as swap
    from mechlab.interventions.strength import strength_for_kl as strength_for_kl
    from mechlab.models.subject import Subject as Subject
    from mechlab.models.subject import load_model as load_model
    from mechlab.pipeline.config import RunConfig as RunConfig
    from mechlab.pipeline.job import run as run
    from mechlab.sae.assess import assess as assess
    from mechlab.sae.convert import convert as convert
    from mechlab.sae.dictionary import load_sae as load_sae
    from mechlab.sae.dictionary import train_sae as train_sae
    from mechlab.sae.dictionary import train_saes as train_saes
    from mechlab.sae.e2e import finetune as finetune
    from mechlab.sae.evaluate import evaluate as evaluate
    from mechlab.sae.splice import splicing as splicing
    from mechlab.scores import Score as Score

_HOMES = {
    "Circuit": "circuits.circuit",
    "MechlabError": "errors",
    "RunConfig": "pipeline.config",
    "Score": "scores",
    "Selection": "activations.selection",
    "Subject": "models.subject",
    "add": "interventions.edits",
    "assess": "sae.assess",
    "clamp": "interventions.edits",
    "convert": "sae.convert",
    "dashboard": "dashboards.build",
    "edge_scores": "circuits.attribution",
    "editing": "interventions.edit",
    "evaluate": "sae.evaluate",
    "evaluate_circuit": "circuits.evaluation.judge",
    "explain_features": "features.explanations",
    "explain_llm": "features.llm.explainer",
    "find_circuit": "circuits.find",
    "finetune": "sae.e2e",
    "generation": "activations.generate",
    "harvest": "activations.harvest",
    "head_patching": "circuits.patching",
    "index_dictionary": "features.sources",
    "index_function": "features.sources",
    "index_heads": "features.sources",
    "index_site": "features.sources",
    "index_vectors": "features.sources",
    "LlmJob": "features.llm.job",
    "live": "activations.live",
    "load_explanations": "features.explanations",
    "load_index": "features.building",
    "load_model": "models.subject",
    "load_sae": "sae.dictionary",
    "load_scores": "features.scoring.scorecard",
    "make_task": "data.tasks",
    "mixing": "activations.batch",
    "model_rows": "features.sources",
    "open_corpus": "data.corpus",
    "open_store": "activations.store",
    "parse_rule": "features.rules",
    "patch": "circuits.sweeps",
    "project_out": "interventions.edits",
    "rewrite": "features.rewrite",
    "run": "pipeline.job",
    "save_figure": "dashboards.figures",
    "scale": "interventions.edits",
    "score_features": "features.scoring.score",
    "show": "dashboards.inline",
    "show_contexts": "dashboards.inline",
    "show_feature": "dashboards.inline",
    "shuffled": "activations.batches",
    "splice": "interventions.edits",
    "splicing": "sae.splice",
    "store_rows": "features.sources",
    "strength_for_kl": "interventions.strength",
    "swap": "interventions.edits",
    "train_sae": "sae.dictionary",
    "train_saes": "sae.dictionary",
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
