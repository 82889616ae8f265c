"""What a checkpoint holds, whatever its format, and the network that is built from it."""

import functools
from dataclasses import dataclass, field

import torch

from models import CIFAR, NoRandomNumbers, build_model, describe_network, family_of
from utils.command import RunError, UsageError, answering


@dataclass(frozen=True)
class Contents:
    """What a file holds; its text is one line.

    network: build_model's arguments. state: {key: tensor}, of the network or of its packed form. data: what is known
    of the images that it was trained on: classes, image_size and more; empty if nothing is. release: title of the
    released network, layout: its name for `utils.released`; None for a file of ours. tensors: how many the file has;
    unused: those of them that the released network never runs.
    """

    path: str
    network: dict
    state: dict = field(repr=False)
    data: dict = field(default_factory=dict)
    packed: bool = False
    release: str | None = None
    layout: str | None = None
    unused: tuple = ()
    tensors: int = 0

    @property
    def family(self):
        """ "cifar" or "imagenet"."""
        return family_of(self.dataset)

    @property
    def dataset(self):
        """The data set that the network was trained on; "cifar10" where the file does not say."""
        return self.network.get("dataset") or "cifar10"

    @property
    def image_size(self):
        """(H, W) of the images that the network was trained on."""
        default = self.network.get("image_size") or 32 if self.family == CIFAR else 224
        size = self.data.get("image_size") or default
        return (size, size) if isinstance(size, int) else tuple(size)

    @property
    def parameters(self):
        """How many parameters the network has."""
        with torch.device("meta"), NoRandomNumbers():  # not those of `state`: a packed one holds bits and tables
            return sum(p.numel() for p in build_model(**self.network).parameters())

    def __str__(self):
        what = f"{self.release} (layout {self.layout})" if self.release else "a checkpoint of ours"
        unused = f" ({len(self.unused)} unused)" if self.unused else ""
        return (
            f"{self.path}: {what}: {network_text(self.network)}; "
            f"all {self.tensors} tensors matched{unused}; {self.parameters:,} parameters"
        )


def build_network(network, state, path):
    """build_model(**network), in evaluation mode, with the weights of `state` and their dtype.

    Raises RunError if there is no such network, or `state` differs from it in anything.
    """
    if not isinstance(state, dict) or not all(torch.is_tensor(value) for value in state.values()):
        raise RunError(f"{path} holds no weights under 'model'")
    check_shapes(empty_network(network, path), state, path)
    with NoRandomNumbers():
        model = build_model(**network)
    try:
        model.to(dtype_of(state))
        model.load_state_dict(state)
    except (RuntimeError, TypeError) as error:
        raise RunError(f"{path} holds no weights that a network can have: {error}") from None
    return model.eval()


def empty_network(network, path):
    """build_model(**network) without memory, on the meta device: a file may ask for a network of any size.

    Raises RunError if there is no such network.
    """
    try:
        with torch.device("meta"), NoRandomNumbers():
            return build_model(**network)
    except Exception as error:  # whatever values a file may hold
        raise RunError(f"{path} does not describe a network: {type(error).__name__}: {error}") from None


def check_shapes(model, state, path):
    """Raise RunError unless `state` has the keys and shapes of the model's; the first differences are named."""
    own = model.state_dict()
    missing = [key for key in own if not torch.is_tensor(state.get(key))]
    unknown = [str(key) for key in state if key not in own]
    shapes = [
        f"{key} has shape {tuple(state[key].shape)} instead of {tuple(own[key].shape)}"
        for key in own
        if key not in missing and state[key].shape != own[key].shape
    ]
    problems = [f"missing {few(missing)}"] if missing else []
    problems += [f"unknown {few(unknown)}"] if unknown else []
    problems += [few(shapes)] if shapes else []
    if problems:
        raise RunError(f"{path} does not fit the network: {'; '.join(problems)}")


def few(names, shown=3, what="tensors"):
    """The names in a line; of many their number and the first few."""
    if len(names) <= shown:
        return ", ".join(names)
    return f"{len(names)} {what} ({', '.join(names[:shown])}, ...)"


def load_state(model, state, path):
    """model.load_state_dict, strictly, with every difference in one RunError."""
    check_shapes(model, state, path)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise RunError(f"{path} does not fit the network: {error}") from None


def dtype_of(state):
    """The dtype that holds all floating-point tensors of {key: tensor} without rounding."""
    dtypes = [value.dtype for value in state.values() if value.is_floating_point()]
    return functools.reduce(torch.promote_types, dtypes) if dtypes else torch.float32


def bits_text(network):
    """ "1-bit weights and 32-bit activations", of build_model's arguments."""
    return f"{network.get('weight_bits', 1)}-bit weights and {network.get('activation_bits', 1)}-bit activations"


def network_text(network):
    """build_model's arguments in one line, without those that are not set."""
    given = [f"{name}={value}" for name, value in network.items() if value is not None and not name.endswith("_bits")]
    return f"{' '.join(given)}, {bits_text(network)}"


def differences_text(differences):
    """What `NetworkDescription.differences` gives, in words: "groups 8 instead of depthwise"."""
    shown = [(name, *("none" if value is None else value for value in pair)) for name, pair in differences.items()]
    return ", ".join(f"{name} {own} instead of {other}" for name, own, other in shown)


def check_bits(contents, weight_bits, activation_bits, structure=None):
    """Raise RunError if the bits or the structure that were given are not those of the file's network."""
    for name, given in (("weight_bits", weight_bits), ("activation_bits", activation_bits)):
        own = contents.network.get(name, 1)
        if given not in (None, own):
            raise RunError(f"{contents.path} holds a network of {name} {own}, not {given}")
    if structure is not None:
        try:
            own = describe_network(**contents.network).structure
        except (TypeError, ValueError) as error:
            raise RunError(f"{contents.path} does not describe a network: {error}") from None
        if structure != own:
            raise RunError(f"{contents.path} holds a network of structure {own}, not {structure}")


@torch.no_grad()
def check_takes(model, size, source):
    """Raise UsageError unless the network, in evaluation mode, read from `source`, takes images of `size` (H, W)."""
    state, (height, width) = model.state_dict(), size
    device = next(iter(state.values())).device
    with answering(f"the network in {source} does not take images of {height}x{width}", UsageError):
        model(torch.zeros(1, 3, height, width, dtype=dtype_of(state), device=device))


def check_data(data, path):
    """Raise RunError unless `data` can be what a run keeps of its images."""
    if not isinstance(data, dict):
        raise RunError(f"{path} is damaged: what it holds of its data is no table")
    classes, size = data.get("classes"), data.get("image_size")
    sizes = size if isinstance(size, list | tuple) else [size, size]
    if classes is not None and not (isinstance(classes, list) and all(isinstance(name, str) for name in classes)):
        raise RunError(f"{path} is damaged: its classes are no list of names")
    if size is not None and not (len(sizes) == 2 and all(type(s) is int and 0 < s <= 2**14 for s in sizes)):
        raise RunError(f"{path} is damaged: its images have no size {size!r}")
