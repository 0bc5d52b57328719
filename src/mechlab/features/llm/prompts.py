"""The words in which language models are asked.

What never changes comes first in every prompt: providers charge less for what they have read before.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from mechlab.features.llm.client import Message


def _said(text: str) -> str:
    return " ".join(text.split())


_CUT = _said("""
    Every window is at most {width} tokens cut out of a longer text, so that it may begin and end in the
    middle of a sentence; the position of its first token in that text is given.
""")
EXPLAIN = _said(f"""
    You study one feature of a language model: a unit that is active on some tokens of a text and silent
    on the others. You see windows of text in which it is active. {_CUT} The windows were chosen around
    tokens on which the feature is active, so that these stand in the middle, unless the text begins or
    ends nearby. Tokens on which it is active are marked, <<like this>>, and listed below each window
    with their activation on a scale from 0 to 10. The feature may respond to the marked tokens
    themselves, to what comes before them, to the subject or to the position; a token sees only what
    comes before it. Say in one sentence, as specific as the windows allow, what the feature responds
    to, so that somebody who has only your sentence could mark the tokens of a new text. Do not speak of
    marks, windows or the feature.
""")
CONTRAST = _said("""
    You also see windows in which it is silent: what they share with the others cannot be all that it
    responds to.
""")
THINK = _said("""
    Think first: what do the marked tokens share, what comes before them, where would it not hold?
""")

JUDGE: Mapping[str, Sequence[str]] = {
    "active": (
        _said(f"""
            You are told what a feature of a language model responds to, and shown numbered windows of
            text. {_CUT} Judge of every window whether the feature is active on at least one of its
            tokens: 1 if it is, 0 if it is not. Any number of them may be 1.
        """),
        _said(f"""
            Below is a description of what makes one unit of a language model respond, and a numbered
            list of text excerpts (windows). {_CUT} Go through the list. Where the description applies
            somewhere in the excerpt write 1, otherwise 0. All, some or none of them may fit.
        """),
    ),
    "marked": (
        _said(f"""
            You are told what a feature of a language model responds to, and shown numbered windows of
            text in which some tokens are marked, <<like this>>. {_CUT} Judge of every window whether
            the marked tokens are those on which the feature is active: 1 if they are, 0 if they are
            not. Any number of them may be 1.
        """),
        _said(f"""
            Below is a description of what makes one unit of a language model respond, and a numbered
            list of text excerpts (windows) with highlighted tokens, <<like this>>. {_CUT} Where the
            highlighting agrees with the description write 1, otherwise 0. All, some or none may agree.
        """),
    ),
    "intruder": (
        _said(f"""
            A feature of a language model is active on the tokens that are marked, <<like this>>, in all
            but one of the numbered windows of text below. {_CUT} In the other one, the intruder, the
            marks mean nothing. Find what the marked tokens have in common and give the number of the
            intruder.
        """),
        _said(f"""
            All but one of these numbered text excerpts (windows) share something about their
            highlighted tokens, <<like this>>. {_CUT} Give the number of the excerpt that does not belong.
        """),
    ),
}
SIMULATE = _said("""
    You are told what a feature of a language model responds to, and shown the tokens of a piece of text,
    numbered, each as a JSON string; the text is cut out of a longer one. Predict the feature's
    activation on every token: a whole number from 0 (silent) to 10 (the most there is). Most tokens have
    0. A token sees only what comes before it. Answer with a JSON object {"activations": [...]} that
    holds one number for each token, in their order.
""")
WRITE = _said("""
    You are told what a feature of a language model responds to. Write short texts of one or two
    sentences, all different in subject and style: some in which the feature is sure to be active, and as
    many in which it is sure to be silent. Do not speak about the feature; write texts as they might stand
    in a book or on a page. Answer with a JSON object {"positive": [...], "negative": [...]}.
""")
REPHRASE = _said("""
    You are told what a feature of a language model responds to. Say the same in your own words: nothing
    added, nothing left out, every word and number that is quoted kept as it is. Answer with a JSON object
    {"explanation": "…"}.
""")
_NUMBERS = 'Answer with a JSON object {"answers": [...]} that holds 0 or 1 for each window, in their order.'
_FORM = {
    "active": _NUMBERS,
    "marked": _NUMBERS,
    "intruder": 'Answer with a JSON object {"intruder": number}.',
}

_SHOTS: Mapping[str, Sequence[tuple[str, Sequence[str], Mapping[str, object]]]] = {
    "active": (
        (
            "the word 'not' and its short form",
            (
                "the train was late again, but nobody minded. It is not",
                " a basket of apples, a jug of milk and two loaves of",
                " would have come if they had known. They didn't",
            ),
            {"answers": [1, 0, 1]},
        ),
        (
            "names of colours that describe clothes",
            (
                " painted the fence green before the rain came and then",
                " hung his brown coat on the hook and sat down by",
                " a long speech about prices, which nobody heard to the",
            ),
            {"answers": [0, 1, 0]},
        ),
    ),
    "marked": (
        (
            "the word 'not' and its short form",
            (
                "the train was late again, but nobody minded. It is <<not>>",
                " not a basket of apples, a jug <<of>> milk and two",
                " would have come if they had known. They did<<n't>>",
            ),
            {"answers": [1, 0, 1]},
        ),
        (
            "names of colours that describe clothes",
            (
                " painted the fence <<green>> before the rain came and then",
                " hung his <<brown>> coat on the hook and sat down by",
                " in her red dress, made a long speech <<about>> prices",
            ),
            {"answers": [0, 1, 0]},
        ),
    ),
    "intruder": (
        (
            "",
            (
                " a jug of milk and two loaves of <<bread>>",
                " sold <<cheese>> and eggs on the market in",
                " and then the <<speech>> about prices was over",
                " a basket of <<apples>> stood by the door",
            ),
            {"intruder": 3},
        ),
    ),
}


def listed(explanation: str, windows: Sequence[str], places: Sequence[str]) -> str:
    """The question: an explanation, where there is one, and numbered windows."""
    head = f"The feature responds to: {explanation}\n\n" if explanation else ""
    lines = (
        f"Window {number} ({place}): {said}"
        for number, (said, place) in enumerate(zip(windows, places, strict=True), 1)
    )
    return head + "\n".join(lines)


def judging(
    asks: str, explanation: str, windows: Sequence[str], places: Sequence[str], width: int, wording: int
) -> tuple[Message, ...]:
    """A judge's prompt.

    Args:
        asks: "active", "marked" or "intruder".
        places: where each window begins.
        wording: which of the instructions, 0 or 1: they ask the same.
    """
    system = f"{JUDGE[asks][wording].format(width=width)} {_FORM[asks]}"
    said = [Message("system", system)]
    for shot, examples, answer in _SHOTS[asks]:
        said.append(Message("user", listed(shot, examples, ["from position 20"] * len(examples))))
        said.append(Message("assistant", json.dumps(answer)))
    return (*said, Message("user", listed(explanation, windows, places)))


def explaining(body: str, width: int, contrast: bool, think: bool) -> tuple[Message, ...]:
    """An explainer's prompt; ``body`` shows the windows."""
    fields = '{"reasoning": "…", "explanation": "…"}' if think else '{"explanation": "…"}'
    system = (
        EXPLAIN.format(width=width) + (f" {CONTRAST}" if contrast else "") + (f" {THINK}" if think else "")
    )
    return (Message("system", f"{system}\nAnswer with a JSON object {fields}."), Message("user", body))
