"""cifar.train and cifar.eval as a user meets them: runs, resumption, mistakes."""

import csv
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import write_images

from cifar import eval as cifar_eval
from cifar import train
from utils import checkpoint
from utils.checkpoint import load_model

ROOT = Path(__file__).parent.parent
QUICK = ("--no-progress", "--batch-size", 16, "--device", "cpu")


def run(*argv):
    train.main([str(a) for a in argv])


def rows(folder):
    return list(csv.DictReader((folder / "metrics.csv").open()))


@pytest.fixture(scope="module")
def finished(tiny_folder, tmp_path_factory):
    """The folder of a finished run of two epochs."""
    out = tmp_path_factory.mktemp("runs") / "done"
    run("--dataset", "folder", "--data-dir", tiny_folder, "--ires", "--recovery", "cirec", "--lam", 0.9,
        "--epochs", 2, "--output-dir", out, *QUICK)  # fmt: skip
    return out


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir() if "tfevents" not in p.name}


def test_a_run_leaves_what_it_promises(finished):
    names = {p.name for p in finished.iterdir()}
    assert {"args.json", "metrics.csv", "last.pt", "best.pt", "summary.json"} <= names
    assert any("tfevents" in name for name in names)
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["images"] == 10
    assert summary["epochs"] == 2
    last = rows(finished)[-1]
    assert summary["top1_last"] == float(last["test_top1"])
    assert summary["top1_best"] == max(float(row["test_top1"]) for row in rows(finished))
    assert {"bops", "flops", "ops", "data", "versions", "seconds"} <= set(summary)
    assert summary["data"]["classes"] == ["dark", "light"]
    args = json.loads((finished / "args.json").read_text())
    assert (args["lr"], args["weight_decay"], args["batch_size"]) == (0.11, 1e-4, 16)
    assert float(last["train_loss"]) == pytest.approx(
        (float(last["train_loss_original"]) + float(last["train_loss_masked"])) / 2
    )


def test_tensorboard_has_scalars_and_masks(finished):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(finished)).Reload()
    scalars = set(events.Tags()["scalars"])
    assert {"lr", "train/loss", "train/loss_original", "train/loss_masked", "train/masked_fraction"} <= scalars
    assert {"train/top1", "test/top1", "train/images_per_s"} <= scalars
    assert events.Tags()["images"] == ["ires/images_and_masked"]


def test_eval_agrees_with_training(finished, tiny_folder, capsys):
    cifar_eval.main(["--checkpoint", str(finished / "last.pt"), "--dataset", "folder", "--data-dir", str(tiny_folder),
                     "--no-progress", "--json"])  # fmt: skip
    out = capsys.readouterr().out
    result = json.loads(out.splitlines()[-1])
    assert "all 10 test images" in out
    assert {"top1", "top5", "loss", "images"} <= set(result)
    last = rows(finished)[-1]
    assert result["top1"] == float(last["test_top1"])
    assert result["loss"] == pytest.approx(float(last["test_loss"]), rel=1e-5)
    cifar_eval.main(["--checkpoint", str(finished / "last.pt"), "--data-dir", str(tiny_folder), "--no-progress"])
    assert "all 10 test images of folder" in capsys.readouterr().out


def test_load_model_rebuilds_the_network(finished):
    model = load_model(finished / "best.pt")
    assert not model.training
    assert model(torch.randn(3, 3, 32, 32)).shape == (3, 2)


def test_a_killed_run_resumes_bit_for_bit(tmp_path, tiny_folder):
    flags = ["--dataset", "folder", "--data-dir", tiny_folder, "--method", "irnet", "--ires", "--lam", 0.9,
             "--recovery", "cirec", "--epochs", 3, "--deterministic", *QUICK]  # fmt: skip
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run(*flags, "--output-dir", whole)
    command = [sys.executable, "-m", "cifar.train", *map(str, flags), "--output-dir", killed]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("epoch 1/3"):
            time.sleep(0.05)
            process.send_signal(signal.SIGKILL)
            break
    process.wait()
    assert not (killed / "summary.json").exists()
    # What a kill in the middle of writing leaves behind must not matter either.
    with (killed / "metrics.csv").open("a") as file:
        file.write("2,0.1,nonsense\n")
    run("--resume", "--output-dir", killed)
    assert (whole / "metrics.csv").read_bytes() == (killed / "metrics.csv").read_bytes()
    first, second = (torch.load(d / "last.pt", weights_only=True) for d in (whole, killed))
    assert all(torch.equal(first["model"][k], second["model"][k]) for k in first["model"])
    for a, b in zip(first["optimizer"]["state"].values(), second["optimizer"]["state"].values()):
        assert torch.equal(a["momentum_buffer"], b["momentum_buffer"])
    assert first["best"] == second["best"]
    assert torch.equal(first["rng"]["torch"], second["rng"]["torch"])


def test_a_finished_run_resumes_to_itself(finished, tiny_folder):
    before = contents(finished)
    run("--resume", "--output-dir", finished)
    after = contents(finished)
    assert before["metrics.csv"] == after["metrics.csv"]
    assert torch.equal(
        load_model(finished / "last.pt").fc.weight, torch.load(finished / "last.pt")["model"]["fc.weight"]
    )


def test_a_folder_that_holds_a_run_is_refused(finished, tiny_folder, fails):
    before = contents(finished)
    status, line = fails(train.main, "--dataset", "folder", "--data-dir", tiny_folder, "--output-dir", finished)
    assert status == 2
    assert "--resume" in line
    assert contents(finished) == before


def test_a_contradicting_flag_on_resume_is_refused(finished, fails):
    before = contents(finished)
    status, line = fails(train.main, "--resume", "--output-dir", finished, "--lr", 0.5)
    assert status == 2
    assert "--lr" in line
    assert contents(finished) == before


def test_a_run_goes_on_in_its_own_folder_alone(finished, tmp_path, tiny_folder, fails):
    run("--dataset", "folder", "--data-dir", tiny_folder, "--epochs", 1, "--output-dir", tmp_path / "other", *QUICK)
    before = contents(tmp_path / "other")
    status, line = fails(train.main, "--resume", finished / "last.pt", "--output-dir", tmp_path / "other")
    assert status == 2
    assert "own folder" in line
    assert contents(tmp_path / "other") == before
    run("--resume", finished / "last.pt")  # without --output-dir it is that of the checkpoint
    assert not (ROOT / "runs" / "latest" / "last.pt").exists()


def test_a_run_goes_on_with_its_own_images_alone(tiny_folder, tmp_path, fails):
    out = tmp_path / "run"
    run("--dataset", "folder", "--data-dir", tiny_folder, "--epochs", 1, "--output-dir", out, *QUICK)
    before = contents(out)
    write_images(tmp_path / "images" / "train", 24, seed=7)
    write_images(tmp_path / "images" / "test", 5, seed=8)
    status, line = fails(train.main, "--resume", "--output-dir", out, "--data-dir", tmp_path / "images")
    assert status == 2
    assert "images" in line
    assert contents(out) == before


def test_a_foreign_checkpoint_is_no_run(tmp_path, fails):
    checkpoint.save(tmp_path / "last.pt", {"network": {"arch": "resnet20"}, "model": {}, "optimizer": {}})
    status, line = fails(train.main, "--resume", tmp_path / "last.pt")
    assert status == 1
    assert "go on" in line


@pytest.mark.parametrize(
    ("flags", "status", "message"),
    [
        (["--nonsense"], 2, "--nonsense"),
        (["--lam", 2], 2, "--lam"),
        (["--lam", "nan"], 2, "--lam"),
        (["--mu", -1], 2, "--mu"),
        (["--batch-size", 0], 2, "--batch-size"),
        (["--epochs", "many"], 2, "--epochs"),
        (["--lr", "inf"], 2, "--lr"),
        (["--image-size", 0], 2, "--image-size"),
        (["--arch", "resnet50"], 2, "resnet50"),
        (["--dataset", "folder", "--data-dir", "/nowhere"], 2, "/nowhere"),
        (["--dataset", "folder"], 2, "--data-dir"),
        (["--dataset", "digits", "--ratio", 4], 2, "cirec"),
        (["--dataset", "digits", "--recovery", "cirec", "--groups", 7], 2, "groups"),
        (["--dataset", "digits", "--device", "cuda:77"], 2, "cuda:77"),
        (["--dataset", "digits", "--device", "toaster"], 2, "toaster"),
        (["--dataset", "digits", "--device", "cpu", "--amp", "fp16"], 2, "fp16"),
        (["--resume"], 1, "no checkpoint"),
        (["--dataset", "digits", "--batch-size", 1], 2, "BatchNorm"),
        (["--dataset", "digits", "--image-size", 64], 2, "folder"),
        (["--dataset", "digits", "--device", "meta"], 2, "meta"),
        (["--dataset", "digits", "--seed", 10**30], 2, "--seed"),
        (["--dataset", "digits", "--t-min", 50], 2, "--t-min"),
    ],
)
def test_mistakes_get_one_line(tmp_path, fails, flags, status, message):
    got, line = fails(train.main, "--output-dir", tmp_path / "out", *flags)
    assert (got, message in line) == (status, True), line
    assert not (tmp_path / "out" / "args.json").exists()


def test_a_rate_that_goes_with_the_batch_needs_a_batch_that_the_data_fill(tmp_path, tiny_folder, fails):
    flags = ("--dataset", "folder", "--data-dir", tiny_folder, "--method", "rbnn", "--output-dir", tmp_path / "out")
    status, line = fails(train.main, *flags)
    assert (status, line[-20:]) == (2, "give --batch-size 48")


def test_a_folder_that_holds_a_run_is_refused_before_data_are_read(finished, tmp_path, fails):
    flags = ("--dataset", "folder", "--data-dir", tmp_path / "nowhere", "--output-dir", finished)
    assert "already holds a run" in fails(train.main, *flags)[1]


def test_a_folder_that_cannot_be_written(tmp_path, fails):
    (tmp_path / "file").write_text("here first")
    status, line = fails(train.main, "--dataset", "digits", "--output-dir", tmp_path / "file" / "run")
    assert status == 1
    assert "--output-dir" in line
    assert (tmp_path / "file").read_text() == "here first"


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, tiny_folder, fails):
    out = tmp_path / "run"
    status, line = fails(train.main, "--dataset", "folder", "--data-dir", tiny_folder, "--weight-bits", 32,
                         "--activation-bits", 32, "--activation", "relu", "--lr", 1e30, "--epochs", 3,
                         "--output-dir", out, *QUICK)  # fmt: skip
    assert status == 1
    assert "--lr" in line
    assert all(v.isfinite().all() for v in torch.load(out / "last.pt", weights_only=True)["model"].values())


class Payload:
    """Unpickles by touching a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_loss_that_is_not_finite_in_the_last_step(tmp_path, tiny_folder, fails):
    out = tmp_path / "run"
    status, line = fails(train.main, "--dataset", "folder", "--data-dir", tiny_folder, "--weight-bits", 32,
                         "--activation-bits", 32, "--activation", "relu", "--lr", 1e30, "--epochs", 1, "--output-dir",
                         out, "--no-progress", "--batch-size", 48)  # fmt: skip
    assert status == 1
    assert "--lr" in line
    assert not (out / "summary.json").exists()
    assert all(v.isfinite().all() for v in torch.load(out / "last.pt", weights_only=True)["model"].values())


def damaged(kind, folder, good):
    path = folder / "file.pt"
    if kind == "truncated":
        path.write_bytes(good.read_bytes()[:5000])
    elif kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("not a checkpoint")
    elif kind == "directory":
        path.mkdir()
    elif kind == "code":
        torch.save({"model": Payload(folder / "ran")}, path)
    elif kind == "legacy code":
        torch.save({"model": Payload(folder / "ran")}, path, _use_new_zipfile_serialization=False)
    elif kind == "bare pickle":
        path.write_bytes(pickle.dumps(Payload(folder / "ran")))
    return path


@pytest.mark.parametrize(
    "kind", ["missing", "truncated", "empty", "text", "directory", "code", "legacy code", "bare pickle"]
)
def test_a_checkpoint_that_is_none(kind, tmp_path, finished, fails):
    path = damaged(kind, tmp_path, finished / "last.pt")
    status, line = fails(cifar_eval.main, "--checkpoint", path, "--dataset", "digits")
    assert status == 1
    assert str(path) in line
    assert not (tmp_path / "ran").exists()


def test_a_checkpoint_of_other_classes(finished, fails):
    status, line = fails(cifar_eval.main, "--checkpoint", finished / "last.pt", "--dataset", "digits", "--no-progress")
    assert status == 2
    assert "classes" in line


def test_too_little_memory_is_named_as_such(monkeypatch, fails):
    def evaluate(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(cifar_eval, "evaluate", evaluate)
    argv = ("--checkpoint", "checkpoints/digits/ir2net.packed", "--dataset", "digits")
    assert fails(cifar_eval.main, *argv) == (1, "error: out of memory: give a smaller --batch-size")
