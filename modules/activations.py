"""Activation functions, and what a method does to activations before their sign is taken."""

import torch
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

    Source: SD-BNN, Xue et al., Applied Intelligence, 2022.
    """

    def __init__(self, channels, reduction=16):
        super().__init__()
        self.squeeze = nn.Linear(channels, channels // reduction, bias=False)
        self.excite = nn.Linear(channels // reduction, channels, bias=False)

    def forward(self, x):
        shift = self.excite(torch.relu(self.squeeze(x.mean((2, 3)))))
        return x + torch.sigmoid(shift)[:, :, None, None]


class RPReLU(nn.Sequential):
    """Learned shift, PReLU per channel, learned shift (ReActNet, Liu et al., ECCV 2020, equation 5)."""

    def __init__(self, channels):
        super().__init__(LearnedShift(channels), nn.PReLU(channels), LearnedShift(channels))


ACTIVATIONS = {
    # In place: the sign that follows saves the same tensor for its backward pass, so nothing is held twice.
    "hardtanh": lambda channels: nn.Hardtanh(inplace=True),
    "relu": lambda channels: nn.ReLU(inplace=True),
    "prelu": nn.PReLU,
    "rprelu": RPReLU,
}
"""Name -> function of the number of channels that makes the activation."""
