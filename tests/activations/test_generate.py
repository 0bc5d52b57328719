"""Generation with a cache gives what a full forward over the same tokens gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mechlab.activations.capture import read_sites
from mechlab.activations.generate import generation
from mechlab.activations.selection import Selection
from mechlab.errors import MechlabError
from mechlab.models.subject import Subject, load_model
from tiny import TINY, save_tiny_model

PROMPTS = ["the cat sat on", "a red dog"]


def never_ends(subject: Subject) -> None:
    subject.module.generation_config.eos_token_id = None


@pytest.fixture(scope="module", params=sorted(set(TINY) - {"bert"}))
def any_subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    subject = load_model(save_tiny_model(tmp_path_factory.mktemp("m") / "m", request.param))
    never_ends(subject)
    return subject


def equals_a_full_forward(subject: Subject, prompts: list[str], new_tokens: int) -> None:
    names = [name for name, site in subject.sites.items() if not site.pattern]
    names += ["blocks.1.attn.hook_z:1", "blocks.0.attn.hook_k:0"]
    found = generation(subject, prompts, names, max_new_tokens=new_tokens)
    for i, prompt in enumerate(prompts):
        start = subject.tokens(prompt)
        length = int(found.mask[i].sum())
        tokens = found.tokens[i, : length + 1]
        assert torch.equal(tokens[: len(start)], start)
        assert found.new[i].nonzero()[:, 0].tolist() == list(range(len(start), length + 1))
        # Greedy: each new token is the best of a forward without cache.
        best = subject.logits(tokens[None])[0].argmax(-1)
        assert torch.equal(best[len(start) - 1 : length], tokens[len(start) :])
        full = read_sites(subject, tokens[None], names)
        for name in names:
            value, expected = found[name][i].flatten(1), full[name][0]
            scale = max(1.0, float(expected.abs().max()))
            assert float((value[:length] - expected[:length]).abs().max()) <= 1e-5 * scale, name
            assert not value[length:].any()


def test_values_equal_a_full_forward(any_subject: Subject) -> None:
    equals_a_full_forward(any_subject, PROMPTS, 6)


def test_values_of_real_models_equal_a_full_forward(stories_model: Path) -> None:
    equals_a_full_forward(load_model(stories_model), ["Once upon a time", "The dog was"], 20)
    equals_a_full_forward(load_model("fable"), ["then", "yesterday the"], 20)


def test_text_that_ends_early(tiny_model: Path) -> None:
    subject = load_model(tiny_model)
    never_ends(subject)
    free = generation(subject, PROMPTS[0], "hook_embed", max_new_tokens=6)
    words = free.tokens[0][free.new[0]].tolist()
    ended = generation(subject, PROMPTS, "hook_embed", max_new_tokens=6, eos_token_id=words[0])
    assert ended.new[0].sum() == 1
    assert ended.mask[0].sum() == len(subject.tokens(PROMPTS[0]))
    assert ended.texts[0] == subject.tokenizer.decode(words[:1], skip_special_tokens=True)


def test_one_new_token_and_selected_positions(tiny_model: Path) -> None:
    subject = load_model(tiny_model)
    found = generation(subject, PROMPTS[0], "blocks.1.hook_resid_post", max_new_tokens=1)
    assert found.mask.tolist() == [[True] * 5 + [False]]
    assert found.new.tolist() == [[False] * 5 + [True]]
    found = generation(subject, PROMPTS[0], "hook_embed", max_new_tokens=1, select=Selection(first=2))
    assert found.chosen.tolist() == [[False, False, True, True, True, False]]
    assert not found["hook_embed"][~found.chosen].any()


def test_sampling_is_the_callers_choice(tiny_model: Path) -> None:
    subject = load_model(tiny_model)
    never_ends(subject)
    drawn = set()
    for seed in range(4):
        torch.manual_seed(seed)
        found = generation(subject, "the", "hook_embed", max_new_tokens=8, do_sample=True, temperature=3.0)
        drawn.add(tuple(found.tokens[0].tolist()))
    assert len(drawn) > 1


def test_chat_goes_on_as_the_assistant(tiny_model: Path) -> None:
    subject = load_model(tiny_model)
    subject.tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'] }} {% endfor %}{% if add_generation_prompt %}and{% endif %}"
    )
    found = generation(subject, [{"role": "user", "content": "the cat"}], "hook_embed", max_new_tokens=2)
    assert found.tokens[0, :4].tolist() == [2, 3, 4, 13]


def test_hooks_go_away_after_an_exception(tiny_model: Path) -> None:
    subject = load_model(tiny_model)

    def count() -> int:
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in subject.module.modules())

    before = count()
    with pytest.raises(ValueError, match="no_such_option"):
        generation(subject, "the cat", "hook_embed", max_new_tokens=2, no_such_option=1)
    assert count() == before
    broken = subject.module.transformer.h[1].register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        generation(subject, "the cat", "hook_embed", max_new_tokens=2)
    broken.remove()
    assert count() == before


def test_what_generation_cannot_do(tiny_model: Path, tmp_path: Path) -> None:
    subject = load_model(tiny_model)
    cases = [
        (("the", "blocks.0.attn.hook_pattern", 2, {}), "not read while generating: blocks.0.attn"),
        (("the", "hook_embd", 2, {}), "no site: hook_embd"),
        (("the", "hook_embed", 0, {}), "new tokens must be positive: 0"),
        (("the " * 30, "hook_embed", 2, {}), r"longer than the model's context: 31 \+ 2 tokens \(at most 32"),
        (([], "hook_embed", 2, {}), "no prompts"),
        (("the", "hook_embed", 3, {"num_beams": 2}), "does not run each token once: num_beams"),
        (("the", "hook_embed", 3, {"use_cache": False}), "does not run each token once: use_cache"),
        (("the", "hook_embed", 2, {"select": Selection(assistant=True)}), "use the result's new mask"),
    ]
    for (prompt, site, count, options), message in cases:
        with pytest.raises(MechlabError, match=message):
            generation(subject, prompt, site, max_new_tokens=count, **options)
    bert = load_model(save_tiny_model(tmp_path / "bert", "bert"))
    with pytest.raises(MechlabError, match="model does not generate"):
        generation(bert, "the", "hook_embed", max_new_tokens=2)
