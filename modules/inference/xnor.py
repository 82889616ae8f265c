"""Binary convolution for inference, by XOR and popcount on 1-bit weights and activations, and what follows it.

The sum of products of signs is exact: number of products - 2 * popcount(input bits XOR weight bits), where zero
padding counts as no product. With numba the kernels of `modules.inference.kernels` run; without it the same sums are
computed in floating point by torch, slower. CPU only, no gradients.
"""

import functools
import threading
import warnings
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules.activations import ImageStandardization, LearnedShift, RPReLU, ShiftedImageScale
from modules.binarize import binary_sign

WORD = 64
ROWS = ("scale", "alpha", "beta", "residual_alpha", "residual_beta", "before", "slope", "after")
"""Rows of a finish table (8, C): activation(x * scale * alpha + beta + residual * residual_alpha + residual_beta), in
this order and with the training graph's rounding; "prelu" is a PReLU with `slope` between two shifts."""
_NEUTRAL = (1.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0)
FINISHES = ("none", "hardtanh", "prelu")


def neutral_table(channels):
    """The finish table that changes nothing: float32 (8, channels)."""
    return torch.tensor(_NEUTRAL).repeat(channels, 1).T.contiguous()


@functools.cache
def kernels():
    """`modules.inference.kernels`, or None, with one warning, where numba is missing."""
    try:
        from modules.inference import kernels as compiled
    except ImportError as error:
        warnings.warn(f"{error}: binary convolutions run in floating point, slowly; pip install numba", stacklevel=2)
        return None
    return compiled


def pack_signs(x):
    """Bits of the signs of x (N, C, H, W): uint64 (N, H, W, ceil(C / 64)).

    Channel c is bit c % 64 of word c // 64, 1 where x >= 0; bits past C are 0.
    """
    bits = (x >= 0).permute(0, 2, 3, 1).to(torch.uint8)
    bits = F.pad(bits, (0, -bits.shape[3] % WORD)).unflatten(3, (-1, 8))
    places = 2 ** torch.arange(8, dtype=torch.uint8)
    return (bits * places).sum(4, dtype=torch.uint8).view(torch.uint64)


def unpack_signs(bits, channels):
    """Inverse of `pack_signs`: float32 (N, channels, H, W) of -1 and +1."""
    places = 2 ** torch.arange(8, dtype=torch.uint8)
    signs = (bits.view(torch.uint8).unsqueeze(4) & places).ne(0).flatten(3)[..., :channels]
    return signs.permute(0, 3, 1, 2).to(torch.float32).mul_(2).sub_(1)


_BITS_SET = torch.tensor([bin(byte).count("1") for byte in range(256)], dtype=torch.uint8)


def arrange(bits):
    """Weights as the kernel reads them, from `bits` (C_out, k, k, words).

    Returns blocks, uint64 (ceil(C_out / 16), k * k * words, 16), zero past C_out, so that neighbouring output channels
    are neighbours in memory, and tap_counts, float32 (k * k, C_out): the bits set in each tap.
    """
    rows = bits.view(torch.int64).flatten(1)
    rows = F.pad(rows, (0, 0, 0, -len(rows) % 16))
    blocks = rows.unflatten(0, (-1, 16)).transpose(1, 2).contiguous().view(torch.uint64)
    counts = _BITS_SET[bits.view(torch.uint8).int()].sum(3, dtype=torch.float32).flatten(1).T.contiguous()
    return blocks, counts


_state = threading.local()


@contextmanager
def kernels_alone():
    """Within it the compiled kernels have torch's threads for themselves, and torch's own operators one.

    The two have pools of their own, whose threads wait busily for a while after each operator: in turn, on the same
    cores, each would keep the other from running.
    """
    count = torch.get_num_threads()
    if count == 1 or kernels() is None:
        yield
        return
    _state.threads = count
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(count)
        _state.threads = None


def thread_count():
    """How many threads a kernel may use."""
    return getattr(_state, "threads", None) or torch.get_num_threads()


def _image_means(x):
    """Means of x (N, C, H, W) over (C, H, W), (N,): of one image in as many parts as torch has threads elsewhere."""
    if torch.compiler.is_compiling() or len(x) > 1 or getattr(_state, "threads", None) is None:
        return x.mean((1, 2, 3))
    torch.set_num_threads(_state.threads)
    try:
        return x.mean((1, 2, 3))
    finally:
        torch.set_num_threads(1)


def _output_shape(x, tap_counts, stride, padding):
    """(N, C_out, H', W')."""
    taps, out_channels = tap_counts.shape
    height, width = ((size + 2 * padding - int(taps**0.5)) // stride + 1 for size in x.shape[2:])
    return x.shape[0], out_channels, height, width


def empty_maps(shape):
    """(maps, array): uninitialised float32 maps of shape (N, C, H, W), and the array (N, H, W, C) of their memory."""
    images, channels, height, width = shape
    memory = torch.empty((images, height, width, channels))
    return memory.permute(0, 3, 1, 2), memory.numpy()


def array_of(maps):
    """NumPy view (N, H, W, C) of maps (N, C, H, W), a copy unless they are in channels-last memory.

    Raises ValueError unless they are float32: the kernels read nothing else.
    """
    if maps.dtype != torch.float32:
        raise ValueError(f"packed networks compute in float32, not in {maps.dtype}")
    return maps.permute(0, 2, 3, 1).contiguous().numpy()


def empty_like_last(x, shape):
    """Uninitialised maps of `shape` (N, C, H, W) in channels-last memory, else like x: for fake kernels."""
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def compiled():
    """Whether to call the kernels directly, past the operators' dispatch: they exist, and nothing is being traced."""
    return not torch.compiler.is_compiling() and kernels() is not None


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


class Prepared(nn.Module):
    """A module whose `prepare` derives what the kernels read from its buffers: at the start, and when they are loaded.

    It fills the buffers that are not persistent, and ARRAYS, attributes that share their memory: copies and pickles
    go without both, and derive their own.
    """

    ARRAYS = ()

    def __init__(self):
        super().__init__()
        self.register_load_state_dict_post_hook(_prepare)

    def __getstate__(self):
        state = {name: value for name, value in self.__dict__.items() if name not in self.ARRAYS}
        derived = dict.fromkeys(self._non_persistent_buffers_set)
        state["_buffers"] = {name: _signed(value) for name, value in self._buffers.items()} | derived
        return state

    def __setstate__(self, state):
        super().__setstate__(state)
        if "bits" in self._buffers:
            self.bits = self.bits.view(torch.uint64)
        self.prepare()


def _signed(words):
    """uint64 tensors as int64: torch cannot pickle the former."""
    return words.view(torch.int64) if words is not None and words.dtype == torch.uint64 else words


def _prepare(module, incompatible_keys):
    module.prepare()


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
            return -_image_means(x.contiguous()).unsqueeze(1).repeat(1, self.in_channels)
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
