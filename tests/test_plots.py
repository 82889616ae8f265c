"""Plots of finished runs, and the points beside them."""

import csv
from pathlib import Path

import pytest
from run_folders import lines, make_runs, write_run

from utils.tables import __main__ as tables
from utils.tables.paper import LAMBDAS
from utils.tables.plots import CURVE_COLUMNS, LAMBDA_COLUMNS, curve_points, lambda_points
from utils.tables.results import collect

ROOT = Path(__file__).parent.parent
LENGTHS = ["cifar10_jpeg_12", *(f"cifar10_jpeg/{name}" for name in ("fp", "baseline", "ir2net")), "cifar10_jpeg_200"]


@pytest.fixture
def runs(tmp_path):
    return make_runs(tmp_path)


def test_figure_7_is_drawn(runs, capsys):
    for lam in LAMBDAS:
        write_run(runs / f"lam{lam}", 90 + lam, ires=True, lam=lam, mu=0.5)
        write_run(runs / f"quantile{lam}", 80 + lam, ires=True, lam=lam, ires_variant="quantile")
    lines(capsys, "fig7", "--runs", runs, "--plot", runs / "plot.svg")
    lines(capsys, "fig7", "--runs", runs, "--plot", runs / "plot.png")
    assert (runs / "plot.png").read_bytes().startswith(b"\x89PNG")
    points = (runs / "plot.csv").read_text().splitlines()
    assert points[0] == "method,data,epochs,lambda,top1_last,seeds"
    assert "IRes,digits,5,0.3,90.30,1" in points
    assert '"IRes, quantile (ours)",digits,5,0.3,80.30,1' in points
    assert len(points) == 1 + len(LAMBDAS) + 4 + 2  # four quantiles, and IRes + CIRec at lambda 0.15


def test_accuracy_over_epochs_is_drawn(runs, capsys, fails):
    out = lines(capsys, "curves", "--runs", runs, "--plot", runs / "curves.png")
    assert "| fp | copy | 5 | 97.00 | 99.00 |" in out
    assert (runs / "curves.png").read_bytes().startswith(b"\x89PNG")
    points = (runs / "curves.csv").read_text().splitlines()
    assert points[:3] == ["run,epoch,test_top1", "fp,1,95.00", "fp,2,96.00"]
    assert len(points) == 1 + 4 * 5 + 9
    assert fails(tables.main, "curves", "--runs", runs, "--plot", runs / "no" / "curves.png")[0] == 2
    (runs / "empty").mkdir()
    assert "no runs" in fails(tables.main, "curves", "--runs", runs / "empty", "--plot", runs / "curves.png")[1]
    assert (runs / "curves.csv").read_text().splitlines() == points  # the earlier plot is still there
    assert fails(tables.main, "curves", "--runs", runs, "--plot", runs / "curves.xyz")[0] == 2
    assert fails(tables.main, 1, "--runs", runs, "--plot", runs / "curves.png")[0] == 2
    assert "none" in fails(tables.main, "curves", "--runs", runs, "--plot", runs / "fp" / "metrics.png")[1]
    assert (runs / "fp" / "metrics.csv").read_text().startswith("epoch,")
    (runs / "fp" / "metrics.csv").unlink()
    assert fails(tables.main, "curves", "--runs", runs)[0] == 1


@pytest.mark.parametrize(
    ("plot", "folders", "columns", "points"),
    [
        ("fig7_digits/fig7_lambda", ["fig7_digits"], LAMBDA_COLUMNS, lambda_points),
        ("cifar10_curves", ["cifar10_jpeg"], CURVE_COLUMNS, curve_points),
        ("cifar10_lengths", LENGTHS, CURVE_COLUMNS, curve_points),
    ],
)
def test_the_committed_plots_show_the_committed_runs(plot, folders, columns, points):
    runs = collect([ROOT / "results" / folder for folder in folders])
    expected = [list(columns), *([str(x) for x in row] for row in points(runs))]
    with open(ROOT / "results" / f"{plot}.csv", newline="") as file:
        assert list(csv.reader(file)) == expected
    assert (ROOT / "results" / f"{plot}.png").is_file()
