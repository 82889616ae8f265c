"""Loss functions: (logits (N, classes), targets) -> scalar, computed in float32 at least."""

import torch
import torch.nn.functional as F


def _wide(logits):
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def cross_entropy(logits, targets, smoothing=0.0):
    """Mean cross-entropy; targets: int64 (N,). smoothing: probability that is spread evenly over all classes."""
    return F.cross_entropy(_wide(logits), targets, label_smoothing=smoothing)


def distillation(logits, teacher_logits):
    """-sum softmax(teacher) * log_softmax(student), mean over the batch; temperature 1, no hard labels.

    teacher_logits: (N, classes), in the place of targets. Source: Shen et al., "MEAL V2", 2020, as ReActNet has it.
    """
    return F.cross_entropy(_wide(logits), _wide(teacher_logits).softmax(1))
