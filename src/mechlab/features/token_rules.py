"""Token rules: explanations that predict activations from the tokens alone.

A rule looks at each place of a text through a *key*: the token there ("token"), the
token before it ("previous"), or both ("pair"). It lists a few keys with the mean
activation seen on each, and predicts 0 for every other key.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from mechlab.errors import MechlabError, near
from mechlab.features.token_rows import context_starts

KINDS = ("token", "previous", "pair")
ANY = -1
"""Stands for "any token" in a key."""

Decode = Callable[[int], str]
Key = tuple[int, int]
_SHIFT = 1 << 32
_SHOWN = 8


@dataclass(frozen=True)
class TokenRule:
    """A list of keys with the activation each predicts.

    Attributes:
        kind: "token", "previous" or "pair".
        keys: (previous token, token), ``ANY`` where the kind does not look.
        activations: mean activation on each key's occurrences, inactive ones counted as 0.
        threshold: a prediction above this says "active".
        share: part of the feature's summed activation that falls on the keys above the threshold.
        precision: part of those keys' occurrences on which the feature is active.
        f1: token-level F1 of "active" on those keys; like share and precision, measured
            on the text the rule was learnt from.
    """

    kind: str
    keys: tuple[Key, ...]
    activations: tuple[float, ...]
    threshold: float = 0.0
    share: float = 0.0
    precision: float = 0.0
    f1: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise MechlabError("unknown kind of rule", self.kind, near(self.kind, KINDS))
        if len(self.keys) != len(self.activations) or not self.keys:
            raise MechlabError("a rule needs one activation per key", len(self.keys), "give at least one key")

    def predict(
        self, tokens: Int[np.ndarray, "row"], context: Int[np.ndarray, "row"] | None = None
    ) -> Float[np.ndarray, "row"]:
        """Predicted activation of each token.

        Args:
            tokens: token ids of consecutive places.
            context: as in ``Rows``; the first token of a run of equal context has no
                previous token. None: all tokens are one context.
        """
        runs = np.zeros_like(tokens) if context is None else context
        predicted = np.zeros(len(tokens))
        rows, values = KeyTable(self.kind, tokens, runs).predict(self)
        predicted[rows] = values
        return predicted

    def sentence(self, decode: Decode) -> str:
        """The rule in English: "fires on ' Lily', ' Lilly' (92 % of its activation; …)"."""
        ranked = sorted(zip(self.activations, self.keys, strict=True), key=lambda pair: -pair[0])
        firing = [key for activation, key in ranked if activation > self.threshold]
        shown = ", ".join(_show(key, decode) for key in firing[:_SHOWN])
        more = f" and {len(firing) - _SHOWN} more" if len(firing) > _SHOWN else ""
        verb = {"token": "fires on", "previous": "fires after", "pair": "fires at the end of"}[self.kind]
        return (
            f"{verb} {shown}{more} ({100 * self.share:.0f} % of its activation; "
            f"active on {100 * self.precision:.0f} % of these)"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self) | {
            "keys": [list(key) for key in self.keys],
            "activations": list(self.activations),
        }

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> TokenRule:
        """The inverse of ``to_dict``."""
        keys = tuple((int(previous), int(token)) for previous, token in fields["keys"])
        return cls(**{**fields, "keys": keys, "activations": tuple(fields["activations"])})


class KeyTable:
    """Where every key occurs in a text, so that a rule of 16 keys need not read all of it.

    Attributes:
        codes: the key at each row as one number; -1 where there is none (no token before).
    """

    def __init__(self, kind: str, tokens: Int[np.ndarray, "row"], context: Int[np.ndarray, "row"]) -> None:
        self.kind = kind
        here = tokens.astype(np.int64)
        before = np.roll(here, 1)
        if kind == "token":
            self.codes = here
        else:
            self.codes = before if kind == "previous" else before * _SHIFT + here
            self.codes[context_starts(context)] = -1
        self._order = np.argsort(self.codes, kind="stable")
        self._sorted = self.codes[self._order]

    def occurrences(self, codes: Int[np.ndarray, "key"]) -> list[Int[np.ndarray, "..."]]:
        """Rows (ascending) on which each code stands."""
        first = np.searchsorted(self._sorted, codes, "left")
        last = np.searchsorted(self._sorted, codes, "right")
        return [self._order[a:b] for a, b in zip(first, last, strict=True)]

    def count(self, codes: Int[np.ndarray, "key"]) -> Int[np.ndarray, "key"]:
        """Number of rows on which each code stands."""
        return np.searchsorted(self._sorted, codes, "right") - np.searchsorted(self._sorted, codes, "left")

    def predict(self, rule: TokenRule) -> tuple[Int[np.ndarray, "hit"], Float[np.ndarray, "hit"]]:
        """Rows on which one of the rule's keys stands, and the activation predicted there."""
        rows = self.occurrences(np.array([self.code(key) for key in rule.keys], np.int64))
        lengths = [len(each) for each in rows]
        return np.concatenate(rows), np.repeat(np.array(rule.activations, np.float64), lengths)

    def code(self, key: Key) -> int:
        """The number under which a key is filed."""
        previous, token = key
        return {"token": token, "previous": previous, "pair": previous * _SHIFT + token}[self.kind]

    def key(self, code: int) -> Key:
        """The inverse of ``code``."""
        return {"token": (ANY, code), "previous": (code, ANY), "pair": divmod(code, _SHIFT)}[self.kind]


def _show(key: Key, decode: Decode) -> str:
    previous, token = key
    if token == ANY:
        return repr(decode(previous))
    if previous == ANY:
        return repr(decode(token))
    return f"{decode(previous)!r}+{decode(token)!r}"
