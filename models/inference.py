"""A trained network turned into one for inference: binary convolutions by XOR and popcount, BatchNorms folded."""

import copy
import functools

import torch
import torch.nn.functional as F
from torch import nn

from models import NoRandomNumbers, build_model
from models.blocks import BasicBlock, BiRealBlock
from models.program import lower, readable_images
from models.resnet import ResNet
from models.vgg import VGGSmall
from modules.activations import ImageScale, ImageStandardization, LearnedShift, SelfDistributionShift, ShiftedImageScale
from modules.binarize import AdaptiveSign
from modules.conv import BinaryConv2d
from modules.inference import native
from modules.inference.bits import pack_signs, unpack_signs
from modules.inference.runtime import FLOATS, Prepared, kernels
from modules.inference.threads import operators_that_end
from modules.inference.values import ValuesConv2d, finish_after
from modules.inference.xnor import Finish, XnorConv2d, batch_norm_affine
from modules.recovery import CIRec
from modules.weights import ChannelScale, LibraPB


class UnpackedConv2d(Prepared):
    """The inference of a `BinaryConv2d` with 1-bit weights and real activations: bits in the file, floats in memory."""

    def __init__(self, conv):
        super().__init__()
        self.stride, self.padding, self.in_channels = conv.stride, conv.padding, conv.in_channels
        signs, scale, offset = conv.binary_weight()
        self.register_buffer("bits", pack_signs(signs.detach()))
        # Weights that are no multiple of signs take in their scale as well.
        values = None if offset is None else torch.stack([torch.ones_like(offset) if scale is None else scale, offset])
        self.register_buffer("values", values)
        self.register_buffer("weight", None, persistent=False)
        self.prepare()

    def derive(self):
        """Derive the weights from the bits."""
        weight = unpack_signs(self.bits, self.in_channels)
        if self.values is not None:
            weight = weight * self.values[0] + self.values[1]
        self.weight = weight.to(memory_format=torch.channels_last)

    def forward(self, x, finish=None, residual=None):
        x = F.conv2d(x, self.weight, None, self.stride, self.padding)
        return x if finish is None else finish(x, residual)


class PackedBlock(nn.Module):
    """activation(norm(conv(x)) + shortcut(x)) in one kernel; shortcut may be None."""

    def __init__(self, conv, finish, shortcut=None):
        super().__init__()
        self.conv = conv
        self.finish = finish
        self.shortcut = shortcut

    def forward(self, x):
        return self.conv(x, self.finish, None if self.shortcut is None else self.shortcut(x))


class PackedBasicBlock(nn.Module):
    """Two such convolutions with one shortcut around both."""

    def __init__(self, first, conv, finish, shortcut):
        super().__init__()
        self.first = first
        self.conv = conv
        self.finish = finish
        self.shortcut = shortcut

    def forward(self, x):
        return self.conv(self.first(x), self.finish, self.shortcut(x))


class Stem(nn.Module):
    """BatchNorm, activation and max-pooling after the first convolution: (N, C, H, W) -> (tap, pooled)."""

    def __init__(self, finish, pool):
        super().__init__()
        self.finish = finish
        self.pool = pool

    def forward(self, x):
        x = self.finish(x)
        return x, self.pool(x)


class FeatureNorm(nn.Module):
    """BatchNorm1d folded to x * alpha + beta, for features (N, C)."""

    def __init__(self, norm):
        super().__init__()
        self.register_buffer("rows", torch.stack(batch_norm_affine(norm)))

    def forward(self, x):
        return torch.addcmul(self.rows[1], x, self.rows[0])


_PROGRAMS = 4
"""A network keeps the programs of so many sizes of images: the last used ones."""


class _Packed:
    """What packed networks have in common. `fast`: whether the first and the 1x1 convolutions may be in bfloat16."""

    fast = False

    def forward(self, images):
        """Raises ValueError unless the images are float32 (N, 3, H, W) in the CPU's memory; RuntimeError under
        autocast, in torch.jit.trace, which would keep the result as a constant, and if `fast` is what no CPU here does.
        """
        if torch.compiler.is_compiling():
            return super().forward(images)
        if torch.jit.is_tracing():
            raise RuntimeError("torch.jit.trace cannot see the kernels of a packed network: use torch.export")
        if torch.is_autocast_enabled("cpu"):
            raise RuntimeError("packed networks compute in float32: leave autocast off (--amp off)")
        if kernels() is None:
            return super().forward(images)
        images = readable_images(images)
        program = self.program(images.shape[2:])
        if program is not None:
            return program(images)
        with operators_that_end():
            return super().forward(images)

    def program(self, size):
        """The `NetworkProgram` for images of `size` (H, W), or None for a network that runs module by module."""
        if self.fast and not native.has_bf16():
            raise RuntimeError("fast needs a CPU with avx512_bf16 instructions")
        changes, programs = self.__dict__.get("_programs", (None, None))
        if changes != Prepared.changes:
            programs = functools.lru_cache(_PROGRAMS)(functools.partial(lower, self))
            self.__dict__["_programs"] = Prepared.changes, programs
        return programs(*size, self.fast)

    def __getstate__(self):
        return {name: value for name, value in self.__dict__.items() if name != "_programs"}


class _PackedResNet(_Packed, ResNet):
    pass


class _PackedVGGSmall(_Packed, VGGSmall):
    pass


class _PackedLargeResNet(_Packed, ResNet):
    """A ResNet for large images, whose stem after the convolution is one module."""

    def features(self, images):
        tap, x = self.stem(self.conv1(images))
        maps = [tap]
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


_SHIFTS = (LearnedShift, SelfDistributionShift, ImageStandardization, ShiftedImageScale)


def _is_plain(conv):
    """Whether a convolution has what the packed ones have: equal sides, zeros around, no bias, groups or dilation."""
    is_square = all(len(set(pair)) == 1 for pair in (conv.kernel_size, conv.stride, conv.padding, conv.dilation))
    return is_square and conv.bias is None and conv.groups == conv.dilation[0] == 1 and conv.padding_mode == "zeros"


def _conv(conv):
    """(packed convolution, its scale or None): what the scale belongs to comes after the convolution."""
    if conv.weight_bits != 1:
        raise ValueError("weights of 32 bits cannot be packed: the network needs 1-bit weights")
    if not _is_plain(conv):
        raise ValueError(f"no packed form of {conv}: of a bias, groups, dilation, unequal sides or other padding")
    if not getattr(conv.weight_binarizer, "returns_signs", False):
        raise ValueError(f"no packed form of weights by {type(conv.weight_binarizer).__name__}: it must give -1 and +1")
    _, scale, offset = conv.binary_weight()
    scale = None if scale is None else scale.detach()
    if conv.activation_bits == 32:
        return UnpackedConv2d(conv), scale if offset is None else None
    if isinstance(conv.input_transform, ImageScale):
        conv.input_transform = None  # the identity in evaluation
    known = conv.input_transform is None or isinstance(conv.input_transform, _SHIFTS)
    adaptive = isinstance(conv.activation_binarizer, AdaptiveSign)
    if not known or not (conv.has_sign_inputs or adaptive):
        raise ValueError("no packed form yet of the method's activations")
    return (ValuesConv2d(conv), None) if adaptive or offset is not None else (XnorConv2d(conv), scale)


def _shortcut(shortcut):
    """(packed shortcut, its BatchNorm or None): the BatchNorm is folded into what follows the sum."""
    if not isinstance(shortcut, nn.Sequential):
        return shortcut, None
    if isinstance(shortcut[0], BinaryConv2d):
        return _block(*shortcut, None), None
    *layers, norm = shortcut
    return nn.Sequential(*layers), norm


def _block(conv, norm, act, shortcut=None):
    conv, scale = _conv(conv)
    shortcut, shortcut_norm = _shortcut(shortcut)
    return PackedBlock(conv, finish_after(norm, act, shortcut_norm, scale), shortcut)


def _residual(block):
    if isinstance(block, BiRealBlock):
        return _block(block.conv, block.bn, block.act, block.shortcut)
    if isinstance(block, BasicBlock):
        last = _block(block.conv2, block.bn2, block.act2, block.shortcut)
        return PackedBasicBlock(_block(block.conv1, block.bn1, block.act1), last.conv, last.finish, last.shortcut)
    raise ValueError(f"no packed form of {type(block).__name__}")


def _plain(layer):
    """A layer of VGG-Small: convolution, max-pooling or not, BatchNorm, activation."""
    if len(layer) == 3:
        return _block(*layer)
    conv, pool, norm, act = layer
    # A negative scale does not commute with the maximum: only these are known to give none.
    learned = type(conv.weight_transform) not in (ChannelScale, LibraPB)
    conv, scale = _conv(conv)
    if isinstance(conv, ValuesConv2d):
        scale, learned = torch.ones(len(conv.bits), **FLOATS), True  # with a finish it gives more than the signs' sums
    if scale is not None and learned:
        conv, scale = PackedBlock(conv, Finish({"scale": scale.flatten()})), None
    return nn.Sequential(conv, pool, finish_after(norm, act, scale=scale))


def _fold_head(head):
    conv, norm, act = head.channel
    head.channel = nn.Sequential(conv, finish_after(norm, act))
    if head.spatial is not None:
        conv, norm, act = head.spatial
        head.spatial = nn.Sequential(conv, finish_after(norm, act))


@torch.no_grad()
def pack_network(model, in_place=False):
    """The inference network of `model`, a network of `models.build_model` in evaluation mode; `model` is left alone.

    It gives the same logits, has `features` and `classify`, runs on the CPU in float32, and cannot be trained. With
    1-bit weights and activations its binary convolutions are `XnorConv2d`; with 32-bit activations they run in floating
    point. Of changes after its first call it notices load_state_dict of the whole network, no others; hooks of its
    modules are called within `features` and `classify` alone.
    in_place: turn `model` itself. Raises ValueError for 32-bit weights, and for convolutions that no network of
    build_model has: with a bias, groups or dilation.
    """
    model = model if in_place else copy.deepcopy(model)
    model = model.cpu().float().eval().requires_grad_(False)
    if isinstance(model, ResNet):
        finish = finish_after(model.bn1, model.act1)
        if isinstance(model.pool, nn.MaxPool2d):
            model.stem = Stem(finish, model.pool)
            del model.bn1, model.act1, model.pool
            model.__class__ = _PackedLargeResNet
        else:
            model.bn1, model.act1 = finish, nn.Identity()
            model.__class__ = _PackedResNet
        for i, stage in enumerate(model.stages):
            model.stages[i] = nn.Sequential(*map(_residual, stage))
        if isinstance(model.feature_norm, nn.BatchNorm1d):
            model.feature_norm = FeatureNorm(model.feature_norm)
    elif isinstance(model, VGGSmall):
        model.bn0, model.act0 = finish_after(model.bn0, model.act0), nn.Identity()
        model.layers = nn.Sequential(*map(_plain, model.layers))
        model.__class__ = _PackedVGGSmall
    else:
        raise ValueError(f"no packed form of {type(model).__name__}: only networks of build_model have one")
    if isinstance(model.recovery, CIRec):
        _fold_head(model.recovery)
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and (module.in_channels > 3 or module.kernel_size == (7, 7)):
            module.to(memory_format=torch.channels_last)  # a small stem's sums would have another order
    return model


def blank_network(**network):
    """`pack_network` of build_model(**network) with arbitrary weights, to load others into.

    Raises ValueError for 32-bit weights, and what build_model raises.
    """
    with NoRandomNumbers():
        model = build_model(**network)
    return pack_network(model, in_place=True)


def binary_convs(model):
    """[(name, convolution)] of the binary convolutions of a network or of its packed form, in the same order."""
    kinds = (BinaryConv2d, XnorConv2d, UnpackedConv2d)
    return [(name, module) for name, module in model.named_modules() if isinstance(module, kinds)]
