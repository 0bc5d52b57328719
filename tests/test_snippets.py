"""What runs the code blocks of pages notices what is wrong on them."""

from __future__ import annotations

from pathlib import Path

import pytest

from snippets import blocks_of, run_page


def _page(folder: Path, text: str) -> Path:
    page = folder / "page.md"
    page.write_text(text, encoding="utf-8")
    return page


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_blocks_run_in_order_and_share_names_and_files(tmp_path: Path) -> None:
    page = _page(
        tmp_path,
        """
<!-- file: words.txt -->
```
one two
```

```python
count = 2
```

```
$ cat words.txt \\
    > copy.txt
$ test -s copy.txt
output that is not compared
```

```python
from pathlib import Path

assert len(Path("copy.txt").read_text().split()) == count
Path("reached").touch()
```
""",
    )
    run_page(page)
    assert (tmp_path / "reached").exists()


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("```python\nraise ValueError\n```\n", ValueError),
        ("```\n$ true\n$ false\n```\n", AssertionError),
        ("```\n$ true\nmechlab: no such thing\n```\n", AssertionError),
        ("```\n$ echo 'mechlab: other' >&2; exit 2\nmechlab: no such thing\n```\n", AssertionError),
    ],
)
def test_what_goes_wrong_is_raised(tmp_path: Path, text: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        run_page(_page(tmp_path, text))


def test_a_mistake_that_is_shown_has_to_happen(tmp_path: Path) -> None:
    run_page(_page(tmp_path, "```\n$ echo 'mechlab: no' >&2; exit 2\nmechlab: no\n```\n"))


def test_lines_of_errors_are_those_of_the_page(tmp_path: Path) -> None:
    page = _page(tmp_path, "# Title\n\n```python\nfine = 1\n1 / 0\n```\n")
    with pytest.raises(ZeroDivisionError) as caught:
        run_page(page)
    assert caught.traceback[-1].lineno == 5 - 1  # counted from 0


def test_blocks_that_are_left_out(tmp_path: Path) -> None:
    page = _page(
        tmp_path,
        "<!-- not run: needs the network -->\n```\n$ false\n```\n\n"
        "```\nplain output\n```\n\n```{toctree}\nx\n```\n",
    )
    assert [block.runs for block in blocks_of(page)] == [False, False, False]
    run_page(page)
