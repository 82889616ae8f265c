"""What a method does to latent weights before their sign is taken, and the scale it gives the signs.

A weight transform maps latent weights (C_out, C_in, kH, kW) to (weights to binarize, scale). The scale is
(C_out, 1, 1, 1), or None where the method has none.
"""

import torch
from torch import nn


def _per_channel(w, statistic):
    """`statistic` of each output channel's weights, shaped (C_out, 1, 1, 1)."""
    return statistic(w.flatten(1)).view(-1, 1, 1, 1)


class ChannelScale(nn.Module):
    """Scale = mean |w| per output channel (XNOR-Net, Rastegari et al., ECCV 2016).

    detach: keep the scale out of the gradient, as ReActNet does.
    """

    def __init__(self, out_channels, detach=False):
        super().__init__()
        self.detach = detach

    def forward(self, w):
        scale = _per_channel(w, lambda v: v.abs().mean(1))
        return w, scale.detach() if self.detach else scale


class LibraPB(nn.Module):
    """Libra parameter binarization: per output channel w^ = (w - mean) / std, scale = 2^round(log2(mean |w^|)).

    std is the unbiased one; the scale, a power of two and thus a bit shift at inference, carries no gradient.

    Source: IR-Net, Qin et al., CVPR 2020, equations (6) to (8).
    """

    def __init__(self, out_channels):
        super().__init__()

    def forward(self, w):
        w = w - _per_channel(w, lambda v: v.mean(1))
        w = w / _per_channel(w, lambda v: v.std(1))
        scale = torch.exp2(_per_channel(w, lambda v: v.abs().mean(1)).log2().round())
        return w, scale.detach()


class SelfDistribution(nn.Module):
    """Shifts the weights' distribution before the sign: w + sigmoid(alpha) * 0.01 * mean(w) per output channel.

    alpha (C_out,) is learned and starts at 0; the mean carries no gradient. No scale.

    Source: SD-BNN, Xue et al., Applied Intelligence, 2022.
    """

    def __init__(self, out_channels):
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(out_channels))

    def forward(self, w):
        shift = torch.sigmoid(self.alpha).view(-1, 1, 1, 1) * 0.01
        return w + shift * _per_channel(w, lambda v: v.mean(1)).detach(), None
