"""Optimizers that take all weights in one pass."""

import copy
from argparse import Namespace

import pytest
import torch

from imagenet import train
from models import build_model
from utils.training.resume import check_optimizer


def flags(optimizer):
    return Namespace(optimizer=optimizer, lr=1e-3, momentum=0.9, weight_decay=1e-2, decay="all")


def in_many_passes(optimizer, model):
    if optimizer == "adam":
        return torch.optim.Adam(model.parameters(), 1e-3, weight_decay=1e-2, foreach=False)
    return torch.optim.SGD(model.parameters(), 1e-3, 0.9, weight_decay=1e-2, nesterov=True, foreach=False)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_the_weights_are_those_of_many_passes(optimizer):
    """Of channels_last weights too, whose gradients must lie in memory as they do."""
    torch.manual_seed(0)
    ours = build_model("resnet18", dataset="imagenet", variant="c", num_classes=4).to(memory_format=torch.channels_last)
    theirs = copy.deepcopy(ours)
    fused, single = train.build_optimizer(flags(optimizer), ours), in_many_passes(optimizer, theirs)
    for _ in range(2):
        images = torch.randn(2, 3, 64, 64).to(memory_format=torch.channels_last)
        torch.nn.functional.cross_entropy(ours(images), torch.arange(2)).backward()
        for p, q in zip(ours.parameters(), theirs.parameters()):
            q.grad = p.grad.clone()
        fused.step()
        single.step()
        fused.zero_grad()
    for p, q in zip(ours.parameters(), theirs.parameters()):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-6)


def test_a_run_that_began_in_many_passes_goes_on_so():
    model = torch.nn.Linear(3, 3)
    began = train.build_optimizer(flags("adam"), model)
    stored = began.state_dict()
    stored["param_groups"][0]["fused"] = None
    optimizer = train.build_optimizer(flags("adam"), model)
    check_optimizer(optimizer, stored)
    optimizer.load_state_dict(stored)
    assert optimizer.param_groups[0]["fused"] is None
    stored["param_groups"][0]["fused"] = "damaged"
    with pytest.raises(ValueError, match="fused"):
        check_optimizer(optimizer, stored)
