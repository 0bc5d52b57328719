"""Texts as vectors: any sentence-embedding model of Hugging Face's, and a weak one without weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from jaxtyping import Bool, Float, Float32
from torch import Tensor

from mechlab.data.corpus import hub_is_offline
from mechlab.errors import MechlabError, near
from mechlab.features.scoring.readers import words_of
from mechlab.models.loading import loading_errors, no_loading_bar, resolve_device

Embed = Callable[[list[str]], Float[np.ndarray, "text d"]]
"""Texts → one vector each, of length 1 or 0, so that a dot product is the cosine."""

_POOLINGS = ("mean", "cls", "last")
# sentence-transformers' name of a pooling -> ours.
_STORED = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "last",
}


def sentence_embedder(
    name: str | Path, *, pooling: str | None = None, batch: int = 64, device: str = "auto"
) -> Embed:
    """A sentence-embedding model as a function: pooled last hidden states, scaled to length 1.

    Args:
        name: directory in Hugging Face layout, or a hub name. Dense layers that some models put
            behind the pooling are not applied.
        pooling: "mean" over real tokens, "cls" (the first), or "last" (real token). By default
            what a sentence-transformers directory says (1_Pooling/config.json), else "mean".
        batch: texts in one forward. Texts are cut at the model's longest input.
        device: "auto", "cpu", "cuda" or "cuda:N".

    Raises MechlabError when the model is not found, needs dense layers, or the pooling is unknown.
    """
    place = resolve_device(device)
    chosen = pooling or _stored_pooling(Path(name))
    if chosen not in _POOLINGS:
        raise MechlabError("unknown pooling", chosen, near(chosen, _POOLINGS))
    if (Path(name) / "2_Dense").is_dir():
        raise MechlabError("embedding model has dense layers", name, "use one that ends in its pooling")
    local = Path(name).is_dir()
    options: dict[str, Any] = {} if local or not hub_is_offline() else {"local_files_only": True}
    with loading_errors(str(name), local):
        from transformers import AutoModel, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(str(name), **options)
        with no_loading_bar():
            module = AutoModel.from_pretrained(str(name), **options).eval().to(place)
    longest = min(tokenizer.model_max_length, int(module.config.max_position_embeddings))
    tokenizer.padding_side = "right"

    @torch.no_grad()
    def embed(texts: list[str]) -> Float[np.ndarray, "text d"]:
        found = np.zeros((len(texts), module.config.hidden_size), np.float32)
        # Texts of like length together: less padding. The order comes back at the end.
        order = sorted(range(len(texts)), key=lambda text: len(texts[text]))
        for begin in range(0, len(order), batch):
            members = order[begin : begin + batch]
            given = tokenizer(
                [texts[member] for member in members],
                padding=True,
                truncation=True,
                max_length=longest,
                return_tensors="pt",
            ).to(place)
            hidden = module(**given).last_hidden_state.float()
            found[members] = _pooled(hidden, given["attention_mask"].bool(), chosen).cpu().numpy()
        return _unit(found)

    return embed


def character_embedder(dim: int = 4096, sizes: tuple[int, ...] = (3, 4, 5)) -> Embed:
    """Hashed counts of the character n-grams of words: needs no weights, and no file.

    A weak embedder: it sees that texts share words and parts of words, and nothing of what they
    mean ("cat" and "kitten" are strangers). Scores with it are a floor, for offline use and tests.

    Signed feature hashing of log(1 + count) (Weinberger et al. 2009, arXiv 0902.2206) of the n-grams
    of ``sizes`` within each word, edges marked (Bojanowski et al. 2017, arXiv 1607.04606), and whole
    words; lower case.

    Args:
        dim: length of a vector; fewer collide more.
    """
    places: dict[str, tuple[int, float]] = {}

    def place(gram: str) -> tuple[int, float]:
        if gram not in places:
            code = xxhash.xxh64_intdigest(gram.encode())
            places[gram] = (code % dim, 1.0 if code >> 63 else -1.0)
        return places[gram]

    def embed(texts: list[str]) -> Float[np.ndarray, "text d"]:
        found = np.zeros((len(texts), dim), np.float32)
        for row, text in enumerate(texts):
            counts: dict[str, int] = {}
            for word in words_of(text):
                for gram in _grams(f"<{word}>", sizes):
                    counts[gram] = counts.get(gram, 0) + 1
            for gram, count in counts.items():
                column, sign = place(gram)
                found[row, column] += sign * np.log1p(count)
        return _unit(found)

    return embed


def _grams(word: str, sizes: tuple[int, ...]) -> list[str]:
    parts = [word[i : i + size] for size in sizes for i in range(len(word) - size + 1) if size < len(word)]
    return [word, *parts]


def _pooled(
    hidden: Float[Tensor, "text pos d"], real: Bool[Tensor, "text pos"], pooling: str
) -> Float[Tensor, "text d"]:
    if pooling == "cls":
        return hidden[:, 0]
    if pooling == "last":
        return hidden[torch.arange(len(hidden)), real.sum(-1) - 1]
    mean: Tensor = (hidden * real[..., None]).sum(1) / real.sum(-1, keepdim=True).clamp_min(1)
    return mean


def _stored_pooling(path: Path) -> str:
    config = path / "1_Pooling" / "config.json"
    if not config.is_file():
        return "mean"
    fields = json.loads(config.read_text(encoding="utf-8"))
    chosen = [ours for theirs, ours in _STORED.items() if fields.get(theirs)]
    if len(chosen) != 1:
        raise MechlabError("pooling of this embedding model is not known here", str(config), "pass pooling=")
    return chosen[0]


def _unit(vectors: Float32[np.ndarray, "text d"]) -> Float32[np.ndarray, "text d"]:
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: np.ndarray = np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 0)
    return unit
