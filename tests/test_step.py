"""The ImageNet step: what makes it fast on a CPU changes no bit of its gradients, or their rounding alone."""

import resource

import pytest
import torch
from torch import nn

from models import build_model
from modules.activations import PReLU
from modules.binarize import BiRealSTE, ClipSTE
from modules.restriction import IResLoss, ThriftyIResLoss
from utils.training.losses import cross_entropy
from utils.training.runtime import choose_device


class _Textbook(torch.autograd.Function):
    """sign as equation (3) has it, with a gradient of x's own choosing: slope(x) times the incoming one."""

    @staticmethod
    def forward(ctx, x, slope):
        ctx.save_for_backward(slope(x))
        return torch.where(x >= 0, 1.0, -1.0).to(x.dtype)

    @staticmethod
    def backward(ctx, grad):
        return ctx.saved_tensors[0] * grad, None


class TextbookSTE(nn.Module):
    def __init__(self, slope):
        super().__init__()
        self.slope = slope

    def forward(self, x):
        return _Textbook.apply(x, self.slope)


TEXTBOOK = {
    ClipSTE: lambda module: TextbookSTE(lambda x: (x.abs() <= 1).to(x.dtype)),
    BiRealSTE: lambda module: TextbookSTE(lambda x: (2 - 2 * x.abs()) * (x.abs() <= 1)),
    PReLU: lambda module: nn.PReLU(len(module.weight)),
}


# At 0.15 nothing is masked: one pass stands for two, whose halves are added up in another order.
@pytest.mark.parametrize(("lam", "tolerance"), [(0.15, 1e-5), (0.9, 0)])
def test_gradients_are_those_of_the_textbook_to_the_bit(lam, tolerance, monkeypatch):
    monkeypatch.setattr("modules.conv._MOST_ROWS", 0)  # a product of matrices adds up in an order of its own
    torch.manual_seed(0)
    ours, textbook = (build_model("resnet18", dataset="imagenet", variant="c", num_classes=4) for _ in range(2))
    with torch.no_grad():  # some latent weights beyond 1, and at it
        ours.stages[0][0].conv.weight.view(-1)[:4].copy_(torch.tensor([1.0, -1.0, 1.5, -0.0]))
    for module in list(textbook.modules()):
        for name, child in module.named_children():
            if type(child) in TEXTBOOK:
                setattr(module, name, TEXTBOOK[type(child)](child))
    textbook.load_state_dict(ours.state_dict())
    images, labels = torch.randn(4, 3, 64, 64), torch.arange(4)
    losses = []
    for step in (ThriftyIResLoss(ours, cross_entropy, lam), IResLoss(textbook, cross_entropy, lam)):
        step.to(memory_format=torch.channels_last).train()
        loss, _, metrics = step(images.to(memory_format=torch.channels_last), labels)
        loss.backward()
        losses.append(loss.detach())
    assert torch.equal(*losses)
    assert bool(metrics["masked_fraction"] > 0) == (lam == 0.9)
    for (name, mine), other in zip(ours.named_parameters(), textbook.parameters()):
        torch.testing.assert_close(mine.grad, other.grad, rtol=tolerance, atol=0, msg=name)


def test_freed_memory_is_kept_on_a_cpu():
    choose_device("cpu")
    for _ in range(10):  # a new heap takes up to six of them to have a place that fits
        torch.ones(2**23)  # 32 MiB
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(2**23)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 8192  # pages of one, not of all
