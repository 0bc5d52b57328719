"""Loading models, their sites, fingerprints and BOS."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from mechlab.errors import MechlabError
from mechlab.models.subject import Subject, load_model, resolve_device
from tiny import save_tiny_model, save_tokenizer

TEXTS = ["the cat sat on a mat .", "a red dog ran"]


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


APPENDING = (
    "{{ bos_token }}{% for m in messages %}{{ m['role'] }} , {{ m['content'] }} . {% endfor %}"
    "{% if add_generation_prompt %}assistant , {% endif %}"
)
CHAT = [
    {"role": "user", "content": "the cat"},
    {"role": "assistant", "content": "sat down"},
    {"role": "user", "content": "and it"},
    {"role": "assistant", "content": "fell"},
]


def with_template(path: Path, template: str) -> Subject:
    subject = load_model(path)
    subject.tokenizer.chat_template = template
    return subject


GENERATION = APPENDING.replace(
    "{{ m['content'] }}",
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}{% endgeneration %}"
    "{% else %}{{ m['content'] }}{% endif %}",
)


@pytest.mark.parametrize("template", [APPENDING, APPENDING.replace("{{ bos_token }}", ""), GENERATION])
def test_tokens_of_assistant_turns(tiny_model: Path, template: str) -> None:
    subject = with_template(tiny_model, template)
    tokens, assistant = subject.chat_tokens(CHAT)
    assert torch.equal(tokens, subject.tokens(CHAT))
    assert tokens.tolist().count(subject.bos) == 1
    words = subject.tokenizer.convert_ids_to_tokens(tokens[assistant].tolist())
    # The header of a turn is not of it, its end is.
    assert words == ["sat", "down", ".", "fell", "."]
    ids, flags = subject.chat_rows(CHAT)
    assert [subject.bos, *ids] == tokens.tolist()
    assert [False, *flags] == assistant.tolist()


def test_assistant_turns_of_a_byte_level_tokenizer(tiny_model: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({c: i for i, c in enumerate(letters)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    subject = load_model(tiny_model)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    tokenizer.chat_template = APPENDING.replace("{{ bos_token }}", "")
    subject = Subject("bytes", subject.module, tokenizer, subject.sites)
    tokens, assistant = subject.chat_tokens([CHAT[0], {"role": "assistant", "content": "žluť 🐈 ok"}])
    assert tokenizer.decode(tokens[assistant]) == "žluť 🐈 ok . "


def test_assistant_turns_of_the_real_tokenizer(stories_model: Path) -> None:
    subject = with_template(
        stories_model,
        "{% for m in messages %}{% if m['role'] == 'user' %}[{{ m['content'] }}]"
        "{% else %} {{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}",
    )
    tokens, assistant = subject.chat_tokens(CHAT)
    text = subject.tokenizer.decode(tokens[assistant])
    assert text.replace("</s>", "|").split() == ["sat", "down|", "fell|"] or text == "sat down</s> fell</s>"


def test_templates_that_hide_the_turns(tiny_model: Path) -> None:
    last_only = (
        "{% for m in messages %}{% if m['role'] == 'user' or loop.last %}{{ m['content'] }} {% endif %}"
    )
    subject = with_template(tiny_model, last_only + "{% endfor %}")
    with pytest.raises(MechlabError, match=r"rewrites earlier turns.*turn 1: 'sat down'"):
        subject.chat_tokens(CHAT)
    with pytest.raises(MechlabError, match=r"opens with an assistant turn.*: 'sat down'"):
        subject.chat_tokens(CHAT[1:])
    subject = with_template(tiny_model, "{{ raise_exception('roles must alternate') }}")
    with pytest.raises(MechlabError, match="template refuses the messages: roles must alternate"):
        subject.chat_tokens(CHAT)
    subject.tokenizer.chat_template = None
    with pytest.raises(MechlabError, match="no chat template"):
        subject.chat_tokens(CHAT)


def test_class_token_stands_in_for_bos(tmp_path: Path) -> None:
    subject = load_model(save_tiny_model(tmp_path / "bert", "bert"))
    assert subject.bos == 2
    subject.tokenizer.bos_token = None
    assert subject.bos is None
    subject.tokenizer.cls_token = "<unk>"
    assert subject.tokens("the cat").tolist() == [1, 3, 4]
    assert not subject.causal


def test_special_tokens(tiny_model: Path) -> None:
    subject = load_model(tiny_model)
    assert subject.special_tokens.nonzero()[:, 0].tolist() == [0, 1]
    assert len(subject.special_tokens) == 20


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


def test_rows_padded_on_the_right_are_no_reason_to_warn(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    model = save_tiny_model(tmp_path, "gpt2")
    tokens = torch.tensor([[2, 3, 4, 0, 0]])  # <pad> at the end
    logging.get_logger("transformers").addHandler(caplog.handler)
    try:
        for module, warns in (
            (load_model(model).module, False),
            (AutoModelForCausalLM.from_pretrained(model), True),
        ):
            logging.get_logger("transformers.modeling_utils").warning_once.cache_clear()
            with caplog.at_level("WARNING", "transformers"):
                module(tokens)
            assert ("attention_mask" in caplog.text) == warns
    finally:
        logging.get_logger("transformers").removeHandler(caplog.handler)
