"""Plain English windows on four topics, with an explanation of each."""

from __future__ import annotations

import numpy as np

from mechlab.features.explanations import Explanation
from mechlab.features.scoring.items import Items
from mechlab.features.text import Text, text_of
from mechlab.features.vocabulary import Vocabulary

WIDTH = 9
TOPICS = {
    "cooking food and recipes": (
        "stir the onions in butter until they turn golden",
        "bake the bread for forty minutes at high heat",
        "she chopped garlic and added salt to the soup",
        "the chef served grilled fish with lemon and rice",
        "whisk three eggs with sugar until the mixture thickens",
        "we boiled potatoes and mashed them with warm milk",
        "the oven was hot and the cake rose slowly",
        "add a spoon of flour to thicken the sauce",
    ),
    "weather and storms": (
        "heavy rain fell all night and flooded the streets",
        "the forecast says snow will cover the northern hills",
        "strong winds blew down trees along the rocky coast",
        "thick fog hid the bridge early on tuesday morning",
        "thunder rolled over the valley before the hail came",
        "it was sunny and warm with a light breeze",
        "the hurricane reached the island just after midnight today",
        "clouds gathered and the temperature dropped below zero again",
    ),
    "football and other sports": (
        "the striker scored twice in the last ten minutes",
        "their coach praised the goalkeeper after the final match",
        "she won the tennis tournament without losing a set",
        "the team trained hard before the opening league game",
        "he ran the marathon in under three hours yesterday",
        "fans cheered as the captain lifted the silver trophy",
        "the referee showed a red card to the defender",
        "our swimmers broke two records at the olympic games",
    ),
    "money, banks and finance": (
        "the bank raised its interest rate to five percent",
        "investors sold their shares when profits fell last quarter",
        "she took out a loan to buy the house",
        "the company reported record revenue and a higher dividend",
        "inflation makes savings worth less from year to year",
        "he paid the invoice and closed his credit account",
        "stock markets dropped sharply after the budget was announced",
        "the fund manager bought government bonds at a discount",
    ),
}


def english() -> tuple[Text, Items]:
    """All windows, each a document; ``group`` is the topic, and the label that of topic 0."""
    lines = [line.split() for lines in TOPICS.values() for line in lines]
    assert {len(line) for line in lines} == {WIDTH}
    words = sorted({word for line in lines for word in line})
    vocabulary = Vocabulary(tuple(f" {word}" for word in words))
    text = text_of([[words.index(word) for word in line] for line in lines], vocabulary)
    topic = np.repeat(np.arange(len(TOPICS)), 8)
    document = np.arange(len(lines))
    return text, Items(document * WIDTH, WIDTH, topic == 0, None, document, topic)


def explanations() -> list[Explanation]:
    """What each topic is about."""
    return [Explanation(topic, "person", said) for topic, said in enumerate(TOPICS)]
