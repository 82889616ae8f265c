"""A run that is interrupted loses nothing, and a checkpoint that is damaged is never gone on from."""

import copy
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch

from cifar import eval as cifar_eval
from cifar import train
from models import build_model
from utils import checkpoint
from utils.checkpoint import load_model
from utils.command import RunError, UsageError
from utils.training import runtime
from utils.training.signals import StopSignal
from utils.training.trainer import Trainer

ROOT = Path(__file__).parent.parent
QUICK = ("--no-progress", "--batch-size", 16, "--device", "cpu", "--amp", "off")


def run(*argv):
    train.main([str(a) for a in argv])


@pytest.fixture(scope="module")
def finished(tiny_folder, tmp_path_factory):
    """The folder of a finished run of two epochs."""
    out = tmp_path_factory.mktemp("runs") / "done"
    run("--dataset", "folder", "--data-dir", tiny_folder, "--epochs", 2, "--output-dir", out, *QUICK)
    return out


def test_torchrun_is_refused(tmp_path, fails, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    status, line = fails(train.main, "--dataset", "digits", "--output-dir", tmp_path / "run")
    assert (status, "without torchrun" in line) == (2, True)


# ---------------------------------------------------------------- interruptions


def test_ctrl_c_saves_and_a_resumed_run_ends_as_an_uninterrupted_one(tmp_path, tiny_folder):
    flags = ["--dataset", "folder", "--data-dir", tiny_folder, "--epochs", 3, "--deterministic", *QUICK]
    run(*flags, "--output-dir", tmp_path / "whole")
    process = subprocess.Popen(
        [sys.executable, "-m", "cifar.train", *map(str, flags), "--output-dir", tmp_path / "run"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stdout:
        if line.startswith("epoch 1/3"):
            process.send_signal(signal.SIGINT)
            break
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopped by Ctrl-C" in errors
    assert "Traceback" not in errors
    run("--resume", "--output-dir", tmp_path / "run")
    assert (tmp_path / "run" / "metrics.csv").read_bytes() == (tmp_path / "whole" / "metrics.csv").read_bytes()


def test_a_closed_output_does_not_lose_the_epoch(tmp_path, tiny_folder):
    argv = ["--dataset", "folder", "--data-dir", tiny_folder, "--epochs", 3, "--output-dir", tmp_path / "run", *QUICK]
    process = subprocess.Popen(
        [sys.executable, "-m", "cifar.train", *map(str, argv)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    for line in process.stdout:
        if line.startswith(b"computing on"):
            break
    process.stdout.close()
    errors = process.stderr.read().decode()
    assert process.wait(timeout=60) != 0
    assert "Traceback" not in errors
    stored = checkpoint.read(tmp_path / "run" / "last.pt")
    assert stored["epoch"] == len(stored["rows"]) == 1


def test_best_without_last_says_what_there_is(finished, tmp_path, fails):
    (tmp_path / "best.pt").write_bytes((finished / "best.pt").read_bytes())
    status, line = fails(train.main, "--resume", "--output-dir", tmp_path)
    assert status == 1
    assert f"--resume {tmp_path / 'best.pt'}" in line


def test_another_precision_is_said(finished, tmp_path, tiny_folder, capsys):
    out = tmp_path / "run"
    run("--dataset", "folder", "--data-dir", tiny_folder, "--epochs", 1, "--output-dir", out, *QUICK)
    stored = checkpoint.read(out / "last.pt")
    stored["args"]["amp"] = "fp16"  # as a GPU had it
    stored["scaler"] = {"scale": 65536.0, "growth_factor": 2.0, "backoff_factor": 0.5, "growth_interval": 2000}
    checkpoint.save(out / "last.pt", stored)
    with pytest.raises(SystemExit):
        run("--resume", "--output-dir", out, "--device", "cpu")
    assert "--amp bf16 or off" in capsys.readouterr().err
    run("--resume", "--output-dir", out, "--device", "cpu", "--amp", "off")
    assert "--amp off from here on, where the run began with fp16" in capsys.readouterr().out


# ---------------------------------------------------------------- damaged checkpoints


def same(one, other):
    """Whether two values of a checkpoint are equal, to the bit."""
    if torch.is_tensor(one):
        return torch.is_tensor(other) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


def test_corrupted_checkpoints_are_refused_or_identical(finished, tmp_path):
    content = (finished / "last.pt").read_bytes()
    whole = checkpoint.read(finished / "last.pt")
    path, rng = tmp_path / "last.pt", random.Random(0)
    refused = 0
    for _ in range(200):
        damaged = bytearray(content)
        place = rng.randrange(len(content))
        kind = rng.choice(("flip", "zero", "cut"))
        if kind == "flip":
            damaged[place] ^= 1 << rng.randrange(8)
        elif kind == "zero":
            damaged[place : place + 64] = bytes(len(damaged[place : place + 64]))
        else:
            del damaged[place:]
        path.write_bytes(damaged)
        try:
            read = checkpoint.read(path)
        except RunError:
            refused += 1
        else:
            assert same(read, whole)
    assert refused > 100


def plain_places(value, path=()):
    """Paths to every plain value of a checkpoint, and to the containers that hold them."""
    if torch.is_tensor(value):
        return []
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    return [path] * bool(path) + [place for key, child in children for place in plain_places(child, (*path, key))]


def changed(value, path, new):
    """A copy of nested dicts and lists with `new` at `path`."""
    if not path:
        return new
    key, *rest = path
    if isinstance(value, tuple):
        value = list(value)
    copied = copy.copy(value)
    copied[key] = changed(value[key], rest, new)
    return copied


def test_changed_plain_values_end_in_one_line_or_in_training(
    tiny_folder, tmp_path, small_resnet20, monkeypatch, capsys
):
    run("--dataset", "folder", "--data-dir", tiny_folder, "--epochs", 2, "--output-dir", tmp_path / "done", *QUICK)
    stored = checkpoint.read(tmp_path / "done" / "last.pt")
    places = [p for p in plain_places(stored) if p[0] not in ("format", "data")]
    rng = random.Random(1)
    news = (None, -1, 10**12, 0, "x", [], {}, True, float("nan"), 1.5, [[1]], "\ud800", {"a": 1})
    finish_epoch = Trainer._finish_epoch

    def finish_a_few(trainer, *results):
        if trainer.progress.epoch == 4:  # of the hundreds that some values ask for
            trainer.stop.received = signal.SIGTERM
        return finish_epoch(trainer, *results)

    monkeypatch.setattr(Trainer, "_finish_epoch", finish_a_few)
    for i in range(200):
        place = rng.choice(places)
        out = tmp_path / str(i)
        out.mkdir()
        checkpoint.save(out / "last.pt", changed(stored, place, rng.choice(news)))
        for main, argv in (
            (train.main, ["--resume", "--output-dir", out, "--no-progress"]),
            (cifar_eval.main, ["--checkpoint", out / "last.pt", "--dataset", "digits", "--no-progress"]),
        ):
            try:
                main([str(a) for a in argv])
            except SystemExit as stopped:
                lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
                if len(lines) != (stopped.code != 128 + signal.SIGTERM):
                    pytest.fail(ascii((place, lines)))


def test_another_format_version_is_refused(finished, tmp_path, fails):
    stored = checkpoint.read(finished / "last.pt")
    torch.save({**stored, "version": 99}, tmp_path / "last.pt")
    for main, flags in (
        (train.main, ["--resume", tmp_path / "last.pt"]),
        (cifar_eval.main, ["--checkpoint", tmp_path / "last.pt", "--dataset", "digits"]),
    ):
        assert "version 99" in fails(main, *flags)[1]


def test_checksums_cost_little(finished):
    path = finished / "last.pt"

    def seconds(function):
        times = []
        for _ in range(5):
            start = time.perf_counter()
            function()
            times.append(time.perf_counter() - start)
        return min(times)

    assert seconds(lambda: zipfile.ZipFile(path).testzip()) < 0.5 * seconds(lambda: load_model(path))


def test_a_network_with_nan_has_no_accuracy(finished, tmp_path, tiny_folder, fails):
    stored = checkpoint.read(finished / "last.pt")
    stored["model"]["fc.weight"][0, 0] = float("nan")
    checkpoint.save(tmp_path / "nan.pt", stored)
    status, line = fails(cifar_eval.main, "--checkpoint", tmp_path / "nan.pt", "--dataset", "folder", "--data-dir",
                         tiny_folder, "--no-progress")  # fmt: skip
    assert status == 1
    assert "not finite" in line


def test_a_missing_stage_is_counted_not_listed(finished, tmp_path, tiny_folder, fails):
    stored = checkpoint.read(finished / "last.pt")
    stored["model"] = {key: value for key, value in stored["model"].items() if not key.startswith("stages.1")}
    checkpoint.save(tmp_path / "less.pt", stored)
    _, line = fails(cifar_eval.main, "--checkpoint", tmp_path / "less.pt", "--dataset", "digits")
    assert "tensors (stages.1.0.conv.weight, " in line
    assert len(line) < 400


# ---------------------------------------------------------------- weights to start from, teachers, compilers


def test_init_from_takes_weights_and_a_new_classifier(finished, tmp_path, tiny_folder, capsys, fails):
    out = tmp_path / "more"
    flags = ["--dataset", "digits", "--epochs", 1, *QUICK, "--batch-size", 512, "--init-from", finished / "last.pt"]
    run(*flags, "--output-dir", out, "--lr", 1e-30)
    assert "a new classifier, for 10 classes instead of 2" in capsys.readouterr().out
    before, after = (load_model(folder / "last.pt").state_dict() for folder in (finished, out))
    assert torch.equal(before["conv1.weight"], after["conv1.weight"])
    status, line = fails(train.main, *flags, "--output-dir", tmp_path / "no", "--method", "irnet")
    assert (status, "method bireal instead of irnet" in line) == (2, True)
    assert not (tmp_path / "no").exists()


def test_a_teacher_gives_the_targets(finished, tmp_path, tiny_folder, fails):
    flags = ["--data-dir", tiny_folder, "--dataset", "folder", "--epochs", 1, *QUICK, "--teacher"]
    run(*flags, finished / "last.pt", "--output-dir", tmp_path / "student")
    student = tmp_path / "student"
    assert json.loads((student / "args.json").read_text())["teacher"] == str(finished / "last.pt")
    moved, resumed = tmp_path / "moved.pt", ["--resume", "--output-dir", student, "--no-progress", "--teacher"]
    shutil.copy(finished / "last.pt", moved)
    summary = (student / "summary.json").read_bytes()
    (student / "summary.json").write_text("as it was")
    run(*resumed, moved)
    assert (student / "summary.json").read_text() == "as it was"
    (student / "summary.json").write_bytes(summary)
    assert "leave --teacher out" in fails(train.main, *resumed, "none")[1]
    _, line = fails(
        train.main, "--dataset", "digits", "--teacher", finished / "last.pt", "--output-dir", tmp_path / "no"
    )
    assert "has 2 classes, the data have 10" in line


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_a_teacher_of_another_precision(dtype, finished, tmp_path, tiny_folder):
    stored = checkpoint.read(finished / "last.pt")
    model = {name: value.to(dtype) if value.is_floating_point() else value for name, value in stored["model"].items()}
    checkpoint.save(tmp_path / "teacher.pt", {"network": stored["network"], "data": stored["data"], "model": model})
    flags = ["--data-dir", tiny_folder, "--dataset", "folder", "--epochs", 1, *QUICK]
    run(*flags, "--teacher", tmp_path / "teacher.pt", "--output-dir", tmp_path / "student")
    assert (tmp_path / "student" / "summary.json").exists()


def test_a_teacher_that_does_not_take_the_images_is_refused(tmp_path, fails):
    network = {"arch": "vgg_small", "image_size": 64}
    checkpoint.save(tmp_path / "teacher.pt", {"network": network, "model": build_model(**network).state_dict()})
    flags = ("--dataset", "digits", "--teacher", tmp_path / "teacher.pt", "--output-dir", tmp_path / "no")
    assert "does not take images of 32x32" in fails(train.main, *flags)[1]
    assert not (tmp_path / "no").exists()


def test_a_finished_run_that_goes_on_is_no_longer_finished(finished, tmp_path, monkeypatch):
    folder = shutil.copytree(finished, tmp_path / "run")
    stored = checkpoint.read(folder / "best.pt")
    if stored["epoch"] == stored["args"]["epochs"]:
        stored["epoch"], stored["rows"] = stored["epoch"] - 1, stored["rows"][:-1]
        checkpoint.save(folder / "best.pt", stored)
    monkeypatch.setattr(StopSignal, "received", signal.SIGTERM)
    with pytest.raises(SystemExit):
        run("--resume", folder / "best.pt", "--no-progress")
    assert not (folder / "summary.json").exists()


@pytest.mark.parametrize("flags", [("--lam", "0.9"), ("--mu", "0.1"), ("--ires-variant", "quantile")])
def test_flags_of_ires_without_it_are_refused(flags, tmp_path, fails):
    status, line = fails(train.main, "--dataset", "digits", *flags, "--output-dir", tmp_path / "no")
    assert (status, f"{flags[0]} goes with --ires" in line) == (2, True)


def test_t_min_goes_with_an_estimator_that_has_a_t(fails):
    status, line = fails(train.main, "--dataset", "digits", "--t-min", "0.1")
    assert (status, "--t-min goes with a --method whose estimators have a t" in line) == (2, True)
    assert train.resolve(["--method", "irnet", "--t-min", "0.1"])[0].t_min == 0.1


def test_compiling_without_a_compiler(monkeypatch):
    monkeypatch.setattr(runtime.shutil, "which", lambda name: None)
    with pytest.raises(UsageError, match="compiler"):
        runtime.choose_compile("on", torch.device("cpu"), 10**6)
    compiled, reason = runtime.choose_compile("auto", torch.device("cuda"), 10**6)
    assert not compiled
    assert "none is installed" in reason
