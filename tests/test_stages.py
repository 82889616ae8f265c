"""imagenet.train's two stages: which one goes on, from what, and where."""

import os
import signal

import pytest
import torch
from image_tree import flags

from imagenet import train
from utils import checkpoint
from utils.training.signals import StopSignal

pytestmark = pytest.mark.usefixtures("small_resnet18")
TINY = ["--image-size", 32, "--batch-size", 8, "--epochs", 2, "--teacher", "none", "--deterministic"]
SHORT = [*TINY, "--epochs", 1, "--method", "bnn", "--stage"]


def same_runs(one, other):
    assert (one / "metrics.csv").read_bytes() == (other / "metrics.csv").read_bytes()
    models = [checkpoint.read(folder / "last.pt")["model"] for folder in (one, other)]
    assert all(torch.equal(value, models[1][name]) for name, value in models[0].items())


def test_resuming_at_the_exact_sample(small_tree, tmp_path, monkeypatch, capsys):
    train.main(flags(small_tree, tmp_path / "whole", *TINY, "--stage", "single", "--variant", "d"))
    interrupted = flags(
        small_tree, tmp_path / "parts", *TINY, "--stage", "single", "--variant", "d", "--checkpoint-minutes", 1e-6
    )
    step = torch.optim.Adam.step
    steps = []

    def interrupting_step(self, *args, **kwargs):
        steps.append(None)
        if len(steps) == 2:
            os.kill(os.getpid(), signal.SIGTERM)  # is answered after the step
        if len(steps) == 5:
            raise KeyboardInterrupt  # as sudden as kill -9: nothing is saved any more
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.Adam, "step", interrupting_step)
    for status in (143, 130, None):
        if status is None:
            train.main([*interrupted, "--resume"])
        else:
            with pytest.raises(SystemExit) as stopped:
                train.main([*interrupted, *(["--resume"] if steps else [])])
            assert stopped.value.code == status
    output = capsys.readouterr()
    assert "stopped by SIGTERM" in output.err
    assert "resuming after epoch 0 of 2, step 2 of 3 of the next" in output.out
    assert "resuming after epoch 1 of 2, step 1 of 3 of the next" in output.out
    same_runs(tmp_path / "whole", tmp_path / "parts")


def test_the_latest_stage_is_resumed(small_tree, tmp_path, monkeypatch, capsys, fails):
    monkeypatch.setattr(StopSignal, "received", signal.SIGTERM)
    with pytest.raises(SystemExit):
        train.main(flags(small_tree, tmp_path / "run", *SHORT, "both"))
    monkeypatch.undo()
    train.main(flags(small_tree, tmp_path / "run", "--resume"))
    output = capsys.readouterr().out
    assert "resuming after epoch 0 of 1, step 1 of 3 of the next" in output
    assert (output.count("stage 1: "), output.count("stage 2: ")) == (2, 1)
    train.main(flags(small_tree, tmp_path / "run", "--auto-resume"))
    output = capsys.readouterr().out
    assert "resuming after epoch 1 of 1" in output
    assert (output.count("stage 1: "), output.count("stage 2: ")) == (0, 1)
    (tmp_path / "run" / "stage2" / "last.pt").unlink()  # what is left of stage 2 is not trained over
    best = tmp_path / "run" / "stage2" / "best.pt"
    assert f"--resume {best}" in fails(train.main, *flags(small_tree, tmp_path / "run", "--auto-resume"))[1]
    train.main(["--data-dir", str(small_tree), "--resume", str(best), "--no-progress"])


def test_a_stage_goes_on_in_its_own_folder_alone(small_tree, tmp_path, fails):
    """Another run may have the name that the stage's folder would have."""
    train.main(flags(small_tree, tmp_path / "run", *SHORT, "1"))
    (tmp_path / "run" / "stage1").rename(tmp_path / "run" / "kept")
    assert fails(train.main, "--resume", tmp_path / "run" / "kept" / "last.pt") == (
        2, f"error: stage 1 of a run goes on in a folder stage1, not {tmp_path}/run/kept"
    )  # fmt: skip
    assert not (tmp_path / "run" / "stage1").exists()
    (tmp_path / "run" / "kept").rename(tmp_path / "run" / "stage2")
    both = flags(small_tree, tmp_path / "run", *SHORT, "both", "--data-dir", tmp_path / "none")
    assert "stage2 already holds a run" in fails(train.main, *both)[1]


def test_stage_2_starts_from_a_finished_stage_1(small_tree, tmp_path, monkeypatch, capsys, fails):
    run, own = tmp_path / "run", tmp_path / "run" / "stage1" / "last.pt"
    monkeypatch.setattr(StopSignal, "received", signal.SIGTERM)
    with pytest.raises(SystemExit):
        train.main(flags(small_tree, run, *SHORT, "1"))
    assert "stopped by SIGTERM" in capsys.readouterr().err
    monkeypatch.undo()
    assert f"stage 1 in {own.parent} is not finished" in fails(train.main, *flags(small_tree, run, *SHORT, "2"))[1]
    assert not (run / "stage2").exists()
    train.main(flags(small_tree, run, *SHORT, "2", "--stage1-checkpoint", own))  # asked for by name


@pytest.mark.parametrize("stages", [("both",), ("1", "2")])
def test_stage_1_does_not_go_on_under_a_stage_2(stages, small_tree, tmp_path, monkeypatch, fails):
    run = tmp_path / "run"
    for stage in stages:
        train.main(flags(small_tree, run, *SHORT, stage))
    best = checkpoint.read(run / "stage1" / "best.pt")
    checkpoint.save(run / "stage1" / "best.pt", best | {"epoch": 0, "rows": []})  # as if a later epoch were to come
    before = (run / "stage1" / "last.pt").read_bytes()
    status, line = fails(train.main, "--resume", run / "stage1" / "best.pt", "--data-dir", small_tree, "--no-progress")
    assert (status, f"stage 2 has begun from {run}/stage1/best.pt, in {run}/stage2" in line) == (2, True)
    assert (run / "stage1" / "last.pt").read_bytes() == before
    monkeypatch.chdir(run / "stage2")
    train.main(["--resume", "last.pt", "--data-dir", str(small_tree), "--no-progress"])  # finished: nothing to do
