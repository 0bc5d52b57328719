"""Small random models and prompt pairs for the circuit tests."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, GPTNeoXConfig, LlamaConfig

from mechlab.data.tasks import Task
from mechlab.models.subject import Subject

VOCABULARY = 30
_SMALL = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "vocab_size": VOCABULARY,
    "intermediate_size": 32,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
_CONFIGS = {
    "gpt2": GPT2Config(n_embd=24, n_layer=3, n_head=4, vocab_size=VOCABULARY, bos_token_id=0, eos_token_id=0),
    "neox": GPTNeoXConfig(**_SMALL),
    "llama": LlamaConfig(**_SMALL, num_key_value_heads=2),
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """``architecture`` in a test's arguments runs it for every architecture."""
    if "architecture" in metafunc.fixturenames:
        metafunc.parametrize("architecture", list(_CONFIGS))


@pytest.fixture(scope="session")
def random_module() -> Callable[..., nn.Module]:
    """Makes a model whose every parameter, biases and norms included, is random."""

    def make(architecture: str, seed: int = 0, scale: float = 0.3) -> nn.Module:
        module = AutoModelForCausalLM.from_config(_CONFIGS[architecture]).eval()
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in module.named_parameters():
            centre = 1.0 if parameter.ndim == 1 and not name.endswith("bias") else 0.0
            parameter.data = centre + scale * torch.randn(parameter.shape, generator=generator)
        return module.requires_grad_(False)

    return make


@pytest.fixture(scope="session")
def random_task() -> Callable[..., Task]:
    """Makes prompt pairs that differ in the tokens at two positions."""

    def make(seed: int = 0, n: int = 6, pos: int = 7) -> Task:
        generator = torch.Generator().manual_seed(seed)
        clean = torch.randint(1, VOCABULARY, (n, pos), generator=generator)
        clean[:, 0] = 0
        corrupt = clean.clone()
        corrupt[:, 2:4] = torch.randint(1, VOCABULARY, (n, 2), generator=generator)
        answers, wrong = torch.randint(VOCABULARY, (2, n), generator=generator)
        return Task(
            name="random",
            clean=clean,
            corrupt=corrupt,
            answers=answers,
            wrong=wrong,
            positions={"end": torch.full((n,), pos - 1)},
            prompts=tuple(f"clean {seed} {row}" for row in range(n)),
            corrupt_prompts=tuple(f"corrupt {seed} {row}" for row in range(n)),
        )

    return make


@pytest.fixture(scope="session")
def as_subject() -> Callable[[nn.Module], Subject]:
    """Wraps a module, with a tokenizer that is never asked to encode."""

    def make(module: nn.Module) -> Subject:
        tokenizer = SimpleNamespace(get_vocab=dict, chat_template=None, bos_token_id=0)
        return Subject("random", module, tokenizer, {})

    return make
