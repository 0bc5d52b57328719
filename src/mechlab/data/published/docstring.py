'''Docstring: the next argument of a function, after its docstring has described two of them.

    def stone(self, lake, road, wheel, paper, metal, glass):
        """cloud music sugar

        :param wheel: horse winter
        :param paper: coffee river
        :param

is followed by " metal". Source: Heimersheim & Janiak (2023), *A circuit for Python docstrings in a
4-layer attention-only transformer*. As there, two arguments come before those described and one after.
In the corrupt prompt the three arguments A, B, C of the definition and the two of the docstring are five
other words, so that it neither names the answer nor says how far the docstring has come. The wrong
answer is another argument of the definition, drawn at random (they take the strongest of them).
'''

# Word lists read best as running text.
# ruff: noqa: SIM905
from __future__ import annotations

from random import Random

from mechlab.data.draft import Draft, cut
from mechlab.data.published.words import dealt

LINE = '''def {name}(self, {before1}, {before2}, {A_def}, {B_def}, {C_def}, {after}):
    """{about1} {about2} {about3}

    :param {A_doc}: {first1} {first2}
    :param {B_doc}: {second1} {second2}
    :param'''
WORDS = tuple(
    """lake road wheel paper metal glass cloud music sugar horse winter coffee river stone bread chair table
    window garden forest island bridge engine market farmer doctor teacher summer spring shadow mirror basket
    bottle pencil letter number colour planet animal flower branch hammer ladder candle blanket pocket button
    ticket camera guitar violin piano dinner lunch salt meat fish bird wolf bear snake mouse tiger lion apple
    lemon corn rice soup cheese butter honey silver gold iron copper steel wood wool cotton silk leather ship
    boat train plane truck street house castle tower wall floor roof door gate field hill valley desert ocean
    beach rain snow wind storm sun moon star light heat cold fire smoke dust sand mud grass leaf seed
    root""".split()
)
NAMED = ("A_def", "B_def", "C_def", "A_doc", "B_doc")
_SLOTS = ("name", "before1", "before2", "A_def", "B_def", "C_def", "after", "about1", "about2", "about3")
_MORE = ("first1", "first2", "second1", "second2")


def docstring(rng: Random, split: str) -> Draft:
    """The third argument, C, of which the docstring has described A and B."""
    slots = (*_SLOTS, *_MORE)
    drawn = rng.sample(dealt(WORDS, split), len(slots) + len(NAMED))
    words = dict(zip(slots, drawn, strict=False))
    words |= {"A_doc": words["A_def"], "B_doc": words["B_def"]}
    clean, places = cut(LINE, words)
    corrupt, _ = cut(LINE, {**words, **dict(zip(NAMED, drawn[len(slots) :], strict=True))})
    others = [words[slot] for slot in ("before1", "before2", "A_def", "B_def", "after")]
    return Draft(
        clean,
        corrupt,
        answer=f" {words['C_def']}",
        wrong=f" {rng.choice(others)}",
        places={name: places[name] for name in NAMED},
        group=0,
        single=NAMED,
    )
