"""Every way to compute the training step trains alike: eager, compiled, in bfloat16, and the plain reference."""

import pytest
import torch

from cifar import data
from models import build_model
from modules.restriction import ThriftyIResLoss
from utils.bench.loading import endless
from utils.bench.reference import ImageLoopIResLoss, use_mask_chains
from utils.training.losses import cross_entropy
from utils.training.metrics import evaluate
from utils.training.runtime import Precision

STEPS, BATCH = 200, 128


def trained(kind):
    """Top-1 in % over all digits after 200 steps from the same start; 360 test digits alone would tell less."""
    torch.manual_seed(0)
    train_set, test_set = data.load("digits")
    model = build_model("resnet20", recovery="cirec")
    plain = Precision(torch.device("cpu"), None)
    precision = Precision(torch.device("cpu"), torch.bfloat16) if kind == "bfloat16" else plain
    if kind == "reference":
        step = ImageLoopIResLoss(use_mask_chains(model), cross_entropy)
    else:
        step = ThriftyIResLoss(model, cross_entropy).to(memory_format=torch.channels_last)
    if kind == "compiled":
        step.compile(fullgraph=True, dynamic=False)
    optimizer = torch.optim.SGD(step.parameters(), 0.11, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    batches = endless(data.Batches(train_set, BATCH, train=True))
    for _, (images, labels) in zip(range(STEPS), batches):
        with precision.autocast():
            loss, _, _ = step(images, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    right = 0
    for images in (train_set, test_set):
        tested = evaluate(model, data.Batches(images, 500), len(images), cross_entropy, plain, progress=False)
        right += tested["top1"] * len(images)
    top1 = right / (len(train_set) + len(test_set))
    print(f"{kind}: {top1:.2f} %")
    return top1


@pytest.mark.slow
def test_all_ways_to_train_agree():
    top1 = {kind: trained(kind) for kind in ("eager", "compiled", "reference", "bfloat16")}
    assert top1["eager"] > 85
    assert top1["compiled"] == pytest.approx(top1["eager"], abs=2)
    assert top1["reference"] == pytest.approx(top1["eager"], abs=2)
    assert top1["bfloat16"] == pytest.approx(top1["eager"], abs=3)


@pytest.mark.slow
def test_the_compiled_step_computes_the_eager_losses():
    """In float64: in float32 the two round apart by 1e-7, which flips some signs, and a sign flips many after it."""
    losses = {}
    for compiled in (False, True):
        torch.manual_seed(0)
        step = ThriftyIResLoss(build_model("resnet20", recovery="cirec"), cross_entropy, lam=1.0).double()
        step.to(memory_format=torch.channels_last)
        if compiled:
            step.compile(fullgraph=True, dynamic=False)
        optimizer = torch.optim.SGD(step.parameters(), 0.11, momentum=0.9, weight_decay=1e-4)
        generator = torch.Generator().manual_seed(1)
        losses[compiled] = []
        for _ in range(5):
            images = torch.randn(16, 3, 32, 32, generator=generator, dtype=torch.float64)
            loss, _, _ = step(images, torch.arange(16) % 10)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[compiled].append(loss.item())
    assert losses[True] == pytest.approx(losses[False], abs=1e-4)
