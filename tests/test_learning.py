"""Every method learns: two epochs of digits lead to twice the accuracy of chance, or more."""

import json

import pytest

from cifar import train
from models import METHODS

LR = {"rbnn": 0.02}
"""RBNN's recipe warms up: at its full rate it does not start."""


@pytest.mark.parametrize("method", METHODS)
def test_two_epochs_of_digits(method, tmp_path, small_resnet20):
    argv = ["--dataset", "digits", "--method", method, "--epochs", 2, "--batch-size", 32, "--warmup-epochs", 0]
    argv += ["--lr", LR.get(method, 0.1), "--no-progress", "--device", "cpu", "--output-dir", tmp_path / "run"]
    train.main([str(word) for word in argv])
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["top1_last"] > 20
