"""Runs in a peer's environment: dictionaries of its own library, saved its own way, and what they compute.

python peer_save.py FOLDER: one folder per case, in the library's layout, with ``expected.pt`` beside
(x, codes, output).
"""

import json
import sys
import types
from pathlib import Path

import torch

D_IN, D_SAE, K = 8, 20, 4


def fill(module: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(5)
    for name, parameter in sorted(module.named_parameters()):
        value = torch.randn(parameter.shape, generator=generator) * 0.5
        parameter.data.copy_(value.abs() if "threshold" in name else value)


def keep(folder: Path, codes: torch.Tensor, output: torch.Tensor, x: torch.Tensor) -> None:
    torch.save({"x": x, "codes": codes, "output": output}, folder / "expected.pt")


@torch.no_grad()
def dictionary_learning(root: Path, x: torch.Tensor) -> None:
    # Imported for a buffer that runs language models.
    sys.modules["nnsight"] = types.ModuleType("nnsight")
    sys.modules["nnsight"].LanguageModel = object
    from dictionary_learning import dictionary
    from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
    from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
    from dictionary_learning.trainers.top_k import AutoEncoderTopK

    made = {
        "AutoEncoder": dictionary.AutoEncoder(D_IN, D_SAE),
        "AutoEncoderNew": dictionary.AutoEncoderNew(D_IN, D_SAE),
        "GatedAutoEncoder": dictionary.GatedAutoEncoder(D_IN, D_SAE),
        "JumpReluAutoEncoder": dictionary.JumpReluAutoEncoder(D_IN, D_SAE),
        "AutoEncoderTopK": AutoEncoderTopK(D_IN, D_SAE, K),
        "BatchTopKSAE": BatchTopKSAE(D_IN, D_SAE, K),
        "MatryoshkaBatchTopKSAE": MatryoshkaBatchTopKSAE(D_IN, D_SAE, K, [5, D_SAE - 5]),
    }
    for name, sae in made.items():
        folder = root / name
        folder.mkdir(parents=True)
        fill(sae)
        if "Batch" in name:
            sae.threshold.fill_(0.6)
        torch.save(sae.state_dict(), folder / "ae.pt")
        trainer = {"dict_class": name, "layer": 3, "lm_name": "tiny", "submodule_name": "resid_post_layer_3"}
        (folder / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {"ctx_len": 8}}))
        keep(folder, sae.encode(x), sae(x), x)


@torch.no_grad()
def sparsify(root: Path, x: torch.Tensor) -> None:
    from sparsify import SparseCoder, SparseCoderConfig

    cases = {
        "sae": {},
        "transcoder": {"transcode": True},
        "skip": {"transcode": True, "skip_connection": True},
    }
    for name, settings in cases.items():
        folder = root / name / "layers.3.mlp"
        sae = SparseCoder(D_IN, SparseCoderConfig(num_latents=D_SAE, k=K, **settings))
        fill(sae)
        sae.save_to_disk(folder)
        found = sae.encode(x)
        codes = torch.zeros(len(x), D_SAE).scatter(1, found.top_indices, found.top_acts)
        output = sae.decode(found.top_acts, found.top_indices)
        if sae.W_skip is not None:
            output = output + x @ sae.W_skip.mT
        keep(folder, codes, output, x)


if __name__ == "__main__":
    rows = torch.randn(17, D_IN, generator=torch.Generator().manual_seed(1)) * 2
    {"dictionary-learning": dictionary_learning, "sparsify": sparsify}[sys.argv[1]](Path(sys.argv[2]), rows)
