"""What cifar.eval and imagenet.eval do alike: open a checkpoint, print what it is, score it."""

import json
import math

import torch

from models import build_model
from models.inference import pack_network
from utils import complexity
from utils.checkpoint import dtype_of, open_model
from utils.command import RunError, UsageError
from utils.training import distributed, runtime
from utils.training.flags import add_bits_flags


def add_flags(parser):
    """The checkpoint, how to compute, and how to print."""
    parser.add_argument("--checkpoint", metavar="PATH", help="ours, packed or not, or a released one")
    parser.add_argument("--packed", action="store_true", help="evaluate its 1-bit form, by XOR and popcount on the CPU")
    add_bits_flags(parser)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    parser.add_argument("--amp", choices=("auto", *runtime.AMP), default="off", help="mixed precision")
    parser.add_argument("--no-progress", action="store_true", help="no progress bars")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")


def open_checkpoint(args):
    """(network on its device, Precision, Contents) of the flags --checkpoint, --packed, --device, --amp and the bits.

    Raises UsageError without a checkpoint, or for a packed network on a GPU or in another precision than float32;
    RunError for what is none, or cannot be packed.
    """
    if not args.checkpoint:
        raise UsageError("--checkpoint PATH is needed")
    model, contents = open_model(args.checkpoint, args.weight_bits, args.activation_bits, args.structure)
    if args.packed and not contents.packed:
        try:
            model = pack_network(model)
        except ValueError as error:
            raise RunError(f"{args.checkpoint} cannot be packed: {error}") from None
    if args.packed or contents.packed:
        if args.device not in ("auto", "cpu"):
            raise UsageError(f"a packed network runs on the CPU, not on --device {args.device}")
        if args.amp not in ("auto", "off"):
            raise UsageError(f"a packed network computes in float32, not in --amp {args.amp}: leave it out")
        args.device, args.amp = "cpu", "off"
    device = runtime.choose_device(args.device)
    return model.to(device), runtime.choose_precision(args.amp, device), contents


def check_family(contents, family):
    """Raise UsageError unless the network is one of `family`."""
    if contents.family != family:
        raise UsageError(
            f"{contents.path} holds a network for {contents.family} images: use python -m {contents.family}.eval"
        )


def check_classes(contents, classes):
    """Raise UsageError unless the classes of the network are the data's `classes`."""
    network, known = contents.network, contents.data.get("classes")
    count = network.get("num_classes") or 10
    if count != len(classes):
        raise UsageError(f"{contents.path} has {count} classes, the data have {len(classes)}")
    if known and list(known) != list(classes):
        raise UsageError(f"{contents.path} was trained on other classes than the data's {', '.join(classes[:5])}")


def print_summary(contents, model, size):
    """Print what the checkpoint is and what it costs on images of `size`; returns the dtype that it computes in."""
    if distributed.is_main():
        with torch.device("meta"):  # a packed network is not what is counted, and shapes are all that counts
            network = build_model(**contents.network)
        counts, _ = complexity.of_run(network, size)
        print(contents, counts, sep="\n", flush=True)
    return dtype_of(model.state_dict())


def print_result(args, result, line):
    """Print what was measured, and with --json the result as one JSON object.

    Raises RunError if the loss is not a finite number: no accuracy of such a network means anything.
    """
    if not math.isfinite(result["loss"]):
        raise RunError(f"{args.checkpoint}: the loss is {result['loss']}: the network's weights are not finite")
    print(line)
    if args.json:
        print(json.dumps(result))
