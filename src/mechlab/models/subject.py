"""``Subject``: the untouched Hugging Face model under study, with its sites and fingerprint."""

from __future__ import annotations

import functools
import hashlib
import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechlab.data.corpus import hub_is_offline
from mechlab.errors import MechlabError, near
from mechlab.files import fingerprint
from mechlab.models.bridge import boot_bridge, probe_site
from mechlab.models.chat import chat_rows, render_chat
from mechlab.models.layouts import layout_of
from mechlab.models.loading import (
    BUNDLED,
    WELL_KNOWN,
    bundled_path,
    find_source,
    load_tokenizer,
    loading_errors,
    no_loading_bar,
    quantisation_options,
    resolve_device,
    resolve_dtype,
)
from mechlab.models.sites import Site, site_table

__all__ = ["WELL_KNOWN", "Chat", "Subject", "bundled_path", "load_model", "resolve_device"]

Chat = Sequence[dict[str, str]]


@dataclass(frozen=True, eq=False)
class Subject:
    """A model to be studied.

    Attributes:
        name: the name it was loaded by.
        module: the Hugging Face model, in evaluation mode, not modified in any way.
        tokenizer: its tokenizer.
        sites: name → ``Site`` for every place that can be read or replaced.
    """

    name: str
    module: Any
    tokenizer: Any
    sites: dict[str, Site]

    @property
    def device(self) -> torch.device:
        """Where the embedding lives, which is where token ids must be."""
        return cast(torch.device, self.module.get_input_embeddings().weight.device)

    @property
    def dtype(self) -> torch.dtype:
        """Floating type of the weights."""
        return cast(torch.dtype, self.module.dtype)

    @property
    def n_ctx(self) -> int:
        """Longest context in tokens, BOS included."""
        return int(self.module.config.max_position_embeddings)

    @property
    def causal(self) -> bool:
        """Whether a position sees only itself and earlier ones.

        Where it is not (BERT), padding is seen and needs a mask.
        """
        return layout_of(self.module.config).causal

    @property
    def bos(self) -> int | None:
        """The beginning-of-sequence token that every context starts with; None when there is none.

        A tokenizer without one may have a class token in its place (BERT's [CLS]).
        """
        token: int | None = self.tokenizer.bos_token_id
        return self.tokenizer.cls_token_id if token is None else token

    @functools.cached_property
    def special_tokens(self) -> Bool[Tensor, "token"]:
        """True at the ids of the tokenizer's special tokens but BOS, for every row of the embedding."""
        special = torch.zeros(self.module.get_input_embeddings().num_embeddings, dtype=torch.bool)
        for token in self.tokenizer.all_special_ids:
            if token < len(special) and token != self.bos:
                special[token] = True
        return special

    def site(self, name: str) -> Site:
        """The site called ``name``, or one head's part of it ("blocks.0.attn.hook_z:3").

        A site that only the TransformerLens bridge has is found there, with a warning: reading
        it takes a copy of the model and is slower.

        Raises MechlabError, with near names, when there is no such site, or no such head.
        """
        base, colon, head = name.partition(":")
        site = self.sites.get(base) or self._bridge_sites.get(base)
        if site is None:
            site = self._bridge_sites[base] = self._ask_bridge(base)
        if not colon:
            return site
        if not head.isdecimal():
            raise MechlabError("head is not a number", name, f"as in {base}:0")
        return site.one_head(int(head))

    def tokens(self, text: str | Chat, *, start_reply: bool = False) -> Int[Tensor, "pos"]:
        """Token ids of a text, or of a chat given as a list of {"role", "content"}, with BOS exactly once.

        With ``start_reply`` a chat ends where the assistant's next turn begins.
        Raises MechlabError for a chat when the tokenizer has no chat template.
        """
        if isinstance(text, str):
            written = text
        else:
            written = render_chat(self.tokenizer, text, start_reply=start_reply)
        ids = self.tokenizer.encode(written, add_special_tokens=False)
        if self.bos is not None and ids[:1] != [self.bos]:
            ids = [self.bos, *ids]
        return torch.tensor(ids, dtype=torch.long)

    def chat_tokens(self, messages: Chat) -> tuple[Int[Tensor, "pos"], Bool[Tensor, "pos"]]:
        """Token ids of a chat, with BOS exactly once, and True on the tokens of assistant turns.

        Raises MechlabError when the tokenizer has no chat template or no offsets, or when its
        template does not let turns be told apart (see ``mechlab.models.chat``).
        """
        ids, assistant = self.chat_rows(messages)
        if self.bos is not None:
            ids, assistant = [self.bos, *ids], [False, *assistant]
        return torch.tensor(ids, dtype=torch.long), torch.tensor(assistant, dtype=torch.bool)

    def chat_rows(self, messages: Chat) -> tuple[list[int], list[bool]]:
        """``chat_tokens`` as lists and without BOS, for a caller that puts contexts together."""
        ids, assistant = chat_rows(self.tokenizer, messages)
        return (ids[1:], assistant[1:]) if ids[:1] == [self.bos] else (ids, assistant)

    def token_text(self, token: int) -> str:
        """One token as it would be written, its leading space kept.

        A token that is part of a character shows its vocabulary entry.
        """
        entry: str = self.tokenizer.convert_ids_to_tokens(token)
        if entry.startswith("▁"):
            return entry.replace("▁", " ")
        text: str = self.tokenizer.decode([token])
        if "\ufffd" in text:
            return entry
        # Word-level vocabularies have no spaces; texts are words divided by them.
        return f" {text}" if self._word_level and text.isalnum() else text

    @functools.cached_property
    def _word_level(self) -> bool:
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        return type(getattr(backend, "model", None)).__name__ == "WordLevel"

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 over everything that decides what the model computes.

        Covers weights, tokenizer, class, config, dtype, attention implementation and the
        BOS policy. Reads every weight once.
        """
        weights = hashlib.sha256()
        for name, tensor in sorted(self.module.state_dict().items()):
            flat = tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8)
            weights.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            weights.update(flat.numpy())
        config = self.module.config.to_dict()
        # The place a model was loaded from and the version that saved it change nothing it computes.
        for key in ("_name_or_path", "transformers_version"):
            config.pop(key, None)
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        vocabulary = self.tokenizer.get_vocab()
        if backend is not None:
            # Whoever encoded last may have set truncation and padding.
            state = json.loads(backend.to_str())
            vocabulary = {key: part for key, part in state.items() if key not in ("truncation", "padding")}
        return fingerprint(
            {
                "weights": weights.hexdigest(),
                "processing": "none",
                "class": type(self.module).__name__,
                "config": _plain(config),
                "dtype": str(self.dtype),
                "attention": self.module.config._attn_implementation,
                "tokenizer": vocabulary,
                "chat_template": self.tokenizer.chat_template,
                "bos": self.bos,
            }
        )

    def bridge(self) -> Any:
        """A TransformerLens ``TransformerBridge`` of this model, on a copy of its own.

        The bridge rewrites the module it wraps, so it never gets ours. It forces eager
        attention and is slower than the module; use it for hooks that the site table lacks.
        """
        return boot_bridge(self.module, self.tokenizer)

    @torch.no_grad()
    def run_bridge(
        self,
        tokens: Int[Tensor, "batch pos"],
        hooks: Sequence[tuple[str, Callable[..., None]]],
        mask: Bool[Tensor, "batch pos"] | None = None,
    ) -> None:
        """Run this subject's own bridge, a copy made at the first call, with TransformerLens hooks.

        The copy sees neither hooks on the module nor later changes of its weights.

        Args:
            hooks: (hook name, function of (tensor, hook)).
            mask: True on real tokens; needed when the model is not causal and a row is padded.
        """
        extra = {} if mask is None or self.causal else {"attention_mask": mask.long().to(self.device)}
        self._bridge.run_with_hooks(tokens.to(self.device), fwd_hooks=list(hooks), return_type=None, **extra)

    @functools.cached_property
    def _bridge(self) -> Any:
        return self.bridge()

    @functools.cached_property
    def _bridge_sites(self) -> dict[str, Site]:
        return {}

    def _ask_bridge(self, name: str) -> Site:
        try:
            hooks = self._bridge.hook_dict
        except Exception as error:  # a bridge that cannot be booted has no sites, whatever stopped it
            raise MechlabError(f"model {self.name} has no site", name, near(name, self.sites)) from error
        if name not in hooks:
            known = [*self.sites, *(hook for hook in hooks if hook not in self.sites)]
            raise MechlabError(f"model {self.name} has no site", name, near(name, known))
        site = probe_site(name, self.run_bridge, self.module.config)
        warnings.warn(
            f"site {name} is not in the table: read through the TransformerLens bridge, which is slower",
            stacklevel=3,
        )
        return site

    @torch.no_grad()
    def logits(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_vocab"]:
        """Logits of a batch of equally long token rows (no padding)."""
        output: Tensor = self.module(tokens.to(self.device), use_cache=False).logits
        return output


def load_model(
    name: str | Path = BUNDLED,
    *,
    dtype: str | torch.dtype | None = None,
    device: str = "auto",
    device_map: str | dict[str, Any] | None = None,
    revision: str | None = None,
    token: str | None = None,
    quantisation: str | None = None,
    trust_remote_code: bool = False,
) -> Subject:
    """Load a model to study.

    Args:
        name: "fable" (bundled), a directory in Hugging Face layout, a hub name, or "compiled/reverse"
            and the like, a compiled program.
        dtype: weights' floating type; float32 on a CPU and the checkpoint's own type elsewhere by default.
        device: "auto", "cpu", "cuda" or "cuda:N"; ignored when ``device_map`` is given.
        device_map, revision, token, trust_remote_code: as in ``transformers``.
        quantisation: "8bit" or "4bit" through bitsandbytes (CUDA only).

    Raises MechlabError when the model is not found, has no tokenizer, is of an
    architecture without a site table, cannot be reached offline, or when the device is absent.
    """
    if str(name).startswith("compiled/"):
        from mechlab.models.compiled.subject import compiled_subject  # which makes a Subject

        return compiled_subject(str(name), device=device)
    place = resolve_device(device)
    kind = resolve_dtype(dtype, place)
    extra = quantisation_options(quantisation)
    source = find_source(str(name))
    local = Path(source).is_dir()
    options: dict[str, Any] = {"revision": revision, "token": token, "trust_remote_code": trust_remote_code}
    if not local and hub_is_offline():
        options["local_files_only"] = True
    with loading_errors(str(name), local):
        from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

        config = AutoConfig.from_pretrained(source, **options)
        tokenizer = load_tokenizer(source, str(name), options)
        auto = AutoModelForCausalLM if layout_of(config).causal else AutoModelForMaskedLM
        with no_loading_bar():
            module, report = auto.from_pretrained(
                source,
                config=config,
                dtype=kind,
                device_map=device_map,
                output_loading_info=True,
                **options,
                **extra,
            )
        absent = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
        if absent:  # transformers would fill them at random
            raise MechlabError(
                f"weights of {name} are missing or of another shape", absent[0], "check the checkpoint"
            )
    if device_map is None and quantisation is None:
        module = module.to(place)
    module = module.eval()
    module.requires_grad_(False)
    if layout_of(config).causal:
        module.base_model.warn_if_padding_and_no_attention_mask = _no_warning
    return Subject(str(name), module, tokenizer, site_table(module))


def _no_warning(*_: Any) -> None:
    """Rows without a mask are padded on the right at most, which a causal model cannot see."""


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
