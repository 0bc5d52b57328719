"""The model behind a live dashboard: which features a text activates, and what changing them does.

Strengths are multiples of the largest activation that the feature has in the index, so that 1 means
as much as the feature ever was. BOS is neither shown nor edited nor counted: dictionaries are not
trained on it.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Float32, Int
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat
from torch import Tensor

from mechlab.activations.capture import check_tokens, read_sites
from mechlab.artifacts import open_artifact
from mechlab.dashboards.block_values import short
from mechlab.errors import MechlabError
from mechlab.features.continuations import next_tokens
from mechlab.features.statistics import load_statistics
from mechlab.features.vocabulary import Piece, Vocabulary, vocabulary_of
from mechlab.interventions.edit import editing
from mechlab.interventions.edits import add
from mechlab.interventions.strength import kl_divergence
from mechlab.models.subject import Subject, load_model
from mechlab.sae.abstopk import AbsTopK
from mechlab.sae.codes import Codes
from mechlab.sae.dictionary import Dictionary, load_sae
from mechlab.sae.splice import splicing

CHARACTERS, FEATURES, EDITS, NEW_TOKENS, STRENGTH = 4000, 16, 8, 64, 100.0
_TOP, _NEXT = 8, 8

Text = Annotated[str, Field(min_length=1, max_length=CHARACTERS)]
Feature = Annotated[int, Field(ge=0, lt=2**31)]


class Request(BaseModel):
    """What a client may ask; anything else is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class ActivationsRequest(Request):
    """Which features are active where in ``text``; and ``features`` on every token."""

    text: Text
    features: tuple[Feature, ...] = Field((), max_length=FEATURES)


class Change(Request):
    """A change of one feature at every token.

    ablate: its activation becomes 0. clamp: it becomes ``strength`` times its maximum, whether it was
    active or not. add: so much is added to what it writes, on top of what it does by itself.
    """

    feature: Feature
    mode: Literal["ablate", "add", "clamp"]
    strength: FiniteFloat = Field(0.0, ge=-STRENGTH, le=STRENGTH)


class SteerRequest(Request):
    """The model on ``text`` with and without changes.

    ``temperature`` 0 is greedy; otherwise both continuations are drawn with the noise that ``seed`` gives.
    """

    text: Text
    edits: tuple[Change, ...] = Field((), max_length=EDITS)
    new_tokens: int = Field(20, ge=0, le=NEW_TOKENS)
    temperature: FiniteFloat = Field(0.0, ge=0, le=2)
    seed: int = Field(0, ge=0, lt=2**32)


@dataclass(frozen=True, eq=False)
class Live:
    """A model and a dictionary, to be asked about texts.

    Edits act through hooks on the module, so one question at a time: see ``serve``.

    Attributes:
        subject: the model.
        dictionary: what its features are, one latent each; it writes to one site.
        maximum: largest activation of each feature, 0 where it was never active.

    Raises MechlabError when they do not belong together, or the model does not predict a next token.
    """

    subject: Subject
    dictionary: Dictionary
    maximum: Float32[np.ndarray, "feature"]

    def __post_init__(self) -> None:
        subject, dictionary = self.subject, self.dictionary
        dictionary.check(subject)
        if not subject.causal:
            raise MechlabError("model does not predict a next token", subject.name, "nothing to steer")
        if len(dictionary.outputs) > 1:
            raise MechlabError(
                "dictionary writes several sites, which cannot be changed live",
                ", ".join(dictionary.outputs),
                "mechlab dashboard build shows it",
            )
        if len(self.maximum) != dictionary.sae.d_sae:
            raise MechlabError(
                "index has other features than the dictionary",
                f"{len(self.maximum)}, not {dictionary.sae.d_sae}",
                "index the dictionary again",
            )

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """What the model's tokens say."""
        return vocabulary_of(self.subject)

    @property
    def _lead(self) -> int:
        """Positions before the text: that of BOS."""
        return int(self.subject.bos is not None)

    def info(self) -> dict[str, Any]:
        """What can be asked of what."""
        return {
            "model": self.subject.name,
            "site": self.dictionary.outputs[0],
            "features": len(self.maximum),
            "context": self.subject.n_ctx - self._lead,
            "limits": {
                "characters": CHARACTERS,
                "features": FEATURES,
                "edits": EDITS,
                "new_tokens": NEW_TOKENS,
                "strength": STRENGTH,
            },
        }

    def activations(self, request: ActivationsRequest) -> dict[str, Any]:
        """The strongest features of every piece of a text, and the asked ones along the whole text.

        A piece is a token, or the tokens of one character; its activation is the largest of theirs.

        Returns "pieces": what they say; "unknown": how many tokens stand for words that the model does
        not know; "top": for each piece [[feature, activation], …], strongest first; "features": number →
        an activation for each piece. Raises MechlabError for features that do
        not exist and texts that are too long.
        """
        for feature in request.features:
            self._require(feature)
        tokens = self._tokens(request.text)
        codes = self._codes(tokens)
        pieces = self._pieces(tokens)
        return {
            "pieces": [piece.text for piece in pieces],
            "unknown": self._unknown(tokens),
            "top": [_strongest(codes[piece.start : piece.stop]) for piece in pieces],
            "features": {
                str(feature): [short(_activation(codes[p.start : p.stop], feature)) for p in pieces]
                for feature in request.features
            },
        }

    @torch.no_grad()
    def steer(self, request: SteerRequest, check: Callable[[], None] = lambda: None) -> dict[str, Any]:
        """The model's predictions and continuation of a text, before and after some changes.

        Returns "pieces"; "kl_pieces", KL(before || after) in nats of the distributions that follow
        each piece; "kl", its mean over tokens; "next", the likeliest next tokens with their
        probabilities before and after; "continuation", the texts before and after.

        Args:
            check: called before every new token; what it raises ends the work.

        Raises MechlabError for features that do not exist or cannot be changed so, and texts that
        leave no room for new tokens.
        """
        self._check_changes(request.edits)
        tokens = self._tokens(request.text, request.new_tokens)
        clean = self._log_probabilities(tokens)
        before = self._continued(tokens, request, check)
        with self._changed(request.edits):
            edited = self._log_probabilities(tokens)
            after = self._continued(tokens, request, check)
        kl = kl_divergence(clean, edited)[self._lead :].clamp_min(0)  # rounding may leave less
        pieces = self._pieces(tokens)
        return {
            "pieces": [piece.text for piece in pieces],
            "kl_pieces": [short(float(kl[piece.stop - 1])) for piece in pieces],
            "kl": short(float(kl.mean())),
            "next": self._next(clean[-1], edited[-1]),
            "continuation": {"before": before, "after": after},
        }

    def _require(self, feature: int) -> None:
        if feature >= len(self.maximum):
            raise MechlabError(
                "feature does not exist", feature, f"give a number from 0 to {len(self.maximum) - 1}"
            )

    def _check_changes(self, edits: tuple[Change, ...]) -> None:
        for each in edits:
            self._require(each.feature)
            if each.mode == "ablate" and each.strength:
                raise MechlabError("ablation has no strength", each.strength, "leave it out, or clamp")
            if each.mode != "ablate" and each.strength and not self.maximum[each.feature]:
                raise MechlabError(
                    "feature was never active, so it has no maximum", each.feature, "choose another"
                )
        numbers = [each.feature for each in edits]
        if len(set(numbers)) < len(numbers):
            raise MechlabError("feature is changed twice", max(numbers, key=numbers.count), "change it once")

    def _tokens(self, text: str, room: int = 0) -> Int[Tensor, "pos"]:
        """Token ids with BOS, where the context holds them and ``room`` more."""
        tokens = self.subject.tokens(text)
        check_tokens(self.subject, tokens[None])
        length, most = len(tokens) - self._lead, self.subject.n_ctx - self._lead - room
        if length < 1:
            raise MechlabError("text has no tokens", None, "type something")
        if length > most:
            asked = f" before {room} new ones" if room else ""
            raise MechlabError("text is too long", f"{length} tokens", f"at most {max(0, most)}{asked}")
        return tokens

    def _pieces(self, tokens: Int[Tensor, "pos"]) -> list[Piece]:
        return self.vocabulary.pieces(tokens[self._lead :].numpy())

    def _unknown(self, tokens: Int[Tensor, "pos"]) -> int:
        unknown = self.subject.tokenizer.unk_token_id
        # GPT-2 has one token for everything special, which no word turns into.
        return 0 if unknown in (None, self.subject.bos) else int((tokens == unknown).sum())

    @torch.no_grad()
    def _codes(self, tokens: Int[Tensor, "pos"]) -> Codes:
        """Codes of the text's tokens, on the CPU."""
        sae, inputs = self.dictionary.sae, self.dictionary.inputs
        values = read_sites(self.subject, tokens[None], inputs)
        rows = torch.cat([values[site][0, self._lead :] for site in inputs], dim=1)
        codes = sae.encode(rows.to(sae.b_dec))
        return Codes(codes.values.float().cpu(), codes.indices.cpu())

    def _log_probabilities(self, tokens: Int[Tensor, "pos"]) -> Float[Tensor, "pos d_vocab"]:
        return self.subject.logits(tokens[None])[0].float().log_softmax(-1).cpu()

    @contextlib.contextmanager
    def _changed(self, edits: tuple[Change, ...]) -> Iterator[None]:
        """While open, the model runs with the changes, at all positions but that of BOS."""
        where = slice(self._lead, None)
        site, rows = self.dictionary.outputs[0], self.dictionary.sae.W_dec
        amount = {each.feature: each.strength * float(self.maximum[each.feature]) for each in edits}
        ablate = [each.feature for each in edits if each.mode == "ablate"]
        clamp = {each.feature: amount[each.feature] for each in edits if each.mode == "clamp"}
        with contextlib.ExitStack() as stack:
            # First: the dictionary is to read what the model computed, not what is added.
            if ablate or clamp:
                spliced = splicing(self.subject, self.dictionary, ablate=ablate, clamp=clamp, positions=where)
                stack.enter_context(spliced)
            for each in edits:
                if each.mode == "add":
                    push = add(rows[each.feature], amount[each.feature])
                    stack.enter_context(editing(self.subject, site, push, where))
            yield

    def _continued(self, tokens: Int[Tensor, "pos"], request: SteerRequest, check: Callable[[], None]) -> str:
        """What the model goes on with."""
        noise = torch.Generator().manual_seed(request.seed)
        written = next_tokens(
            self.subject, tokens[None], temperature=float(request.temperature), generator=noise
        )
        found: list[int] = []
        check()
        for new in islice(written, request.new_tokens):
            found.append(int(new[0]))
            check()
        return self.vocabulary.string(np.array(found, np.int64))

    def _next(
        self, before: Float[Tensor, "d_vocab"], after: Float[Tensor, "d_vocab"]
    ) -> list[dict[str, Any]]:
        likeliest = [each.topk(min(_NEXT, len(each))).indices.tolist() for each in (before, after)]
        return [
            {
                "text": self.vocabulary[token],
                "before": short(float(before[token].exp())),
                "after": short(float(after[token].exp())),
            }
            for token in dict.fromkeys(likeliest[0] + likeliest[1])
        ]


def open_live(run: Path, *, device: str = "auto", trust_remote_code: bool = False) -> Live:
    """The model and the dictionary of a run directory.

    The model's own code runs only when ``trust_remote_code`` says so here, whatever the run says.
    Raises MechlabError when a part is missing, damaged, or does not fit the others.
    """
    config = open_artifact(run, "run").manifest.config
    dictionary, statistics = load_sae(run / "sae"), load_statistics(run / "features")
    subject = load_model(
        config["model"],
        dtype=config.get("dtype"),
        revision=config.get("revision"),
        device=device,
        trust_remote_code=trust_remote_code,
    )
    sae = copy.deepcopy(dictionary.sae)
    if isinstance(sae, AbsTopK):  # a latent of two signs is two features of the index
        sae = sae.both_sides()
    return Live(subject, replace(dictionary, sae=sae.to(subject.device)), statistics.maximum)


def _activation(codes: Codes, feature: int) -> float:
    """The largest activation of a feature on some rows."""
    return float(torch.where(codes.indices == feature, codes.values, 0).sum(1).max())


def _strongest(codes: Codes) -> list[tuple[int, float | int | None]]:
    """[feature, activation] of the features that are most active on some rows, strongest first."""
    best: dict[int, float] = {}
    values, slots = codes.values.topk(min(_TOP, codes.values.shape[1]))
    for feature, value in zip(codes.indices.gather(1, slots).flatten().tolist(), values.flatten().tolist(),
                              strict=True):  # fmt: skip
        if value > best.get(feature, 0.0):
            best[feature] = value
    ranked = sorted(best.items(), key=lambda item: (-item[1], item[0]))
    return [(feature, short(value)) for feature, value in ranked[:_TOP]]
