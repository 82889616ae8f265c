"""The network whose predictions a student learns: a checkpoint of ours or a release, or a ResNet of torchvision."""

from http.client import HTTPException
from pathlib import Path
from pickle import UnpicklingError

import torch

from utils import checkpoint
from utils.checkpoint.network import check_takes
from utils.command import RunError, UsageError, answering

TORCHVISION = ("resnet34", "resnet50", "resnet101")
DEFAULT = "default"
NONE = "none"
DOWNLOAD_ERRORS = (OSError, HTTPException, RuntimeError, EOFError, UnpicklingError)
"""What torch.hub raises where there is no network, the connection ends early, or its file is damaged."""


class Teacher:
    """teacher(images (N, 3, H, W)) -> logits (N, classes), without gradient.

    Not an nn.Module: a step that held it would send its weights between ranks and into checkpoints.
    """

    def __init__(self, model, device):
        self.model = model.eval().requires_grad_(False).float().to(device)  # its file may hold another precision
        for module in model.modules():
            if isinstance(module, torch.nn.Conv2d):
                module.to(memory_format=torch.channels_last)  # as the images are

    @torch.no_grad()
    def __call__(self, images):
        return self.model(images)


def load_teacher(name, classes, size, device, weights=DEFAULT):
    """The Teacher called `name`: the path of a checkpoint that `load_model` reads, or one of TORCHVISION.

    classes: the names of the data's; size: (H, W) of its images. weights, of a torchvision network: DEFAULT, which
    torchvision downloads, or the path of its state_dict. Raises UsageError if the teacher has another number of
    classes, or others, or does not take such images; RunError if its file cannot be read or fetched.
    """
    if name not in TORCHVISION:
        if not Path(name).exists():
            raise UsageError(f"no teacher {name!r}: give a checkpoint's path, none, or {', '.join(TORCHVISION)}")
        model, contents = checkpoint.open_model(name)
        _check_classes(name, model.fc.out_features, contents.data.get("classes"), classes)
    elif weights == DEFAULT:
        _check_classes(name, 1000, None, classes)
        damaged = f"or give --teacher-weights PATH, or remove what is damaged in {torch.hub.get_dir()}"
        with answering(f"cannot download {name}'s weights: try again, {damaged}", errors=DOWNLOAD_ERRORS):
            model = _torchvision_network(name, weights="DEFAULT")
    else:
        state = checkpoint.read(weights)
        state = state.get("model", state) if isinstance(state, dict) else {}  # torchvision's training keeps more
        if not torch.is_tensor(state.get("fc.weight")):
            raise RunError(f"{weights} holds no weights of a torchvision {name}")
        _check_classes(weights, len(state["fc.weight"]), None, classes)
        model = _torchvision_network(name, num_classes=len(classes))
        checkpoint.load_state(model, state, weights)
    teacher = Teacher(model, device)
    check_takes(teacher.model, size, name)
    return teacher


def check_resumed(args, stored):
    """Raise UsageError if one of the run, `stored`, and the job that resumes it, of flags `args`, has no teacher.

    The teacher's file may have moved: it can have another path.
    """
    before = stored["args"]["teacher"]
    if NONE in (before, args.teacher) and before != args.teacher:
        raise UsageError(f"the run has --teacher {before}, not {args.teacher}: leave --teacher out")


def _torchvision_network(name, **options):
    from torchvision.models import get_model  # seconds, which most commands need not wait

    return get_model(name, **options)


def _check_classes(source, count, known, classes):
    remedy = "give --teacher PATH of a network trained on them, or --teacher none"
    if count != len(classes):
        raise UsageError(f"the teacher {source} has {count} classes, the data have {len(classes)}: {remedy}")
    if known and list(known) != list(classes):
        raise UsageError(f"the teacher {source} learned other classes than the data's, or in another order: {remedy}")
