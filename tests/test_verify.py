"""Checkpoints are held to what their runs promise."""

import json
from pathlib import Path

import pytest
from run_folders import write_run

from cifar import data, train
from models import build_model
from utils import checkpoint
from utils.checkpoint import load_model, packed
from utils.tables import verify


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A run of one epoch on digits, and its network, packed."""
    root = tmp_path_factory.mktemp("verify")
    flags = [
        "--dataset",
        "digits",
        "--epochs",
        "1",
        "--arch",
        "resnet20",
        "--output-dir",
        str(root / "results" / "one"),
    ]
    train.main([*flags, "--device", "cpu", "--no-progress"])
    last = root / "results" / "one" / "last.pt"
    (root / "checkpoints").mkdir()
    packed.write_packed(root / "checkpoints" / "one.packed", load_model(last), checkpoint.read(last)["network"])
    return root


def flags(tree):
    return ["--checkpoints", str(tree / "checkpoints"), "--results", str(tree / "results")]


def test_a_network_keeps_the_promise_of_its_run(tree, capsys):
    verify.main(flags(tree))
    assert "| as promised |" in capsys.readouterr().out


def test_a_broken_promise_fails(tree, fails):
    path = tree / "results" / "one" / "summary.json"
    text = path.read_text()
    summary = json.loads(text)
    path.write_text(json.dumps(summary | {"top1_last": summary["top1_last"] + 1}))
    try:
        status, line = fails(verify.main, *flags(tree))
    finally:
        path.write_text(text)
    assert status == 1
    assert "one.packed" in line


def test_what_cannot_be_compared_is_not_called_right(tree, capsys, tiny_folder):
    path = tree / "results" / "one" / "args.json"
    text = path.read_text()
    path.write_text(json.dumps(json.loads(text) | {"dataset": "folder", "data_dir": "elsewhere/images"}))
    try:
        verify.main(flags(tree))
    finally:
        path.write_text(text)
    assert "| images, 1 epochs |" in (out := capsys.readouterr().out)
    assert "| not evaluated: it needs --data-dir |" in out


def test_other_images_prove_nothing(tree, capsys, monkeypatch):
    (test,) = data.load("digits", splits=("test",))
    test.images[0] += 1
    monkeypatch.setattr(data, "load", lambda *args, **kwargs: [test])
    verify.main(flags(tree))
    assert "| other images than the run's |" in capsys.readouterr().out


def test_images_of_more_classes_than_the_network_knows(tree, fails, monkeypatch):
    (test,) = data.load("digits", splits=("test",))
    test.labels[0] = 10
    monkeypatch.setattr(data, "load", lambda *args, **kwargs: [test])
    assert fails(verify.main, *flags(tree))[0] == 1


def test_photographs_need_a_folder_of_their_own(small_tree, tmp_path, capsys, fails):
    config = {"arch": "resnet18", "dataset": "imagenet", "variant": "d", "num_classes": 4}
    contents = {"network": config, "data": {"image_size": 32}, "model": build_model(**config).state_dict()}
    (tmp_path / "checkpoints").mkdir()
    checkpoint.save(tmp_path / "checkpoints" / "x.pt", contents)
    accuracy, count = verify.top1(tmp_path / "checkpoints" / "x.pt", small_tree)
    assert count == 16
    write_run(tmp_path / "results" / "x", accuracy, dataset="imagenet", arch="resnet18", variant="d", ires=True)
    path = tmp_path / "results" / "x" / "summary.json"
    summary = json.loads(path.read_text())
    with_photographs = [*flags(tmp_path), "--photographs", str(small_tree)]
    verify.main(flags(tmp_path))
    assert "needs --photographs |" in capsys.readouterr().out
    for changed, word in (({}, "other images"), ({"images": 16}, "as promised")):
        path.write_text(json.dumps(summary | changed))
        verify.main(with_photographs)
        assert word in capsys.readouterr().out
    path.write_text(json.dumps(summary | {"images": 16, "top1_last": accuracy + 10}))
    assert fails(verify.main, *with_photographs)[0] == 1


def test_mistakes_get_one_line(tree, tmp_path, fails):
    assert fails(verify.main, "--checkpoints", tmp_path, "--results", tree / "results")[0] == 2
    (tmp_path / "stray.packed").write_bytes((tree / "checkpoints" / "one.packed").read_bytes())
    assert fails(verify.main, "--checkpoints", tmp_path, "--results", tree / "results")[0] == 1


def test_the_committed_checkpoints_are_small_and_have_runs():
    root = Path(__file__).parent.parent
    found = verify.pairs(root / "checkpoints", root / "results")
    assert {"digits", "folder", "imagenet"} == {result.args["dataset"] for _, result in found}
    for path, result in found:
        assert path.stat().st_size < (3e6 if result.args["dataset"] == "imagenet" else 1e6)


def test_the_committed_networks_keep_their_promises_on_digits(monkeypatch, capsys):
    monkeypatch.chdir(Path(__file__).parent.parent)
    verify.main([])
    assert capsys.readouterr().out.count("| as promised |") == 3


def test_digits_need_no_folder_beside_the_other_runs_images(tmp_path):
    alone, beside = (verify.test_images("digits", None, folder) for folder in (None, tmp_path))
    assert alone.fingerprint() == beside.fingerprint()
