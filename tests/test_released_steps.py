"""A training step computes what the authors' code computes, in float64.

data/released_steps.json: {case: {"layout", "lam", "mu", "ires_variant", "progress", "batch", "input_size", "losses",
"first_conv_gradient_norms", "masked_fraction"}}, what the released code gave over three steps of SGD (0.1, momentum
0.9, weight decay 1e-4) from the weights of `fill`; lists have an entry per step; lam is None without IRes, progress is
EDE's and None without it.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from test_released import fill, save

from modules.progress import set_progress
from modules.restriction import PlainLoss, ThriftyIResLoss
from utils.checkpoint import load_model
from utils.training.losses import cross_entropy

STEPS = json.loads((Path(__file__).parent / "data" / "released_steps.json").read_text())


def batch(case, step):
    """Images (N, 3, size, size), float64, and labels (N,) of a step."""
    generator = np.random.default_rng([7, step])
    images = generator.normal(0, 1, (case["batch"], 3, case["input_size"], case["input_size"]))
    return torch.from_numpy(images), torch.from_numpy(generator.integers(0, 10, case["batch"]))


@pytest.mark.parametrize("name", STEPS)
def test_three_steps_are_those_of_the_released_code(name, tmp_path):
    case = STEPS[name]
    model = load_model(save(tmp_path, fill(case["layout"])), 1, 1).train()
    if case["progress"] is not None:
        set_progress(model, case["progress"])
    if case["lam"] is None:
        step = PlainLoss(model, cross_entropy)
    else:
        step = ThriftyIResLoss(model, cross_entropy, case["lam"], case["mu"], case["ires_variant"])
    first = next(module for module in model.modules() if isinstance(module, torch.nn.Conv2d))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=1e-4)
    losses, norms, masked = [], [], []
    for number in range(len(case["losses"])):
        loss, _, metrics = step(*batch(case, number))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        norms.append(first.weight.grad.norm().item())
        masked.append(metrics.get("masked_fraction", torch.tensor(0.0)).item())
    assert losses == pytest.approx(case["losses"], rel=1e-9)
    assert norms == pytest.approx(case["first_conv_gradient_norms"], rel=1e-9)
    assert masked == pytest.approx(case["masked_fraction"] or [0.0] * 3, abs=1e-9)
