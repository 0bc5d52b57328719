"""Rewriting: identities that must hold, and losses against splicing and evaluation."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from mechlab.activations.capture import read_sites
from mechlab.activations.harvest import harvest
from mechlab.data.corpus import Corpus, open_corpus
from mechlab.errors import MechlabError
from mechlab.features.rewrite import Prediction, Predictor, rewrite, rule_predictor
from mechlab.features.rules import Clause, Rule, Token
from mechlab.features.sources import index_dictionary, store_rows
from mechlab.features.text import Text
from mechlab.models.subject import Subject, load_model
from mechlab.sae.codes import scatter
from mechlab.sae.config import TrainConfig
from mechlab.sae.dictionary import Dictionary, train_sae
from mechlab.sae.evaluate import evaluate
from mechlab.sae.splice import splicing
from mechlab.sae.topk import TopKConfig

SITE, IN, OUT = "blocks.0.hook_resid_post", "blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out"
CONFIGS: dict[str, TrainConfig] = {
    "sae": TopKConfig(site=SITE, d_sae=40, k=4, tokens=4096, batch_size=256),
    "transcoder": TopKConfig(site=IN, target=OUT, d_sae=40, k=4, skip=True, tokens=4096, batch_size=256),
}
ALL = list(range(40))
Setting = dict[str, Dictionary]


@pytest.fixture(scope="module")
def subject(tiny_model: Path) -> Subject:
    return load_model(tiny_model)


@pytest.fixture(scope="module")
def corpus(tiny_corpus: Path) -> Corpus:
    return open_corpus(tiny_corpus)


@pytest.fixture(scope="module")
def dictionaries(subject: Subject, corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Setting:
    folder = tmp_path_factory.mktemp("d")
    store = harvest(subject, corpus, [SITE, IN, OUT], folder / "store", tokens=6000)
    return {name: train_sae(store, folder / name, config) for name, config in CONFIGS.items()}


def knowing(subject: Subject, dictionary: Dictionary) -> Predictor:
    """Predicts every latent as it is, by running the model on the text."""

    def predict(text: Text) -> Prediction:
        codes = []
        for start, stop in zip(text.bounds, text.bounds[1:], strict=False):
            ids = [subject.bos, *text.tokens[start:stop].tolist()]
            (site,) = dictionary.inputs
            x = read_sites(subject, torch.tensor([ids]), [site])[site][0, 1:]
            codes.append(scatter(dictionary.sae.encode(x), dictionary.sae.d_sae))
        dense = torch.cat(codes).numpy()
        return {f: (np.flatnonzero(dense[:, f]), dense[dense[:, f] != 0, f]) for f in range(dense.shape[1])}

    return predict


def nothing(text: Text) -> Prediction:
    return {}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("error", [False, True])
def test_whoever_knows_the_activations_loses_nothing(
    subject: Subject, corpus: Corpus, dictionaries: Setting, name: str, error: bool
) -> None:
    dictionary = dictionaries[name]
    predict = knowing(subject, dictionary)
    found = rewrite(subject, dictionary, corpus, predict, ALL, counts=[3, 10], error=error, tokens=900)
    assert [share.features for share in found.shares] == [3, 10, 40]
    wanted = found.ce["error" if error else "reconstruction"].value
    assert found.ce["error"].value == pytest.approx(found.ce["clean"].value, abs=1e-4)
    assert ("sparse" in found.ce) == (name == "transcoder")
    for share in found.shares:
        assert share.ce["rewritten"].value == pytest.approx(wanted, abs=1e-4)
    whole = found.shares[-1].recovered
    assert whole.value == pytest.approx(1, abs=1e-3)
    assert whole.null is not None
    assert found.to_dict()["shares"][2]["recovered"]["null"]["value"] == whole.null.value


def test_references_are_those_of_the_evaluation(
    subject: Subject, corpus: Corpus, dictionaries: Setting
) -> None:
    for dictionary in dictionaries.values():
        found = rewrite(subject, dictionary, corpus, nothing, ALL, tokens=10**6)
        there = evaluate(subject, dictionary, corpus, tokens=10**6).ce
        names = {"clean": "clean", "reconstruction": "spliced", "mean": "mean", "zero": "zero"}
        for ours, theirs in names.items():
            assert found.ce[ours].value == pytest.approx(there[theirs], abs=1e-6)
        share = found.shares[0]
        assert share.ce["rewritten"].value == share.ce["silent"].value == share.ce["shuffled"].value
        assert share.recovered.value == 0


def spliced_loss(
    subject: Subject, corpus: Corpus, documents: set[int], around: Callable[[torch.Tensor], object]
) -> float:
    total = count = 0.0
    for document in corpus.documents("validation"):
        if document.id not in documents:
            continue
        assert isinstance(document.text, str)
        for part in subject.tokens(document.text)[1:].split(subject.n_ctx - 1):
            tokens = torch.cat([torch.tensor([subject.bos]), part])[None]
            with around(tokens):  # type: ignore[attr-defined]
                logits = subject.logits(tokens)[0, 1:-1]
            total += float(torch.nn.functional.cross_entropy(logits, tokens[0, 2:], reduction="sum"))
            count += len(part) - 1
    return total / count


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("error", [False, True])
def test_rules_and_silence_are_what_splicing_makes_of_them(
    subject: Subject, corpus: Corpus, dictionaries: Setting, name: str, error: bool
) -> None:
    dictionary = dictionaries[name]
    some = {document.id for document in list(corpus.documents("validation"))[:6]}
    vocabulary = subject.tokenizer.get_vocab()
    texts = {word: subject.token_text(vocabulary[word]) for word in ("cat", "dog")}
    rules = {
        7: Rule((Clause((Token((texts["cat"],)),), 2.0),)),
        30: Rule((Clause((Token((texts["dog"],)),), 3.0),)),
    }
    found = rewrite(
        subject, dictionary, corpus, rule_predictor(rules), [7, 30], error=error, documents=some, tokens=10**6
    )
    assert found.documents == len(some)

    def silent(tokens: torch.Tensor) -> object:
        where = torch.ones_like(tokens, dtype=torch.bool)
        where[:, 0] = False
        return splicing(subject, dictionary, error=error, ablate=[7, 30], positions=where)

    wanted = spliced_loss(subject, corpus, some, silent)
    assert found.shares[0].ce["silent"].value == pytest.approx(wanted, abs=1e-4)

    def ruled(tokens: torch.Tensor) -> object:
        # Each splice touches rows of its own, so one after another is all at once.
        stack = contextlib.ExitStack()
        seen = {7: tokens == vocabulary["cat"], 30: tokens == vocabulary["dog"]}
        rest = ~(seen[7] | seen[30])
        rest[:, 0] = False
        stack.enter_context(splicing(subject, dictionary, error=error, ablate=[7, 30], positions=rest))
        for feature, other in ((7, 30), (30, 7)):
            clamp = {feature: rules[feature].clauses[0].strength}
            changed = splicing(
                subject, dictionary, error=error, clamp=clamp, ablate=[other], positions=seen[feature]
            )
            stack.enter_context(changed)
        return stack

    wanted = spliced_loss(subject, corpus, some, ruled)
    assert found.shares[0].ce["rewritten"].value == pytest.approx(wanted, abs=1e-4)
    # Of two, the other's explanation is all that a shuffle can give.
    swapped = rule_predictor({7: rules[30], 30: rules[7]})
    again = rewrite(subject, dictionary, corpus, swapped, [7, 30], error=error, documents=some, tokens=10**6)
    assert again.shares[0].ce["rewritten"].value == found.shares[0].ce["shuffled"].value


def test_same_seed_same_figures(subject: Subject, corpus: Corpus, dictionaries: Setting) -> None:
    dictionary = dictionaries["sae"]
    predict = knowing(subject, dictionary)
    one, two, other = (
        rewrite(subject, dictionary, corpus, predict, ALL, tokens=300, seed=seed) for seed in (1, 1, 2)
    )
    assert one.to_dict() == two.to_dict()
    assert other.shares[0].ce["shuffled"].value != one.shares[0].ce["shuffled"].value


def test_what_is_refused(subject: Subject, corpus: Corpus, dictionaries: Setting) -> None:
    dictionary = dictionaries["sae"]
    with pytest.raises(MechlabError, match=r"feature does not exist: 40 .0 to 39"):
        rewrite(subject, dictionary, corpus, nothing, [1, 40])
    with pytest.raises(MechlabError, match="once each"):
        rewrite(subject, dictionary, corpus, nothing, [1, 1])
    with pytest.raises(MechlabError, match="no token to measure"):
        rewrite(subject, dictionary, corpus, nothing, [1], documents=[])


@pytest.mark.slow
def test_token_rules_of_the_bundled_models_latents_beat_others(tmp_path: Path) -> None:
    """For every latent the words on which it is active most of the time, with their mean activation."""
    fable, corpus = load_model("fable"), open_corpus("fable")
    site = "blocks.0.hook_resid_post"
    store = harvest(fable, corpus, site, tmp_path / "store", tokens=100_000)
    config = TopKConfig(site=site, d_sae=512, k=8, tokens=200_000, batch_size=1024)
    dictionary = train_sae(store, tmp_path / "sae", config)
    index = index_dictionary(dictionary, store_rows(store, fable), tmp_path / "index")
    tokens, size = index.text.tokens, len(index.text.vocabulary)
    seen = np.bincount(tokens, minlength=size)
    rules = {}
    for feature in np.argsort(-index.active)[:200].tolist():
        row, value = index.entries(feature)
        active = np.bincount(tokens[row], minlength=size)
        total = np.bincount(tokens[row], weights=value, minlength=size)
        words = np.flatnonzero(active > 0.5 * seen)
        clauses = [
            Clause((Token((index.text.vocabulary[word],)),), float(total[word] / active[word]))
            for word in words.tolist()
        ]
        if clauses:
            rules[feature] = Rule(tuple(clauses))
    found = rewrite(fable, dictionary, corpus, rule_predictor(rules), list(rules), counts=[10], tokens=8000)
    whole = found.shares[-1].recovered
    assert whole.beats_null
    assert 0.3 < whole.value <= 1.01
    assert found.ce["clean"].value < found.ce["reconstruction"].value < found.ce["zero"].value
