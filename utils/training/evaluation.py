"""What cifar.eval and imagenet.eval do alike: open a checkpoint, and say what it is."""

import torch

from models import build_model, family_of
from models.inference import pack_network
from utils import complexity
from utils.checkpoint import add_bits_flags, dtype_of, open_model
from utils.checkpoint.packed import is_packed
from utils.command import RunError, UsageError
from utils.training import distributed, engine


def add_flags(parser):
    """The checkpoint, how to compute, and how to tell."""
    parser.add_argument("--checkpoint", metavar="PATH", help="ours, packed or not, or a released one")
    parser.add_argument("--packed", action="store_true", help="evaluate its 1-bit form, by XOR and popcount on the CPU")
    add_bits_flags(parser)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    parser.add_argument("--amp", choices=("auto", *engine.AMP), default="off", help="mixed precision")
    parser.add_argument("--no-progress", action="store_true", help="no progress bars")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")


def open_checkpoint(args):
    """(network on its device, device, Description) of the flags --checkpoint, --packed, --device and the bits.

    Raises UsageError without a checkpoint, or for a packed network on a GPU; RunError for what is none, or cannot be
    packed.
    """
    if not args.checkpoint:
        raise UsageError("--checkpoint PATH is needed")
    packed = is_packed(args.checkpoint)
    if packed or args.packed:
        if args.device not in ("auto", "cpu"):
            raise UsageError(f"a packed network runs on the CPU, not on --device {args.device}")
        args.device = "cpu"
    device = engine.choose_device(args.device)
    model, description = open_model(args.checkpoint, args.weight_bits, args.activation_bits)
    if args.packed and not packed:
        try:
            model = pack_network(model)
        except ValueError as error:
            raise RunError(f"{args.checkpoint} cannot be packed: {error}") from None
    return model.to(device), device, description


def check_family(description, family):
    """Raise UsageError unless the network is one of `family`."""
    own = family_of(description.network.get("dataset", "cifar10"))
    if own != family:
        raise UsageError(f"{description.path} holds a network for {own} images: use python -m {own}.eval")


def check_classes(description, classes):
    """Raise UsageError unless the network tells the data's `classes`, and no others, apart."""
    network, known = description.network, description.data.get("classes")
    count = network.get("num_classes") or 10
    if count != len(classes):
        raise UsageError(f"{description.path} tells {count} classes apart, the data have {len(classes)}")
    if known and list(known) != list(classes):
        raise UsageError(f"{description.path} was trained on other classes than the data's {', '.join(classes[:5])}")


def tell(description, model, size):
    """Print what the checkpoint is and what it costs on images of `size`; returns the dtype that it computes in."""
    if distributed.is_main():
        with torch.device("meta"):  # a packed network is not what is counted, and shapes are all that counts
            network = build_model(**description.network)
        counts, _ = complexity.of_run(network, size)
        print(description, counts, sep="\n", flush=True)
    return dtype_of(model.state_dict())
