"""Task prompts: one BOS, one length, labelled positions, right answers, held out from training."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from mechlab.data import fable
from mechlab.data.fable import lexicon as lex
from mechlab.data.tasks import Task, make_task, make_task_lengths, task_names
from mechlab.errors import MechlabError

SHARED = Path(os.environ.get("MECHLAB_TEST_DATA", "../shared"))


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return fable.build_tokenizer()


@pytest.fixture(scope="module")
def bpe() -> Any:
    """A byte-level BPE like GPT-2's, with most Fable words as single tokens and some in pieces."""
    return _bpe([doc.text for doc in fable.documents("validation", count=500)], 2500)


def _bpe(texts: list[str], size: int) -> Any:
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    core = ByteLevelBPETokenizer()
    core.train_from_iterator(texts, vocab_size=size, special_tokens=["<|endoftext|>"], show_progress=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=core._tokenizer, eos_token="<|endoftext|>", clean_up_tokenization_spaces=False
    )


def words(tokenizer: Any, ids: Any) -> list[str]:
    return [str(word) for word in tokenizer.convert_ids_to_tokens([int(i) for i in ids])]


def at(tokenizer: Any, task: Task, name: str, corrupt: bool = False) -> list[str]:
    rows = task.corrupt if corrupt else task.clean
    return words(tokenizer, rows[range(len(task)), task.positions[name]])


@pytest.mark.parametrize("name", task_names())
def test_every_task_is_well_formed(tokenizer: Any, name: str) -> None:
    task = make_task(name, tokenizer, n=64)
    bos = tokenizer.bos_token_id
    assert task.clean.shape == task.corrupt.shape == (64, task.clean.shape[1])
    for rows in (task.clean, task.corrupt):
        assert (rows[:, 0] == bos).all()
        assert ((rows == bos).sum(dim=1) == 1).all()
        assert not (rows == tokenizer.unk_token_id).any()
    assert (task.clean != task.corrupt).any(dim=1).all()
    assert (task.answers != task.wrong).all()
    assert len(set(task.prompts)) == 64
    assert task.refused == ()
    assert (task.positions["end"] == task.clean.shape[1] - 1).all()
    for prompt, row in zip(task.prompts, task.clean, strict=True):
        assert tokenizer(prompt)["input_ids"] == row.tolist()
    for prompt, row in zip(task.corrupt_prompts, task.corrupt, strict=True):
        assert tokenizer(prompt)["input_ids"] == row.tolist()


def test_the_same_seed_gives_the_same_task(tokenizer: Any) -> None:
    first, again = (make_task("ioi", tokenizer, n=16, seed=3) for _ in range(2))
    assert first.prompts == again.prompts
    assert first.prompts != make_task("ioi", tokenizer, n=16, seed=4).prompts


def test_indirect_object_positions_and_corruption(tokenizer: Any) -> None:
    for task in make_task_lengths("ioi", tokenizer, n=50):
        s1, s2, io = (at(tokenizer, task, name) for name in ("S1", "S2", "IO"))
        assert s1 == s2 == words(tokenizer, task.wrong)
        assert io == words(tokenizer, task.answers)
        assert at(tokenizer, task, "S2", corrupt=True) == io
        assert ((task.clean != task.corrupt).sum(dim=1) == 1).all()


def test_greater_than_sets_split_the_years(tokenizer: Any) -> None:
    task = make_task("greater_than", tokenizer, n=50)
    assert task.answer_sets is not None
    right, wrong = task.answer_sets
    for row, year in enumerate(at(tokenizer, task, "Year")):
        later = {f"{other:02d}" for other in range(int(year) + 1, 100)}
        assert set(words(tokenizer, right[row].nonzero().flatten())) == later
        assert set(words(tokenizer, wrong[row].nonzero().flatten())) == set(lex.TWO_DIGITS) - later
        assert right[row, task.answers[row]]
        assert wrong[row, task.wrong[row]]
    assert set(at(tokenizer, task, "Year", corrupt=True)) == {"01"}
    assert at(tokenizer, task, "Century") == at(tokenizer, task, "Century2")


def test_induction_answers_follow_the_earlier_occurrence(tokenizer: Any) -> None:
    task = make_task("induction", tokenizer, n=50)
    assert at(tokenizer, task, "A1") == at(tokenizer, task, "A2")
    assert at(tokenizer, task, "B1") == words(tokenizer, task.answers)
    assert at(tokenizer, task, "B1", corrupt=True) == words(tokenizer, task.wrong)
    assert (task.positions["B1"] == task.positions["A1"] + 1).all()
    assert (task.positions["A2"] == task.positions["end"]).all()


def test_successor_answers_continue_both_sequences(tokenizer: Any) -> None:
    sequences = (lex.DAYS, lex.MONTHS, lex.NUMBER_WORDS, lex.ORDINALS, lex.TWO_DIGITS)
    after = {
        (items[i - 1], word): items[(i + 1) % len(items)]
        for items in sequences
        for i, word in enumerate(items)
    }
    for task in make_task_lengths("successor", tokenizer, n=50):
        for corrupt, answers in ((False, task.answers), (True, task.wrong)):
            second, third = (at(tokenizer, task, name, corrupt) for name in ("X2", "X3"))
            expected = [after[pair] for pair in zip(second, third, strict=True)]
            assert expected == words(tokenizer, answers)


def test_fact_answers_are_the_table_s(tokenizer: Any) -> None:
    objects = {(fact.subject, fact.object) for fact in fable.FACTS}
    objects |= {(entity, "unknown") for entity in lex.UNKNOWN_ENTITIES}
    for task in make_task_lengths("facts", tokenizer, n=50):
        for corrupt, answers in ((False, task.answers), (True, task.wrong)):
            entities = at(tokenizer, task, "Entity", corrupt)
            assert set(zip(entities, words(tokenizer, answers), strict=True)) <= objects


def test_syntax_tasks_ask_for_the_right_form(tokenizer: Any) -> None:
    task = make_task("agreement", tokenizer, n=50)
    plural = set(lex.PLURAL_OF.values())
    for subject, between, verb in zip(
        at(tokenizer, task, "Subject"),
        at(tokenizer, task, "Distractor"),
        words(tokenizer, task.answers),
        strict=True,
    ):
        assert (subject in plural) == (verb in ("are", "were")) != (between in plural)
    task = make_task("pronouns", tokenizer, n=50)
    for name, pronoun in zip(at(tokenizer, task, "Name"), words(tokenizer, task.answers), strict=True):
        assert (name in lex.FEMALE_NAMES) == (pronoun in ("she", "her"))
    task = make_task("closing", tokenizer, n=50)
    assert [lex.OPENERS[mark] for mark in at(tokenizer, task, "Open")] == words(tokenizer, task.answers)
    assert [lex.OPENERS[mark] for mark in at(tokenizer, task, "Open", True)] == words(tokenizer, task.wrong)
    task = make_task("translation", tokenizer, n=50)
    both = {**lex.TAVI, **{tavi: english for english, tavi in lex.TAVI.items()}}
    for prompt, answer in zip(task.prompts, words(tokenizer, task.answers), strict=True):
        assert both[answer] in fable.split_words(prompt)


def _occurring(prompts: list[str], text: str) -> int:
    return sum(prompt in text for prompt in prompts)


def _answered(tokenizer: Any, name: str, split: str, n: int) -> list[str]:
    """Prompts with their answers, as text: a closing mark has no space before it."""
    return [
        prompt + (answer if answer in lex.PUNCTUATION else f" {answer}")
        for task in make_task_lengths(name, tokenizer, n=n, split=split)
        for prompt, answer in zip(task.prompts, words(tokenizer, task.answers), strict=True)
    ]


@pytest.mark.slow
def test_test_prompts_never_occur_in_training_text(tokenizer: Any) -> None:
    """Prompts on training combinations do turn up in as much text, so the search can fail."""
    text = "\n".join(doc.text for doc in fable.documents("train", count=2000))
    found = {}
    for name in task_names():
        assert _occurring(_answered(tokenizer, name, "test", 30), text) == 0, name
        # An adjective and a noun in quotation marks meet seldom: closing needs more prompts.
        more = 400 if name == "closing" else 30
        found[name] = _occurring(_answered(tokenizer, name, "train", more), text)
    assert found["closing"] > 0
    assert sum(found.values()) > 20


@pytest.mark.parametrize("name", task_names())
def test_held_out_splits_share_no_prompt_on_either_side(tokenizer: Any, name: str) -> None:
    sides: dict[str, set[str]] = {}
    clean: dict[str, set[str]] = {}
    for split in ("train", "validation", "test"):
        tasks = [make_task(name, tokenizer, n=128, seed=seed, split=split) for seed in range(2)]
        clean[split] = {prompt for task in tasks for prompt in task.prompts}
        sides[split] = clean[split] | {prompt for task in tasks for prompt in task.corrupt_prompts}
        assert min(map(len, tasks)) >= 8
    assert not sides["validation"] & sides["test"]
    assert not clean["train"] & (clean["validation"] | clean["test"])


@pytest.mark.parametrize("name", ["ioi", "successor", "agreement", "closing", "greater_than", "pronouns"])
def test_sub_word_tokenizers_take_the_same_path(bpe: Any, name: str) -> None:
    task = make_task(name, bpe, n=24)
    assert len(task) == 24
    assert (task.clean[:, 0] == bpe.eos_token_id).all()
    for prompt, row, answer in zip(task.prompts, task.clean, task.answers, strict=True):
        assert bpe.encode(prompt) == row.tolist()[1:]
        joined = bpe.decode([*row.tolist()[1:], int(answer)])
        assert joined.startswith(prompt)
        assert len(fable.split_words(joined)) == len(fable.split_words(prompt)) + 1
    if name == "ioi":
        for position, prompt, row, answer in zip(
            task.positions["IO"], task.prompts, task.clean, task.answers, strict=True
        ):
            before = bpe.decode(row[1 : position + 1].tolist())
            assert prompt.startswith(before)
            assert before.endswith(bpe.decode([int(answer)]).strip())


def test_pairs_in_pieces_are_refused_by_name() -> None:
    # Every second name is left out of what this BPE learns from, so it stays in pieces.
    left_out = set(lex.NAMES[::2])
    texts = [
        " ".join(token for token in doc.tokens if token not in left_out)
        for doc in fable.documents("validation", count=500)
    ]
    few = _bpe(texts, 2500)
    task = make_task("ioi", few, n=8)
    assert len(task) == 8
    assert (
        not set(few.convert_tokens_to_string(few.convert_ids_to_tokens(task.answers.tolist())).split())
        & left_out
    )
    assert any("tokens" in reason for reason in task.refused)


def test_a_tokenizer_that_cannot_express_a_task_is_refused(tokenizer: Any) -> None:
    tiny = _bpe(["abc"], 257)
    with pytest.raises(MechlabError, match=r"task cannot be expressed.*ioi:.*tokens.*choose another task"):
        make_task("ioi", tiny, n=16)


def test_llama_s_small_vocabulary_is_refused() -> None:
    path = SHARED / "models" / "stories260K"
    if not path.exists():
        pytest.skip(f"no model at {path}; set MECHLAB_TEST_DATA")
    from transformers import AutoTokenizer

    llama = AutoTokenizer.from_pretrained(path)
    with pytest.raises(MechlabError, match=r"facts: .*' \w+' is \d tokens"):
        make_task("facts", llama)


def test_bad_requests_are_named(tokenizer: Any) -> None:
    with pytest.raises(MechlabError, match="did you mean ioi"):
        make_task("iol", tokenizer)
    with pytest.raises(MechlabError, match="did you mean test"):
        make_task("ioi", tokenizer, split="tets")
    with pytest.raises(MechlabError, match="at least 1"):
        make_task("ioi", tokenizer, n=0)
