"""What the newer methods keep over an interruption: a run that is killed, and goes on, ends as one that is not."""

import pytest
import torch

from cifar import train
from modules.weights import Rotation
from utils import checkpoint
from utils.training.run import LAST
from utils.training.trainer import Trainer


class Killed(BaseException):
    pass


def kill_after(places, monkeypatch):
    """The process dies right after it has saved last.pt at each of these places, (epochs done, steps of the next)."""
    save = Trainer.save

    def dying_save(trainer, name):
        save(trainer, name)
        place = (trainer.progress.epoch, trainer.progress.step)
        if name == LAST and place in places:
            places.remove(place)
            raise Killed

    monkeypatch.setattr(Trainer, "save", dying_save)


def run(*argv):
    train.main([str(word) for word in argv])


@pytest.fixture
def turned(monkeypatch):
    """A list of one entry for each time that weights are rotated."""
    calls, fit_to = [], Rotation.fit_to
    monkeypatch.setattr(Rotation, "fit_to", lambda rotation, w: (calls.append(1), fit_to(rotation, w)))
    return calls


@pytest.mark.parametrize("method", ["rbnn", "recu", "adabin"])
def test_a_run_killed_after_and_within_an_epoch_ends_alike(
    method, tmp_path, tiny_folder, small_resnet20, monkeypatch, turned
):
    flags = ["--dataset", "folder", "--data-dir", tiny_folder, "--image-size", 16, "--batch-size", 16]
    flags += ["--method", method, "--epochs", 2, "--warmup-epochs", 1, "--checkpoint-minutes", 1e-9]
    flags += ["--device", "cpu", "--deterministic", "--no-progress"]
    run(*flags, "--output-dir", tmp_path / "whole")
    rotations = len(turned)
    assert rotations == (2 * 4 if method == "rbnn" else 0)

    places = [(1, 0), (1, 1)]
    kill_after(places, monkeypatch)
    with pytest.raises(Killed):
        run(*flags, "--output-dir", tmp_path / "killed")
    with pytest.raises(Killed):
        run("--resume", "--output-dir", tmp_path / "killed", "--checkpoint-minutes", 1e-9, "--no-progress")
    run("--resume", "--output-dir", tmp_path / "killed", "--no-progress")
    assert places == []
    assert len(turned) == 2 * rotations, "once an epoch, also where it is resumed within"

    whole, killed = (tmp_path / name for name in ("whole", "killed"))
    assert (killed / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()
    states = [checkpoint.read(folder / LAST) for folder in (whole, killed)]
    for name, value in states[0]["model"].items():
        assert torch.equal(states[1]["model"][name], value), name
    momenta = [state["optimizer"]["state"] for state in states]
    for index, state in momenta[0].items():
        assert torch.equal(momenta[1][index]["momentum_buffer"], state["momentum_buffer"])
