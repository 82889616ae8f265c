"""Residual blocks, shortcuts, and the body that all networks share. Nothing here knows a method.

conv and act are factories: `conv(in_channels, out_channels, kernel_size, stride=, padding=)` makes the (binary)
convolution of a block, `act(channels)` its nonlinearity, `shortcut(in_channels, out_channels, stride)` the path around.
"""

from functools import partial

import torch.nn.functional as F
from torch import nn


class PadShortcut(nn.Module):
    """Halve the size and pad with zero channels on both sides. No parameters.

    average: whether pixels are averaged, as ReCU (Xu et al., ICCV 2021) has it, or every second is taken: option A of
    He et al., CVPR 2016.
    """

    def __init__(self, in_channels, out_channels, stride, average=False):
        super().__init__()
        self.stride = stride
        self.window = stride if average else 1
        self.extra = out_channels - in_channels

    def forward(self, x):
        before = self.extra // 2
        # With a window of 1 it is what a slice would take, but its gradient keeps the memory format. ceil_mode changes
        # nothing there, and ONNX Runtime would take one pixel too many.
        x = F.avg_pool2d(x, self.window, self.stride, ceil_mode=self.window > 1)
        return F.pad(x, (0, 0, 0, 0, before, self.extra - before))

    def extra_repr(self):
        return f"stride={self.stride}, window={self.window}"


_full_precision = partial(nn.Conv2d, bias=False)


def conv_shortcut(in_channels, out_channels, stride, conv=_full_precision):
    """Strided 1x1 convolution, of full precision unless `conv` says otherwise, and BatchNorm."""
    return nn.Sequential(conv(in_channels, out_channels, 1, stride=stride), nn.BatchNorm2d(out_channels))


def avgpool_shortcut(in_channels, out_channels, stride):
    """Average pooling, full-precision 1x1 convolution, BatchNorm: keeps what a strided convolution would skip."""
    conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)
    return nn.Sequential(nn.AvgPool2d(stride), conv, nn.BatchNorm2d(out_channels))


class BiRealBlock(nn.Module):
    """One convolution with a shortcut around it: act(bn(conv(x)) + shortcut(x)) (Bi-Real Net, Liu et al., 2018)."""

    CONVS = 1

    def __init__(self, in_channels, out_channels, stride, *, conv, act, shortcut):
        super().__init__()
        self.conv = conv(in_channels, out_channels, 3, stride=stride, padding=1)
        self.bn = nn.BatchNorm2d(out_channels)
        self.act = act(out_channels)
        changes_shape = stride != 1 or in_channels != out_channels
        self.shortcut = shortcut(in_channels, out_channels, stride) if changes_shape else nn.Identity()

    def forward(self, x):
        out = self.bn(self.conv(x))
        out += self.shortcut(x)
        return self.act(out)


class BasicBlock(nn.Module):
    """Two convolutions with a shortcut around both (He et al., CVPR 2016): the `normal` structure."""

    CONVS = 2

    def __init__(self, in_channels, out_channels, stride, *, conv, act, shortcut):
        super().__init__()
        self.conv1 = conv(in_channels, out_channels, 3, stride=stride, padding=1)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.act1 = act(out_channels)
        self.conv2 = conv(out_channels, out_channels, 3, stride=1, padding=1)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.act2 = act(out_channels)
        changes_shape = stride != 1 or in_channels != out_channels
        self.shortcut = shortcut(in_channels, out_channels, stride) if changes_shape else nn.Identity()

    def forward(self, x):
        out = self.act1(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += self.shortcut(x)
        return self.act2(out)


class Network(nn.Module):
    """A classifier in two halves, so that IRes can look between them.

    features(images) -> list of tapped maps, the last of which is A_l, the penultimate features (N, C, h, w);
    classify(maps) -> logits (N, classes). A subclass sets `recovery`: None, or a head of `modules.recovery`.
    """

    def fuse(self, maps):
        """The features that the classifier sees: A_l, or the recovery head's fusion of all maps."""
        return maps[-1] if self.recovery is None else self.recovery(maps)

    def features(self, images):
        raise NotImplementedError

    def classify(self, maps):
        raise NotImplementedError

    def forward(self, images):
        return self.classify(self.features(images))
