"""Which positions of a batch are wanted."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Bool, Int
from torch import Tensor

from mechlab.errors import MechlabError
from mechlab.models.subject import Subject


@dataclass(frozen=True)
class Selection:
    """Positions to keep; padding never is.

    Attributes:
        bos: whether to keep BOS tokens, wherever they stand.
        special: whether to keep the tokenizer's other special tokens (end of sequence, unknown,
            the markers of a chat template).
        first: first position to keep; BOS stands at position 0.
        last: positions from here on are left out; None keeps all.
        assistant: whether to keep only the tokens of assistant turns.

    Raises MechlabError for ``first`` below 0 or ``last`` not above ``first``.
    """

    bos: bool = False
    special: bool = True
    first: int = 0
    last: int | None = None
    assistant: bool = False

    def __post_init__(self) -> None:
        if self.first < 0:
            raise MechlabError("first position is negative", self.first, "count from 0, where BOS stands")
        if self.last is not None and self.last <= self.first:
            raise MechlabError(
                "last position is not after the first", self.last, f"above {self.first}, or None"
            )

    def chosen(
        self,
        subject: Subject,
        tokens: Int[Tensor, "context pos"],
        mask: Bool[Tensor, "context pos"],
        assistant: Bool[Tensor, "context pos"] | None = None,
    ) -> Bool[Tensor, "context pos"]:
        """True where a position is wanted.

        Args:
            tokens: token ids.
            mask: True on real tokens.
            assistant: True on tokens of assistant turns; needed only by ``assistant=True``.

        Raises MechlabError when assistant turns are wanted and ``assistant`` is None.
        """
        chosen = mask.clone()
        chosen[:, : self.first] = False
        if self.last is not None:
            chosen[:, self.last :] = False
        if not self.bos and subject.bos is not None:
            chosen &= tokens != subject.bos
        if not self.special:
            special = subject.special_tokens.to(tokens.device)
            # Tokens without an embedding are refused by whoever runs the model.
            chosen &= ~special[tokens.clamp(max=len(special) - 1)]
        if self.assistant:
            if assistant is None:
                raise MechlabError("texts have no assistant turns", None, "pass chats, or assistant=False")
            chosen &= assistant
        return chosen
