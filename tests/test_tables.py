"""Tables from the folders of finished runs."""

import json
import shutil

import pytest
from run_folders import CIFAR10, FP, lines, make_runs, write_run

from utils.tables import __main__ as tables
from utils.tables.markdown import mean_std
from utils.tables.paper import TABLES
from utils.tables.results import collect, identity


@pytest.fixture
def runs(tmp_path):
    return make_runs(tmp_path)


def test_seeds_are_averaged_and_schedules_kept_apart(runs, capsys):
    out = lines(capsys, 1, "--runs", runs, "--commands")
    assert "copy: 360 test images, 5 epochs." in out
    assert "copy: 360 test images, 9 epochs." in out
    ours = [line for line in out if line.startswith("| ResNet-20 | IR²Net (")]
    assert ours == [
        "| ResNet-20 | IR²Net (IRes + CIRec) | 87.2 | 98.00 (1) | (paper -3.6) |",
        "| ResNet-20 | IR²Net (IRes + CIRec) | 87.2 | 96.00 ± 1.00 (3) | -3.00 (paper -3.6) |",
    ]
    assert f"python -m cifar.train --dataset digits --seed 0 --output-dir {runs}/ir2net/seed0" in out
    means = "best epoch 97.00 %, 12 s on 'cpu', means of 3 seeds, of which this is the first"
    assert f"# ResNet-20, IR²Net (IRes + CIRec): {means}" in out


def test_the_gap_is_to_the_standard_network_and_the_twin_has_a_row(runs, capsys):
    write_run(runs / "hardtanh", 60.0, weight_bits=32, activation_bits=32, **CIFAR10)
    write_run(runs / "quantile", 97.5, ires=True, ires_variant="quantile", lam=0.15, **CIFAR10)
    out = lines(capsys, 1, "--runs", runs)
    assert "| ResNet-20 | FP | 90.8 | 99.00 (1) | - |" in out
    assert "| ResNet-20 | Hardtanh twin, 32/32 (ours) | - | 60.00 (1) | -39.00 |" in out
    assert "| ResNet-20 | IRes, quantile (ours) | - | 97.50 (1) | -1.50 |" in out


def test_other_data_never_stand_beside_the_papers_figures(runs, capsys):
    write_run(runs / "digits" / "fp", 99.5, **FP)
    write_run(runs / "digits" / "baseline", 90.0)
    out = lines(capsys, 1, "--runs", runs)
    assert any("| Baseline | 85.2 | not run |" in line for line in out)
    assert "Runs on other data are left out: `--data digits` shows them." in out
    out = lines(capsys, 1, "--runs", runs, "--data", "digits")
    assert "digits, not the paper's data: 360 test images, 5 epochs." in out
    assert "| ResNet-20 | Baseline | 90.00 (1) | -9.50 |" in out
    assert "85.2" not in "".join(out)
    assert "paper:" not in out[-1]
    assert "The gap is" in out[-1]
    assert "The gap is" not in "".join(lines(capsys, "fig7", "--runs", runs, "--data", "digits"))
    assert "| ResNet-20 | Baseline | 85.2 | not run | (paper -5.6) |" in lines(
        capsys, 1, "--runs", runs, "--data", "copy"
    )


def test_cells_without_runs_and_cited_ones_stay_in_the_table(runs, capsys):
    out = lines(capsys, 1, "--runs", runs)
    assert any("| Baseline | 85.2 | not run |" in line for line in out)
    out = lines(capsys, 3, "--runs", runs)
    assert any("| BinaryDuo | 90.4 | cited |" in line for line in out)


@pytest.mark.parametrize("table", TABLES)
def test_every_table_prints_with_no_runs_at_all(table, tmp_path, capsys):
    out = lines(capsys, table, "--runs", tmp_path)
    families = {cell.family for cell in TABLES[table][1]}
    assert len([line for line in out if line.startswith("| ")]) == len(TABLES[table][1]) + 2 * len(families)


def test_runs_as_they_are(runs, capsys):
    out = lines(capsys, "runs", "--runs", runs)
    assert (
        "| longer | copy | 9 | resnet20, bireal + IRes + CIRec | 1/1 | 98.00 | 99.00 | 360 | 40.00 | 0.50 | 12 |" in out
    )
    assert (
        "| fp | copy | 5 | resnet20, full precision, relu, normal | 32/32 | 99.00 | 100.00 | 360 | 40.00 | 0.50 | 12 |"
        in out
    )


def test_identity_does_not_depend_on_how_flags_are_written():
    assert identity({"arch": "resnet20"}) == identity({"arch": "resnet20", "structure": "bireal", "recovery": "none"})
    assert identity({"arch": "resnet18"}) == identity({"arch": "resnet18", "structure": "normal"})
    assert identity({"arch": "resnet20", "lam": 0.9}) == identity({"arch": "resnet20"}), (
        "lam means nothing without IRes"
    )
    assert identity({"arch": "resnet20", "ires": True}) != identity({"arch": "resnet20"})
    assert identity({"arch": "resnet20"}) != identity({"arch": "resnet20", "structure": "normal"})


@pytest.mark.parametrize(
    ("flag", "shown"),
    [
        ({"teacher": "a/last.pt"}, "teacher yes"),
        ({"warmup_epochs": 5}, "warmup_epochs 5"),
        ({"init_from": "a.pt"}, "yes"),
    ],
)
def test_another_recipe_is_a_row_of_its_own(runs, capsys, flag, shown):
    write_run(runs / "other", 50.0, 3, ires=True, recovery="cirec", lam=0.15, **CIFAR10, **flag)
    ours = [line for line in lines(capsys, 1, "--runs", runs) if line.startswith("| ResNet-20 | IR²Net (")]
    assert any("96.00 ± 1.00 (3)" in line for line in ours)
    assert any(shown in line and "50.00 (1)" in line for line in ours)


def test_other_photographs_of_the_same_name_are_other_images(tmp_path):
    for number, folder in enumerate(("a", "b")):
        write_run(
            tmp_path / folder, 50.0 + number, number, arch="resnet18", dataset="imagenet", data_dir=f"{folder}/photos"
        )
        summary = json.loads((tmp_path / folder / "summary.json").read_text())
        summary["data"]["classes"] = [folder]
        (tmp_path / folder / "summary.json").write_text(json.dumps(summary))
    first, second = (result.images_of for result in collect([tmp_path]))
    assert first != second


def test_a_run_on_images_that_are_not_square_is_a_run(tmp_path, capsys):
    write_run(tmp_path / "wide", 50.0, image_size=[32, 48])
    assert any("| wide |" in line for line in lines(capsys, "runs", "--runs", tmp_path))


def test_a_seed_counts_once_and_other_settings_are_a_row_of_their_own(runs, capsys):
    write_run(runs / "again", 50.0, 0, ires=True, recovery="cirec", lam=0.15, mu=0.5, lr=9.0, **CIFAR10)
    out = lines(capsys, 1, "--runs", runs, runs)
    ours = [line for line in out if line.startswith("| ResNet-20 | IR²Net (")]
    assert len(ours) == 3
    assert any("(IRes + CIRec), lr - | 87.2 | 96.00 ± 1.00 (3) |" in line for line in ours)
    assert any("(IRes + CIRec), lr 9.0 | 87.2 | 50.00 (1) | -49.00" in line for line in ours)


def test_mean_and_deviation():
    assert mean_std([1.0]) == "1.00 (1)"
    assert mean_std([1.0, 3.0]) == "2.00 ± 1.41 (2)"


def test_mistakes_get_one_line(tmp_path, fails):
    assert fails(tables.main, "1", "--runs", tmp_path / "nowhere")[0] == 2
    assert fails(tables.main, "2")[0] == 2
    write_run(tmp_path / "half", 1.0)
    (tmp_path / "half" / "args.json").write_text("{")
    assert fails(tables.main, "1", "--runs", tmp_path)[0] == 1


def test_flags_that_would_do_nothing_are_refused(runs, fails):
    assert "--brief go with" in fails(tables.main, "runs", "--runs", runs, "--brief")[1]
    assert "--commands and" in fails(tables.main, "leaderboard", "--runs", runs, "--commands")[1]
    assert "counts operations" in fails(tables.main, "6", "--runs", runs)[1]


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


def test_only_what_was_run(runs, capsys):
    out = lines(capsys, 1, "--runs", runs, "--brief")
    assert out[0] == "copy: 360 test images, 9 epochs."
    assert out[-1].startswith("| ")
    assert not any("not run" in line for line in out)
    assert any("IR²Net" in line for line in out)


def test_runs_of_several_folders_are_named_from_the_one_that_these_are_in(tmp_path, capsys):
    for folder in ("short", "long"):
        write_run(tmp_path / folder / "fp" / "seed0", 99.0, **FP, **CIFAR10)
    (tmp_path / "link").symlink_to(tmp_path / "long")
    names = [line.split(" | ")[0] for line in lines(capsys, "runs", "--runs", *sorted(tmp_path.glob("*o*")))[2:]]
    assert names == ["| long/fp/seed0", "| short/fp/seed0"]
    names = [line.split(" | ")[0] for line in lines(capsys, "runs", "--runs", tmp_path / "link")[2:]]
    assert names == ["| fp/seed0"]


def test_accuracy_over_the_length_of_training(runs, capsys, fails):
    write_run(runs / "baseline", 90.0, **CIFAR10)
    write_run(runs / "full" / "longer", 99.5, epochs=9, **FP, **CIFAR10)
    write_run(runs / "longest", 98.5, epochs=20, ires=True, recovery="cirec", **CIFAR10)
    write_run(runs / "vgg", 97.0, arch="vgg_small", **CIFAR10)
    assert lines(capsys, "lengths", "--runs", runs) == [
        "copy: 360 test images.",
        "",
        "| ResNet-20 | 5 epochs, % | gap | 9 epochs, % | gap | 20 epochs, % | gap | paper's gap, 500 epochs |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        "| FP | 99.00 | - | 99.50 | - | - | - | - |",
        "| Baseline | 90.00 | -9.00 | - | - | - | - | -5.6 |",
        "| IR²Net (IRes + CIRec) | 96.00 | -3.00 | 98.00 | -1.50 | 98.50 | - | -3.6 |",
    ]
    write_run(runs / "other", 91.0, lr=9.0, **CIFAR10)
    assert "different recipes" in fails(tables.main, "lengths", "--runs", runs)[1]
    (line,) = lines(capsys, "lengths", "--runs", runs / "baseline")[4:]
    assert line == "| Baseline | 90.00 | - | -5.6 |"
    write_run(runs / "digits", 90.0)
    out = lines(capsys, "lengths", "--runs", runs / "digits", "--data", "digits")
    assert out[0] == "digits, not the paper's data: 360 test images."
    assert out[4:] == ["| Baseline | 90.00 | - | - |"]
    assert lines(capsys, "lengths", "--runs", runs / "vgg") == ["No runs yet."]


def test_what_an_accuracy_costs(tmp_path, capsys):
    """Full precision first, its longest run the twin of all, then by OPs; first stages and other data are no rows."""
    photographs = {"dataset": "imagenet", "arch": "resnet18", "data_dir": "data/photographs"}
    write_run(tmp_path / "fp", 80.0, **FP, stage="single", epochs=20, **photographs)
    write_run(tmp_path / "shorter", 77.0, **FP, stage="single", **photographs)
    write_run(tmp_path / "c" / "stage1", 75.0, weight_bits=32, ires=True, variant="c", **photographs)
    write_run(tmp_path / "c" / "stage2", 70.0, ires=True, variant="c", stage="both", **photographs)
    write_run(tmp_path / "baseline", 65.0, **photographs)
    write_run(tmp_path / "elsewhere", 99.0, dataset="imagenet", arch="resnet18", data_dir="data/others")
    for path, bops in ((tmp_path / "c" / "stage2", 9e9), (tmp_path / "fp", 0)):
        summary = json.loads((path / "summary.json").read_text())
        (path / "summary.json").write_text(json.dumps({**summary, "bops": bops, "model_mb": 44.7}))
    out = lines(capsys, "costs", "--runs", tmp_path, "--data", "photographs")
    assert out[0] == "photographs, not the paper's data: 360 test images at 32x32."
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in out if line.startswith("| ")][2:]
    assert [row[:5] for row in rows] == [
        ["full precision, relu, normal", "20", "80.00 (1)", "-", "0.5"],
        ["full precision, relu, normal", "5", "77.00 (1)", "-3.00", "1.1"],
        ["bireal", "5", "65.00 (1)", "-15.00", "1.1"],
        ["bireal + IRes + CIRec of IR²Net-C", "5 + 5", "70.00 (1)", "-10.00", "141.1"],
    ]
    assert rows[0][5] == "44.70"
    assert 1 < float(rows[2][5]) < float(rows[3][5]) < 5  # 11 million bits, and the head
    assert "99.00" not in "".join(out)
    assert lines(capsys, "costs", "--runs", tmp_path / "c" / "stage1") == ["No runs yet."]
    assert "others" in "".join(lines(capsys, "costs", "--runs", tmp_path))
