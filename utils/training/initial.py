"""Weights to start from: a finished stage's, or those of --init-from."""

from pathlib import Path

from models import describe_network
from modules.conv import start_transforms
from utils import checkpoint
from utils.checkpoint.network import differences_text, few
from utils.command import UsageError

CLASSIFIER = ("fc.weight", "fc.bias")


def start_from(model, network, path, new_classes=False):
    """Give `model` the weights of the checkpoint at `path`; returns a sentence about it.

    network: build_model's arguments that the checkpoint's network must have; the parameters of a weight transform,
    which real weights do not have, may be new. new_classes: the number of classes may differ: then the classifier
    stays as `model` has it. Raises UsageError for another network, or where there is no checkpoint; RunError if it
    cannot be read.
    """
    if not Path(path).exists():
        raise UsageError(f"there is no checkpoint at {path} to start from")
    contents = checkpoint.read_contents(path)
    if contents.packed:
        raise UsageError(f"{path} is packed: its real weights are gone, and training needs them")
    differences = describe_network(**contents.network).differences(describe_network(**network))
    if new_classes:
        differences.pop("num_classes", None)
    if differences:
        raise UsageError(f"{path} is not of this network: it has {differences_text(differences)}")
    own, state = model.state_dict(), dict(contents.state)
    line = f"starting from {path}"
    new = [name for name in own if "weight_transform." in name and name not in state]
    if new:
        line += f"; new parameters: {few(new)}"
    if new_classes and all(name in state and state[name].shape != own[name].shape for name in CLASSIFIER):
        line += f"; a new classifier, for {len(own['fc.bias'])} classes instead of {len(state['fc.bias'])}"
        new += CLASSIFIER
    checkpoint.load_state(model, state | {name: own[name] for name in new}, path)
    if any("weight_transform." in name for name in new):
        start_transforms(model)
    return line
