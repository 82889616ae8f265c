"""Look into checkpoints of ours, strip them, average them."""

import copy
import json
from pathlib import Path

import torch

from cifar import data
from models import CIFAR
from modules.conv import BinaryConv2d
from utils.checkpoint import (
    TRAINING_STATE,
    dtype_of,
    load_state,
    network_of,
    network_text,
    read_contents,
    read_ours,
    save,
)
from utils.checkpoint.average import average
from utils.command import Parser, RunError, answering, command, image_size, non_negative_int, positive_int
from utils.files import output_path
from utils.training.evaluation import check_classes
from utils.training.runtime import choose_device


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
    parser = Parser(prog="utils.checkpoint", description=__doc__)
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
    sub.add_argument("--dataset", choices=data.DATASETS, help="default: the first network's own")
    sub.add_argument("--data-dir", metavar="DIR", help="where the data set lies (digits needs none)")
    sub.add_argument("--image-size", type=image_size, metavar="SIZE", help="resize a folder's images: N or HxW")
    sub.add_argument("--skip-corrupt", action="store_true", help="go on without a folder's images that cannot be read")
    sub.add_argument("--batch-size", type=positive_int, default=128)
    sub.add_argument("--seed", type=non_negative_int, default=0, help="of the augmentation")
    sub.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    sub.add_argument("--force", action="store_true", help="replace OUT if it exists")
    return parser


def average_on_training_images(args):
    """(`average` on one epoch of a data set of small images, augmented as training sees them; the data set's name)."""
    device = choose_device(args.device)
    first = read_contents(args.paths[0])
    if first.family != CIFAR:
        raise RunError(f"{first.path} holds a network for ImageNet: only networks for small images are averaged")
    train, dataset = data.load_for(first, args, "train", skip_corrupt=args.skip_corrupt)
    check_classes(first, train.classes)
    batches = data.Batches(train, args.batch_size, device, train=True, seed=args.seed, dtype=dtype_of(first.state))
    with answering(f"{first.path} does not fit {dataset}'s images"):
        averaged = average(args.paths, batches.epoch(0), device)
    return {**averaged, "data": {**averaged.get("data", {}), "image_size": list(batches.size)}}, dataset


@command
def main(argv=None):
    args = build_parser().parse_args(argv)
    if args.command == "info":
        found = info(args.path)
        for name, value in found.items():
            print(f"{name}: {network_text(value) if name == 'network' else value}")
        if args.json:
            print(json.dumps(found, default=str))
        return
    out = output_path(args.out, args.force, args.paths if args.command == "average" else [])  # strip may work in place
    if args.command == "strip":
        payload = read_ours(args.path)
        model = network_of(payload, args.path)
        kept = {name: value for name, value in payload.items() if name not in TRAINING_STATE}
        if args.half:
            kept["model"] = halved(model)
        before = Path(args.path).stat().st_size
        save(out, kept)
        print(f"{out}: {before / 1e6:.2f} MB -> {out.stat().st_size / 1e6:.2f} MB")
        return
    averaged, dataset = average_on_training_images(args)
    save(out, averaged)
    print(f"{out}: the mean of {len(args.paths)} checkpoints, BatchNorm on the training images of {dataset}")


if __name__ == "__main__":
    main()
