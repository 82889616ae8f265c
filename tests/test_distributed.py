"""Training and evaluation in several processes under torchrun, on the CPU."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from image_tree import make_tree

from models import build_model
from utils import checkpoint

ROOT = Path(__file__).parent.parent
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
TINY = ("--image-size", "32", "--batch-size", "8", "--teacher", "none", "--deterministic", "--stage", "single")
TINY += ("--workers", "0", "--no-progress", "--device", "cpu", "--variant", "d")
ROTATED = ("--method", "rbnn", "--epochs", 2)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """24 training images, and 11 to test on: not as many for each of 2 ranks."""
    return make_tree(tmp_path_factory.mktemp("tree"), 6, [3, 3, 3, 2], low=32, high=48, plain=True)


def start(*command, **environment):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    return subprocess.Popen(
        [str(a) for a in command], cwd=ROOT, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip


def finish(process, status=0):
    output, errors = process.communicate(timeout=150)
    assert process.returncode == status, output + errors
    return output, errors


def train(*argv, **environment):
    return finish(start(*TORCHRUN, "tests/frozen_train.py", *argv, **environment))


def weights(path):
    return torch.load(path, weights_only=True)


def test_two_ranks_with_accumulation_train_as_one_does(tree, tmp_path):
    """Three steps of the same global batches, BatchNorm in evaluation mode: the weights are equal within 1e-6."""
    argv = ("--data-dir", tree, *TINY, "--epochs", 1)
    one = ("tests/frozen_train.py", *argv, "--output-dir", tmp_path / "one")
    one = start(sys.executable, *one, FROZEN="1", DUMP=str(tmp_path / "one"))
    two = ("--output-dir", tmp_path / "two", "--accumulate", 2)
    train(*argv, *two, FROZEN="1", DUMP=str(tmp_path / "two"))
    finish(one)
    alone, first, second = (weights(tmp_path / name) for name in ("one0.pt", "two0.pt", "two1.pt"))
    for name, value in alone.items():
        torch.testing.assert_close(first[name], value, rtol=0, atol=1e-6, msg=name)
        assert torch.equal(first[name], second[name]), name


@pytest.fixture(scope="module")
def uninterrupted(tree, tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    argv = ("--data-dir", tree, *TINY, *ROTATED, "--output-dir", folder / "run")
    output, _ = train(*argv, DUMP=str(folder / "rank"))
    assert output.count("epoch 2/2") == 1  # rank 0 alone prints
    assert "2 rank(s) x 1 part(s) of 4" in output
    return folder


def test_ranks_hold_identical_weights_and_rotations(uninterrupted):
    """Ranks that fit different rotations, as other hardware may, use rank 0's, another one in every epoch."""
    first, second = (weights(uninterrupted / f"rank{rank}.pt") for rank in (0, 1))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    used = [value for name, value in first.items() if name.startswith("used.")]
    assert not torch.equal(used[0], used[-1])


@pytest.mark.slow
def test_a_killed_rank_is_restarted_and_ends_alike(tree, tmp_path, uninterrupted):
    argv = ("tests/frozen_train.py", "--data-dir", tree, *TINY, *ROTATED, "--output-dir", tmp_path / "run")
    argv = ("--max-restarts", 1, *argv, "--checkpoint-minutes", 1e-6)
    process = start(*TORCHRUN, *argv, DUMP=str(tmp_path / "rank"))
    deadline = time.monotonic() + 100
    while not (tmp_path / "run" / "metrics.csv").exists():  # written after the first epoch
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    ranks = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    os.kill(int(ranks[1]), signal.SIGKILL)
    output, _ = finish(process)
    assert "resuming after epoch" in output
    assert (tmp_path / "run" / "metrics.csv").read_bytes() == (uninterrupted / "run" / "metrics.csv").read_bytes()
    first, second = (checkpoint.read(folder / "run" / "last.pt")["model"] for folder in (tmp_path, uninterrupted))
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_a_restart_takes_no_run_that_its_first_attempt_was_refused(tree, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    kept = {"last.pt": "{}", "summary.json": "{}"}
    for name, text in kept.items():
        (run / name).write_text(text)
    argv = ("-m", "imagenet.train", "--data-dir", tree, *TINY, "--epochs", 1, "--output-dir", run)
    _, errors = finish(start(*TORCHRUN, "--max-restarts", 1, *argv), status=1)
    assert errors.count(f"error: {run} already holds a run (last.pt)") == 2
    assert {path.name: path.read_text() for path in run.iterdir()} == kept


def test_evaluation_counts_are_those_of_one_rank(tmp_path):
    tree = make_tree(tmp_path / "tree", 0, [51, 51, 51, 50], low=32, high=48, plain=True)
    config = {"arch": "resnet18", "dataset": "imagenet", "variant": "d", "num_classes": 4}
    torch.manual_seed(0)
    checkpoint.save(tmp_path / "x.pt", {"network": config, "model": build_model(**config).state_dict()})
    argv = ("-m", "imagenet.eval", "--checkpoint", tmp_path / "x.pt", "--data-dir", tree, "--image-size", 32)
    argv += ("--workers", 0, "--batch-size", 30, "--device", "cpu", "--json", "--no-progress")
    one = start(sys.executable, *argv)
    two, errors = finish(start(*TORCHRUN, *argv))
    results = [json.loads(output.splitlines()[-1]) for output in (finish(one)[0], two)]
    assert [result["images"] for result in results] == [203, 203]
    alone, together = results
    assert (alone["top1"], alone["top5"]) == (together["top1"], together["top5"])
    assert alone["loss"] == pytest.approx(together["loss"], rel=1e-6)
    assert "Warning" not in errors


def test_more_ranks_than_images_is_one_line(tmp_path):
    tree = make_tree(tmp_path / "tree", 6, [1, 0, 0, 0], plain=True)
    for folder in (tree / "val").iterdir():
        if not any(folder.iterdir()):
            folder.rmdir()
    config = {"arch": "resnet18", "dataset": "imagenet", "num_classes": 1}
    checkpoint.save(tmp_path / "x.pt", {"network": config, "model": build_model(**config).state_dict()})
    argv = ("-m", "imagenet.eval", "--checkpoint", tmp_path / "x.pt", "--data-dir", tree, "--device", "cpu")
    _, errors = finish(start(*TORCHRUN, *argv), status=1)
    lines = [line for line in errors.splitlines() if line.startswith("error:")]
    assert lines == [f"error: 2 ranks are more than the 1 images of {tree}/val"]
    assert "exitcode  : 2" in errors  # torchrun's report of our status; its own is always 1
