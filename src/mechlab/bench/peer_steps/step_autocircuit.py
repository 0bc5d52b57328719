"""auto-circuit 1.0.1 on a GPT-2 given by its weights: its edge attribution and its test of single edges.

Attribution is its ``mask_gradient_prune_scores`` at mask 0 with the gradient of the logit difference,
which is edge attribution patching with the gradient at the clean run. An edge is tested as its ACDC
tests one: patched in ``patch_mode``, from the layer of the edge's reader on, with the clean run's
residual stream and sources taken from before. Weights want no gradient, as its own loader of models
has it.

Requests beside those of every process (``serve.py``):

* ``{"init": {"weights": file, "prompts": file, "config": {…}, "sources": [name], "readers": [name],
  "device": str, "out": file}}`` → ``{"edges": int}``. ``weights`` is a state of Hugging Face's
  ``GPT2LMHeadModel``; ``prompts`` holds ``clean [n pos]``, ``corrupt [n pos]``, ``answers [n]`` and
  ``wrong [n]``. The last position's clean ``logits [n d_vocab]`` are written to ``out``.
* ``{"forward": null}`` → ``{"seconds"}`` of a forward on the clean prompts, nothing patched.
* ``{"eap": null}`` → ``{"seconds"}`` of an attribution of all edges.
* ``{"scores": file}`` → ``{}``; the last attribution's ``scores [source reader]`` by the names given
  are written.
* ``{"ready": null}`` → ``{}``; the runs that one request for edges starts from, and overwrites, are made.
* ``{"edges": {"edges": [[source, reader]], "out": file}}`` → ``{"seconds"}`` of all tests together;
  ``values [edge]``, the mean logit difference with that edge patched, are written.
"""

from __future__ import annotations

import re
import time
from typing import Any

import torch
from auto_circuit.data import PromptDataLoader, PromptDataset  # type: ignore[import-not-found]
from auto_circuit.prune_algos.mask_gradient import (  # type: ignore[import-not-found]
    mask_gradient_prune_scores,
)
from auto_circuit.utils.ablation_activations import src_ablations  # type: ignore[import-not-found]
from auto_circuit.utils.graph_utils import (  # type: ignore[import-not-found]
    patch_mode,
    patchable_model,
    set_all_masks,
)
from auto_circuit.utils.tensor_ops import batch_avg_answer_diff  # type: ignore[import-not-found]
from safetensors.torch import load_file, save_file
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.pretrained.weight_conversions.gpt2 import convert_gpt2_weights
from transformers import GPT2Config, GPT2LMHeadModel

PACKAGE = "auto-circuit"


class Session:
    """A model, its prompts, and what is asked about them."""

    device = torch.device("cpu")

    def init(self, value: dict[str, Any]) -> dict[str, Any]:
        self.device = torch.device(value["device"])
        model = _hooked(value["config"], value["weights"]).to(self.device)
        prompts = {name: each.to(self.device) for name, each in load_file(value["prompts"]).items()}
        answers, wrong = prompts["answers"][:, None], prompts["wrong"][:, None]
        self.model = patchable_model(
            model, factorized=True, slice_output="last_seq", separate_qkv=True, device=self.device
        )
        dataset = PromptDataset(prompts["clean"], prompts["corrupt"], list(answers), list(wrong))
        self.prompts = PromptDataLoader(dataset, seq_len=None, diverge_idx=0, batch_size=len(answers))
        self.places = {
            edge: (
                value["sources"].index(_name(edge.src.name)),
                value["readers"].index(_name(edge.dest.name)),
            )
            for edge in self.model.edges
        }
        self.edge_at = {place: edge for edge, place in self.places.items()}
        self.shape = (len(value["sources"]), len(value["readers"]))
        with torch.inference_mode():
            logits = self.model(prompts["clean"])[self.model.out_slice]
        save_file({"logits": logits.cpu().contiguous()}, value["out"])
        return {"edges": len(self.places)}

    def forward(self, _: None) -> dict[str, Any]:
        batch = next(iter(self.prompts))
        started = self._now()
        with torch.inference_mode():
            self.model(batch.clean)
        return {"seconds": self._now() - started}

    def eap(self, _: None) -> dict[str, Any]:
        for wrapper in self.model.dest_wrappers:
            wrapper.patch_mask.grad = None  # it adds to what an earlier call left
        started = self._now()
        self.found = mask_gradient_prune_scores(
            self.model, self.prompts, None, grad_function="logit", answer_function="avg_diff", mask_val=0.0
        )
        return {"seconds": self._now() - started}

    def scores(self, out: str) -> dict[str, Any]:
        scores = torch.zeros(self.shape)
        for edge, place in self.places.items():
            scores[place] = edge.prune_score(self.found)
        save_file({"scores": scores}, out)
        return {}

    def ready(self, _: None) -> dict[str, Any]:
        batch, model = next(iter(self.prompts)), self.model
        self.corrupt, self.clean = src_ablations(model, batch.corrupt), src_ablations(model, batch.clean)
        with torch.inference_mode():
            self.tokens, *self.extras = model.input_to_embed(batch.clean)[1:]
            names = [f"blocks.{layer}.hook_resid_pre" for layer in range(model.cfg.n_layers)]
            _, cache = model.run_with_cache(batch.clean, names_filter=names)
            self.resids = [cache[name].clone() for name in names]
        return {}

    def edges(self, value: dict[str, Any]) -> dict[str, Any]:
        edges = [self.edge_at[source, reader] for source, reader in value["edges"]]
        # Latest readers first, as in its ACDC: a run from a layer on overwrites only later sources.
        order = sorted(range(len(edges)), key=lambda n: -edges[n].dest.layer)
        values = torch.zeros(len(edges))
        batch, model = next(iter(self.prompts)), self.model
        short, attention = self.extras
        set_all_masks(model, val=0.0)
        started = self._now()
        with patch_mode(model, self.corrupt, curr_src_outs=self.clean), torch.inference_mode():
            for n in order:
                edge = edges[n]
                edge.patch_mask(model).data[edge.patch_idx] = 1.0
                layer = int(edge.dest.module_name.split(".")[1])
                logits = model(
                    self.resids[layer],
                    start_at_layer=layer,
                    tokens=self.tokens,
                    shortformer_pos_embed=short,
                    attention_mask=attention,
                )[model.out_slice]
                values[n] = batch_avg_answer_diff(logits, batch)
                edge.patch_mask(model).data[edge.patch_idx] = 0.0
        seconds = self._now() - started
        save_file({"values": values}, value["out"])
        return {"seconds": seconds}

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def _hooked(config: dict[str, Any], weights: str) -> Any:
    """The model with exactly these weights, nothing folded or centred, all that edges need switched on."""
    module = GPT2LMHeadModel(GPT2Config(**config)).eval()
    state = load_file(weights)
    missing = module.load_state_dict(state, strict=False).missing_keys
    assert missing in ([], ["lm_head.weight"]), missing
    module.tie_weights()
    own = HookedTransformerConfig(
        n_layers=config["n_layer"],
        d_model=config["n_embd"],
        n_ctx=config["n_positions"],
        d_head=config["n_embd"] // config["n_head"],
        n_heads=config["n_head"],
        d_vocab=config["vocab_size"],
        act_fn="gelu_new",
        eps=module.config.layer_norm_epsilon,
        normalization_type="LN",
        init_weights=False,
        device="cpu",
    )
    for name in ("use_attn_result", "use_attn_in", "use_split_qkv_input", "use_hook_mlp_in"):
        setattr(own, name, True)
    model = HookedTransformer(own, move_to_device=False)
    model.load_and_process_state_dict(
        convert_gpt2_weights(module, own),
        fold_ln=False,
        center_writing_weights=False,
        center_unembed=False,
        fold_value_biases=False,
    )
    return model.eval().requires_grad_(False)


def _name(theirs: str) -> str:
    """Our name of one of its nodes: "A3.4.Q" is "a3.h4.q", "MLP 2" is "m2"."""
    ends = {"Resid Start": "embed", "Resid End": "logits"}
    if theirs in ends:
        return ends[theirs]
    found = re.fullmatch(r"A(\d+)\.(\d+)(?:\.([QKV]))?", theirs)
    if found is None:
        return theirs.replace("MLP ", "m")
    layer, head, part = found.groups()
    return f"a{layer}.h{head}" + (f".{part.lower()}" if part else "")
