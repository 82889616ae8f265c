"""Full precision around the binary convolutions at inference: after the stem's convolution, and 1x1 convolutions.

The stem's numbers are the training graph's to the bit, since signs are taken of them; the 1x1 convolution, which sums
in an order of its own, serves where no sign follows. CPU only, no gradients.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules.inference.runtime import Prepared, array_of, compiled, empty_like_last, empty_maps, kernels, thread_count
from modules.inference.xnor import FINISHES, finish_in_torch

BLOCK = 32
"""Output channels of a block of weights; `PointwiseConv2d` needs a multiple."""


def _tap_size(x, halvings):
    """(h, w) after a 3x3 max-pooling of stride 2 and `halvings` convolutions of stride 2, from x (N, C, H, W)."""
    return tuple(-(-size // 2 ** (halvings + 1)) for size in x.shape[2:])


def _stem_shapes(x, tap_size):
    images, channels, height, width = x.shape
    return (images, channels, *tap_size), (images, channels, (height + 1) // 2, (width + 1) // 2)


def _stem(x, table, activation, tap_size):
    """`stem_maps` by the compiled kernel; table is an array."""
    (tap, tap_array), (pooled, pooled_array) = map(empty_maps, _stem_shapes(x, tap_size))
    arrays = (array_of(x), table, FINISHES.index(activation), tap_array, pooled_array)
    kernels().stem(thread_count(), *arrays)
    return tap, pooled


@torch.library.custom_op("ir2net::stem", mutates_args=(), device_types="cpu")
def stem_maps(x: Tensor, finish: Tensor, activation: str, tap_size: list[int]) -> tuple[Tensor, Tensor]:
    """(tap, pooled) of y = activation(x * scale * alpha + beta), see `modules.inference.xnor.ROWS`, in one pass over x.

    x (N, C, H, W); pooled: 3x3 maxima of y, stride 2, padding 1; tap (N, C, *tap_size): averages of y. H and W divided
    by tap_size must be even numbers.
    """
    if kernels() is None:
        x = finish_in_torch(x, finish, None, activation)
        return F.avg_pool2d(x, [size // small for size, small in zip(x.shape[2:], tap_size)]), F.max_pool2d(x, 3, 2, 1)
    return _stem(x, finish.numpy(), activation, tap_size)


@stem_maps.register_fake
def _(x, finish, activation, tap_size):
    return tuple(empty_like_last(x, shape) for shape in _stem_shapes(x, tap_size))


class Stem(nn.Module):
    """BatchNorm, activation and max-pooling after the first convolution: (N, C, H, W) -> (tap, pooled).

    finish: a `Finish`. halvings: how often the network halves the maps that follow. The tap, which a recovery head
    averages down to the size of the last maps, has that size already, where the sizes allow it in one pass; else it
    is the whole map.
    """

    def __init__(self, finish, halvings):
        super().__init__()
        self.finish = finish
        self.halvings = halvings

    def forward(self, x):
        tap_size = _tap_size(x, self.halvings)
        if not self.finish.fused or any(size % (2 * small) for size, small in zip(x.shape[2:], tap_size)):
            x = self.finish(x)
            return x, F.max_pool2d(x, 3, 2, 1)
        if compiled():
            return _stem(x, self.finish.array, self.finish.activation, tap_size)
        return stem_maps(x, self.finish.table, self.finish.activation, list(tap_size))


def _pointwise_shape(x, weight):
    return x.shape[0], weight.shape[0] * BLOCK, *x.shape[2:]


def _pointwise(x, weight):
    """`pointwise_conv2d` by the compiled kernel; weight is an array."""
    if x.shape[1] != weight.shape[1]:
        raise ValueError(f"the convolution takes {weight.shape[1]} channels, not {x.shape[1]}")
    out, result = empty_maps(_pointwise_shape(x, weight))
    pixels = out.shape[0] * out.shape[2] * out.shape[3]
    kernels().dense(thread_count(), array_of(x).reshape(pixels, -1), weight, result.reshape(pixels, -1))
    return out


@torch.library.custom_op("ir2net::pointwise_conv2d", mutates_args=(), device_types="cpu")
def pointwise_conv2d(x: Tensor, weight: Tensor) -> Tensor:
    """1x1 convolution of x (N, C_in, H, W) with weight (C_out / 32, C_in, 32): (N, C_out, H, W), channels-last."""
    if kernels() is None:
        return F.conv2d(x, weight.transpose(1, 2).flatten(0, 1)[:, :, None, None])
    return _pointwise(x, weight.numpy())


@pointwise_conv2d.register_fake
def _(x, weight):
    return empty_like_last(x, _pointwise_shape(x, weight))


class PointwiseConv2d(Prepared):
    """The inference of a 1x1 nn.Conv2d without bias or stride, whose output channels are a multiple of 32."""

    ARRAYS = ("array",)

    def __init__(self, conv):
        super().__init__()
        self.register_buffer("weight", conv.weight.detach())
        self.register_buffer("blocks", None, persistent=False)
        self.prepare()

    def prepare(self):
        """Derive the kernel's weights from the file's."""
        self.blocks = self.weight.flatten(1).unflatten(0, (-1, BLOCK)).transpose(1, 2).contiguous()
        self.array = self.blocks.numpy()

    def forward(self, x):
        return _pointwise(x, self.array) if compiled() else pointwise_conv2d(x, self.blocks)
