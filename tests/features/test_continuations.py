"""Continuations with keys and values kept against full forwards, one for every token."""

from __future__ import annotations

import contextlib
from itertools import islice

import pytest
import torch
from torch import Tensor

from mechlab.errors import MechlabError
from mechlab.features.continuations import continuations, next_tokens
from mechlab.interventions.edit import editing
from mechlab.interventions.edits import add
from mechlab.models.subject import Subject, load_model
from mechlab.sae.splice import At, splicing
from mechlab.sae.topk import TopK, TopKConfig
from tiny import save_tiny_model

SITE = "blocks.1.hook_resid_post"


@pytest.fixture(scope="module", params=["gpt2", "llama", "gpt_neox", "gemma2"])
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return load_model(save_tiny_model(tmp_path_factory.mktemp("model"), request.param))


def prompts(subject: Subject) -> Tensor:
    return torch.stack(
        [subject.tokens(text) for text in ("the cat sat on", "a red dog saw", "she ran to the")]
    )


@torch.no_grad()
def whole(subject: Subject, tokens: Tensor, count: int, temperature: float, seed: int) -> Tensor:
    """The definition: a full forward of everything so far for each new token."""
    generator, start = torch.Generator().manual_seed(seed), tokens.shape[1]
    for _ in range(count):
        logits = subject.logits(tokens)[:, -1].float()
        if temperature:
            draw = torch.rand(logits.shape, generator=generator).clamp_min(1e-20)
            logits = logits / temperature - torch.log(-torch.log(draw))
        tokens = torch.cat([tokens, logits.argmax(-1, keepdim=True)], dim=1)
    return tokens[:, start:]


def changes(subject: Subject) -> list[contextlib.AbstractContextManager[object]]:
    """Nothing; an edit of all positions but the first; a dictionary with one latent off and one held."""
    sae = TopK(TopKConfig(site=SITE, d_sae=32, k=4), 16)
    sae.initialise(torch.zeros(16), torch.Generator().manual_seed(0))
    push = add(torch.linspace(-1, 1, 16), 3.0)
    where = slice(1, None)
    return [
        contextlib.nullcontext(),
        editing(subject, "blocks.0.hook_resid_post", push, where),
        splicing(subject, At(sae, (SITE,), (SITE,)), ablate=[3], clamp={5: 4.0}, positions=where),
    ]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_they_are_those_of_full_forwards(subject: Subject, temperature: float) -> None:
    tokens, seen = prompts(subject), []
    for change in changes(subject):
        with change:
            generator = torch.Generator().manual_seed(7)
            found = continuations(subject, tokens, 9, temperature=temperature, generator=generator)
            assert torch.equal(found, whole(subject, tokens, 9, temperature, 7))
        seen.append(found)
    assert not torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])


def test_every_position_is_computed_once(subject: Subject) -> None:
    lengths: list[int] = []
    handle = subject.module.get_input_embeddings().register_forward_hook(
        lambda _, args, __: lengths.append(args[0].shape[1])
    )
    try:
        written = list(islice(next_tokens(subject, prompts(subject), temperature=0.0), 4))
    finally:
        handle.remove()
    assert lengths == [5, 1, 1, 1]
    together = continuations(subject, prompts(subject), 4, temperature=0.0)
    assert torch.equal(torch.stack(written, dim=1), together)
    assert continuations(subject, prompts(subject), 0, temperature=0.0).shape == (3, 0)


def test_what_cannot_be_written_is_refused(subject: Subject) -> None:
    with pytest.raises(MechlabError, match="longer than the model's context"):
        list(next_tokens(subject, prompts(subject), temperature=0.0))
