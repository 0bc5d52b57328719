"""Conversion into artifacts, export for SAELens, and what a converted dictionary may be applied to."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from random_weights import SITE, K, compare, random_sae, write
from safetensors.torch import load_file

from mechlab.activations.harvest import harvest
from mechlab.activations.live import live
from mechlab.cli.sae_convert import convert as command
from mechlab.data.corpus import open_corpus
from mechlab.errors import MechlabError
from mechlab.models.subject import Subject, load_model
from mechlab.sae.convert import convert, export
from mechlab.sae.dictionary import encode_store, load_sae, train_sae
from mechlab.sae.evaluate import evaluate
from mechlab.sae.formats import saelens
from mechlab.sae.formats.saelens import to_saelens
from mechlab.sae.registry import architecture
from mechlab.sae.topk import TopKConfig

D_MODEL = 16


@pytest.fixture(scope="module")
def subject(tiny_model: Path) -> Subject:
    return load_model(tiny_model)


def made(folder: Path, d_in: int = D_MODEL, site: str = SITE, **metadata: Any) -> Path:
    """A TopK dictionary in SAELens' layout."""
    kind = architecture("topk")
    sae = kind(kind.Config(site=site, d_sae=48, k=K), d_in)
    sae.initialise(torch.zeros(d_in), torch.Generator().manual_seed(0))
    return write(folder, *to_saelens(sae, (site,), (site,), metadata))


def test_a_converted_dictionary_is_one_of_ours(tmp_path: Path, subject: Subject, tiny_corpus: Path) -> None:
    source = made(tmp_path / "theirs", model_name="tiny", context_size=32)
    dictionary = convert(source, tmp_path / "ours")
    manifest = dictionary.artifact.manifest
    assert manifest.config["source"] == str(source)
    assert manifest.config["format"] == "saelens"
    assert set(manifest.inputs) == {"source"}
    assert manifest.facts == {"model_name": "tiny", "processing": [], "mean": "b_dec"}
    dictionary.artifact.verify()
    assert (
        json.loads((source / "cfg.json").read_text())["metadata"].items()
        <= json.loads(dictionary.artifact.file(saelens.CONFIG).read_text())["metadata"].items()
    )
    again = load_sae(tmp_path / "ours")
    x = torch.randn(9, D_MODEL)
    torch.testing.assert_close(again.sae(x), dictionary.sae(x))
    again.check(subject)
    corpus = open_corpus(tiny_corpus)
    store = harvest(subject, corpus, SITE, tmp_path / "store", tokens=500)
    assert len(encode_store(again, store, rows=20)) == 20
    with pytest.warns(UserWarning, match="mean ablation and fve_per_token use b_dec"):
        assert evaluate(subject, again, corpus, tokens=200).tokens > 0


def test_one_of_ours_keeps_its_mean_and_its_model(
    tmp_path: Path, subject: Subject, stories_model: Path, tiny_corpus: Path
) -> None:
    config = TopKConfig(site=SITE, d_sae=24, k=3, tokens=512, batch_size=256)
    trained = train_sae(live(subject, open_corpus(tiny_corpus), SITE), tmp_path / "trained", config)
    again = convert(tmp_path / "trained", tmp_path / "again")
    assert torch.equal(again.mean, trained.mean)
    assert "mean" not in again.artifact.manifest.facts
    again.check(subject)
    with pytest.raises(MechlabError, match="trained on another model: fingerprint"):
        again.check(load_model(stories_model))


def test_the_same_source_is_converted_once(tmp_path: Path) -> None:
    source = made(tmp_path / "theirs")
    first = convert(source, tmp_path / "ours").artifact.manifest
    assert convert(source, tmp_path / "ours").artifact.manifest == first
    tensors = load_file(source / saelens.WEIGHTS)
    write(source, json.loads((source / "cfg.json").read_text()), {**tensors, "b_enc": tensors["b_enc"] + 1})
    with pytest.raises(MechlabError, match="made from another source"):
        convert(source, tmp_path / "ours")
    assert convert(source, tmp_path / "ours", overwrite=True).artifact.manifest.inputs != first.inputs


def test_nothing_is_left_of_a_failure(tmp_path: Path) -> None:
    source = made(tmp_path / "theirs")
    (source / saelens.WEIGHTS).write_bytes(b"half")
    with pytest.raises(MechlabError, match="damaged"):
        convert(source, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_tied_to_a_subject(tmp_path: Path, subject: Subject, stories_model: Path) -> None:
    dictionary = convert(made(tmp_path / "theirs"), tmp_path / "ours", model=subject)
    assert dictionary.artifact.manifest.inputs["model"] == subject.fingerprint
    dictionary.check(subject)
    with pytest.raises(MechlabError, match="trained on another model"):
        dictionary.check(load_model(stories_model))
    with pytest.raises(MechlabError, match=f"does not fit .* at {SITE}: width 8, not 16"):
        convert(made(tmp_path / "narrow", 8), tmp_path / "wrong", model=subject)
    with pytest.raises(MechlabError, match=r"no site.*did you mean"):
        convert(tmp_path / "theirs", tmp_path / "wrong", model=subject, site="blocks.0.hook_resid_poste")


def test_another_model_is_noticed_by_its_width(tmp_path: Path, subject: Subject, stories_model: Path) -> None:
    dictionary = convert(made(tmp_path / "theirs", model_name="pythia-14m"), tmp_path / "ours")
    stories = load_model(stories_model)
    with pytest.raises(
        MechlabError, match=f"pythia-14m does not fit {stories.name}.*width 16, not 64"
    ) as caught:
        dictionary.check(stories)
    assert "\n" not in str(caught.value)
    deep = convert(made(tmp_path / "deep", site="blocks.9.hook_resid_post"), tmp_path / "deeper")
    with pytest.raises(MechlabError, match=r"no site: blocks.9"):
        deep.check(subject)


@pytest.mark.parametrize(
    ("step", "site", "refused"),
    [
        ("center_writing_weights", "blocks.0.hook_resid_post", True),
        ("center_writing_weights", "blocks.0.hook_mlp_out", True),
        ("center_writing_weights", "blocks.0.attn.hook_z", False),
        ("center_writing_weights", "blocks.0.mlp.hook_in", False),
        ("fold_ln", "blocks.0.mlp.hook_in", True),
        ("fold_ln", "ln_final.hook_out", True),
        ("fold_ln", "blocks.0.hook_resid_post", False),
        ("fold_value_biases", "blocks.0.attn.hook_z", True),
        ("fold_value_biases", "blocks.0.hook_attn_out", False),
        ("center_unembed", "blocks.0.hook_resid_post", False),
    ],
)
def test_processed_weights(step: str, site: str, refused: bool, tmp_path: Path, subject: Subject) -> None:
    source = made(
        tmp_path / "theirs", site=site, model_from_pretrained_kwargs={step: True, "device_map": None}
    )
    dictionary = convert(source, tmp_path / "ours")
    assert dictionary.processing == (step,)
    if refused:
        with pytest.raises(MechlabError, match=f"processed by {step}, which changes {site}"):
            dictionary.check(subject)
        with pytest.raises(MechlabError, match=step):
            convert(source, tmp_path / "tied", model=subject)
    else:
        dictionary.check(subject)
    off = made(tmp_path / "off", site=site, model_from_pretrained_kwargs={step: False})
    convert(off, tmp_path / "fine").check(subject)


@pytest.mark.slow  # TransformerLens processes a model's weights
def test_processing_changes_the_sites_that_are_said(tiny_model: Path) -> None:
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights
    from transformers import AutoModelForCausalLM

    from mechlab.sae.processing import refuse_processed

    subject = load_model(tiny_model)
    module = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    for name, parameter in module.named_parameters():  # biases and norms start at 0 and 1
        parameter.data += (
            torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))) * 0.3
        )
    tokens, hf = torch.tensor([[2, 5, 7, 9, 4]]), module.config
    config = HookedTransformerConfig(
        n_layers=hf.n_layer, d_model=hf.n_embd, n_ctx=hf.n_positions, n_heads=hf.n_head,
        d_head=hf.n_embd // hf.n_head, d_mlp=hf.n_inner or 4 * hf.n_embd, d_vocab=hf.vocab_size,
        act_fn="gelu_new", normalization_type="LN", device="cpu",
    )  # fmt: skip

    def cache(**steps: bool) -> Any:
        off = {
            "fold_ln": False,
            "center_writing_weights": False,
            "center_unembed": False,
            "fold_value_biases": False,
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = HookedTransformer(copy.deepcopy(config))
            model.load_and_process_state_dict(convert_gpt2_weights(module, config), **(off | steps))
        return model.run_with_cache(tokens)[1]

    plain = cache()
    for step in ("fold_ln", "center_writing_weights", "fold_value_biases"):
        changed = cache(**{step: True})
        for name, value in plain.items():
            differs = not torch.allclose(value, changed[name], atol=1e-4)
            if name not in subject.sites or "hook_pattern" in name or "scores" in name:
                continue
            try:
                refuse_processed((step,), (name,), subject)
                said = False
            except MechlabError:
                said = True
            assert said == differs, (step, name)


def test_export_opens_in_sae_lens(tmp_path: Path) -> None:
    from sae_lens import SAE

    dictionary = convert(made(tmp_path / "theirs", model_name="tiny"), tmp_path / "ours")
    artifact = export(tmp_path / "ours", tmp_path / "exported")
    theirs = SAE.load_from_disk(artifact.path)
    assert theirs.cfg.metadata.model_name == "tiny"
    assert theirs.cfg.metadata.hook_name == SITE
    x = torch.randn(30, D_MODEL)
    with torch.no_grad():
        compare(dictionary.sae, theirs.encode(x), theirs(x), x)


def test_what_was_exported_is_read_again(tmp_path: Path) -> None:
    dictionary = convert(made(tmp_path / "theirs", model_name="tiny"), tmp_path / "ours")
    export(tmp_path / "ours", tmp_path / "exported")
    again = convert(tmp_path / "exported", tmp_path / "again")
    for name, weight in dictionary.sae.state_dict().items():
        assert torch.equal(again.sae.state_dict()[name], weight)


def test_what_sae_lens_cannot_hold_is_not_exported(tmp_path: Path) -> None:
    sae = random_sae("topk", "blocks.1.hook_mlp_out")
    source = write(tmp_path / "s", *to_saelens(sae, (SITE,), ("blocks.1.hook_mlp_out",)))
    with pytest.raises(MechlabError, match="SAELens cannot hold this dictionary: topk"):
        export(source, tmp_path / "exported")
    assert convert(source, tmp_path / "ours").outputs == ("blocks.1.hook_mlp_out",)


def test_command(tmp_path: Path) -> None:
    source = made(tmp_path / "theirs")
    out = tmp_path / "ours"
    outcome = command([str(source), "--out", str(out), "--model", "tiny"], "mechlab sae convert")
    assert outcome.payload["architecture"] == "topk"
    assert outcome.payload["model"] == "tiny"
    assert "48 latents" in outcome.text
    assert json.dumps(outcome.payload)
    exported = tmp_path / "exported"
    outcome = command([str(out), "--to", "saelens", "--out", str(exported)], "mechlab sae convert")
    assert (exported / saelens.WEIGHTS).is_file()
    assert outcome.payload["out"] == str(exported)
    with pytest.raises(MechlabError, match="no source"):
        command(["--out", "x"], "mechlab sae convert")
    with pytest.raises(MechlabError, match="unknown option"):
        command([str(source), "--outt", "x"], "mechlab sae convert")


def test_a_dictionary_of_normalised_rows_works_in_the_model(
    tmp_path: Path, subject: Subject, tiny_corpus: Path
) -> None:
    source = made(tmp_path / "theirs")
    config = json.loads((source / saelens.CONFIG).read_text())
    (source / saelens.CONFIG).write_text(json.dumps(config | {"normalize_activations": "layer_norm"}))
    dictionary = convert(source, tmp_path / "ours", model=subject)
    assert dictionary.artifact.manifest.facts["mean"] == "zero"
    with pytest.warns(UserWarning, match="mean ablation and fve_per_token use zero"):
        found = evaluate(subject, dictionary, open_corpus(tiny_corpus), tokens=200)
    assert found.l0.value == pytest.approx(K)
