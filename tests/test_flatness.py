"""How flat attention is, measured and shown."""

from pathlib import Path

import pytest
import torch

from models import build_model
from utils import checkpoint
from utils.tables import flatness
from utils.tables.results import collect

ROOT = Path(__file__).parent.parent


def test_flatness_of_the_committed_networks_is_what_the_page_says(monkeypatch):
    monkeypatch.chdir(ROOT)
    measured = flatness.measure(["checkpoints/digits/ir2net.packed"], "digits", None)
    (committed,) = [row for row in flatness.read("results/flatness_digits.csv") if row["network"] == "digits/ir2net"]
    assert measured[0].keys() == committed.keys()
    for name in flatness.COLUMNS[3:]:
        assert float(measured[0][name]) == pytest.approx(float(committed[name]), abs=2e-3)
    for path, data in (("cifar10", "folder"), ("digits", "digits"), ("imagenette", "imagenet")):
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


def test_flatness_of_photographs(small_tree, tmp_path):
    config = {"arch": "resnet18", "dataset": "imagenet", "variant": "d", "num_classes": 4}
    data = {"dataset": "imagenet", "image_size": 64}
    contents = {"network": config, "data": data, "model": build_model(**config).state_dict()}
    contents["model"] = {name: x.double() if x.is_floating_point() else x for name, x in contents["model"].items()}
    checkpoint.save(tmp_path / "x.pt", contents)
    (row,) = flatness.measure([tmp_path / "x.pt"], "imagenet", small_tree, folder=tmp_path)
    assert (row["network"], row["data"], row["images"]) == ("x", "small", "16")
    assert 0 < float(row["smallest"]) <= float(row["median"]) <= 1
    assert float(row["quantile_0.15"]) == pytest.approx(0.15, abs=0.02)


def test_mistakes_in_flatness_get_one_line(tmp_path, fails, capsys):
    network = ROOT / "checkpoints" / "digits" / "baseline.packed"
    out = tmp_path / "out.csv"
    flatness.main(["--checkpoint", str(network), "--output", str(out)])
    capsys.readouterr()
    flatness.main(["--show", str(out)])
    assert "baseline | digits, 360 images |" in capsys.readouterr().out
    assert fails(flatness.main)[0] == 2
    assert "go with --checkpoint" in fails(flatness.main, "--show", out, "--data-dir", tmp_path)[1]
    assert fails(flatness.main, "--checkpoint", tmp_path / "none.pt")[0] in (1, 2)
    assert fails(flatness.main, "--show", tmp_path / "none.csv")[0] == 1
    text = out.read_bytes()
    assert "add --force" in fails(flatness.main, "--checkpoint", network, "--output", out)[1]
    assert out.read_bytes() == text
    for damaged in (b"", b"\xff\xfe", b"a,b\n1,2\n", text.replace(b"360", b"many"), text[:-10], b'"'):
        out.write_bytes(damaged)
        assert fails(flatness.main, "--show", out)[0] == 1
