"""A site of features, written by hand in the form that the page reads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mechlab.dashboards.site import Site

WORDS = ["Once", " upon", " a", " time", "\n", " there", " was", " the", " cat", " and", " The", " dog", "."]
CHUNK = 64
N = 70  # two blocks


def context(document: int, centre: int = 7, strength: float = 1.0, **more: Any) -> dict[str, Any]:
    """Twenty-five tokens, of which the centre and the one after it are active."""
    tokens = [n % len(WORDS) for n in range(25)]
    active = [[centre, 4 * strength], [centre + 1, strength]] if strength else []
    return {"d": document, "c": centre, "t": tokens, "a": active, "at": 100 + centre, **more}


def score(name: str, value: float) -> dict[str, Any]:
    null = {"value": 0.49, "low": 0.42, "high": 0.56}
    return {
        "name": name, "value": value, "low": value - 0.08, "high": value + 0.05, "n": 80, "chance": 0.5,
        "null": null, "base_rate": 0.01, "positive": 40, "negative": 40, "failed": 0,
    }  # fmt: skip


def record(number: int) -> dict[str, Any]:
    """Everything a feature can have."""
    judged = [
        *({"yes": True, "label": True, **context(n)} for n in range(3)),
        {"yes": False, "label": True, **context(11, strength=0.5)},
        *({"yes": 0.9, "label": False, **context(20 + n, strength=0)} for n in range(2)),
        {"yes": 0.1, "label": False, **context(30, strength=0)},
    ]
    return {
        "hist": {"counts": [50, 20, 0, 5, 1], "max": 4.0},
        "quantiles": [n / 5 for n in range(21)],
        "said": [
            {"text": f"fires (2.5) on word{number}", "by": "rules",
             "scores": [score("detection", 0.6 + number / 1000), score("fuzzing", 0.7)]},
            {"text": "a second opinion", "by": "llm", "author": "some-model", "why": "too few windows"},
        ],
        "contexts": {
            "top": [context(n, strength=1 - n / 10) for n in range(3)],
            "quantiles": [
                {"low": 2.0, "high": 4.0, "share": 0.33, "rows": [context(5)]},
                {"low": 0.0, "high": 2.0, "share": 0.67, "rows": [context(6, strength=0.3)]},
            ],
            "near": [context(8, strength=0, of=1)],
            "random": [context(9, strength=0.2)],
        },
        "confusion": {"by": "rules", "tp": 30, "fn": 10, "fp": 20, "tn": 20},
        "judged": judged,
        "logits": {"up": [[7, 2.5], [8, 1.0]], "down": [[3, -1.5]]},
        "near": {"cosine": [[1, 0.83], [65, -0.4]], "together": [[2, 0.5]], "heads": [["a0.h1", 0.3]]},
        "steer": [
            {"strength": x, "kl": abs(x) / 4, "rows": [{"prompt": "Once", "text": f" upon {x}"}]}
            for x in (-1.0, 0.0, 2.0, 4.0)
        ],
        "concepts": [{"name": "animal", "f1": 0.8, "precision": 0.9, "recall": 0.72}],
        "notes": [{"text": "seen before", "author": "Ada", "label": "cats"}],
    }  # fmt: skip


def blocks(n: int = N) -> Iterator[tuple[str, Any]]:
    """The overview of ``n`` features and their records; the last one is dead, the one before dense."""
    numbers = range(n)
    dead = [k == n - 1 for k in numbers]
    detection = [None if d else 0.6 + k / 1000 for k, d in zip(numbers, dead, strict=True)]
    yield (
        "overview",
        {
            "features": n,
            "chunk": CHUNK,
            "scorers": ["detection", "top minus rest"],
            "columns": {
                "n": [*numbers],
                "density": [0.0 if d else 0.001 * (k + 1) for k, d in zip(numbers, dead, strict=True)],
                "max": [0.0 if d else 4.0 for d in dead],
                "mean": [0.0 if d else 1.5 for d in dead],
                "said": ["" if d else f"fires on word{k}" for k, d in zip(numbers, dead, strict=True)],
                "by": ["" if d else "rules" for d in dead],
                "tokens": [[] if d else [" the", " cat"] if k % 2 else ["The"] for k, d in enumerate(dead)],
                "scores": {
                    "detection": {
                        "value": detection,
                        "low": [None if x is None else x - 0.1 for x in detection],
                        "high": [None if x is None else x + 0.1 for x in detection],
                        "null": [None if x is None else 0.5 for x in detection],
                    },
                    "top minus rest": {
                        "value": [0.1] * n, "low": [None] * n, "high": [None] * n, "null": [None] * n
                    },
                },
                "flags": ["dead" if d else "dense" if k == n - 2 else "" for k, d in enumerate(dead)],
                "label": ["cats" if k == 3 else "" for k in numbers],
                "concept": ["animal" if k % 10 == 4 else "" for k in numbers],
            },
        },
    )  # fmt: skip
    for chunk in range(0, n, CHUNK):
        yield (
            f"features-{chunk // CHUNK}",
            {
                "strings": WORDS,
                "features": {
                    str(k): {} if dead[k] else record(k) for k in range(chunk, min(n, chunk + CHUNK))
                },
            },
        )


FACTS = {"model": "tiny", "site": "blocks.1.hook_resid_post", "tokens": 123456, "features": N}
SITE = Site(title="Toy", views=("features",), facts=FACTS, blocks=blocks)
