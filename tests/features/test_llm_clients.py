"""Clients as they talk to servers, and a model on this machine as one."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import mechlab
from features.llm_questions import MODEL, PRICE, SCHEMA, answer, question, values
from mechlab.errors import MechlabError
from mechlab.features.llm.anthropic_client import AnthropicClient
from mechlab.features.llm.client import CallFailed, Client, Failure, Message, Reply, Request, TokenOdds
from mechlab.features.llm.job import LlmJob
from mechlab.features.llm.local import LocalClient
from mechlab.features.llm.openai_client import OpenAIClient
from mechlab.features.llm.schema import Malformed, listing, parse, record
from mechlab.features.llm.server import Answer, ScriptedServer, first
from mechlab.models.subject import Subject


def test_openai_sends_what_was_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    request = Request(
        (Message("system", "be brief"), Message("user", "item 4"), Message("assistant", "ok")),
        MODEL,
        77,
        temperature=None,
        schema=SCHEMA,
        logprobs=3,
    )
    with ScriptedServer(lambda body: Answer('{"answers": [1, 0, 1]}', 0.8)) as server:
        client = OpenAIClient(MODEL, base_url=server.url)
        assert isinstance(client, Client)

        async def talk() -> Reply:
            try:
                return await client.complete(request)
            finally:
                await client.close()

        reply = asyncio.run(talk())
        again = asyncio.run(talk())
    assert reply == again
    assert reply.text == '{"answers": [1, 0, 1]}'
    assert reply.logprobs is not None
    assert "".join(each.text for each in reply.logprobs) == reply.text
    body = server.requests[0]
    assert body["messages"] == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "item 4"},
        {"role": "assistant", "content": "ok"},
    ]
    assert (body["max_tokens"], body["top_logprobs"]) == (77, 3)
    assert "temperature" not in body
    assert body["response_format"]["json_schema"]["schema"] == SCHEMA


@pytest.mark.parametrize("fault", ["429", "500", "hang", "drop", "refusal", "short", "401"])
def test_anthropic_under_faults(tmp_path: Path, fault: str) -> None:
    with ScriptedServer(answer, faults=first(fault)) as server:
        url = server.url.removesuffix("/v1")
        client = AnthropicClient(MODEL, base_url=url, key="none", timeout=0.3)
        job = LlmJob(client, tmp_path / "cache", prices={MODEL: PRICE}, wait=0.01)
        if fault == "401":
            with pytest.raises(MechlabError, match="check the key"):
                job.run([question(7)])
            return
        outcomes = job.run([question(7)])
        assert len(server.log) == (1 if fault == "refusal" else 2)
    assert values(outcomes) == (["refused"] if fault == "refusal" else [[7, 1, 2]])
    body = server.requests[0]
    assert body["temperature"] == 0.0
    assert body["system"] == "Answer in JSON."
    assert [each["role"] for each in body["messages"]] == ["user"]
    assert body["tools"][0]["input_schema"] == SCHEMA
    assert body["tool_choice"] == {"type": "tool", "name": "answer"}


class Choosy(ScriptedServer):
    """Knows neither schemas nor temperatures, log-probabilities and tools; names one at a time."""

    def respond(self, body: dict[str, Any], anthropic: bool) -> tuple[int, bytes | None]:
        for field in ("temperature", "top_logprobs", "response_format", "tools"):
            if field in body:
                return 400, json.dumps(
                    {"error": {"message": f"{field}: not supported by this model"}}
                ).encode()
        return super().respond(body, anthropic)


@pytest.mark.parametrize("anthropic", [False, True])
def test_what_a_server_will_not_have_is_left_out(tmp_path: Path, anthropic: bool) -> None:
    with Choosy(answer) as server:
        if anthropic:
            client: Client = AnthropicClient(MODEL, base_url=server.url.removesuffix("/v1"), key="none")
        else:
            client = OpenAIClient(MODEL, base_url=server.url, key="none")
        job = LlmJob(client, tmp_path / "cache", concurrency=2)
        outcomes = job.run([replace(question(n), logprobs=2) for n in range(5)])
        assert len(server.log) == 5
        assert job.spent.answers == 5
    assert values(outcomes) == [[n, 1, 2] for n in range(5)]


def test_anthropic_free_text_and_its_end(tmp_path: Path) -> None:
    with ScriptedServer(lambda body: "one two three") as server:
        client = AnthropicClient(MODEL, base_url=server.url.removesuffix("/v1"), key="none")
        job = LlmJob(client, tmp_path / "cache")
        requests = [Request((Message("user", "item 3"),), MODEL, limit) for limit in (9, 2)]
        whole, cut = job.run(requests)
    assert isinstance(whole, Reply)
    assert isinstance(cut, Reply)
    assert (whole.text, whole.stop, cut.text, cut.stop) == ("one two three", "stop", "one two", "length")


def test_keys_are_needed_where_they_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "ANTHROPIC_API_KEY", "ANTHROPIC_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(MechlabError, match="set OPENAI_API_KEY"):
        OpenAIClient("gpt")
    with pytest.raises(MechlabError, match="set ANTHROPIC_API_KEY"):
        AnthropicClient("claude")
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    assert OpenAIClient("gpt").endpoint == "https://api.openai.com/v1"


def test_a_missing_package_names_the_extra() -> None:
    code = (
        "import sys; sys.modules['openai'] = sys.modules['anthropic'] = None\n"
        "from mechlab.features.llm.openai_client import OpenAIClient\n"
        "from mechlab.features.llm.anthropic_client import AnthropicClient\n"
        "for each in (OpenAIClient, AnthropicClient):\n"
        "    try: each('m', base_url='http://x')\n"
        "    except Exception as error: print(error)\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines() == [
        f"package {name} is missing (pip install 'mechlab[llm]')" for name in ("openai", "anthropic")
    ]


def test_keys_of_requests() -> None:
    one = question(1)
    assert one.key("here") == question(1).key("here")
    others = [question(2).key("here"), one.key("there"), question(1, model="m").key("here")]
    assert len({one.key("here"), *others}) == 4


def test_replies_survive_the_cache() -> None:
    odds = (TokenOdds("a", -0.1, (("a", -0.1), ("b", -2.0))),)
    reply = Reply("a", 3, 1, odds, "length")
    back = Reply.from_dict(json.loads(json.dumps(reply.to_dict())))
    assert back == Reply("a", 3, 1, odds, "length", cached=True)


def test_schemas() -> None:
    schema = record(kind={"type": "string", "enum": ["a", "b"]}, sizes=listing({"type": "number"}, 2))
    told = 'As asked: {not this} {"kind": "b", "sizes": [1, 2.5]} and {"kind": "a"}'
    assert parse(told, schema) == {"kind": "b", "sizes": [1, 2.5]}
    for wrong in ('{"kind": "c", "sizes": [1, 2]}', '{"kind": "a", "sizes": [1, "2"]}', '{"kind": "a"}', ""):
        with pytest.raises(Malformed):
            parse(wrong, schema)
    with pytest.raises(MechlabError, match="cannot be checked"):
        parse("{}", {"type": "object", "patternProperties": {}})


@pytest.fixture(scope="module")
def stories(stories_model: Path) -> Subject:
    return mechlab.load_model(str(stories_model))


def _complete(client: LocalClient, request: Request) -> Reply:
    return asyncio.run(client.complete(request))


def test_a_local_model_is_greedy_and_tells_its_odds(stories: Subject) -> None:
    client = LocalClient(stories)
    assert isinstance(client, Client)
    request = Request((Message("user", "Once upon a time there was"),), client.model, 8, logprobs=4)
    reply = _complete(client, request)
    assert reply == _complete(client, request)
    assert reply.logprobs is not None
    assert "".join(each.text for each in reply.logprobs) == reply.text
    # The slow way: no cache of keys and values, a whole forward for every token.
    ids = stories.tokens("user: Once upon a time there was\n\nassistant:").tolist()
    assert reply.input_tokens == len(ids)
    for token in reply.logprobs:
        logs = stories.logits(torch.tensor([ids]))[0, -1].log_softmax(-1)
        assert token.logprob == pytest.approx(float(logs.max()), abs=1e-4)
        assert [each for _, each in token.top] == pytest.approx(logs.topk(4).values.tolist(), abs=1e-4)
        ids.append(int(logs.argmax()))
    assert (reply.output_tokens, reply.stop) == (8, "length")


def test_a_local_model_samples_by_the_request(stories: Subject) -> None:
    client = LocalClient(stories)
    requests = [
        Request((Message("user", "Lily"),), client.model, 12, temperature=1.0, sample=sample)
        for sample in range(4)
    ]
    told = [_complete(client, each).text for each in requests]
    torch.manual_seed(99)
    assert told == [_complete(client, each).text for each in requests]
    assert len(set(told)) > 1


def test_a_local_model_in_a_job(stories: Subject, tmp_path: Path) -> None:
    client = LocalClient(stories)
    job = LlmJob(client, tmp_path / "cache", again=0)
    outcomes = job.run(
        [
            Request((Message("user", "Lily"),), client.model, 5),
            Request((Message("user", "Lily"),), client.model, 5, schema=SCHEMA),
            Request((Message("user", "Lily " * 2000),), client.model, 5),
        ]
    )
    assert isinstance(outcomes[0], Reply)
    assert [each.kind for each in outcomes[1:] if isinstance(each, Failure)] == ["malformed", "http"]
    with pytest.raises(CallFailed, match="too long"):
        _complete(client, Request((Message("user", "Lily " * 2000),), client.model, 5))
