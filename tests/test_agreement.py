"""Every way to compute the training step trains alike: eager, compiled, in bfloat16, and the plain reference."""

import pytest
import torch

from cifar import data
from models import build_model
from modules.restriction import IResLoss
from utils import bench
from utils.engine import Precision, evaluate
from utils.losses import cross_entropy

STEPS, BATCH = 200, 128


def trained(kind):
    """(losses of the first 5 steps, top-1 on the test digits) after 200 steps from the same start."""
    torch.manual_seed(0)
    train_set, test_set = data.load("digits")
    model = build_model("resnet20", recovery="cirec")
    plain = Precision(torch.device("cpu"), None)
    precision = Precision(torch.device("cpu"), torch.bfloat16) if kind == "bfloat16" else plain
    if kind == "reference":
        step = bench.ImageLoopIResLoss(bench.use_mask_chains(model), cross_entropy)
    else:
        step = IResLoss(model, cross_entropy).to(memory_format=torch.channels_last)
    if kind == "compiled":
        step.compile(fullgraph=True)
    optimizer = torch.optim.SGD(step.parameters(), 0.11, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    batches = bench.endless(data.Batches(train_set, BATCH, train=True))
    losses = []
    for _, (images, labels) in zip(range(STEPS), batches):
        with precision.autocast():
            loss, _, _ = step(images, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    tested = evaluate(model, data.Batches(test_set, 360), len(test_set), cross_entropy, plain, progress=False)
    print(f"{kind}: {losses[:5]}, {tested['top1']:.2f} %")
    return losses[:5], tested["top1"]


@pytest.mark.slow
def test_all_ways_to_train_agree():
    losses, top1 = {}, {}
    for kind in ("eager", "compiled", "reference", "bfloat16"):
        losses[kind], top1[kind] = trained(kind)
    assert losses["compiled"] == pytest.approx(losses["eager"], abs=1e-4)
    assert top1["eager"] > 90
    assert top1["compiled"] == pytest.approx(top1["eager"], abs=2)
    assert top1["reference"] == pytest.approx(top1["eager"], abs=2)
    assert top1["bfloat16"] == pytest.approx(top1["eager"], abs=3)
