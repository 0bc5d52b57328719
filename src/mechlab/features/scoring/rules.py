"""A judge that executes rules."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
from jaxtyping import Float, Int

from mechlab.errors import MechlabError
from mechlab.features.explanations import Explanation
from mechlab.features.rules import Matcher, Rule
from mechlab.features.scoring.held import among
from mechlab.features.scoring.items import INTRUDER, Items
from mechlab.features.text import Text

# Rules whose rows are remembered: all questions about one come together.
_REMEMBERED = 4


class RuleJudge:
    """Answers 1 or 0 by running the explanation's rule on the text.

    Is the feature active in a window: yes when the rule fires on one of its tokens. Are the right
    tokens marked: yes when the rule fires on more than half of the marked tokens; that it should
    not fire elsewhere is tested by the negatives, so a rule that always fires is at chance. Which
    window does not belong: those in which the rule does not fire.

    Args:
        matcher: of the text that the items are on.
    """

    def __init__(self, matcher: Matcher) -> None:
        self.matcher = matcher
        self._rows: OrderedDict[Rule, Int[np.ndarray, "_"]] = OrderedDict()

    def rows(self, rule: Rule) -> Int[np.ndarray, "hit"]:
        """Rows of the text on which a rule fires, ascending."""
        if rule not in self._rows:
            self._rows[rule] = self.matcher.rows(rule)[0]
            if len(self._rows) > _REMEMBERED:
                self._rows.popitem(last=False)
        return self._rows[rule]

    def __call__(self, explanation: Explanation, text: Text, items: Items) -> Float[np.ndarray, "item"]:
        """One answer per item. MechlabError without a rule, or for items on another text."""
        if explanation.rule is None:
            raise MechlabError("explanation has no rule to execute", explanation.text, "give another judge")
        if text is not self.matcher.text:
            raise MechlabError("items are on another text than the rules", None, "match rules on this text")
        rows = self.rows(explanation.rule)
        if items.marks is None or items.asks == INTRUDER:
            start = items.start.astype(rows.dtype)
            fires = np.searchsorted(rows, start) < np.searchsorted(rows, start + items.width)
            return (~fires if items.asks == INTRUDER else fires).astype(np.float64)
        caught = among(items.rows(), rows) & items.marks
        most: np.ndarray = 2 * caught.sum(1) > items.marks.sum(1)
        return most.astype(np.float64)
