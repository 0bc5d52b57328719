"""The token view's blocks against documents run one at a time, features taken out of the stream by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mechlab.activations.capture import read_sites
from mechlab.dashboards.next_tokens import Reader
from mechlab.dashboards.token_blocks import token_blocks
from mechlab.data.corpus import Corpus, open_corpus
from mechlab.errors import MechlabError
from mechlab.features.index import FeatureIndex, index_of
from mechlab.features.sources import model_rows
from mechlab.features.text import Text, text_of
from mechlab.features.vocabulary import Vocabulary
from mechlab.models.subject import Subject, load_model
from mechlab.models.weights import read_weights
from mechlab.sae.splice import At
from mechlab.sae.topk import TopK, TopKConfig
from tiny import save_tiny_model

LAST = "blocks.1.hook_resid_post"
WIDTH = 30


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return load_model(save_tiny_model(tmp_path_factory.mktemp("model") / request.param, request.param))


@pytest.fixture(scope="module")
def corpus(tiny_corpus: Path) -> Corpus:
    return open_corpus(tiny_corpus)


@pytest.fixture(scope="module")
def sae() -> TopK:
    made = TopK(TopKConfig(d_sae=WIDTH, k=4), 16)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return made.requires_grad_(False)


def indexed(subject: Subject, corpus: Corpus, sae: TopK, **how: Any) -> tuple[FeatureIndex, Tensor]:
    """The index of the tiny dictionary, and its codes ``[row, feature]``."""
    source = model_rows(subject, corpus, tokens=700, **how)
    blocks = list(source.blocks([LAST]))
    columns = [
        np.concatenate([getattr(b, name) for b in blocks])
        for name in ("tokens", "context", "position", "document")
    ]
    x = torch.cat([block.values[LAST] for block in blocks])
    found = sae.encode(x)
    codes = torch.zeros(len(x), WIDTH).scatter(1, found.indices.long(), found.values)
    text = Text(*columns, source.vocabulary)
    return index_of(text, {f: codes[:, f].numpy() for f in range(WIDTH)}), codes


def close(shown: float, exact: float) -> bool:
    """Equal up to three significant digits."""
    return shown == pytest.approx(exact, rel=6e-3, abs=1e-5)


@pytest.mark.parametrize("how", [{}, {"pack": True, "bos": "each"}, {"pack": True, "bos": "document"}])
def test_every_figure_is_what_the_model_and_the_codes_say(
    subject: Subject, corpus: Corpus, sae: TopK, how: dict[str, Any]
) -> None:
    index, codes = indexed(subject, corpus, sae, **how)
    text = index.text
    dictionary = At(sae, (LAST,), (LAST,))
    weights = read_weights(subject.module)
    blocks = dict(token_blocks(index, documents=6, top=3, subject=subject, dictionary=dictionary))
    listed = blocks.pop("tokens")
    assert (listed["guesses"], listed["effects"], listed["why"]) == (True, True, "")
    assert len(listed["documents"]) == 6 == len(blocks)
    assert json.loads(json.dumps(list(blocks.values()), allow_nan=False)) == list(blocks.values())
    checked = 0
    for place, each in enumerate(listed["documents"]):
        block = blocks[f"tokens-{place}"]
        rows = np.flatnonzero(text.document == each["d"])
        assert (block["d"], block["n"], len(block["t"])) == (each["d"], len(rows), len(rows))
        assert [block["strings"][n] for n in block["t"]] == [
            text.vocabulary[int(text.tokens[r])] for r in rows
        ]
        assert each["words"].startswith(block["strings"][block["t"][0]])
        shown = {
            (feature, at): value
            for feature, _, places, values in block["features"]
            for at, value in zip(places, values, strict=True)
        }
        for (feature, at), value in shown.items():
            assert close(value, float(codes[rows[at], feature]))
        for at, row in enumerate(rows):
            # Every context begins with the rows of its first document; BOS is put back by hand.
            context = np.flatnonzero(text.context == text.context[row])
            ids = torch.full((int(text.position[context[-1]]) + 1,), int(subject.bos or 0))
            ids[text.position[context]] = torch.from_numpy(text.tokens[context].astype(np.int64))
            stream = read_sites(subject, ids[None], [LAST])[LAST][0, text.position[row]]
            logits = subject.logits(ids[None])[0, text.position[row]]
            best = logits.softmax(-1).topk(5)
            guesses = block["guesses"][at]
            assert [block["strings"][n] for n, _ in guesses] == [
                text.vocabulary[int(t)] for t in best.indices
            ]
            assert all(close(p, float(q)) for (_, p), q in zip(guesses, best.values, strict=True))
            own = codes[row].clamp_min(0)
            strongest = own.argsort(descending=True, stable=True)[: min(3, int((own > 0).sum()))].tolist()
            assert [feature for feature, _, _ in block["effects"][at]] == strongest
            assert all((feature, at) in shown for feature in strongest)
            follows = row + 1 in rows and text.context[row + 1] == text.context[row]
            for feature, to_next, to_guess in block["effects"][at]:
                change = logit_change(weights, stream, float(codes[row, feature]) * sae.W_dec[feature])
                assert close(to_guess, float(change[best.indices[0]]))
                if follows:
                    assert close(to_next, float(change[text.tokens[row + 1]]))
                    checked += 1
                else:
                    assert to_next is None
    assert checked > 50


def logit_change(weights: Any, stream: Tensor, added: Tensor) -> Tensor:
    """Logits less their mean with ``added`` in the stream less those without, σ held at the stream's."""
    norm = weights.final_norm
    centred = stream - stream.mean() if norm.centred else stream
    sigma = (centred.pow(2).mean() + norm.eps).sqrt()
    part = added - added.mean() if norm.centred else added
    logits = weights.unembed((part / sigma * norm.weight)[None])[0] - weights.unembed(torch.zeros(1, 16))[0]
    return logits - logits.mean()


def test_documents_can_be_chosen_and_long_ones_are_cut(subject: Subject, corpus: Corpus, sae: TopK) -> None:
    index, _ = indexed(subject, corpus, sae)
    blocks = dict(token_blocks(index, documents=[5, 2, 5], longest=4))
    listed = blocks["tokens"]
    assert [each["d"] for each in listed["documents"]] == [5, 2]
    assert listed["documents"][0]["n"] == int((index.text.document == 5).sum()) == blocks["tokens-0"]["n"]
    assert len(blocks["tokens-0"]["t"]) == 4
    assert "guesses" not in blocks["tokens-0"]
    assert "effects" not in blocks["tokens-0"]
    assert (listed["guesses"], listed["effects"]) == (False, False)
    everything = dict(token_blocks(index, documents=10_000))
    assert [each["d"] for each in everything["tokens"]["documents"]] == sorted(
        set(index.text.document.tolist())
    )


def test_rows_that_are_not_the_whole_context_have_no_prediction(
    subject: Subject, corpus: Corpus, sae: TopK
) -> None:
    index, _ = indexed(subject, corpus, sae)
    part = index.restrict(index.text.position != 3)
    block = dict(token_blocks(part, documents=1, subject=subject))["tokens-0"]
    assert part.text.position[: len(block["t"])].tolist()[:3] == [1, 2, 4]
    context = part.text.context[: len(block["t"])]
    for guess, own in zip(block["guesses"], context, strict=True):
        # The end of a document may be a context of its own, too short to miss anything.
        assert (guess is None) == bool((part.text.position[part.text.context == own] > 3).any())


def test_a_site_that_writes_nothing_has_no_contributions(subject: Subject, sae: TopK) -> None:
    reader = Reader(subject, At(sae, ("blocks.0.ln1.hook_normalized",), ("blocks.0.ln1.hook_normalized",)))
    assert "does not write to the residual stream" in reader.why
    with pytest.raises(MechlabError, match="contributions are not known"):
        reader.contributions(*(np.zeros(1, int),) * 2, *(np.ones(1, np.float32),) * 2)


def test_what_cannot_be_shown_is_refused(subject: Subject, corpus: Corpus, sae: TopK) -> None:
    index, _ = indexed(subject, corpus, sae)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"documents": [10_000]}, "document is not in the index"),
        ({"documents": 0}, "not positive"),
        ({"top": 0}, "nothing to show"),
        ({"dictionary": At(sae, (LAST,), (LAST,))}, "contributions need the model"),
    ]
    for how, message in wrong:
        with pytest.raises(MechlabError, match=message):
            list(token_blocks(index, **how))


def test_a_text_without_features_or_without_rows() -> None:
    vocabulary = Vocabulary(("a", "</script>"))
    silent = index_of(text_of([[0, 1], [1]], vocabulary), {0: np.zeros(3)})
    blocks = dict(token_blocks(silent))
    assert blocks["tokens-0"]["features"] == []
    assert [blocks["tokens-0"]["strings"][n] for n in blocks["tokens-0"]["t"]] == ["a", "</script>"]
    empty = index_of(text_of([], vocabulary), {})
    assert dict(token_blocks(empty))["tokens"]["documents"] == []
