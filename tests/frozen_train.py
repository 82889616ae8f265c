"""imagenet.train with BatchNorm in evaluation mode, where a batch's parts do not depend on each other, and in double
precision, where the order of a sum does not show. What it trains is dumped by every rank: DUMP<rank>.pt; with it the
rotations that RBNN's first convolution uses, in order, where every rank but the first has fitted another. Its network
is small."""

import os
import sys

import torch
from small_networks import RESNET18
from torch import nn

from imagenet import batches, train
from models.resnet import IMAGENET_STAGES
from modules.weights import Rotation
from utils.training import distributed
from utils.training.trainer import Trainer

frozen = os.environ.get("FROZEN") == "1"
fit, fit_to, rotate = Trainer.fit, Rotation.fit_to, Rotation.forward
used, width = [], RESNET18[0][0]


def dumping_fit(trainer, *args, **kwargs):
    try:
        return fit(trainer, *args, **kwargs)
    finally:
        dumped = trainer.model.state_dict() | {f"used.{i}": left for i, left in enumerate(used)}
        torch.save(dumped, f"{os.environ['DUMP']}{distributed.rank()}.pt")


def fit_another(rotation, w):
    fit_to(rotation, w)
    rotation.left.copy_(rotation.left.roll(distributed.rank(), 0))


def recording_rotate(rotation, w):
    if w.shape[:2] == (width, width) and rotation.training:
        used.append(rotation.left.clone())
    return rotate(rotation, w)


IMAGENET_STAGES["resnet18"] = RESNET18
Trainer.fit, Rotation.fit_to, Rotation.forward = dumping_fit, fit_another, recording_rotate
if frozen:
    torch.set_default_dtype(torch.float64)
    batches.Batches.__init__.__kwdefaults__["dtype"] = torch.float64
    for norm in (nn.BatchNorm1d, nn.BatchNorm2d):
        norm.train = lambda self, mode=True: nn.Module.train(self, False)
train.main(sys.argv[1:])
