"""The network whose predictions a student learns: a checkpoint of ours or a release, or a ResNet of torchvision."""

from pathlib import Path
from urllib.error import URLError

import torch

from utils import checkpoint
from utils.command import RunError, UsageError

TORCHVISION = ("resnet34", "resnet50", "resnet101")
DEFAULT = "default"
NONE = "none"


class Teacher:
    """teacher(images (N, 3, H, W)) -> logits (N, classes), without gradient.

    Not an nn.Module: a step that held it would send its weights between ranks and into checkpoints.
    """

    def __init__(self, model, device):
        self.model = model.eval().requires_grad_(False).to(device)

    @torch.no_grad()
    def __call__(self, images):
        return self.model(images)


def load_teacher(name, classes, device, weights=DEFAULT):
    """The Teacher called `name`: the path of a checkpoint that `load_model` reads, or one of TORCHVISION.

    classes: the names of the data's. weights, of a torchvision network: DEFAULT, which torchvision downloads, or the
    path of its state_dict. Raises UsageError if the teacher has another number of classes, or others; RunError
    if its file cannot be read or fetched.
    """
    if name not in TORCHVISION:
        if not Path(name).exists():
            raise UsageError(f"no teacher {name!r}: give a checkpoint's path, none, or {', '.join(TORCHVISION)}")
        model, contents = checkpoint.open_model(name)
        _check_classes(name, model.fc.out_features, contents.data.get("classes"), classes)
    elif weights == DEFAULT:
        _check_classes(name, 1000, None, classes)
        try:
            model = _torchvision_network(name, weights="DEFAULT")
        except URLError as error:
            raise RunError(f"cannot download {name}'s weights ({error}): give --teacher-weights PATH") from None
    else:
        state = checkpoint.read(weights)
        state = state.get("model", state) if isinstance(state, dict) else {}  # torchvision's training keeps more
        if not torch.is_tensor(state.get("fc.weight")):
            raise RunError(f"{weights} holds no weights of a torchvision {name}")
        _check_classes(weights, len(state["fc.weight"]), None, classes)
        model = _torchvision_network(name, num_classes=len(classes))
        checkpoint.load_state(model, state, weights)
    return Teacher(model, device)


def _torchvision_network(name, **options):
    from torchvision.models import get_model  # seconds, which most commands need not wait

    return get_model(name, **options)


def _check_classes(source, count, known, classes):
    remedy = "give --teacher PATH of a network trained on them, or --teacher none"
    if count != len(classes):
        raise UsageError(f"the teacher {source} has {count} classes, the data have {len(classes)}: {remedy}")
    if known and list(known) != list(classes):
        raise UsageError(f"the teacher {source} learned other classes than the data's, or in another order: {remedy}")
