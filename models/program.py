"""A packed network as one program for the compiled kernels: no Python between its layers."""

import itertools

import numpy as np
import torch
from torch import nn

from models.blocks import PadShortcut
from modules.activations import LearnedShift
from modules.inference.layout import LANES, Finish, Kind
from modules.inference.maps import blocks_of, external, strided_windows, windows
from modules.inference.program import Instance, Program, neutral
from modules.inference.runtime import FLOATS, kernels, maps_at, readable
from modules.inference.threads import execute, for_each, run_steps
from modules.inference.xnor import XnorConv2d

_LONGEST_CHAIN = 192
"""Input channels that oneDNN adds up in one chain of a 1x1 convolution; its sums of more are sums of such chains. Sums
in another order would be as right, and turn a sign on some image in a hundred."""


class NotLowered(Exception):
    """The network has a part that no step computes."""


def _chains(channels):
    """[(first, past the last)] of the input channels whose products a 1x1 convolution adds up in one chain."""
    count = -(-channels // _LONGEST_CHAIN)
    size = -(-channels // count // 64) * 64 if count > 1 else channels
    return [(first, min(first + size, channels)) for first in range(0, channels, size)]


def _lanes(weight):
    """float32 (blocks, taps, LANES) of weights (taps, C_out)."""
    taps, channels = weight.shape
    wide = np.zeros((taps, blocks_of(channels) * LANES), np.float32)
    wide[:, :channels] = weight
    return np.ascontiguousarray(wide.reshape(taps, -1, LANES).transpose(1, 0, 2))


def _bf16_pairs(weight):
    """uint32 (blocks, pairs, LANES) of weights (2 * pairs, C_out): two numbers in bfloat16 each, the first one low."""
    bits = torch.from_numpy(np.ascontiguousarray(weight)).bfloat16().view(torch.int16).numpy().view(np.uint16)
    lanes = _lanes(bits.astype(np.float32)).astype(np.uint32)  # whole numbers below 2 ** 16 stay what they are
    return np.ascontiguousarray(lanes[:, 0::2] | lanes[:, 1::2] << 16)


class _Lowering:
    """Adds a packed network's modules to a program, one method per kind of module."""

    def __init__(self, model, height, width, fast):
        self.model, self.fast = model, fast
        self.program = Program()
        self.size = height, width

    def stem(self, conv, finish, large):
        """The maps after the first convolution."""
        kernel, padding, stride = conv.kernel_size[0], conv.padding[0], conv.stride[0]
        size = [(side + 2 * padding - kernel) // stride + 1 for side in self.size]
        if conv.in_channels != 3 or min(size) < 1:
            raise NotLowered
        finish = finish.table.numpy()
        self.program.part = "stem"
        image, plane = self.program.image(*self.size, padding, half=self.fast)
        weight = conv.weight.numpy()
        if self.fast:
            return self._stem_bf16(image, weight, size, finish, stride)
        place = np.arange(3) * plane, np.arange(kernel) * image.row, np.arange(kernel) * image.pixel
        order = (1, 2, 0) if large else (0, 1, 2)  # in which oneDNN adds up: channels last, or first
        offsets = place[0][:, None, None] + place[1][:, None] + place[2]
        taps = weight.transpose(1, 2, 3, 0).transpose(*order, 3).reshape(-1, len(weight))
        offsets = np.ascontiguousarray(offsets.transpose(order)).reshape(-1)
        return self.program.dense(image, (offsets, _lanes(taps)), size, finish, stride=stride)

    def _stem_bf16(self, image, weight, size, finish, stride):
        channels, _, kernel, _ = weight.shape
        rows = weight.transpose(2, 3, 1, 0).reshape(kernel, 3 * kernel, channels)
        rows = np.pad(rows, ((0, 0), (0, 3 * kernel % 2), (0, 0)))  # the last pair of a row may be half a one
        offsets = np.arange(kernel)[:, None] * image.row + 4 * np.arange(rows.shape[1] // 2)
        taps = offsets.reshape(-1), _bf16_pairs(rows.reshape(-1, channels))
        return self.program.dense(image, taps, size, finish, stride=stride, kind=Kind.BF16)

    def pointwise(self, source, conv, table, out=None, chains=None):
        """A 1x1 convolution without bias, of full precision, and what follows it.

        chains: parts of the input channels that are added up apart, if nothing follows.
        """
        if conv.kernel_size != (1, 1) or conv.groups != 1 or conv.bias is not None:
            raise NotLowered
        size = [-(-side // conv.stride[0]) for side in (source.height, source.width)]
        weight, done, stride = conv.weight.flatten(1).T.numpy(), None, conv.stride[0]
        if self.fast:
            pairs = _bf16_pairs(np.pad(weight, ((0, conv.in_channels % 2), (0, 0))))
            source, taps = self.program.round(source), (4 * np.arange(pairs.shape[1]), pairs)
            return self.program.dense(source, taps, size, table, stride=stride, out=out, kind=Kind.BF16)
        for first, last in chains or [(0, conv.in_channels)]:
            part, taps = source.part(last - first, first), (4 * np.arange(last - first), _lanes(weight[first:last]))
            done = self.program.dense(part, taps, size, table, stride=stride, residual=done, out=out or done)
        return done

    def shortcut(self, module, x, channels):
        """The residual that a shortcut makes of x."""
        if isinstance(module, nn.Identity):
            return x
        if isinstance(module, PadShortcut):
            sizes = [strided_windows(side, module.window, module.stride, ceil=True) for side in (x.height, x.width)]
            out = self.program.maps(len(sizes[0]), len(sizes[1]), channels)
            self.program.pool(x, *sizes, out=out.part(x.channels, module.extra // 2))
            return out
        if not isinstance(module, nn.Sequential):
            return self.block(module, x)
        *pools, conv = module
        for pool in pools:
            if not isinstance(pool, nn.AvgPool2d):
                raise NotLowered
            sides = (strided_windows(side, pool.kernel_size, pool.stride) for side in (x.height, x.width))
            x = self.program.pool(x, *sides)
        return self.pointwise(x, conv, neutral(conv.out_channels), chains=_chains(conv.in_channels))

    def signs(self, x, conv):
        """What a binary convolution reads of x."""
        if type(conv) is not XnorConv2d or not isinstance(conv.input_transform, LearnedShift | None):
            raise NotLowered
        shift = None if conv.input_transform is None else conv.input_transform.bias.flatten().numpy()
        return self.program.signs(x, conv, shift)

    def block(self, block, x):
        """A PackedBlock, or a PackedBasicBlock, whose first convolution's maps are needed for their signs alone."""
        first = getattr(block, "first", None)
        inner = x if first is None else self.block(first, x)
        self.program.part = "binary convolutions"
        bits = self.signs(inner, block.conv)
        if first is not None:
            self.program.forget(inner)
        channels, count = block.finish.table.shape[1], len(self.program.steps)
        changes = not isinstance(block.shortcut, nn.Identity | None)
        self.program.part = "binary convolutions with full-precision shortcuts" if changes else self.program.part
        residual = None if block.shortcut is None else self.shortcut(block.shortcut, x, channels)
        out = None if isinstance(block.shortcut, PadShortcut) else residual  # in its place; the padding stays zero
        x = self.program.count(bits, block.conv, block.finish.table.numpy(), residual, out)
        self.program.chain(len(self.program.steps) - count)
        return x

    def layer(self, layer, x):
        """A layer of VGG-Small."""
        if not isinstance(layer, nn.Sequential):
            return self.block(layer, x)
        conv, pool, finish = layer
        self.program.part = "binary convolutions"
        scaled = getattr(conv, "finish", None)  # a learned scale stands before the pooling
        conv = conv if scaled is None else conv.conv
        bits = self.signs(x, conv)
        sums = self.program.count(bits, conv, neutral(len(conv.bits)) if scaled is None else scaled.table.numpy())
        sizes = [strided_windows(side, pool.kernel_size, pool.stride) for side in (sums.height, sums.width)]
        pooled = self.program.pool(sums, *sizes, maximum=True)
        return self.program.copy(pooled, finish.table.numpy(), out=pooled)

    def head(self, head, maps):
        """The recovery head's fusion (h, w, C) of the pooled maps (h, w, sum of all channels)."""
        conv, finish = head.channel
        table, reduced = finish.table.numpy(), conv.out_channels
        if head.spatial is None:
            return self.pointwise(maps, conv, table)
        inner = self.program.maps(maps.height, maps.width, reduced, border=1)
        self.pointwise(maps, conv, table, out=inner)
        spatial, finish = head.spatial
        both = self.program.maps(maps.height, maps.width, blocks_of(reduced) * LANES + spatial.out_channels + LANES)
        self.program.copy(inner, neutral(reduced), out=both.part(reduced, 0))
        size = maps.height, maps.width
        out = both.part(spatial.out_channels, reduced)
        self.program.dense(inner, self._grouped(inner, spatial), size, finish.table.numpy(), out=out)
        return both.part(head.out_channels, 0)

    def _grouped(self, source, conv):
        """(offsets (blocks, taps), weights) of a grouped 3x3 convolution: a block's taps are its groups' channels."""
        outputs, per_group = conv.out_channels // conv.groups, conv.in_channels // conv.groups
        weight, blocks = conv.weight.numpy(), []
        for start in range(0, conv.out_channels, LANES):
            rows = np.arange(start, min(start + LANES, conv.out_channels))
            groups = rows // outputs
            channels = np.arange(groups[0] * per_group, (groups[-1] + 1) * per_group)
            dense = np.zeros((len(channels), 3, 3, LANES), np.float32)
            for lane, (row, group) in enumerate(zip(rows, groups)):
                at = (group - groups[0]) * per_group
                dense[at : at + per_group, :, :, lane] = weight[row]
            at = np.arange(3) - 1
            places = channels[:, None, None] * 4 + at[:, None] * source.row + at * source.pixel
            blocks.append((places.reshape(-1), dense.reshape(-1, LANES)))
        taps = max(len(places) for places, _ in blocks)
        offsets = np.zeros((len(blocks), taps), np.int64)
        weights = np.zeros((len(blocks), taps, LANES), np.float32)
        for i, (places, dense) in enumerate(blocks):
            offsets[i, : len(places)], weights[i, : len(places)] = places, dense
        return offsets, weights

    def linear(self, x, fc):
        """The logits, external array 1, of maps x, which fc sees as (C, H, W)."""
        places = np.arange(x.channels)[:, None, None] * 4 + np.arange(x.height)[:, None] * x.row
        offsets = (places + np.arange(x.width) * x.pixel).reshape(-1)
        if len(offsets) != fc.in_features:
            raise ValueError(f"the classifier takes {fc.in_features} features, not {len(offsets)}")
        table = neutral(fc.out_features)
        table[Finish.BETA] = fc.bias.numpy()
        out = maps_at(external(1), (1, 1, fc.out_features))
        self.program.dense(x, (offsets, _lanes(fc.weight.T.numpy())), (1, 1), table, out=out)

    def taps(self, channels, size):
        """Start the maps (h, w, all channels) into which the tapped ones are averaged, if there is a head."""
        if any(count % LANES for count in channels):
            raise NotLowered
        self.places = iter(itertools.accumulate(channels, initial=0))
        self.pooled = self.program.maps(*size, sum(channels)) if self.model.recovery is not None else None

    def tap(self, maps):
        """Average tapped maps, the next ones in order."""
        place = next(self.places)
        self.program.part = "recovery head"
        if self.pooled is not None:
            size = self.pooled.height, self.pooled.width
            sides = zip((maps.height, maps.width), size)
            self.program.pool(maps, *(windows(*side) for side in sides), out=self.pooled.part(maps.channels, place))

    def pooled_stem(self, maps):
        """The maps after the max-pooling of a large stem; its tap is averaged."""
        height, width = maps.height, maps.width
        tapped = self.pooled
        if height % 2 == 0 and width % 2 == 0 and (tapped is None or height // 2 % tapped.height == 0):
            columns = np.zeros((0, 2), np.int64) if tapped is None else windows(width, tapped.width)
            pooled, averages = self.program.stem(maps, columns)
            self.tap(averages)
            return pooled
        self.tap(maps)
        self.program.part = "stem"
        return self.program.pool(maps, *(strided_windows(side, 3, 2, 1) for side in (height, width)), maximum=True)

    def fuse(self, last):
        return last if self.pooled is None else self.head(self.model.recovery, self.pooled)

    def resnet(self):
        """All of a ResNet."""
        model, large = self.model, hasattr(self.model, "stem")
        x = self.stem(model.conv1, model.stem.finish if large else model.bn1, large)
        halvings = len(model.stages) - 1 + large
        channels = [x.channels, *(stage[-1].finish.table.shape[1] for stage in model.stages)]
        self.taps(channels, [-(-side // 2**halvings) for side in (x.height, x.width)])
        if large:
            x = self.pooled_stem(x)
        else:
            self.tap(x)
        for stage in model.stages:
            for block in stage:
                x = self.block(block, x)
            self.tap(x)
        x = self.fuse(x)
        self.program.part = "classifier"
        features = self.program.pool(x, windows(x.height, 1), windows(x.width, 1))
        table = neutral(x.channels)
        if not isinstance(model.feature_norm, nn.Identity):
            table[Finish.BETA], table[Finish.ALPHA] = (row.numpy() for row in model.feature_norm.rows.flip(0))
        if isinstance(model.feature_act, nn.ReLU):
            table[Finish.NEGATIVE] = 0
        self.linear(self.program.copy(features, table, out=features), model.fc)

    def vgg(self):
        """All of VGG-Small."""
        model = self.model
        x = self.stem(model.conv0, model.bn0, False)
        self.taps([x.channels, 512], [side // 8 for side in self.size])
        self.tap(x)
        for layer in model.layers:
            x = self.layer(layer, x)
        self.tap(x)
        x = self.fuse(x)
        self.program.part = "classifier"
        self.linear(x, model.fc)


def _where(image):
    """Address, and steps in bytes, of an image (3, H, W)."""
    return image.data_ptr(), *(image.element_size() * step for step in image.stride())


def readable_images(images):
    """`readable` of images. Raises ValueError, too, unless they are (N, 3, H, W)."""
    if images.dim() != 4 or images.shape[1] != 3:
        raise ValueError(f"images have 3 channels: (N, 3, H, W), not {tuple(images.shape)}")
    return readable(images)


class NetworkProgram:
    """A network's program, and its memory: images float32 (N, 3, H, W) -> logits (N, classes), by torch's threads."""

    def __init__(self, program, model):
        self.program, self.classes = program, model.fc.out_features
        self.normalise = getattr(model, "normalise", nn.Identity())

    def _execute(self, image, logits, threads):
        """One image (3, H, W), whose logits go to the address `logits`."""
        instance = self.program.instance()
        instance.bind(logits)
        execute(kernels(), instance, threads, _where(image))
        self.program.idle.append(instance)

    def parts(self, image):
        """{part: a function that does its work for the image (3, H, W), after a first call of the network}."""
        instance, logits = Instance(self.program), torch.empty(blocks_of(self.classes) * LANES, **FLOATS)
        instance.bind(logits.data_ptr())
        execute(kernels(), instance, 1, _where(image))

        def function(ranges):
            def work():
                for steps in ranges:
                    run_steps(kernels(), instance, instance.own, None, steps=steps)
                return logits

            return work

        return {part: function(ranges) for part, ranges in self.program.parts().items()}

    def __call__(self, images):
        threads, count = torch.get_num_threads(), len(images)
        logits = torch.empty(count, blocks_of(self.classes) * LANES, **FLOATS)
        if count == 1:
            self._execute(images[0], logits.data_ptr(), threads)
        else:
            for_each(lambda i: self._execute(images[i], logits[i].data_ptr(), 1), count, threads)
        return self.normalise(logits[:, : self.classes].contiguous())


@torch.no_grad()
def lower(model, height, width, fast=False):
    """The NetworkProgram of a packed network for images of one size, or None if it has a part that no step computes.

    fast: the first and the 1x1 convolutions in bfloat16. Raises ValueError if the network takes no images of that size.
    """
    lowering = _Lowering(model, height, width, fast)
    try:
        lowering.resnet() if hasattr(model, "stages") else lowering.vgg()
    except NotLowered:
        return None
    return NetworkProgram(lowering.program, model)
