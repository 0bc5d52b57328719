"""Peers' training steps, in their own processes: equal starts, real training, honest failures."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from mechlab.bench.peers import FOLDER, PEERS, Peer, Step, interpreter, setup_peers
from mechlab.cli.peers import setup
from mechlab.errors import MechlabError

ROOT = Path(__file__).resolve().parents[2]
D_IN, D_SAE, ROWS, K = 12, 40, 64, 4


@dataclass(frozen=True)
class Work:
    weights: dict[str, Tensor]
    batches: Tensor
    files: dict[str, Path]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Work:
    folder = tmp_path_factory.mktemp("peers")
    generator = torch.Generator().manual_seed(3)
    decoder = torch.nn.functional.normalize(torch.randn(D_SAE, D_IN, generator=generator), dim=1)
    weights = {
        "encoder": decoder + 0.1 * torch.randn(D_SAE, D_IN, generator=generator),
        "decoder": decoder,
        "b_enc": 0.1 * torch.randn(D_SAE, generator=generator),
        "b_dec": 0.3 * torch.randn(D_IN, generator=generator),
    }
    planted = torch.randn(D_SAE, D_IN, generator=generator)
    codes = torch.rand(5, ROWS, D_SAE, generator=generator)
    batches = (codes * (codes > 0.9)) @ planted
    files = {name: folder / name for name in ("weights", "batches", "rows")}
    save_file(weights, files["weights"])
    save_file({"batches": batches}, files["batches"])
    save_file({"x": batches[0]}, files["rows"])
    return Work(weights, batches, files)


def reconstruct(weights: dict[str, Tensor], x: Tensor) -> Tensor:
    """TopK, naively: one row and one latent at a time."""
    out = []
    for row in x:
        pre = weights["encoder"] @ (row - weights["b_dec"]) + weights["b_enc"]
        row_hat = weights["b_dec"].clone()
        for latent in sorted(range(D_SAE), key=lambda i: -float(pre[i]))[:K]:
            row_hat += max(0.0, float(pre[latent])) * weights["decoder"][latent]
        out.append(row_hat)
    return torch.stack(out)


def fve(x: Tensor, x_hat: Tensor) -> float:
    return float(1 - (x - x_hat).square().sum() / (x - x.mean(0)).square().sum())


def check_a_peer(peer: Peer, work: Work, **options: object) -> list[Step]:
    """Starts from the given weights, explains what they explain, then learns."""
    peer.init(work.files["weights"], work.files["batches"], k=K, lr=0.01, **options)
    expected = fve(work.batches[0], reconstruct(work.weights, work.batches[0]))
    assert peer.fve(work.files["rows"]) == pytest.approx(expected, abs=1e-4)
    steps = [peer.step(number) for number in range(30)]
    assert steps[0].fve == pytest.approx(expected, abs=1e-4)
    errors = (work.batches[0] - reconstruct(work.weights, work.batches[0])).square()
    assert steps[0].mse == pytest.approx(float(errors.sum(1).mean()), rel=1e-4)
    assert all(0 < step.seconds < 60 for step in steps)
    assert peer.fve(work.files["rows"]) > expected + 0.05
    peak = peer.peak()
    assert peak is None or peak > 0
    return steps


@pytest.fixture(scope="module")
def saelens() -> Iterator[Peer]:
    with Peer("sae-lens") as peer:
        yield peer


@pytest.mark.parametrize(("sparse", "rescale"), [(True, False), (False, True), (False, False)])
def test_saelens_trains_from_the_given_weights(
    saelens: Peer, work: Work, sparse: bool, rescale: bool
) -> None:
    check_a_peer(saelens, work, use_sparse_activations=sparse, rescale_acts_by_decoder_norm=rescale)


def test_dead_latents_cost_an_auxiliary_loss_that_changes_the_training(saelens: Peer, work: Work) -> None:
    trained = []
    for share in (0.0, 0.5, 0.5):
        saelens.init(work.files["weights"], work.files["batches"], k=K, lr=0.01, dead_share=share)
        trained.append([saelens.step(number).mse for number in range(3)])
    assert trained[0][0] == trained[1][0]
    assert trained[0][2] != trained[1][2]
    assert trained[1] == trained[2]


def test_the_peak_counts_from_where_it_is_told(saelens: Peer, work: Work, tmp_path: Path) -> None:
    rows, width = 50_000, 200
    save_file({"x": torch.zeros(rows, width)}, tmp_path / "other")
    saelens.init(work.files["weights"], work.files["batches"], k=K, lr=0.01)
    saelens.start_peak()
    quiet = saelens.peak()
    if quiet is None:
        pytest.skip("peaks cannot be reset here")
    assert quiet < 2e6
    saelens.start_peak()
    save_file({"x": torch.randn(rows, D_IN)}, tmp_path / "many")
    saelens.fve(tmp_path / "many")
    loud = saelens.peak()
    assert loud is not None
    # The reconstruction is held whole, in pieces and joined.
    assert loud > rows * D_IN * 4


def test_a_waiting_peer_does_not_compute(saelens: Peer, work: Work) -> None:
    saelens.init(work.files["weights"], work.files["batches"], k=K, lr=0.01)
    saelens.step(0)
    time.sleep(0.1)
    before = _cpu_ticks(saelens)
    time.sleep(0.5)
    assert _cpu_ticks(saelens) - before <= 2


def _cpu_ticks(peer: Peer) -> int:
    try:
        fields = Path(f"/proc/{peer._process.pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        pytest.skip("no /proc here")
    return int(fields[11]) + int(fields[12])


@pytest.mark.peers
@pytest.mark.parametrize("share", [0.0, 0.5])
@pytest.mark.parametrize("name", ["dictionary-learning", "sparsify"])
def test_a_peer_of_another_environment_trains_from_the_given_weights(
    name: str, share: float, work: Work
) -> None:
    folder = ROOT / FOLDER
    if interpreter(name, folder) is None:
        pytest.skip(f"{name} is not built in {folder} (mechlab bench setup-peers)")
    with Peer(name, folder) as peer:
        assert peer.versions["torch"].startswith("2.13.0")
        assert peer.threads == torch.get_num_threads()
        check_a_peer(peer, work, dead_share=share)


@pytest.mark.peers
def test_sparsify_trains_with_its_default_optimiser(work: Work) -> None:
    folder = ROOT / FOLDER
    if interpreter("sparsify", folder) is None:
        pytest.skip(f"sparsify is not built in {folder} (mechlab bench setup-peers)")
    with Peer("sparsify", folder) as peer:
        check_a_peer(peer, work, optimizer="signum")


def test_an_environment_without_its_stamp_is_missing(tmp_path: Path) -> None:
    python = tmp_path / "sparsify" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    assert interpreter("sparsify", tmp_path) is None
    (tmp_path / "sparsify" / "built").write_text("of other pins")
    assert interpreter("sparsify", tmp_path) is None
    with pytest.raises(MechlabError, match=r"peer is missing: sparsify .*setup-peers"):
        Peer("sparsify", tmp_path)


def test_unknown_names_are_told_before_anything_is_built(tmp_path: Path) -> None:
    with pytest.raises(MechlabError, match=r"unknown peer: sparsfy .*sparsify"):
        setup_peers(["sparsify", "sparsfy"], tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MechlabError, match=r"folder of peers cannot be made: .*file"):
        setup_peers(["sparsify"], tmp_path / "file")


@pytest.mark.slow
def test_our_own_environment_is_not_built_anew(tmp_path: Path) -> None:
    outcome = setup(["--names", "sae-lens", "--folder", str(tmp_path / "new")], "mechlab bench setup-peers")
    assert outcome.payload["peers"]["sae-lens"]["sae-lens"].startswith("6.")
    assert "sae-lens 6." in outcome.text
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_a_build_that_fails_says_why_and_leaves_nothing_that_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("PIP_NO_INDEX", "PIP_NO_CACHE_DIR"):
        monkeypatch.setenv(variable, "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(MechlabError, match=r"peer sparsify cannot be built.*torch==2\.13\.0"):
        setup_peers(["sparsify"], tmp_path / "peers")
    assert (tmp_path / "peers" / "sparsify").is_dir()
    assert interpreter("sparsify", tmp_path / "peers") is None


def test_a_peer_that_cannot_start_shows_its_last_line(tmp_path: Path) -> None:
    """Our Python has no package called sparsify: the process dies while it starts."""
    with pytest.raises(MechlabError, match="peer sparsify stopped: ModuleNotFoundError"):
        Peer("sparsify", tmp_path, python=Path(sys.executable))


@pytest.mark.slow
def test_a_peer_that_dies_at_work_shows_its_last_line(tmp_path: Path) -> None:
    with Peer("sae-lens") as peer, pytest.raises(MechlabError, match=r"peer sae-lens stopped: .*nowhere"):
        peer.init(tmp_path / "nowhere", tmp_path / "nowhere", k=K, lr=0.1)


def test_all_pins_are_exact() -> None:
    from mechlab.bench import peer_steps

    for kind in PEERS.values():
        if kind.pins is not None:
            lines = (Path(peer_steps.__file__).parent / kind.pins).read_text().splitlines()
            packages = [line for line in lines if not line.startswith("#")]
            assert "torch==2.13.0" in packages
            assert all("==" in package and " " not in package for package in packages)
