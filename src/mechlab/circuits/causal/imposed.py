"""A small transformer whose circuit is known because it was trained in.

A prompt is four letters and "=": ``p p s t =``. The answer is the third letter when the first two are
the same, otherwise the fourth. The causal model, and where its variables live in a GPT-2 of three
layers, four heads and width 32:

    first    the first letter                 a0.h1, at the second letter
    same     first = second letter            m0, at the second letter
    carried  the same, on its way             a1.h2, at "="
    answer   third letter if carried,         a2.h3, at "="
             else fourth

``impose`` trains the model so that swapping a node's output swaps the variable, and so that no edge but
the seven of ``EDGES`` changes anything when it carries its value on another prompt. That is the truth
for resample ablation, and only for it: where a head looks is decided by position, so its query and key
edges carry the same on every prompt, and matter when they are set to zero.
"""

from __future__ import annotations

from dataclasses import replace
from importlib import resources
from pathlib import Path
from random import Random
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from mechlab.circuits.causal.impose import Home, impose
from mechlab.circuits.causal.interchange import Place
from mechlab.circuits.causal.model import CausalModel, Setting, Variable
from mechlab.circuits.causal.problem import Problem, draw_input, tokens_of
from mechlab.circuits.graph import Graph
from mechlab.data.tasks import Task
from mechlab.errors import MechlabError
from mechlab.models.sites import site_table
from mechlab.models.subject import Subject, load_model

LETTERS = tuple("pqrstuvw")
VOCABULARY = ("<bos>", "=", *LETTERS)
END = 5

CAUSAL = CausalModel(
    inputs=("a", "b", "c", "d"),
    variables=(
        Variable("first", ("a",), lambda a: a),
        Variable("same", ("first", "b"), lambda first, b: int(first == b)),
        Variable("carried", ("same",), lambda same: same),
        Variable("answer", ("carried", "c", "d"), lambda carried, c, d: c if carried else d),
    ),
    output="answer",
)
HOMES = {
    "first": Home("a0.h1", 2),
    "same": Home("m0", 2),
    "carried": Home("a1.h2", END),
    "answer": Home("a2.h3", END),
}
# The same as sites of the model.
PLACES = {
    "first": Place("blocks.0.attn.hook_z:1", 2),
    "same": Place("blocks.0.hook_mlp_out", 2),
    "carried": Place("blocks.1.attn.hook_z:2", END),
    "answer": Place("blocks.2.attn.hook_z:3", END),
}
EDGES = (
    ("embed", "a0.h1.v"),
    ("embed", "m0"),
    ("a0.h1", "m0"),
    ("m0", "a1.h2.v"),
    ("a1.h2", "a2.h3.q"),
    ("embed", "a2.h3.v"),
    ("a2.h3", "logits"),
)


def load_imposed() -> Subject:
    """The trained model that comes with the package (seed 0)."""
    subject = load_model(Path(str(resources.files("mechlab") / "models" / "imposed")))
    return replace(subject, name="imposed")


def train_imposed(*, seed: int = 0, steps: int = 700) -> Subject:
    """Train the model anew: about half a minute on one idle core.

    The same seed gives the same weights on the same machine; training runs in one thread. 700 steps
    imposed the circuit with every seed tried (0 to 3); 400 are too few.
    """
    module = _untrained(seed)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        impose(module, imposed_problem(), HOMES, EDGES, seed=seed, steps=steps)
    finally:
        torch.set_num_threads(before)
    module.requires_grad_(False)
    return Subject("imposed", module, build_tokenizer(), site_table(module))


def save_imposed(subject: Subject, out: Path) -> None:
    """Write it as a Hugging Face checkpoint; MechlabError when ``out`` is not an empty directory."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise MechlabError("output directory is not empty", out, "choose another")
    subject.module.save_pretrained(out)
    subject.tokenizer.save_pretrained(out)


def truth(graph: Graph) -> Bool[Tensor, "n_sources n_readers"]:
    """The imposed circuit: the edges that matter under resample ablation."""
    return graph.mask(list(EDGES))


def imposed_problem() -> Problem:
    """The causal model with its prompts, for interchange interventions and alignment search."""
    return Problem(CAUSAL, _draw, _encode, lambda letter: VOCABULARY.index(LETTERS[letter]))


def imposed_task(*, n: int = 128, seed: int = 0, split: str = "test") -> Task:
    """Prompt pairs: random inputs of one part, corrupt ones with another answer than the clean ones.

    Inputs of "test" were not trained on. Raises MechlabError for an unknown split or ``n`` below 1.
    """
    if split not in ("train", "test") or n < 1:
        raise MechlabError("no such prompt pairs", f"split {split}, n {n}", "train or test, n ≥ 1")
    rng, problem = Random(f"imposed {split} {seed}"), imposed_problem()
    clean: list[Setting] = []
    corrupt: list[Setting] = []
    while len(clean) < n:
        one, other = draw_input(problem, rng, split), draw_input(problem, rng, split)
        if CAUSAL.run(one)["answer"] != CAUSAL.run(other)["answer"]:
            clean.append(one)
            corrupt.append(other)

    def answers(settings: list[Setting]) -> Tensor:
        return torch.tensor([problem.token(CAUSAL.run(setting)["answer"]) for setting in settings])

    return Task(
        name="imposed",
        clean=tokens_of(problem, clean),
        corrupt=tokens_of(problem, corrupt),
        answers=answers(clean),
        wrong=answers(corrupt),
        positions={"end": torch.full((n,), END)},
        prompts=tuple(_text(setting) for setting in clean),
        corrupt_prompts=tuple(_text(setting) for setting in corrupt),
    )


def build_tokenizer() -> Any:
    """One letter, one token."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="<bos>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<bos>", eos_token="<bos>", model_max_length=END + 1
    )


def _untrained(seed: int) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=len(VOCABULARY),
        n_positions=END + 1,
        n_embd=32,
        n_layer=3,
        n_head=4,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        # GPT-2's own 0.02 is for a width of 768; at this width nothing would be learned for long.
        initializer_range=0.15,
        bos_token_id=0,
        eos_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GPT2LMHeadModel(config).eval()


def _draw(rng: Random) -> Setting:
    """Equal first letters half the time; third and fourth always differ, or the answer would tell nothing."""
    a, c = rng.randrange(len(LETTERS)), rng.randrange(len(LETTERS))
    b = a if rng.random() < 0.5 else rng.randrange(len(LETTERS))
    d = (c + rng.randrange(1, len(LETTERS))) % len(LETTERS)
    return {"a": a, "b": b, "c": c, "d": d}


def _text(setting: Setting) -> str:
    return " ".join([*(LETTERS[setting[name]] for name in "abcd"), "="])


def _encode(setting: Setting) -> list[int]:
    return [0, *(VOCABULARY.index(word) for word in _text(setting).split())]
