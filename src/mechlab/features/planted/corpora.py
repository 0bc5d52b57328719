"""Texts to plant features in: Fable with its concept labels, and stories of a real tokenizer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Bool

from mechlab.data.corpus import open_corpus
from mechlab.data.fable import lexicon as lex
from mechlab.data.fable.concepts import CONCEPTS
from mechlab.data.fable.corpus import documents
from mechlab.data.stream import contexts
from mechlab.features.text import Text, text_of
from mechlab.features.vocabulary import Vocabulary, vocabulary_of
from mechlab.models.subject import Subject


def fable_vocabulary() -> Vocabulary:
    """The bundled model's vocabulary, as ``vocabulary_of`` gives it, without loading the model."""
    return Vocabulary(tuple(f" {word}" if word.isalnum() else word for word in lex.VOCABULARY))


def fable_text(
    tokens: int, *, split: str = "train", start: int = 0
) -> tuple[Text, Bool[np.ndarray, "row concept"]]:
    """Whole documents of Fable with at least so many tokens, and every token's concepts.

    Args:
        start: number of the first document.

    A split that ends earlier gives fewer. Columns of the labels are in the order of ``CONCEPTS``.
    """
    passages: list[list[int]] = []
    labels: list[np.ndarray] = []
    have = 0
    for document in documents(split, start=start):
        if have >= tokens:
            break
        passages.append([lex.TOKEN_ID[word] for word in document.tokens])
        labels.append(document.concepts)
        have += len(document.tokens)
    table = np.concatenate(labels) if labels else np.zeros((0, len(CONCEPTS)), bool)
    return text_of(passages, fable_vocabulary(), first=start), table


def corpus_text(subject: Subject, source: Path | str, tokens: int, *, split: str = "train") -> Text:
    """A corpus as a model would see it, with at least so many tokens where it has them."""
    passages: list[list[int]] = []
    numbers: list[int] = []
    have = 0
    stream = contexts(
        open_corpus(source), split, subject.tokenizer, n_ctx=subject.n_ctx, batch=64, pack=False,
        render=subject.chat_rows,
    )  # fmt: skip
    for part in stream:
        for row in range(len(part.tokens)):
            kept = part.mask[row].clone()
            if subject.bos is not None:
                kept &= part.tokens[row] != subject.bos
            passages.append(part.tokens[row][kept].tolist())
            numbers.append(int(part.document[row][kept][0]) if kept.any() else 0)
            have += len(passages[-1])
        if have >= tokens:
            break
    stream.close()
    made = text_of(passages, vocabulary_of(subject))
    document = np.repeat(np.array(numbers, np.int64), [len(each) for each in passages])
    return Text(made.tokens, made.context, made.position, document, made.vocabulary)
