"""Checkpoints: written whole or not at all, read without running any code, and turned back into a network."""

import copy
import functools
import json
import os
import pickle
import re
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch

from models import build_model
from modules.conv import BinaryConv2d
from utils.command import Parser, RunError, UsageError, command, positive_int

FORMAT = "ir2net"
VERSION = 1
TRAINING_STATE = ("optimizer", "scheduler", "scaler", "rng")
"""What a checkpoint holds for training to go on; the network needs none of it."""


def write(path, content, legacy=False):
    """torch.save to a temporary name beside `path`, then rename it. legacy: in the file format before PyTorch 1.6."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        torch.save(content, temporary, _use_new_zipfile_serialization=not legacy)
        os.replace(temporary, path)
    except (RuntimeError, OSError) as error:
        raise RunError(f"cannot write {path} (is the disk full?): {str(error).splitlines()[0]}") from None
    finally:
        temporary.unlink(missing_ok=True)


def save(path, payload):
    """Write a checkpoint of ours: `payload` is tensors and plain values."""
    write(path, {"format": FORMAT, "version": VERSION, **payload})


def read(path):
    """What a file written by torch.save holds, on the CPU; weights only, so no code in a pickle ever runs.

    Raises RunError in one line if there is no such file, or it is damaged, or holds more than tensors and values.
    """
    path = Path(path)
    if not path.exists():
        raise RunError(f"no checkpoint at {path}")
    if path.is_dir():
        raise RunError(f"{path} is a directory, not a checkpoint")
    if path.stat().st_size == 0:
        raise RunError(f"{path} is empty (0 bytes)")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles that torch.save did not write; the error says enough
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL ([\w.]*\w)", str(error))
        if refused:
            raise RunError(f"{path} holds more than weights ({refused[1]}): refused, nothing in it was run") from None
        raise RunError(f"{path} is no checkpoint, or is damaged") from None
    except Exception as error:  # a damaged file can fail anywhere in torch.load
        raise RunError(f"{path} is no checkpoint, or is truncated ({type(error).__name__})") from None


def load_state(model, state, path):
    """model.load_state_dict, strictly, with every difference in one RunError."""
    own = model.state_dict()
    problems = [f"missing {key}" for key in own if key not in state]
    problems += [f"unknown {key}" for key in state if key not in own]
    problems += [
        f"{key} has shape {tuple(state[key].shape)} instead of {tuple(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    if problems:
        raise RunError(f"{path} does not fit the network: {'; '.join(problems)}")
    model.load_state_dict(state)


def is_ours(payload):
    """Whether `read` gave a checkpoint of this codebase."""
    return isinstance(payload, dict) and payload.get("format") == FORMAT


def build_network(network, state, path):
    """build_model(**network), in evaluation mode, with the weights of `state` and their dtype.

    Raises RunError if there is no such network, or `state` differs from it in anything.
    """
    try:
        model = build_model(**network)
    except (TypeError, ValueError, RuntimeError) as error:
        raise RunError(f"{path} does not describe a network: {error}") from None
    if not isinstance(state, dict) or not all(torch.is_tensor(value) for value in state.values()):
        raise RunError(f"{path} holds no weights under 'model'")
    model.to(dtype_of(state))
    load_state(model, state, path)
    return model.eval()


def network_of(payload, path):
    """The network, in evaluation mode, of a checkpoint of ours."""
    if payload.get("version") != VERSION:
        raise RunError(f"{path} has version {payload.get('version')}; this code reads version {VERSION}")
    if not {"network", "model"} <= payload.keys():
        raise RunError(f"{path} does not hold a network and its weights")
    return build_network(payload["network"], payload["model"], path)


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


@dataclass(frozen=True)
class Description:
    """What a file turned out to hold; its text is one line.

    release: title of the released network, layout: its name for `utils.released`; None for a checkpoint of ours.
    network: build_model's arguments. tensors: how many of the file's matched; unused: those of them that the released
    network never runs. parameters: of the network. data: what a checkpoint of ours keeps of its data; else empty.
    """

    path: str
    release: str | None
    layout: str | None
    network: dict
    tensors: int
    unused: tuple
    parameters: int
    data: dict

    def __str__(self):
        what = f"{self.release} (layout {self.layout})" if self.release else "a checkpoint of ours"
        unused = f" ({len(self.unused)} unused)" if self.unused else ""
        return (
            f"{self.path}: {what}: {network_text(self.network)}; "
            f"all {self.tensors} tensors matched{unused}; {self.parameters:,} parameters"
        )


def _check_bits(network, weight_bits, activation_bits, path):
    for name, said in (("weight_bits", weight_bits), ("activation_bits", activation_bits)):
        own = network.get(name, 1)
        if said not in (None, own):
            raise RunError(f"{path} holds a network of {name} {own}, not {said}")


def open_model(path, weight_bits=None, activation_bits=None):
    """(network, Description) of a checkpoint of ours, packed or not, or of a release; see `load_model`."""
    from utils import released  # they need this module
    from utils.checkpoint import packed

    if packed.is_packed(path):
        content = packed.read_packed(path)
        payload = {"network": content.network}
        model, matched = content.model, {}
        tensors = len(model.state_dict())
        _check_bits(content.network, weight_bits, activation_bits, path)
    elif is_ours(payload := read(path)):
        model = network_of(payload, path)
        _check_bits(payload["network"], weight_bits, activation_bits, path)
        tensors, matched = len(payload["model"]), {}
    else:
        state = released.state_of(payload, path)
        payload = released.convert(state, path, weight_bits, activation_bits)
        model = build_network(payload["network"], payload["model"], path)
        tensors, matched = len(state), payload["released"]
    release = released.RELEASES[matched["name"]].title if matched else None
    with torch.device("meta"):  # not the model's own: a packed network holds bits and tables
        parameters = sum(p.numel() for p in build_model(**payload["network"]).parameters())
    description = Description(
        str(path),
        release,
        matched.get("name"),
        payload["network"],
        tensors,
        tuple(matched.get("unused", ())),
        parameters,
        payload.get("data", {}),
    )
    return model, description


def load_model(path, weight_bits=None, activation_bits=None):
    """The network of a checkpoint, in evaluation mode, on the CPU: model(images (N, 3, H, W)) -> logits (N, classes).

    path: a checkpoint of ours, a packed file of `utils.deploy`, or a release that `utils.released` knows. The network
    takes the dtype of the file's weights. weight_bits, activation_bits: needed only where a released layout fits
    several networks. Raises RunError in one line for anything that is not, to the last tensor, a known network, and
    for bits that contradict it.
    """
    return open_model(path, weight_bits, activation_bits)[0]


def read_ours(path):
    """`read`, or RunError if the file is not a checkpoint of ours."""
    payload = read(path)
    if not is_ours(payload):
        raise RunError(f"{path} is not a checkpoint of ours; python -m utils.released inspect tells what it is")
    return payload


def add_bits_flags(parser):
    """--weight-bits and --activation-bits, for a released file whose layout fits several networks."""
    for name in ("weight", "activation"):
        help = "for a released file that fits several networks"
        parser.add_argument(f"--{name}-bits", type=int, choices=(1, 32), help=help)


def output_path(path, force=False):
    """Path of a file to write. Raises UsageError if it is there and not to be replaced, or its folder is not there."""
    path = Path(path)
    if not path.parent.is_dir():
        raise UsageError(f"no folder {path.parent}")
    if path.is_dir() or (path.exists() and not force):
        raise UsageError(f"{path} is there already: give another name" + ("" if path.is_dir() else ", or add --force"))
    return path


def info(path):
    """What a checkpoint of ours holds, as plain values."""
    payload = read_ours(path)
    model = network_of(payload, path)
    state = payload["model"]
    found = {
        "path": str(path),
        "bytes": Path(path).stat().st_size,
        "network": payload["network"],
        "tensors": len(state),
        "parameters": sum(p.numel() for p in model.parameters()),
        "dtype": str(dtype_of(state)).removeprefix("torch."),
        "training_state": [name for name in TRAINING_STATE if name in payload],
    }
    found |= {name: payload[name] for name in ("epoch", "best", "averaged") if name in payload}
    return found | ({"released": payload["released"]["name"]} if "released" in payload else {})


def halved(model):
    """The state_dict of a network with its matrices and kernels in float16, unless that changes a 1-bit weight."""
    state = {key: value.half() if value.dim() > 1 else value for key, value in model.state_dict().items()}
    rounded = copy.deepcopy(model)
    load_state(rounded, state, "what float16 holds")
    for (name, before), after in zip(model.named_modules(), rounded.modules()):
        is_binary = isinstance(before, BinaryConv2d) and before.weight_bits == 1
        if is_binary and not torch.equal(before.binary_weight()[0], after.binary_weight()[0]):
            state[f"{name}.weight"] = before.weight.data
    return state


def build_parser():
    from cifar.data import DATASETS

    parser = Parser(prog="utils.checkpoint", description="Look into checkpoints of ours, strip them, average them.")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Parser)
    sub = commands.add_parser("info", help="what is in a checkpoint")
    sub.add_argument("path")
    sub.add_argument("--json", action="store_true", help="one JSON object as the last line")
    sub = commands.add_parser("strip", help="leave out what only training needs")
    sub.add_argument("path")
    sub.add_argument("out")
    sub.add_argument(
        "--half", action="store_true", help="matrices and kernels in float16, where no 1-bit weight changes"
    )
    sub.add_argument("--force", action="store_true", help="replace OUT if it exists")
    sub = commands.add_parser("average", help="average weights, and estimate BatchNorm's statistics anew")
    sub.add_argument("out")
    sub.add_argument("paths", nargs="+", metavar="path")
    sub.add_argument("--dataset", choices=DATASETS, default="cifar10")
    sub.add_argument("--data-dir", metavar="DIR", help="where the data set lies (digits needs none)")
    sub.add_argument("--image-size", type=positive_int, metavar="N", help="resize a folder's images to NxN")
    sub.add_argument("--batch-size", type=positive_int, default=128)
    sub.add_argument("--seed", type=int, default=0, help="of the augmentation")
    sub.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    sub.add_argument("--force", action="store_true", help="replace OUT if it exists")
    return parser


@command
def main(argv=None):
    args = build_parser().parse_args(argv)
    if args.command == "info":
        found = info(args.path)
        for name, value in found.items():
            print(f"{name}: {network_text(value) if name == 'network' else value}")
        if args.json:
            print(json.dumps(found))
        return
    out = output_path(args.out, args.force)
    if args.command == "strip":
        payload = read_ours(args.path)
        model = network_of(payload, args.path)
        kept = {name: value for name, value in payload.items() if name not in TRAINING_STATE}
        if args.half:
            kept["model"] = halved(model)
        save(out, kept)
        print(f"{out}: {Path(args.path).stat().st_size / 1e6:.2f} MB -> {out.stat().st_size / 1e6:.2f} MB")
        return
    from utils.checkpoint.average import average_on_training_images  # it needs this module

    averaged = average_on_training_images(
        args.paths, args.dataset, args.data_dir, args.image_size, args.batch_size, args.seed, args.device
    )
    save(out, averaged)
    print(f"{out}: the mean of {len(args.paths)} checkpoints, BatchNorm on {args.dataset}'s training images")


if __name__ == "__main__":
    main()
