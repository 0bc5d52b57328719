"""Published tasks: aligned pairs, single tokens, disjoint words, and tokenizers that cannot express them."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import pytest

from mechlab.data import fable
from mechlab.data.draft import cut
from mechlab.data.fable.lexicon import NAMES as PEOPLE
from mechlab.data.published import PUBLISHED, canonical
from mechlab.data.published.docstring import NAMED, WORDS
from mechlab.data.published.greater_than import CENTURIES, NOUNS, YEARS
from mechlab.data.published.ioi import LINES, OBJECTS, PLACES
from mechlab.data.tasks import Task, make_task, make_task_lengths, published_task_names
from mechlab.errors import MechlabError

NAMES = published_task_names()
SPLITS = ("train", "validation", "test")


def _drafts(name: str, split: str, n: int = 600) -> list[Any]:
    rng = Random(0)
    return [PUBLISHED[name](rng, split) for _ in range(n)]


@pytest.fixture(scope="module")
def bpe() -> Any:
    """A byte-level BPE that has seen the templates' words, each digit pair apart, as GPT-2 mostly does."""
    from tokenizers import AddedToken, ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    texts = ["".join(d.clean) for name in NAMES for split in SPLITS for d in _drafts(name, split)]
    # Nothing is learned about years, so digits stay single; the pairs are added below.
    texts = ["".join(c for c in text if not c.isdigit()) for text in texts]
    core = ByteLevelBPETokenizer()
    core.train_from_iterator(texts, vocab_size=6000, special_tokens=["<|endoftext|>"], show_progress=False)
    # An added token takes no space with it unless it holds one.
    centuries = [AddedToken(f" {century}") for century in CENTURIES]
    core.add_tokens([*centuries, *(AddedToken(year) for year in YEARS)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core._tokenizer, eos_token="<|endoftext|>", clean_up_tokenization_spaces=False
    )


def at(tokenizer: Any, task: Task, name: str, corrupt: bool = False) -> list[str]:
    rows = task.corrupt if corrupt else task.clean
    return [tokenizer.decode([int(i)]) for i in rows[range(len(task)), task.positions[name]]]


def answers(tokenizer: Any, ids: Any) -> list[str]:
    return [tokenizer.decode([int(i)]) for i in ids]


@pytest.mark.parametrize("name", NAMES)
def test_every_published_task_is_well_formed(bpe: Any, name: str) -> None:
    task = make_task(name, bpe, n=48)
    assert len(set(task.prompts)) == len(task) == 48
    for rows, prompts in ((task.clean, task.prompts), (task.corrupt, task.corrupt_prompts)):
        assert (rows[:, 0] == bpe.eos_token_id).all()
        assert ((rows == bpe.eos_token_id).sum(1) == 1).all()
        for row, prompt in zip(rows, prompts, strict=True):
            assert bpe.encode(prompt) == row.tolist()[1:]
    assert (task.positions["end"] == task.clean.shape[1] - 1).all()
    assert (task.answers != task.wrong).all()
    assert (task.clean != task.corrupt).any(1).all()
    # Clean and corrupt differ in named words only.
    named = {slot for slot in task.positions if slot != "end"}
    for row in range(len(task)):
        changed = (task.clean[row] != task.corrupt[row]).nonzero().flatten().tolist()
        assert set(changed) <= {int(task.positions[slot][row]) for slot in named}


def test_abc_prompts_repeat_no_name_and_flipped_ones_swap_the_answer(bpe: Any) -> None:
    task = make_task("published_ioi", bpe, n=128)
    io, s1, s2 = (at(bpe, task, slot) for slot in ("IO", "S1", "S2"))
    assert s1 == s2 == answers(bpe, task.wrong)
    assert io == answers(bpe, task.answers)
    others = zip(*(at(bpe, task, slot, corrupt=True) for slot in ("IO", "S1", "S2")), strict=True)
    for clean, corrupt in zip(zip(io, s1, strict=True), others, strict=True):
        assert len({*clean, *corrupt}) == 5
    flipped = make_task("published_ioi_flip", bpe, n=64)
    assert at(bpe, flipped, "S2", corrupt=True) == answers(bpe, flipped.answers)
    assert ((flipped.clean != flipped.corrupt).sum(1) == 1).all()


def test_templates_are_numbered_alike_in_every_split(bpe: Any) -> None:
    forms: dict[int, set[str]] = {}
    for split in SPLITS:
        for task in make_task_lengths("published_ioi", bpe, n=200, split=split):
            assert task.groups is not None
            for row, group in enumerate(task.groups.tolist()):
                prompt = task.prompts[row]
                for place in (*PLACES, *OBJECTS):
                    prompt = prompt.replace(f" {place}", " _")
                for slot, ids in (("IO", task.answers), ("S", task.wrong)):
                    prompt = prompt.replace(bpe.decode([int(ids[row])]), f" {slot}")
                forms.setdefault(group, set()).add(prompt)
    assert all(len(found) == 1 for found in forms.values())
    # ABBA and BABA of every line, and no two numbers for one template.
    assert len(set.union(*forms.values())) == len(forms) == 2 * len(LINES)
    first = {group for group, found in forms.items() if min(found).index(" IO") < min(found).index(" S")}
    assert first == set(range(len(LINES)))


@pytest.mark.parametrize(
    ("name", "words", "slots"),
    [
        ("published_ioi", PEOPLE, ("IO", "S1", "S2")),
        ("published_ioi_flip", PEOPLE, ("IO", "S1", "S2")),
        ("published_docstring", WORDS, NAMED),
    ],
)
def test_no_two_splits_share_a_name(name: str, words: tuple[str, ...], slots: tuple[str, ...]) -> None:
    seen = {}
    for split in SPLITS:
        drafts = _drafts(name, split)
        seen[split] = {
            pieces[d.places[slot]].strip()
            for d in drafts
            for slot in slots
            for pieces in (d.clean, d.corrupt)
        }
        assert seen[split] <= set(words)
        assert len(seen[split]) > len(words) / 4
    assert not seen["train"] & seen["validation"]
    assert not seen["train"] & seen["test"]
    assert not seen["validation"] & seen["test"]


def test_greater_than_nouns_are_disjoint_and_sets_split_the_years(bpe: Any) -> None:
    nouns = {
        split: {"".join(d.clean).split()[1] for d in _drafts("published_greater_than", split)}
        for split in SPLITS
    }
    assert sum(map(len, nouns.values())) == len(set.union(*nouns.values())) == len(set(NOUNS))
    task = make_task("published_greater_than", bpe, n=64)
    assert task.answer_sets is not None
    right, wrong = task.answer_sets
    for row, year in enumerate(at(bpe, task, "Year")):
        assert 2 <= int(year) <= 98
        assert {int(text) for text in answers(bpe, right[row].nonzero())} == set(range(int(year) + 1, 100))
        assert {int(text) for text in answers(bpe, wrong[row].nonzero())} == set(range(int(year) + 1))
        assert right[row, task.answers[row]]
        assert wrong[row, task.wrong[row]]
    assert set(at(bpe, task, "Year", corrupt=True)) == {"01"}
    assert at(bpe, task, "Century") == at(bpe, task, "Century2")
    assert (task.positions["Year"] == task.positions["Century"] + 1).all()


def test_docstring_answers_are_the_next_argument(bpe: Any) -> None:
    task = make_task("published_docstring", bpe, n=32)
    for row, prompt in enumerate(task.prompts):
        arguments = prompt[prompt.index("(") + 1 : prompt.index(")")].split(", ")
        described = [line.split()[1].rstrip(":") for line in prompt.splitlines() if ":param " in line]
        place = arguments.index(described[-1])
        assert arguments[place - 1] == described[-2]
        assert arguments[place + 1] == bpe.decode([int(task.answers[row])]).strip()
        assert bpe.decode([int(task.wrong[row])]).strip() in arguments
        assert bpe.decode([int(task.answers[row])]) not in task.corrupt_prompts[row]


def test_years_in_other_pieces_are_refused(bpe: Any) -> None:
    from transformers import PreTrainedTokenizerFast

    whole = PreTrainedTokenizerFast(
        tokenizer_object=type(bpe.backend_tokenizer).from_str(bpe.backend_tokenizer.to_str()),
        eos_token="<|endoftext|>",
    )
    whole.add_tokens([f" {century}{year}" for century in ("11", "12") for year in YEARS])
    task = make_task("published_greater_than", whole, n=32)
    assert not {"11", "12"} & {text.strip() for text in at(whole, task, "Century")}
    assert any("merges with the word" in reason for reason in task.refused)


@pytest.mark.parametrize("name", NAMES)
def test_tokenizers_without_the_words_are_refused_with_a_reason(stories_model: Path, name: str) -> None:
    from transformers import AutoTokenizer

    llama = AutoTokenizer.from_pretrained(stories_model)
    with pytest.raises(MechlabError, match=rf"cannot be expressed.*{name}: .*is \d tokens"):
        make_task(name, llama, n=8)


def test_a_word_level_vocabulary_takes_the_templates_that_it_has_all_words_of() -> None:
    words = fable.build_tokenizer()
    task = make_task("published_ioi", words, n=32)
    assert not (task.clean == words.unk_token_id).any()
    assert not (task.corrupt == words.unk_token_id).any()
    assert any("not in the vocabulary" in reason for reason in task.refused)
    for name, reason in (("greater_than", "merges with the word before"), ("docstring", "not in the voc")):
        with pytest.raises(MechlabError, match=rf"published_{name}: .*{reason}"):
            make_task(f"published_{name}", words, n=8)


def test_bad_names_are_answered_with_near_ones(bpe: Any) -> None:
    with pytest.raises(MechlabError, match="did you mean published_ioi"):
        make_task("publisched_ioi", bpe)


def test_a_template_is_cut_at_its_slots() -> None:
    pieces, places = cut(
        "the year {Century}{Year}, {A} (and {B})", {"Century": "17", "Year": "32", "A": "x", "B": "y"}
    )
    assert "".join(pieces) == "the year 1732, x (and y)"
    assert {name: pieces[place] for name, place in places.items()} == {
        "Century": " 17",
        "Year": "32",
        "A": " x",
        "B": " y",
    }


def test_the_circuit_of_indirect_object_identification_has_26_heads_in_seven_classes() -> None:
    found = canonical.canonical("published_ioi_flip", "gpt2")
    assert found == canonical.canonical("ioi", "gpt2")
    assert len(found) == 7
    nodes = [node for heads in found.values() for node in heads]
    assert len(nodes) == len(set(nodes)) == 26
    assert canonical.classes_of("ioi", "gpt2")["a9.h9"] == "name mover"


def test_canonical_nodes_are_nodes_of_their_models() -> None:
    sizes = {"gpt2": (12, 12), "attn-only-4l": (4, 8)}
    for task, model in canonical.CIRCUITS:
        layers, heads = sizes[model]
        names = {f"a{layer}.h{head}" for layer in range(layers) for head in range(heads)}
        names |= {f"m{layer}" for layer in range(layers)}
        classes = canonical.classes_of(task, model)
        assert set(classes) <= names
        assert len(classes) == sum(map(len, canonical.canonical(task, model).values()))
    with pytest.raises(MechlabError, match="did you mean ioi in gpt2"):
        canonical.canonical("ioi", "gpt3")
