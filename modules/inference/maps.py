"""Maps as programs see them: where they lie in memory, and the windows that a pooling takes of them."""

from dataclasses import dataclass

import numpy as np

from modules.inference.layout import LANES, Field

BYTES = 4 * LANES
"""Of a block of channels of one pixel, and of the lines of a cache."""
REGION = 52
"""Before a program has memory its addresses are (number + 1 << REGION) + offset: of the memory, number 0, or of an
array that each call brings, from 1 on."""


def blocks_of(channels):
    """How many blocks hold so many channels."""
    return -(-channels // LANES)


def aligned(array):
    """The array where vectors do not lie across lines of the cache: itself, or a copy."""
    array = np.ascontiguousarray(array)
    if array.ctypes.data % BYTES == 0:
        return array
    memory = np.empty(array.nbytes + BYTES, np.uint8)
    copy = memory[-memory.ctypes.data % BYTES :][: array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def external(number):
    """The address of the array that each call brings under the number, from 1 on."""
    return (number + 1) << REGION


@dataclass
class Maps:
    """Maps (H, W, C), or bits of signs: the address of the first pixel, and steps in bytes. step: what made them."""

    address: int
    height: int
    width: int
    channels: int
    row: int
    pixel: int
    step: dict | None = None

    def part(self, channels, first):
        """The maps of so many channels from `first` on."""
        return Maps(self.address + 4 * first, self.height, self.width, channels, self.row, self.pixel)

    def fields(self, prefix):
        """Those of a step whose names start with the prefix."""
        names = (Field[prefix], Field[f"{prefix}_ROW"], Field[f"{prefix}_PIXEL"])
        return dict(zip(names, (self.address, self.row, self.pixel)))


def windows(size, outputs):
    """int64 (outputs, 2): the windows of an adaptive average pooling, first and past the last."""
    return np.array([(i * size // outputs, -(-(i + 1) * size // outputs)) for i in range(outputs)], np.int64)


def strided_windows(size, kernel, stride, padding=0, ceil=False):
    """int64 (outputs, 2): the windows of a pooling, without what hangs over the border; ceil: also an unfilled last."""
    span = size + 2 * padding - kernel
    outputs = (-(-span // stride) if ceil else span // stride) + 1
    starts = range(-padding, -padding + stride * outputs, stride)
    return np.array([(max(0, s), min(size, s + kernel)) for s in starts if s < size], np.int64)
