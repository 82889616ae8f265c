"""Count what a network costs on one image: binary and floating-point operations, parameters, size."""

import json
from dataclasses import asdict

import torch

from models import ARCHS, CIFAR, IMAGENET, build_model
from utils.command import Parser, UsageError, command, side
from utils.complexity import count
from utils.complexity.rules import PRICES
from utils.training.flags import add_network_flags, network_config


def _table(layers):
    """Lines of the table of layers."""
    width = max(len(x.name) for x in layers)
    yield f"{'layer':{width}} {'type':16} {'bits':>5} {'output':>11} {'BOPs':>13} {'FLOPs':>13} {'parameters':>10}"
    for x in layers:
        shape = "x".join(map(str, x.output))
        yield f"{x.name:{width}} {x.type:16} {x.bits:>5} {shape:>11} {x.bops:13,} {x.flops:13,} {x.params:10,}"


def _report(counts):
    """Lines that say what was counted, and how."""
    yield f"input       {counts.image}"
    yield f"rule        {counts.rule}: FLOPs = " + " + ".join(f"{n} per {k}" for k, n in PRICES[counts.rule].items())
    yield f"convs       {counts.convolutions} (weights/activations)"
    yield f"BOPs        {counts.bops:.4e}"
    yield f"FLOPs       {counts.flops:.4e}"
    yield f"OPs         {counts.ops:.4e}  (BOPs / 64 + FLOPs)"
    yield f"parameters  {counts.params:,}, of which {counts.params_1bit:,} of 1 bit"
    yield f"model size  {counts.model_mb:.3f} MB  (1-bit weights packed, all else at 32 bits)"


def build_parser():
    parser = Parser(prog="utils.complexity", description=__doc__)
    parser.add_argument("--dataset", choices=("cifar10", "cifar100", "imagenet"), default="cifar10")
    parser.add_argument("--input-size", type=side, metavar="N", help="NxN images; default: 32, imagenet 224")
    parser.add_argument("--rule", choices=list(PRICES), default="paper", help="what counts as a FLOP")
    parser.add_argument("--per-layer", action="store_true", help="a line, or with --json an object, per layer")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_network_flags(parser, list(dict.fromkeys(ARCHS[CIFAR] + ARCHS[IMAGENET])), variants=True)
    return parser


@command
def main(argv=None):
    args = build_parser().parse_args(argv)
    if args.arch is None:
        raise UsageError(f"give --arch, one of {', '.join(ARCHS[IMAGENET if args.dataset == 'imagenet' else CIFAR])}")
    size = args.input_size or (224 if args.dataset == "imagenet" else 32)
    classes = 100 if args.dataset == "cifar100" else None
    try:
        with torch.device("meta"):  # shapes are all that counts
            model = build_model(**network_config(args, num_classes=classes, image_size=size))
    except (ValueError, RuntimeError, TypeError) as error:
        raise UsageError(f"no such network: {error}") from None
    counts = count(model, size, args.rule)
    if args.json:
        fields = asdict(counts) | {"convolutions": counts.convolutions}
        print(json.dumps(fields if args.per_layer else {k: v for k, v in fields.items() if k != "layers"}))
        return
    lines = [*_table(counts.layers), ""] if args.per_layer else []
    print(*lines, *_report(counts), sep="\n")


if __name__ == "__main__":
    main()
