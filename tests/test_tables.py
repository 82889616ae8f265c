"""Tables from the folders of finished runs."""

import json
from pathlib import Path

import pytest

from utils import tables
from utils.paper import LAMBDAS, TABLES
from utils.results import identity, mean_std


def write_run(folder, top1, seed=0, epochs=5, **flags):
    folder.mkdir(parents=True)
    args = {"dataset": "digits", "arch": "resnet20", "seed": seed, "method": "bireal", "weight_bits": 1}
    args |= {"activation_bits": 1, "ires": False, "recovery": None, **flags}
    args["command"] = f"python -m cifar.train --dataset digits --seed {seed} --output-dir {folder}"
    (folder / "args.json").write_text(json.dumps(args))
    summary = {"top1_last": top1, "top1_best": top1 + 1, "images": 360, "epochs": epochs, "seconds": 12.5}
    summary |= {"bops": 4e7, "flops": 5e5, "data": {"dataset": "digits", "test_fingerprint": "abc"}}
    summary["versions"] = {"device": "cpu"}
    (folder / "summary.json").write_text(json.dumps(summary))


@pytest.fixture
def runs(tmp_path):
    write_run(tmp_path / "fp", 99.0, weight_bits=32, activation_bits=32)
    for seed, top1 in enumerate((95.0, 96.0, 97.0)):
        write_run(tmp_path / "ir2net" / f"seed{seed}", top1, seed, ires=True, recovery="cirec", lam=0.15, mu=0.5)
    write_run(tmp_path / "longer", 98.0, epochs=9, ires=True, recovery="cirec")
    return tmp_path


def lines(capsys, *argv):
    tables.main([str(a) for a in argv])
    return capsys.readouterr().out.splitlines()


def test_seeds_are_averaged_and_schedules_kept_apart(runs, capsys):
    out = lines(capsys, 1, "--runs", runs)
    ours = [line for line in out if line.startswith("| ResNet-20 | IR²Net")]
    assert len(ours) == 2
    assert "| 87.2 | 96.00 ± 1.00 (3) | 97.00 ± 1.00 (3) | -3.6 | -3.00 | digits, 360 images | 5 |" in ours[0]
    assert "| 98.00 (1) |" in ours[1]
    assert "| 9 |" in ours[1]
    assert "`python -m cifar.train --dataset digits`" in ours[0]


def test_cells_without_runs_and_cited_ones_stay_in_the_table(runs, capsys):
    out = lines(capsys, 1, "--runs", runs)
    assert any("| Baseline | 1/1 | 85.2 | not run |" in line for line in out)
    out = lines(capsys, 3, "--runs", runs)
    assert any("| BinaryDuo | 1/1 | 90.4 | cited |" in line for line in out)


@pytest.mark.parametrize("table", TABLES)
def test_every_table_prints_with_no_runs_at_all(table, tmp_path, capsys):
    out = lines(capsys, table, "--runs", tmp_path)
    assert len([line for line in out if line.startswith("| ")]) == len(TABLES[table][1]) + 2


def test_runs_as_they_are(runs, capsys):
    out = lines(capsys, "runs", "--runs", runs)
    assert "| fp | resnet20, bireal | 32/32 | 99.00 | 100.00 | 360 | 40.00 | 0.50 | 12 |" in out


def test_figure_7_is_drawn(runs, capsys):
    for lam in LAMBDAS:
        write_run(runs / f"lam{lam}", 90 + lam, ires=True, lam=lam, mu=0.5)
    lines(capsys, "fig7", "--runs", runs, "--plot", runs / "plot.png")
    assert (runs / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_identity_does_not_depend_on_how_flags_are_written():
    assert identity({"arch": "resnet20"}) == identity({"arch": "resnet20", "structure": "bireal", "recovery": "none"})
    assert identity({"arch": "resnet18"}) == identity({"arch": "resnet18", "structure": "normal"})
    assert identity({"arch": "resnet20", "lam": 0.9}) == identity({"arch": "resnet20"}), (
        "lam means nothing without IRes"
    )
    assert identity({"arch": "resnet20", "ires": True}) != identity({"arch": "resnet20"})
    assert identity({"arch": "resnet20"}) != identity({"arch": "resnet20", "structure": "normal"})


def test_a_seed_counts_once_and_other_settings_are_another_schedule(runs, capsys):
    write_run(runs / "again", 50.0, 0, ires=True, recovery="cirec", lam=0.15, mu=0.5, lr=9.0)
    out = lines(capsys, 1, "--runs", runs, runs)
    ours = [line for line in out if line.startswith("| ResNet-20 | IR²Net")]
    assert len(ours) == 3
    assert any("96.00 ± 1.00 (3)" in line for line in ours)
    assert any("| 50.00 (1) |" in line for line in ours)


def test_mean_and_deviation():
    assert mean_std([1.0]) == "1.00 (1)"
    assert mean_std([1.0, 3.0]) == "2.00 ± 1.41 (2)"


def test_mistakes_get_one_line(tmp_path, fails):
    assert fails(tables.main, "1", "--runs", tmp_path / "nowhere")[0] == 2
    assert fails(tables.main, "2")[0] == 2
    write_run(tmp_path / "half", 1.0)
    (tmp_path / "half" / "args.json").write_text("{")
    assert fails(tables.main, "1", "--runs", tmp_path)[0] == 1


def test_the_committed_results_are_those_that_the_readme_shows(capsys):
    root = Path(__file__).parent.parent
    table = lines(capsys, "runs", "--runs", root / "results")
    assert len(table) > 2
    shown = (root / "results" / "README.md").read_text()
    assert "\n".join(table) in shown
