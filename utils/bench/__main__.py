"""Measure what this code costs: the training step and the data path, beside plain ones (`utils.bench.reference`)."""

import json
import os
import sys

from cifar import data
from models import ARCHS, CIFAR, IMAGENET
from modules.restriction import VARIANTS
from utils.bench import inference, turns
from utils.bench.loading import bench_data
from utils.bench.step import bench_train
from utils.command import Parser, UsageError, command, fraction, positive_int
from utils.deploy import __main__ as deploy
from utils.deploy.bench import bench
from utils.training.flags import add_network_flags
from utils.training.runtime import AMP


def build_parser():
    parser = Parser(prog="utils.bench", description=__doc__)
    parser.add_argument(
        "what", choices=("train", "data", "deploy"), help="training, the data path, or inference: deploy --help"
    )
    parser.add_argument("--dataset", choices=("random", *data.DATASETS, "imagenet"), default="random")
    parser.add_argument("--data-dir", metavar="DIR")
    archs = dict.fromkeys(ARCHS[CIFAR] + ARCHS[IMAGENET])
    add_network_flags(parser, list(archs), variants=True)
    parser.add_argument("--lam", type=fraction, default=0.15)
    parser.add_argument("--ires-variant", choices=VARIANTS, default="paper")
    parser.add_argument("--batch-size", type=positive_int, default=128)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--amp", choices=("auto", *AMP), default="auto")
    parser.add_argument("--compile", choices=("auto", "off", "on"), default="auto")
    parser.add_argument("--workers", type=positive_int, default=2, help="of the PIL loader")
    parser.add_argument("--warmup", type=positive_int, default=3, help="steps that are not counted")
    parser.add_argument("--rounds", type=positive_int, default=5, help="turns that every contender gets")
    parser.add_argument("--steps", type=positive_int, default=5, help="steps in a turn")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    return parser


def bench_deploy(args):
    """What `utils.deploy bench` measures, and the same network beside other engines."""
    args.threads = args.threads or os.cpu_count()
    result = bench(args)
    result["rivals"] = turns.measure(args)
    print("", *inference.rivals([result]), sep="\n")
    if args.json:
        print(json.dumps(result))


@command
def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["deploy"]:
        return bench_deploy(deploy.build_parser().parse_args(["bench", *argv[1:]]))
    args = build_parser().parse_args(argv)
    args.arch = args.arch or ("resnet18" if args.dataset == "imagenet" else "resnet20")
    try:
        result = bench_train(args) if args.what == "train" else bench_data(args)
    except ValueError as error:
        raise UsageError(str(error)) from None
    if args.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
