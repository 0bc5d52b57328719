"""A compiled model as a subject, with a tokenizer of words between spaces."""

from __future__ import annotations

from typing import Any

from mechlab.models.compiled.compiler import compile_program
from mechlab.models.compiled.model import Compiled
from mechlab.models.compiled.programs import BOS, PAD, Program, program_named
from mechlab.models.loading import resolve_device
from mechlab.models.subject import Subject

PREFIX = "compiled/"


def compiled_subject(program: str | Program, *, device: str = "auto") -> Subject:
    """A compiled model as a ``Subject`` called "compiled/NAME". It has no site table.

    Raises:
        MechlabError: the program does not exist, or the device is not there.
    """
    if isinstance(program, str):
        program = program_named(program.removeprefix(PREFIX))
    module = compile_program(program).to(resolve_device(device))
    return Subject(f"{PREFIX}{program.name}", module, build_tokenizer(module), {})


def build_tokenizer(model: Compiled) -> Any:
    """A ``PreTrainedTokenizerFast`` of the model's words; a word it does not know is refused."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel(dict(model.encoding), unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=BOS,
        pad_token=PAD,
        model_max_length=model.config.max_position_embeddings,
        clean_up_tokenization_spaces=False,
    )
