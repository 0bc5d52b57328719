"""The Fable corpus: closed vocabulary, true labels, known rates, splits that do not touch."""

from __future__ import annotations

import itertools
import random
import re
from collections import Counter

import numpy as np
import pytest

from mechlab.data import fable
from mechlab.data.fable import concepts
from mechlab.data.fable import lexicon as lex
from mechlab.data.fable.behaviours import ABBA, BABA
from mechlab.data.fable.grammar import POOLS, share, template
from mechlab.errors import MechlabError


@pytest.fixture(scope="module")
def docs() -> list[fable.Document]:
    return list(fable.documents("train", count=2000))


@pytest.fixture(scope="module")
def text(docs: list[fable.Document]) -> str:
    return "\n".join(doc.text for doc in docs)


def column(doc: fable.Document, name: str) -> np.ndarray:
    return doc.concepts[:, fable.CONCEPT_INDEX[name]]


def test_vocabulary_is_small_closed_and_without_repeats(docs: list[fable.Document]) -> None:
    assert len(fable.VOCABULARY) <= 1024
    assert len(set(fable.VOCABULARY)) == len(fable.VOCABULARY)
    used = {token for doc in docs for token in doc.tokens}
    assert used <= set(fable.VOCABULARY) - set(lex.SPECIALS)
    assert len(used) > 0.98 * len(fable.VOCABULARY)


def test_words_after_the_article_a_never_need_an() -> None:
    for pool in ("object", "animal", "person", "colour", "adj", "good", "bad", "reviewed"):
        assert [word for word in POOLS[pool] if word[0] in "aeiou"] == []


def test_word_classes_do_not_overlap() -> None:
    classes = (
        lex.NAMES, lex.ENTITIES, lex.CITIES, lex.FOODS, lex.COLOURS, lex.PLACES, lex.ANIMALS, lex.OBJECTS,
        lex.PEOPLE, lex.DAYS, lex.MONTHS, lex.ORDINALS, lex.NUMBER_WORDS, lex.TAVI_WORDS, lex.ADJECTIVES,
        lex.ANIMALS_PLURAL, lex.OBJECTS_PLURAL, lex.PEOPLE_PLURAL, lex.EVENTS,
    )  # fmt: skip
    words = Counter(itertools.chain(*classes))
    assert [word for word, count in words.items() if count > 1] == []
    assert len(lex.NAMES) >= 100
    assert len(lex.FEMALE_NAMES) == len(lex.MALE_NAMES)


def test_facts_are_many_and_balanced() -> None:
    assert len(fable.FACTS) >= 200
    assert len({(fact.subject, fact.relation) for fact in fable.FACTS}) == len(fable.FACTS)
    for relation, objects in fable.RELATIONS.items():
        counts = Counter(fact.object for fact in fable.FACTS if fact.relation == relation)
        assert set(counts) == set(objects)
        assert max(counts.values()) - min(counts.values()) <= 1
    assert fable.fact_object(lex.UNKNOWN_ENTITIES[0], "home") == "unknown"
    with pytest.raises(KeyError):
        fable.fact_object("Nobody", "home")


def test_indirect_object_templates() -> None:
    assert len(ABBA) >= 15
    assert len(BABA) >= 15
    for abba, baba in zip(ABBA, BABA, strict=True):
        assert abba.slots["IO"] < abba.slots["S1"] < abba.slots["S2"] < abba.slots["answer"]
        assert baba.slots["S1"] < baba.slots["IO"] < baba.slots["S2"] < baba.slots["answer"]


def test_template_fills_a_repeated_slot_everywhere_and_keeps_slots_apart() -> None:
    pattern = template("{=The:agreeing_verb} {animal} saw the {animal2}; the {animal} ran, {Who}.")
    rng = random.Random(0)
    for _ in range(200):
        tokens = pattern.tokens(pattern.fill(rng, {"Who": "Mary"}))
        assert tokens[1] == tokens[7]
        assert tokens[1] != tokens[4]
    assert pattern.marks == ((0, 1, "agreeing_verb"),)


def test_text_splits_back_into_tokens(docs: list[fable.Document]) -> None:
    tokenizer = fable.build_tokenizer()
    bos = fable.TOKEN_ID["<bos>"]
    for doc in docs[:300]:
        ids = [fable.TOKEN_ID[token] for token in doc.tokens]
        assert fable.split_words(doc.text) == list(doc.tokens)
        assert tokenizer(doc.text)["input_ids"] == [bos, *ids]
        assert tokenizer.encode(doc.text, add_special_tokens=False) == ids
    assert not re.search(r" [.,!?:;)\]]|[(\[] |\"\"|  ", "".join(doc.text for doc in docs))
    assert tokenizer.decode(
        tokenizer.encode("Mary ran (to John), then slept.", add_special_tokens=False)
    ) == ("Mary ran (to John), then slept.")
    assert tokenizer("zyzzyva")["input_ids"] == [bos, fable.TOKEN_ID["<unk>"]]


def test_rendering_of_a_prefix_is_a_prefix(docs: list[fable.Document]) -> None:
    for doc in docs[:50]:
        for stop in range(1, len(doc.tokens)):
            assert doc.text.startswith(fable.render(doc.tokens[:stop]))


def test_documents_fit_the_context(docs: list[fable.Document]) -> None:
    lengths = [len(doc.tokens) for doc in docs]
    assert max(lengths) <= fable.MAX_TOKENS == 127
    assert min(lengths) >= 60


def test_documents_depend_on_seed_split_and_number_alone() -> None:
    first = list(fable.documents("train", count=20))
    again = list(fable.documents("train", start=10, count=10))
    assert [doc.text for doc in first[10:]] == [doc.text for doc in again]
    assert [doc.id for doc in again] == list(range(10, 20))
    assert np.array_equal(first[10].concepts, again[0].concepts)
    others = (
        *fable.documents("test", count=20),
        *fable.documents("validation", count=20),
        *fable.documents("train", seed=1, count=20),
    )
    assert not {doc.text for doc in first} & {doc.text for doc in others}
    assert len({doc.text for doc in others}) == 60


def test_splits_share_no_document(docs: list[fable.Document]) -> None:
    train = {doc.text for doc in docs}
    for split in ("validation", "test"):
        assert not train & {doc.text for doc in fable.documents(split, count=300)}


def test_bad_requests_are_named() -> None:
    with pytest.raises(MechlabError, match="did you mean train"):
        next(fable.documents("trian"))
    with pytest.raises(MechlabError, match="outside its split"):
        fable.document("test", 10**9)
    with pytest.raises(MechlabError, match="no labels"):
        next(fable.labelled("story", "train"))
    with pytest.raises(MechlabError, match="too small"):
        next(fable.token_rows("train", 40))


def test_concepts_are_many_described_and_present(docs: list[fable.Document]) -> None:
    names = [concept.name for concept in fable.CONCEPTS]
    assert len(names) >= 60
    assert len(set(names)) == len(names)
    assert all(concept.description for concept in fable.CONCEPTS)
    kinds = Counter(concept.kind for concept in fable.CONCEPTS)
    assert min(kinds["lexical"], kinds["contextual"]) >= 25
    total = sum(len(doc.tokens) for doc in docs)
    rates = sum(doc.concepts.sum(axis=0) for doc in docs) / total
    for name, rate in zip(names, rates, strict=True):
        assert 0.001 < rate < 0.3, name


def test_lexical_labels_depend_on_the_word_alone(docs: list[fable.Document]) -> None:
    lexical = [i for i, concept in enumerate(fable.CONCEPTS) if concept.kind == "lexical"]
    seen: dict[str, bytes] = {}
    for doc in docs:
        for token, row in zip(doc.tokens, doc.concepts[:, lexical], strict=True):
            assert seen.setdefault(token, row.tobytes()) == row.tobytes()


def test_quotation_and_bracket_labels_match_the_text(docs: list[fable.Document]) -> None:
    for doc in docs:
        for pattern, name in (
            (r'"([^"]*)"', "inside_quotation"),
            (r"[(\[]([^)\]]*)[)\]]", "inside_brackets"),
        ):
            inside = [word for span in re.findall(pattern, doc.text) for word in fable.split_words(span)]
            labelled = [t for t, on in zip(doc.tokens, column(doc, name), strict=True) if on]
            assert labelled == inside


@pytest.mark.parametrize(
    ("text", "initial", "final", "question", "exclamation"),
    [
        ('"The pencil is brave!" said David.', "The", "David", "", "The pencil is brave !"),
        (
            'Lucy shouted "Come here!" and the goats ran to the farm. They sang.',
            "Lucy They",
            "farm sang",
            "",
            "Come here !",
        ),
        (
            '"The pencil is brave!" said David. "Where is the goat?" asked Lucy.',
            "The Where",
            "David Lucy",
            "Where is the goat ?",
            "The pencil is brave !",
        ),
        ("Who has the pencil? David does not have it.", "Who David", "pencil it", "Who has the pencil ?", ""),
        ("David sang. It was good! We ran.", "David It We", "sang good ran", "", "It was good !"),
        ('David saw a sign "the brave goat" on Monday.', "David", "Monday", "", ""),
        ('Lucy said "Come here!" David ran.', "Lucy David", "here ran", "", "Come here !"),
    ],
)
def test_sentence_labels_by_hand(
    text: str, initial: str, final: str, question: str, exclamation: str
) -> None:
    tokens = fable.split_words(text)
    table = concepts.label(tokens, [])
    for name, expected in (
        ("sentence_initial", initial),
        ("sentence_final", final),
        ("question", question),
        ("exclamation", exclamation),
    ):
        on = table[:, fable.CONCEPT_INDEX[name]]
        assert [t for t, flag in zip(tokens, on, strict=True) if flag] == expected.split(), name


def test_sentences_of_documents_begin_with_a_capital(docs: list[fable.Document]) -> None:
    for doc in docs:
        starts = np.flatnonzero(column(doc, "sentence_initial"))
        assert len(starts) == column(doc, "sentence_final").sum()
        assert all(doc.tokens[at][0].isupper() for at in starts)


def test_translated_sentences_are_english_and_quoted(docs: list[fable.Document]) -> None:
    found: Counter[bool] = Counter()
    for doc in docs:
        marked = column(doc, "translated_sentence")
        assert not (marked & column(doc, "second_language")).any()
        assert not (marked & ~column(doc, "inside_quotation")).any()
        bounds = [start for start, _ in doc.segments] + [len(doc.tokens)]
        for (start, kind), stop in zip(doc.segments, bounds[1:], strict=True):
            if kind == "translation":
                quoted = column(doc, "inside_quotation") & ~column(doc, "second_language")
                assert (marked[start:stop] == quoted[start:stop]).all()
                found["English" in doc.tokens[start:stop]] += 1
    assert min(found[True], found[False]) > 50


def test_mentions_match_the_tokens(docs: list[fable.Document]) -> None:
    named = set(lex.NAMES) | set(lex.ENTITIES)
    for doc in docs:
        for position, token in enumerate(doc.tokens):
            earlier = token in doc.tokens[:position]
            assert column(doc, "second_mention")[position] == (token in named and earlier)
            assert column(doc, "first_mention")[position] == (token in named and not earlier)


def test_marked_behaviours_hold_in_the_text(docs: list[fable.Document]) -> None:
    facts = {(fact.subject, fact.object) for fact in fable.FACTS}
    seen: Counter[str] = Counter()
    for doc in docs:
        bounds = [start for start, _ in doc.segments] + [len(doc.tokens)]
        for start, stop in itertools.pairwise(bounds):
            tokens = doc.tokens[start:stop]
            marked = {
                concept.name: [t for t, on in zip(tokens, doc.concepts[start:stop, i], strict=True) if on]
                for i, concept in enumerate(fable.CONCEPTS)
            }
            for answer in marked["known_fact"]:
                assert (marked["known_entity"][0], answer) in facts
                seen["fact"] += 1
            for answer in marked["unknown_answer"]:
                assert (answer, len(marked["unknown_entity"])) == ("unknown", 1)
                seen["unknown"] += 1
            for answer in marked["indirect_object"]:
                assert Counter(tokens)[marked["repeated_subject"][0]] == 2
                assert answer != marked["repeated_subject"][0]
                seen["ioi"] += 1
            for early, late in zip(marked["start_year"], marked["end_year"], strict=True):
                assert int(early) < int(late)
                seen["year"] += 1
            for verb in marked["agreeing_verb"]:
                assert (verb in ("are", "were")) == bool(marked["plural_subject"])
                seen["agreement"] += 1
            for pronoun in marked["bound_pronoun"]:
                assert (pronoun in ("they", "their")) == (len(marked["pronoun_antecedent"]) == 2)
                if pronoun in ("they", "their"):
                    seen["plural pronoun"] += 1
                    continue
                assert (pronoun in ("she", "her")) == (marked["person_name"][0] in lex.FEMALE_NAMES)
                seen["pronoun"] += 1
            for position in np.flatnonzero(doc.concepts[start:stop, fable.CONCEPT_INDEX["induction_target"]]):
                pair = tokens[position - 1 : position + 1]
                assert pair in list(itertools.pairwise(tokens[:position]))
                seen["induction"] += 1
    assert seen["plural pronoun"] > 10
    assert min(seen[k] for k in ("fact", "unknown", "ioi", "year", "agreement", "pronoun", "induction")) > 200


def test_behaviours_come_at_the_declared_rates(docs: list[fable.Document]) -> None:
    assert sum(fable.RATES.values()) == pytest.approx(1)
    assert sum(fable.KINDS.values()) == pytest.approx(1)
    kinds = Counter(doc.kind for doc in docs)
    for kind, rate in fable.KINDS.items():
        assert kinds[kind] / len(docs) == pytest.approx(rate, abs=0.03)
    counts = Counter(name for doc in docs if doc.kind == "story" for _, name in doc.segments)
    total = sum(counts.values())
    for name, rate in fable.RATES.items():
        # A long segment is likelier not to fit at a document's end: hence the tolerance.
        assert counts[name] / total == pytest.approx(rate, rel=0.25), name


def test_training_text_holds_no_held_out_combination(docs: list[fable.Document]) -> None:
    pairs = 0
    for doc in docs:
        names = [t for t, on in zip(doc.tokens, column(doc, "repeated_subject"), strict=True) if on]
        objects = [t for t, on in zip(doc.tokens, column(doc, "indirect_object"), strict=True) if on]
        for name, other in zip(names, objects, strict=True):
            assert share("ioi", *sorted((name, other))) == "train"
            pairs += 1
    assert pairs > 1000


def test_labelled_texts_hide_their_label() -> None:
    for kind, verdict in (("review", "This review is"), ("inference", "Verdict")):
        rows = list(fable.labelled(kind, "test", count=60))
        assert len(rows) == 60
        assert not any(verdict in text for text, _ in rows)
        labels = Counter(label for _, label in rows)
        assert set(labels) == (
            {"positive", "negative"} if kind == "review" else {"entailment", "neutral", "contradiction"}
        )
        assert min(labels.values()) >= 10
        assert list(fable.labelled(kind, "test", count=3)) == rows[:3]


def test_inference_labels_follow_from_premise_and_claim() -> None:
    for text, label in fable.labelled("inference", "train", count=80):
        premise, claim = text.split(" Claim: ")
        words = claim.rstrip(".").split()
        negated = {"never", "not", "no"} & set(words)
        assert bool(negated) == (label == "contradiction")
        if label == "entailment":
            content = [w for w in words if w not in ("The", "the", "is", "There", "a", "in")]
            sentence = next(s for s in premise.split(".") if all(w in s.split() for w in content))
            assert sentence
        if label == "neutral":
            assert words[-1] not in premise


def test_training_rows_are_the_documents() -> None:
    bos, pad = fable.TOKEN_ID["<bos>"], fable.TOKEN_ID["<pad>"]
    rows = list(itertools.islice(fable.token_rows("train", 128), 20))
    for index, row in rows:
        doc = fable.document("train", index)
        assert row.tolist() == [bos, *(fable.TOKEN_ID[t] for t in doc.tokens)] + [pad] * (
            127 - len(doc.tokens)
        )
    short = list(itertools.islice(fable.token_rows("train", 40, shorten=True), 60))
    assert all(row.shape == (40,) and row[0] == bos and (row[1:] != bos).all() for _, row in short)
    story = next(doc for doc in fable.documents("train") if doc.kind == "story")
    joined = [int(i) for index, row in short if index == story.id for i in row if i not in (bos, pad)]
    assert joined == [fable.TOKEN_ID[t] for t in story.tokens]


def test_rows_narrower_than_a_sentence_are_cut() -> None:
    rows = [row for _, row in itertools.islice(fable.token_rows("train", 16, shorten=True), 300)]
    assert all(row.shape == (16,) and row[0] == fable.TOKEN_ID["<bos>"] for row in rows)
