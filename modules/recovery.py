"""Information recovery: shallow feature maps are fused with the last ones before the classifier.

Source: section IV-B (IRec) and IV-C (CIRec), equations (11) to (16). The heads are full precision.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn


def pool_to(maps, size):
    """Adaptive average pooling of (N, C, H, W) to (N, C, *size), equation (11).

    Where the sizes divide it is a plain average pooling: the same numbers, faster, and deterministic on a GPU.
    """
    (height, width), (h, w) = maps.shape[2:], size
    if (height, width) == (h, w):
        return maps
    if height % h == 0 and width % w == 0:
        return F.avg_pool2d(maps, (height // h, width // w))
    return F.adaptive_avg_pool2d(maps, size)


def _conv_norm_act(in_channels, out_channels, kernel_size, groups, act):
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), act(out_channels))


class CIRec(nn.Module):
    """Compact information recovery.

    The tapped maps, last of them A_l (N, C_n, h, w), are pooled to (h, w) and concatenated (11, 12). A 1x1 convolution
    gives m = ceil(C_n / ratio) channels (14), a grouped 3x3 convolution of those m * (ratio - 1) more (15); both
    together, cut to C_n channels (ratio need not divide C_n), are the fused features (N, C_n, h, w) (16).

    channels: those of each map, in order. groups: of the 3x3 convolution, a number or "depthwise" (= m).
    act: factory of the nonlinearity, given its channels. Raises ValueError if ratio or groups do not fit.
    """

    def __init__(self, channels, ratio, groups, act):
        super().__init__()
        self.out_channels = channels[-1]
        if not 1 <= ratio <= self.out_channels:
            raise ValueError(f"ratio must lie in [1, {self.out_channels}], not {ratio}")
        reduced = math.ceil(self.out_channels / ratio)
        self.channel = _conv_norm_act(sum(channels), reduced, 1, 1, act)
        self.spatial = None
        if ratio > 1:
            groups = reduced if groups == "depthwise" else groups
            if not isinstance(groups, int) or groups < 1 or reduced % groups:
                raise ValueError(f"groups must divide the {reduced} reduced channels; {groups} does not")
            self.spatial = _conv_norm_act(reduced, reduced * (ratio - 1), 3, groups, act)

    def forward(self, maps):
        size = maps[-1].shape[2:]
        fused = self.channel(torch.cat([pool_to(x, size) for x in maps], dim=1))
        if self.spatial is None:
            return fused
        return torch.cat([fused, self.spatial(fused)], dim=1)[:, : self.out_channels]


class IRec(CIRec):
    """Information recovery, equations (11) to (13): a 1x1 convolution back to C_n channels, BatchNorm, nonlinearity.

    It is CIRec with ratio 1.
    """

    def __init__(self, channels, act):
        super().__init__(channels, ratio=1, groups=1, act=act)
