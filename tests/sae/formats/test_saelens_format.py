"""SAELens' layout both ways, against sae-lens itself."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from random_weights import D_IN, D_OUT, D_SAE, SITE, TARGET, K, compare, fill, random_sae, rows, write
from safetensors.torch import load_file, save_file

from mechlab.errors import MechlabError
from mechlab.sae.base import Sae
from mechlab.sae.formats import saelens, saelens_folder
from mechlab.sae.formats.found import Named
from mechlab.sae.formats.saelens import from_saelens, to_saelens
from mechlab.sae.formats.wrapped import Foreign, Normalised, refuse_contextual
from mechlab.sae.jumprelu import JumpReLU
from mechlab.sae.splice import At, splicing

SINGLE = ["relu", "gated", "topk", "abstopk", "jumprelu", "matching_pursuit"]


@pytest.fixture(scope="module")
def sae_lens() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import sae_lens

    return sae_lens


def read(folder: Path, **named: str) -> Sae:
    return saelens_folder.read(folder, Named(**named)).sae.requires_grad_(False)


def same(sae: Sae, theirs: Any, x: torch.Tensor) -> None:
    with torch.no_grad():
        compare(sae, theirs.encode(x), theirs(x), x)


def equal_weights(left: Sae, right: Sae) -> None:
    ours, again = left.state_dict(), right.state_dict()
    assert ours.keys() == again.keys()
    assert all(torch.equal(ours[name], again[name]) for name in ours)


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("arch", SINGLE)
def test_ours_opens_in_sae_lens(arch: str, centred: bool, sae_lens: Any, tmp_path: Path) -> None:
    sae = random_sae(arch, centred=centred)
    if arch == "matching_pursuit" and not centred:
        sae.b_dec.zero_()
    folder = write(tmp_path, *to_saelens(sae, (SITE,), (SITE,)))
    theirs = sae_lens.SAE.load_from_disk(folder)
    assert theirs.cfg.metadata.hook_name == SITE
    same(sae, theirs, rows())
    equal_weights(sae, read(folder))


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("arch", ["relu", "jumprelu"])
def test_our_transcoders_open_in_sae_lens(arch: str, skip: bool, sae_lens: Any, tmp_path: Path) -> None:
    sae = random_sae(arch, TARGET, skip=skip)
    folder = write(tmp_path, *to_saelens(sae, (SITE,), (TARGET,)))
    theirs = sae_lens.SAE.load_from_disk(folder)
    assert (theirs.cfg.metadata.hook_name, theirs.cfg.metadata.hook_name_out) == (SITE, TARGET)
    same(sae, theirs, rows())
    found = saelens_folder.read(folder, Named())
    assert (found.inputs, found.outputs) == ((SITE,), (TARGET,))
    equal_weights(sae, found.sae)


@pytest.mark.parametrize("arch", ["batchtopk", "matryoshka"])
def test_batch_dictionaries_end_as_jumprelu(arch: str, sae_lens: Any, tmp_path: Path) -> None:
    training = random_sae(arch)
    training.threshold.fill_(0.7)
    sae = training.finish().requires_grad_(False)
    folder = write(tmp_path, *to_saelens(sae, (SITE,), (SITE,)))
    theirs = sae_lens.SAE.load_from_disk(folder)
    assert theirs.cfg.architecture() == "jumprelu"
    assert theirs.cfg.metadata.training_architecture == arch
    same(sae, theirs, rows())
    again = read(folder)
    assert isinstance(again, JumpReLU)
    assert again.trained_as == arch


def test_a_tied_encoder_is_written_out(sae_lens: Any, tmp_path: Path) -> None:
    sae = random_sae("relu", tied=True)
    folder = write(tmp_path, *to_saelens(sae, (SITE,), (SITE,)))
    same(sae, sae_lens.SAE.load_from_disk(folder), rows())


def test_heads_side_by_side(sae_lens: Any, tmp_path: Path) -> None:
    site = "blocks.0.attn.hook_z"
    sae = random_sae("topk", site=site)
    theirs = sae_lens.SAE.load_from_disk(write(tmp_path, *to_saelens(sae, (site,), (site,))))
    x = rows(12)
    heads = x.reshape(1, 12, 2, D_IN // 2)
    torch.testing.assert_close(theirs(heads).reshape(12, D_IN), sae(x), atol=5e-5, rtol=1e-4)
    same(read(tmp_path), sae_lens_flat(theirs), x)


def sae_lens_flat(theirs: Any) -> Any:
    theirs.turn_off_forward_pass_hook_z_reshaping()
    return theirs


def test_one_head_stands_beside_the_name(tmp_path: Path) -> None:
    site = "blocks.0.attn.hook_z:3"
    config, tensors = to_saelens(random_sae("relu", site=site), (site,), (site,))
    assert config["metadata"]["hook_head_index"] == 3
    assert config["reshape_activations"] == "none"
    assert saelens_folder.read(write(tmp_path, config, tensors), Named()).inputs == (site,)


@pytest.mark.parametrize(
    ("arch", "target", "skip", "in_sizes", "out_sizes"),
    [
        ("matching_pursuit", "", False, (D_IN,), (D_IN,)),
        ("topk", TARGET, False, (D_IN,), (D_OUT,)),
        ("topk", TARGET, True, (D_IN,), (D_OUT,)),
        ("gated", TARGET, False, (D_IN,), (D_OUT,)),
        ("relu", "", False, (5, 3), (5, 3)),
        ("batchtopk", "", False, (D_IN,), (D_IN,)),
        ("clt", "c,d", False, (5, 3), (4, 2)),
    ],
)
def test_what_sae_lens_has_no_name_for_comes_back_whole(
    arch: str, target: str, skip: bool, in_sizes: Any, out_sizes: Any, tmp_path: Path
) -> None:
    from mechlab.sae.registry import architecture

    kind = architecture(arch)
    site = "a,b" if len(in_sizes) > 1 else SITE
    config = kind.Config(
        site=site, target=target, d_sae=D_SAE, skip=skip, **({"k": K} if arch in ("topk", "clt") else {})
    )
    sae = kind(
        config, in_sizes, out_sizes if target else None, centred=not target and arch != "matching_pursuit"
    )
    fill(sae)
    inputs, outputs = config.inputs, config.outputs
    made, tensors = to_saelens(sae, inputs, outputs)
    assert made["architecture"] == f"mechlab_{arch}"
    assert not saelens.representable(made)
    found = saelens_folder.read(write(tmp_path, made, tensors), Named())
    assert (found.inputs, found.outputs) == (inputs, outputs)
    assert (found.sae.config, found.sae.centred) == (sae.config, sae.centred)
    assert (found.sae.in_sizes, found.sae.out_sizes) == (in_sizes, out_sizes)
    equal_weights(sae, found.sae)


def theirs_of(sae_lens: Any, name: str, training: bool = False, **settings: Any) -> Any:
    """A random dictionary of sae-lens."""
    from sae_lens.registry import SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY

    kind, config = (SAE_TRAINING_CLASS_REGISTRY if training else SAE_CLASS_REGISTRY)[name]
    if "transcoder" in name:
        settings = {"d_out": D_OUT, "apply_b_dec_to_input": False} | settings
    made = kind(config(d_in=D_IN, d_sae=D_SAE, **settings))
    fill(made, 3)
    made.cfg.metadata.hook_name = SITE
    if "transcoder" in name:
        made.cfg.metadata.hook_name_out = TARGET
    return made.requires_grad_(False).eval()


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("standard", {}),
        ("standard", {"apply_b_dec_to_input": False}),
        ("gated", {}),
        ("topk", {"k": K}),
        ("topk", {"k": K, "rescale_acts_by_decoder_norm": True}),
        ("abstopk", {"k": K, "rescale_acts_by_decoder_norm": True}),
        ("jumprelu", {"apply_b_dec_to_input": False}),
        ("transcoder", {}),
        ("skip_transcoder", {}),
        ("jumprelu_transcoder", {}),
        ("jumprelu_skip_transcoder", {}),
        ("matching_pursuit", {"max_iterations": 5, "residual_threshold": 0.5}),
        ("matching_pursuit", {"stop_on_duplicate_support": False, "apply_b_dec_to_input": False}),
    ],
)
def test_theirs_opens_in_ours(name: str, settings: dict[str, Any], sae_lens: Any, tmp_path: Path) -> None:
    theirs = theirs_of(sae_lens, name, **settings)
    theirs.save_model(tmp_path)
    same(read(tmp_path), theirs, rows())


@pytest.mark.parametrize("how", ["constant_norm_rescale", "layer_norm"])
@pytest.mark.parametrize("name", ["standard", "topk", "jumprelu", "gated"])
def test_rows_normalised_one_by_one(name: str, how: str, sae_lens: Any, tmp_path: Path) -> None:
    theirs = theirs_of(sae_lens, name, normalize_activations=how, **({"k": K} if name == "topk" else {}))
    theirs.save_model(tmp_path)
    sae, x = read(tmp_path), rows()
    assert isinstance(sae, Normalised)
    same(sae, theirs, x)
    folder = write(tmp_path / "again", *to_saelens(sae, (SITE,), (SITE,)))
    same(read(folder), sae_lens.SAE.load_from_disk(folder), x)
    with pytest.raises(MechlabError, match="needs the input"):
        sae.decode(sae.encode(x))
    with pytest.raises(MechlabError, match="not trained"):
        sae.change_units(torch.ones(D_IN), torch.ones(D_IN))
    leaf = x.clone().requires_grad_()
    codes = sae.encode(x)
    sae.differentiable(leaf, codes).values.sum().backward()
    assert leaf.grad is not None
    assert bool(leaf.grad.isfinite().all())


@pytest.mark.parametrize("name", ["standard", "topk", "jumprelu", "gated"])
def test_the_average_norm_is_folded(name: str, sae_lens: Any, tmp_path: Path) -> None:
    how = "expected_average_only_in"
    theirs = theirs_of(sae_lens, name, normalize_activations=how, **({"k": K} if name == "topk" else {}))
    theirs.save_model(tmp_path)
    with pytest.raises(MechlabError, match="factor of its activations is not recorded"):
        read(tmp_path)
    (tmp_path / saelens.SCALER).write_text(json.dumps({"scaling_factor": 1.7, "has_whitening": False}))
    theirs.fold_activation_norm_scaling_factor(1.7)
    same(read(tmp_path), theirs, rows())


def test_whitening_is_refused(sae_lens: Any, tmp_path: Path) -> None:
    theirs_of(sae_lens, "standard", normalize_activations="covariance_whitening").save_model(tmp_path)
    with pytest.raises(MechlabError, match="covariance_whitening"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("standard", {}),
        ("gated", {}),
        ("topk", {"k": K}),
        ("abstopk", {"k": K}),
        ("jumprelu", {}),
        ("batchtopk", {"k": float(K)}),
        ("batchtopk", {"k": float(K), "rescale_acts_by_decoder_norm": False}),
        ("matryoshka_batchtopk", {"k": float(K), "matryoshka_widths": [5, D_SAE]}),
        ("matching_pursuit", {"max_iterations": 5}),
    ],
)
def test_saved_while_training(name: str, settings: dict[str, Any], sae_lens: Any, tmp_path: Path) -> None:
    theirs = theirs_of(sae_lens, name, training=True, **settings)
    if "batchtopk" in name:
        theirs.topk_threshold.fill_(0.9)
    theirs.save_model(tmp_path / "training")
    theirs.save_inference_model(tmp_path / "inference")
    same(read(tmp_path / "training"), sae_lens.SAE.load_from_disk(tmp_path / "inference"), rows())


def test_older_jumprelu_has_the_logarithm(sae_lens: Any, tmp_path: Path) -> None:
    theirs = theirs_of(sae_lens, "jumprelu")
    theirs.save_model(tmp_path)
    tensors = load_file(tmp_path / saelens.WEIGHTS)
    tensors["log_threshold"] = tensors.pop("threshold").log()
    save_file(tensors, tmp_path / saelens.WEIGHTS)
    same(read(tmp_path), theirs, rows())


def test_thresholds_below_zero(sae_lens: Any, tmp_path: Path) -> None:
    theirs = theirs_of(sae_lens, "jumprelu")
    theirs.threshold.data -= 0.2
    theirs.save_model(tmp_path)
    same(read(tmp_path), theirs, rows())


def test_bfloat16_becomes_float32(sae_lens: Any, tmp_path: Path) -> None:
    theirs_of(sae_lens, "jumprelu").to(dtype=torch.bfloat16).save_model(tmp_path)
    same(read(tmp_path), sae_lens.SAE.load_from_disk(tmp_path, dtype="float32"), rows())


@pytest.mark.parametrize("topk", [False, True])
def test_files_older_than_version_6(topk: bool, sae_lens: Any, tmp_path: Path) -> None:
    sae = random_sae("topk" if topk else "relu")
    _, tensors = to_saelens(sae, (SITE,), (SITE,))
    old = {
        "model_name": "gpt2-small",
        "hook_point": SITE,
        "hook_point_layer": 0,
        "d_in": D_IN,
        "d_sae": D_SAE,
        "dtype": "torch.float32",
        "device": "mps",
        "normalize_activations": False,
        "model_from_pretrained_kwargs": {"center_writing_weights": True},
    }
    if topk:
        old |= {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}}
    write(tmp_path, old, {**tensors, "scaling_factor": torch.ones(D_SAE)})
    found = saelens_folder.read(tmp_path, Named())
    assert found.inputs == (SITE,)
    assert found.metadata["model_name"] == "gpt2-small"
    assert found.metadata["model_from_pretrained_kwargs"] == {"center_writing_weights": True}
    same(found.sae, sae_lens.SAE.load_from_disk(tmp_path, device="cpu"), rows())
    write(tmp_path, old, {**tensors, "scaling_factor": torch.full((D_SAE,), 2.0)})
    with pytest.raises(MechlabError, match="scaling_factor"):
        read(tmp_path)


@pytest.mark.parametrize("tied", [True, False])
def test_temporal_is_held_by_sae_lens(tied: bool, sae_lens: Any, tmp_path: Path) -> None:
    theirs = theirs_of(sae_lens, "temporal", n_heads=2, bottleneck_factor=2, kval_topk=3, tied_weights=tied)
    theirs.save_model(tmp_path)
    sae, x = read(tmp_path), rows()
    assert isinstance(sae, Foreign)
    codes = sae.encode(x)
    compare(sae, theirs.encode(x[None])[0], theirs(x[None])[0], x)
    torch.testing.assert_close(sae.decode(codes), theirs.decode(theirs.encode(x[None]))[0])
    folder = write(tmp_path / "again", *to_saelens(sae, (SITE,), (SITE,)))
    torch.testing.assert_close(read(folder)(x), sae(x))
    torch.testing.assert_close(sae_lens.SAE.load_from_disk(folder)(x[None])[0], sae(x))
    with pytest.raises(MechlabError, match="whole contexts: temporal"):
        refuse_contextual(sae)
    placed = At(sae, (SITE,), (SITE,))
    with pytest.raises(MechlabError, match="whole contexts: temporal"), splicing(None, placed):
        pass


def broken(change: Any) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    config, tensors = to_saelens(random_sae("jumprelu"), (SITE,), (SITE,))
    change(config, tensors)
    return config, tensors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c, t: c.update(architecture="jumprulu"), "unknown dictionary arch.*jumprulu.*jumprelu"),
        (lambda c, t: c.update(architecture="mechlab_topkk"), "unknown dictionary architecture: topkk"),
        (lambda c, t: c.pop("architecture"), "lacks the key: architecture"),
        (lambda c, t: c.pop("d_sae"), "lacks the key: d_sae"),
        (lambda c, t: c.update(d_sae="many"), "d_sae is wrong: many"),
        (lambda c, t: t.pop("b_enc"), "weights.safetensors lacks the tensor: b_enc"),
        (lambda c, t: t.update(W_skip=torch.ones(1)), "does not know: W_skip"),
        (lambda c, t: t.update(b_enc=torch.ones(3)), r"b_enc has the wrong shape: \[3\]"),
        (lambda c, t: t["W_dec"].__setitem__(0, float("nan")), "W_dec holds NaN.*: 8"),
        (lambda c, t: t["threshold"].__setitem__(0, float("nan")), "threshold holds NaN"),
        (lambda c, t: c.update(normalize_activations="other"), "normalize_activations.*other"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(change: Any, message: str) -> None:
    with pytest.raises(MechlabError, match=message) as caught:
        from_saelens(*broken(change))
    assert "\n" not in str(caught.value)


def test_settings_of_ours_that_cannot_be_read() -> None:
    config, tensors = to_saelens(random_sae("batchtopk"), (SITE,), (SITE,))
    config["mechlab"]["config"]["kk"] = 3
    with pytest.raises(MechlabError, match="kk"):
        from_saelens(config, tensors)


def test_damaged_files(tmp_path: Path) -> None:
    folder = write(tmp_path, *to_saelens(random_sae("relu"), (SITE,), (SITE,)))
    whole = (folder / saelens.WEIGHTS).read_bytes()
    (folder / saelens.WEIGHTS).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(MechlabError, match=r"damaged or cut short.*sae_weights"):
        read(folder)
    (folder / saelens.WEIGHTS).unlink()
    with pytest.raises(MechlabError, match=r"file is missing.*sae_weights"):
        read(folder)
    (folder / saelens.CONFIG).write_text("{")
    with pytest.raises(MechlabError, match=r"damaged or cut short.*cfg.json"):
        read(folder)
    (folder / saelens.CONFIG).write_text("[]")
    with pytest.raises(MechlabError, match="no JSON object"):
        read(folder)
