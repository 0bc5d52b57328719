"""Attention patterns and scores, and direct logit attribution, against the models themselves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config

import mechlab
from mechlab.circuits.weights.attention import ATTENTION_SCORES, attention_patterns, attention_scores
from mechlab.circuits.weights.direct import direct_logits
from mechlab.data.tasks import Task, make_task
from mechlab.errors import MechlabError
from mechlab.models.compiled import compile_program, program_named
from mechlab.models.forward import DecomposedForward

ALL = torch.arange(30)


def test_patterns_are_the_model_s_own(architecture: str, random_module: Callable[..., nn.Module]) -> None:
    module = random_module(architecture)
    module.set_attn_implementation("eager")
    tokens = torch.randint(30, (3, 9), generator=torch.Generator().manual_seed(0))
    own = module(tokens, output_attentions=True).attentions
    found = list(attention_patterns(DecomposedForward(module), tokens))
    assert len(found) == len(own) == 3
    for ours, theirs in zip(found, own, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_scores_are_means_over_the_repeated_half(random_module: Callable[..., nn.Module]) -> None:
    module = random_module("llama", seed=2)
    forward, length = DecomposedForward(module), 6
    for bos in (None, 0):
        found = attention_scores(forward, ALL, bos=bos, n=4, length=length, seed=7)
        generator = torch.Generator().manual_seed(7)
        half = torch.stack([torch.randperm(30, generator=generator)[:length] for _ in range(4)])
        tokens = torch.cat([half, half], 1)
        if bos is not None:
            tokens = torch.cat([torch.full((4, 1), bos), tokens], 1)
        first = tokens.shape[1] - length
        for layer, pattern in enumerate(attention_patterns(forward, tokens)):
            for head in range(4):
                rows = range(first, tokens.shape[1])
                for scores, back in ((found.previous, 1), (found.duplicate, 6), (found.induction, 5)):
                    mean = sum(pattern[:, head, i, i - back].mean() for i in rows) / length
                    torch.testing.assert_close(scores[layer, head], mean)
        assert found.chance == pytest.approx(sum(1 / (i + 1) for i in range(first, tokens.shape[1])) / length)


@pytest.mark.parametrize(("name", "back"), [("previous", 1), ("duplicate", 5), ("induction", 4)])
def test_a_head_that_looks_back_a_fixed_way_scores_one(name: str, back: int) -> None:
    """One head of 16 dimensions: positions are one-hot, queries are shifted back."""
    config = GPT2Config(n_embd=16, n_layer=1, n_head=1, vocab_size=30, n_positions=16)
    module = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    body = module.transformer
    body.wte.weight.zero_()
    body.wpe.weight.copy_(torch.eye(16))
    shift = torch.eye(16).roll(-back, 1)
    body.h[0].attn.c_attn.weight.copy_(100 * torch.cat([shift, torch.eye(16), torch.eye(16)], 1))
    found = attention_scores(DecomposedForward(module), ALL, bos=3, n=2, length=5)
    for other in ATTENTION_SCORES:
        assert getattr(found, other)[0, 0] == pytest.approx(float(other == name), abs=1e-3)


def test_fable_looks_back_and_random_weights_do_not(random_module: Callable[..., nn.Module]) -> None:
    subject = mechlab.load_model("fable")
    words, bos = torch.arange(50, 900), subject.tokenizer.bos_token_id
    found = attention_scores(DecomposedForward(subject.module), words, bos=bos, length=12)
    assert found.previous.max() > 0.4
    assert found.induction.max() > 1.5 * found.chance
    none = attention_scores(DecomposedForward(random_module("gpt2", scale=0.02)), ALL, n=8)
    for name in ATTENTION_SCORES:
        assert getattr(none, name).max() < 1.2 * none.chance, name


def test_fable_s_induction_heads_find_what_came_after() -> None:
    subject = mechlab.load_model("fable")
    task = make_task("induction", subject.tokenizer, n=32)
    rows = torch.arange(len(task))
    found = [
        pattern[rows, :, task.positions["end"], task.positions["B1"]].mean(0)
        for pattern in attention_patterns(DecomposedForward(subject.module), task.clean)
    ]
    assert torch.stack(found).max() > 0.9


def test_chance_is_uniform_over_what_is_visible() -> None:
    for name, expected in (("reverse", 1 / 4), ("induction", (1 / 3 + 1 / 4) / 2)):
        forward = DecomposedForward(compile_program(program_named(name)))
        assert attention_scores(forward, torch.arange(3), length=2).chance == pytest.approx(expected)


def test_bad_requests_are_named(random_module: Callable[..., nn.Module]) -> None:
    forward = DecomposedForward(random_module("gpt2"))
    with pytest.raises(MechlabError, match="length of 2"):
        attention_scores(forward, ALL, length=1)


def test_direct_contributions_sum_to_the_logit_difference(
    architecture: str, random_module: Callable[..., nn.Module], random_task: Callable[..., Task]
) -> None:
    for seed in range(2):
        module, task = random_module(architecture, seed), random_task(seed, n=5)
        found = direct_logits(module, task, batch_size=3)
        logits = module(task.clean).logits[torch.arange(5), task.positions["end"]]
        rows = torch.arange(5)
        difference = logits[rows, task.answers] - logits[rows, task.wrong]
        torch.testing.assert_close(found.sources.sum(0) + found.constant, difference, rtol=1e-4, atol=1e-4)
        # Heads' contributions split exactly by position, and nothing comes from later positions.
        heads = found.sources[1:].unflatten(0, (3, 5))[:, :4]
        torch.testing.assert_close(found.positions.sum(-1), heads, rtol=1e-4, atol=1e-4)


def test_a_source_s_part_is_what_the_logits_lose_with_the_scale_frozen(
    random_module: Callable[..., nn.Module], random_task: Callable[..., Task]
) -> None:
    module, task = random_module("gpt2", 3), random_task(3)
    forward = DecomposedForward(module)
    run = forward.run(task.clean, keep=True)
    assert run.sources is not None
    end, rows = task.positions["end"], torch.arange(len(task))
    x, norm = run.x[rows, end], module.transformer.ln_f
    scale = (x.var(-1, unbiased=False, keepdim=True) + norm.eps).sqrt()
    found = direct_logits(module, task)
    for source in (0, 2, 7, 15):
        without = x - run.sources[source][rows, end]
        logits = [
            module.lm_head((each - each.mean(-1, keepdim=True)) / scale * norm.weight + norm.bias)
            for each in (x, without)
        ]
        lost = logits[0] - logits[1]
        part = lost[rows, task.answers] - lost[rows, task.wrong]
        torch.testing.assert_close(found.sources[source], part, rtol=1e-4, atol=1e-4)


def test_tasks_that_read_several_positions_get_means(
    random_module: Callable[..., nn.Module], random_task: Callable[..., Task]
) -> None:
    module, task = random_module("llama"), random_task(1)
    other = torch.full_like(task.answers, 4)
    ends = task.positions["end"]
    both = replace(
        task,
        answers=torch.stack([task.answers, other], 1),
        wrong=torch.stack([task.wrong, task.answers], 1),
        positions={"end": torch.stack([ends, ends - 2], 1)},
    )
    second = replace(task, answers=other, wrong=task.answers, positions={"end": ends - 2})
    together, one, two = (direct_logits(module, each) for each in (both, task, second))
    torch.testing.assert_close(together.sources, (one.sources + two.sources) / 2, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together.positions, (one.positions + two.positions) / 2, rtol=1e-4, atol=1e-5)
