"""The scripted server speaks both protocols as the providers' own libraries understand them."""

from __future__ import annotations

import anthropic
import httpx
import openai
import pytest

from mechlab.features.llm.server import Answer, ScriptedServer, first, some


def _ask(server: ScriptedServer, **more: object) -> httpx.Response:
    body = {"model": "m", "messages": [{"role": "user", "content": "one two"}], **more}
    return httpx.post(f"{server.url}/chat/completions", json=body, timeout=1.0)


def test_the_openai_library_reads_text_counts_and_odds() -> None:
    with ScriptedServer(lambda body: Answer('{"answers": [1, 0]}', 0.75)) as server:
        client = openai.OpenAI(base_url=server.url, api_key="none", max_retries=0)
        told = client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "one two"}], logprobs=True, top_logprobs=2
        )
    assert told.choices[0].message.content == '{"answers": [1, 0]}'
    assert told.usage is not None
    assert (told.usage.prompt_tokens, told.usage.completion_tokens) == (2, 11)
    assert told.choices[0].logprobs is not None
    tokens = told.choices[0].logprobs.content or []
    assert "".join(each.token for each in tokens) == '{"answers": [1, 0]}'
    one = next(each for each in tokens if each.token == "1")
    assert [each.token for each in one.top_logprobs] == ["1", "0"]
    assert one.logprob == pytest.approx(-0.28768, abs=1e-4)
    assert [each.body["messages"][0]["content"] for each in server.log] == ["one two"]


def test_the_anthropic_library_reads_tool_input() -> None:
    with ScriptedServer(lambda body: '{"answers": [1]}') as server:
        client = anthropic.Anthropic(base_url=server.url.removesuffix("/v1"), api_key="none", max_retries=0)
        told = client.messages.create(
            model="m",
            max_tokens=99,
            messages=[{"role": "user", "content": "one two"}],
            tools=[{"name": "answer", "input_schema": {"type": "object"}}],
            tool_choice={"type": "tool", "name": "answer"},
        )
    assert told.stop_reason == "tool_use"
    assert told.content[0].type == "tool_use"
    assert told.content[0].input == {"answers": [1]}


def test_every_fault_as_a_client_sees_it() -> None:
    faults = ("429", "500", "hang", "drop", "truncated", "refusal", "short", "prose")
    with ScriptedServer(lambda body: '{"answers": [1, 0]}', faults=first(*faults)) as server:
        limited = _ask(server)
        assert (limited.status_code, limited.headers["retry-after"]) == (429, "0.02")
        assert _ask(server).status_code == 500
        with pytest.raises(httpx.ReadTimeout):
            _ask(server)
        with pytest.raises(httpx.RemoteProtocolError):
            _ask(server)
        with pytest.raises(ValueError, match=r"Expecting|Unterminated"):
            _ask(server).json()
        messages = [_ask(server).json()["choices"][0]["message"] for _ in range(4)]
    assert messages[0]["content"] is None
    assert "can't help" in messages[0]["refusal"]
    assert messages[1]["content"] == '{"answers": [1]}'
    assert "{" not in messages[2]["content"]
    assert messages[3]["content"] == '{"answers": [1, 0]}'
    assert [each.fault for each in server.log] == [*faults, None]
    # What a provider charges for: everything that the model said, whether or not it arrived.
    assert [each.output_tokens > 0 for each in server.log] == [False] * 4 + [True] * 5


def test_faults_follow_from_the_request_and_not_from_the_order() -> None:
    plan = some(("429", "500"), 0.5, seed=3)
    bodies = [{"n": n} for n in range(200)]
    hit = {n: plan(body, 0) for n, body in enumerate(bodies)}
    assert hit == {n: plan(body, 0) for n, body in reversed(list(enumerate(bodies)))}
    assert 70 < sum(fault is not None for fault in hit.values()) < 130
    assert {"429", "500"} <= set(hit.values())
    assert all(plan(body, 1) is None for body in bodies)


def test_an_answer_longer_than_allowed_is_cut() -> None:
    with ScriptedServer(lambda body: "one two three") as server:
        choice = _ask(server, max_tokens=2).json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("one two", "length")
