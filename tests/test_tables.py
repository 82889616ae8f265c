"""Tables from the folders of finished runs."""

import csv
import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from scipy.stats import t

from models import METHODS
from utils import refresh
from utils.tables import __main__ as tables
from utils.tables import flatness
from utils.tables.markdown import mean_std
from utils.tables.paper import LAMBDAS, TABLES
from utils.tables.plots import CURVE_COLUMNS, LAMBDA_COLUMNS, curve_points, lambda_points
from utils.tables.results import CIFAR10_CLASSES, collect, identity

ROOT = Path(__file__).parent.parent
FP = {"weight_bits": 32, "activation_bits": 32, "structure": "normal", "activation": "relu"}
CIFAR10 = {"dataset": "folder", "data_dir": "data/copy"}


def write_run(folder, top1, seed=0, epochs=5, **flags):
    folder.mkdir(parents=True)
    args = {"dataset": "digits", "arch": "resnet20", "seed": seed, "method": "bireal", "weight_bits": 1}
    args |= {"activation_bits": 1, "ires": False, "recovery": None, **flags}
    args["command"] = f"python -m cifar.train --dataset digits --seed {seed} --output-dir {folder}"
    (folder / "args.json").write_text(json.dumps(args))
    summary = {"top1_last": top1, "top1_best": top1 + 1, "images": 360, "epochs": epochs, "seconds": 12.5}
    classes = CIFAR10_CLASSES if args["dataset"] != "digits" else list("0123456789")
    data = {"dataset": args["dataset"], "test_fingerprint": "abc", "classes": classes, "image_size": [32, 32]}
    summary |= {"bops": 4e7, "flops": 5e5, "data": data}
    summary["versions"] = {"device": "cpu"}
    (folder / "summary.json").write_text(json.dumps(summary))
    rows = [f"{epoch},{top1 - epochs + epoch},0.0\n" for epoch in range(1, epochs + 1)]
    (folder / "metrics.csv").write_text("epoch,test_top1,train_masked_fraction\n" + "".join(rows))


@pytest.fixture
def runs(tmp_path):
    write_run(tmp_path / "fp", 99.0, **FP, **CIFAR10)
    for seed, top1 in enumerate((95.0, 96.0, 97.0)):
        write_run(tmp_path / "ir2net" / f"seed{seed}", top1, seed, ires=True, recovery="cirec", lam=0.15, **CIFAR10)
    write_run(tmp_path / "longer", 98.0, epochs=9, ires=True, recovery="cirec", **CIFAR10)
    return tmp_path


def lines(capsys, *argv):
    tables.main([str(a) for a in argv])
    return capsys.readouterr().out.splitlines()


def test_seeds_are_averaged_and_schedules_kept_apart(runs, capsys):
    out = lines(capsys, 1, "--runs", runs, "--commands")
    assert "copy: 10,000 test images, 5 epochs." not in out  # it is what summary.json says
    assert "copy: 360 test images, 5 epochs." in out
    assert "copy: 360 test images, 9 epochs." in out
    ours = [line for line in out if line.startswith("| ResNet-20 | IR²Net (")]
    assert ours == [
        "| ResNet-20 | IR²Net (IRes + CIRec) | 87.2 | 96.00 ± 1.00 (3) | -3.00 (paper -3.6) |",
        "| ResNet-20 | IR²Net (IRes + CIRec) | 87.2 | 98.00 (1) | (paper -3.6) |",
    ]
    assert "python -m cifar.train --dataset digits" in out
    assert "# ResNet-20, IR²Net (IRes + CIRec): best epoch 97.00 %, 12 s on 'cpu'" in out


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
    assert fails(tables.main, "curves", "--runs", runs, "--plot", runs / "no" / "curves.png")[0] == 1
    assert fails(tables.main, "curves", "--runs", runs, "--plot", runs / "curves.xyz")[0] == 2
    assert fails(tables.main, 1, "--runs", runs, "--plot", runs / "curves.png")[0] == 2
    (runs / "fp" / "metrics.csv").unlink()
    assert fails(tables.main, "curves", "--runs", runs)[0] == 1


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


def test_identity_does_not_depend_on_how_flags_are_written():
    assert identity({"arch": "resnet20"}) == identity({"arch": "resnet20", "structure": "bireal", "recovery": "none"})
    assert identity({"arch": "resnet18"}) == identity({"arch": "resnet18", "structure": "normal"})
    assert identity({"arch": "resnet20", "lam": 0.9}) == identity({"arch": "resnet20"}), (
        "lam means nothing without IRes"
    )
    assert identity({"arch": "resnet20", "ires": True}) != identity({"arch": "resnet20"})
    assert identity({"arch": "resnet20"}) != identity({"arch": "resnet20", "structure": "normal"})


def test_a_seed_counts_once_and_other_settings_are_a_row_of_their_own(runs, capsys):
    write_run(runs / "again", 50.0, 0, ires=True, recovery="cirec", lam=0.15, mu=0.5, lr=9.0, **CIFAR10)
    out = lines(capsys, 1, "--runs", runs, runs)
    ours = [line for line in out if line.startswith("| ResNet-20 | IR²Net (")]
    assert len(ours) == 3
    assert any("(IRes + CIRec), lr None | 87.2 | 96.00 ± 1.00 (3) |" in line for line in ours)
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


ODD = [None, True, 3, -1.5, float("nan"), 10**30, "", "x", "\0", "\ud800", "a 'b", [], [[]], {}, {"a": 1}]
RAW = [b"", b"{", b"[]", b"3", b"null", b"\xff\xfe\x00\x01", b"[" * 100_000, b'{"seed": ' + b"9" * 5000 + b"}"]


@pytest.mark.parametrize("name", ["args.json", "summary.json", "metrics.csv"])
def test_damaged_runs_get_one_line(name, runs, capsys, fails):
    """Every key of a file with every odd value, and what is no such file: a table or one line, never a traceback."""
    write_run(runs / "ires", 90.0, ires=True)
    victim = runs / "ires" / name
    text = victim.read_bytes()
    if name == "metrics.csv":
        contents = [
            *RAW,
            b"test_top1,train_masked_fraction\nx,y\n",
            b"test_top1\n1,2,3\n",
            b'"',
            text.replace(b"0.0", b"nan"),
        ]
    else:
        whole = json.loads(text)
        inner = {"versions": {"device": "x"}, "data": dict.fromkeys(("classes", "image_size", "test_fingerprint"))}
        contents = [*RAW, *(json.dumps({k: v for k, v in whole.items() if k != gone}).encode() for gone in whole)]
        contents += [json.dumps({**whole, key: value}).encode() for key in whole for value in ODD]
        for key in inner.keys() & whole.keys():
            for sub in inner[key]:
                contents += [json.dumps({**whole, key: {**whole[key], sub: value}}).encode() for value in ODD]
    random.seed(0)
    for _ in range(50):
        damaged = bytearray(text)
        damaged[random.randrange(len(text))] = random.randrange(256)
        contents.append(bytes(damaged))
    ended = set()
    shown = ("masked", "curves") if name == "metrics.csv" else ("1", "runs", "leaderboard")
    for content in contents:
        victim.write_bytes(content)
        for table in shown:
            try:
                tables.main([table, "--runs", str(runs), "--commands"])
                ended.add(0)
            except SystemExit as stopped:
                ended.add(stopped.code)
            printed = capsys.readouterr()
            assert len(printed.err.splitlines()) <= 1, printed.err
            printed.out.encode()
    assert ended == {0, 1}
    victim.unlink()
    victim.mkdir()
    for table in ("1", "curves") if name != "metrics.csv" else ("curves",):
        assert fails(tables.main, table, "--runs", runs)[0] == 1


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


def test_flatness_of_the_committed_networks_is_what_the_page_says(monkeypatch):
    monkeypatch.chdir(ROOT)
    measured = flatness.measure(["checkpoints/digits/ir2net.packed"], "digits", None)
    (committed,) = [row for row in flatness.read("results/flatness_digits.csv") if row["network"] == "digits/ir2net"]
    assert measured[0].keys() == committed.keys()
    for name in flatness.COLUMNS[3:]:
        assert float(measured[0][name]) == pytest.approx(float(committed[name]), abs=2e-3)
    for path, data in (("cifar10", "folder"), ("digits", "digits")):
        for row in flatness.read(f"results/flatness_{path}.csv"):
            (run,) = [r for r in collect(["results"]) if r.name == row["network"]]
            assert run.args["dataset"] == data


def test_flatness_by_hand():
    class Taps(torch.nn.Module):
        def features(self, images):
            return [images[:, :1]]

    images = torch.ones(2, 3, 4, 4)
    images[1, 0, 0, :] = 0.5  # attention 0.25 in 4 of 16 pixels, mean 0.8125; 12 pixels are at 1
    figures = flatness.flatness(Taps(), [(images, None)])
    assert figures["images"] == "2"
    assert figures["saturated"] == "0.875"
    assert float(figures["smallest"]) == pytest.approx(0.25 / 0.8125, abs=1e-3)
    assert figures["paper_0.15"] == "0.0000"
    assert figures["paper_0.9"] == "0.1250"


def test_mistakes_in_flatness_get_one_line(tmp_path, fails, capsys):
    checkpoint = ROOT / "checkpoints" / "digits" / "baseline.packed"
    out = tmp_path / "out.csv"
    flatness.main(["--checkpoint", str(checkpoint), "--output", str(out)])
    capsys.readouterr()
    flatness.main(["--show", str(out)])
    assert "baseline | digits, 360 images |" in capsys.readouterr().out
    assert fails(flatness.main)[0] == 2
    assert fails(flatness.main, "--checkpoint", tmp_path / "none.pt")[0] in (1, 2)
    assert fails(flatness.main, "--show", tmp_path / "none.csv")[0] == 1
    text = out.read_bytes()
    for damaged in (b"", b"\xff\xfe", b"a,b\n1,2\n", text.replace(b"360", b"many"), text[:-10], b'"'):
        out.write_bytes(damaged)
        assert fails(flatness.main, "--show", out)[0] == 1


def test_a_binary_page_gets_one_line(tmp_path, fails):
    (tmp_path / "page.md").write_bytes(b"\xff\xfe\x00")
    assert fails(refresh.main, tmp_path / "page.md")[0] == 1


def test_a_folder_of_images_goes_by_its_name(runs, capsys):
    write_run(runs / "own", 70.0, dataset="folder", data_dir="data/my-images")
    assert "| own | my-images | 5 |" in "\n".join(lines(capsys, "runs", "--runs", runs))


@pytest.mark.parametrize("page", ["README.md", *sorted(f"results/{p.name}" for p in (ROOT / "results").glob("*.md"))])
def test_the_committed_results_are_those_that_the_pages_show(page, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    refresh.main(["--check", page])
    assert "up to date" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("plot", "folder", "columns", "points"),
    [
        ("fig7_digits/fig7_lambda", "fig7_digits", LAMBDA_COLUMNS, lambda_points),
        ("cifar10_curves", "cifar10_jpeg", CURVE_COLUMNS, curve_points),
    ],
)
def test_the_committed_plots_show_the_committed_runs(plot, folder, columns, points):
    expected = [list(columns), *([str(x) for x in row] for row in points(collect([ROOT / "results" / folder])))]
    with open(ROOT / "results" / f"{plot}.csv", newline="") as file:
        assert list(csv.reader(file)) == expected
    assert (ROOT / "results" / f"{plot}.png").is_file()


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
    assert "| fp | copy | 5 |" in new
    assert "old" not in new
    refresh.main(["--check", str(page)])
