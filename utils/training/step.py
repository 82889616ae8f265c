"""From flags to what a trainer needs: the network, the loss, the step."""

from functools import partial

import torch

from models import build_model
from modules.restriction import PlainLoss, ThriftyIResLoss
from utils.command import UsageError
from utils.training.flags import network_config
from utils.training.losses import cross_entropy, distillation
from utils.training.teacher import NONE


def new_network(network):
    """build_model(**network). Raises UsageError for what does not exist or does not fit together."""
    try:
        return build_model(**network)
    except ValueError as error:
        raise UsageError(str(error)) from None


def check_t_min(args, given):
    """Raise UsageError if --t-min is among the given flags, {name: value}, and no estimator of the network has a t."""
    if "t_min" in given:
        bits = {"weight_bits": args.weight_bits or 1, "activation_bits": args.activation_bits or 1}
        with torch.device("meta"):  # weights are not needed
            model = new_network(network_config(args, **bits))
        if not any(hasattr(module, "t_min") for module in model.modules()):
            raise UsageError(f"--t-min goes with a --method whose estimators have a t: {args.method}'s have none here")


def build_step(args, model):
    """The training step; its targets are the teacher's logits, or labels where there is no teacher."""
    smoothing = getattr(args, "label_smoothing", 0.0)
    criterion = distillation if args.teacher != NONE else partial(cross_entropy, smoothing=smoothing)
    if args.ires:
        return ThriftyIResLoss(model, criterion, args.lam, args.mu, args.ires_variant)
    return PlainLoss(model, criterion)
