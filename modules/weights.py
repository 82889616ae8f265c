"""What a method does to latent weights before their sign is taken, and the scale and offset it gives the signs.

A weight transform is made from the shape (C_out, C_in, kH, kW) of the latent weights, and maps them to (weights to
binarize, scale, offset): the convolution uses sign(weights) * scale + offset. Scale and offset are (C_out, 1, 1, 1), or
None where the method has none. A transform may also have
    start_from(w)  what it learns starts from the initial weights w
    fit_to(w)      once per epoch, before its first step: what it holds in buffers is fitted to the weights w
and the hooks of `modules.progress`.
"""

import math

import torch
from torch import nn

from modules.binarize import binary_sign
from modules.precision import no_autocast


def _per_channel(w, statistic):
    """`statistic` of each output channel's weights, shaped (C_out, 1, 1, 1)."""
    return statistic(w.flatten(1)).view(-1, 1, 1, 1)


def standardize(w, eps=None):
    """(w - mean) / std per output channel, with the unbiased std; with eps, that of sqrt(variance + eps)."""
    w = w - _per_channel(w, lambda v: v.mean(1))
    if eps is None:
        return w / _per_channel(w, lambda v: v.std(1))
    return w / (_per_channel(w, lambda v: v.var(1)) + eps).sqrt()


class ChannelScale(nn.Module):
    """Scale = mean |w| per output channel (XNOR-Net, Rastegari et al., ECCV 2016).

    detach: keep the scale out of the gradient, as ReActNet does.
    """

    def __init__(self, shape, detach=False):
        super().__init__()
        self.detach = detach

    def forward(self, w):
        scale = _per_channel(w, lambda v: v.abs().mean(1))
        return w, scale.detach() if self.detach else scale, None


class LibraPB(nn.Module):
    """Libra parameter binarization: per output channel w^ = (w - mean) / std, scale = 2^round(log2(mean |w^|)).

    std is the unbiased one; the scale, a power of two and thus a bit shift at inference, carries no gradient.

    Source: IR-Net, Qin et al., CVPR 2020, equations (6) to (8).
    """

    def __init__(self, shape):
        super().__init__()

    def forward(self, w):
        w = standardize(w)
        scale = torch.exp2(_per_channel(w, lambda v: v.abs().mean(1)).log2().round())
        return w, scale.detach(), None


class SelfDistribution(nn.Module):
    """Shifts the weights' distribution before the sign: w + sigmoid(alpha) * 0.01 * mean(w) per output channel.

    alpha (C_out,) is learned and starts at 0; the mean carries no gradient. No scale.

    Source: SD-BNN, Xue et al., Applied Intelligence, 2022.
    """

    def __init__(self, shape):
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(shape[0]))

    def forward(self, w):
        shift = torch.sigmoid(self.alpha).view(-1, 1, 1, 1) * 0.01
        return w + shift * _per_channel(w, lambda v: v.mean(1)).detach(), None, None


class ChannelDistribution(nn.Module):
    """The weights' two values at their distribution's centre and distance: sign((w - beta) / alpha) * alpha + beta.

    Per output channel beta = mean(w) and alpha = the biased standard deviation, both with gradient.

    Source: AdaBin, Tu et al., ECCV 2022.
    """

    def __init__(self, shape):
        super().__init__()

    def forward(self, w):
        beta = _per_channel(w, lambda v: v.mean(1))
        centred = w - beta
        # In the order of the released code: its trained network's figure depends on the last bits.
        alpha = _per_channel(centred, lambda v: (v.square().sum(1) / v.shape[1]).sqrt())
        return centred / alpha, alpha, beta


class RectifiedClamp(nn.Module):
    """Brings back the weights in the tails, which hardly ever change sign: clamp(w^, -Q, Q), with a learned scale.

    w^ = 2 sqrt(2) (w - mean) / sqrt(variance + 1e-5) per output channel (unbiased); Q = -mean |w^| ln(2 - 2 tau) over
    the whole layer is the quantile tau of a Laplace distribution, and carries no gradient. tau follows the training's
    progress. scale alpha (C_out, 1, 1) is learned, and uniform in [0, 1] at first.

    Source: ReCU, Xu et al., ICCV 2021.
    """

    TAU_FIRST, TAU_LAST = 0.85, 0.99

    def __init__(self, shape):
        super().__init__()
        self.alpha = nn.Parameter(torch.rand(shape[0], 1, 1))
        self.register_buffer("tau", torch.full((1,), self.TAU_FIRST))

    def set_progress(self, progress):
        """tau goes from 0.85 to 0.99 as (e^progress - 1) / (e - 1) does from 0 to 1; {"tau"}."""
        tau = self.TAU_FIRST + (self.TAU_LAST - self.TAU_FIRST) * math.expm1(progress) / math.expm1(1)
        self.tau.fill_(tau)
        return {"tau": tau}

    def forward(self, w):
        w = 2 * math.sqrt(2) * standardize(w, eps=1e-5)
        bound = (-w.abs().mean() * (2 - 2 * self.tau).log()).detach()
        return torch.clamp(w, -bound, bound), self.alpha.view(-1, 1, 1, 1), None


class Rotation(nn.Module):
    """Turns weights towards their signs, per output channel: X + |sin theta| * (R1' X R2 - X), with a learned scale.

    X = (w - mean) / std (unbiased), as a matrix (a, b) with a * b = C_in * kH * kW, a the largest divisor that is at
    most the square root. R1 (a, a) and R2 (b, b), named left and right, are orthogonal; the rotated weights carry no
    gradient. theta (C_out, 1, 1, 1) is learned and starts at pi/2, where the gradient to w is exactly 0: weight decay
    must reach it. scale alpha (C_out, 1, 1) is learned and starts at mean |w|.

    Source: RBNN, Lin et al., NeurIPS 2020.
    """

    ROUNDS = 3

    def __init__(self, shape):
        super().__init__()
        size = math.prod(shape[1:])
        rows = next(a for a in range(math.isqrt(size), 0, -1) if size % a == 0)
        self.alpha = nn.Parameter(torch.ones(shape[0], 1, 1))
        self.theta = nn.Parameter(torch.full((shape[0], 1, 1, 1), math.pi / 2))
        self.register_buffer("left", nn.init.orthogonal_(torch.empty(rows, rows)))
        self.register_buffer("right", nn.init.orthogonal_(torch.empty(size // rows, size // rows)))

    @torch.no_grad()
    def start_from(self, w):
        self.alpha.copy_(w.abs().mean((1, 2, 3)).view(-1, 1, 1))

    def _matrices(self, w):
        return w.view(len(w), len(self.left), len(self.right))

    @torch.no_grad()
    def fit_to(self, w):
        """The rotations that bring the weights nearest to their signs, in turn: signs, then R1, then R2."""
        x = self._matrices(standardize(w).contiguous())
        for _ in range(self.ROUNDS):
            signs = binary_sign(self.left.T @ x @ self.right)
            u, _, v = torch.linalg.svd((signs @ self.right.T @ x.mT).sum(0))
            self.left.copy_(v.T @ u.T)
            u, _, v = torch.linalg.svd((x.mT @ self.left @ signs).sum(0))
            self.right.copy_(u @ v)

    def forward(self, w):
        x = standardize(w)
        with torch.no_grad(), no_autocast(w.device):
            rotated = (self.left.T @ self._matrices(x.contiguous()) @ self.right).view_as(x)
        return x + self.theta.sin().abs() * (rotated - x), self.alpha.view(-1, 1, 1, 1), None
