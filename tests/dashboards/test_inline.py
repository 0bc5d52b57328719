"""What notebooks show: every form of it, hostile strings, and that its styles stay its own."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from plotly.graph_objects import Figure

import mechlab as ml
from dashboards.conftest import CHROMIUM, HOSTILE
from mechlab.dashboards.inline import Inline, show, show_contexts, show_feature
from mechlab.features.contexts import top_contexts
from mechlab.features.explanations import Explanation, Explanations
from mechlab.features.index import FeatureIndex, index_of
from mechlab.features.scoring.scorecard import Scorecard, Scored, Unscored
from mechlab.features.text import Text
from mechlab.features.vocabulary import Vocabulary
from mechlab.scores import Score

WORDS = (*HOSTILE, " cat", " dog", "\n", "\t", "")


class Seen(HTMLParser):
    """Elements with their attributes, and text by the element around it."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.inside: list[str] = []
        self.said: dict[str, list[str]] = {}
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self.inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.inside.pop() == tag

    def handle_data(self, data: str) -> None:
        self.said.setdefault(self.inside[-1] if self.inside else "", []).append(data)


def an_index() -> FeatureIndex:
    """Three passages of every word; feature 0 fires on the first one and on " cat", 1 nowhere."""
    tokens = np.concatenate([np.roll(np.arange(len(WORDS)), -passage) for passage in range(3)])
    passage = np.repeat(np.arange(3), len(WORDS))
    text = Text(tokens, passage, np.tile(np.arange(len(WORDS)), 3), passage, Vocabulary(WORDS))
    strength = np.where(tokens == 0, 2.0, np.where(tokens == WORDS.index(" cat"), 4.0 + passage, 0.0))
    return index_of(text, {0: strength, 1: np.zeros(len(tokens))})


def scores() -> Scorecard:
    null = Score("detection", 0.5, 0.4, 0.6, 80)
    value = Score("detection", 0.9, 0.85, 0.95, 80, null, 0.5)
    return Scorecard(
        (Scored(0, "rules", "detection", value, 0.01, 0, 40, 40),),
        (Unscored(0, "rules", "fuzzing", HOSTILE[0]), Unscored(1, "", "", "dead")),
    )


def test_a_feature_as_html_and_as_text() -> None:
    index = an_index()
    said = Explanations((Explanation(0, "rules", "fires on ' cat'"), Explanation(1, "rules", "other")), (), 2)
    inline = show_feature(index, 0, said, scores(), count=2, radius=20)
    forms = inline._repr_mimebundle_()
    assert set(forms) == {"text/plain", "text/html"}
    assert repr(inline) == forms["text/plain"]
    assert inline._repr_html_() == forms["text/html"]
    text = forms["text/plain"]
    assert "fires on ' cat'" in text
    assert "other" not in text
    assert "<< cat>>" in text
    assert re.search(r"detection +0\.900 +0\.850 – 0\.950 +0\.500 +80", text)
    seen = Seen(forms["text/html"])
    marks = [attributes for tag, attributes in seen.found if tag == "mark"]
    thickness = {each["title"]: re.findall(r"border-bottom:(\d)px", str(each["style"])) for each in marks}
    # Strength is seen without colour.
    assert thickness == {"activation 2.000": ["2"], "activation 5.000": ["3"], "activation 6.000": ["4"]}
    assert "·cat" in seen.said["b"]


@pytest.mark.parametrize("hostile", HOSTILE)
def test_nothing_from_data_is_markup(hostile: str) -> None:
    index = an_index()
    everything = show_feature(index, 0, [Explanation(0, hostile, hostile)], scores(), count=3, radius=20)
    mapping = show({hostile: 0.5, "count": 3, "word": hostile})
    titled = show_contexts(index, 0, top_contexts(index, 0, 1), title=hostile)
    for inline in (everything, mapping, titled):
        html = inline.forms["text/html"]
        seen = Seen(html)
        known = {
            "div",
            "style",
            "p",
            "b",
            "small",
            "table",
            "thead",
            "tbody",
            "tr",
            "th",
            "td",
            "ol",
            "li",
            "mark",
        }
        assert {tag for tag, _ in seen.found} <= known
        assert not {name for _, attributes in seen.found for name in attributes if name.startswith("on")}
        for form in inline.forms.values():
            form.encode()  # no half of a character
            assert not re.search("[\x00-\x08\x0b-\x1f\u202e\u2028]", form)


def test_styles_are_of_one_class_only_and_there_is_no_script() -> None:
    html = show(scores()).forms["text/html"]
    style = re.search(r"<style>(.*?)</style>", html)
    assert style is not None
    selectors = [each for rule in re.findall(r"([^{}]+)\{", style[1]) for each in rule.split(",")]
    assert selectors
    assert all(each.startswith(".mechlab-inline") for each in selectors)
    assert "<script" not in html
    assert "http" not in html


def test_a_dead_feature_and_one_that_does_not_exist() -> None:
    inline = show_feature(an_index(), 1, None, scores())
    assert "dead" in repr(inline)
    assert "<<" not in repr(inline)
    with pytest.raises(ml.MechlabError, match="feature does not exist"):
        show_feature(an_index(), 2)


def test_scores_have_interval_control_and_units() -> None:
    assert re.search(r"detection +0\.900", repr(show(scores())))
    assert "2 scores could not be had" in repr(show(scores()))
    assert re.search(r"a share +0\.250$", repr(show({"a share": 0.25})), re.MULTILINE)
    one = show(Score("faithfulness", 0.9, float("nan"), float("nan"), 1234))
    assert re.search(r"faithfulness +0\.900 +1,234", repr(one))


def test_a_circuit_is_a_drawing_and_a_list_of_edges() -> None:
    fable = ml.load_model("fable")
    select, judge = (ml.make_task("ioi", fable.tokenizer, n=8, split=s) for s in ("validation", "test"))
    circuit = ml.find_circuit(fable, select, judge, method="eap", top=12)
    inline = ml.show(circuit)
    assert "→" in repr(inline)
    assert repr(inline).startswith("ioi by eap")
    svg = inline.forms["image/svg+xml"]
    style = re.search(r"<style>(.*?)</style>", svg)
    assert style is not None
    rules = re.findall(r"([^{}]+)\{", style[1])
    assert all(rule.startswith(".mechlab-circuit ") for rule in rules)
    assert inline._repr_html_() is None  # the drawing is what front ends show


@pytest.mark.browser
def test_a_figure_and_what_has_one() -> None:
    figure = Figure(layout={"title": "a title"})
    figure.add_scatter(x=np.arange(3), y=np.arange(3), name="a curve")
    for what in (figure, SimpleNamespace(figure=lambda: figure)):
        inline = show(what)
        assert repr(inline) == "a title: a curve"
        drawn = inline.forms["application/vnd.plotly.v1+json"]
        assert drawn["data"][0]["name"] == "a curve"
        if CHROMIUM is not None:  # a picture beside it, for pages that draw no plotly figures
            assert base64.b64decode(inline.forms["image/png"]).startswith(b"\x89PNG")


@pytest.mark.parametrize("what", [3, torch.zeros(2), None])
def test_other_things_are_refused(what: object) -> None:
    with pytest.raises(ml.MechlabError, match="cannot be shown"):
        show(what)


def test_no_run_there(tmp_path: Path) -> None:
    with pytest.raises(ml.MechlabError, match="no finished run"):
        show(tmp_path)


def test_the_repr_is_the_text() -> None:
    assert f"{Inline({'text/plain': 'words'})!r}" == "words"
