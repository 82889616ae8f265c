"""Information restriction (IRes): what the network pays no attention to is taken out of its input, and it learns again.

Source: section IV-A, equations (5) to (10), Algorithm 1. Training only: inference is untouched.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from modules.conv import weights_binarized_once

VARIANTS = ("paper", "released", "quantile")


def _check(variant):
    if variant not in VARIANTS:
        raise ValueError(f"variant must be one of {', '.join(VARIANTS)}, not {variant!r}")


def attention_map(features, variant="paper"):
    """Attention over positions, (N, H, W), of features A_l (N, C, H, W).

    paper, quantile: the sum over channels of the squares, equation (5). released: their mean, L2-normalised along the
    height, as the authors' code has it. Computed in float32 at least. Raises ValueError for another variant.
    """
    _check(variant)
    squares = features.to(torch.promote_types(features.dtype, torch.float32)).square()
    if variant == "released":
        return F.normalize(squares.mean(1), dim=1)
    return squares.sum(1)


def mean_threshold(attention, lam):
    """tau = lam * mean over the image, equation (9), (N, 1, 1, 1), of attention (N, 1, H, W)."""
    return lam * attention.mean((2, 3), keepdim=True)


def quantile_threshold(attention, lam):
    """tau (N, 1, 1, 1): the lam-quantile of each image's attention (N, 1, H, W), so that lam of the pixels lie below.

    This project's own, not the paper's: features that a Hardtanh saturates make so flat a map that nothing falls below
    0.15 of its mean, while some pixels are always the least attended. tau is one of the map's values. Where several
    pixels share it, as near a border where bilinear upsampling repeats the edge, they stay together: of the two values
    around the quantile, tau is the one that comes nearer to lam. The largest value is never below tau, so that an
    image of equal features keeps every pixel, and lam = 1 keeps the most attended ones.
    """
    values = attention.flatten(1)
    pixels = values.shape[1]
    wanted = lam * pixels
    # The smallest of those to keep. Not kthvalue, which --deterministic forbids on a GPU, nor a sort, 5 times slower.
    kept = values.topk(max(pixels - round(wanted), 1), sorted=False).values
    tau = kept.amin(1, keepdim=True)
    above = values > tau
    missing = wanted - (values < tau).sum(1, keepdim=True)
    excess = pixels - above.sum(1, keepdim=True) - wanted  # if the pixels at tau were masked too
    following = values.masked_fill(~above, math.inf).amin(1, keepdim=True)
    tau = torch.where(above.any(1, keepdim=True) & (excess < missing), following, tau)
    return tau.view(-1, 1, 1, 1)


def attention_mask(features, size, lam, variant="paper"):
    """Mask (N, 1, *size) of ones, where the network looks, and zeros; no gradient.

    The attention map of features (N, C, h, w) is upsampled bilinearly to `size` (6); a pixel is kept where the map is
    at least lam times its mean over the image (8, 9), so that lam = 0 keeps all. released: corners aligned, and
    strictly more than lam times the mean. quantile: at least the image's lam-quantile.
    """
    released = variant == "released"
    attention = attention_map(features.detach(), variant).unsqueeze(1)
    attention = F.interpolate(attention, size=size, mode="bilinear", align_corners=released)
    threshold = quantile_threshold(attention, lam) if variant == "quantile" else mean_threshold(attention, lam)
    keep = attention > threshold if released else attention >= threshold
    return keep.to(attention.dtype)


class PlainLoss(nn.Module):
    """One training step without IRes: `step(images, targets) -> loss, logits, metrics`.

    It owns the model, so that DistributedDataParallel and torch.compile wrap the step as a whole.
    """

    def __init__(self, model, criterion):
        super().__init__()
        self.model = model
        self.criterion = criterion

    def forward(self, images, targets):
        logits = self.model(images)
        return self.criterion(logits, targets), logits, {}


class IResLoss(nn.Module):
    """One training step with IRes, Algorithm 1: `step(images, targets) -> loss, logits, metrics`.

    The images (N, C, H, W), already normalised, pass twice: as they are, then masked by the attention that the first
    pass paid (7). loss = mu * loss(original) + (1 - mu) * loss(masked), equation (10). The logits are the first
    pass's; the metrics are scalars: the two losses, and the fraction of pixels masked.

    model: has `features(images)`, whose last map is A_l, and `classify(maps)`.
    criterion: function of (logits, targets), to a scalar. Raises ValueError for lam, mu or a variant out of range.
    """

    def __init__(self, model, criterion, lam=0.15, mu=0.5, variant="paper"):
        super().__init__()
        if not 0 <= lam <= 1 or not 0 <= mu <= 1:
            raise ValueError(f"lam and mu must lie in [0, 1], not {lam} and {mu}")
        _check(variant)
        self.model = model
        self.criterion = criterion
        self.lam = lam
        self.mu = mu
        self.variant = variant

    def forward(self, images, targets):
        maps = self.model.features(images)
        logits = self.model.classify(maps)
        original = self.criterion(logits, targets)
        mask = attention_mask(maps[-1], images.shape[2:], self.lam, self.variant)
        masked = self.criterion(self.model(images * mask.to(images.dtype)), targets)
        loss = self.mu * original + (1 - self.mu) * masked
        return loss, logits, _metrics(original, masked, mask)


def _metrics(original, masked, mask):
    return {"loss_original": original.detach(), "loss_masked": masked.detach(), "masked_fraction": 1 - mask.mean()}


class ThriftyIResLoss(IResLoss):
    """IResLoss without what it would compute twice; whoever reads how IRes works can leave it out.

    Weights are binarized once a step, not once a pass. On a CPU a second pass over unmasked images, which could only
    repeat the first, is not computed: the loss, its gradient and BatchNorm's statistics are what two passes give, in a
    model without randomness, as all here are. A GPU would have to wait to be asked for the mask. Compiled it is
    IResLoss itself: the compiler finds what the passes share.
    """

    def forward(self, images, targets):
        if torch.compiler.is_compiling():
            return super().forward(images, targets)
        with weights_binarized_once(self.model):
            if images.is_cpu:
                return self._forward_on_cpu(images, targets)
            return super().forward(images, targets)

    def _forward_on_cpu(self, images, targets):
        statistics = _Statistics(self.model)
        maps = self.model.features(images)
        logits = self.model.classify(maps)
        original = self.criterion(logits, targets)
        mask = attention_mask(maps[-1], images.shape[2:], self.lam, self.variant)
        if statistics.are_exponential and mask.all():
            statistics.update_again()
            masked = original
        else:
            masked = self.criterion(self.model(images * mask.to(images.dtype)), targets)
        loss = self.mu * original + (1 - self.mu) * masked
        return loss, logits, _metrics(original, masked, mask)


class _Statistics:
    """BatchNorm's running statistics before a pass of `model`, from which a second, equal pass can be made up."""

    def __init__(self, model):
        norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        norms = [norm for norm in norms if norm.training and norm.track_running_stats]
        self.are_exponential = all(norm.momentum is not None for norm in norms)
        self.before = [(norm, norm.running_mean.clone(), norm.running_var.clone()) for norm in norms]

    @torch.no_grad()
    def update_again(self):
        """Two steps of momentum m towards one batch's statistics lead 2 - m times as far as the first of them.

        Through `data`: the first pass's graph names these buffers, and its backward does not read them.
        """
        for norm, mean, var in self.before:
            norm.running_mean.data.copy_(mean.lerp(norm.running_mean, 2 - norm.momentum))
            norm.running_var.data.copy_(var.lerp(norm.running_var, 2 - norm.momentum))
            norm.num_batches_tracked += 1
