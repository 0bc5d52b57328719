"""Questions to a live model against the same by plain hooks and formulas."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from dashboards.live_parts import TEXT, codes_of, resid, run_at
from mechlab.activations.harvest import harvest
from mechlab.activations.live import live as source
from mechlab.dashboards.live import ActivationsRequest, Change, Live, SteerRequest, open_live
from mechlab.data.corpus import open_corpus
from mechlab.errors import MechlabError
from mechlab.features.continuations import continuations
from mechlab.features.sources import index_dictionary, model_rows
from mechlab.features.vocabulary import vocabulary_of
from mechlab.models.subject import load_model
from mechlab.sae.abstopk import AbsTopKConfig
from mechlab.sae.codes import scatter
from mechlab.sae.dictionary import train_sae
from mechlab.sae.topk import TopKConfig

TEXTS = (
    TEXT,
    "The cat",
    "red red red red red red",
    "Why? The dog ran to the town and the town was far away.",
)


def strongest(live: Live, text: str = TEXT) -> int:
    """The feature that is most active on a text."""
    return int(codes_of(live, resid(live, text)[0]).sum(0).argmax())


@pytest.mark.parametrize("text", TEXTS)
def test_activations_are_those_of_the_formula(live, text):
    codes = codes_of(live, resid(live, text)[0]).numpy()
    asked = (*np.argsort(-codes.sum(0))[:3].tolist(), int(np.argmin(codes.sum(0))))
    found = live.activations(ActivationsRequest(text=text, features=asked))
    subject = live.subject
    ids = subject.tokenizer.encode(text, add_special_tokens=False)
    assert found["pieces"] == [subject.token_text(token) for token in ids]
    for feature in asked:
        np.testing.assert_allclose(found["features"][str(feature)], codes[:, feature], rtol=1e-3, atol=1e-4)
    for row, top in zip(codes, found["top"], strict=True):
        order = np.argsort(-row)[: len(top)]
        assert [feature for feature, _ in top] == order.tolist()
        np.testing.assert_allclose([value for _, value in top], row[order], rtol=1e-3)
        assert len(top) == min(8, int((row > 0).sum()))


def test_words_that_the_model_does_not_know_are_counted(live):
    assert live.activations(ActivationsRequest(text=TEXT))["unknown"] > 0
    assert live.activations(ActivationsRequest(text="The cat was red."))["unknown"] == 0


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_strength_zero_and_no_change_are_no_ops_to_the_bit(live, temperature):
    for edits in ((), (Change(feature=strongest(live), mode="add", strength=0.0),)):
        found = live.steer(SteerRequest(text=TEXT, edits=edits, temperature=temperature, seed=3))
        assert found["kl"] == 0
        assert set(found["kl_pieces"]) == {0}
        assert all(each["before"] == each["after"] for each in found["next"])
        assert found["continuation"]["before"] == found["continuation"]["after"]


def naive(live: Live, mode: str, feature: int, strength: float):
    """What is added to the value at each position, from the codes there by formula."""
    amount, row = strength * float(live.maximum[feature]), live.dictionary.sae.W_dec[feature]

    def change(x):
        now = codes_of(live, x)[:, feature, None]
        return {"add": amount, "ablate": -now, "clamp": amount - now}[mode] * row

    return change


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize(("mode", "strength"), [("ablate", 0.0), ("add", 1.5), ("add", -2.0), ("clamp", 1.0)])
def test_changes_are_what_plain_hooks_do(live, text, mode, strength):
    feature = strongest(live, text)
    before = resid(live, text)[1]
    after = resid(live, text, naive(live, mode, feature, strength))[1]
    edit = Change(feature=feature, mode=mode, strength=strength)
    found = live.steer(SteerRequest(text=text, edits=(edit,), new_tokens=0))
    kl = (before.exp() * (before - after)).sum(-1)[1:]
    np.testing.assert_allclose(found["kl_pieces"], kl, rtol=1e-2, atol=2e-6)
    assert found["kl"] == pytest.approx(float(kl.mean()), rel=1e-2)
    assert found["kl"] > 1e-5
    probable = {each["text"]: each for each in found["next"]}
    for name, log in (("before", before[-1]), ("after", after[-1])):
        for token in log.topk(8).indices.tolist():
            shown = probable[live.subject.token_text(token)][name]
            assert shown == pytest.approx(float(log[token].exp()), rel=1e-2, abs=1e-6)


def test_several_changes_act_together(live):
    """Ablating one and adding another: the dictionary reads what the model made, not what was added."""
    codes = codes_of(live, resid(live, TEXT)[0])
    first, second = codes.sum(0).topk(2).indices.tolist()
    edits = (Change(feature=first, mode="add", strength=1.0), Change(feature=second, mode="ablate"))
    found = live.steer(SteerRequest(text=TEXT, edits=edits, new_tokens=0))
    parts = [naive(live, "add", first, 1.0), naive(live, "ablate", second, 0.0)]
    before, after = resid(live, TEXT)[1], resid(live, TEXT, lambda x: sum(part(x) for part in parts))[1]
    kl = (before.exp() * (before - after)).sum(-1)[1:]
    np.testing.assert_allclose(found["kl_pieces"], kl, rtol=1e-2, atol=2e-6)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_continuations_are_those_of_one_call(live, temperature):
    """Token by token is the same as all at once, and the noise is the same on both sides."""
    asked = SteerRequest(text=TEXT, new_tokens=12, temperature=temperature, seed=5)
    noise = torch.Generator().manual_seed(5)
    tokens = live.subject.tokens(TEXT)[None]
    want = continuations(live.subject, tokens, 12, temperature=temperature, generator=noise)
    words = vocabulary_of(live.subject)
    assert live.steer(asked)["continuation"]["before"] == words.string(want[0].numpy())


def test_steering_changes_what_is_said(live):
    edit = Change(feature=strongest(live), mode="add", strength=6.0)
    said = live.steer(SteerRequest(text="The cat", edits=(edit,)))["continuation"]
    assert said["before"] != said["after"]


def test_bos_is_neither_edited_nor_counted(live):
    """A change at BOS would move the values of all later tokens at the edited site's readers."""
    edit = Change(feature=strongest(live), mode="add", strength=3.0)
    tokens = live.subject.tokens("The cat")
    with torch.no_grad(), live._changed((edit,)):
        edited = live.subject.logits(tokens[None])[0]
    clean = live.subject.logits(tokens[None])[0]
    assert torch.equal(edited[0], clean[0])
    assert not torch.allclose(edited[1], clean[1])
    assert len(live.steer(SteerRequest(text="The cat", edits=(edit,)))["kl_pieces"]) == 2


@pytest.mark.parametrize("calls", [1, 5, 23, 30])
def test_work_can_be_ended_and_leaves_no_hooks(live, calls):
    """Before any change is open, and while one is."""
    asked = SteerRequest(text=TEXT, edits=(Change(feature=1, mode="ablate"),), new_tokens=20)
    left = iter(range(calls))

    def check() -> None:
        if next(left, None) is None:
            raise TimeoutError

    with pytest.raises(TimeoutError):
        live.steer(asked, check)
    assert not [hook for module in live.subject.module.modules() for hook in module._forward_hooks]
    assert live.steer(SteerRequest(text=TEXT))["kl"] == 0


def test_what_cannot_be_is_refused_by_name(live):
    unused = int(np.flatnonzero(live.maximum == 0)[0]) if (live.maximum == 0).any() else None
    cases = [
        ({"text": TEXT, "edits": (Change(feature=96, mode="ablate"),)}, "feature does not exist: 96"),
        (
            {"text": TEXT, "edits": (Change(feature=1, mode="ablate"), Change(feature=1, mode="ablate"))},
            "twice",
        ),
        (
            {"text": TEXT, "edits": (Change(feature=1, mode="ablate", strength=2.0),)},
            "ablation has no strength",
        ),
        ({"text": "cat " * 128, "new_tokens": 0}, "text is too long: 128 tokens (at most 127)"),
        ({"text": "cat " * 120, "new_tokens": 20}, "at most 107 before 20 new ones"),
    ]
    if unused is not None:
        cases.append(
            ({"text": TEXT, "edits": (Change(feature=unused, mode="add", strength=1.0),)}, "never active")
        )
    for fields, says in cases:
        with pytest.raises(MechlabError) as refused:
            live.steer(SteerRequest(**fields))
        assert says in str(refused.value)
    with pytest.raises(MechlabError, match="text has no tokens"):
        live.activations(ActivationsRequest(text="  "))
    with pytest.raises(MechlabError, match="feature does not exist"):
        live.activations(ActivationsRequest(text=TEXT, features=(4000,)))


@pytest.mark.parametrize(
    "fields",
    [
        {"text": ""},
        {"text": "x" * 4001},
        {"text": 3},
        {"text": "x", "seed": -1},
        {"text": "x", "seed": 0.5},
        {"text": "x", "seed": True},
        {"text": "x", "new_tokens": 65},
        {"text": "x", "temperature": float("nan")},
        {"text": "x", "temperature": "1"},
        {"text": "x", "extra": 1},
        {"text": "x", "edits": [{"feature": 1, "mode": "eval"}]},
        {"text": "x", "edits": [{"feature": -1, "mode": "ablate"}]},
        {"text": "x", "edits": [{"feature": 1, "mode": "add", "strength": float("inf")}]},
        {"text": "x", "edits": [{"feature": 1, "mode": "add", "strength": 101.0}]},
        {"text": "x", "edits": [{"feature": 1, "mode": "add", "strenght": 1.0}]},
    ],
)
def test_questions_hold_nothing_but_what_they_may(fields):
    with pytest.raises(ValidationError):
        SteerRequest.model_validate(fields)


def test_what_does_not_belong_together_is_refused(live, tmp_path_factory):
    with pytest.raises(MechlabError, match="another model"):
        live_other = load_model("compiled/reverse")
        Live(live_other, live.dictionary, live.maximum)
    with pytest.raises(MechlabError, match="index has other features"):
        replace(live, maximum=live.maximum[:5])


def test_a_dictionary_that_writes_several_sites_is_refused(live, tmp_path):
    sites = ("blocks.1.hook_resid_post", "blocks.2.hook_resid_post")
    config = TopKConfig(site=",".join(sites), d_sae=32, k=2, tokens=512, batch_size=256)
    made = train_sae(source(live.subject, open_corpus("fable"), list(sites)), tmp_path / "sae", config)
    with pytest.raises(MechlabError) as refused:
        Live(live.subject, made, np.ones(32, np.float32))
    assert str(refused.value) == (
        "dictionary writes several sites, which cannot be changed live: "
        "blocks.1.hook_resid_post, blocks.2.hook_resid_post (mechlab dashboard build shows it)"
    )


def test_latents_of_two_signs_are_two_features_each(live, tmp_path, tmp_path_factory):
    """Feature 32 + f is latent f where it is negative: shown, taken away and added as such."""
    subject, site = live.subject, "blocks.2.hook_resid_post"
    run, corpus = run_at(tmp_path / "run", tmp_path_factory.getbasetemp()), open_corpus("fable")
    config = AbsTopKConfig(site=site, d_sae=32, k=4, tokens=1024, batch_size=256)
    made = train_sae(source(subject, corpus, [site]), run / "sae", config, overwrite=True)
    rows = model_rows(subject, corpus, tokens=1000)
    index_dictionary(made, rows, run / "features", signs=True, overwrite=True)
    two = open_live(run)
    x, before = resid(live, TEXT)
    codes = scatter(made.sae.encode(x), 32).detach()
    latent = int(codes.min(dim=0).values.argmin())
    assert float(codes[:, latent].min()) < 0
    feature = 32 + latent
    found = two.activations(ActivationsRequest(text=TEXT, features=(feature, latent)))
    shown = [found["features"][str(each)] for each in (feature, latent)]
    np.testing.assert_allclose(
        shown, [(-codes).relu()[:, latent], codes.relu()[:, latent]], rtol=1e-3, atol=1e-4
    )
    row, most = made.sae.W_dec.detach()[latent], float(two.maximum[feature])
    ways = {"ablate": lambda now: -now, "add": lambda _: 2 * most, "clamp": lambda now: 2 * most - now}
    for mode, way in ways.items():

        def change(x, way=way):
            now = (-scatter(made.sae.encode(x), 32)).relu()[:, latent, None]
            return way(now) * -row

        after = resid(live, TEXT, change)[1]
        edit = Change(feature=feature, mode=mode, strength=0.0 if mode == "ablate" else 2.0)
        kl = two.steer(SteerRequest(text=TEXT, edits=(edit,), new_tokens=2))["kl_pieces"]
        want = (before.exp() * (before - after)).sum(-1)[1:]
        np.testing.assert_allclose(kl, want, rtol=1e-2, atol=2e-6)


@pytest.mark.slow
def test_characters_in_several_tokens_are_one_piece(stories_model, stories_data, tmp_path):
    subject = load_model(stories_model)
    site = "blocks.2.hook_resid_post"
    store = harvest(subject, open_corpus(str(stories_data)), site, tmp_path / "store", tokens=4_000)
    dictionary = train_sae(store, tmp_path / "sae", TopKConfig(site=site, d_sae=64, k=4, tokens=4096))
    live = Live(subject, dictionary, np.ones(64, np.float32))
    found = live.activations(ActivationsRequest(text="a fox 🦊 ran", features=(3,)))
    assert "🦊" in found["pieces"]
    assert "".join(found["pieces"]).strip() == "a fox 🦊 ran"
    assert len(found["pieces"]) == len(found["top"]) == len(found["features"]["3"])
    steered = live.steer(SteerRequest(text="a fox 🦊 ran", new_tokens=3))
    assert len(steered["kl_pieces"]) == len(found["pieces"])
