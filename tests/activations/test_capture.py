"""Reading sites: exact, tidy, and clear about mistakes. Equality with the bridge: tests/models."""

from __future__ import annotations

import itertools
import random
import warnings
from pathlib import Path

import pytest
import torch

import mechlab as ml
from mechlab.activations.capture import read_sites, reading
from mechlab.activations.selection import Selection
from mechlab.errors import MechlabError
from mechlab.interventions.edit import editing
from mechlab.models.subject import Subject, load_model
from tiny import save_tiny_model

TOKENS = torch.tensor([[2, 3, 4, 6, 8], [2, 5, 7, 9, 10]])


@pytest.fixture(scope="module")
def subject(tiny_model: Path) -> Subject:
    return load_model(tiny_model)


def hook_count(subject: Subject) -> int:
    modules = subject.module.modules()
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules)


def test_values_are_bit_equal_to_a_naive_hook(subject: Subject) -> None:
    tokens = torch.randint(3, 20, (3, 9), generator=torch.Generator().manual_seed(0))
    kept = []
    handle = subject.module.transformer.h[0].register_forward_hook(lambda _, __, out: kept.append(out))
    subject.module(tokens)
    handle.remove()
    value = kept[0][0] if isinstance(kept[0], tuple) else kept[0]
    assert torch.equal(
        read_sites(subject, tokens, ["blocks.0.hook_resid_post"])["blocks.0.hook_resid_post"], value
    )


def test_padding_changes_nothing(subject: Subject) -> None:
    texts = ["the cat sat on a mat .", "a red dog"]
    together = ml.activations(subject, texts, "blocks.1.hook_resid_post")
    for i, text in enumerate(texts):
        alone = ml.activations(subject, text, "blocks.1.hook_resid_post")["blocks.1.hook_resid_post"][0]
        found = together["blocks.1.hook_resid_post"][i]
        torch.testing.assert_close(found[: len(alone)], alone, atol=1e-6, rtol=1e-6)
        assert not found[len(alone) :].any()
    assert together.mask.sum(1).tolist() == [8, 4]


def test_forward_stops_after_the_last_site(subject: Subject) -> None:
    ran = []
    handle = subject.module.transformer.h[1].register_forward_hook(lambda *_: ran.append(1))
    read_sites(subject, torch.tensor([[2, 3]]), ["blocks.0.hook_resid_post", "hook_embed"])
    handle.remove()
    assert ran == []


def test_sites_of_one_module_and_any_order(subject: Subject) -> None:
    names = ["blocks.1.hook_resid_post", "blocks.0.hook_resid_post", "blocks.1.hook_resid_pre"]
    found = read_sites(subject, torch.tensor([[2, 3, 4]]), names)
    assert set(found) == set(names)
    assert torch.equal(found["blocks.0.hook_resid_post"], found["blocks.1.hook_resid_pre"])


def test_heads_are_kept_apart(subject: Subject) -> None:
    assert ml.activations(subject, "the cat", "blocks.0.attn.hook_z")["blocks.0.attn.hook_z"].shape == (
        1,
        3,
        4,
        4,
    )


def test_hooks_are_removed_also_after_an_exception(subject: Subject) -> None:
    before = hook_count(subject)
    broken = subject.module.transformer.h[0].mlp.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        read_sites(subject, torch.tensor([[2]]), ["blocks.0.hook_resid_post"])
    broken.remove()
    assert hook_count(subject) == before
    with (
        pytest.raises(RuntimeError),
        reading(subject, ["blocks.0.hook_resid_post", "blocks.1.hook_resid_pre"], lambda name, value: None),
    ):
        assert hook_count(subject) == before + 2
        raise RuntimeError
    assert hook_count(subject) == before


def test_an_exception_of_the_keeper_passes_and_hooks_go(subject: Subject) -> None:
    before, attention = hook_count(subject), subject.module.config._attn_implementation

    def keep(name: str, value: torch.Tensor) -> None:
        raise KeyError(name)

    for name in ("blocks.0.hook_mlp_out", "blocks.0.attn.hook_pattern"):
        with pytest.raises(KeyError), reading(subject, [name], keep) as run:
            run(TOKENS)
        assert hook_count(subject) == before
        assert subject.module.config._attn_implementation == attention


def test_one_reading_serves_many_forwards(subject: Subject) -> None:
    names = ["blocks.1.hook_resid_pre", "blocks.0.attn.hook_q:1", "hook_pos_embed"]
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randint(3, 20, (rows, 9 - rows), generator=generator) for rows in (3, 1, 2)]
    found: list[dict[str, torch.Tensor]] = []
    with reading(subject, names, lambda name, value: found[-1].update({name: value.clone()})) as run:
        for batch in batches:
            found.append({})
            run(batch)
    for batch, values in zip(batches, found, strict=True):
        expected = read_sites(subject, batch, names)
        assert values.keys() == expected.keys()
        assert all(torch.equal(values[name], expected[name]) for name in names)
        assert all(value.shape[:2] == batch.shape for value in values.values())


def test_a_forward_of_the_caller_is_left_alone(subject: Subject) -> None:
    seen: list[torch.Tensor] = []
    expected = subject.logits(TOKENS)
    weight = subject.module.transformer.h[0].mlp.c_fc.weight.requires_grad_()
    try:
        with reading(subject, ["blocks.0.hook_mlp_out"], lambda _, value: seen.append(value)) as run:
            logits = subject.module(TOKENS).logits  # neither stopped nor seen
            assert seen == []
            run(TOKENS)
            subject.module(TOKENS)
    finally:
        weight.requires_grad_(False)
    assert torch.equal(logits, expected)
    assert len(seen) == 1
    assert not seen[0].requires_grad


def test_copies_outlive_what_comes_later(subject: Subject) -> None:
    names = list(subject.sites)
    found = read_sites(subject, TOKENS, names)
    before = {name: value.clone() for name, value in found.items()}
    assert all(value.is_contiguous() for value in found.values())
    with torch.no_grad():
        for name in names:
            found[name] += 1
            assert all(torch.equal(found[other], before[other]) for other in names if other != name), name
            found[name] -= 1
            found[name] = before[name]


def test_a_pattern_changes_the_kernel_of_its_own_forward_only(subject: Subject) -> None:
    used = []
    attention = subject.module.transformer.h[0].attn
    handle = attention.register_forward_hook(lambda _, __, out: used.append(out[1] is not None))
    before = subject.module.config._attn_implementation
    for names in (["blocks.0.hook_mlp_out"], ["blocks.0.attn.hook_pattern"], ["blocks.0.hook_mlp_out"]):
        read_sites(subject, TOKENS, names)
        assert subject.module.config._attn_implementation == before == "sdpa"
    handle.remove()
    assert used == [False, True, False]


def test_sites_of_the_bridge_are_read_with_the_rest(subject: Subject) -> None:
    names = ["blocks.0.ln1.hook_normalized", "blocks.1.attn.hook_z", "blocks.1.attn.hook_z:2"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = read_sites(subject, TOKENS, [*names, "blocks.1.attn.hook_attn_scores"])
    assert set(found) == {*names, "blocks.1.attn.hook_attn_scores"}
    z = read_sites(subject, TOKENS, [names[1]])[names[1]]
    torch.testing.assert_close(found[names[1]], z, atol=1e-5, rtol=1e-5)
    assert torch.equal(found[names[2]], found[names[1]][..., 8:12])
    x = read_sites(subject, TOKENS, ["blocks.0.hook_resid_pre"])["blocks.0.hook_resid_pre"]
    expected = torch.nn.functional.layer_norm(x, (16,), eps=subject.module.config.layer_norm_epsilon)
    torch.testing.assert_close(found[names[0]], expected, atol=1e-5, rtol=1e-5)
    pattern = read_sites(subject, TOKENS, ["blocks.1.attn.hook_pattern"])["blocks.1.attn.hook_pattern"]
    scores = found["blocks.1.attn.hook_attn_scores"]
    torch.testing.assert_close(scores.softmax(-1), pattern, atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_the_bridge_of_a_bidirectional_model_gets_the_mask(tmp_path: Path) -> None:
    bert = load_model(save_tiny_model(tmp_path / "m", "bert"))
    tokens, mask = torch.tensor([[2, 3, 4, 4], [2, 5, 6, 7]]), torch.ones(2, 4, dtype=torch.bool)
    mask[0, 3] = False
    names = ["blocks.1.hook_resid_post", "blocks.1.ln1.hook_normalized"]
    found = read_sites(bert, tokens, names, mask)[names[0]]
    torch.testing.assert_close(found, read_sites(bert, tokens, names[:1], mask)[names[0]], atol=1e-5, rtol=0)
    with pytest.raises(MechlabError, match=r"bridge does not compute this site: blocks\.0\.mlp\.hook_in"):
        read_sites(bert, tokens, ["blocks.0.mlp.hook_in", names[1]], mask)


def test_the_bridge_is_not_read_while_the_module_has_hooks(subject: Subject) -> None:
    with (
        editing(subject, "blocks.0.hook_resid_pre", lambda value: value * 2),
        pytest.raises(MechlabError, match=r"cannot be read while the module has hooks.*hook_normalized"),
    ):
        read_sites(subject, TOKENS, ["blocks.0.ln1.hook_normalized"])


def test_padding_of_a_bidirectional_model_is_not_seen(tmp_path: Path) -> None:
    bert = load_model(save_tiny_model(tmp_path / "m", "bert"))
    texts = ["the cat sat on a mat .", "a red dog"]
    names = ["blocks.1.hook_resid_post", "blocks.1.attn.hook_pattern", "blocks.0.hook_mlp_out"]
    together = ml.activations(bert, texts, names)
    for i, text in enumerate(texts):
        alone = ml.activations(bert, text, names)
        length = int(together.mask[i].sum())
        for name in names:
            found = together[name][i]
            if "pattern" in name:
                assert not found[:, length:].any()
                assert not found[:, :, length:].any()
                found = found[:, :length]
            torch.testing.assert_close(
                found[..., :length, :] if "pattern" not in name else found[..., :length],
                alone[name][0],
                atol=1e-6,
                rtol=1e-5,
            )
    tokens = torch.tensor([[2, 3, 4, 4]])
    seen = read_sites(bert, tokens, names[:1])[names[0]]
    hidden = read_sites(bert, tokens, names[:1], torch.tensor([[True, True, True, False]]))[names[0]]
    assert not torch.allclose(seen[:, :3], hidden[:, :3])


def test_selected_positions(subject: Subject) -> None:
    texts = ["the cat xyz sat", "a dog"]
    found = ml.activations(subject, texts, "hook_embed")
    assert torch.equal(found.chosen, found.mask)
    found = ml.activations(subject, texts, "hook_embed", Selection(special=False, first=1, last=4))
    assert found.chosen.tolist() == [[False, True, True, False, False], [False, True, True, False, False]]
    value = found["hook_embed"]
    assert not value[~found.chosen].any()
    assert value[found.chosen].any(-1).all()


CHAT = [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": "sat"}]
TEMPLATE = "{% for m in messages %}{{ m['content'] }} {% endfor %}"


def test_chats_and_their_assistant_turns(tiny_model: Path) -> None:
    subject = load_model(tiny_model)
    subject.tokenizer.chat_template = TEMPLATE
    one = ml.activations(subject, CHAT, "hook_embed")
    assert one.tokens.tolist() == [[2, 3, 4, 6]]
    mixed = ml.activations(subject, ["a dog", CHAT], "hook_embed")
    assert mixed.mask.sum(1).tolist() == [3, 4]
    turns = ml.activations(subject, [CHAT, [CHAT[0], *CHAT]], "hook_embed", Selection(assistant=True))
    assert turns.chosen.tolist() == [
        [False, False, False, True, False, False],
        [False, False, False, False, False, True],
    ]
    with pytest.raises(MechlabError, match="text has no assistant turns: 'a dog'"):
        ml.activations(subject, ["a dog", CHAT], "hook_embed", Selection(assistant=True))


def naive_chosen(subject: Subject, select: Selection, token: int, p: int, real: bool, turn: bool) -> bool:
    special = token in subject.tokenizer.all_special_ids and token != subject.bos
    return (
        real
        and (select.bos or token != subject.bos)
        and (select.special or not special)
        and p >= select.first
        and (select.last is None or p < select.last)
        and (turn or not select.assistant)
    )


@pytest.mark.parametrize("seed", range(5))
def test_selection_equals_the_naive_one(subject: Subject, seed: int) -> None:
    draw = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    shape = (draw.randint(1, 6), draw.randint(1, 12))
    tokens = torch.randint(0, 5, shape, generator=generator)
    mask = torch.rand(shape, generator=generator) < 0.8
    turns = torch.rand(shape, generator=generator) < 0.5
    for bos, special, assistant in itertools.product((False, True), repeat=3):
        first = draw.randint(0, 3)
        last = draw.choice([None, first + draw.randint(1, 9)])
        select = Selection(bos=bos, special=special, first=first, last=last, assistant=assistant)
        found = select.chosen(subject, tokens, mask, turns)
        for (i, p), value in zip(
            itertools.product(*map(range, shape)), found.flatten().tolist(), strict=True
        ):
            expected = naive_chosen(
                subject, select, int(tokens[i, p]), p, bool(mask[i, p]), bool(turns[i, p])
            )
            assert value == expected


def test_selections_that_cannot_be(subject: Subject) -> None:
    with pytest.raises(MechlabError, match="first position is negative: -1"):
        Selection(first=-1)
    with pytest.raises(MechlabError, match="last position is not after the first: 3"):
        Selection(first=3, last=3)
    with pytest.raises(MechlabError, match="no assistant turns"):
        Selection(assistant=True).chosen(subject, TOKENS, TOKENS > 0)


def test_learned_positions_are_there_for_every_row(subject: Subject) -> None:
    tokens = torch.tensor([[2, 3, 4], [2, 5, 6]])
    found = read_sites(subject, tokens, ["hook_pos_embed"])["hook_pos_embed"]
    assert found.shape == (2, 3, 16)
    assert torch.equal(found[0], subject.module.transformer.wpe.weight[:3])


def test_mistakes(subject: Subject) -> None:
    with pytest.raises(MechlabError, match="token has no embedding: 99 of 20"):
        read_sites(subject, torch.tensor([[2, 99]]), ["hook_embed"])
    with pytest.raises(MechlabError, match=r"no site: blocks\.0\.hook_resid"):
        ml.activations(subject, "the cat", "blocks.0.hook_resid")
    with pytest.raises(MechlabError, match="longer than the model's context: 41 tokens"):
        ml.activations(subject, "the " * 40, "hook_embed")
    with pytest.raises(MechlabError, match="no texts"):
        ml.activations(subject, [], "hook_embed")
