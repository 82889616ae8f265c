"""What only a GPU can show: float32 is float32, --deterministic holds. Compiled steps: test_compile.py."""

import pytest
import torch

from cifar import data, train
from utils.checkpoint import load_model
from utils.training import runtime

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def test_logits_are_those_of_the_cpu_in_float32(pytestconfig):
    path = pytestconfig.rootpath / "checkpoints" / "digits" / "fp.pt"
    (digits,) = data.load("digits", splits=("test",))
    logits = {}
    for name in ("cpu", "cuda"):
        device = runtime.choose_device(name)
        model = load_model(path).eval().to(device)
        images, _ = next(data.evaluation_batches(digits, 360, device))
        with torch.inference_mode():
            logits[name] = model(images).cpu()
    assert (logits["cuda"] - logits["cpu"]).abs().max() < 1e-4 * logits["cpu"].abs().max()


def test_deterministic_runs_are_equal_to_the_bit(tmp_path, small_resnet20):
    flags = ["--dataset", "digits", "--device", "cuda", "--ires", "--recovery", "cirec", "--no-progress"]
    flags += ["--epochs", "2", "--batch-size", "64", "--lr", "0.05", "--deterministic", "--compile", "off"]
    for name in ("a", "b"):
        train.main([*flags, "--output-dir", str(tmp_path / name)])
    assert (tmp_path / "a" / "metrics.csv").read_text() == (tmp_path / "b" / "metrics.csv").read_text()
