"""Every site of every architecture: equal to the bridge, to naive hooks, readable and writable."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mechlab.activations.capture import read_sites
from mechlab.errors import MechlabError
from mechlab.models.subject import Subject, load_model
from tiny import TINY, save_tiny_model

# BERT's bridge has these hooks and never runs them; the same value under another name, or none.
ELSEWHERE: dict[str, str | None] = {"mlp.hook_in": "hook_mlp_in", "attn.hook_pattern": None}


@pytest.fixture(scope="session", params=sorted(TINY))
def any_subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return load_model(save_tiny_model(tmp_path_factory.mktemp(request.param) / "m", request.param))


def some_tokens(subject: Subject, rows: int = 3, length: int = 9, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    vocabulary = subject.module.get_input_embeddings().num_embeddings
    return torch.randint(3, vocabulary, (rows, length), generator=generator)


def equals_the_bridge(subject: Subject, tokens: Tensor) -> None:
    found = read_sites(subject, tokens, list(subject.sites))
    _, cache = subject.bridge().run_with_cache(tokens)
    for name, value in found.items():
        hook: str | None = name
        if name not in cache:
            assert not subject.causal, name
            hook = next(old and name.replace(new, old) for new, old in ELSEWHERE.items() if new in name)
        if hook is not None:
            expected = subject.site(name).read_bridge(cache[hook]).expand_as(value)
            # Another attention kernel rounds otherwise, in proportion to the largest values (130 in Fable).
            scale = max(1.0, float(expected.abs().max()))
            assert float((value - expected).abs().max()) <= 1e-5 * scale, name


@pytest.mark.filterwarnings("ignore")
def test_every_site_equals_the_bridge(any_subject: Subject) -> None:
    equals_the_bridge(any_subject, some_tokens(any_subject))


@pytest.mark.filterwarnings("ignore")
def test_every_site_of_real_models_equals_the_bridge(stories_model: Path) -> None:
    for subject in (load_model(stories_model), load_model("fable")):
        equals_the_bridge(subject, some_tokens(subject, rows=2, length=40))


def test_the_bridge_leaves_the_module_alone(any_subject: Subject) -> None:
    tokens = some_tokens(any_subject)
    before = any_subject.logits(tokens)
    names = [name for name, _ in any_subject.module.named_modules()]
    any_subject.bridge()
    assert torch.equal(any_subject.logits(tokens), before)
    assert [name for name, _ in any_subject.module.named_modules()] == names


def naive(module: Any, run: Callable[[], Any], side: str) -> Any:
    kept = []
    if side == "input":
        handle = module.register_forward_pre_hook(lambda _, args: kept.append(args[0]))
    else:
        handle = module.register_forward_hook(lambda _, __, out: kept.append(out))
    with torch.no_grad():
        run()
    handle.remove()
    return kept[0]


# As the modules themselves take their outputs apart.
FUSED = {
    "gpt2": ("transformer.h.1.attn.c_attn", lambda out: out.split(16, dim=2)),
    "gpt_neox": (
        "gpt_neox.layers.1.attention.query_key_value",
        lambda out: [part.flatten(2) for part in out.view(3, 9, 4, 12).chunk(3, dim=-1)],
    ),
}
SPLIT = {
    "llama": [f"model.layers.1.self_attn.{part}_proj" for part in "qkv"],
    "bert": [f"bert.encoder.layer.1.attention.self.{part}" for part in ("query", "key", "value")],
}


@pytest.mark.parametrize("architecture", ["gpt2", "gpt_neox", "llama", "bert"])
def test_queries_keys_values_are_bit_equal_to_the_modules_own_split(
    architecture: str, tmp_path: Path
) -> None:
    subject = load_model(save_tiny_model(tmp_path / "m", architecture))
    tokens = some_tokens(subject)

    def run() -> Any:
        return subject.module(tokens)

    if architecture in FUSED:
        path, split = FUSED[architecture]
        expected = split(naive(subject.module.get_submodule(path), run, "output"))
    else:
        expected = [naive(subject.module.get_submodule(path), run, "output") for path in SPLIT[architecture]]
    names = [f"blocks.1.attn.hook_{part}" for part in "qkv"]
    found = read_sites(subject, tokens, names)
    for name, value in zip(names, expected, strict=True):
        assert torch.equal(found[name], value), name


def test_every_whole_site_is_bit_equal_to_a_naive_hook(any_subject: Subject) -> None:
    tokens = some_tokens(any_subject)
    plain = [name for name, site in any_subject.sites.items() if site.part is None and not site.pattern]
    found = read_sites(any_subject, tokens, plain)
    for name in plain:
        site = any_subject.sites[name]
        value = naive(
            any_subject.module.get_submodule(site.module), lambda: any_subject.module(tokens), site.side
        )
        assert torch.equal(found[name], value.expand(3, -1, -1)), name


def test_sites_stand_in_forward_order(any_subject: Subject) -> None:
    from mechlab.activations.capture import reading

    seen: list[str] = []
    with reading(any_subject, list(any_subject.sites), lambda name, _: seen.append(name)) as run:
        run(some_tokens(any_subject))
    assert seen == list(any_subject.sites)


def raw_value(subject: Subject, name: str) -> Any:
    """What a hook gets at a site, with gradient."""
    site = subject.site(name)
    module = subject.module.get_submodule(site.module)
    kept: list[Any] = []
    if site.side == "input":
        handle = module.register_forward_pre_hook(lambda _, args: kept.append(args))
    else:
        handle = module.register_forward_hook(lambda _, __, out: kept.append(out))
    subject.module(some_tokens(subject))
    handle.remove()
    return kept[0]


def leaves(value: Any) -> list[Any]:
    return list(value) if isinstance(value, tuple) else [value]


def test_writing_what_was_read_changes_nothing_and_writing_more_changes_only_that(
    any_subject: Subject,
) -> None:
    generator = torch.Generator().manual_seed(0)
    for name in any_subject.sites:
        if not name.startswith("blocks.1") or not any_subject.site(name).editable:
            continue
        value = raw_value(any_subject, name)
        for head in [None, *range(any_subject.site(name).heads or 0)]:
            site = any_subject.site(name if head is None else f"{name}:{head}")
            old = site.read(value)
            assert old.shape == (3, 9, site.dim)
            same = site.write(value, old)
            assert type(same) is type(value)
            for a, b in zip(leaves(same), leaves(value), strict=True):
                assert a is b or torch.equal(a, b), site.name
            new = torch.randn(old.shape, generator=generator).requires_grad_()
            changed = site.write(value, new)
            assert torch.equal(site.read(changed), new)
            assert torch.equal(site.read(value), old), "out of place"
            untouched = site.write(changed, old)
            for a, b in zip(leaves(untouched), leaves(value), strict=True):
                assert a is b or torch.equal(a, b), site.name
            (gradient,) = torch.autograd.grad(leaves(changed)[0].sum(), new)
            assert torch.equal(gradient, torch.ones_like(new))


def test_heads_are_slices_of_the_whole(any_subject: Subject) -> None:
    tokens = some_tokens(any_subject)
    for part in "qkvz":
        name = f"blocks.0.attn.hook_{part}"
        site = any_subject.site(name)
        assert site.heads is not None
        names = [f"{name}:{head}" for head in range(site.heads)]
        found = read_sites(any_subject, tokens, [*names, name])
        assert torch.equal(torch.cat([found[each] for each in names], dim=-1), found[name])
        assert all(any_subject.site(each).dim == site.dim // site.heads for each in names)


def test_heads_that_are_not_there(tmp_path: Path) -> None:
    subject = load_model(save_tiny_model(tmp_path / "m", "llama"))
    assert not any(":" in name for name in subject.sites)
    with pytest.raises(MechlabError, match=r"attn\.hook_z has no head: 4 \(heads are 0 to 3\)"):
        subject.site("blocks.0.attn.hook_z:4")
    with pytest.raises(MechlabError, match=r"attn\.hook_k has no head: 2 \(heads are 0 to 1\)"):
        subject.site("blocks.0.attn.hook_k:2")
    with pytest.raises(MechlabError, match="head is not a number"):
        subject.site("blocks.0.attn.hook_z:-1")
    for name in ("blocks.0.hook_resid_pre:0", "blocks.0.attn.hook_pattern:0"):
        with pytest.raises(MechlabError, match="not divided by head"):
            subject.site(name)


def test_patterns_are_what_the_module_says_itself(any_subject: Subject) -> None:
    tokens = some_tokens(any_subject)
    names = [name for name, site in any_subject.sites.items() if site.pattern]
    found = read_sites(any_subject, tokens, names)
    module = copy.deepcopy(any_subject.module)  # it leaves hooks behind
    module.set_attn_implementation("eager")
    with torch.no_grad():
        expected = module(tokens, output_attentions=True, use_cache=False).attentions
    assert len(names) == len(expected) == 2
    for name, value in zip(names, expected, strict=True):
        assert found[name].shape == (3, 4, 9, 9)
        assert torch.equal(found[name], value)


def test_bidirectional_pattern_is_the_softmax_of_queries_and_keys(tmp_path: Path) -> None:
    subject = load_model(save_tiny_model(tmp_path / "m", "bert"))
    names = [f"blocks.0.attn.hook_{part}" for part in ("q", "k", "pattern")]
    found = read_sites(subject, some_tokens(subject), names)
    q, k = (found[name].view(3, 9, 4, 4).transpose(1, 2) for name in names[:2])
    torch.testing.assert_close(found[names[2]], (q @ k.mT / 2).softmax(-1), atol=1e-6, rtol=1e-6)


def test_patterns_cannot_be_written(any_subject: Subject) -> None:
    site = any_subject.site("blocks.0.attn.hook_pattern")
    assert not site.editable
    pattern = torch.ones(1, 4, 2, 2)
    with pytest.raises(MechlabError, match=r"site cannot be edited, an attention pattern: blocks\.0"):
        site.write((torch.ones(1, 2, 16), pattern), pattern)


def test_sites_of_the_bridge(tiny_model: Path) -> None:
    subject = load_model(tiny_model)
    with pytest.warns(UserWarning, match=r"site blocks\.0\.ln1\.hook_normalized is not in the table"):
        site = subject.site("blocks.0.ln1.hook_normalized")
    assert (site.side, site.layer, site.dim, site.heads, site.pattern) == ("bridge", 0, 16, None, False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        assert subject.site("blocks.0.ln1.hook_normalized") is site
    assert not site.editable
    with pytest.raises(MechlabError, match="only the TransformerLens bridge has it"):
        site.write(torch.ones(1, 2, 16), torch.ones(1, 2, 16))
    with pytest.warns(UserWarning, match="hook_attn_scores"):
        scores = subject.site("blocks.1.attn.hook_attn_scores")
    assert (scores.pattern, scores.heads, scores.layer) == (True, 4, 1)
    with pytest.warns(UserWarning, match=r"q\.hook_out"):
        head = subject.site("blocks.1.attn.q.hook_out:2")
    assert (head.dim, head.head) == (4, 2)
    assert "blocks.1.attn.q.hook_out" not in subject.sites


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("blocks.0.ln1.hook_normalised", r"no site: .*did you mean blocks\.0\.ln1\.hook_normalized"),
        ("blocks.1.hook_resid_pst", r"no site: .*did you mean blocks\.1\.hook_resid_post"),
        ("blocks.0.attn.hook_result", "bridge keeps this hook closed"),
        ("embed.hook_in", "no value per position"),
    ],
)
def test_sites_that_nobody_has(tiny_model: Path, name: str, message: str) -> None:
    with pytest.raises(MechlabError, match=message) as caught:
        load_model(tiny_model).site(name)
    assert "\n" not in str(caught.value)
