"""The page as text: safe whatever the data holds, small, and the same every time."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from mechlab.dashboards.drawing import SHOWN, CircuitRecord, draw
from mechlab.dashboards.page import ContextRecord, FeatureRecord, render_page
from mechlab.dashboards.records import feature_records
from mechlab.dashboards.site import script_json
from mechlab.errors import MechlabError
from mechlab.features.explanations import explain_features
from mechlab.features.index import FeatureIndex, index_of
from mechlab.features.scoring.score import score_features
from mechlab.features.split import Split
from mechlab.features.statistics import statistics_of
from mechlab.features.text import text_of
from mechlab.features.vocabulary import Vocabulary
from mechlab.scores import Score


class Parsed(HTMLParser):
    """Elements with their attributes, and the text of every script."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self._inside = False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self._inside = tag == "script"
        if self._inside:
            self.scripts.append("")

    def handle_endtag(self, tag):
        self._inside = self._inside and tag != "script"

    def handle_data(self, data):
        if self._inside:
            self.scripts[-1] += data


def structure(parsed: Parsed) -> list[tuple[str, tuple[str, ...]]]:
    return [(tag, tuple(attributes)) for tag, attributes in parsed.elements]


def test_hostile_strings_add_no_element_and_no_attribute(page, hostile):
    """Replacing every string by a harmless one of the same place must give the same structure."""
    harmless = replace(
        hostile,
        title="x", model="x", site="x", command="x", config={"x": "x"}, fingerprints={"x": "x"},
        results=(replace(hostile.results[0], name="x", value="x", note="x"),),
        timings={"x": 1.0},
        features=(
            replace(
                hostile.features[0],
                explanation="x",
                unscored="x",
                contexts=(replace(hostile.features[0].contexts[0], tokens=("x",) * 11),),
            ),
        ),
        circuit=replace(
            hostile.circuit, task="x", method="x", edges=(("x", "logits", 1.0),),
            heads=(replace(hostile.circuit.heads[0], name="x"),),
        ),
    )  # fmt: skip
    assert structure(Parsed(render_page(hostile))) == structure(Parsed(render_page(harmless)))


def test_data_blocks_come_back_as_they_were(hostile):
    parsed = Parsed(render_page(hostile))
    index = json.loads(parsed.scripts[0])
    assert index["strings"] == list(hostile.features[0].contexts[0].tokens)
    assert index["rows"][0][4] == hostile.features[0].explanation
    assert json.loads(parsed.scripts[1])["unscored"] == hostile.features[0].unscored


@pytest.mark.parametrize("text", ["</script>", "<!-- <script>", "&amp;", "\u2028\u2029", "\ud800", "שלום"])
def test_script_json_is_plain_ascii_without_markup(text):
    written = str(script_json([text]))
    assert written.isascii()
    assert not set("<>&") & set(written)
    assert json.loads(written) == [text]


def test_policy_allows_this_script_and_nothing_else(page):
    parsed = Parsed(render_page(page))
    policies = [a["content"] for t, a in parsed.elements if t == "meta" and "http-equiv" in a]
    digest = base64.b64encode(hashlib.sha256(parsed.scripts[-1].encode()).digest()).decode()
    assert policies == [
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    ]


def test_nothing_points_outside(page):
    for _, attributes in Parsed(render_page(page)).elements:
        for name, value in attributes.items():
            if name in ("src", "href", "action", "data", "srcset"):
                assert value is not None
                assert value.startswith(("#", "data:"))
    assert not re.search(r"@import|url\(", render_page(page))


def test_script_never_writes_markup(page):
    script = Parsed(render_page(page)).scripts[-1]
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|fetch\(|XMLHttp", script
    )
    assert len(script) < 60_000


def test_same_page_same_bytes(page):
    assert render_page(page) == render_page(replace(page))


def test_a_feature_takes_less_than_8_kb(page):
    rng = np.random.default_rng(0)
    words = [f" token{n}" for n in range(5000)]

    def feature(number: int) -> FeatureRecord:
        contexts = tuple(
            ContextRecord(
                tuple(words[n] for n in rng.integers(0, 5000, 33)),
                tuple(float(a) for a in rng.random(33)),  # the worst case: every token active
                int(rng.integers(10_000)),
                16,
            )
            for _ in range(8)
        )
        return replace(page.features[0], index=number, contexts=contexts, histogram=(12345,) * 24)

    bare = len(render_page(replace(page, features=())).encode())
    full = len(render_page(replace(page, features=tuple(feature(n) for n in range(200)))).encode())
    assert (full - bare) / 200 < 8_000


def test_every_number_may_be_missing(page):
    nothing = Score("detection", math.nan, math.nan, math.nan, 0)
    broken = replace(page.features[0], score=nothing, maximum=math.inf)
    text = render_page(replace(page, features=(broken,), circuit=replace(page.circuit, faithfulness=nothing)))
    assert "NaN" not in text.split("<script")[1]
    assert json.loads(Parsed(text).scripts[0])["rows"][0][2] is None


def test_numbers_may_be_numpy_s(page):
    score = Score("detection", 0.8, 0.7, 0.9, 40, chance=0.5)
    plain = replace(page.features[0], index=0, score=score)
    numpy = replace(plain, score=replace(score))
    # Past the checks of types, which the tests alone make.
    object.__setattr__(numpy, "index", np.int64(0))
    object.__setattr__(numpy.score, "n", np.int64(40))
    object.__setattr__(numpy.score, "chance", np.float64(0.5))
    one, other = (render_page(replace(page, features=(each,))) for each in (numpy, plain))
    assert one == other
    unknown = replace(plain, score=replace(score, chance=math.nan))
    assert "NaN" not in render_page(replace(page, features=(unknown,)))


def test_pages_without_parts(page):
    bare = replace(page, features=(), circuit=None, results=(), timings={}, config={}, fingerprints={})
    text = render_page(bare)
    assert 'id="circuit"' not in text
    assert "0 features, 0 scored" in text
    empty = CircuitRecord("ioi", "EAP", 0)
    assert "The circuit has no edges." in render_page(replace(page, circuit=empty))


def test_bad_input_is_refused(page):
    with pytest.raises(MechlabError, match="same number: 0"):
        render_page(replace(page, features=(page.features[0], page.features[0])))
    with pytest.raises(MechlabError, match="does not fit together"):
        ContextRecord(("a",), (1.0, 2.0), 0, 0)
    with pytest.raises(MechlabError, match="does not fit together"):
        ContextRecord(("a",), (1.0,), 0, 1)


def test_drawing_puts_layers_upwards_and_weak_edges_first(page):
    drawing = draw(page.circuit)
    height = {node.name: node.y for node in drawing.nodes}
    assert height["embed"] > height["a0.h1"] > height["a1.h0"] > height["m1"] > height["logits"]
    assert [edge.score for edge in drawing.edges] == [0.1, -0.25, 0.5, 1.0]
    assert drawing.edges[-1].width > drawing.edges[0].width
    assert [node.name for node in drawing.nodes if not node.used] == ["a1.h3"]
    assert [head.name for head in drawing.heads] == ["a1.h3", "a0.h1", "a1.h0"]
    assert all(0 < node.x < drawing.width and 0 < node.y < drawing.height for node in drawing.nodes)
    places = [(node.x, node.y) for node in drawing.nodes]
    assert len(set(places)) == len(places)


def test_drawing_says_what_it_leaves_out_and_keeps_strange_names():
    edges = tuple((f"a0.h{n}", "strange", 1.0 + n) for n in range(SHOWN + 5))
    drawing = draw(CircuitRecord("t", "m", len(edges), edges=edges))
    assert drawing.omitted == 5
    assert min(edge.score for edge in drawing.edges) == 6.0
    assert "strange" in {node.name for node in drawing.nodes}


def test_records_from_the_features_room(page):
    tokens = np.random.default_rng(0).integers(0, 30, (100, 64))
    text = text_of([row.tolist() for row in tokens], Vocabulary(tuple(str(token) for token in range(30))))
    made = index_of(text, {0: (text.tokens == 3).astype(np.float64)})
    indptr = np.append(made.indptr, made.indptr[-1])  # a second feature, which is dead
    index = FeatureIndex(text, indptr, made.row, made.value)
    explained = explain_features(index, split=Split())
    scores = score_features(index.halves(Split())[1], explained)
    records = feature_records(index, statistics_of(index), explained, scores)
    assert [each.index for each in records] == [0, 1]
    assert records[0].score is not None
    assert "'3'" in records[0].explanation
    assert records[0].contexts[0].tokens[records[0].contexts[0].centre] == "3"
    assert sum(records[0].histogram) == index.active[0]
    assert records[1].unscored == "never fired on the text that was explained"
    assert "never fired" in render_page(replace(page, features=records))
