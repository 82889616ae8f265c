"""Binary convolution for inference, by XOR and popcount on 1-bit weights and activations, and what follows it.

The sum of products of signs is exact: number of products - 2 * popcount(input bits XOR weight bits), where zero
padding counts as no product. With numba the kernels of `modules.inference.kernels` run; without it the same sums are
computed in floating point by torch, slower. CPU only, no gradients.
"""

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules.activations import ImageStandardization, LearnedShift, RPReLU, ShiftedImageScale
from modules.binarize import binary_sign
from modules.inference import layout
from modules.inference.bits import arrange, pack_signs, unpack_signs
from modules.inference.maps import external
from modules.inference.program import Filters, Program, neutral
from modules.inference.runtime import FLOATS, Prepared, array_of, compiled, empty_like_last, kernels, maps_at, run_each

ROWS = {
    "scale": "SCALE",
    "alpha": "ALPHA",
    "beta": "BETA",
    "residual_alpha": "RESIDUAL_ALPHA",
    "residual_beta": "RESIDUAL_BETA",
    "before": "BEFORE",
    "slope": "NEGATIVE",
    "after": "AFTER",
}
"""What a packed file calls the rows of a table `modules.inference.layout.Finish`, in the file's order."""
_NOTHING = torch.empty(1, **FLOATS)
OUT, IN, RESIDUAL, SHIFT = (external(number) for number in range(1, 5))


def neutral_table(channels):
    """The finish table that changes nothing: float32 (len(layout.Finish), channels)."""
    return torch.from_numpy(neutral(channels))


def _output_shape(x, tap_counts, stride, padding):
    """(N, C_out, H', W')."""
    taps, out_channels = tap_counts.shape
    height, width = ((size + 2 * padding - math.isqrt(taps)) // stride + 1 for size in x.shape[2:])
    return x.shape[0], out_channels, height, width


def _finish_program(shape, table, has_residual):
    program = Program()
    residual = maps_at(RESIDUAL, shape) if has_residual else None
    program.copy(maps_at(IN, shape), table.numpy(), residual, maps_at(OUT, shape))
    return program


def _conv_program(source, shape, filters, table, has):
    """Signs of the external maps IN, of shape `source` (H, W, C), + SHIFT (C,), and their convolution.

    has: whether there is a residual, and a shift.
    """
    program, maps = Program(), maps_at(IN, source)
    if has[1]:
        shift = replace(maps, address=SHIFT, row=0, pixel=0)
        signs = program.shifted_signs(maps, filters, shift)
    else:
        signs = program.signs(maps, filters)
    residual = maps_at(RESIDUAL, shape) if has[0] else None
    program.count(signs, filters, table.numpy(), residual, maps_at(OUT, shape))
    return program


def _residual_array(residual, shape):
    """The residual (N, H, W, C), or what will not be read. Raises ValueError unless it has the shape (N, C, H, W)."""
    if residual is None:
        return _NOTHING
    if residual.shape != shape:
        raise ValueError(f"a residual of {tuple(residual.shape)} does not fit maps of {tuple(shape)}")
    return array_of(residual)


def _convolve(module, x, filters, shift, table, residual):
    """`binary_conv2d` by the compiled kernels; module: a Prepared that keeps the program, or None; shift: or None."""
    if x.shape[1] != filters.in_channels:
        raise ValueError(f"the convolution takes {filters.in_channels} channels, not {x.shape[1]}")
    shape = _output_shape(x, filters.tap_counts, filters.stride, filters.padding)
    source, has = (*x.shape[2:], x.shape[1]), (residual is not None, shift is not None)
    arrays = [array_of(x), _residual_array(residual, shape)]
    if shift is not None:
        arrays.append(array_of(shift[:, :, None, None]))

    def build():
        return _conv_program(source, (*shape[2:], shape[1]), filters, table, has)

    key = (*source, *has, table, filters.blocks)
    return run_each(build() if module is None else module.program_for(key, build), shape, arrays)


def _convolve_in_torch(x, filters, shift, table, residual):
    kernel = math.isqrt(len(filters.tap_counts))
    rows = filters.blocks.view(torch.int64).transpose(1, 2).flatten(0, 1)[: filters.tap_counts.shape[1]]
    bits = rows.unflatten(1, (kernel, kernel, -1)).contiguous().view(torch.uint64)
    signs = binary_sign(x + shift[:, :, None, None])
    sums = F.conv2d(signs, unpack_signs(bits, x.shape[1]), None, filters.stride, filters.padding)
    return finish_in_torch(sums, table, residual)


def _finish(module, x, table, residual):
    """`finish_maps` by the compiled kernels; module as in `_convolve`."""
    if x.shape[1] != table.shape[1]:
        raise ValueError(f"the table is for {table.shape[1]} channels, not {x.shape[1]}")
    shape = (*x.shape[2:], x.shape[1])
    arrays = [array_of(x), _residual_array(residual, x.shape)]

    def build():
        return _finish_program(shape, table, residual is not None)

    key = (*shape, residual is not None, table)
    return run_each(build() if module is None else module.program_for(key, build), x.shape, arrays)


def finish_in_torch(x, finish, residual):
    def affine(x, factor, term):  # in double, and then rounded: as good as the kernel's fused multiply-add
        return torch.addcmul(term.double(), x.double(), factor.double()).to(x.dtype)

    rows = dict(zip(layout.Finish, finish[:, :, None, None]))
    x = affine(x * rows[layout.Finish.SCALE], rows[layout.Finish.ALPHA], rows[layout.Finish.BETA])
    if residual is not None:
        x += affine(residual, rows[layout.Finish.RESIDUAL_ALPHA], rows[layout.Finish.RESIDUAL_BETA])
    x += rows[layout.Finish.BEFORE]
    x = x * torch.where(x > 0, rows[layout.Finish.POSITIVE], rows[layout.Finish.NEGATIVE]) + rows[layout.Finish.AFTER]
    return torch.minimum(torch.maximum(x, rows[layout.Finish.LOW]), rows[layout.Finish.HIGH])


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
) -> Tensor:
    """conv(sign(x + shift), signs), and what `finish` says of it: see `modules.inference.layout.Finish`.

    x: float32 (N, C_in, H, W), fastest in channels-last memory. blocks, tap_counts: from `arrange`. shift (1 or N,
    C_in). finish: a table (12, C_out); the neutral one gives the convolution's sums, exact integers. residual
    (N, C_out, H', W') or None. Zero padding: positions outside add nothing.
    Returns float32 (N, C_out, H', W') in channels-last memory.
    """
    filters = Filters(blocks, tap_counts, shift.shape[1], stride, padding)
    if kernels() is None:
        return _convolve_in_torch(x, filters, shift, finish, residual)
    return _convolve(None, x, filters, shift, finish, residual).contiguous(memory_format=torch.channels_last)


@binary_conv2d.register_fake
def _(x, blocks, tap_counts, shift, stride, padding, finish, residual):
    return empty_like_last(x, _output_shape(x, tap_counts, stride, padding))


@torch.library.custom_op("ir2net::finish", mutates_args=(), device_types="cpu")
def finish_maps(x: Tensor, finish: Tensor, residual: Tensor | None) -> Tensor:
    """What follows a convolution, of its maps (N, C, H, W): see `modules.inference.layout.Finish`."""
    if kernels() is None:
        return finish_in_torch(x, finish, residual)
    return _finish(None, x, finish, residual).contiguous(memory_format=torch.channels_last)


@finish_maps.register_fake
def _(x, finish, residual):
    return empty_like_last(x, x.shape)


def batch_norm_affine(norm):
    """(alpha, beta), (C,) each, with norm(x) = x * alpha + beta in evaluation, `norm` being a BatchNorm.

    They are read off torch's own batch_norm, to the last bit: a sign that follows may hang on it.
    """

    def at(value, mean):
        x = norm.running_mean.new_full((1, norm.num_features), value)
        bias = norm.bias if mean is norm.running_mean else torch.zeros_like(norm.bias)
        return F.batch_norm(x, mean, norm.running_var, norm.weight, bias, eps=norm.eps)[0]

    return at(1.0, torch.zeros_like(norm.running_mean)), at(0.0, norm.running_mean)


class Finish(Prepared):
    """BatchNorm, residual and activation in one pass: see `modules.inference.layout.Finish`.

    rows: the table's rows that are not neutral, by the names of ROWS, (C,) each. activation: "none", "prelu", which has
    a slope, or "hardtanh". Input and residual (N, C, H, W), output the same in channels-last memory.
    """

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

    def derive(self):
        """Derive the table from the rows."""
        table = neutral_table(self.rows.shape[1])
        if self.activation == "prelu":
            table[layout.Finish.NEGATIVE] = 0
        elif self.activation == "hardtanh":
            table[layout.Finish.LOW], table[layout.Finish.HIGH] = -1, 1
        table[[layout.Finish[ROWS[name]] for name in self.names]] = self.rows
        self.table = table

    def forward(self, x, residual=None):
        if compiled():
            return _finish(self, x, self.table, residual)
        return finish_maps(x, self.table, residual)


class XnorConv2d(Prepared):
    """The inference of a `BinaryConv2d` with 1-bit weights and activations, and of what follows it.

    conv: the BinaryConv2d, square, ungrouped, undilated, without bias; its scale belongs into the Finish.
    Input float32 (N, C_in, H, W), output (N, C_out, H', W').
    """

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

    def derive(self):
        """Derive the kernel's arrays from the bits."""
        filters = self.filters()
        self.blocks, self.tap_counts = arrange(filters)
        self.shifted = self.input_transform is not None
        self.no_shift, self.no_finish = torch.zeros(1, self.in_channels, **FLOATS), neutral_table(len(filters))

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
            return -x.contiguous().mean((1, 2, 3)).unsqueeze(1).repeat(1, self.in_channels)
        return torch.sigmoid(transform.excite(torch.relu(transform.squeeze(x.contiguous().mean((2, 3))))))

    def forward(self, x, finish=None, residual=None):
        """finish: a Finish, or None for the convolution's sums, integers. residual: added where the Finish says."""
        table = self.no_finish if finish is None else finish.table
        shift = self.shift(x)
        if compiled():
            filters = Filters(self.blocks, self.tap_counts, self.in_channels, self.stride, self.padding)
            return _convolve(self, x, filters, shift if self.shifted else None, table, residual)
        return binary_conv2d(x, self.blocks, self.tap_counts, shift, self.stride, self.padding, table, residual)
