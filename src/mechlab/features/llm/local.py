"""A causal model on this machine as the language model that is asked."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechlab.errors import MechlabError
from mechlab.features.llm.client import CallFailed, Message, Reply, Request, TokenOdds
from mechlab.models.subject import Subject


class LocalClient:
    """A client that generates with a loaded model, one request at a time.

    Greedy at temperature 0; else sampled by a generator whose seed is the request, so that the same
    request has the same answer. A schema is not enforced: the answer is checked like any other.

    Args:
        subject: the model. Without a chat template messages are written one below the other, as
            "role: content".
    """

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self.model = subject.name
        self.endpoint = f"local:{subject.fingerprint}"
        self._turn = threading.Lock()

    async def complete(self, request: Request) -> Reply:
        """Generate. Raises CallFailed when the prompt and the answer do not fit into the model's context."""
        return await asyncio.to_thread(self._answer, request)

    async def close(self) -> None:
        """Nothing to let go."""

    def _answer(self, request: Request) -> Reply:
        with self._turn, torch.no_grad():
            prompt = self._prompt(request.messages)
            room = self._subject.n_ctx - len(prompt)
            if room < 1:
                message = f"prompt of {len(prompt)} tokens is too long for {self.model}"
                raise CallFailed("http", message, retry=False)
            ids, odds, ended = self._generate(prompt, request, min(request.max_tokens, room))
        text = self._subject.tokenizer.decode(ids)
        shown = tuple(odds) if request.logprobs else None
        return Reply(text, len(prompt), len(ids), shown, "stop" if ended else "length")

    def _prompt(self, messages: tuple[Message, ...]) -> list[int]:
        chat = [{"role": each.role, "content": each.content} for each in messages]
        try:
            tokens = self._subject.tokens(chat, start_reply=True)
        except MechlabError:
            written = "".join(f"{each.role}: {each.content}\n\n" for each in messages)
            tokens = self._subject.tokens(f"{written}assistant:")
        found: list[int] = tokens.tolist()
        return found

    def _generate(
        self, prompt: list[int], request: Request, most: int
    ) -> tuple[list[int], list[TokenOdds], bool]:
        module, device = self._subject.module, self._subject.device
        generator = torch.Generator().manual_seed(int(request.key(self.endpoint)[:15], 16))
        stops = _stops(module, self._subject.tokenizer)
        ids: list[int] = []
        odds: list[TokenOdds] = []
        step, past, said = torch.tensor([prompt], device=device), None, ""
        while len(ids) < most:
            told = module(step, past_key_values=past, use_cache=True)
            past, logits = told.past_key_values, told.logits[0, -1].float().cpu()
            chosen = _choose(logits, request.temperature, generator)
            if chosen in stops:
                return ids, odds, True
            ids.append(chosen)
            if request.logprobs:
                text = self._subject.tokenizer.decode(ids)
                odds.append(self._odds(logits, chosen, text[len(said) :], request.logprobs))
                said = text
            step = torch.tensor([[chosen]], device=device)
        return ids, odds, False

    def _odds(self, logits: Float[Tensor, "d_vocab"], chosen: int, text: str, count: int) -> TokenOdds:
        logs = logits.log_softmax(-1)
        values, tokens = logs.topk(min(count, len(logs)))
        pairs = zip(tokens.tolist(), values.tolist(), strict=True)
        top = tuple((self._subject.token_text(token), value) for token, value in pairs)
        return TokenOdds(text, float(logs[chosen]), top)


def _choose(logits: Float[Tensor, "d_vocab"], temperature: float | None, generator: torch.Generator) -> int:
    if temperature == 0:
        return int(logits.argmax())
    odds = (logits / (1.0 if temperature is None else temperature)).softmax(-1)
    return int(torch.multinomial(odds, 1, generator=generator))


def _stops(module: Any, tokenizer: Any) -> set[int]:
    """Tokens that end an answer."""
    configured = getattr(getattr(module, "generation_config", None), "eos_token_id", None)
    several = configured if isinstance(configured, list) else [configured]
    return {int(each) for each in (*several, tokenizer.eos_token_id) if each is not None}
