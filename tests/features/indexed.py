"""What indexes of tiny models are compared with: documents run one at a time, everything dense."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mechlab.activations.capture import read_sites
from mechlab.data.corpus import Corpus
from mechlab.features.index import FeatureIndex
from mechlab.models.subject import Subject


def naive_rows(
    subject: Subject, corpus: Corpus, sites: list[str], rows: int, split: str = "train"
) -> tuple[list[tuple[int, int, int]], dict[str, Tensor]]:
    """(document, position, token) of every row, and its activations; documents are cut at n_ctx."""
    places: list[tuple[int, int, int]] = []
    values: dict[str, list[Tensor]] = {site: [] for site in sites}
    for document in corpus.documents(split):
        assert isinstance(document.text, str)
        ids = subject.tokens(document.text)[1:]
        for part in ids.split(subject.n_ctx - 1):
            tokens = torch.cat([torch.tensor([subject.bos]), part])
            for site, value in read_sites(subject, tokens[None], sites).items():
                values[site].append(value[0, 1:])
            places += [(document.id, at + 1, int(token)) for at, token in enumerate(part)]
        if len(places) >= rows:
            break
    return places[:rows], {site: torch.cat(found)[:rows] for site, found in values.items()}


def dense(index: FeatureIndex) -> np.ndarray:
    """Every feature on every row ``[row, feature]``."""
    return np.stack([index.dense(feature) for feature in range(index.n_features)], axis=1)


def places(index: FeatureIndex) -> list[tuple[int, int, int]]:
    text = index.text
    columns = (text.document, text.position, text.tokens)
    return list(zip(*(np.asarray(column).tolist() for column in columns), strict=True))
