"""VGG-Small for 32x32 images (Zhang et al., LQ-Nets, ECCV 2018): six convolutions, one linear layer."""

import math

from torch import nn

from models.blocks import Network
from modules.conv import start_transforms
from modules.precision import no_autocast


class VGGSmall(Network):
    """Stem, five (binary) convolutions with three max-poolings, linear layer on the flattened 4x4 features.

    A pooling stands between convolution and BatchNorm. Taps: the stem and the last convolution's output.
    image_size: height and width of the input, a multiple of 8: the linear layer's size depends on it.
    Raises ValueError for another.
    """

    # (output channels, whether a max-pooling follows the convolution)
    LAYERS = ((128, True), (256, False), (256, True), (512, False), (512, True))

    def __init__(self, *, num_classes, conv, act, image_size=32, recovery=None):
        super().__init__()
        if image_size < 8 or image_size % 8:
            raise ValueError(f"VGG-Small needs images whose size is a multiple of 8, not {image_size}")
        channels = 128
        self.conv0 = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        self.bn0 = nn.BatchNorm2d(channels)
        self.act0 = act(channels)
        self.layers = nn.Sequential()
        for width, pool in self.LAYERS:
            layer = nn.Sequential(conv(channels, width, 3, stride=1, padding=1))
            if pool:
                layer.append(nn.MaxPool2d(2))
            layer.append(nn.BatchNorm2d(width)).append(act(width))
            self.layers.append(layer)
            channels = width
        self.recovery = recovery and recovery([128, channels])
        self.fc = nn.Linear(channels * (image_size // 8) ** 2, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.out_channels * math.prod(module.kernel_size)
                nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)
        start_transforms(self)

    def features(self, images):
        stem = self.act0(self.bn0(self.conv0(images)))
        return [stem, self.layers(stem)]

    def classify(self, maps):
        x = self.fuse(maps).flatten(1)
        with no_autocast(x.device):
            return self.fc(x.to(self.fc.weight.dtype))
