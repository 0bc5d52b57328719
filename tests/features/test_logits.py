"""Direct effects against the model itself: its final norm's scale frozen, a direction added."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from mechlab.activations.capture import read_sites
from mechlab.errors import MechlabError
from mechlab.features.logits import dictionary_directions, logit_effects, stream_directions
from mechlab.features.vocabulary import vocabulary_of
from mechlab.interventions.edit import editing
from mechlab.models.subject import Subject, load_model
from mechlab.models.weights import read_weights
from mechlab.sae.clt import Clt, CltConfig
from mechlab.sae.splice import At
from mechlab.sae.topk import TopK, TopKConfig
from tiny import TINY, save_tiny_model


@pytest.fixture(scope="module", params=["gpt2", "llama", "gpt_neox"])
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    assert request.param in TINY
    path: Path = tmp_path_factory.mktemp("model") / request.param
    return load_model(save_tiny_model(path, request.param))


def directions(n: int, d: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(0))


def naive(subject: Subject, v: Tensor) -> Tensor:
    """Logits of the stream with v added, less those without, the norm's scale being the stream's."""
    weights = read_weights(subject.module)
    norm = weights.final_norm
    rows = []
    for each in v:
        centred = each - each.mean() if norm.centred else each
        logits = (
            weights.unembed((centred * norm.weight)[None])[0] - weights.unembed(torch.zeros(1, len(each)))[0]
        )
        rows.append(logits - logits.mean())
    return torch.stack(rows)


def test_effects_are_those_of_the_models_own_unembedding(subject: Subject) -> None:
    v = directions(7, 16)
    effect = naive(subject, v)
    found = logit_effects(subject, v, top=5)
    order = effect.argsort(dim=1, descending=True)
    assert torch.equal(found.promoted, order[:, :5])
    assert torch.equal(found.suppressed, order.flip(1)[:, :5])
    torch.testing.assert_close(found.promoted_value, effect.gather(1, order[:, :5]), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.suppressed_value, effect.gather(1, order.flip(1)[:, :5]))
    unit = (effect - effect.mean(1, keepdim=True)) / effect.std(1, keepdim=True, correction=0)
    torch.testing.assert_close(found.deviation, effect.std(1, correction=0))
    torch.testing.assert_close(found.skew, (unit**3).mean(1), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.kurtosis, (unit**4).mean(1), atol=1e-4, rtol=1e-4)
    vocabulary = vocabulary_of(subject)
    assert found.words(0, vocabulary) == tuple(vocabulary[int(token)] for token in order[0, :5])
    assert found.words(0, vocabulary, suppressed=True)[0] == vocabulary[int(order[0, -1])]


def test_a_small_step_of_the_real_model_goes_where_the_effect_says(subject: Subject) -> None:
    """At the last layer's output nothing but norm and unembedding follows."""
    tokens = subject.tokens("the cat sat on a mat")[None]
    site = "blocks.1.hook_resid_post"
    v = directions(1, 16)[0]
    x = read_sites(subject, tokens, [site])[site][0, -1]
    norm = read_weights(subject.module).final_norm
    # A step across the stream leaves the scale alone to first order.
    base = x - x.mean() if norm.centred else x
    flat = v - v.mean() if norm.centred else v
    v = flat - base * (flat @ base) / (base @ base)
    step = 1e-2
    with editing(subject, site, lambda value: value + step * v):
        moved = subject.logits(tokens)[0, -1]
    change = (moved - subject.logits(tokens)[0, -1]) / step
    scale = float(norm.scale(x[None, None])[1])
    effect = naive(subject, v[None])[0] * scale
    torch.testing.assert_close(change - change.mean(), effect, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("site", ["blocks.1.mlp.hook_post", "blocks.0.attn.hook_z", "blocks.1.attn.hook_z:2"])
def test_what_sites_write_is_what_the_model_makes_of_them(subject: Subject, site: str) -> None:
    tokens = subject.tokens("the cat sat")[None]
    v = directions(3, subject.site(site).dim)
    out = f"blocks.{site.split('.')[1]}.{'hook_mlp_out' if 'mlp' in site else 'hook_attn_out'}"
    found = stream_directions(subject, v, site)
    before = read_sites(subject, tokens, [out])[out]
    for number, each in enumerate(v):
        with editing(subject, site, lambda value, each=each: value + each):
            after = read_sites(subject, tokens, [out])[out]
        torch.testing.assert_close((after - before)[0, -1], found[number], atol=1e-5, rtol=1e-4)


def test_directions_of_dictionaries(subject: Subject) -> None:
    generator = torch.Generator().manual_seed(0)
    site = "blocks.0.attn.hook_z"
    sae = TopK(TopKConfig(d_sae=9, k=2), 16)
    sae.initialise(torch.zeros(16), generator)
    own = stream_directions(subject, sae.W_dec, site)
    found = dictionary_directions(subject, At(sae, (site,), (site,)), signs=True)
    torch.testing.assert_close(found, torch.cat([own, -own]))
    # A cross-layer transcoder adds to the stream at every output.
    ins, outs = [[f"blocks.{layer}.{name}" for layer in (0, 1)] for name in ("mlp.hook_in", "hook_mlp_out")]
    clt = Clt(CltConfig(site=",".join(ins), target=",".join(outs), d_sae=6, k=2), (16, 16), (16, 16))
    clt.initialise(torch.zeros(32), generator)
    both = dictionary_directions(subject, At(clt, tuple(ins), tuple(outs)))
    torch.testing.assert_close(both, clt.W_dec[:, :16] + clt.W_dec[:, 16:])
    one = dictionary_directions(subject, At(clt, tuple(ins), tuple(outs)), site=outs[1])
    torch.testing.assert_close(one, clt.W_dec[:, 16:])
    # A crosscoder writes the same stream twice.
    places = ("blocks.0.hook_resid_post", "blocks.1.hook_resid_post")
    cross = TopK(TopKConfig(site=",".join(places), d_sae=6, k=2), (16, 16))
    with pytest.raises(MechlabError, match=r"several places of one stream.*name one: site="):
        dictionary_directions(subject, At(cross, places, places))
    with pytest.raises(MechlabError, match="does not write at the site"):
        dictionary_directions(subject, At(cross, places, places), site=site)


def test_what_is_refused(subject: Subject) -> None:
    with pytest.raises(MechlabError, match=r"does not write to the residual stream.*blocks.0.attn.hook_q"):
        stream_directions(subject, torch.ones(1, 16), "blocks.0.attn.hook_q")
    with pytest.raises(MechlabError, match=r"another size than blocks.0.hook_mlp_out: 3"):
        stream_directions(subject, torch.ones(1, 3), "blocks.0.hook_mlp_out")
    with pytest.raises(MechlabError, match=r"not in the residual stream.*stream_directions"):
        logit_effects(subject, torch.ones(1, 3))
    with pytest.raises(MechlabError, match="top is out of range"):
        logit_effects(subject, torch.ones(1, 16), top=1000)


def test_a_direction_made_for_a_token_promotes_it() -> None:
    fable = load_model("fable")
    unembed = fable.module.get_output_embeddings().weight.detach()
    found = logit_effects(fable, unembed[[100, 500]] - unembed.mean(0), top=3)
    assert found.promoted[:, 0].tolist() == [100, 500]
    assert bool((found.kurtosis > 3).all())
