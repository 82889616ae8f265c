"""Residual networks for CIFAR and ImageNet, from one class; a variant is data."""

from functools import partial

import torch.nn.functional as F
from torch import nn

from models.blocks import BasicBlock, BiRealBlock, Network, PadShortcut, avgpool_shortcut, conv_shortcut
from modules.conv import start_transforms
from modules.precision import no_autocast

STRUCTURES = {"bireal": BiRealBlock, "normal": BasicBlock}
SHORTCUTS = {
    "pad": lambda conv: PadShortcut,
    "avgpool_pad": lambda conv: partial(PadShortcut, average=True),
    "conv": lambda conv: conv_shortcut,
    "binary": lambda conv: partial(conv_shortcut, conv=conv),
    "avgpool": lambda conv: avgpool_shortcut,
}
"""Name -> function of the factory of binary convolutions that makes the factory of shortcuts."""

# arch -> (channels of each stage, pairs of 3x3 convolutions in each stage)
CIFAR_STAGES = {"resnet20": ((16, 32, 64), (3, 3, 3)), "resnet18": ((64, 128, 256, 512), (2, 2, 2, 2))}
IMAGENET_STAGES = {
    "resnet18": ((64, 128, 256, 512), (2, 2, 2, 2)),
    "resnet34": ((64, 128, 256, 512), (3, 4, 6, 3)),
}

HEAD_GAIN = 1e-2
"""CIRec has BatchNorms in a row, each of which divides features as small as 1e-8 by its epsilon's root: the first
gradients are millions. From here on they are as large as those of 1e-8 without a head."""


class ResNet(Network):
    """Stem, stages, average pooling, BatchNorm1d, linear layer.

    widths, pairs: channels, and pairs of convolutions, of each stage; all stages but the first halve the size.
    large_input: the 7x7 stem with stride 2 and a max-pooling, for 224x224; else a 3x3 stem.
    stem_act, feature_norm, feature_relu: whether the stem ends in an activation, whether BatchNorm1d stands before the
    linear layer, and a ReLU between the two. log_softmax: whether the logits are normalised to log-probabilities, which
    changes neither predictions nor a softmax loss. norm_gain: what the gains of BatchNorm2d start at; under a head at
    HEAD_GAIN or more. kaiming: whether weights start as He et al.'s, ICCV 2015, or as PyTorch's own. recovery: factory
    of the head, given all taps' channels, or None.
    Taps: the stem (before its max-pooling) and the output of every stage.
    """

    def __init__(
        self,
        widths,
        pairs,
        *,
        num_classes,
        conv,
        act,
        structure,
        shortcut,
        large_input,
        stem_act,
        feature_norm,
        feature_relu,
        log_softmax,
        norm_gain,
        kaiming,
        recovery=None,
    ):
        super().__init__()
        kernel_size, stride = (7, 2) if large_input else (3, 1)
        self.conv1 = nn.Conv2d(3, widths[0], kernel_size, stride=stride, padding=kernel_size // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.act1 = act(widths[0]) if stem_act else nn.Identity()
        self.pool = nn.MaxPool2d(3, stride=2, padding=1) if large_input else nn.Identity()
        block, shortcut = STRUCTURES[structure], SHORTCUTS[shortcut](conv)
        self.stages = nn.ModuleList()
        channels = widths[0]
        for width, pair in zip(widths, pairs):
            stage = nn.Sequential()
            for i in range(pair * 2 // block.CONVS):
                stride = 2 if i == 0 and self.stages else 1
                stage.append(block(channels, width, stride, conv=conv, act=act, shortcut=shortcut))
                channels = width
            self.stages.append(stage)
        self._start_gains(max(norm_gain, HEAD_GAIN) if recovery else norm_gain)
        self.recovery = recovery and recovery([widths[0], *widths])
        self.feature_norm = nn.BatchNorm1d(channels) if feature_norm else nn.Identity()
        self.feature_act = nn.ReLU() if feature_relu else nn.Identity()
        self.fc = nn.Linear(channels, num_classes)
        self.normalise = nn.LogSoftmax(1) if log_softmax else nn.Identity()
        for module in self.modules():
            if kaiming and isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight)
        start_transforms(self)

    def _start_gains(self, gain):
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.constant_(module.weight, gain)

    def features(self, images):
        x = self.act1(self.bn1(self.conv1(images)))
        maps = [x]
        x = self.pool(x)
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps

    def classify(self, maps):
        x = self.fuse(maps)
        x = F.avg_pool2d(x, x.shape[2:]).flatten(1)
        with no_autocast(x.device):
            return self.normalise(self.fc(self.feature_act(self.feature_norm(x.to(self.fc.weight.dtype)))))
