"""The binary convolution that all networks share."""

import contextlib

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from modules.binarize import BiRealSTE, ClipSTE

BITS = (1, 32)

_MOST_ROWS = 16
"""Output pixels of a batch per output channel, up to which the weights' gradient is faster as a product of matrices."""


def _is_faster_as_a_product(signs, grad, dilation, groups):
    """Whether `_weight_gradient` is: wide layers wait while PyTorch reorders what oneDNN gives."""
    if signs.device.type != "cpu" or groups != 1 or tuple(dilation) != (1, 1):
        return False
    rows = grad.shape[0] * grad.shape[2] * grad.shape[3]
    order = torch.channels_last
    in_order = signs.is_contiguous(memory_format=order) and grad.is_contiguous(memory_format=order)
    return in_order and rows <= _MOST_ROWS * grad.shape[1]


def _weight_gradient(signs, grad, kernel_size, stride, padding):
    """Gradient (C_out, C_in, kH, kW), in channels_last, of a convolution's weights, as a product of two matrices.

    signs (N, C_in, H, W) in 8 bits and grad (N, C_out, H', W'), both in channels_last.
    """
    vertical, horizontal = padding
    windows = F.pad(signs.permute(0, 2, 3, 1), (0, 0, horizontal, horizontal, vertical, vertical))
    for dim, (size, step) in enumerate(zip(kernel_size, stride), start=1):
        windows = windows.unfold(dim, size, step)  # (N, H', W', C_in, kH, kW) in the end
    rows = windows.permute(0, 1, 2, 4, 5, 3).flatten(3).flatten(0, 2).to(grad.dtype)
    product = grad.permute(0, 2, 3, 1).flatten(0, 2).t() @ rows
    return product.view(-1, *kernel_size, signs.shape[1]).permute(0, 3, 1, 2)


class _SignConv2d(torch.autograd.Function):
    """F.conv2d of signs, which it keeps for the backward pass in 8 bits: exact, and a quarter of the memory."""

    @staticmethod
    def forward(ctx, signs, weight, bias, stride, padding, dilation, groups):
        ctx.save_for_backward(signs.to(torch.int8), weight)
        ctx.geometry = (stride, padding, dilation, groups)
        ctx.bias_sizes = None if bias is None else list(bias.shape)
        return F.conv2d(signs, weight, bias, stride, padding, dilation, groups)

    @staticmethod
    @once_differentiable  # a second derivative would miss the way through the 8 bits
    def backward(ctx, grad):
        signs, weight = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.geometry
        input_wanted, weight_wanted, bias_wanted = ctx.needs_input_grad[:3]
        as_product = weight_wanted and _is_faster_as_a_product(signs, grad, dilation, groups)
        input_grad, weight_grad, bias_grad = torch.ops.aten.convolution_backward(
            grad, signs.to(grad.dtype), weight.to(grad.dtype), ctx.bias_sizes, stride, padding, dilation,
            False, (0, 0), groups, (input_wanted, weight_wanted and not as_product, bias_wanted),
        )  # fmt: skip
        if as_product:
            weight_grad = _weight_gradient(signs, grad, weight.shape[2:], stride, padding)
        return input_grad, weight_grad, bias_grad, None, None, None, None


class BinaryConv2d(nn.Conv2d):
    """conv(sign(input_transform(x)), sign(weight_transform(w)) * scale + offset), with nn.Conv2d's arguments and these:

    weight_bits, activation_bits: 1 binarizes, 32 leaves as it is; (32, 32) is nn.Conv2d exactly.
    weight_binarizer, activation_binarizer: factories of a module of `modules.binarize`.
    weight_transform: None, or a factory of a module of `modules.weights`, given the weight's shape.
    input_transform: None, or a factory of a module of `modules.activations`, given the input channels.

    Where the activation binarizer says `returns_signs`, its signs are kept for the backward pass in 8 bits.
    What belongs to a side of 32 bits is not made at all, so that no parameter is without a gradient.
    Input (N, C_in, H, W), output (N, C_out, H', W'); either may lack N. Padding adds zeros after the sign.
    Raises ValueError for other bit widths. Source: equation (2), with (4)'s scale where a method has one,
    and an offset where it has that.
    """

    def __init__(
        self,
        *args,
        weight_bits=1,
        activation_bits=1,
        weight_binarizer=ClipSTE,
        activation_binarizer=BiRealSTE,
        weight_transform=None,
        input_transform=None,
        **kwargs,
    ):
        for bits in (weight_bits, activation_bits):
            if bits not in BITS:
                raise ValueError(f"bits must be 1 or 32, not {bits}")
        super().__init__(*args, **kwargs)
        self.weight_bits = weight_bits
        self.activation_bits = activation_bits
        self.held_weight = None  # what quantized_weight() gave, within weights_binarized_once
        self.weight_transform = self.weight_binarizer = None
        self.input_transform = self.activation_binarizer = None
        if weight_bits == 1:
            self.weight_transform = weight_transform and weight_transform(self.weight.shape)
            self.weight_binarizer = weight_binarizer()
        if activation_bits == 1:
            self.input_transform = input_transform and input_transform(self.in_channels)
            self.activation_binarizer = activation_binarizer()
        self.to(self.weight.device, self.weight.dtype)
        self.start_transform()

    def start_transform(self):
        """Let what the weight transform learns start from the present weights, if it does."""
        if hasattr(self.weight_transform, "start_from"):
            self.weight_transform.start_from(self.weight)

    def start_epoch(self):
        """Let the weight transform fit its buffers to the present weights, if it does."""
        if hasattr(self.weight_transform, "fit_to"):
            self.weight_transform.fit_to(self.weight)

    def binary_weight(self):
        """(signs, scale, offset) of the used weights signs * scale + offset; the last two may be None.

        signs (C_out, C_in, kH, kW) of -1 and +1; scale and offset (C_out, 1, 1, 1).
        """
        weight, scale, offset = self.weight, None, None
        if self.weight_transform is not None:
            weight, scale, offset = self.weight_transform(weight)
        return self.weight_binarizer(weight), scale, offset

    def quantized_weight(self):
        """The weights that the convolution uses, shaped as the latent ones."""
        if self.weight_bits == 32:
            return self.weight
        weight, scale, offset = self.binary_weight()
        weight = weight if scale is None else weight * scale
        return weight if offset is None else weight + offset

    def quantized_input(self, x):
        """The activations that the convolution uses, shaped as x."""
        if self.activation_bits == 32:
            return x
        if self.input_transform is not None:
            x = self.input_transform(x)
        return self.activation_binarizer(x)

    def input_signs(self, x):
        """The signs, -1 and +1, that binary activations are made of, shaped as x."""
        if self.input_transform is not None:
            x = self.input_transform(x)
        return self.activation_binarizer(x) if self.has_sign_inputs else self.activation_binarizer.signs(x)

    @property
    def has_sign_inputs(self):
        """Whether the activations that the convolution uses are -1 and +1, and nothing else."""
        return getattr(self.activation_binarizer, "returns_signs", False)

    def forward(self, x):
        weight = self.quantized_weight() if self.held_weight is None else self.held_weight
        x = self.quantized_input(x)
        pads_apart = isinstance(self.padding, str) or self.padding_mode != "zeros"
        if not torch.is_grad_enabled() or not self.has_sign_inputs or pads_apart or x.dim() != 4:
            return self._conv_forward(x, weight, self.bias)
        weight = weight.to(x.dtype)  # else autocast brings it to that twice, forward and backward
        return _SignConv2d.apply(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)

    def extra_repr(self):
        return f"{super().extra_repr()}, bits={self.weight_bits}/{self.activation_bits}"


def start_transforms(model):
    """Let the weight transforms of `model` start from its weights, once these are initialised or come from a file."""
    for module in model.modules():
        if isinstance(module, BinaryConv2d):
            module.start_transform()


@contextlib.contextmanager
def weights_binarized_once(model):
    """Within, the binary convolutions of `model` binarize their weights once, however many passes it makes."""
    convs = [module for module in model.modules() if isinstance(module, BinaryConv2d) and module.weight_bits == 1]
    try:
        for conv in convs:
            conv.held_weight = conv.quantized_weight()
        yield
    finally:
        for conv in convs:
            conv.held_weight = None
