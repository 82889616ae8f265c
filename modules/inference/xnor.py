"""Binary convolution for inference, by XOR and popcount on 1-bit weights and activations, and what follows it.

The sum of products of signs is exact: number of products - 2 * popcount(input bits XOR weight bits), where zero
padding counts as no product. With numba the kernels of `modules.inference.kernels` run; without it the same sums are
computed in floating point by torch, slower. CPU only, no gradients.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules.activations import ImageStandardization, LearnedShift, RPReLU, ShiftedImageScale
from modules.binarize import binary_sign
from modules.inference.bits import arrange, pack_signs, unpack_signs
from modules.inference.runtime import (
    Prepared,
    array_of,
    compiled,
    empty_like_last,
    empty_maps,
    image_means,
    kernels,
    thread_count,
)

ROWS = ("scale", "alpha", "beta", "residual_alpha", "residual_beta", "before", "slope", "after")
"""Rows of a finish table (8, C): activation(x * scale * alpha + beta + residual * residual_alpha + residual_beta), in
this order and with the training graph's rounding; "prelu" is a PReLU with `slope` between two shifts."""
_NEUTRAL = (1.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0)
FINISHES = ("none", "hardtanh", "prelu")


def neutral_table(channels):
    """The finish table that changes nothing: float32 (8, channels)."""
    return torch.tensor(_NEUTRAL).repeat(channels, 1).T.contiguous()


def _output_shape(x, tap_counts, stride, padding):
    """(N, C_out, H', W')."""
    taps, out_channels = tap_counts.shape
    height, width = ((size + 2 * padding - int(taps**0.5)) // stride + 1 for size in x.shape[2:])
    return x.shape[0], out_channels, height, width


def _residual_array(residual, like):
    """The residual's array (N, H, W, C), or, where there is none, one that will not be read."""
    if residual is None:
        return like
    array = array_of(residual)
    if array.shape != like.shape:
        raise ValueError(f"a residual of {array.shape} does not fit maps of {like.shape} (N, H, W, C)")
    return array


def _convolve(x, blocks, tap_counts, shift, stride, padding, table, residual, activation):
    """`binary_conv2d` by the compiled kernel; blocks, tap_counts, shift and table are arrays."""
    if x.shape[1] != shift.shape[1]:
        raise ValueError(f"the convolution takes {shift.shape[1]} channels, not {x.shape[1]}")
    out, result = empty_maps(_output_shape(x, tap_counts, stride, padding))
    added = _residual_array(residual, result)
    kernels().convolve(
        thread_count(),
        array_of(x),
        shift,
        blocks,
        tap_counts,
        stride,
        padding,
        table,
        added,
        residual is not None,
        FINISHES.index(activation),
        result,
    )
    return out


def _convolve_in_torch(x, blocks, tap_counts, shift, stride, padding, table, residual, activation):
    kernel = int(len(tap_counts) ** 0.5)
    rows = blocks.view(torch.int64).transpose(1, 2).flatten(0, 1)[: tap_counts.shape[1]]
    bits = rows.unflatten(1, (kernel, kernel, -1)).contiguous().view(torch.uint64)
    signs = binary_sign(x + shift[:, :, None, None])
    sums = F.conv2d(signs, unpack_signs(bits, x.shape[1]), None, stride, padding)
    return finish_in_torch(sums, table, residual, activation)


def _finish(x, table, residual, activation):
    """`finish_maps` by the compiled kernel; table is an array."""
    if x.shape[1] != table.shape[1]:
        raise ValueError(f"the table is for {table.shape[1]} channels, not {x.shape[1]}")
    out, result = empty_maps(x.shape)
    source = array_of(x)
    rows = (-1, *source.shape[2:])
    kernels().finish(
        thread_count(),
        source.reshape(rows),
        table,
        _residual_array(residual, source).reshape(rows),
        residual is not None,
        FINISHES.index(activation),
        result.reshape(rows),
    )
    return out


def finish_in_torch(x, finish, residual, activation):
    def affine(x, factor, term):  # in double, and then rounded: as good as the kernel's fused multiply-add
        return torch.addcmul(term.double(), x.double(), factor.double()).to(x.dtype)

    scale, alpha, beta, residual_alpha, residual_beta, before, slope, after = finish[:, :, None, None]
    x = affine(x * scale, alpha, beta)
    if residual is not None:
        x += affine(residual, residual_alpha, residual_beta)
    if activation == "hardtanh":
        x = F.hardtanh(x)
    elif activation == "prelu":
        x += before
        x = torch.where(x > 0, x, x * slope) + after
    return x


@torch.library.custom_op("ir2net::binary_conv2d", mutates_args=(), device_types="cpu")
def binary_conv2d(
    x: Tensor,
    blocks: Tensor,
    tap_counts: Tensor,
    shift: Tensor,
    stride: int,
    padding: int,
    finish: Tensor,
    residual: Tensor | None,
    activation: str,
) -> Tensor:
    """conv(sign(x + shift), signs), and what `finish` says of it: see ROWS.

    x: float32 (N, C_in, H, W), fastest in channels-last memory. blocks, tap_counts: from `arrange`. shift (1 or N,
    C_in). finish: a table (8, C_out) of ROWS; the neutral one gives the convolution's sums, exact integers. residual
    (N, C_out, H', W') or None. activation: one of FINISHES. Zero padding: positions outside add nothing.
    Returns float32 (N, C_out, H', W') in channels-last memory.
    """
    if kernels() is None:
        return _convolve_in_torch(x, blocks, tap_counts, shift, stride, padding, finish, residual, activation)
    arrays = (value.numpy() for value in (blocks, tap_counts, shift))
    return _convolve(x, *arrays, stride, padding, finish.numpy(), residual, activation)


@binary_conv2d.register_fake
def _(x, blocks, tap_counts, shift, stride, padding, finish, residual, activation):
    return empty_like_last(x, _output_shape(x, tap_counts, stride, padding))


@torch.library.custom_op("ir2net::finish", mutates_args=(), device_types="cpu")
def finish_maps(x: Tensor, finish: Tensor, residual: Tensor | None, activation: str) -> Tensor:
    """activation(x * scale * alpha + beta + residual * residual_alpha + residual_beta), maps (N, C, H, W); see ROWS."""
    if kernels() is None:
        return finish_in_torch(x, finish, residual, activation)
    return _finish(x, finish.numpy(), residual, activation)


@finish_maps.register_fake
def _(x, finish, residual, activation):
    return empty_like_last(x, x.shape)


def batch_norm_affine(norm):
    """(alpha, beta), (C,) each, with norm(x) = x * alpha + beta in evaluation, `norm` being a BatchNorm.

    They are read off torch's own batch_norm, to the last bit: a sign that follows may hang on it.
    """

    def at(value, mean):
        x = torch.full((1, norm.num_features), value)
        bias = norm.bias if mean is norm.running_mean else torch.zeros_like(norm.bias)
        return F.batch_norm(x, mean, norm.running_var, norm.weight, bias, eps=norm.eps)[0]

    return at(1.0, torch.zeros_like(norm.running_mean)), at(0.0, norm.running_mean)


class Finish(Prepared):
    """BatchNorm, residual and activation in one pass: see ROWS.

    rows: the table's rows that are not neutral, in ROWS' names, (C,) each. activation: one of FINISHES.
    Input and residual (N, C, H, W), output the same in channels-last memory.
    """

    ARRAYS = ("array",)
    fused = True  # whether a convolution's kernel may do it all

    def __init__(self, rows, activation="none"):
        super().__init__()
        self.names = [name for name in ROWS if name in rows]
        self.activation = activation
        self.register_buffer("rows", torch.stack([rows[name].detach().float() for name in self.names]))
        self.register_buffer("table", None, persistent=False)
        self.prepare()

    @classmethod
    def after(cls, norm=None, act=None, shortcut_norm=None, scale=None):
        """What follows a convolution whose signs have a `scale` (C, 1, 1, 1) or None: any of the modules may be None.

        Raises ValueError for an activation that no method has.
        """
        rows, activation = {}, "none"
        if norm is not None:
            rows["alpha"], rows["beta"] = batch_norm_affine(norm)
        if scale is not None:
            rows["scale"] = scale.flatten()
        if shortcut_norm is not None:
            rows["residual_alpha"], rows["residual_beta"] = batch_norm_affine(shortcut_norm)
        if isinstance(act, RPReLU):
            rows["before"], rows["after"] = act[0].bias.flatten(), act[2].bias.flatten()
            act = act[1]
        if isinstance(act, nn.PReLU):
            activation, rows["slope"] = "prelu", act.weight
        elif isinstance(act, nn.ReLU):
            activation = "prelu"  # of slope 0
        elif isinstance(act, nn.Hardtanh):
            activation = "hardtanh"
        elif act is not None and not isinstance(act, nn.Identity):
            raise ValueError(f"no kernel for {type(act).__name__}")
        return cls(rows, activation)

    def prepare(self):
        """Derive the table from the rows."""
        table = neutral_table(self.rows.shape[1])
        table[[ROWS.index(name) for name in self.names]] = self.rows
        self.table = table
        self.array = table.numpy()

    def forward(self, x, residual=None):
        if compiled():
            return _finish(x, self.array, residual, self.activation)
        return finish_maps(x, self.table, residual, self.activation)


class XnorConv2d(Prepared):
    """The inference of a `BinaryConv2d` with 1-bit weights and activations, and of what follows it.

    conv: the BinaryConv2d, square, ungrouped, undilated, without bias; its scale belongs into the Finish.
    Input float32 (N, C_in, H, W), output (N, C_out, H', W').
    """

    ARRAYS = ("arrays", "constants")

    def __init__(self, conv):
        super().__init__()
        self.in_channels = conv.in_channels
        self.stride, self.padding = conv.stride[0], conv.padding[0]
        self.input_transform = conv.input_transform
        self.register_buffer("bits", pack_signs(conv.binary_weight()[0].detach()))
        self.register_buffer("blocks", None, persistent=False)
        self.register_buffer("tap_counts", None, persistent=False)
        self.register_buffer("no_shift", None, persistent=False)
        self.register_buffer("no_finish", None, persistent=False)
        self.prepare()

    def filters(self):
        """The bits of the filters that the kernel applies."""
        return self.bits

    def prepare(self):
        """Derive the kernel's arrays from the bits."""
        filters = self.filters()
        self.blocks, self.tap_counts = arrange(filters)
        self.no_shift, self.no_finish = torch.zeros(1, self.in_channels), neutral_table(len(filters))
        self.arrays = self.blocks.numpy(), self.tap_counts.numpy()
        self.constants = self.no_shift.numpy(), self.no_finish.numpy()

    def shift(self, x):
        """What the method adds to x before the sign: (1 or N, C_in)."""
        transform = self.input_transform
        if transform is None:
            return self.no_shift
        if isinstance(transform, ShiftedImageScale):
            transform = transform[0]  # in evaluation the rest is the identity
        if isinstance(transform, LearnedShift):
            return transform.bias.flatten(1)
        # Means are taken in the training graph's memory order, so that their last bits are the same.
        if isinstance(transform, ImageStandardization):  # the standard deviation changes no sign
            return -image_means(x.contiguous()).unsqueeze(1).repeat(1, self.in_channels)
        return torch.sigmoid(transform.excite(torch.relu(transform.squeeze(x.contiguous().mean((2, 3))))))

    def forward(self, x, finish=None, residual=None):
        """finish: a Finish, or None for the convolution's sums, integers. residual: added where the Finish says."""
        if finish is not None and not finish.fused:
            return finish(self(x), residual)
        activation = "none" if finish is None else finish.activation
        if compiled():
            no_shift, no_finish = self.constants
            shift = no_shift if self.input_transform is None else self.shift(x).numpy()
            table = no_finish if finish is None else finish.array
            return _convolve(x, *self.arrays, shift, self.stride, self.padding, table, residual, activation)
        table = self.no_finish if finish is None else finish.table
        shift = self.shift(x)
        return binary_conv2d(
            x, self.blocks, self.tap_counts, shift, self.stride, self.padding, table, residual, activation
        )
