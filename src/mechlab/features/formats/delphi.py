"""delphi's cache of latents: safetensors files by range of latents, and ``config.json``.

Follows eai-delphi 0.1.3 (``latents/cache.py``, ``latents/loader.py``). ``FOLDER/{start}_{end}.safetensors``
holds ``locations [entry 3]`` = (row, column, latent - start), uint16 where that suffices and else
uint32; ``activations [entry]`` float16; ``tokens [row column]``, the same in every file. As there, what
is at most 1e-5 is not kept.

delphi's rows are of one length, cut from documents strung together; ours are passages, each padded to
the longest. Padding counts as text in which nothing is active. What delphi has no place for (lengths,
documents, positions) lies beside in ``passages.npz``, which it does not read; without that file a row
is a document.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from mechlab.errors import MechlabError
from mechlab.features.formats.folder import chosen, new_folder, read_json, write_json
from mechlab.features.index import FeatureIndex
from mechlab.features.text import Text
from mechlab.features.vocabulary import Vocabulary

LEAST = 1e-5
_CONFIG, _PASSAGES = "config.json", "passages.npz"
_SPLIT = re.compile(r"(\d+)_(\d+)")
_HALF_MAX = float(np.finfo(np.float16).max)


def write_delphi(
    index: FeatureIndex,
    path: Path | str,
    *,
    model: str = "",
    features: Sequence[int] | None = None,
    bos: int | None = None,
    pad: int | None = None,
    multiple: int = 32,
    splits: int = 5,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write the folder of one hookpoint, ``…/latents/{hookpoint}``.

    Args:
        model: name under which delphi finds the tokenizer.
        features: those to write; all by default. Ranges of latents stay those of the whole index.
        bos: token that came before every passage and is written as column 0.
        pad: token of the padding; by default ``bos``, or else token 0.
        multiple: the length of rows is one, as delphi cuts them into examples of ``example_ctx_len``.
        splits: number of files.

    Raises MechlabError for activations that float16 cannot hold, no features, and where ``path`` is taken.
    """
    if not index.n_features:
        raise MechlabError("index has no features", index.n_features, "index some")
    text, keep = index.text, chosen(index, features)
    tokens, place = layout(text, bos=bos, pad=pad, multiple=multiple)
    splits = max(1, min(splits, index.n_features))
    edges = np.linspace(0, index.n_features, splits + 1).astype(np.int64).tolist()
    with new_folder(path, overwrite=overwrite) as folder:
        for start, stop in itertools.pairwise(edges):
            inside = [each for each in keep if start <= each < stop]
            row, value, feature = _entries(index, inside)
            if value.max(initial=0.0) > _HALF_MAX:
                raise MechlabError("activation is beyond float16", float(value.max()), "scale the features")
            locations = np.stack([text.passage[row], place[row], feature - start], 1).astype(np.int64)
            small = locations.max(initial=0) < 2**16
            data = {
                "locations": np.ascontiguousarray(locations, np.uint16 if small else np.uint32),
                "activations": value.astype(np.float16),
                "tokens": tokens,
            }
            # Not save_file, which has an error of its own for a full disk.
            (folder / f"{start}_{stop - 1}.safetensors").write_bytes(save(data))
            if progress:
                progress(stop, index.n_features)
        write_json(folder / _CONFIG, _config(model, tokens.shape[1], tokens.size, splits), indent=4)
        first = text.bounds[:-1]
        np.savez(
            folder / _PASSAGES,
            length=np.diff(text.bounds),
            shift=np.int64(bos is not None),
            context=text.context[first],
            document=text.document[first],
            position=text.position,
        )


def read_delphi(
    path: Path | str, vocabulary: Vocabulary, *, bos: int | None = None, **about: Any
) -> FeatureIndex:
    """The index of one hookpoint's folder.

    Args:
        bos: token that is no text: its columns and what is active there are left out. Not needed for
            folders that ``write_delphi`` wrote.
        about: what the features are, for ``FeatureIndex.about``.

    Negative activations, which delphi keeps too, are left out. Raises MechlabError where the folder is
    none of delphi's, and for tokens beyond the vocabulary.
    """
    folder = Path(path)
    config = read_json(folder / _CONFIG)
    found = [(match, file) for file in folder.glob("*.safetensors") if (match := _SPLIT.fullmatch(file.stem))]
    if not found:
        raise MechlabError("no cache of delphi's", folder, "name the folder of one hookpoint")
    parts: list[tuple[np.ndarray, np.ndarray]] = []
    tokens, last = None, -1
    for match, file in sorted(found, key=lambda each: int(each[0][1])):
        try:
            data = load_file(file)
        except SafetensorError as error:
            raise MechlabError("file is no safetensors", file, str(error)) from None
        locations = data["locations"].astype(np.int64)
        locations[:, 2] += int(match[1])
        parts.append((locations, data["activations"].astype(np.float32)))
        tokens, last = data.get("tokens", tokens), max(last, int(match[2]))
    if tokens is None:
        raise MechlabError("cache holds no tokens", folder, "write it with save_tokens=True")
    if tokens.max(initial=0) >= len(vocabulary):
        raise MechlabError("token is not in the vocabulary", int(tokens.max()), "whose model is this?")
    text, real = _text(folder, tokens.astype(np.int32), vocabulary, bos)
    locations = np.concatenate([each for each, _ in parts])
    values = np.concatenate([each for _, each in parts])
    flat = locations[:, 0] * tokens.shape[1] + locations[:, 1]
    kept = real.reshape(-1)[flat] & (values > 0)
    row = (np.cumsum(real.reshape(-1)) - 1)[flat[kept]].astype(np.int32)
    feature, value = locations[kept, 2], values[kept]
    order = np.lexsort((row, feature))
    indptr = np.zeros(last + 2, np.int64)
    np.cumsum(np.bincount(feature, minlength=last + 1), out=indptr[1:])
    return FeatureIndex(text, indptr, row[order], value[order], {"delphi": config, **about})


def layout(
    text: Text, *, bos: int | None = None, pad: int | None = None, multiple: int = 32
) -> tuple[Int[np.ndarray, "line column"], Int[np.ndarray, "row"]]:
    """Passages as lines of one length, and the column of every row of the text.

    Args:
        bos, pad, multiple: as in ``write_delphi``.
    """
    lengths, shift = np.diff(text.bounds), 0 if bos is None else 1
    width = max(-(-(int(lengths.max(initial=1)) + shift) // multiple) * multiple, multiple)
    column = np.arange(len(text)) - text.bounds[:-1][text.passage] + shift
    filler = pad if pad is not None else bos if bos is not None else 0
    tokens = np.full((len(lengths), width), filler, np.int64)
    if bos is not None:
        tokens[:, 0] = bos
    tokens[text.passage, column] = text.tokens
    return tokens, column


def _entries(
    index: FeatureIndex, features: list[int]
) -> tuple[Int[np.ndarray, "entry"], Float32[np.ndarray, "entry"], Int[np.ndarray, "entry"]]:
    """What is active of these features, ordered by row as delphi's own files are."""
    several = [index.entries(each) for each in features]
    row = np.concatenate([each for each, _ in several] or [np.zeros(0, np.int32)])
    value = np.concatenate([each for _, each in several] or [np.zeros(0, np.float32)])
    feature = np.repeat(np.array(features, np.int64), [len(each) for each, _ in several])
    kept = value > LEAST
    row, value, feature = row[kept], value[kept], feature[kept]
    # Features ascend already.
    order = np.argsort(row, kind="stable")
    return row[order], value[order], feature[order]


def _config(model: str, width: int, n_tokens: int, splits: int) -> dict[str, Any]:
    """The fields of delphi's CacheConfig; it looks for the data set only where the files hold no tokens."""
    return {
        "dataset_repo": "", "dataset_split": "", "dataset_name": "", "dataset_column": "text",
        "batch_size": 32, "cache_ctx_len": width, "n_tokens": n_tokens, "n_splits": splits,
        "model_name": model,
    }  # fmt: skip


def _text(
    folder: Path, tokens: Int[np.ndarray, "line column"], vocabulary: Vocabulary, bos: int | None
) -> tuple[Text, Bool[np.ndarray, "line column"]]:
    """The text, and which columns are text."""
    column = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
    line = np.broadcast_to(np.arange(len(tokens))[:, None], tokens.shape)
    if (folder / _PASSAGES).exists():
        with np.load(folder / _PASSAGES) as kept:
            shift = int(kept["shift"])
            real = (column >= shift) & (column < shift + kept["length"][:, None])
            context, document = kept["context"][line[real]], kept["document"][line[real]]
            return Text(tokens[real], context, kept["position"], document, vocabulary), real
    real = np.ones(tokens.shape, bool) if bos is None else tokens != bos
    number = line[real].astype(np.int64)
    return Text(tokens[real], number, column[real].astype(np.int64), number, vocabulary), real
