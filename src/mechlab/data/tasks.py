"""Task prompts: clean and corrupt pairs that differ in one thing, with their answers.

The prompts come from Fable's behaviours, or from published tasks for sub-word tokenizers, but
are plain text, encoded the same way for every tokenizer: ``<bos>`` once, then ``encode(text)``
without special tokens. An answer is one token: the suffix that ``encode(prompt + answer)`` adds
to ``encode(prompt)``. Rows of one task have one length, and named words of the clean and the
corrupt prompt one position: candidates are sorted by length and the fullest length is taken.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from random import Random
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from mechlab.data.draft import Draft
from mechlab.data.fable.behaviours import ABBA, BABA
from mechlab.data.fable.behaviours_syntax import BEHAVIOURS
from mechlab.data.fable.grammar import render
from mechlab.data.fable.lexicon import PUNCTUATION, TWO_DIGITS
from mechlab.data.published import PUBLISHED
from mechlab.errors import MechlabError, near

PARTS = ("train", "validation", "test")
_OTHER_TASK = "choose another task; a run without a circuit: mechlab run --task none"
_DRAWS, _DRAWS_EVERY = 12, 6
_LEAST = 8
_TRIED = 8


@dataclass(frozen=True)
class Task:
    """A batch of prompt pairs of one length.

    ``answers`` are right after the clean prompts. ``wrong`` are their contrasts: right after the
    corrupt prompts, but for greater_than, where the corrupt prompt (a start in the year 01) makes
    every year right and ``wrong`` is a year at or before the clean start, and for published_ioi and
    published_docstring, whose corrupt prompts have no answer.

    ``positions`` maps a name to the index of that word's last token, per row; "end" is the last
    token of the prompt, where the prediction is read. The names are IO, S1, S2 (ioi); Century,
    Year, Century2 (greater_than); A1, B1, A2 (induction); X1, X2, X3 (successor); Entity (facts);
    Subject, Distractor (agreement); Name (pronouns); Open, Adj, Noun (closing); Adj, Noun, Verb
    (translation); A_def, B_def, C_def, A_doc, B_doc (published_docstring).

    For greater_than ``right_set`` and ``wrong_set`` mark the years after the clean start, and
    those up to it: the metric is the probability of the first less that of the second. A year
    that the tokenizer splits is in neither.

    Where a prediction is read at several positions (compiled models), ``answers``, ``wrong`` and
    ``positions["end"]`` are ``[n, read]``.

    ``groups`` numbers the template of each prompt, the same in every draw and split, where templates
    are numbered (ioi and the published tasks); means are then taken within a template.

    ``refused`` says which candidate pairs the tokenizer could not express, and why.
    """

    name: str
    clean: Int[Tensor, "n pos"]
    corrupt: Int[Tensor, "n pos"]
    answers: Int[Tensor, "n *read"]
    wrong: Int[Tensor, "n *read"]
    positions: dict[str, Int[Tensor, "n *read"]]
    prompts: tuple[str, ...]
    corrupt_prompts: tuple[str, ...]
    refused: tuple[str, ...] = ()
    right_set: Bool[Tensor, "n d_vocab"] | None = None
    wrong_set: Bool[Tensor, "n d_vocab"] | None = None
    groups: Int[Tensor, "n"] | None = None

    @property
    def answer_sets(self) -> tuple[Bool[Tensor, "n d_vocab"], Bool[Tensor, "n d_vocab"]] | None:
        """(right, wrong) masks over the vocabulary where an answer is a set of tokens, else None."""
        if self.right_set is None or self.wrong_set is None:
            return None
        return self.right_set, self.wrong_set

    def __len__(self) -> int:
        return len(self.prompts)


@dataclass(frozen=True)
class _Pair:
    prompt: str
    corrupt_prompt: str
    clean: list[int]
    corrupt: list[int]
    answer: int
    wrong: int
    positions: dict[str, int]
    draft: Draft


def task_names() -> tuple[str, ...]:
    """The tasks that the bundled model does."""
    return tuple(BEHAVIOURS)


def published_task_names() -> tuple[str, ...]:
    """The tasks of published circuits, for sub-word tokenizers; see ``mechlab.data.published``."""
    return tuple(PUBLISHED)


def make_task(name: str, tokenizer: Any, *, n: int = 128, seed: int = 0, split: str = "test") -> Task:
    """Prompt pairs of one task for one tokenizer, all of the same length and all different.

    Args:
        name: one of ``task_names()`` or ``published_task_names()``.
        tokenizer: a Hugging Face tokenizer, word level or sub-word, with a BOS (or EOS) token.
        n: how many pairs are wanted; fewer come back when the split holds fewer of one length.
        seed: of the draw.
        split: "test" and "validation" use combinations that Fable's training text never holds; in
            published tasks no two splits share a name (ioi), noun (greater_than) or word (docstring).

    Raises:
        MechlabError: the task or split does not exist, or fewer than 8 pairs can be expressed by the
            tokenizer (an answer is several tokens, or unknown); the message says which.
    """
    return max(_tasks(name, tokenizer, n, seed, split, every=False), key=len)


def make_task_lengths(
    name: str, tokenizer: Any, *, n: int = 128, seed: int = 0, split: str = "test"
) -> tuple[Task, ...]:
    """Like ``make_task``, but one ``Task`` per prompt length, together covering every template.

    ``n`` bounds each of them; lengths with fewer than 8 pairs are left out.
    """
    return _tasks(name, tokenizer, n, seed, split, every=True)


def _tasks(name: str, tokenizer: Any, n: int, seed: int, split: str, *, every: bool) -> tuple[Task, ...]:
    _check(name, n, split)
    pairs, refused = _draw(name, tokenizer, n, seed, split, every)
    lengths: dict[int, list[_Pair]] = {}
    for pair in pairs:
        lengths.setdefault(len(pair.clean), []).append(pair)
    full = [bucket[:n] for _, bucket in sorted(lengths.items()) if len(bucket) >= min(n, _LEAST)]
    if not full:
        shown = ", ".join(refused[:3]) or f"only {len(pairs)} pairs of any one length"
        raise MechlabError("task cannot be expressed by this tokenizer", f"{name}: {shown}", _OTHER_TASK)
    return tuple(_task(name, bucket, refused, tokenizer) for bucket in full)


def _check(name: str, n: int, split: str) -> None:
    if name not in BEHAVIOURS and name not in PUBLISHED:
        raise MechlabError("task does not exist", name, near(name, (*BEHAVIOURS, *PUBLISHED)))
    if split not in PARTS:
        raise MechlabError("split does not exist", split, near(split, PARTS))
    if n < 1:
        raise MechlabError("number of prompt pairs must be at least 1", n)


def _draw(
    name: str, tokenizer: Any, n: int, seed: int, split: str, every: bool
) -> tuple[list[_Pair], tuple[str, ...]]:
    """Candidate pairs as drawn: until one length holds n, or a fixed number for ``every`` length."""
    rng = Random(f"task {name} {split} {seed}")
    sample = PUBLISHED.get(name) or _fable(name)
    pairs: list[_Pair] = []
    refused: dict[str, None] = {}
    seen: set[str] = set()
    counts: Counter[int] = Counter()
    for _ in range((_DRAWS_EVERY if every else _DRAWS) * max(n, 32)):
        draft = sample(rng, split)
        prompt = "".join(draft.clean)
        if prompt in seen:
            continue
        seen.add(prompt)
        pair = _encode(draft, tokenizer)
        if isinstance(pair, str):
            refused[pair] = None
            continue
        pairs.append(pair)
        counts[len(pair.clean)] += 1
        if not every and counts[len(pair.clean)] == n:
            break
    return pairs, tuple(refused)


def _fable(name: str) -> Callable[[Random, str], Draft]:
    """A behaviour of Fable's as drafts."""
    numbered = (*ABBA, *BABA) if name == "ioi" else ()
    numbers = {template.source: number for number, template in enumerate(numbered)}

    def sample(rng: Random, split: str) -> Draft:
        example = BEHAVIOURS[name](rng, split)
        years = _years(int(example.slots["Year"])) if name == "greater_than" else ((), ())
        shown = example.prompt()
        return Draft(
            _pieces(shown),
            _pieces(example.prompt(corrupt=True)),
            _attached(example.answer),
            _attached(example.wrong),
            places={
                slot: place
                for slot, place in example.template.slots.items()
                if slot[0].isupper() and place < len(shown)
            },
            group=numbers.get(example.template.source),
            right_set=years[0],
            wrong_set=years[1],
        )

    return sample


def _pieces(tokens: list[str]) -> tuple[str, ...]:
    """What each token adds to the text."""
    ends = [len(render(tokens[:count])) for count in range(len(tokens) + 1)]
    text = render(tokens)
    return tuple(text[start:end] for start, end in pairwise(ends))


def _years(start: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Years after the start, and up to it."""
    written = [(int(year) > start, _attached(year)) for year in TWO_DIGITS]
    return tuple(year for after, year in written if after), tuple(
        year for after, year in written if not after
    )


def _encode(draft: Draft, tokenizer: Any) -> _Pair | str:
    """The pair as token ids, or the reason why this tokenizer cannot express it."""
    prompt, corrupt_prompt = "".join(draft.clean), "".join(draft.corrupt)
    single = [draft.places[name] for name in draft.single]
    cuts = sorted({*(place + 1 for place in draft.places.values()), *single})
    # One call for every text of the pair: a tokenizer's cost is mostly per call.
    clean, corrupt, with_answer, with_wrong, *prefixes = _ids(
        tokenizer,
        [
            prompt,
            corrupt_prompt,
            prompt + draft.answer,
            prompt + draft.wrong,
            *("".join(pieces[:cut]) for pieces in (draft.clean, draft.corrupt) for cut in cuts),
        ],
    )
    # Answers first: "' Mary' is 3 tokens" tells a reader more than a difference in length.
    answer = _added(tokenizer, clean, with_answer, draft.answer)
    wrong = _added(tokenizer, clean, with_wrong, draft.wrong)
    if isinstance(answer, str):
        return answer
    if isinstance(wrong, str):
        return wrong
    if getattr(tokenizer, "unk_token_id", None) in (*clean, *corrupt):
        return f"{prompt!r} has words that are not in the vocabulary"
    if len(clean) != len(corrupt):
        return f"{prompt!r} and its corrupt pair are {len(clean)} and {len(corrupt)} tokens"
    ends: list[dict[int, int]] = []
    for ids, pieces, found in (
        (clean, draft.clean, prefixes[: len(cuts)]),
        (corrupt, draft.corrupt, prefixes[len(cuts) :]),
    ):
        for cut, prefix in zip(cuts, found, strict=True):
            if ids[: len(prefix)] != prefix:
                return f"{pieces[cut - 1].strip()!r} merges with the word after it"
        ends.append({cut: len(prefix) for cut, prefix in zip(cuts, found, strict=True)})
        for place in single:
            if (tokens := ends[-1][place + 1] - ends[-1][place]) != 1:
                return f"{pieces[place]!r} is {tokens} tokens"
    if ends[0] != ends[1]:
        return f"{prompt!r} and its corrupt pair have words at different positions"
    positions = {"end": len(clean), **{name: ends[0][place + 1] for name, place in draft.places.items()}}
    bos = bos_id(tokenizer)
    return _Pair(prompt, corrupt_prompt, [bos, *clean], [bos, *corrupt], answer, wrong, positions, draft)


def _attached(word: str) -> str:
    return word if word in PUNCTUATION else f" {word}"


def _added(tokenizer: Any, clean: list[int], after: list[int], text: str) -> int | str:
    """The one token that ``text`` adds to the prompt, or why there is none."""
    if after[: len(clean)] != clean:
        return f"{text!r} merges with the word before it"
    added = after[len(clean) :]
    if len(added) != 1:
        return f"{text!r} is {len(added)} tokens"
    if added[0] == getattr(tokenizer, "unk_token_id", None):
        return f"{text!r} is not in the vocabulary"
    return added[0]


def bos_id(tokenizer: Any) -> int:
    """The id that begins every prompt: the tokenizer's BOS, or its EOS where it has no BOS.

    Raises:
        MechlabError: the tokenizer has neither.
    """
    for kind in ("bos_token_id", "eos_token_id"):
        found = getattr(tokenizer, kind, None)
        if found is not None:
            return int(found)
    raise MechlabError("tokenizer has no BOS token", type(tokenizer).__name__, "set tokenizer.bos_token")


def _ids(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    return [list(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]


def _task(name: str, pairs: list[_Pair], refused: tuple[str, ...], tokenizer: Any) -> Task:
    names = set.intersection(*(set(pair.positions) for pair in pairs))
    groups = [pair.draft.group for pair in pairs]
    right, wrong = _answer_sets(pairs, tokenizer) if pairs[0].draft.right_set else (None, None)
    return Task(
        name=name,
        clean=torch.tensor([pair.clean for pair in pairs]),
        corrupt=torch.tensor([pair.corrupt for pair in pairs]),
        answers=torch.tensor([pair.answer for pair in pairs]),
        wrong=torch.tensor([pair.wrong for pair in pairs]),
        positions={key: torch.tensor([pair.positions[key] for pair in pairs]) for key in sorted(names)},
        prompts=tuple(pair.prompt for pair in pairs),
        corrupt_prompts=tuple(pair.corrupt_prompt for pair in pairs),
        refused=refused,
        right_set=right,
        wrong_set=wrong,
        groups=None if None in groups else torch.tensor(groups),
    )


def _answer_sets(
    pairs: list[_Pair], tokenizer: Any
) -> tuple[Bool[Tensor, "n d_vocab"], Bool[Tensor, "n d_vocab"]]:
    # The ids do not depend on the prompt once each member is one token of its own. A member in
    # pieces is left out of both sets: its first piece may begin other words too.
    members = list(dict.fromkeys(text for pair in pairs for text in _members(pair)))
    ids: dict[str, int] = {}
    # A few prompts are tried: "1750" may be one token where "1650" is two.
    for pair in pairs[:_TRIED]:
        missing = [text for text in members if text not in ids]
        if not missing:
            break
        for text, after in zip(missing, _ids(tokenizer, [pair.prompt + t for t in missing]), strict=True):
            found = _added(tokenizer, pair.clean[1:], after, text)
            if isinstance(found, int):
                ids[text] = found
    right = torch.zeros(len(pairs), len(tokenizer), dtype=torch.bool)
    wrong = right.clone()
    for row, pair in enumerate(pairs):
        right[row, [ids[text] for text in pair.draft.right_set if text in ids]] = True
        wrong[row, [ids[text] for text in pair.draft.wrong_set if text in ids]] = True
    return right, wrong


def _members(pair: _Pair) -> tuple[str, ...]:
    return pair.draft.right_set + pair.draft.wrong_set
