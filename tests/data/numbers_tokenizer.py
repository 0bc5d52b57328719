"""A tokenizer simple enough to read its tokens off the text."""

from __future__ import annotations

from typing import Any


class Numbers:
    """A tokenizer of numbers between spaces; 0 is BOS. Counts what it is given."""

    def __init__(self, bos: int | None = 0, cls: int | None = None) -> None:
        self.bos_token_id, self.cls_token_id, self.texts = bos, cls, 0

    def __call__(self, chunk: list[str], **_: Any) -> dict[str, list[list[int]]]:
        self.texts += len(chunk)
        return {"input_ids": [[int(word) for word in text.split() if word != "-"] for text in chunk]}
