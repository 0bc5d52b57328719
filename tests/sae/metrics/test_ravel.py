"""RAVEL-style disentanglement on the bundled model's facts."""

from __future__ import annotations

import pytest
import torch

from mechlab.activations.capture import read_sites
from mechlab.data import fable
from mechlab.errors import MechlabError
from mechlab.interventions.edit import editing
from mechlab.models.subject import Subject, load_model
from mechlab.sae.codes import Codes, scatter, sparse
from mechlab.sae.metrics.ravel import interchange, ravel, variance_component

LAST = "blocks.3.hook_resid_post"
OBJECTS = [value for values in fable.RELATIONS.values() for value in values]


class Objects:
    """A dictionary that holds the answers apart: one latent per object, which fires where its logit is
    the highest of all objects'. ``turn`` mixes the latents, so that the code means the same to the
    model but no latent an object."""

    def __init__(self, subject: Subject, turn: torch.Tensor | None = None) -> None:
        ids = [subject.tokenizer.get_vocab()[value] for value in OBJECTS]
        self.norm = subject.module.transformer.ln_f
        self.head = subject.module.get_output_embeddings().weight[ids].detach()
        self.turn = torch.eye(len(ids)) if turn is None else turn
        write = self.head * self.norm.weight.detach()
        self.W_dec = self.turn @ (write / write.norm(dim=1, keepdim=True))

    def encode(self, x: torch.Tensor) -> Codes:
        answer = (self.norm(x) @ self.head.T).argmax(1)
        return sparse(40 * self.turn.T[answer])


@pytest.fixture(scope="module")
def subject() -> Subject:
    return load_model("fable")


def test_variance_component_by_hand() -> None:
    # Groups (1, 3) and (5, 7): MS_between 16, MS_within 2, n0 2, so 7. Equal means: below 0, so 0.
    values = torch.tensor([[1.0, 1.0, 4.0], [3.0, 3.0, 4.0], [5.0, 3.0, 4.0], [7.0, 1.0, 4.0]])
    got = variance_component(values, ["a", "a", "b", "b"])
    torch.testing.assert_close(got, torch.tensor([7.0, 0.0, 0.0]))
    with pytest.raises(MechlabError, match="groups cannot be compared"):
        variance_component(values, ["a", "b", "c", "d"])


def test_interchange_equals_decoding_mixed_codes(subject: Subject) -> None:
    sae = Objects(subject)
    facts = [fact for fact in fable.FACTS if fact.relation == "home"][:2]
    prompts = [subject.tokens(f"The home of {fact.subject} is")[None] for fact in facts]
    latents = torch.tensor([0, 7, 40])
    site, position = "blocks.1.hook_resid_post", 4
    base, source = (read_sites(subject, each, [site])[site] for each in prompts)
    got = interchange(subject, site, sae, prompts[0], source[:, position], position, latents)
    codes, other = (scatter(sae.encode(x[:, position]), len(sae.W_dec)) for x in (base, source))
    error = base[:, position] - codes @ sae.W_dec
    mixed = codes.clone()
    mixed[:, latents] = other[:, latents]
    made = base.clone()
    made[:, position] = mixed @ sae.W_dec + error
    with editing(subject, site, lambda value: made):
        want = subject.logits(prompts[0])[:, -1]
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
    same = interchange(subject, site, sae, prompts[0], base[:, position], position, latents)
    torch.testing.assert_close(same, subject.logits(prompts[0])[:, -1], atol=1e-4, rtol=1e-4)


def test_planted_objects_are_disentangled(subject: Subject) -> None:
    got = ravel(subject, LAST, Objects(subject), ns=(24,), pairs=4)
    start = 0
    for relation, values in fable.RELATIONS.items():
        assert set(got.latents[relation].tolist()) <= set(range(start, start + len(values)))
        start += len(values)
    assert 80 < got.pairs <= 96
    assert got.whole.value > 0.95
    assert got.cause[24].value > 0.9
    assert got.isolation[24].value > 0.99
    assert got.cause[24].beats_null


@pytest.mark.slow
def test_mixed_objects_are_not(subject: Subject) -> None:
    n = len(OBJECTS)
    turn = torch.linalg.qr(torch.randn(n, n, generator=torch.Generator().manual_seed(0))).Q
    got = ravel(subject, LAST, Objects(subject, turn), ns=(24,), pairs=4)
    assert got.whole.value > 0.95
    assert got.cause[24].value + got.isolation[24].value < 1.5


@pytest.mark.slow
def test_the_entity_matters_where_the_model_reads_it(subject: Subject) -> None:
    class Whole:
        """Every coordinate of the residual stream, positive or negative."""

        W_dec = torch.cat([torch.eye(128), -torch.eye(128)])

        def encode(self, x: torch.Tensor) -> Codes:
            return sparse(torch.cat([x, -x], dim=1).relu())

    first = ravel(subject, "blocks.0.hook_resid_pre", Whole(), position="entity", ns=(1,), pairs=2)
    later = ravel(subject, "blocks.2.hook_resid_post", Whole(), position="entity", ns=(1,), pairs=2)
    assert first.whole.value > 0.95
    assert later.whole.value < 0.05


def test_refusals(subject: Subject, stories_model) -> None:
    sae = Objects(subject)
    with pytest.raises(MechlabError, match="out of range"):
        ravel(subject, LAST, sae, ns=(0,))
    with pytest.raises(MechlabError, match="tokenizer splits Fable"):
        ravel(load_model(stories_model), "blocks.0.hook_resid_post", sae)
