"""Tables from the folders of finished runs."""

import json
import shutil
from pathlib import Path

import pytest

from utils import refresh
from utils.tables import __main__ as tables
from utils.tables.paper import LAMBDAS, TABLES
from utils.tables.results import identity, mean_std


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
    assert "| fp | digits | 5 | resnet20, bireal | 32/32 | 99.00 | 100.00 | 360 | 40.00 | 0.50 | 12 |" in out


def test_figure_7_is_drawn(runs, capsys):
    for lam in LAMBDAS:
        write_run(runs / f"lam{lam}", 90 + lam, ires=True, lam=lam, mu=0.5)
    lines(capsys, "fig7", "--runs", runs, "--plot", runs / "plot.svg")
    lines(capsys, "fig7", "--runs", runs, "--plot", runs / "plot.png")
    assert (runs / "plot.png").read_bytes().startswith(b"\x89PNG")
    points = (runs / "plot.csv").read_text().splitlines()
    assert points[0] == "method,data,epochs,lambda,top1_last,seeds"
    assert "IRes,digits,5,0.3,90.30,1" in points
    assert len(points) == 1 + len(LAMBDAS) + 2  # and IRes + CIRec at lambda 0.15


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


def test_what_ires_masked(runs, capsys, fails):
    for folder in ("ir2net", "longer"):
        shutil.rmtree(runs / folder)
    write_run(runs / "masking", 90, ires=True, lam=0.9, mu=0.5, ires_variant="paper")
    for folder in (path.parent for path in runs.rglob("summary.json")):
        rows = "".join(f"{epoch},0.{epoch}\n" for epoch in range(1, 6))
        (folder / "metrics.csv").write_text("epoch,train_masked_fraction\n" + rows)
    out = [line for line in lines(capsys, "masked", "--runs", runs) if line.startswith("| masking ")]
    assert out == [
        "| masking | digits | paper | 0.9 | none | 10.00% | 20.00% | 30.00% | 40.00% | 50.00% | 50.00% | 90.00 |"
    ]
    (runs / "masking" / "metrics.csv").write_text("epoch\n1\n")
    assert fails(tables.main, "masked", "--runs", runs)[0] == 1


def test_a_folder_of_images_goes_by_its_name(runs, capsys):
    write_run(runs / "own", 70.0, dataset="folder", data_dir="data/my-images")
    assert "| own | my-images | 5 |" in "\n".join(lines(capsys, "runs", "--runs", runs))


def test_the_committed_results_are_those_that_the_pages_show(monkeypatch, capsys):
    root = Path(__file__).parent.parent
    monkeypatch.chdir(root)
    pages = ["README.md", *sorted(str(path.relative_to(root)) for path in (root / "results").glob("*.md"))]
    refresh.main(["--check", *pages])
    assert capsys.readouterr().out.count("up to date") == len(pages)


@pytest.mark.parametrize(
    "text",
    [
        "<!-- python -m utils.tables 6 -->\nno end, then prose\n<!-- python -m utils.table6 -->\n<!-- end -->\n",
        "<!-- python -m utils.table6 -->\nold\n",
        "old\n<!-- end -->\n",
        "<!-- python -m utils.nothing -->\n<!-- end -->\n",
    ],
)
def test_a_page_whose_marks_do_not_pair_is_left_alone(text, tmp_path, fails):
    page = tmp_path / "page.md"
    page.write_text(text)
    assert fails(refresh.main, page)[0] == 1
    assert page.read_text() == text


def test_a_page_is_refreshed_between_its_marks_alone(runs, tmp_path, monkeypatch, capsys, fails):
    page = tmp_path / "page.md"
    text = f"Before.\n<!-- python -m utils.tables runs --runs {runs} -->\nold\n<!-- end -->\nAfter.\n"
    page.write_text(text)
    assert fails(refresh.main, "--check", page)[0] == 1
    assert page.read_text() == text
    refresh.main([str(page)])
    new = page.read_text()
    assert new.startswith("Before.\n<!--")
    assert new.endswith("<!-- end -->\nAfter.\n")
    assert "| fp | digits | 5 |" in new
    assert "old" not in new
    refresh.main(["--check", str(page)])
