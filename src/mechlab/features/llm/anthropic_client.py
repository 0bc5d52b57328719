"""Claude through the Anthropic messages protocol."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from mechlab.errors import MechlabError
from mechlab.features.llm.client import (
    CallFailed,
    Reply,
    Request,
    call_failed,
    counted,
    encodable,
    library,
    refused_field,
)

if TYPE_CHECKING:
    import anthropic

ANTHROPIC = "https://api.anthropic.com"


class AnthropicClient:
    """A client of the Anthropic protocol. It tells no log-probabilities; replies have none.

    Answers with a schema come as the input of a tool that the model must use. A model that refuses
    ``tools`` or ``temperature`` is asked without from then on; answers are checked either way.

    Args:
        model: name of the model.
        base_url: the server, without the "/v1"; None: ANTHROPIC_BASE_URL, else Anthropic itself.
        key: None: ANTHROPIC_API_KEY.
        timeout: seconds to wait for an answer.

    Raises MechlabError when the ``anthropic`` package or the key is missing.
    """

    def __init__(
        self, model: str, *, base_url: str | None = None, key: str | None = None, timeout: float = 120.0
    ) -> None:
        with library("anthropic"):
            import anthropic  # noqa: F401
        self.model = model
        self.endpoint = (base_url or os.environ.get("ANTHROPIC_BASE_URL") or ANTHROPIC).rstrip("/")
        self._key = key or os.environ.get("ANTHROPIC_API_KEY") or None
        if self._key is None and self.endpoint == ANTHROPIC:
            raise MechlabError("no key for Anthropic", remedy="set ANTHROPIC_API_KEY")
        self._timeout = timeout
        self._left_out: set[str] = set()
        self._connection: anthropic.AsyncAnthropic | None = None

    async def complete(self, request: Request) -> Reply:
        """Send once. Raises CallFailed when no answer came."""
        while True:
            fields = _fields(request, self._left_out)
            try:
                return await self._send(fields, request)
            except CallFailed as failed:
                field = refused_field(failed, {*fields, *fields["extra_body"]})
                if field is None:
                    raise
                self._left_out.add(field)

    async def close(self) -> None:
        """Let the connections go."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def _send(self, fields: dict[str, Any], request: Request) -> Reply:
        import anthropic

        if self._connection is None:
            self._connection = anthropic.AsyncAnthropic(
                base_url=self.endpoint, api_key=self._key or "none", timeout=self._timeout, max_retries=0
            )
        try:
            told = await self._connection.messages.create(**fields)
        except (anthropic.AnthropicError, ValueError) as error:  # ValueError: a body that is not JSON
            raise call_failed(error) from error
        try:
            return _reply(told, request)
        except (AttributeError, TypeError, ValueError, LookupError) as error:  # JSON, but no message
            raise call_failed(error) from error


def _fields(request: Request, left_out: set[str]) -> dict[str, Any]:
    system = "\n\n".join(each.content for each in request.messages if each.role == "system")
    fields: dict[str, Any] = {
        "model": request.model,
        "messages": [
            {"role": each.role, "content": each.content} for each in request.messages if each.role != "system"
        ],
        "max_tokens": request.max_tokens,
    }
    if system:
        fields["system"] = system
    # The library no longer names it, as new models do not take it; those before them do.
    known = request.temperature is not None and "temperature" not in left_out
    fields["extra_body"] = {"temperature": request.temperature} if known else {}
    if request.schema is not None and "tools" not in left_out:
        schema = json.loads(json.dumps(request.schema))
        fields["tools"] = [{"name": "answer", "description": "Give the answer.", "input_schema": schema}]
        fields["tool_choice"] = {"type": "tool", "name": "answer"}
    return fields


def _reply(told: Any, request: Request) -> Reply:
    used = [json.dumps(block.input, ensure_ascii=False) for block in told.content if block.type == "tool_use"]
    said = [block.text for block in told.content if block.type == "text"]
    stop = {"refusal": "refused", "max_tokens": "length"}.get(told.stop_reason, "stop")
    text = encodable("".join(used or said))
    read = counted(told.usage.input_tokens, "".join(each.content for each in request.messages))
    for kind in ("creation", "read"):
        read += counted(getattr(told.usage, f"cache_{kind}_input_tokens", None), "")
    return Reply(text, read, counted(told.usage.output_tokens, text), stop=stop)
