"""Chats as tokens, with the tokens of assistant turns marked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mechlab.errors import MechlabError

Message = dict[str, str]


def render_chat(tokenizer: Any, messages: Sequence[Message], *, start_reply: bool = False) -> str:
    """A chat as the tokenizer's template writes it; with ``start_reply``, up to where a reply begins.

    Raises MechlabError when the tokenizer has no template, or its template refuses the messages.
    """
    if not tokenizer.chat_template:
        raise MechlabError("tokenizer has no chat template", None, "pass plain text")
    from jinja2 import TemplateError

    try:
        text: str = tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=start_reply
        )
    except (TemplateError, TypeError, ValueError, KeyError) as error:
        raise MechlabError("chat template refuses the messages", error, "check roles and order") from error
    return text


def chat_rows(tokenizer: Any, messages: Sequence[Message]) -> tuple[list[int], list[bool]]:
    """Token ids of a chat, as its template writes it, and whether each belongs to an assistant turn.

    An assistant turn is what the template writes for its message beyond the start of a reply:
    the content and the end-of-turn marker, not the header before it. It is found by rendering the
    messages before the turn with the start of a reply, and the messages up to and including it.

    Args:
        tokenizer: a fast tokenizer with a chat template.
        messages: {"role", "content"} in order.

    Returns:
        (ids, assistant), without a BOS beyond the one that the template may write.

    Raises MechlabError when the template refuses the messages, or writes an earlier part of the
    chat differently once more messages follow, so that turns cannot be told apart.
    """
    whole = render_chat(tokenizer, messages)
    turns = []
    for i, message in enumerate(messages):
        if message.get("role") == "assistant":
            if i == 0:
                raise MechlabError(
                    "chat opens with an assistant turn, so its start cannot be told apart",
                    repr(message["content"][:40]),
                    "put a user or system message before it",
                )
            start = render_chat(tokenizer, messages[:i], start_reply=True)
            end = render_chat(tokenizer, messages[: i + 1])
            if not (whole.startswith(start) and whole.startswith(end) and len(start) <= len(end)):
                raise MechlabError(
                    "chat template rewrites earlier turns, so assistant turns cannot be told apart",
                    f"turn {i}: {message['content'][:40]!r}",
                    "pass chats that end with this turn, or a template that only appends",
                )
            turns.append((len(start), len(end)))
    if not tokenizer.is_fast:
        raise MechlabError("tokenizer gives no offsets", type(tokenizer).__name__, "load its fast version")
    encoded = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
    # A token that begins in a turn belongs to it; a token of no characters belongs to none.
    assistant = [
        left < right and any(start <= left < end for start, end in turns)
        for left, right in encoded["offset_mapping"]
    ]
    return list(encoded["input_ids"]), assistant
