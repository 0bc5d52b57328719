"""The decomposed forward against the Hugging Face module it reads."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    Qwen2Config,
)

from mechlab.errors import MechlabError
from mechlab.models.forward import DecomposedForward, Stage, gathered, scattered
from mechlab.models.weights import Attention, NoNorm, Weights

SHARED = Path(os.environ.get("MECHLAB_TEST_DATA", Path(__file__).parents[3] / "shared"))
FABLE = Path(__file__).parents[2] / "src" / "mechlab" / "models" / "fable"
SMALL = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 50}
GATED = {**SMALL, "num_key_value_heads": 2, "intermediate_size": 48}
CONFIGS = {
    "gpt2": GPT2Config(n_embd=32, n_layer=3, n_head=4, vocab_size=50, n_positions=64),
    "gpt2-inverse-scale": GPT2Config(
        n_embd=32, n_layer=3, n_head=4, vocab_size=50, scale_attn_by_inverse_layer_idx=True
    ),
    "neox": GPTNeoXConfig(**SMALL, intermediate_size=64),
    "neox-sequential": GPTNeoXConfig(**SMALL, intermediate_size=64, use_parallel_residual=False),
    "llama": LlamaConfig(**GATED, attention_bias=True, mlp_bias=True),
    "mistral": MistralConfig(**GATED, sliding_window=4),
    "qwen2": Qwen2Config(**GATED),
}


def random_model(name: str, seed: int = 0) -> torch.nn.Module:
    """A small model whose every parameter, biases and norms included, is random."""
    torch.manual_seed(seed)
    module = AutoModelForCausalLM.from_config(CONFIGS[name]).eval()
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        centre = 1.0 if parameter.ndim == 1 and parameter.data.mean() == 1 else 0.0
        parameter.data = centre + 0.2 * torch.randn(parameter.shape, generator=generator)
    return module.requires_grad_(False)


def prompts(vocabulary: int = 50, n: int = 5, pos: int = 9, seed: int = 1) -> Tensor:
    return torch.randint(vocabulary, (n, pos), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("seed", [0, 1])
def test_logits_equal_the_module(name: str, seed: int) -> None:
    module, tokens = random_model(name, seed), prompts(seed=seed)
    torch.testing.assert_close(
        DecomposedForward(module).run(tokens).logits, module(tokens).logits, atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("path", [SHARED / "models" / "stories260K", FABLE], ids=["stories260K", "fable"])
def test_logits_equal_a_trained_model(path: Path) -> None:
    if not (path / "config.json").is_file():
        pytest.skip(f"no model at {path}")
    module = AutoModelForCausalLM.from_pretrained(path).eval()
    tokens = prompts(module.config.vocab_size, n=4, pos=40)
    with torch.no_grad():
        ours, theirs = DecomposedForward(module).run(tokens).logits, module(tokens).logits
    assert ours is not None
    assert float((ours - theirs).abs().max()) < 1e-5 * max(1.0, float(theirs.abs().max()))


@pytest.mark.parametrize("name", CONFIGS)
def test_sources_and_output_biases_sum_to_the_stream(name: str) -> None:
    forward, tokens = DecomposedForward(random_model(name)), prompts()
    run = forward.run(tokens, keep=True)
    assert run.sources is not None
    assert len(run.sources) == forward.shape.n_sources
    biases = [a.output_bias for a in forward.attentions if a.output_bias is not None]
    total = run.sources.sum(0) + sum(biases, torch.zeros(()))
    torch.testing.assert_close(total, run.x, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_each_reader_on_its_own_copy_changes_nothing(name: str) -> None:
    module, tokens = random_model(name), prompts()
    forward = DecomposedForward(module)

    def read(stage: Stage, stream: Tensor) -> Tensor:
        readers = stage.readers.stop - stage.readers.start
        return stream.expand(readers, *stream.shape)

    run = forward.run(tokens, read=read, write=lambda stage, outputs: outputs)
    torch.testing.assert_close(run.logits, module(tokens).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_stopping_and_starting_at_a_layer(name: str) -> None:
    forward, tokens = DecomposedForward(random_model(name)), prompts()
    whole, lower = forward.run(tokens, keep=True), forward.run(tokens, stop=1, keep=True)
    upper = forward.run(x=lower.x, start=1, keep=True)
    assert lower.logits is None
    torch.testing.assert_close(upper.logits, whole.logits)
    torch.testing.assert_close(torch.cat([lower.sources, upper.sources]), whole.sources)


def test_logits_only_where_asked() -> None:
    forward, tokens = DecomposedForward(random_model("llama")), prompts()
    positions = torch.tensor([0, 3, 8, 8, 1])
    run = forward.run(tokens, positions=positions)
    torch.testing.assert_close(run.logits, forward.run(tokens).logits[torch.arange(5), positions])


@pytest.mark.parametrize("name", CONFIGS)
def test_pull_back_equals_autograd_on_separate_copies(name: str) -> None:
    check_pull_back(DecomposedForward(random_model(name).double()), atol=1e-9)


def check_pull_back(forward: DecomposedForward, atol: float) -> None:
    tokens = prompts()
    x = forward.embed(tokens).requires_grad_()
    run = forward.run(x=x, trace=True)
    parts = [part for trace in run.traces for part in trace.parts]
    gradients = iter(torch.autograd.grad(run.logits.square().sum(), parts))
    fast = torch.cat(
        [forward.pull_back(t, tuple(next(gradients) for _ in t.parts)).detach() for t in run.traces]
    )
    copies: list[Tensor] = []

    def read(stage: Stage, stream: Tensor) -> Tensor:
        readers = stage.readers.stop - stage.readers.start
        copies.append(stream.expand(readers, *stream.shape).clone())
        return copies[-1]

    slow_run = forward.run(x=x, read=read)
    slow = torch.cat(torch.autograd.grad(slow_run.logits.square().sum(), copies))
    torch.testing.assert_close(fast, slow, atol=atol, rtol=atol)


class Bare(nn.Module):
    """Two layers without norms whose attention looks both ways; states its weights itself."""

    def __init__(self, causal: bool) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)

        def random(*shape: int) -> Tensor:
            return 0.4 * torch.randn(shape, generator=generator, dtype=torch.float64)

        torch.manual_seed(3)
        self.embedding, self.unembed = nn.Embedding(50, 12), nn.Linear(12, 7, bias=False)
        mlps = [nn.Sequential(nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 12)).double() for _ in range(2)]
        self.attentions = [
            Attention(
                NoNorm(),
                (random(2, 12, 5), random(2, 12, 5), random(2, 12, 5)),
                (random(2, 5), None, None),
                random(2, 5, 12),
                None,
                0.7,
                None,
                causal,
            )
            for _ in range(2)
        ]
        self.weights = Weights(
            self.embedding,
            random(9, 12),
            None,
            self.attentions,
            [NoNorm()] * 2,
            mlps,
            NoNorm(),
            self.unembed,
            parallel=False,
        )
        self.double().requires_grad_(False)

    def read_weights(self) -> Weights:
        return self.weights

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens) + self.weights.positions
        for layer, mlp in zip(self.attentions, self.weights.mlps, strict=True):
            total = torch.zeros_like(x)
            for head in range(2):
                wq, wk, wv = (w[head] for w in layer.inputs)
                scores = 0.7 * (x @ wq + layer.biases[0][head]) @ (x @ wk).transpose(1, 2)
                if layer.causal:
                    scores += torch.full((9, 9), -torch.inf, dtype=torch.float64).triu(1)
                total += scores.softmax(-1) @ (x @ wv) @ layer.output[head]
            x = x + total
            x = x + mlp(x)
        return self.unembed(x)


@pytest.mark.parametrize("causal", [True, False])
def test_a_module_that_states_its_weights(causal: bool) -> None:
    module, tokens = Bare(causal), prompts()
    forward = DecomposedForward(module)
    run = forward.run(tokens, keep=True)
    torch.testing.assert_close(run.logits, module(tokens))
    torch.testing.assert_close(run.sources.sum(0), run.x)
    others = tokens.clone()
    others[:, -1] = (others[:, -1] + 1) % 50
    first_changes = (forward.run(others).logits - run.logits)[:, 0].abs().max()
    assert (first_changes == 0) == causal


def test_pull_back_without_a_norm_equals_autograd() -> None:
    check_pull_back(DecomposedForward(Bare(causal=False)), atol=1e-9)


def test_weights_are_views() -> None:
    module, tokens = random_model("neox"), prompts()
    forward = DecomposedForward(module)
    for parameter in module.parameters():
        parameter.data.mul_(1.3)
    torch.testing.assert_close(forward.run(tokens).logits, module(tokens).logits, atol=1e-4, rtol=1e-5)


def test_refusals_say_what_to_do() -> None:
    gemma = AutoModelForCausalLM.from_config(Gemma2Config(**GATED, head_dim=8)).eval()
    with pytest.raises(MechlabError, match=r"not additive.*gemma2.*gpt_neox"):
        DecomposedForward(gemma)
    opt = AutoModelForCausalLM.from_config(OPTConfig(**SMALL, ffn_dim=32, word_embed_proj_dim=32)).eval()
    with pytest.raises(MechlabError, match=r"no decomposed forward.*opt"):
        DecomposedForward(opt)
    with pytest.raises(MechlabError, match="training mode"):
        DecomposedForward(random_model("gpt2").train())
    forward = DecomposedForward(random_model("gpt2"))
    with pytest.raises(MechlabError, match="give tokens, or x"):
        forward.run()
    with pytest.raises(MechlabError, match="give tokens, or x"):
        forward.run(prompts(), start=1)


@pytest.mark.gpu
def test_logits_equal_the_module_on_cuda() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    module, tokens = random_model("llama").cuda(), prompts().cuda()
    torch.testing.assert_close(
        DecomposedForward(module).run(tokens).logits, module(tokens).logits, atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("positions", [[5, 2, 0, 4], [[1, 5, 5], [0, 2, 3], [4, 4, 4], [5, 0, 1]]])
def test_narrow_runs_give_the_same_logits(name: str, positions: list) -> None:
    forward, tokens, ends = DecomposedForward(random_model(name)), prompts(n=4), torch.tensor(positions)
    wide = forward.run(tokens, positions=ends, trace=True)
    narrow = forward.run(tokens, positions=ends, trace=True, narrow=True)
    torch.testing.assert_close(narrow.logits, wide.logits, atol=1e-5, rtol=1e-5)
    reads = ends.view(4, -1).shape[1]
    assert [trace.x.shape[1] for trace in narrow.traces[-3:]] == [tokens.shape[1], reads, reads]
    assert [trace.positions is None for trace in narrow.traces[-3:]] == [True, False, False]


def test_scattered_is_the_transpose_of_gathered() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(3, 5, 4, generator=generator), torch.randn(3, 2, 4, generator=generator)
    positions = torch.tensor([[0, 4], [2, 2], [3, 1]])
    there = (gathered(x, positions) * y).sum()
    torch.testing.assert_close(there, (x * scattered(y, positions, 5)).sum())
