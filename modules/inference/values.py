"""Inference of binary convolutions whose two values are not -1 and +1, and of an activation with two learned slopes.

The sums of products of signs come from the XNOR kernel; the values are made of them in plain torch.
"""

import torch

from modules.activations import Maxout
from modules.binarize import AdaptiveSign
from modules.inference import layout
from modules.inference.bits import pack_signs
from modules.inference.runtime import FLOATS
from modules.inference.xnor import Finish, XnorConv2d

LAST = torch.channels_last


class ValuesConv2d(XnorConv2d):
    """The inference of a `BinaryConv2d` with weights scale * signs + offset, and activations factor * (signs + shift).

    With S the sums of products of signs, B the sums of the activations' signs over the window (one filter more, of
    ones), and E the convolution of ones with the weights, which differs at the borders and depends on the image's size
    alone, it gives factor * (scale * S + offset * B) + factor * shift * E.
    conv: as `XnorConv2d` has it; an `AdaptiveSign` or signs as activations. Raises ValueError for an input transform
    before an AdaptiveSign.
    Input float32 (N, C_in, H, W), output (N, C_out, H', W'). Source: AdaBin, Tu et al., ECCV 2022.
    """

    def __init__(self, conv):
        super().__init__(conv)
        _, scale, offset = conv.binary_weight()
        rows = [torch.ones(conv.out_channels, **FLOATS), torch.zeros(conv.out_channels, **FLOATS)]
        rows = [row if value is None else value.detach().flatten() for value, row in zip((scale, offset), rows)]
        self.register_buffer("weight_values", torch.stack(rows))
        values, adaptive = torch.tensor([1.0, 0.0], **FLOATS), conv.activation_binarizer
        if isinstance(adaptive, AdaptiveSign):
            if conv.input_transform is not None:
                raise ValueError("no packed form of an input transform before activations with two learned values")
            values = torch.stack([adaptive.alpha, adaptive.beta]).detach()
        self.register_buffer("input_values", values)
        self.register_buffer("factors", None, persistent=False)
        self.prepare()

    def filters(self):
        ones = pack_signs(torch.ones(1, self.in_channels, *self.bits.shape[1:3], **FLOATS))
        return torch.cat([self.bits.view(torch.int64), ones.view(torch.int64)]).view(torch.uint64)

    def derive(self):
        """Derive what the kernel reads, the threshold of the activations, and the factors of S and B."""
        super().derive()
        if "input_values" not in self._buffers:
            return  # XnorConv2d's own start
        factor, shift = self.input_values
        # sign((x - shift) / factor): below 0 the factor turns x around the threshold.
        self.negative = bool(factor < 0)
        self.shifted = True
        self.no_shift = (shift if self.negative else -shift).repeat(1, self.in_channels)
        self.factors = (factor * self.weight_values)[:, :, None, None]
        self.borders = None

    def _sums(self, x):
        """(S, B) of x (N, C_in, H, W)."""
        sums = super().forward(-x if self.negative else x)
        return sums[:, :-1], sums[:, -1:]

    def constant(self, x):
        """factor * shift * E for images of x's size: (1, C_out, H', W')."""
        size = tuple(x.shape[2:])
        known = self.borders
        if known is not None and known[0] == size:
            return known[1]
        largest = torch.finfo(torch.float32).max
        ones = torch.full((1, self.in_channels, *size), -largest if self.negative else largest, **FLOATS)
        sums, window = self._sums(ones)
        scale, offset = self.factors.double()
        constant = self.input_values[1] * (scale * sums + offset * window)
        constant = constant.float().contiguous(memory_format=LAST)
        if not torch.compiler.is_compiling():
            self.borders = size, constant  # of the last size alone
        return constant

    def values(self, x):
        """The convolution's output, of its quantized weights and activations: (N, C_out, H', W')."""
        sums, window = self._sums(x)
        scale, offset = self.factors
        return torch.addcmul(self.constant(x), sums, scale).addcmul_(window, offset)

    def forward(self, x, finish=None, residual=None):
        """finish: what follows, or None for the sums S, integers. residual: added where the finish says."""
        return self._sums(x)[0] if finish is None else finish(self.values(x), residual)


class MaxoutFinish(Finish):
    """BatchNorm and residual, then `Maxout`: slopes of both sides, of any sign."""

    @classmethod
    def after(cls, norm=None, act=None, shortcut_norm=None, scale=None):
        """As `Finish.after`, for act a Maxout."""
        finish = super().after(norm, None, shortcut_norm, scale)
        finish.register_buffer("slopes", torch.stack([act.pos, act.neg]).detach())
        finish.prepare()
        return finish

    def derive(self):
        super().derive()
        if "slopes" in self._buffers:
            self.table[[layout.Finish.POSITIVE, layout.Finish.NEGATIVE]] = self.slopes


def finish_after(norm, act, shortcut_norm=None, scale=None):
    """The `Finish` of any method's activation. Raises ValueError for an activation that no method has."""
    kind = MaxoutFinish if isinstance(act, Maxout) else Finish
    return kind.after(norm, act, shortcut_norm, scale)
