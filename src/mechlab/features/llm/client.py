"""What is asked of a language model, what comes back, and who may answer."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from mechlab.errors import MechlabError
from mechlab.files import fingerprint


@dataclass(frozen=True)
class Message:
    """One turn of a chat. Halves of a character, which no message can hold, are written out as "\\ud83d"."""

    role: Literal["system", "user", "assistant"]
    content: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "content", encodable(self.content))


@dataclass(frozen=True)
class Request:
    """One question to a language model.

    Attributes:
        messages: the chat so far; it ends with the user's turn.
        model: the provider's name of the model.
        max_tokens: longest answer, in the model's tokens.
        temperature: 0 is greedy; None leaves it to the provider (some models accept nothing else).
        schema: JSON schema of the answer (``mechlab.features.llm.schema``); None: free text.
        logprobs: how many likely tokens to report at every place of the answer; 0: none.
        sample: which answer, when the same is asked more than once; never sent.
    """

    messages: tuple[Message, ...]
    model: str
    max_tokens: int
    temperature: float | None = 0.0
    schema: Mapping[str, Any] | None = None
    logprobs: int = 0
    sample: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    def key(self, endpoint: str) -> str:
        """SHA-256 of the request and of where it is sent: equal requests have equal keys."""
        return fingerprint({"endpoint": endpoint, **self.to_dict()})


@dataclass(frozen=True)
class TokenOdds:
    """One token of an answer.

    Attributes:
        text: the token.
        logprob: its log-probability (natural logarithm).
        top: the likeliest tokens at its place and their log-probabilities, likeliest first.
    """

    text: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Reply:
    """A language model's answer.

    Attributes:
        text: its message.
        input_tokens, output_tokens: what the provider counted.
        logprobs: its tokens with their odds, where they were asked for and given.
        stop: why it ended: "stop" (it had ended), "length" (``max_tokens``) or "refused".
        cached: whether it was paid for earlier.
    """

    text: str
    input_tokens: int
    output_tokens: int
    logprobs: tuple[TokenOdds, ...] | None = None
    stop: str = "stop"
    cached: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; ``cached`` is not among them."""
        fields = asdict(self)
        del fields["cached"]
        return fields

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Reply:
        """The inverse of ``to_dict``, as an answer from the cache."""
        odds = fields["logprobs"]
        if odds is not None:
            tops = [tuple((text, float(each)) for text, each in token["top"]) for token in odds]
            odds = tuple(TokenOdds(t["text"], t["logprob"], top) for t, top in zip(odds, tops, strict=True))
        return cls(**{**fields, "logprobs": odds}, cached=True)


@dataclass(frozen=True)
class Failure:
    """Why there is no answer. Never to be read as one.

    Attributes:
        kind: "refused" (the model declined), "malformed" (the answer is not of the form that was
            asked for), "http" (the server said no), "timeout" (it said nothing) or "budget".
        message: what happened, on one line.
        attempts: how often the question was sent.
    """

    kind: Literal["refused", "malformed", "http", "timeout", "budget"]
    message: str
    attempts: int


class CallFailed(Exception):
    """One sending that came to nothing; whoever sent it decides whether to send again.

    Args:
        kind: as of a ``Failure``.
        message: what happened, on one line.
        retry: whether it may go better next time.
        billed: whether the provider may charge for it all the same.
        after: seconds that the server asked to wait.
        remedy: what to do, when every other request would fail alike.
        unreachable: no server was there.
    """

    def __init__(
        self,
        kind: Literal["http", "timeout"],
        message: str,
        *,
        retry: bool,
        billed: bool = False,
        after: float | None = None,
        remedy: str | None = None,
        unreachable: bool = False,
    ) -> None:
        super().__init__(message)
        self.kind, self.message, self.retry, self.billed = kind, message, retry, billed
        self.after, self.remedy, self.unreachable = after, remedy, unreachable


def encodable(text: object) -> str:
    """A text as it can be sent and kept. TypeError for what is no text."""
    if not isinstance(text, str):
        raise TypeError(f"{type(text).__name__} where a text belongs")
    return text.encode("utf-8", "backslashreplace").decode()


def counted(told: object, text: str) -> int:
    """Tokens, as a server counted them; of one that does not, as many as there are bytes: never too few."""
    known = isinstance(told, int) and not isinstance(told, bool) and 0 <= told < 2**40
    return int(told) if known else len(text.encode())  # type: ignore[call-overload]


@runtime_checkable
class Client(Protocol):
    """Whoever answers requests.

    Attributes:
        endpoint: where the answers come from; part of the name under which they are kept.
        model: the model to ask, for callers that build requests.
    """

    @property
    def endpoint(self) -> str: ...

    @property
    def model(self) -> str: ...

    async def complete(self, request: Request) -> Reply:
        """Send once. Raises CallFailed when no answer came."""
        ...

    async def close(self) -> None:
        """End of a batch: let connections go. ``complete`` may be called again, in another event loop."""
        ...


_SYSTEMIC = {
    401: "check the key",
    402: "top up the account",
    403: "the key has no right to this model",
    404: "check the model's name and the server's address",
}


def call_failed(error: Exception) -> CallFailed:
    """What an error of the openai or anthropic library means.

    Both are made by the same generator, so that names and attributes agree. What the provider may
    charge for: answers that were lost on the way back, and everything that a gateway gave up on.
    """
    status = getattr(error, "status_code", None)
    message = " ".join(str(getattr(error, "message", None) or error).split())[:300]
    if isinstance(status, int):
        code = getattr(error, "code", None)
        spent = status == 429 and code == "insufficient_quota"
        return CallFailed(
            "http",
            message,
            retry=(status in (408, 409, 429) or status >= 500) and not spent,
            billed=status in (408, 502, 504),
            after=_retry_after(error),
            remedy="top up the account" if spent else _SYSTEMIC.get(status),
        )
    causes = [type(error).__name__]
    cause: BaseException | None = error
    while cause is not None and (cause := cause.__cause__ or cause.__context__) is not None:
        causes.append(type(cause).__name__)
    unreachable = any(name in ("ConnectError", "ConnectTimeout", "UnsupportedProtocol") for name in causes)
    return CallFailed(
        "timeout" if any("Timeout" in name for name in causes) else "http",
        message,
        retry=True,
        billed=not unreachable and "PoolTimeout" not in causes,
        unreachable=unreachable,
    )


# Field of a request that a server may not know → words by which its complaint is told.
_OPTIONAL = {
    "response_format": ("response_format", "json_schema", "structured output"),
    "temperature": ("temperature",),
    "logprobs": ("logprobs",),
    "tools": ("tool",),
}


def refused_field(failed: CallFailed, sent: Collection[str]) -> str | None:
    """The optional field that a server will not have; None when something else was wrong.

    One model takes no temperature, one server no schema: without them it answers, and the answer is
    checked all the same.
    """
    if failed.retry or failed.remedy is not None:
        return None
    blamed = (name for name, words in _OPTIONAL.items() if any(word in failed.message for word in words))
    return next((name for name in blamed if name in sent), None)


def _retry_after(error: Exception) -> float | None:
    """Seconds of a Retry-After header; dates and nonsense count as none."""
    response: Any = getattr(error, "response", None)
    with contextlib.suppress(AttributeError, TypeError, ValueError):
        seconds = float(response.headers["retry-after"]) if "retry-after" in response.headers else -1.0
        return seconds if 0 <= seconds < float("inf") else None
    return None


@contextlib.contextmanager
def library(name: str) -> Iterator[None]:
    """Imports of an optional package; MechlabError naming the extra when it is not installed."""
    try:
        yield
    except ImportError as error:
        raise MechlabError(f"package {name} is missing", remedy="pip install 'mechlab[llm]'") from error
