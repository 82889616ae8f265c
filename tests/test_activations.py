"""Activation functions: the same numbers as PyTorch's own, forward and backward."""

import pytest
import torch
from torch import nn

from modules.activations import PReLU, SelfDistributionShift


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_prelu_is_pytorchs_to_the_bit(dtype, layout):
    torch.manual_seed(0)
    ours, theirs = PReLU(16).to(dtype), nn.PReLU(16).to(dtype)
    with torch.no_grad():
        ours.weight.uniform_(-0.5, 1.5)
        theirs.weight.copy_(ours.weight)
    values = torch.randn(4, 16, 7, 5, dtype=dtype).to(memory_format=layout)
    values[0, :, 0, 0] = 0.0
    values[1, :, 0, 0] = -0.0
    grad = torch.randn_like(values)
    outcomes = []
    for act in (ours, theirs):
        x = values.clone().requires_grad_()
        y = act(x)
        y.backward(grad)
        outcomes.append((y.detach(), x.grad, act.weight.grad))
    for mine, other in zip(*outcomes):
        assert torch.equal(mine, other)
    assert ours.weight.grad.abs().min() > 0


def test_prelu_under_autocast_keeps_the_types_of_both():
    act = PReLU(8)
    x = torch.randn(2, 8, 3, 3, dtype=torch.bfloat16, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = act(x)
    y.sum().backward()
    assert (y.dtype, x.grad.dtype, act.weight.grad.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)


def test_a_self_distribution_shift_of_fewer_channels_than_its_reduction_is_refused():
    with pytest.raises(ValueError, match=r"reduction must lie in \[1, 8\], the number of channels, not 16"):
        SelfDistributionShift(8)
