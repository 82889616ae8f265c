"""From flags to what a trainer needs: the network, the loss, the step."""

from functools import partial

from models import build_model
from modules.restriction import PlainLoss, ThriftyIResLoss
from utils.command import UsageError
from utils.training.losses import cross_entropy, distillation
from utils.training.teacher import NONE


def new_network(network):
    """build_model(**network). Raises UsageError for what does not exist or does not fit together."""
    try:
        return build_model(**network)
    except ValueError as error:
        raise UsageError(str(error)) from None


def build_step(args, model):
    """The training step; its targets are the teacher's logits, or labels where there is no teacher."""
    smoothing = getattr(args, "label_smoothing", 0.0)
    criterion = distillation if args.teacher != NONE else partial(cross_entropy, smoothing=smoothing)
    if args.ires:
        return ThriftyIResLoss(model, criterion, args.lam, args.mu, args.ires_variant)
    return PlainLoss(model, criterion)
