"""Activation functions, and what a method does to activations before their sign is taken."""

import torch
import torch.nn.functional as F
from torch import nn


class LearnedShift(nn.Module):
    """x + bias, one learned bias per channel, for x (N, C, H, W). Before a sign it is ReActNet's RSign.

    Source: ReActNet, Liu et al., ECCV 2020, equation (4).
    """

    def __init__(self, channels):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x):
        return x + self.bias


class SelfDistributionShift(nn.Module):
    """x + SE(x), for x (N, C, H, W): a shift per image and channel.

    SE: global average pooling -> linear C to C / reduction -> ReLU -> linear back to C -> sigmoid, no biases.
    Raises ValueError if no channel is left between the two.

    Source: SD-BNN, Xue et al., Applied Intelligence, 2022.
    """

    def __init__(self, channels, reduction=16):
        super().__init__()
        if not 1 <= reduction <= channels:
            raise ValueError(f"reduction must lie in [1, {channels}], the number of channels, not {reduction}")
        self.squeeze = nn.Linear(channels, channels // reduction, bias=False)
        self.excite = nn.Linear(channels // reduction, channels, bias=False)

    def forward(self, x):
        shift = self.excite(torch.relu(self.squeeze(x.mean((2, 3)))))
        return x + torch.sigmoid(shift)[:, :, None, None]


class ImageStandardization(nn.Module):
    """(x - mean) / std over (C, H, W) of each image of x (N, C, H, W), with the unbiased std; in evaluation too.

    Source: RBNN, Lin et al., NeurIPS 2020.
    """

    def __init__(self, channels):
        super().__init__()

    def forward(self, x):
        x = x - x.mean((1, 2, 3), keepdim=True)
        return x / x.std((1, 2, 3), keepdim=True)


class ImageScale(nn.Module):
    """x / sqrt(variance + 1e-5) over (C, H, W) of each image of x (N, C, H, W), in training; x in evaluation.

    The sign that follows is the same with and without it: it keeps the gradient's window at the activations' width.

    Source: ReCU, Xu et al., ICCV 2021.
    """

    def __init__(self, channels):
        super().__init__()

    def forward(self, x):
        return x / (x.var((1, 2, 3), keepdim=True) + 1e-5).sqrt() if self.training else x


class ShiftedImageScale(nn.Sequential):
    """A learned shift, then `ImageScale`: ReCU's convolution in ReActNet's network."""

    def __init__(self, channels):
        super().__init__(LearnedShift(channels), ImageScale(channels))


class Maxout(nn.Module):
    """pos * relu(x) - neg * relu(-x), learned per channel; they start at 1 and 0.25, and may become negative.

    Source: AdaBin, Tu et al., ECCV 2022.
    """

    def __init__(self, channels):
        super().__init__()
        self.pos = nn.Parameter(torch.ones(channels))
        self.neg = nn.Parameter(torch.full((channels,), 0.25))

    def forward(self, x):
        pos, neg = (slope.view(-1, 1, 1) for slope in (self.pos, self.neg))
        return pos * torch.relu(x) - neg * torch.relu(-x)


class _PReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, slope):
        ctx.save_for_backward(x, slope)
        return F.prelu(x, slope)

    @staticmethod
    def backward(ctx, grad):
        x, slope = (saved.to(grad.dtype) for saved in ctx.saved_tensors)
        above = torch.ops.aten.threshold_backward(grad, x, 0)  # the gradient where x > 0, else 0
        below = grad - above
        return torch.addcmul(above, below, slope.view(-1, 1, 1)), (below * x).sum((0, 2, 3))


class PReLU(nn.PReLU):
    """nn.PReLU of x (N, C, H, W), one learned slope per channel; faster backward than PyTorch's on a CPU."""

    def forward(self, x):
        return _PReLU.apply(x, self.weight.to(x.dtype)) if x.is_cpu else super().forward(x)


class RPReLU(nn.Sequential):
    """Learned shift, PReLU per channel, learned shift (ReActNet, Liu et al., ECCV 2020, equation 5)."""

    def __init__(self, channels):
        super().__init__(LearnedShift(channels), PReLU(channels), LearnedShift(channels))


ACTIVATIONS = {
    # In place: the sign that follows saves the same tensor for its backward pass, so nothing is held twice.
    "hardtanh": lambda channels: nn.Hardtanh(inplace=True),
    "relu": lambda channels: nn.ReLU(inplace=True),
    "prelu": PReLU,
    "rprelu": RPReLU,
    "maxout": Maxout,
}
"""Name -> function of the number of channels that makes the activation."""
