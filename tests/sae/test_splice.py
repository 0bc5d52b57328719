"""Dictionaries inside the running model: identities, ablation, clamping, gradients, the bridge."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from spliced import (
    IN,
    KINDS,
    LAYERS_IN,
    LAYERS_OUT,
    OUT,
    RESID,
    clt_at,
    filled,
    hooks,
    metric,
    sae_at,
    tokens_of,
    transcoder_at,
)
from torch import Tensor

from mechlab.activations.capture import read_sites
from mechlab.errors import MechlabError
from mechlab.interventions.edit import editing
from mechlab.models.subject import Subject, load_model
from mechlab.sae.codes import Codes, scatter
from mechlab.sae.registry import ARCHITECTURES
from mechlab.sae.relu import Relu, ReluConfig
from mechlab.sae.splice import At, splicing
from tiny import save_tiny_model


@pytest.fixture(scope="module", params=["gpt2", "gpt_neox", "llama", "fable"])
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    if request.param == "fable":
        return load_model("fable")
    return load_model(save_tiny_model(tmp_path_factory.mktemp("m") / request.param, request.param))


@pytest.fixture(scope="module")
def tiny(tiny_model: Path) -> Subject:
    return load_model(tiny_model)


@pytest.mark.parametrize("kind", KINDS)
def test_codes_and_error_together_change_no_logit(subject: Subject, kind: str) -> None:
    tokens, at = tokens_of(subject), KINDS[kind](subject)
    clean = subject.logits(tokens)
    with splicing(subject, at) as run:
        torch.testing.assert_close(subject.logits(tokens), clean, atol=3e-4, rtol=1e-4)
    x = torch.cat(list(read_sites(subject, tokens, list(at.inputs)).values()), dim=2).flatten(0, 1)
    want = scatter(at.sae.encode(x), 40).view(2, 7, 40)
    torch.testing.assert_close(run.dense(run.codes), want, atol=1e-4, rtol=1e-4)
    y = read_sites(subject, tokens, list(at.outputs))
    made = at.sae.decode(at.sae.encode(x), x).view(2, 7, -1).split(list(at.sae.out_sizes), dim=2)
    for site, part in zip(at.outputs, made, strict=True):
        torch.testing.assert_close(run.error[site], y[site] - part, atol=1e-4, rtol=1e-4)
    with splicing(subject, at, error=False):
        assert not torch.allclose(subject.logits(tokens), clean, atol=1e-2)
    assert hooks(subject.module) == 0


@pytest.mark.parametrize("error", [True, False])
def test_a_transcoder_replaces_the_mlp_by_its_own_output(subject: Subject, error: bool) -> None:
    tokens, at = tokens_of(subject), transcoder_at(subject)
    x = read_sites(subject, tokens, [IN])[IN]
    made = at.sae(x.flatten(0, 1)).view(2, 7, -1)
    y = read_sites(subject, tokens, [OUT])[OUT]
    with editing(subject, OUT, lambda value: made + (y - made if error else 0)):
        want = subject.logits(tokens)
    with splicing(subject, at, error=error):
        torch.testing.assert_close(subject.logits(tokens), want, atol=1e-4, rtol=1e-4)


def test_a_clt_reads_what_the_spliced_model_gives_it(tiny: Subject) -> None:
    """Layer by layer by definition: the second layer's input is that behind the first's replacement."""
    tokens, at = tokens_of(tiny), clt_at(tiny)
    sae, d = at.sae, 16
    x0 = read_sites(tiny, tokens, [LAYERS_IN[0]])[LAYERS_IN[0]].flatten(0, 1)
    zeros = torch.zeros_like(x0)
    # With the other layer's input at zero its codes are those of zero: the layers are apart.
    first = sae(torch.cat([x0, zeros], dim=1))[:, :d].view(2, 7, d)
    with editing(tiny, LAYERS_OUT[0], lambda _: first):
        x1 = read_sites(tiny, tokens, [IN])[IN].flatten(0, 1)
        second = sae(torch.cat([x0, x1], dim=1))[:, d:].view(2, 7, d)
        with editing(tiny, OUT, lambda _: second):
            want = tiny.logits(tokens)
    with splicing(tiny, at, error=False) as run:
        torch.testing.assert_close(tiny.logits(tokens), want, atol=1e-4, rtol=1e-4)
    codes = sae.encode(torch.cat([x0, x1], dim=1))
    torch.testing.assert_close(run.dense(run.codes).flatten(0, 1), scatter(codes, 40), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("error", [True, False])
def test_ablating_takes_away_what_the_latent_writes(tiny: Subject, kind: str, error: bool) -> None:
    tokens, at = tokens_of(tiny), KINDS[kind](tiny)
    with splicing(tiny, at, error=error) as run:
        before = tiny.logits(tokens)
        dense = run.dense(run.codes)
    # A latent of the last layer, so that a cross-layer transcoder writes it at one place.
    latent = 20 + int(dense[..., 20:].flatten(0, 1).sum(0).argmax())
    strength = dense[..., latent]
    with (
        splicing(tiny, at, error=error),
        editing(tiny, at.outputs[-1], lambda y: y - strength[..., None] * at.sae.W_dec[latent, -16:]),
    ):
        want = tiny.logits(tokens)
    with splicing(tiny, at, error=error, ablate=[latent]) as run:
        got = tiny.logits(tokens)
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(got, before, atol=1e-2)
    # What is reported is what was there before the change.
    torch.testing.assert_close(run.dense(run.codes), dense, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_clamping_sets_an_activation_everywhere(tiny: Subject, kind: str) -> None:
    tokens, at = tokens_of(tiny), KINDS[kind](tiny)
    with splicing(tiny, at) as run:
        tiny.logits(tokens)
        dense = run.dense(run.codes)
    latent = 39
    row = at.sae.W_dec[latent, -16:]
    delta = (2.5 - dense[..., latent])[..., None] * row
    with splicing(tiny, at), editing(tiny, at.outputs[-1], lambda y: y + delta):
        want = tiny.logits(tokens)
    with splicing(tiny, at, clamp={latent: 2.5}):
        torch.testing.assert_close(tiny.logits(tokens), want, atol=1e-4, rtol=1e-4)
    with splicing(tiny, at, ablate=[latent]):
        ablated = tiny.logits(tokens)
    with splicing(tiny, at, clamp={latent: 0.0}):
        torch.testing.assert_close(tiny.logits(tokens), ablated, atol=1e-5, rtol=1e-5)


def test_errors_of_another_run_may_be_given(tiny: Subject) -> None:
    tokens, at = tokens_of(tiny), sae_at(tiny)
    with splicing(tiny, at) as clean:
        want = tiny.logits(tokens)
    upstream = torch.zeros(16)
    upstream[3] = 5.0
    # An edit before the site reaches the model through the codes alone.
    with splicing(tiny, at, error=clean.error), editing(tiny, "blocks.0.hook_resid_pre", lambda x: x):
        torch.testing.assert_close(tiny.logits(tokens), want, atol=1e-5, rtol=1e-5)
    with (
        editing(tiny, "blocks.0.hook_resid_pre", lambda x: x + upstream),
        splicing(tiny, at, error=clean.error) as run,
    ):
        got = tiny.logits(tokens)
    made = at.sae.decode(run.codes).view(2, 7, 16) + clean.error[RESID]
    with editing(tiny, RESID, lambda _: made):
        torch.testing.assert_close(got, tiny.logits(tokens), atol=1e-5, rtol=1e-5)


def test_only_the_positions_asked_for_are_replaced(tiny: Subject) -> None:
    tokens, at = tokens_of(tiny), sae_at(tiny)
    mask = tokens != tiny.bos
    x = read_sites(tiny, tokens, [RESID])[RESID]
    made = torch.where(mask[..., None], at.sae(x.flatten(0, 1)).view_as(x), x)
    with editing(tiny, RESID, lambda _: made):
        want = tiny.logits(tokens)
    with splicing(tiny, at, error=False, positions=mask):
        torch.testing.assert_close(tiny.logits(tokens), want, atol=1e-5, rtol=1e-5)
    bridge = tiny.bridge()
    with torch.no_grad(), splicing(bridge, at, error=False, positions=mask):
        torch.testing.assert_close(bridge(tokens), want, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", [*KINDS, "heads"])
def test_the_bridge_gives_the_same(tiny: Subject, kind: str) -> None:
    tokens = tokens_of(tiny)
    at = sae_at(tiny, "blocks.1.attn.hook_z") if kind == "heads" else KINDS[kind](tiny)
    bridge = tiny.bridge()
    with torch.no_grad():
        bridge(tokens)  # transformers leaves hooks of its own at the first forward
    before = hooks(bridge)
    for options in ({}, {"error": False}, {"ablate": [39, 25, 3]}, {"clamp": {30: 1.5}}):
        with splicing(tiny, at, **options) as ours:
            want = tiny.logits(tokens)
        with torch.no_grad(), splicing(bridge, at, **options) as theirs:
            torch.testing.assert_close(bridge(tokens), want, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(theirs.dense(theirs.codes), ours.dense(ours.codes), atol=1e-4, rtol=1e-4)
    with splicing(bridge, at) as theirs:
        bridge(tokens)[:, -1].log_softmax(-1)[:, 5].sum().backward()
    with splicing(tiny, at) as ours:
        metric(tiny, tokens).backward()
    torch.testing.assert_close(theirs.dense(theirs.gradient), ours.dense(ours.gradient), atol=1e-4, rtol=1e-3)
    with pytest.raises(KeyboardInterrupt), splicing(bridge, at):
        raise KeyboardInterrupt
    assert hooks(bridge) == before
    with torch.no_grad():
        torch.testing.assert_close(bridge(tokens), tiny.logits(tokens), atol=1e-4, rtol=1e-4)


def test_generation_with_a_cache_passes_through_the_dictionary(tiny: Subject) -> None:
    tokens, at = tokens_of(tiny)[:1], transcoder_at(tiny)
    with splicing(tiny, at, error=False):
        cached = tiny.module.generate(tokens, max_new_tokens=6, do_sample=False, use_cache=True)
        plain = tiny.module.generate(tokens, max_new_tokens=6, do_sample=False, use_cache=False)
    assert torch.equal(cached, plain)


def test_every_architecture_is_the_identity_with_its_error(tiny: Subject) -> None:
    tokens = tokens_of(tiny)
    clean = tiny.logits(tokens)
    for name, kind in ARCHITECTURES.items():
        if name == "clt":
            continue
        sae = kind(kind.Config(d_sae=32), (16,))
        sae.initialise(torch.zeros(16), torch.Generator().manual_seed(0))
        at = At(sae.finish().requires_grad_(False).eval(), (RESID,), (RESID,))
        with splicing(tiny, at):
            torch.testing.assert_close(tiny.logits(tokens), clean, atol=3e-4, rtol=1e-4)
        with splicing(tiny, at) as run:
            metric(tiny, tokens).backward()
        gradient, codes = run.gradient, run.codes
        assert bool((gradient.values[codes.values == 0] == 0).all()), name


def test_half_precision_models_keep_their_dtype(tiny_model: Path) -> None:
    subject = load_model(tiny_model, dtype="bfloat16")
    tokens, at = tokens_of(subject), sae_at(subject)
    clean = subject.logits(tokens)
    with splicing(subject, at) as run:
        got = subject.logits(tokens)
    assert got.dtype == torch.bfloat16
    assert run.codes.values.dtype == torch.float32
    torch.testing.assert_close(got.float(), clean.float(), atol=0.1, rtol=0.1)


def test_hooks_go_away_after_an_exception(tiny: Subject) -> None:
    tokens, at = tokens_of(tiny), clt_at(tiny)
    with pytest.raises(RuntimeError, match="stop"), splicing(tiny, at):
        raise RuntimeError("stop")
    assert hooks(tiny.module) == 0
    # A forward that broke off half way leaves nothing behind for the next.
    clean = tiny.logits(tokens)
    with splicing(tiny, at):
        with pytest.raises(RuntimeError, match="stop"), editing(tiny, LAYERS_OUT[0], _stop):
            tiny.logits(tokens)
        torch.testing.assert_close(tiny.logits(tokens), clean, atol=3e-4, rtol=1e-4)


def _stop(value: Tensor) -> Tensor:
    raise RuntimeError("stop")


def test_refusals(tiny: Subject) -> None:
    tokens, at = tokens_of(tiny), sae_at(tiny)
    for options, said in (
        ({"ablate": [40]}, r"dictionary has no latent: 40 \(latents are 0 to 39"),
        ({"clamp": {-1: 1.0}}, "dictionary has no latent: -1"),
        ({"clamp": {3: 1.0}, "ablate": [3]}, "latent is both ablated and clamped: 3"),
        ({"error": {"elsewhere": torch.zeros(1, 7, 16)}}, "errors belong to other sites: elsewhere"),
    ):
        with pytest.raises(MechlabError, match=said), splicing(tiny, at, **options):
            pass
    with (
        pytest.raises(MechlabError, match=r"has no site: blocks.9"),
        splicing(tiny, At(at.sae, ("blocks.9.hook_resid_post",), ("blocks.9.hook_resid_post",))),
    ):
        pass
    wide = At(at.sae, ("blocks.0.mlp.hook_post",), ("blocks.0.mlp.hook_post",))
    with (
        pytest.raises(MechlabError, match=r"another size than blocks.0.mlp.hook_post: 16 \(the site has 64"),
        splicing(tiny, wide),
    ):
        pass
    with (
        pytest.raises(MechlabError, match=r"bridge has no hook: blocks.9"),
        splicing(tiny.bridge(), At(at.sae, ("blocks.9.x",), ("blocks.9.x",))),
    ):
        pass
    sites = ("blocks.0.hook_resid_post", "blocks.1.hook_resid_post")
    crosscoder = At(filled(Relu(ReluConfig(d_sae=8), (16, 16))), sites, sites)
    with (
        pytest.raises(MechlabError, match="writes a site before it has read all of its inputs"),
        splicing(tiny, crosscoder),
    ):
        tiny.logits(tokens)
    with splicing(tiny, at) as run:
        with pytest.raises(MechlabError, match="no forward has passed"):
            _ = run.codes
        tiny.logits(tokens)
        with pytest.raises(MechlabError, match="codes have no gradient"):
            _ = run.gradient
    assert isinstance(run.codes, Codes)
