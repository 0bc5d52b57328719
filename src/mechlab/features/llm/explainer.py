"""Explanations written by a language model from contexts in which a feature is active.

Half the contexts are the feature's strongest, half are spread over the quantiles of its activation:
the strongest alone give explanations that are too narrow (Paulo et al. 2024, arXiv 2410.13928, table
of samplers). Prompts: contexts with marks and activations (Bills et al. 2023), the same with contexts
in which the feature is silent ("contrastive"), or with reasoning first ("chain-of-thought").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from mechlab.errors import MechlabError, near
from mechlab.features.contexts import (
    Context,
    inactive_contexts,
    near_miss_contexts,
    quantile_contexts,
    top_contexts,
)
from mechlab.features.explanations import Explanation, Explanations
from mechlab.features.index import FeatureIndex
from mechlab.features.llm import prompts
from mechlab.features.llm.client import Failure, Request
from mechlab.features.llm.job import LlmJob
from mechlab.features.llm.schema import STRING, parse, record
from mechlab.features.llm.showing import parts, placed, window
from mechlab.features.scoring.fuzzing import SHARE
from mechlab.features.scoring.simulation import levels
from mechlab.features.split import Split

PROMPTS = ("max-activating", "contrastive", "chain-of-thought")
EXAMPLES, RADIUS = 20, 16


def explain_llm(
    index: FeatureIndex,
    job: LlmJob,
    features: Sequence[int] | None = None,
    *,
    prompt: str = "max-activating",
    examples: int = EXAMPLES,
    radius: int = RADIUS,
    split: Split | None = None,
    neighbours: Mapping[int, Sequence[int]] | None = None,
    promoted: Mapping[int, Sequence[str]] | None = None,
    max_tokens: int | None = None,
    temperature: float | None = 0.0,
    seed: int = 0,
) -> Explanations:
    """Explanations of features, one each, by the model of the job's client.

    Args:
        features: numbers; None: all live ones.
        prompt: "max-activating", "contrastive" or "chain-of-thought".
        examples: contexts with the feature (and half as many without, when contrastive).
        radius: tokens shown on either side of the token that a context was chosen for.
        split: show only documents that it sets apart for explaining; None: all of the index is for that.
        neighbours: feature → features like it, nearest first, for contrastive prompts: contexts where
            these are active and it is not; without them, random ones.
        promoted: feature → words whose logits it raises, to be shown as well.
        max_tokens: longest answer; None: 120, with reasoning 600.

    An answer that is malformed, refused or lost is no explanation: it stands in ``failed``, as do
    features that are not active on the text. ``about`` of each explanation holds the model, where it
    is, the hash of the prompt, the tokens and dollars it cost, and the rows that were shown.

    Raises MechlabError for an unknown prompt and as ``LlmJob.run`` does.
    """
    if prompt not in PROMPTS:
        raise MechlabError("unknown prompt", prompt, near(prompt, PROMPTS))
    seen, rows = index, np.arange(len(index.text))
    if split is not None:
        keep = split.explains(index.text.document)
        seen, rows = index.restrict(keep), np.flatnonzero(keep)
    think = prompt == "chain-of-thought"
    wanted = [int(each) for each in (seen.live if features is None else features)]
    failed: dict[int, str] = {}
    requests: dict[int, tuple[Request, list[Context]]] = {}
    for feature in wanted:
        generator = np.random.default_rng([seed, feature])
        active = _active(seen, feature, examples, radius, generator)
        if not active:
            failed[feature] = "it is not active in the documents for explaining"
            continue
        silent: list[Context] = []
        if prompt == "contrastive":
            near_by = (neighbours or {}).get(feature, ())
            silent = _silent(seen, feature, near_by, max(examples // 2, 1), radius, generator)
        body = _body(seen, feature, active, silent, (promoted or {}).get(feature, ()))
        fields = {"reasoning": STRING, "explanation": STRING} if think else {"explanation": STRING}
        request = Request(
            prompts.explaining(body, 2 * radius + 1, bool(silent), think),
            job.client.model,
            max_tokens=max_tokens or (600 if think else 120),
            temperature=temperature,
            schema=record(**fields),
        )
        requests[feature] = request, [*active, *silent]
    outcomes = job.run([request for request, _ in requests.values()])
    items = []
    for (feature, (request, shown)), outcome in zip(requests.items(), outcomes, strict=True):
        if isinstance(outcome, Failure):
            failed[feature] = f"{outcome.kind}: {outcome.message}"
            continue
        told = parse(outcome.text, request.schema or {})
        said = " ".join(told["explanation"].split())
        if not said:
            failed[feature] = "malformed: the explanation is empty"
            continue
        about = _about(job, request, outcome.input_tokens, outcome.output_tokens, shown, rows)
        if think:
            about["reasoning"] = told["reasoning"]
        items.append(Explanation(feature, f"llm:{job.client.model}:{prompt}", said, None, about))
    documents = tuple(np.unique(seen.text.document).tolist())
    return Explanations(tuple(items), documents, index.n_features, failed)


def _active(
    index: FeatureIndex, feature: int, count: int, radius: int, generator: np.random.Generator
) -> list[Context]:
    """Half the strongest contexts, half from the quantiles by turns; strongest first, none twice."""
    found = top_contexts(index, feature, max(count // 2, 1), radius)
    groups = quantile_contexts(index, feature, -(-count // 10) + 1, generator, radius=radius)
    turns = [group[turn] for turn in range(max(map(len, groups))) for group in groups if turn < len(group)]
    said = {context.tokens(index).tobytes() for context in found}
    for context in turns:
        tokens = context.tokens(index).tobytes()
        if len(found) < count and tokens not in said:
            said.add(tokens)
            found.append(context)
    return sorted(found, key=lambda each: -float(each.activations(index, feature).max()))


def _silent(
    index: FeatureIndex,
    feature: int,
    neighbours: Sequence[int],
    count: int,
    radius: int,
    generator: np.random.Generator,
) -> list[Context]:
    found = near_miss_contexts(index, feature, neighbours, count, generator, radius=radius)
    if len(found) < count:
        others = inactive_contexts(index, feature, count, generator, radius=radius)
        starts = {context.start for context in found}
        found += [each for each in others if each.start not in starts][: count - len(found)]
    return found


def _body(
    index: FeatureIndex,
    feature: int,
    active: Sequence[Context],
    silent: Sequence[Context],
    promoted: Sequence[str],
) -> str:
    """Windows with marks; a token is marked from 0.3 of the window's largest activation on."""
    text, maximum = index.text, float(index.maximum[feature])
    lines = ["Windows in which the feature is active:"]
    for number, context in enumerate(active, 1):
        values = context.activations(index, feature)
        marks = values >= SHARE * values.max()
        scale = levels(values.astype(np.float64), maximum)
        told = [
            f"{said.strip(' ') or repr(said)}: {int(scale[first:last].max())}"
            for said, first, last in parts(context.tokens(index), text)
            if marks[first:last].any()
        ]
        shown = window(text, context.start, context.stop, marks)
        lines += [f"Window {number} ({placed(text, context.start)}): {shown}", f"  {'; '.join(told)}"]
    if silent:
        lines += ["", "Windows in which the feature is silent:"]
        for number, context in enumerate(silent, 1):
            shown = window(text, context.start, context.stop)
            lines.append(f"Window {number} ({placed(text, context.start)}): {shown}")
    if promoted:
        lines += ["", f"Words that the feature makes the model say next: {', '.join(map(repr, promoted))}"]
    return "\n".join(lines)


def _about(
    job: LlmJob,
    request: Request,
    read: int,
    written: int,
    shown: Sequence[Context],
    rows: Int[np.ndarray, "row"],
) -> dict[str, Any]:
    return {
        "model": request.model,
        "endpoint": job.client.endpoint,
        "request": request.key(job.client.endpoint),
        "input_tokens": read,
        "output_tokens": written,
        "dollars": job.cost(request.model, read, written),
        "rows": sorted(int(rows[context.row]) for context in shown),
    }
