"""Loading models, their sites, fingerprints and BOS."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from mechlab.activations.capture import activations
from mechlab.errors import MechlabError
from mechlab.models.subject import Subject, load_model, resolve_device
from tiny import TINY, save_tiny_model, save_tokenizer

TEXTS = ["the cat sat on a mat .", "a red dog ran"]


@pytest.fixture(scope="session", params=sorted(TINY))
def any_subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return load_model(save_tiny_model(tmp_path_factory.mktemp(request.param) / "m", request.param))


def bridge_values(subject: Subject, text: str) -> dict[str, torch.Tensor]:
    bridge = subject.bridge()
    _, cache = bridge.run_with_cache(subject.tokens(text)[None])
    return dict(cache.items())


@pytest.mark.filterwarnings("ignore")
def test_every_site_equals_the_bridge(any_subject: Subject) -> None:
    subject = any_subject
    found = activations(subject, TEXTS, list(subject.sites))
    for i, text in enumerate(TEXTS):
        length = len(subject.tokens(text))
        cache = bridge_values(subject, text)
        for name, values in found.items():
            torch.testing.assert_close(
                values[i : i + 1, :length], cache[name], atol=1e-5, rtol=1e-4, msg=name
            )
            assert not values[i, length:].any()


def test_the_bridge_leaves_the_module_alone(any_subject: Subject) -> None:
    tokens = any_subject.tokens(TEXTS[0])[None]
    before = any_subject.logits(tokens)
    names = [name for name, _ in any_subject.module.named_modules()]
    any_subject.bridge()
    assert torch.equal(any_subject.logits(tokens), before)
    assert [name for name, _ in any_subject.module.named_modules()] == names


def test_real_model_with_grouped_query_attention_equals_the_bridge(stories_model: Path) -> None:
    subject = load_model(stories_model)
    text = "Once upon a time, there was a little girl named Lily."
    found = activations(subject, text, list(subject.sites))
    cache = bridge_values(subject, text)
    for name, values in found.items():
        torch.testing.assert_close(values, cache[name], atol=1e-5, rtol=1e-5, msg=name)


def test_module_is_untouched(tiny_model: Path) -> None:
    from transformers import AutoModelForCausalLM

    subject = load_model(tiny_model)
    plain = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    tokens = subject.tokens(TEXTS[0])[None]
    assert torch.equal(subject.logits(tokens), plain(tokens).logits)
    assert not subject.module.training
    assert type(subject.module) is type(plain)


def test_bos_exactly_once(tiny_model: Path) -> None:
    subject = load_model(tiny_model)
    assert subject.tokens("the cat").tolist() == [2, 3, 4]
    assert subject.tokens("<bos> the cat").tolist() == [2, 3, 4]


def test_chat_template_adds_no_second_bos(tiny_model: Path) -> None:
    subject = load_model(tiny_model)
    chat = [{"role": "user", "content": "the cat"}]
    with pytest.raises(MechlabError, match="no chat template"):
        subject.tokens(chat)
    subject.tokenizer.chat_template = "{{ bos_token }} {% for m in messages %}{{ m['content'] }} {% endfor %}"
    assert subject.tokens(chat).tolist() == [2, 3, 4]
    subject.tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    assert subject.tokens(chat).tolist() == [2, 3, 4]


def test_fingerprint_sees_weights_dtype_and_tokenizer_but_not_the_place(
    tiny_model: Path, tmp_path: Path
) -> None:
    original = load_model(tiny_model).fingerprint
    copy = shutil.copytree(tiny_model, tmp_path / "copy")
    assert load_model(copy).fingerprint == original
    assert load_model(tiny_model, dtype="bfloat16").fingerprint != original
    changed = load_model(copy)
    with torch.no_grad():
        changed.module.transformer.h[1].mlp.c_fc.weight[0, 0] += 1e-3
    assert changed.fingerprint != original
    other = json.loads((copy / "tokenizer.json").read_text())
    other["model"]["vocab"]["cat"], other["model"]["vocab"]["dog"] = 5, 4
    (copy / "tokenizer.json").write_text(json.dumps(other))
    assert load_model(copy).fingerprint != original


def test_token_text_of_each_kind_of_tokenizer(tiny_model: Path, stories_model: Path) -> None:
    words = load_model(tiny_model)
    assert [words.token_text(i) for i in (4, 11)] == [" cat", "."]
    pieces = load_model(stories_model)
    assert pieces.token_text(403) == " Once"
    assert pieces.token_text(13) == "\n"
    assert pieces.token_text(200) == "<0xC5>"  # one byte of a character


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("/nowhere/at/all", "model directory does not exist: /nowhere/at/all"),
        ("./no-such-model", "model directory does not exist"),
    ],
)
def test_missing_directories(name: str, message: str) -> None:
    with pytest.raises(MechlabError, match=message):
        load_model(name)


def test_unknown_hub_name_or_no_network_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.invalid")
    with pytest.raises(MechlabError, match=r"hub cannot be reached: gpt-2 \(.*did you mean gpt2\?") as caught:
        load_model("gpt-2")
    assert "\n" not in str(caught.value)


def test_directory_without_model_or_tokenizer_and_unknown_architecture(
    tiny_model: Path, tmp_path: Path
) -> None:
    with pytest.raises(MechlabError, match=r"config\.json is missing"):
        load_model(tmp_path)
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(tiny_model / name, bare)
    with pytest.raises(MechlabError, match="no tokenizer"):
        load_model(bare)
    bloom = tmp_path / "bloom"
    from transformers import BloomConfig, BloomForCausalLM

    BloomForCausalLM(BloomConfig(vocab_size=20, hidden_size=8, n_layer=1, n_head=2)).save_pretrained(bloom)
    save_tokenizer(bloom)
    with pytest.raises(MechlabError, match="architecture is not supported: bloom"):
        load_model(bloom)
    (bare / "config.json").write_text("{ not json")
    shutil.copy(tiny_model / "tokenizer.json", bare)
    with pytest.raises(MechlabError, match="cannot be loaded"):
        load_model(bare)


def test_missing_weights_are_refused_not_made_up(tiny_model: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    copy = shutil.copytree(tiny_model, tmp_path / "copy")
    weights = load_file(copy / "model.safetensors")
    weights.pop("transformer.h.0.mlp.c_fc.weight")
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(MechlabError, match=r"are missing or of another shape: .*h\.0\.mlp\.c_fc\.weight"):
        load_model(copy)
    (copy / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(MechlabError, match="cannot be loaded"):
        load_model(copy)


def test_fingerprint_does_not_depend_on_what_was_encoded_before(tiny_model: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_model, tmp_path / "copy")
    state = json.loads((copy / "tokenizer.json").read_text())
    state["truncation"] = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
    (copy / "tokenizer.json").write_text(json.dumps(state))
    fresh, used = load_model(copy), load_model(copy)
    used.tokens("the cat sat on a mat")
    assert fresh.fingerprint == used.fingerprint


def test_site_names_offer_near_ones(tiny_model: Path) -> None:
    with pytest.raises(
        MechlabError, match=r"no site: blocks\.1\.hook_resid_pst .*did you mean blocks\.1\.hook_resid_post"
    ):
        load_model(tiny_model).site("blocks.1.hook_resid_pst")


def test_devices_and_dtypes() -> None:
    assert resolve_device("cpu").type == "cpu"
    with pytest.raises(MechlabError, match="unknown device: gpu"):
        resolve_device("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(MechlabError, match="device is not there: cuda"):
            resolve_device("cuda")
        with pytest.raises(MechlabError, match="quantisation needs a CUDA device"):
            load_model("fable", quantisation="8bit")
    with pytest.raises(MechlabError, match="unknown dtype: float31"):
        load_model("fable", dtype="float31")
