"""Greater-than: "The siege lasted from the year 1732 to the year 17" → 33 to 99.

Source: Hanna et al. (2023), *How does GPT-2 compute greater-than?* As there, a year is two tokens of
two digits each, the start lies between 02 and 98 of a century between 11 and 17, and the corrupt prompt
starts in the year 01. Years that the tokenizer writes in any other way are refused. Right answers are
the later years of the century, wrong ones those up to the start.
"""

# Word lists read best as running text.
# ruff: noqa: SIM905
from __future__ import annotations

from random import Random

from mechlab.data.draft import Draft, cut
from mechlab.data.published.words import dealt

LINES = (
    "The {Noun} lasted from the year {Century}{Year} to the year {Century2}",
    "The {Noun} went from the year {Century}{Year} to the year {Century2}",
    "The {Noun} stretched from the year {Century}{Year} to the year {Century2}",
    "The {Noun} ran from the year {Century}{Year} to the year {Century2}",
)
NOUNS = tuple(
    """war siege feud journey plague truce reign drought voyage strike famine contest peace trade search
    revolt boom crisis debate hunt tour trial project march festival treaty conflict storm quarrel
    match""".split()
)
CENTURIES = tuple(str(century) for century in range(11, 18))
YEARS = tuple(f"{year:02d}" for year in range(100))
NAMED = ("Century", "Year", "Century2")


def greater_than(rng: Random, split: str) -> Draft:
    """A later year of the same century."""
    group = rng.randrange(len(LINES))
    century, start = rng.choice(CENTURIES), rng.randint(2, 98)
    words = {
        "Noun": rng.choice(dealt(NOUNS, split)),
        "Century": century,
        "Year": YEARS[start],
        "Century2": century,
    }
    clean, places = cut(LINES[group], words)
    corrupt, _ = cut(LINES[group], {**words, "Year": "01"})
    return Draft(
        clean,
        corrupt,
        answer=YEARS[rng.randint(start + 1, 99)],
        wrong=YEARS[rng.randint(0, start)],
        places={name: places[name] for name in NAMED},
        group=group,
        single=NAMED,
        right_set=YEARS[start + 1 :],
        wrong_set=YEARS[: start + 1],
    )
