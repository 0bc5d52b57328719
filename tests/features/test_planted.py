"""Planted features: every kind obeys its rule, and black boxes are explained by programs."""

import numpy as np
import pytest

from mechlab.data.fable.concepts import CONCEPT_INDEX
from mechlab.errors import MechlabError
from mechlab.features.planted.corpora import corpus_text, fable_text, fable_vocabulary
from mechlab.features.planted.features import KINDS, NOISE, agreement, plant, plant_rules
from mechlab.features.planted.functions import (
    CORRUPTIONS,
    GRID,
    SOLVED,
    StringFunction,
    exact_match,
    nmse,
    numeric_functions,
    string_functions,
)
from mechlab.features.planted.programs import explain_numbers, explain_strings
from mechlab.features.rules import Matcher
from mechlab.features.vocabulary import vocabulary_of
from mechlab.models.subject import load_model


@pytest.fixture(scope="module")
def text():
    return fable_text(120_000)[0]


def test_every_kind_is_planted_and_obeys_its_rule(text):
    rules = plant_rules(text, per_kind=2)
    index = plant(text, rules)
    matcher = Matcher(text)
    assert [each.kind for each in rules] == [kind for kind in KINDS for _ in range(2)]
    for number, each in enumerate(rules):
        rows = index.entries(number)[0]
        assert len(np.unique(text.document[rows])) >= 60
        if each.kind == NOISE:
            assert each.rule is None
            continue
        assert np.array_equal(rows, matcher.rows(each.rule)[0])
        assert 0 <= agreement(matcher.rows(each.wrong)[0], rows) <= 0.9, each.kind


def test_the_wrong_rules_are_plausible_on_the_whole(text):
    rules = [each for each in plant_rules(text, per_kind=4) if each.rule]
    matcher = Matcher(text)
    found = [agreement(matcher.rows(each.wrong)[0], matcher.rows(each.rule)[0]) for each in rules]
    assert 0.2 < np.median(found) < 0.95


def test_same_seed_same_features_and_another_seed_others(text):
    assert plant_rules(text, per_kind=1, seed=4) == plant_rules(text, per_kind=1, seed=4)
    assert plant_rules(text, per_kind=1, seed=4) != plant_rules(text, per_kind=1, seed=5)
    rules = plant_rules(text, per_kind=1)
    assert np.array_equal(plant(text, rules, seed=1).value, plant(text, rules, seed=1).value)


def test_dropped_activations_are_a_share_of_the_rule(text):
    rules = plant_rules(text, per_kind=1, kinds=["within"])
    whole, holed = plant(text, rules), plant(text, rules, dropped=0.25)
    assert set(holed.row) < set(whole.row)
    assert len(holed.row) / len(whole.row) == pytest.approx(0.75, abs=0.05)
    assert whole.value.min() >= 1.0
    assert whole.value.max() <= 3.0


def test_unknown_kinds_and_short_texts_are_refused(text):
    with pytest.raises(MechlabError, match="unknown kind of planted feature: setts"):
        plant_rules(text, kinds=["setts"])
    with pytest.raises(MechlabError, match="cannot be planted"):
        plant_rules(text.cut(0, 50), kinds=["token"])


def test_fables_words_are_those_of_the_bundled_model():
    assert fable_vocabulary().texts == vocabulary_of(load_model("fable")).texts


def test_fables_labels_lie_on_their_rows():
    text, labels = fable_text(5_000, start=7)
    assert len(labels) == len(text) >= 5_000
    assert text.document[0] == 7
    assert text.vocabulary.string(text.tokens[:400]).count(",") > 0
    comma = text.vocabulary.ids([","])
    assert np.array_equal(labels[:, CONCEPT_INDEX["comma"]], np.isin(text.tokens, comma))


def test_a_corpus_without_bos(stories_model, stories_data):
    subject = load_model(str(stories_model))
    text = corpus_text(subject, stories_data, 5_000)
    assert len(text) >= 5_000
    assert subject.bos not in text.tokens
    first = text.tokens[: text.bounds[1]]
    assert subject.tokenizer.encode(text.vocabulary.string(first).strip(), add_special_tokens=False)[:5] == (
        first[:5].tolist()
    )


def test_functions_come_in_every_family_and_corruption():
    functions = numeric_functions(40)
    assert {each.corruption for each in functions} == set(CORRUPTIONS)
    for each in functions:
        gap = np.abs(each.truth(GRID) - each.clean(GRID)).max()
        assert (gap > 0) == (each.corruption == "noise")


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_functions_of_a_number_are_explained_by_programs(corruption):
    functions = [each for each in numeric_functions(40, seed=1) if each.corruption == corruption][:3]
    assert all(nmse(explain_numbers(each.truth), each) < SOLVED for each in functions)


def test_a_program_of_another_function_is_not_solved():
    first, second = numeric_functions(2, seed=3)
    assert nmse(explain_numbers(first.truth), second) > SOLVED


def test_functions_of_strings_are_explained_exactly():
    asked, held_out = ["apple", "banana", "cherry", "dog", "island"], ["lemon", "mountain", "queen", "river"]
    for function in string_functions(50, seed=2)[::5]:
        assert exact_match(explain_strings(function, asked), function, held_out) == 1.0
    other = StringFunction(("reverse it",))
    assert exact_match(StringFunction(("repeat it",)), other, held_out) == 0.0
