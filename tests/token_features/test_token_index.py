"""The index must say exactly what the codes say."""

from __future__ import annotations

import numpy as np
import pytest

from mechlab.errors import MechlabError
from mechlab.features.token_index import build_index, load_index, save_index
from mechlab.features.token_rows import Rows, split_by_document


def small(values, indices, tokens=None, context=None) -> Rows:
    n = len(values)
    context = np.zeros(n, int) if context is None else np.array(context)
    return Rows(
        tokens=np.arange(n) if tokens is None else np.array(tokens),
        context=context,
        position=np.arange(n),
        document=context,
        values=np.array(values, np.float32),
        indices=np.array(indices),
        d_sae=4,
    )


def test_statistics_equal_a_dense_computation(planted):
    rows = planted.rows
    index = build_index(rows)
    dense = np.zeros((len(rows), rows.d_sae))
    np.put_along_axis(dense, rows.indices, rows.values.astype(float), axis=1)
    assert np.allclose(index.density, (dense > 0).mean(0))
    assert np.allclose(index.maximum, dense.max(0))
    with np.errstate(invalid="ignore"):
        assert np.allclose(index.mean, np.nan_to_num(dense.sum(0) / (dense > 0).sum(0)))
    for feature in range(rows.d_sae):
        row, value = index.entries(feature)
        assert np.array_equal(row, np.flatnonzero(dense[:, feature]))
        assert np.allclose(value, dense[row, feature])
        counts, edges = index.histogram(feature, bins=7)
        assert counts.sum() == index.active[feature]
        assert len(edges) == 8


def test_top_contexts_by_hand():
    values = [[1.0], [5.0], [5.0], [0.0], [2.0], [3.0], [9.0]]
    index = build_index(small(values, [[2]] * 7, tokens=range(7), context=[0, 0, 0, 0, 1, 1, 2]))
    first, second, third = index.top_contexts(2, radius=1)
    assert (first.row, first.tokens.tolist(), first.activations.tolist()) == (6, [6], [9.0])
    # Rows 1 and 2 tie: the earlier one stands for the context.
    assert (second.row, second.tokens.tolist(), second.centre) == (1, [0, 1, 2], 1)
    assert second.activations.tolist() == [1.0, 5.0, 5.0]
    # The window stops where the context begins.
    assert (third.row, third.tokens.tolist(), third.centre, third.document) == (5, [4, 5], 1, 1)
    assert len(index.top_contexts(2, count=2)) == 2
    assert index.top_contexts(0) == []


def test_top_contexts_show_no_text_twice():
    index = build_index(small([[1.0]] * 6, [[1]] * 6, tokens=[7, 8, 7, 8, 7, 9], context=[0, 0, 1, 1, 2, 2]))
    assert [found.tokens.tolist() for found in index.top_contexts(1)] == [[7, 8], [7, 9]]


def test_reused_context_numbers_are_kept_apart():
    index = build_index(small([[1.0], [2.0], [3.0]], [[0]] * 3, context=[0, 1, 0]))
    assert [found.tokens.tolist() for found in index.top_contexts(0)] == [[2], [1], [0]]


def test_slot_order_does_not_matter(planted):
    rows = planted.rows
    order = np.random.default_rng(0).permutation(rows.values.shape[1])
    shuffled = Rows(
        rows.tokens,
        rows.context,
        rows.position,
        rows.document,
        rows.values[:, order],
        rows.indices[:, order],
        rows.d_sae,
    )
    one, other = build_index(rows), build_index(shuffled)
    assert np.array_equal(one.row, other.row)
    assert np.array_equal(one.value, other.value)


def test_saved_index_comes_back_and_has_the_same_bytes_twice(tmp_path, planted):
    index = build_index(planted.explain)
    made = save_index(index, tmp_path / "a", seed=0, inputs={"dictionary": "d"})
    again = save_index(build_index(planted.explain), tmp_path / "b", seed=0, inputs={"dictionary": "d"})
    assert made.manifest.fingerprint == again.manifest.fingerprint
    assert save_index(index, tmp_path / "a", seed=0, inputs={"dictionary": "d"}).manifest == made.manifest
    back = load_index(tmp_path / "a")
    assert np.array_equal(back.row, index.row)
    assert np.array_equal(back.density, index.density)
    assert back.top_contexts(0)[0].row == index.top_contexts(0)[0].row
    with pytest.raises(MechlabError, match="another dictionary"):
        save_index(index, tmp_path / "a", seed=0, inputs={"dictionary": "other"})


def test_empty_slice_has_an_index():
    index = build_index(small(np.zeros((0, 2)), np.zeros((0, 2), int)))
    assert index.density.tolist() == index.maximum.tolist() == index.mean.tolist() == [0.0] * 4
    assert index.histogram(0)[0].sum() == 0


def test_split_keeps_documents_whole(planted):
    ours, theirs = set(planted.explain.document.tolist()), set(planted.held_out.document.tolist())
    assert not ours & theirs
    assert len(planted.explain) + len(planted.held_out) == len(planted.rows)
    again, _ = split_by_document(planted.rows, seed=1)
    assert np.array_equal(again.tokens, planted.explain.tokens)


def test_bad_input_is_refused(planted):
    with pytest.raises(MechlabError, match="negative or not finite"):
        small([[-1.0]], [[0]])
    with pytest.raises(MechlabError, match="do not fit"):
        build_index(small([[1.0]], [[4]]))
    with pytest.raises(MechlabError, match="feature does not exist: 8"):
        build_index(planted.explain).entries(8)
    with pytest.raises(MechlabError, match="share"):
        split_by_document(planted.rows, share=1.0)
