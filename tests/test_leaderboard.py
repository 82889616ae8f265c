"""Every method beside the others, and what CIRec gains."""

import pytest
from run_folders import CIFAR10, FP, lines, make_runs, write_run
from scipy.stats import t

from models import METHODS
from utils.tables import __main__ as tables


def board(capsys, folder):
    """{method: its other cells} of the leaderboard's last table."""
    rows = [line.strip("| ").split(" | ") for line in lines(capsys, "leaderboard", "--runs", folder) if "|" in line]
    return {name: cells for name, *cells in rows}


def test_the_leaderboard_pairs_the_seeds(tmp_path, capsys, fails):
    for seed, gain in enumerate((1.0, 2.0, 4.5)):
        for method in ("bireal", "sdbnn"):
            plain, cirec = (tmp_path / f"{method}{head}" / str(seed) for head in ("", "_cirec"))
            write_run(plain, 90.0 + seed, seed, method=method)
            write_run(cirec, 90.0 + seed + gain, seed, method=method, recovery="cirec")
    write_run(tmp_path / "fp", 99.0, **FP)
    rows = board(capsys, tmp_path)
    half = t.ppf(0.975, 2) * 1.8027756377319946 / 3**0.5
    assert rows["method"][0] == "last %"  # the papers' figures are CIFAR-10's
    assert rows["FP (ReLU, 32/32)"] == ["99.00 (1)", "-", "40.00", "0.50", "-", "-"]
    assert rows["bireal"][:4] == ["91.00 ± 1.00 (3)", "-8.00", "40.00", "0.50"]
    assert 60 < float(rows["bireal"][4]) < 65
    assert rows["bireal + CIRec"][:2] == ["93.50 ± 2.78 (3)", "-5.50"]
    assert rows["bireal + CIRec"][-1] == f"+2.50 [{2.5 - half:+.2f}, {2.5 + half:+.2f}]"
    assert {"sdbnn", "sdbnn + CIRec"} < rows.keys()
    write_run(tmp_path / "another_recipe", 50.0, lr=9.0)
    assert fails(tables.main, "leaderboard", "--runs", tmp_path)[0] == 1


def test_the_papers_figures_stand_beside_cifar10_alone(tmp_path, capsys):
    make_runs(tmp_path)
    write_run(tmp_path / "baseline", 88.0, **CIFAR10)
    assert board(capsys, tmp_path)["bireal"][:3] == ["85.2", "88.00 (1)", "-11.00"]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_a_place_on_the_leaderboard(method, tmp_path, capsys):
    write_run(tmp_path / "run", 90.0, method=method, recovery="cirec")
    packed = board(capsys, tmp_path)[f"{method} + CIRec"][4]
    assert packed == "-" or float(packed) < 200  # kB; not every method can be packed
