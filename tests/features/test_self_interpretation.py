"""Self-interpretation: injected vectors come back as their tokens, by the logit lens; relevance; errors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mechlab.activations.capture import read_sites
from mechlab.errors import MechlabError
from mechlab.features.continuations import continuations
from mechlab.features.self_interpretation import IDENTITY, Prompt, account, explain_self
from mechlab.models.subject import Subject, load_model


@pytest.fixture(scope="module", params=["fable", "stories"])
def subject(request: pytest.FixtureRequest, stories_model: Path) -> Subject:
    return load_model("fable" if request.param == "fable" else stories_model)


def last_site(subject: Subject) -> str:
    return f"blocks.{subject.module.config.num_hidden_layers - 1}.hook_resid_post"


def lens(subject: Subject, vector: torch.Tensor) -> int:
    """The token that the final norm and the unembedding read from a residual stream."""
    base = subject.module.base_model
    norm = base.ln_f if hasattr(base, "ln_f") else base.norm
    return int(subject.module.get_output_embeddings()(norm(vector[None])).argmax())


def test_at_the_last_layer_a_vector_comes_back_as_the_logit_lens_reads_it(subject: Subject) -> None:
    site = last_site(subject)
    generator = torch.Generator().manual_seed(0)
    for text in ("Once upon a time", "The dog ran to"):
        hidden = read_sites(subject, subject.tokens(text)[None], [site])[site][0]
        for vector in (*hidden[1:], torch.randn(hidden.shape[1], generator=generator)):
            for scale in (None, 1.0):
                said = account(subject, vector, site, new_tokens=1, scale=scale)
                assert said.tokens == (lens(subject, vector * said.scale),)


def test_unembedding_rows_name_their_own_tokens(subject: Subject) -> None:
    rows = subject.module.get_output_embeddings().weight
    tokens = range(300, 324)
    right = sum(
        account(subject, rows[token], last_site(subject), new_tokens=1).tokens == (token,) for token in tokens
    )
    assert right > 0.8 * len(tokens)


def test_putting_back_the_placeholders_own_state_changes_nothing(subject: Subject) -> None:
    tokens, places = IDENTITY.tokens(subject)
    assert places == [len(tokens) - 1]
    site = "blocks.1.hook_resid_post"
    own = read_sites(subject, tokens[None], [site])[site][0, places[0]]
    said = account(subject, own, site, scale=None, new_tokens=5)
    plain = continuations(subject, tokens[None], 5, temperature=0.0)[0]
    assert said.tokens == tuple(plain.tolist())
    assert said.relevance == pytest.approx([0.0] * 5, abs=1e-5)
    assert said.scale == 1.0


def test_relevance_is_the_change_of_probability(subject: Subject) -> None:
    site = last_site(subject)
    tokens, _ = IDENTITY.tokens(subject)
    vector = subject.module.get_output_embeddings().weight[310]
    said = account(subject, vector, site, new_tokens=3)
    assert said == account(subject, vector, site, new_tokens=3)
    before = subject.logits(tokens[None])[0, -1].double().softmax(-1)
    assert said.relevance[0] > 0.05
    assert said.relevance[0] <= 1 - float(before[said.tokens[0]]) + 1e-9
    # At the last layer nothing that comes later sees the vector: its words are not about it.
    assert said.relevance[1:] == pytest.approx([0.0, 0.0], abs=1e-5)


def test_early_vectors_reach_later_words(subject: Subject) -> None:
    prompt = Prompt("the dog and ", " ran to", "?", 3)
    tokens, places = prompt.tokens(subject)
    assert len(places) == 3
    assert len(set(tokens[places].tolist())) == 1
    vector = subject.module.get_input_embeddings().weight[320]
    said = account(subject, vector, "blocks.0.hook_resid_pre", prompt=prompt, new_tokens=4, scale=1.5)
    assert max(map(abs, said.relevance)) > 1e-4
    assert not any(module._forward_hooks for module in subject.module.modules())


def test_explanations_carry_their_relevance(subject: Subject) -> None:
    rows = subject.module.get_output_embeddings().weight
    found = explain_self(subject, {7: rows[310], 3: rows[320]}, last_site(subject), new_tokens=1)
    assert [each.feature for each in found] == [3, 7]
    assert all(each.explainer == "self" and each.rule is None for each in found)
    assert found[0].text == subject.tokenizer.decode([320]).strip()
    assert 0 < found[0].about["relevance"] <= 1


def test_refusals(subject: Subject) -> None:
    site, vector = last_site(subject), torch.ones(subject.module.config.hidden_size)
    with pytest.raises(MechlabError, match="length zero"):
        account(subject, 0 * vector, site)
    with pytest.raises(MechlabError, match="another size"):
        account(subject, vector[:-1], site)
    with pytest.raises(MechlabError, match="no placeholder"):
        account(subject, vector, site, prompt=Prompt("the", count=0))
    with pytest.raises(MechlabError, match="longer than the model's context"):
        account(subject, vector, site, new_tokens=5000)
    with pytest.raises(MechlabError, match="no site"):
        account(subject, vector, "blocks.99.hook_resid_post")
