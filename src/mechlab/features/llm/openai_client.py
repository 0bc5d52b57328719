"""Any server that speaks the OpenAI chat-completions protocol: OpenAI, vLLM, llama.cpp, Ollama, …"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from mechlab.errors import MechlabError
from mechlab.features.llm.client import (
    CallFailed,
    Reply,
    Request,
    TokenOdds,
    call_failed,
    counted,
    encodable,
    library,
    refused_field,
)

if TYPE_CHECKING:
    import openai

OPENAI = "https://api.openai.com/v1"


class OpenAIClient:
    """A client of the OpenAI protocol.

    A server that refuses ``response_format``, ``temperature`` or ``logprobs`` is asked without from
    then on; prompts say the form as well, and answers are checked either way.

    Args:
        model: name of the model, as the server knows it.
        base_url: the server; None: OPENAI_BASE_URL, else OpenAI itself.
        key: None: OPENAI_API_KEY; a server of one's own may need none.
        timeout: seconds to wait for an answer.

    Raises MechlabError when the ``openai`` package is missing, or when OpenAI itself is asked without a key.
    """

    def __init__(
        self, model: str, *, base_url: str | None = None, key: str | None = None, timeout: float = 120.0
    ) -> None:
        with library("openai"):
            import openai  # noqa: F401
        self.model = model
        self.endpoint = (base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI).rstrip("/")
        self._key = key or os.environ.get("OPENAI_API_KEY") or None
        if self._key is None and self.endpoint == OPENAI:
            raise MechlabError(
                "no key for OpenAI", remedy="set OPENAI_API_KEY, or give base_url of another server"
            )
        self._timeout = timeout
        self._left_out: set[str] = set()
        self._connection: openai.AsyncOpenAI | None = None

    async def complete(self, request: Request) -> Reply:
        """Send once. Raises CallFailed when no answer came."""
        while True:
            fields = self._fields(request)
            try:
                return await self._send(fields, request)
            except CallFailed as failed:
                field = refused_field(failed, fields)
                if field is None:
                    raise
                self._left_out.add(field)

    async def close(self) -> None:
        """Let the connections go."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def _send(self, fields: dict[str, Any], request: Request) -> Reply:
        import openai

        if self._connection is None:
            # Whoever sends keeps a budget, so that it must see every try: no retries in here.
            self._connection = openai.AsyncOpenAI(
                base_url=self.endpoint, api_key=self._key or "none", timeout=self._timeout, max_retries=0
            )
        try:
            told = await self._connection.chat.completions.create(**fields)
        except (openai.OpenAIError, ValueError) as error:  # ValueError: a body that is not JSON
            raise call_failed(error) from error
        try:
            return _reply(told, request)
        except (AttributeError, TypeError, ValueError, LookupError) as error:  # JSON, but no completion
            raise call_failed(error) from error

    def _fields(self, request: Request) -> dict[str, Any]:
        # OpenAI's newer models know only the new name, other servers often only the old one.
        limit = "max_completion_tokens" if self.endpoint == OPENAI else "max_tokens"
        fields: dict[str, Any] = {
            "model": request.model,
            "messages": [{"role": each.role, "content": each.content} for each in request.messages],
            limit: request.max_tokens,
        }
        if request.temperature is not None:
            fields["temperature"] = request.temperature
        if request.logprobs:
            fields |= {"logprobs": True, "top_logprobs": request.logprobs}
        if request.schema is not None:
            schema = {"name": "answer", "schema": json.loads(json.dumps(request.schema)), "strict": True}
            fields["response_format"] = {"type": "json_schema", "json_schema": schema}
        if "logprobs" in self._left_out:
            fields.pop("top_logprobs", None)
        return {name: value for name, value in fields.items() if name not in self._left_out}


def _reply(told: Any, request: Request) -> Reply:
    choice = told.choices[0]
    refusal = getattr(choice.message, "refusal", None)
    refused = refusal is not None or choice.finish_reason == "content_filter"
    odds = None
    if choice.logprobs is not None and choice.logprobs.content is not None:
        odds = tuple(
            TokenOdds(
                encodable(each.token),
                float(each.logprob),
                tuple((encodable(top.token), float(top.logprob)) for top in each.top_logprobs),
            )
            for each in choice.logprobs.content
        )
    text = encodable(refusal or choice.message.content or "")
    read = "".join(each.content for each in request.messages)
    return Reply(
        text=text,
        input_tokens=counted(getattr(told.usage, "prompt_tokens", None), read),
        output_tokens=counted(getattr(told.usage, "completion_tokens", None), text),
        logprobs=odds,
        stop="refused" if refused else "length" if choice.finish_reason == "length" else "stop",
    )
