"""Loss functions: (logits (N, classes), targets) -> scalar, computed in float32 at least."""

import torch
import torch.nn.functional as F


def _wide(logits):
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def cross_entropy(logits, targets):
    """Mean cross-entropy; targets: int64 (N,)."""
    return F.cross_entropy(_wide(logits), targets)
