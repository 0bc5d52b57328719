"""The bundled model's card: every number in it is measured when it is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mechlab.data import fable
from mechlab.models.check_fable import Check, check_fable

_CARD = """---
license: mit
language: en
pipeline_tag: text-generation
---

# Fable

A small GPT-2 ({parameters:,} parameters: {layers} layers, {heads} heads, width {width}, context {context})
for learning and testing mechanistic interpretability. It is trained from scratch, by
`mechlab model train-fable`, on stories from a seeded grammar whose every token carries {concepts} concept
labels (`mechlab.data.fable`). One word is one token; the vocabulary has {vocabulary} of them.

It knows nothing of the world outside its grammar and is of no use as a language model.

## What it can do

Measured by `mechlab model check-fable` ({n} prompts per length, seed {seed}) on prompts whose combinations of
names, words, facts and templates never occur in the training text. Intervals are 95 %.

| behaviour | metric | value | low | high | prompts | bar |
|---|---|---|---|---|---|---|
{rows}

`right_above_wrong`: the right answer's logit is above its contrast's. `top_1`: it is the largest of the whole
vocabulary. `probability_difference`: the probability of the years after the start less that of the others.

## How it was made

`mechlab model train-fable --out DIR` with seed {train_seed}: {tokens}tokens of the training split, \
{share:.0%} of
them in rows of {short} tokens, then one document per row of {context}; AdamW, peak rate {rate}, cosine
decay, bfloat16 autocast, float32 weights. Same seed, same machine and same number of threads, same weights.

## Licence and data

The grammar, the corpus and the weights are part of mechlab and under its licence. No text by anyone else was
used; names of people and cities are common ones and refer to nobody.
"""


def write_card(
    directory: Path, *, n: int = 200, seed: int = 0, tokens: int | None = None, train_seed: int = 0
) -> dict[str, Check]:
    """Measure the model in ``directory`` and write its card there.

    Args:
        directory: a checkpoint by ``train_fable``; README.md is replaced.
        n: prompts per behaviour and length, as in ``check_fable``.
        seed: of the prompts.
        tokens: how many the model was trained on, as ``train_fable`` reports; None leaves them out.
        train_seed: of its training.

    Returns:
        The results of ``check_fable`` that the card shows.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(directory, local_files_only=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    results = check_fable(model, tokenizer, n=n, seed=seed)
    card = _card(model, results, n=n, seed=seed, tokens=tokens, train_seed=train_seed)
    (Path(directory) / "README.md").write_text(card, encoding="utf-8")
    return results


def _card(
    model: Any, results: dict[str, Check], *, n: int, seed: int, tokens: int | None, train_seed: int
) -> str:
    from mechlab.models import train_fable

    rows = [
        f"| {name} | {found['metric']} | {found['value']:.4f} | {found['low']:.4f} | {found['high']:.4f} "
        f"| {found['n']} | {found['bar']} |"
        for name, found in results.items()
    ]
    config = model.config
    return _CARD.format(
        parameters=sum(p.numel() for p in model.parameters()),
        layers=config.n_layer,
        heads=config.n_head,
        width=config.n_embd,
        context=config.n_positions,
        concepts=len(fable.CONCEPTS),
        vocabulary=len(fable.VOCABULARY),
        rows="\n".join(rows),
        n=n,
        seed=seed,
        tokens="" if tokens is None else f"{tokens:,} ",
        train_seed=train_seed,
        share=train_fable.SHORT_SHARE,
        short=train_fable.SHORT,
        rate=train_fable.PEAK_RATE,
    )
