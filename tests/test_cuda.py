"""What only a GPU can show: CUDA graphs learn what eager steps learn, float32 is float32, --deterministic holds."""

import pytest
import torch

from cifar import data, train
from models import build_model
from modules.restriction import ThriftyIResLoss
from utils.checkpoint import load_model
from utils.training import runtime
from utils.training.losses import cross_entropy

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def losses_of(steps, compiled):
    """The losses of so many steps of IR²Net in float64, from equal weights on equal images: float32 may flip signs."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    device = runtime.choose_device("cuda")
    model = build_model("resnet20", recovery="cirec").to(device)
    step = ThriftyIResLoss(model, cross_entropy, lam=0.9).double().to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(step.parameters(), 0.01, momentum=0.9)
    if compiled:
        runtime.compile_step(step, device)
    generator = torch.Generator().manual_seed(1)
    losses = []
    for _ in range(steps):
        images = torch.randn(64, 3, 32, 32, generator=generator, dtype=torch.double).to(device)
        loss, _, _ = step(images, torch.arange(64, device=device) % 10)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
    return losses


def test_cuda_graphs_learn_as_eager_steps_do(short_resnet20):
    assert losses_of(6, compiled=True) == pytest.approx(losses_of(6, compiled=False), rel=1e-4)


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


def test_deterministic_runs_are_equal_to_the_bit(tmp_path, short_resnet20):
    flags = ["--dataset", "digits", "--device", "cuda", "--ires", "--recovery", "cirec", "--no-progress"]
    flags += ["--epochs", "2", "--batch-size", "64", "--lr", "0.05", "--deterministic", "--compile", "off"]
    for name in ("a", "b"):
        train.main([*flags, "--output-dir", str(tmp_path / name)])
    assert (tmp_path / "a" / "metrics.csv").read_text() == (tmp_path / "b" / "metrics.csv").read_text()
