"""Explanations put to work: a dictionary's activations replaced by what its explanations predict.

At the output of a dictionary, on every token but BOS,

    y' = decode(f', x) (+ e),    f'_i = g_i(tokens) for the features that are rewritten, f_i for others

with f the codes of the clean run, g_i what explanation i predicts from the tokens alone, and
e = y − decode(f, x) what the dictionary misses, as in ``mechlab.sae.splice``. Then the model's
next-token cross-entropy is measured on held-out documents. Beside the clean model stand

    error            decode(f, x) + e: the clean model again, up to rounding
    reconstruction   decode(f, x)
    sparse           the same without the skip connection, where the dictionary has one
    mean, zero       y replaced by its training mean, and by zero

and for every number k of features rewritten, those that come first in ``order``,

    rewritten        f'_i predicted for these k
    shuffled         each of the k predicted by the explanation of another of the k: the null
    silent           the k set to 0: what an explanation is worth that never speaks

    recovered = (CE_silent − CE_rewritten) / (CE_silent − CE_reconstruction)

is the share of what the k features do for the loss that their explanations keep (1: all; 0: as good
as leaving the features out; below: worse, as false activations do harm). Its control is the same of
"shuffled". Intervals are over documents.

Source: Paulo & Belrose (2025), *Partially Rewriting a Transformer in Natural Language* (arXiv
2501.18838), who rewrite the latents of a transcoder and compare with replacing its output by zero;
the comparison with silence, feature for feature, is ours.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechlab import scores
from mechlab.activations.capture import read_sites
from mechlab.activations.harvest import check_context
from mechlab.data.corpus import Corpus
from mechlab.data.stream import Contexts, contexts
from mechlab.errors import MechlabError
from mechlab.features.rules import Matcher, Rule
from mechlab.features.sources.build import padded
from mechlab.features.text import Text
from mechlab.features.vocabulary import Vocabulary, vocabulary_of
from mechlab.interventions.edit import editing
from mechlab.models.subject import Subject
from mechlab.sae.base import Sae
from mechlab.sae.codes import Codes, side_by_side
from mechlab.sae.dictionary import Dictionary
from mechlab.scores import Score

# What is predicted of some features on a text: feature → (rows ascending, activations).
Prediction = Mapping[int, tuple[Int[np.ndarray, "_hit"], Float[np.ndarray, "_hit"]]]
Predictor = Callable[[Text], Prediction]
KINDS = ("rewritten", "shuffled", "silent")
_LOGIT_BUDGET = 2**27


@dataclass(frozen=True)
class Share:
    """What happens when some features are rewritten.

    Attributes:
        features: how many; ``order`` says which.
        ce: mean cross-entropy in nats, by kind (rewritten, shuffled, silent).
        recovered: share of the features' effect on the loss that is kept; its null is "shuffled". NaN
            where leaving the features out changes nothing.
    """

    features: int
    ce: dict[str, Score]
    recovered: Score


@dataclass(frozen=True)
class Rewriting:
    """Cross-entropy of a model whose dictionary speaks by explanations.

    Attributes:
        tokens, documents: how many predictions and documents it was measured on.
        ce: mean cross-entropy in nats of what is compared with; see the module's docstring.
        shares: by number of features, ascending.
        order: the features rewritten, first to last.
        error: whether the dictionary's error was added in ``shares``.
    """

    tokens: int
    documents: int
    ce: dict[str, Score]
    shares: tuple[Share, ...]
    order: tuple[int, ...]
    error: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "tokens": self.tokens,
            "documents": self.documents,
            "ce": {name: score.to_dict() for name, score in self.ce.items()},
            "shares": [
                {
                    "features": share.features,
                    "ce": {name: score.to_dict() for name, score in share.ce.items()},
                    "recovered": share.recovered.to_dict(),
                }
                for share in self.shares
            ],
            "order": list(self.order),
            "error": self.error,
        }


def rule_predictor(
    rules: Mapping[int, Rule], concepts: Mapping[str, Collection[str]] | None = None
) -> Predictor:
    """What rules predict, from the tokens alone."""

    def predict(text: Text) -> Prediction:
        matcher = Matcher(text, concepts or {})
        return {feature: matcher.rows(rule) for feature, rule in rules.items()}

    return predict


@torch.no_grad()
def rewrite(
    subject: Subject,
    dictionary: Dictionary,
    corpus: Corpus,
    predict: Predictor,
    order: Sequence[int],
    *,
    counts: Sequence[int] = (),
    error: bool = False,
    split: str = "validation",
    documents: Collection[int] | None = None,
    tokens: int = 20_000,
    n_ctx: int | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Rewriting:
    """Measure the model's loss while features are replaced by what is predicted of them.

    Args:
        predict: gives activations of the features in ``order`` on a text (``rule_predictor``); a feature
            that it leaves out is silent.
        order: features to rewrite, the ones that go first (best explained, say) first.
        counts: how many of them; all of them by default, and always.
        error: keep the dictionary's error: what is measured then is the explanations' fault alone.
        split, tokens, n_ctx: as for ``mechlab.sae.evaluate``.
        documents: only these; no explainer may have seen them.
        seed: of the shuffling and of the intervals.
        progress: called with (tokens so far, tokens wanted).

    Raises MechlabError when the dictionary belongs to another model, a feature does not exist, none or
    one twice is named, or there is no text.
    """
    dictionary.check(subject)
    if not subject.causal:
        raise MechlabError("model predicts no next token", subject.name, "use a causal one")
    features = [int(each) for each in order]
    wrong = [each for each in features if not 0 <= each < dictionary.sae.d_sae]
    if wrong or not features or len(set(features)) < len(features):
        what = "feature does not exist" if wrong else "features must be named, once each"
        raise MechlabError(what, wrong[0] if wrong else len(features), f"0 to {dictionary.sae.d_sae - 1}")
    sizes = sorted({min(max(1, int(each)), len(features)) for each in (*counts, len(features))})
    n_ctx = subject.n_ctx if n_ctx is None else n_ctx
    check_context(subject, n_ctx)
    work = _Work(subject, dictionary, predict, features, sizes, error, seed)
    batch = max(1, min(32, _LOGIT_BUDGET // (n_ctx * subject.module.config.vocab_size)))
    totals: dict[int, np.ndarray] = {}
    seen = 0
    with contextlib.closing(contexts(corpus, split, subject.tokenizer, n_ctx=n_ctx, batch=batch)) as stream:
        for group in stream:
            part = _of(group, documents)
            if part is None:
                continue
            for document, row in zip(part.document[:, 0].tolist(), work.sums(part), strict=True):
                totals[document] = totals.get(document, 0) + row
                seen += int(row[0])
            if progress:
                progress(min(seen, tokens), tokens)
            if seen >= tokens:
                break
    if seen == 0:
        raise MechlabError("no token to measure the loss on", f"{corpus.name}, {split}", "add documents")
    return work.found(np.stack(list(totals.values())), seed)


class _Work:
    """The conditions of one rewriting, in order: each is a column of the sums."""

    def __init__(
        self,
        subject: Subject,
        dictionary: Dictionary,
        predict: Predictor,
        features: list[int],
        sizes: list[int],
        error: bool,
        seed: int,
    ) -> None:
        self._subject, self._dictionary, self._predict = subject, dictionary, predict
        self._features, self._sizes, self._error = features, sizes, error
        # On a copy: the caller's dictionary stays on its own device.
        self._sae: Sae = copy.deepcopy(dictionary.sae).to(subject.device)
        self._vocabulary: Vocabulary = vocabulary_of(subject)
        skip = ["sparse"] if self._sae.W_skip is not None else []
        self._names = ["clean", "error", "reconstruction", *skip, "mean", "zero"]
        generator = np.random.default_rng(seed)
        self._others = {size: _elsewhere(features[:size], generator) for size in sizes}

    def sums(self, group: Contexts) -> Float[np.ndarray, "context column"]:
        """Per context: predictions counted, then summed cross-entropy of every condition."""
        real = group.mask.clone()
        if self._subject.bos is not None:
            real[:, 0] = False
        counted = real[:, :-1] & real[:, 1:]
        columns = [counted.sum(1).double()]
        for value in self._replacements(group, real):
            columns.append(self._cross_entropy(group.tokens, counted, value))
        return torch.stack(columns, dim=1).numpy()

    def _replacements(
        self, group: Contexts, real: Bool[Tensor, "context pos"]
    ) -> Iterator[Float[Tensor, "context pos d_out"] | None]:
        sites = dict.fromkeys((*self._dictionary.inputs, *self._dictionary.outputs))
        values = {k: v.float() for k, v in read_sites(self._subject, group.tokens, list(sites)).items()}
        inputs, y = (
            torch.cat([values[site] for site in names], dim=-1)
            for names in (self._dictionary.inputs, self._dictionary.outputs)
        )
        place = real.to(y.device)
        x = inputs[place]
        codes = self._sae.encode(x)
        plain = self._sae.decode(codes, x)
        missed = y[place] - plain

        def put(rows: Tensor) -> Tensor:
            whole = y.clone()
            whole[place] = rows
            return whole

        yield None
        yield put(plain + missed)
        yield put(plain)
        if self._sae.W_skip is not None:
            yield put(plain - x @ self._sae.W_skip.T)
        yield put(self._dictionary.mean.to(y).expand_as(plain))
        yield put(torch.zeros_like(plain))
        said = self._predict(self._text(group, real))
        for size in self._sizes:
            chosen = self._features[:size]
            for source in (dict(zip(chosen, chosen, strict=True)), self._others[size], {}):
                made = self._sae.decode(self._rewritten(codes, chosen, source, said), x)
                yield put(made + missed if self._error else made)

    def _rewritten(self, codes: Codes, chosen: list[int], source: dict[int, int], said: Prediction) -> Codes:
        """Codes with the chosen features' values taken from what is said of each one's source."""
        gone = torch.isin(codes.indices, torch.tensor(chosen, device=codes.indices.device))
        kept = Codes(codes.values.masked_fill(gone, 0), codes.indices)
        hits = [(feature, *said[other]) for feature, other in source.items() if other in said]
        hits = [each for each in hits if len(each[1])]
        if not hits:
            return kept
        row = np.concatenate([rows for _, rows, _ in hits]).astype(np.int64)
        feature = np.repeat([each for each, _, _ in hits], [len(rows) for _, rows, _ in hits])
        value = np.concatenate([values for _, _, values in hits]).astype(np.float32)
        order = np.argsort(row, kind="stable")
        entries = [torch.from_numpy(each[order]).to(codes.values.device) for each in (row, feature, value)]
        new = padded(entries[0], entries[1], entries[2], len(codes))
        return side_by_side([kept, Codes(new.values.to(codes.values), new.indices)])

    def _text(self, group: Contexts, real: Bool[Tensor, "context pos"]) -> Text:
        context, position = (each.numpy() for each in real.nonzero(as_tuple=True))
        tokens = group.tokens[real].numpy().astype(np.int32)
        return Text(tokens, context, position, group.document[real].numpy(), self._vocabulary)

    def _cross_entropy(
        self,
        tokens: Int[Tensor, "context pos"],
        counted: Bool[Tensor, "context next"],
        value: Float[Tensor, "context pos d_out"] | None,
    ) -> Float[Tensor, "context"]:
        outputs, sizes = self._dictionary.outputs, list(self._sae.out_sizes)
        with contextlib.ExitStack() as stack:
            if value is not None:
                for site, part in zip(outputs, torch.split(value, sizes, dim=-1), strict=True):
                    stack.enter_context(editing(self._subject, site, _constant(part)))
            log_p = self._subject.logits(tokens)[:, :-1].float().log_softmax(-1)
        ce = -log_p.gather(2, tokens[:, 1:, None].to(log_p.device)).squeeze(2)
        return ce.masked_fill(~counted.to(ce.device), 0).sum(1).to("cpu", torch.float64)

    def found(self, sums: Float[np.ndarray, "document column"], seed: int) -> Rewriting:
        """Scores from the totals of every document."""

        def column(number: int, name: str) -> Score:
            return scores.score(f"CE, {name}", sums[:, [1 + number, 0]], scores.mean, seed=seed)

        reference = 1 + self._names.index("error" if self._error else "reconstruction")
        shares = []
        for which, size in enumerate(self._sizes):
            first = len(self._names) + which * len(KINDS)
            rewritten, shuffled, silent = (1 + first + number for number in range(len(KINDS)))
            recovered = None
            for name, at in (("recovered, others' explanations", shuffled), ("recovered", rewritten)):
                parts = [sums[:, silent] - sums[:, at], sums[:, silent] - sums[:, reference]]
                recovered = scores.score(
                    name, np.stack(parts, axis=1), scores.mean, seed=seed, null=recovered
                )
            assert recovered is not None
            ce = {kind: column(first + number, kind) for number, kind in enumerate(KINDS)}
            shares.append(Share(size, ce, recovered))
        ce = {name: column(number, name) for number, name in enumerate(self._names)}
        total = int(sums[:, 0].sum())
        return Rewriting(total, len(sums), ce, tuple(shares), tuple(self._features), self._error)


def _of(group: Contexts, documents: Collection[int] | None) -> Contexts | None:
    """The contexts of some documents (the first token's); None when there are none."""
    if documents is None:
        return group
    keep = torch.tensor([int(each) in documents for each in group.document[:, 0]], dtype=torch.bool)
    if not bool(keep.any()):
        return None
    return Contexts(
        group.tokens[keep], group.mask[keep], group.document[keep], None, group.faults, group.next
    )


def _elsewhere(features: list[int], generator: np.random.Generator) -> dict[int, int]:
    """Every feature with another one of them, each used once; none when there is only one."""
    if len(features) < 2:
        return {}
    mixed = generator.permutation(features).tolist()
    # One cycle through all: nobody keeps their own.
    return dict(zip(mixed, [*mixed[1:], mixed[0]], strict=True))


def _constant(value: Float[Tensor, "context pos d"]) -> Callable[[Tensor], Tensor]:
    return lambda old: value.to(old.dtype)
