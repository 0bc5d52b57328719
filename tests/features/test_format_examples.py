"""Examples as other tools show them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from exchanged import EMPTY, SMILE, SMILE_IDS, VOCABULARY, full_disk, random_index

from mechlab.errors import MechlabError
from mechlab.features.formats.examples import FeatureExamples, activation_histogram
from mechlab.features.formats.export import FORMATS, export_features
from mechlab.features.formats.folder import alive, chosen, new_folder, read_json
from mechlab.features.index import FeatureIndex, index_of
from mechlab.features.text import text_of
from mechlab.features.vocabulary import Vocabulary


def _of(passages: list[list[int]], activation: list[float]) -> FeatureIndex:
    return index_of(text_of(passages, VOCABULARY), {0: np.array(activation)})


@pytest.mark.parametrize("seed", range(4))
def test_peaks_are_the_strongest_of_every_passage(seed: int) -> None:
    index = random_index(seed)
    text = index.text
    for feature in range(index.n_features):
        dense = index.dense(feature)
        expected = []
        for start, stop in zip(text.bounds[:-1], text.bounds[1:], strict=True):
            if dense[start:stop].max() > 0:
                row = int(start + dense[start:stop].argmax())
                expected.append((-float(dense[row]), row))
        found = FeatureExamples(index, feature, radius=3)
        assert found.rows.tolist() == [row for _, row in sorted(expected)]
        np.testing.assert_array_equal(found.values, dense[found.rows])


@pytest.mark.parametrize("radius", [0, 1, 4, None])
def test_windows_say_the_text_and_never_cut_a_character(radius: int | None) -> None:
    index = random_index(1, passages=30)
    examples = FeatureExamples(index, 0, radius=radius)
    for row in range(len(index.text)):
        example = examples.at(row)
        shown = "".join(example.tokens)
        assert "\ufffd" not in shown
        assert "\\x" not in shown
        assert all(example.tokens)
        low, high = (int(b) for b in index.text.bounds[index.text.passage[row] : index.text.passage[row] + 2])
        whole = VOCABULARY.string(index.text.tokens[low:high])
        assert shown in whole
        assert radius is not None or shown == whole
        # The token it was chosen for keeps its activation; a joined character has its parts' largest.
        assert example.values[example.peak] >= float(index.dense(0)[row])
        assert len(example.tokens) == len(example.values)


def test_parts_of_a_character_are_joined_with_their_largest_activation() -> None:
    index = _of([[1, *SMILE_IDS, 2]], [0.0, 0.5, 2.0, 1.0, 0.0, 3.0])
    for row in range(1, 5):
        example = FeatureExamples(index, 0, radius=0).at(row)
        assert example.tokens == ("🙂",)
        assert example.values == (2.0,)
        assert example.peak == 0
    assert FeatureExamples(index, 0, radius=1).at(5).tokens == ("🙂", " w2")


def test_bytes_that_are_no_character_are_escapes_and_empty_tokens_have_a_name() -> None:
    index = _of([[SMILE_IDS[0], 1, EMPTY, SMILE_IDS[2]]], [1.0, 0.0, 0.0, 2.0])
    example = FeatureExamples(index, 0, radius=None).at(0)
    assert example.tokens == ("\\xf0", " w1", f"<{EMPTY}>", "\\x99")
    assert example.values == (1.0, 0.0, 0.0, 2.0)


@pytest.mark.parametrize("seed", range(5))
def test_every_character_is_found_whatever_stands_before_it(seed: int) -> None:
    random = np.random.default_rng(seed)
    parts = [b"\xe2", b"\xff", b"\x80", b"A", b"\xe2\x80", b"\x99 \xe2", "🙂é".encode()[:5], *(
        bytes([byte]) for byte in SMILE)]  # fmt: skip
    vocabulary = Vocabulary(tuple(map(str, parts)), dict(enumerate(parts)))
    for _ in range(100):
        tokens = random.integers(len(parts), size=int(random.integers(1, 12)))
        found = vocabulary.pieces(tokens)
        assert [each.start for each in found] + [len(tokens)] == [0] + [each.stop for each in found]
        said = "".join(each.text for each in found)
        assert said == b"".join(parts[each] for each in tokens).decode("utf-8", "backslashreplace")


def test_groups() -> None:
    index = _of([[1, 2, 3], [4, 5], [6, 7], [8]], [0.0, 4.0, 1.0, 2.0, 0.0, 3.0, 0.5, 0.0])
    examples = FeatureExamples(index, 0, radius=0)
    assert [e.row for e in examples.top(2)] == [1, 5]
    assert [e.row for e in examples.ranked(1, 3, 9)] == [5, 3]
    assert [e.row for e in examples.between(0.5, 2.0, 9)] == [2, 3, 6]
    assert [e.row for e in examples.silent(9)] == [7]
    assert [e.row for e in examples.anywhere(9)] == [1, 3, 5, 7]
    assert examples.ranked(4, 9, 3) == []
    with_seed = [[e.row for e in FeatureExamples(index, 0, radius=0, seed=s).anywhere(2)] for s in range(9)]
    assert with_seed[3] == [e.row for e in FeatureExamples(index, 0, radius=0, seed=3).anywhere(2)]
    assert len({tuple(rows) for rows in with_seed}) > 1


def test_histogram_by_hand() -> None:
    counts, centres = activation_histogram(np.array([1.0, 2.0, 2.0, 5.0]), bins=4)
    assert counts == [1, 2, 0, 1]
    assert centres == [1.5, 2.5, 3.5, 4.5]
    assert activation_histogram(np.zeros(0)) == ([], [])


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with pytest.raises(RuntimeError), new_folder(out) as folder:
        (folder / "half.txt").write_text("half")
        raise RuntimeError
    assert not out.exists()
    assert not any(out.parent.iterdir())
    with new_folder(out) as folder:
        (folder / "one.txt").write_text("one")
        assert not out.exists()
    assert (out / "one.txt").read_text() == "one"
    with pytest.raises(MechlabError, match="something is there already"), new_folder(out):
        pass
    with pytest.raises(RuntimeError), new_folder(out, overwrite=True) as folder:
        raise RuntimeError
    assert (out / "one.txt").exists()
    with new_folder(out, overwrite=True) as folder:
        (folder / "two.txt").write_text("two")
    assert [path.name for path in out.iterdir()] == ["two.txt"]
    with pytest.raises(FileNotFoundError), new_folder(out, overwrite=True) as folder:
        folder.rmdir()  # so that it cannot take its place
    assert [path.name for path in out.iterdir()] == ["two.txt"]
    assert [path.name for path in out.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("format", FORMATS)
def test_a_full_disk_leaves_nothing(format: str, tmp_path: Path) -> None:
    with full_disk(100), pytest.raises(MechlabError, match="no room on disk"):
        export_features(random_index(0), tmp_path / "out", format)
    assert not any(tmp_path.iterdir())


def test_mistakes_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(MechlabError, match="not JSON"):
        read_json(tmp_path / "a.json")
    with pytest.raises(MechlabError, match="cannot be read"):
        read_json(tmp_path / "b.json")
    (tmp_path / "file").write_text("")
    with pytest.raises(MechlabError), new_folder(tmp_path / "file" / "out"):
        pass
    with pytest.raises(MechlabError, match="does not exist: 5"):
        chosen(random_index(0), [0, 5])
    assert chosen(random_index(0), [3, 1, 3]) == [1, 3]
    assert alive(random_index(0), [0, 2]) == [0]
    with pytest.raises(MechlabError, match="no feature to write is active"):
        alive(random_index(0), [2])
