"""Readers of other tools' files against each format's formula in plain torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from random_weights import D_IN, D_OUT, D_SAE, K, compare, rows
from safetensors.torch import save_file
from torch import Tensor

from mechlab.errors import MechlabError
from mechlab.sae.convert import read
from mechlab.sae.formats.found import Named
from mechlab.sae.formats.wrapped import Normalised

SITE = "blocks.3.hook_resid_post"


def random(*shape: int, seed: int, scale: float = 0.6) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def linear(d_out: int = D_IN) -> dict[str, Tensor]:
    """Weights as torch's Linear layers store them."""
    return {
        "encoder.weight": random(D_SAE, D_IN, seed=1),
        "encoder.bias": random(D_SAE, seed=2, scale=0.2),
        "decoder.weight": random(d_out, D_SAE, seed=3),
    }


def top(pre: Tensor, k: int = K) -> Tensor:
    values, indices = pre.topk(k, dim=-1)
    return torch.zeros_like(pre).scatter(-1, indices, values)


def save_learned(folder: Path, name: str, tensors: dict[str, Tensor], **trainer: Any) -> Path:
    """A folder of dictionary_learning's."""
    config = {"dict_class": name, "lm_name": "tiny", "layer": 3, "submodule_name": "resid_post_layer_3"}
    (folder / "config.json").write_text(json.dumps({"trainer": config | trainer, "buffer": {"ctx_len": 64}}))
    torch.save(tensors, folder / "ae.pt")
    return folder


def check(source: Path, format: str, codes: Tensor, output: Tensor, x: Tensor, **named: str) -> Any:
    found, detected = read(source, named=Named(**named))
    assert detected == format
    compare(found.sae.requires_grad_(False), codes, output, x)
    return found


@pytest.mark.parametrize("newer", [False, True])
def test_relu_of_dictionary_learning(newer: bool, tmp_path: Path) -> None:
    w, x, bias = linear(), rows(), random(D_IN, seed=4)
    codes = ((x if newer else x - bias) @ w["encoder.weight"].T + w["encoder.bias"]).relu()
    w["decoder.bias" if newer else "bias"] = bias
    save_learned(tmp_path, "AutoEncoderNew" if newer else "AutoEncoder", w)
    found = check(tmp_path, "dictionary_learning", codes, codes @ w["decoder.weight"].T + bias, x)
    assert found.site == SITE
    assert found.metadata["model_name"] == "tiny"
    assert found.metadata["context_size"] == 64


def test_gated_of_dictionary_learning(tmp_path: Path) -> None:
    w, x = linear(), rows()
    del w["encoder.bias"]
    w |= {
        name: random(D_SAE, seed=9 + i, scale=0.2)
        for i, name in enumerate(("r_mag", "gate_bias", "mag_bias"))
    }
    w["decoder_bias"] = random(D_IN, seed=5)
    z = (x - w["decoder_bias"]) @ w["encoder.weight"].T
    codes = (z + w["gate_bias"] > 0) * (w["r_mag"].exp() * z + w["mag_bias"]).relu()
    save_learned(tmp_path, "GatedAutoEncoder", w)
    check(tmp_path, "dictionary_learning", codes, codes @ w["decoder.weight"].T + w["decoder_bias"], x)


def matrices() -> dict[str, Tensor]:
    return {
        "W_enc": random(D_IN, D_SAE, seed=1),
        "b_enc": random(D_SAE, seed=2, scale=0.2),
        "W_dec": random(D_SAE, D_IN, seed=3),
        "b_dec": random(D_IN, seed=4, scale=0.2),
    }


def test_jumprelu_of_dictionary_learning(tmp_path: Path) -> None:
    w, x = matrices() | {"threshold": random(D_SAE, seed=6).abs()}, rows()
    pre = x @ w["W_enc"] + w["b_enc"]
    codes = (pre * (pre > w["threshold"])).relu()
    save_learned(tmp_path, "JumpReluAutoEncoder", w)
    check(tmp_path, "dictionary_learning", codes, codes @ w["W_dec"] + w["b_dec"], x)


def test_topk_of_dictionary_learning(tmp_path: Path) -> None:
    w, x = linear() | {"b_dec": random(D_IN, seed=4)}, rows()
    codes = top(((x - w["b_dec"]) @ w["encoder.weight"].T + w["encoder.bias"]).relu())
    kept = w | {"k": torch.tensor(K, dtype=torch.int), "threshold": torch.tensor(0.4)}
    save_learned(tmp_path, "AutoEncoderTopK", kept)
    check(tmp_path, "dictionary_learning", codes, codes @ w["decoder.weight"].T + w["b_dec"], x)


@pytest.mark.parametrize("nested", [False, True])
def test_batchtopk_of_dictionary_learning(nested: bool, tmp_path: Path) -> None:
    w, x, threshold = matrices(), rows(), 0.8
    pre = ((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]).relu()
    codes = pre * (pre > threshold)
    output = codes @ w["W_dec"] + w["b_dec"]
    kept = {"k": torch.tensor(K, dtype=torch.int), "threshold": torch.tensor(threshold), "b_dec": w["b_dec"]}
    if nested:
        kept |= w | {"group_sizes": torch.tensor([5, D_SAE - 5])}
    else:
        kept |= {"encoder.weight": w["W_enc"].T, "encoder.bias": w["b_enc"], "decoder.weight": w["W_dec"].T}
    name = "MatryoshkaBatchTopKSAE" if nested else "BatchTopKSAE"
    save_learned(tmp_path, name, kept)
    found = check(tmp_path, "dictionary_learning", codes, output, x)
    assert found.metadata["training_architecture"] == name
    save_learned(tmp_path, name, kept | {"threshold": torch.tensor(-1.0)})
    with pytest.warns(UserWarning, match="threshold was never set"):
        check(tmp_path, "dictionary_learning", pre, pre @ w["W_dec"] + w["b_dec"], x)


def test_what_dictionary_learning_leaves_open(tmp_path: Path) -> None:
    w = linear() | {"bias": random(D_IN, seed=4)}
    save_learned(tmp_path, "IdentityDict", w)
    with pytest.raises(MechlabError, match=r"unknown dictionary class.*IdentityDict"):
        read(tmp_path)
    save_learned(tmp_path, "AutoEncoder", w, submodule_name="gpt_neox.layers.3")
    with pytest.raises(MechlabError, match="which site"):
        read(tmp_path)
    assert read(tmp_path, named=Named("m", "blocks.1.hook_mlp_out"))[0].site == "blocks.1.hook_mlp_out"
    with pytest.raises(MechlabError, match="no target"):
        read(tmp_path, named=Named("m", SITE, SITE))
    (tmp_path / "ae.pt").write_bytes(b"PK\x03\x04" + b"0" * 50)
    with pytest.raises(MechlabError, match=r"ae.pt"):
        read(tmp_path)


class _Payload:
    """What a hostile pickle does when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.path), "w")


def test_pickles_run_nothing(tmp_path: Path) -> None:
    save_learned(tmp_path, "AutoEncoder", {"bias": _Payload(tmp_path / "ran")})  # type: ignore[dict-item]
    with pytest.raises(MechlabError, match=r"more than tensors.*ae.pt") as caught:
        read(tmp_path)
    assert not (tmp_path / "ran").exists()
    assert "\n" not in str(caught.value)


def save_sparsify(folder: Path, tensors: dict[str, Tensor], **config: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"activation": "topk", "k": K, "d_in": D_IN, "multi_topk": True, "normalize_decoder": False}
    (folder / "cfg.json").write_text(json.dumps(settings | config))
    save_file(tensors, folder / "sae.safetensors")
    return folder


@pytest.mark.parametrize(("transcode", "skip"), [(False, False), (True, False), (True, True)])
def test_sparsify(transcode: bool, skip: bool, tmp_path: Path) -> None:
    x, w = rows(), linear()
    W_dec = random(D_SAE, D_IN, seed=3)
    w = {"encoder.weight": w["encoder.weight"], "encoder.bias": w["encoder.bias"], "W_dec": W_dec}
    w["b_dec"] = random(D_IN, seed=4)
    codes = top(((x if transcode else x - w["b_dec"]) @ w["encoder.weight"].T + w["encoder.bias"]).relu())
    output = codes @ W_dec + w["b_dec"]
    if skip:
        w["W_skip"] = random(D_IN, D_IN, seed=8)
        output = output + x @ w["W_skip"].T
    folder = save_sparsify(tmp_path / "gpt_neox.layers.3.mlp", w, transcode=transcode, skip_connection=skip)
    found = check(folder, "sparsify", codes, output, x)
    assert found.site == ("blocks.3.mlp.hook_in" if transcode else "blocks.3.hook_mlp_out")
    assert found.target == ("blocks.3.hook_mlp_out" if transcode else "")


@pytest.mark.parametrize(
    ("hookpoint", "site"),
    [("layers.3", SITE), ("h.3.attn", "blocks.3.hook_attn_out"), ("model.layers.3", SITE), ("other.3", None)],
)
def test_hookpoints_of_sparsify(hookpoint: str, site: str | None, tmp_path: Path) -> None:
    w = linear()
    w |= {"W_dec": w.pop("decoder.weight").T.contiguous(), "b_dec": random(D_IN, seed=4)}
    folder = save_sparsify(tmp_path / hookpoint, w)
    if site is None:
        with pytest.raises(MechlabError, match="name it with --site"):
            read(folder)
    else:
        assert read(folder)[0].site == site


@pytest.mark.parametrize("config", [{"activation": "groupmax"}, {"signed": True}])
def test_what_sparsify_has_alone(config: dict[str, Any], tmp_path: Path) -> None:
    folder = save_sparsify(tmp_path / "layers.0", {"b_dec": torch.zeros(D_IN)}, **config)
    with pytest.raises(MechlabError, match="cannot be kept exactly"):
        read(folder)


def gemma(d_out: int = D_IN) -> dict[str, Tensor]:
    return {
        "w_enc": random(D_IN, D_SAE, seed=1),
        "b_enc": random(D_SAE, seed=2, scale=0.2),
        "w_dec": random(D_SAE, d_out, seed=3),
        "b_dec": random(d_out, seed=4),
        "threshold": random(D_SAE, seed=6).abs(),
    }


def jumped(w: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    pre = x @ w["w_enc"] + w["b_enc"]
    codes = pre.relu() * (pre > w["threshold"])
    return codes, codes @ w["w_dec"] + w["b_dec"]


@pytest.mark.parametrize(
    ("place", "site", "target"),
    [
        ("gemma-scope-2b-pt-res/layer_3/width_16k/average_l0_71", SITE, ""),
        ("gemma-scope-9b-it-att/layer_3/width_16k/canonical", "blocks.3.attn.hook_z", ""),
        ("gemma-scope-2b-pt-mlp/layer_11/width_16k/canonical", "blocks.11.hook_mlp_out", ""),
        (
            "gemma-scope-2b-pt-transcoders/layer_3/width_16k/average_l0_5",
            "blocks.3.mlp.hook_in",
            "blocks.3.hook_mlp_out",
        ),
    ],
)
def test_gemma_scope(place: str, site: str, target: str, tmp_path: Path) -> None:
    folder, w, x = tmp_path / place, gemma(D_OUT if target else D_IN), rows()
    folder.mkdir(parents=True)
    np.savez(folder / "params.npz", **{name: value.numpy() for name, value in w.items()})
    found = check(folder, "gemma_scope", *jumped(w, x), x)
    assert (found.site, found.target) == (site, target)
    assert found.metadata["model_name"] == ("gemma-2-9b-it" if "it" in place[:20] else "gemma-2-2b")


def test_gemma_scope_of_the_embedding(tmp_path: Path) -> None:
    folder, w, x = tmp_path / "gemma-scope-2b-pt-res/embedding/width_4k/average_l0_6", gemma(), rows()
    folder.mkdir(parents=True)
    np.savez(folder / "params.npz", **{name: value.numpy() for name, value in w.items()})
    codes, output = jumped(w, x / D_IN**0.5)
    found = check(folder / "params.npz", "gemma_scope", codes, output * D_IN**0.5, x)
    assert found.site == "hook_embed"


def test_gemma_scope_elsewhere_needs_a_site(tmp_path: Path) -> None:
    w = gemma()
    np.savez(tmp_path / "params.npz", **{name: value.numpy() for name, value in w.items()})
    with pytest.raises(MechlabError, match="--site"):
        read(tmp_path)
    check(tmp_path, "gemma_scope", *jumped(w, rows()), rows(), site=SITE)


@pytest.mark.parametrize("affine", [None, False, True])
def test_gemma_scope_2(affine: bool | None, tmp_path: Path) -> None:
    transcoder = affine is not None
    folder = tmp_path
    w, x = gemma(D_OUT if transcoder else D_IN), rows()
    config = {
        "architecture": "jump_relu",
        "model_name": "gemma-v3-1b-pt",
        "hf_hook_point_in": "model.layers.3.output",
    }
    codes, output = jumped(w, x)
    if transcoder:
        config["hf_hook_point_in"] = "model.layers.3.pre_feedforward_layernorm.output"
        config["hf_hook_point_out"] = "model.layers.3.post_feedforward_layernorm.output"
    kept = dict(w)
    if affine:
        kept["affine_skip_connection"] = random(D_IN, D_OUT, seed=8)
        output = output + x @ kept["affine_skip_connection"]
    (folder / "config.json").write_text(json.dumps(config))
    save_file(kept, folder / "params.safetensors")
    found = check(folder, "gemma_scope_2", codes, output, x)
    wanted = ("blocks.3.mlp.hook_in", "blocks.3.hook_mlp_out") if transcoder else (SITE, "")
    assert (found.site, found.target) == wanted
    (folder / "config.json").write_text(json.dumps(config | {"architecture": "topk"}))
    with pytest.raises(MechlabError, match=r"unknown architecture.*topk"):
        read(folder)


@pytest.mark.parametrize("topk", [True, False])
def test_openai(topk: bool, tmp_path: Path) -> None:
    x, w = rows(), linear()
    kept: dict[str, Any] = {
        "pre_bias": random(D_IN, seed=4),
        "latent_bias": w["encoder.bias"],
        "encoder.weight": w["encoder.weight"],
        "decoder.weight": w["decoder.weight"],
        "stats_last_nonzero": torch.zeros(D_SAE, dtype=torch.long),
        "activation": "TopK" if topk else "ReLU",
    }
    normal, scale, shift = x, torch.ones(1), torch.zeros(1)
    if topk:
        kept["activation_state_dict"] = {"k": K, "postact_fn": "ReLU"}
        shift = x.mean(-1, keepdim=True)
        scale = (x - shift).std(-1, keepdim=True)
        normal = (x - shift) / (scale + 1e-5)
    pre = (normal - kept["pre_bias"]) @ kept["encoder.weight"].T + kept["latent_bias"]
    codes = top(pre).relu() if topk else pre.relu()
    output = (codes @ kept["decoder.weight"].T + kept["pre_bias"]) * scale + shift
    path = tmp_path / "5.pt"
    torch.save(kept, path)
    found = check(path, "openai", codes, output, x, site=SITE)
    assert isinstance(found.sae, Normalised) == topk
    torch.save({**kept, "activation": "Tanh"}, path)
    with pytest.raises(MechlabError, match="cannot be kept exactly: Tanh"):
        read(path, named=Named(site=SITE))


def test_nothing_known_is_there(tmp_path: Path) -> None:
    with pytest.raises(MechlabError, match="it holds nothing"):
        read(tmp_path)
    (tmp_path / "cfg.json").write_text("{}")
    with pytest.raises(MechlabError, match=r"it holds cfg.json.*known by: sae_weights.safetensors"):
        read(tmp_path)
    with pytest.raises(MechlabError, match=r"unknown dictionary format: sparsfy .did you mean sparsify"):
        read(tmp_path, "sparsfy")
    with pytest.raises(MechlabError, match=r"file is missing.*params.npz"):
        read(tmp_path, "gemma_scope")
    with pytest.raises(MechlabError, match="no dictionary here"):
        read(tmp_path / "nowhere")


def test_the_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "https://no-such-host.invalid")
    monkeypatch.delenv("HTTPS_PROXY", raising=False)
    monkeypatch.delenv("https_proxy", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with pytest.raises(MechlabError, match="hub cannot be reached") as caught:
        read("sae_lens:gpt2-small-res-jb/blocks.8.hook_resid_pre")
    assert "\n" not in str(caught.value)


@pytest.mark.slow  # sae-lens reads its list of releases in 17 s
def test_releases_of_sae_lens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(MechlabError, match=r"has no dictionary: blocks.8.hook_resid_pree .did you mean"):
        read("sae_lens:gpt2-small-res-jb/blocks.8.hook_resid_pree")
    with pytest.raises(MechlabError, match="no release"):
        read("sae_lens:gpt2-small-res-jbb/blocks.8")
    with pytest.raises(
        MechlabError, match=r"sae-lens cannot load gpt2-small-res-jb/blocks.8.hook_resid_pre"
    ) as e:
        read("sae_lens:gpt2-small-res-jb/blocks.8.hook_resid_pre")
    assert "\n" not in str(e.value)
