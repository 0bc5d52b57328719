"""Fable's tokenizer: one word, one token, as a Hugging Face fast tokenizer."""

from __future__ import annotations

from typing import Any

from mechlab.data.fable.lexicon import TOKEN_ID


def build_tokenizer() -> Any:
    """A ``PreTrainedTokenizerFast`` over Fable's vocabulary.

    Words and single punctuation marks are tokens; ``<bos>`` is put in front when special tokens
    are asked for (the default of ``tokenizer(text)``); decoding puts spaces back.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel(dict(TOKEN_ID), unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Split(Regex(r"\w+|[^\w\s]"), behavior="isolated"),
        ]
    )
    core.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", TOKEN_ID["<bos>"])]
    )
    # A space before every token, then none before the marks that close.
    core.decoder = decoders.Sequence(
        [
            decoders.Replace(Regex(r"^"), " "),
            decoders.Fuse(),
            decoders.Replace(Regex(r" (?=[.,!?:;)\]])"), ""),
            decoders.Replace(Regex(r"(?<=[(\[]) "), ""),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<bos>",
        # As in GPT-2, one token begins and ends; libraries that want an EOS would add a token otherwise.
        eos_token="<bos>",
        unk_token="<unk>",
        pad_token="<pad>",
        model_max_length=128,
        clean_up_tokenization_spaces=False,
    )
