"""What the tokens of a text say, so that features can be shown and explained without the model."""

from __future__ import annotations

import codecs
import functools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Int

from mechlab.models.subject import Subject

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


@dataclass(frozen=True)
class Piece:
    """Tokens shown together, as some are only parts of a character.

    Attributes:
        text: what they say; bytes that are no character are written like "\\xf0".
        start, stop: which of the tokens.
    """

    text: str
    start: int
    stop: int


@dataclass(frozen=True)
class Vocabulary:
    """The text of every token id.

    Attributes:
        texts: as written, the leading space kept; of a token that is part of a character, any text
            that names it.
        partial: bytes of the tokens that are parts of characters.
    """

    texts: tuple[str, ...]
    partial: Mapping[int, bytes] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, token: int) -> str:
        return self.texts[token]

    @functools.cached_property
    def _ids(self) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for token, text in enumerate(self.texts):
            found.setdefault(text, []).append(token)
        return found

    def ids(self, texts: Iterable[str]) -> Int[np.ndarray, "token"]:
        """Every token id with one of these texts, ascending; texts that no token has are passed over."""
        return np.array(sorted({token for text in texts for token in self._ids.get(text, ())}), np.int64)

    def __contains__(self, text: str) -> bool:
        return text in self._ids

    def pieces(self, tokens: Int[np.ndarray, "token"]) -> list[Piece]:
        """Tokens as text, parts of one character joined; the pieces cover the tokens in order."""
        found: list[Piece] = []
        at = 0
        ids = tokens.tolist()
        while at < len(ids):
            stop = at + 1
            if ids[at] in self.partial:
                data = self.partial[ids[at]]
                # After bytes that are no character what follows may still be one.
                while stop < len(ids) and _ends_inside(data) and self.continues(ids[stop]):
                    data += self.partial[ids[stop]]
                    stop += 1
                found.append(Piece(data.decode("utf-8", "backslashreplace"), at, stop))
            else:
                found.append(Piece(self.texts[ids[at]], at, stop))
            at = stop
        return found

    def string(self, tokens: Int[np.ndarray, "token"]) -> str:
        """Tokens as running text."""
        return "".join(piece.text for piece in self.pieces(tokens))

    def continues(self, token: int) -> bool:
        """Whether a token begins inside a character: all bytes of UTF-8 but the first begin with bits 10."""
        data = self.partial.get(token, b"")
        return data[:1] != b"" and data[0] & 0xC0 == 0x80

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "texts": list(self.texts),
            "partial": {str(token): data.hex() for token, data in sorted(self.partial.items())},
        }

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Vocabulary:
        """The inverse of ``to_dict``."""
        partial = {int(token): bytes.fromhex(data) for token, data in fields["partial"].items()}
        return cls(tuple(fields["texts"]), partial)


def vocabulary_of(subject: Subject) -> Vocabulary:
    """The vocabulary of a model's tokenizer, one entry for every row of its embedding."""
    tokenizer = subject.tokenizer
    entries = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    special = set(tokenizer.all_special_ids)
    texts: list[str] = []
    partial: dict[int, bytes] = {}
    for token, entry in enumerate(entries):
        # A gap in the numbering has no entry.
        texts.append(subject.token_text(token) if entry is not None else f"<{token}>")
        data = None if entry is None or token in special else _part(entry, tokenizer.decode([token]))
        if data is not None:
            partial[token] = data
    rows = subject.module.get_input_embeddings().num_embeddings
    texts += [f"<{token}>" for token in range(len(texts), rows)]
    return Vocabulary(tuple(texts), partial)


def _ends_inside(data: bytes) -> bool:
    """Whether bytes end inside a character of UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
    decoder.decode(data)
    return decoder.getstate()[0] != b""


def _part(entry: str, decoded: str) -> bytes | None:
    """Bytes of an entry that is only part of a character; None for any other.

    Llama's byte tokens are written <0x0A>; in GPT-2's byte-level vocabularies every character of an
    entry stands for a byte, and one that is no text of its own decodes to the replacement character.
    """
    found = _BYTE.fullmatch(entry)
    if found:
        return bytes.fromhex(found.group(1))
    if "\ufffd" not in decoded or any(letter not in _LETTERS for letter in entry):
        return None
    return bytes(_LETTERS[letter] for letter in entry)


def _byte_letters() -> dict[str, int]:
    """GPT-2's letter for every byte: itself where it can be seen, else the next letter from U+0100 on."""
    seen = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters = {chr(byte): byte for byte in seen}
    hidden = [byte for byte in range(256) if byte not in seen]
    return letters | {chr(0x100 + place): byte for place, byte in enumerate(hidden)}


_LETTERS = _byte_letters()
