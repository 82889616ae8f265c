"""The sign function and the gradient estimators that train through it.

Every binarizer takes sign(x) as equation (3) defines it, +1 where x >= 0 and -1 elsewhere, never 0: exact 1-bit
inference depends on it. They differ in the gradient that they put in the place of sign's own, which is zero almost
everywhere. One that gives back the signs themselves says so, by `returns_signs = True`: then a convolution may keep
its input in 8 bits. One that scales or shifts them says nothing. A backward pass needs one tensor of x's size, or none;
AdaptiveSign's, made of plain operations, three.
"""

import math

import torch
from torch import nn


def binary_sign(x):
    """+1 where x >= 0, -1 elsewhere (equation 3); same shape, dtype and memory format. No gradient of its own."""
    if torch.compiler.is_compiling():  # it fuses the passes, and breaks its graph at an out= in channels_last
        return (x >= 0).to(x.dtype) * 2 - 1
    return torch.ge(x, 0, out=torch.empty_like(x)).mul_(2).sub_(1)  # booleans take a CPU several times as long


class _ClipSign(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return binary_sign(x)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        beyond = 1 + torch.finfo(x.dtype).eps  # the number after 1: hardtanh's own gradient is 0 at its bounds
        return torch.ops.aten.hardtanh_backward(grad, x, -beyond, beyond)


class _BiRealSign(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return binary_sign(x)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return torch.rsub(x.abs(), 2, alpha=2).clamp_(min=0).mul_(grad)


class _EDESign(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, k, t):
        ctx.save_for_backward(x, k, t)
        return binary_sign(x)

    @staticmethod
    def backward(ctx, grad):
        x, k, t = ctx.saved_tensors
        return (x * t).tanh_().square_().neg_().add_(1).mul_(k * t).mul_(grad), None, None


class _IdentitySign(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return binary_sign(x)

    @staticmethod
    def backward(ctx, grad):
        return grad


class _TriangleSign(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, k, t):
        ctx.save_for_backward(x, k, t)
        return binary_sign(x)

    @staticmethod
    def backward(ctx, grad):
        x, k, t = ctx.saved_tensors
        slope = x.abs().mul_(-t.square()).add_(math.sqrt(2) * t).mul_(k).clamp_(min=0)
        return slope.mul_(grad), None, None


class IdentitySTE(nn.Module):
    """Straight-through estimator, not clipped: forward sign(x); gradient 1 everywhere.

    For weights that are clamped before their sign is taken, as in ReCU, Xu et al., ICCV 2021.
    """

    returns_signs = True

    def forward(self, x):
        return _IdentitySign.apply(x)


class ClipSTE(nn.Module):
    """Straight-through estimator, clipped: forward sign(x); gradient 1 where |x| <= 1, else 0.

    Source: Hubara et al., "Binarized Neural Networks", 2016.
    """

    returns_signs = True

    def forward(self, x):
        return _ClipSign.apply(x)


class BiRealSTE(nn.Module):
    """Piecewise polynomial estimator: forward sign(x); gradient 2 - 2|x| where |x| <= 1, else 0.

    Source: Liu et al., "Bi-Real Net", ECCV 2018. IR²Net's estimator for activations.
    """

    returns_signs = True

    def forward(self, x):
        return _BiRealSign.apply(x)


class _Annealed(nn.Module):
    """An estimator whose t grows with the training's progress, from t_min to T_MAX, and whose k is max(1 / t, 1).

    They are no part of a checkpoint, and they live in buffers, not in Python numbers, so that a compiled step does not
    recompile when they change.
    """

    returns_signs = True
    T_MAX = 10.0

    def __init__(self, t_min, floor=0.0):
        super().__init__()
        self.t_min = t_min
        self.floor = floor
        self.register_buffer("k", torch.ones(()), persistent=False)
        self.register_buffer("t", torch.ones(()), persistent=False)
        self._anneal(0.0)

    def _anneal(self, progress):
        """t = t_min * (T_MAX / t_min)^progress, not below the floor, for progress in [0, 1]; t before the floor."""
        unfloored = self.t_min * (self.T_MAX / self.t_min) ** progress
        t = max(unfloored, self.floor)
        self.t.fill_(t)
        self.k.fill_(max(1 / t, 1))
        return unfloored


class EDE(_Annealed):
    """Error decay estimator: forward sign(x); gradient k * t * (1 - tanh²(t * x)).

    Early in training the gradient is nearly that of the identity, late nearly that of sign.

    Source: Qin et al., "Forward and Backward Information Retention for Accurate Binary Neural Networks", CVPR 2020.
    """

    def __init__(self, t_min=1e-3):
        super().__init__(t_min)

    def set_progress(self, progress):
        """For progress in [0, 1]; {"ede_k", "ede_t"}."""
        self._anneal(progress)
        return {"ede_k": self.k.item(), "ede_t": self.t.item()}

    def forward(self, x):
        return _EDESign.apply(x, self.k, self.t)


class TrainingAwareSTE(_Annealed):
    """Triangular estimator that narrows: forward sign(x); gradient max(0, k * (sqrt(2) t - t² |x|)).

    t does not fall below `floor`, so that k is 1 where the floor is 1.

    Source: RBNN, Lin et al., NeurIPS 2020, whose activations have a floor of 1.
    """

    def __init__(self, t_min=1e-2, floor=0.0):
        super().__init__(t_min, floor)

    def set_progress(self, progress):
        """For progress in [0, 1]; {"sign_t"}, t before the floor."""
        return {"sign_t": self._anneal(progress)}

    def forward(self, x):
        return _TriangleSign.apply(x, self.k, self.t)

    def extra_repr(self):
        return f"floor={self.floor}"


class AdaptiveSign(nn.Module):
    """Two values for activations, wherever they are needed: alpha * (sign((x - beta) / alpha) + beta).

    alpha and beta are learned, one of each, and start at 1 and 0; sign has the Bi-Real gradient. The values are not -1
    and +1, so that it does not say `returns_signs`.

    Source: AdaBin, Tu et al., ECCV 2022.
    """

    def __init__(self):
        super().__init__()
        self.sign = BiRealSTE()
        self.alpha = nn.Parameter(torch.ones(()))
        self.beta = nn.Parameter(torch.zeros(()))

    def signs(self, x):
        """Which of the two values: +1 or -1, shaped as x."""
        return self.sign((x - self.beta) / self.alpha)

    def forward(self, x):
        return self.alpha * (self.signs(x) + self.beta)
