"""Every method beside the others, and what CIRec gains."""

import pytest
from run_folders import CIFAR10, FP, lines, make_runs, write_run
from scipy.stats import t

from models import METHODS
from utils.tables import __main__ as tables


@pytest.fixture
def runs(tmp_path):
    return make_runs(tmp_path)


def test_the_leaderboard_pairs_the_seeds(runs, capsys, fails):
    gains = (1.0, 2.0, 4.5)
    for seed, gain in enumerate(gains):
        for method in ("bireal", "sdbnn"):
            write_run(runs / "board" / method / str(seed), 90.0 + seed, seed, method=method)
            write_run(
                runs / "board" / f"{method}_c" / str(seed), 90.0 + seed + gain, seed, method=method, recovery="cirec"
            )
    write_run(runs / "board" / "fp", 99.0, **FP)
    out = lines(capsys, "leaderboard", "--runs", runs / "board")
    half = t.ppf(0.975, 2) * 1.8027756377319946 / 3**0.5
    interval = f"+2.50 [{2.5 - half:+.2f}, {2.5 + half:+.2f}]"
    assert "| FP (ReLU, 32/32) | 99.00 (1) | - | 40.00 | 0.50 | - | - |" in out
    assert "| bireal | 91.00 ± 1.00 (3) | -8.00 | 40.00 | 0.50 | 62.6 | - |" in out
    assert f"| bireal + CIRec | 93.50 ± 2.78 (3) | -5.50 | 40.00 | 0.50 | 73.4 | {interval} |" in out
    assert sum(line.startswith("| sdbnn") for line in out) == 2
    write_run(runs / "copy" / "baseline", 88.0, **CIFAR10)
    assert "| bireal | 85.2 | 88.00 (1) | -11.00 | 40.00 | 0.50 | 62.6 | - |" in lines(
        capsys, "leaderboard", "--runs", runs
    )
    write_run(runs / "board" / "again", 50.0, lr=9.0)
    assert fails(tables.main, "leaderboard", "--runs", runs)[0] == 1


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_a_place_on_the_leaderboard(method, tmp_path, capsys):
    write_run(tmp_path / "run", 90.0, method=method, recovery="cirec")
    (row,) = [
        line for line in lines(capsys, "leaderboard", "--runs", tmp_path) if line.startswith(f"| {method} + CIRec")
    ]
    assert float(row.split("|")[6]) < 200  # kB, packed
