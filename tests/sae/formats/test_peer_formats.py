"""Files that the other tools wrote themselves, in their own environments, against what they compute."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch
from random_weights import compare

from mechlab.sae.convert import convert

ROOT = Path(__file__).resolve().parents[3]
CASES = {"dictionary-learning": 7, "sparsify": 3}


@pytest.mark.peers
@pytest.mark.parametrize("peer", CASES)
def test_what_a_peer_saved(peer: str, tmp_path: Path) -> None:
    python = ROOT / ".peers" / peer / "bin" / "python"
    if not python.is_file():
        pytest.skip(f"{peer} is not built (mechlab bench setup-peers)")
    script = Path(__file__).with_name("peer_save.py")
    ran = subprocess.run(
        [str(python), str(script), peer, str(tmp_path / "saved")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    saved = sorted((tmp_path / "saved").rglob("expected.pt"))
    assert len(saved) == CASES[peer]
    for number, path in enumerate(saved):
        expected = torch.load(path, weights_only=True)
        dictionary = convert(path.parent, tmp_path / f"ours{number}")
        compare(dictionary.sae, expected["codes"], expected["output"], expected["x"])
