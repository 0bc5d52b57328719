"""All that a page can know of the features of an index, gathered before its blocks are written."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from mechlab.dashboards.concepts import ConceptMatch, concept_matches, fable_labels
from mechlab.dashboards.feature_heads import Heads, head_contributions
from mechlab.dashboards.feature_judged import DrillDown
from mechlab.dashboards.steering import Steering, opening_prompts, steering_samples
from mechlab.errors import MechlabError
from mechlab.features.explanations import Explanations
from mechlab.features.index import FeatureIndex
from mechlab.features.logits import LogitEffects, dictionary_directions, logit_effects
from mechlab.features.neighbours import Alike, CoOccurring, alike, co_occurring
from mechlab.features.notes import Notes
from mechlab.features.scoring.scorecard import Scorecard
from mechlab.features.statistics import Statistics, statistics_of
from mechlab.models.subject import Subject
from mechlab.sae.dictionary import Dictionary
from mechlab.sae.metrics.geometry import DENSE

NEIGHBOURS, LOGITS = 8, 10
NO_EXPLANATIONS = Explanations((), (), 0)
NO_SCORES = Scorecard((), ())
NO_NOTES = Notes(())


@dataclass(frozen=True, eq=False)
class FeatureMaterial:
    """What ``feature_blocks`` writes down. Only the index and its statistics must be there.

    Attributes:
        index: the features, and the text that contexts are from.
        statistics: of the same index.
        explanations, scores, notes: what is said of the features, and how well it does.
        drill: the items behind the detection scores.
        together: features that are active on the same tokens.
        similar: features whose decoder rows point the same way.
        logits: direct effects on the next token.
        heads: attention heads that write what a feature reads.
        steering: what the model says with a feature turned up or down.
        concepts: known concepts that a feature is active on.
    """

    index: FeatureIndex
    statistics: Statistics
    explanations: Explanations = NO_EXPLANATIONS
    scores: Scorecard = NO_SCORES
    notes: Notes = NO_NOTES
    drill: DrillDown | None = None
    together: CoOccurring | None = None
    similar: Alike | None = None
    logits: LogitEffects | None = None
    heads: Heads = field(default_factory=dict)
    steering: Steering | None = None
    concepts: Mapping[int, Sequence[ConceptMatch]] = field(default_factory=dict)

    def neighbours(self, feature: int) -> list[int]:
        """Features like one, by cosine and by tokens in turn, nearest first."""
        lists = []
        if self.similar is not None:
            lists.append(self.similar.feature[feature].tolist())
        if self.together is not None:
            lists.append(self.together.feature[feature].tolist())
        turns = [other for turn in zip(*lists, strict=False) for other in turn] if lists else []
        rest = [other for each in lists for other in each]
        return [other for other in dict.fromkeys(turns + rest) if other >= 0]


def gather_material(
    index: FeatureIndex,
    *,
    statistics: Statistics | None = None,
    explanations: Explanations | None = None,
    scores: Scorecard | None = None,
    notes: Notes | None = None,
    drill: DrillDown | None = None,
    dictionary: Dictionary | None = None,
    subject: Subject | None = None,
    steer: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> FeatureMaterial:
    """Compute what is not given and can be.

    Args:
        statistics: those stored with the index (``load_statistics``); computed when left out.
        dictionary: for neighbours by cosine.
        subject: with the dictionary, for effects on the logits and for heads, where the dictionary's
            place allows them.
        steer: so many of the most active features, dense ones left out, get steering samples; needs both,
            a causal model, and passages to begin with.
        progress: told of a step, how much of it is done, and of how much.

    Raises MechlabError for explanations of an index of another size, a dictionary that is not of this
    index, a damaged index, and ``steer`` without model or dictionary.
    """
    if explanations is not None and explanations.n_features != index.n_features:
        raise MechlabError(
            "explanations are of an index of another size",
            f"{explanations.n_features} features",
            f"{index.n_features} expected",
        )
    if steer and (subject is None or dictionary is None):
        raise MechlabError("steering needs a model and a dictionary", steer, "give both, or no steering")
    tell = progress or (lambda *_: None)
    signs = bool(index.about.get("signs"))
    found = FeatureMaterial(
        index,
        statistics_of(index) if statistics is None else statistics,
        NO_EXPLANATIONS if explanations is None else explanations,
        NO_SCORES if scores is None else scores,
        NO_NOTES if notes is None else notes,
        drill,
    )
    tell("neighbours", 0, 1)
    more: dict[str, object] = {}
    if index.n_features > 1 and len(index.text):
        more["together"] = co_occurring(index, top=min(NEIGHBOURS, index.n_features - 1))
    if dictionary is not None:
        if dictionary.sae.d_sae * (1 + signs) != index.n_features:
            raise MechlabError(
                "dictionary is not that of the index",
                f"{dictionary.sae.d_sae * (1 + signs)} features, not {index.n_features}",
                "give the dictionary that was indexed",
            )
        rows = dictionary.sae.W_dec.detach()
        if index.n_features > 1:
            more["similar"] = alike(torch.cat([rows, -rows]) if signs else rows, top=NEIGHBOURS)
    if dictionary is not None and subject is not None:
        tell("logits", 0, 1)
        # Features that write nothing to the stream have no direct effect, and the page no such panel.
        with contextlib.suppress(MechlabError):
            directions = dictionary_directions(subject, dictionary, signs=signs)
            more["logits"] = logit_effects(subject, directions, top=min(LOGITS, len(subject.tokenizer)))
        tell("heads", 0, 1)
        with contextlib.suppress(MechlabError):  # a model whose weights are not known
            more["heads"] = head_contributions(subject, dictionary, index)
        prompts = opening_prompts(index, subject)
        if steer and prompts:
            often = np.argsort(-index.density, kind="stable").tolist()
            chosen = [feature for feature in often if 0 < index.density[feature] <= DENSE][:steer]
            more["steering"] = steering_samples(
                subject,
                dictionary,
                index,
                chosen,
                prompts=prompts,
                progress=lambda done, of: tell("steering", done, of),
            )
    labels = fable_labels(index)
    if labels is not None:
        tell("concepts", 0, 1)
        more["concepts"] = concept_matches(index, *labels)
    return FeatureMaterial(**{**found.__dict__, **more})
