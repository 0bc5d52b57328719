"""Two sides compared: dictionaries feature by feature, circuits edge by edge."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from cli.features_made import made
from dashboards.circuit_parts import CLASSES, found
from mechlab.circuits.compare import compare
from mechlab.dashboards.compare_block import Side, compare_block
from mechlab.errors import MechlabError
from mechlab.features.building import load_index
from mechlab.features.explanations import Explanation, Explanations
from mechlab.models.shape import Shape
from mechlab.sae.dictionary import load_sae
from mechlab.sae.metrics.geometry import stability


@pytest.fixture
def sides(tmp_path_factory) -> tuple[Side, Side]:
    """Two dictionaries of one site, with indexes of the same text."""
    folder = made(tmp_path_factory.getbasetemp())
    said = Explanations((Explanation(3, "rules", "fires on ' the'"),), (0,), 96)
    return (
        Side(
            "left", load_sae(folder / "sae"), index=load_index(folder / "index"), explanations=said, page=""
        ),
        Side(
            "right",
            load_sae(folder / "other"),
            index=load_index(folder / "elsewhere"),
            page="../b/index.html",
        ),
    )


def block_of(left: Side, right: Side) -> dict:
    return json.loads(json.dumps(compare_block(left, right), allow_nan=False))


def test_pairs_are_those_of_sae_compare(sides):
    left, right = sides
    block = block_of(left, right)["dictionaries"]
    made = stability(left.dictionary.sae.W_dec, right.dictionary.sae.W_dec)
    assert block["pairs"]["left"] == list(range(96))
    assert block["pairs"]["right"] == made.partner.tolist()
    assert block["pairs"]["cosine"] == pytest.approx(made.matched.tolist(), rel=1e-3)
    assert sum(block["histogram"]["counts"]) == 96
    scores = {each["name"]: each for each in block["agreement"]}
    assert scores["share matched at 0.7"]["value"] == pytest.approx(made.share.value, rel=1e-3)
    assert scores["share matched at 0.7"]["null"]["value"] == pytest.approx(made.share.null.value, abs=1e-3)


def test_nearest_features_and_what_one_has_alone(sides):
    left, right = sides
    block = block_of(left, right)["dictionaries"]
    a, b = (side.dictionary.sae.W_dec.detach() for side in sides)
    cosines = torch.nn.functional.cosine_similarity(a[:, None], b[None], dim=2)
    for side, best in zip(block["sides"], (cosines.max(1), cosines.max(0)), strict=True):
        assert side["nearest"] == pytest.approx(best.values.tolist(), rel=1e-3)
        assert side["other"] == best.indices.tolist()
    alone = {each["name"]: each["value"] for each in block["agreement"]}
    assert alone["share only in left"] == pytest.approx(
        float((cosines.amax(1) < 0.7).double().mean()), rel=1e-3
    )
    assert alone["share only in right"] == pytest.approx(
        float((cosines.amax(0) < 0.7).double().mean()), rel=1e-3
    )


def test_what_indexes_and_explanations_add(sides):
    left, right = sides
    block = block_of(left, right)["dictionaries"]
    one, other = block["sides"]
    assert one["density"] == pytest.approx(left.index.density.tolist(), rel=1e-3)
    assert (one["page"], other["page"]) == ("", "../b/index.html")
    assert one["said"][3] == "fires on ' the'"
    assert one["said"][4] == ""
    assert "said" not in other
    for feature in range(96):
        row, value = left.index.entries(feature)
        if len(row):
            peak = left.index.text.vocabulary[int(left.index.text.tokens[row[np.argmax(value)]])]
            assert one["tokens"][feature][0] == peak
        else:
            assert one["tokens"][feature] == []
    for at, (a, b) in enumerate(zip(block["pairs"]["left"], block["pairs"]["right"], strict=True)):
        rows = [set(side.index.entries(n)[0].tolist()) for side, n in ((left, a), (right, b))]
        either = rows[0] | rows[1]
        expected = len(rows[0] & rows[1]) / len(either) if either else None
        assert block["pairs"]["together"][at] == (
            None if expected is None else pytest.approx(expected, rel=1e-3)
        )


def test_a_dictionary_with_itself_is_one(sides):
    left, _ = sides
    block = block_of(left, replace(left, name="again"))["dictionaries"]
    assert block["pairs"]["right"] == list(range(96))
    assert block["pairs"]["cosine"] == pytest.approx([1.0] * 96)
    assert all(share in (1.0, None) for share in block["pairs"]["together"])
    assert all(one == other for _, one, other in block["facts"])


def test_without_indexes_there_is_still_the_geometry(sides):
    left, right = (Side(side.name, side.dictionary) for side in sides)
    block = block_of(left, right)["dictionaries"]
    assert block["pairs"]["together"] is None
    assert set(block["sides"][0]) == {"page", "n", "nearest", "other"}
    assert block["metrics"] == []


def test_circuits_edge_by_edge():
    left = found()
    weakest = min(left.edges, key=lambda edge: abs(edge.score))
    mask = left.mask.clone()
    mask[left.graph.source(weakest.source), left.graph.reader(weakest.reader)] = False
    mask[0, -1] = True
    right = replace(left, mask=mask, method="another", classes={"a2.h2": "other mover"})
    block = block_of(Side("one", circuit=left), Side("two", circuit=right))["circuits"]
    expected = compare(left, right)
    assert block["counts"] == [expected.shared, 1, 1]
    assert block["agreement"][0]["value"] == pytest.approx(expected.jaccard, rel=1e-3)
    assert block["agreement"][0]["null"]["n"] == 20
    edges = block["edges"]
    kinds = dict(zip(zip(edges["source"], edges["reader"], strict=True), edges["kind"], strict=True))
    assert kinds[weakest.source, weakest.reader] == 1
    assert kinds["embed", "logits"] == 2
    assert [*kinds.values()].count(0) == expected.shared
    names = {node["name"]: node.get("class") for node in block["nodes"]}
    assert names["a2.h2"] == "name mover / other mover"
    assert names["a0.h0"] == CLASSES["a0.h0"]
    assert ["method", "eap-ig", "another"] in block["facts"]
    assert "method: eap-ig, another" in block["differences"]
    assert sum(shared for _, shared, _, _ in block["layers"]) == expected.shared


def test_sides_that_cannot_be_compared(sides):
    left, right = sides
    with pytest.raises(MechlabError, match="nothing to compare"):
        compare_block(left, Side("circuit", circuit=found()))
    with pytest.raises(MechlabError, match="not relative"):
        compare_block(left, replace(right, page="javascript:alert(1)//"))
    with pytest.raises(MechlabError, match="index is of other features"):
        compare_block(
            replace(left, index=right.index.restrict(np.zeros(len(right.index.text), bool))), _narrow(right)
        )
    with pytest.raises(MechlabError, match="explanations are of other features"):
        compare_block(replace(left, explanations=Explanations((), (), 5)), right)
    other = replace(found(), shape=Shape(1, 2, 2, parallel=False))
    with pytest.raises(MechlabError, match="another shape"):
        compare_block(Side("a", circuit=found()), Side("b", circuit=other))


def _narrow(side: Side) -> Side:
    """A side whose index has a feature too few."""
    index = side.index
    short = replace(index, indptr=index.indptr[:-1])
    return replace(side, index=short)
