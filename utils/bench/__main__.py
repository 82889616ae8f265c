"""Measure what this code costs: training and the data path beside plain ones, inference beside other engines."""

import json

from cifar import data
from models import ARCHS, CIFAR, IMAGENET
from modules.restriction import VARIANTS
from utils.bench import inference, turns
from utils.bench.loading import bench_data
from utils.bench.step import bench_train
from utils.command import Parser, UsageError, available_cpus, command, data_processes, fraction, positive_int
from utils.deploy import __main__ as deploy
from utils.deploy.bench import bench
from utils.training.flags import add_network_flags
from utils.training.runtime import AMP


def build_parser():
    parser = Parser(prog="utils.bench", description=__doc__)
    commands = parser.add_subparsers(dest="what", required=True, parser_class=Parser)
    for name, help in (("train", "the training step"), ("data", "the data path")):
        _add_flags(commands.add_parser(name, help=help))
    sub = commands.add_parser(
        "deploy", help="1-bit inference, beside ONNX Runtime and OpenVINO where they are installed"
    )
    deploy.add_flags(sub, "bench")
    return parser


def _add_flags(parser):
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
    parser.add_argument("--workers", type=data_processes, default=2, help="of the PIL loader")
    parser.add_argument("--warmup", type=positive_int, default=3, help="steps that are not counted")
    parser.add_argument("--rounds", type=positive_int, default=5, help="turns that every contender gets")
    parser.add_argument("--steps", type=positive_int, default=5, help="steps in a turn")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")


def bench_training(args):
    """What the training step, or the data path, costs."""
    args.arch = args.arch or ("resnet18" if args.dataset == "imagenet" else "resnet20")
    try:
        return bench_train(args) if args.what == "train" else bench_data(args)
    except ValueError as error:
        raise UsageError(str(error)) from None


def bench_deploy(args):
    """What `utils.deploy bench` measures, and the same network beside other engines."""
    args.threads = args.threads or available_cpus()
    result = bench(args) | {"rivals": turns.measure(args)}
    print("", *inference.rivals([result]), sep="\n")
    return result


@command
def main(argv=None):
    args = build_parser().parse_args(argv)
    result = bench_deploy(args) if args.what == "deploy" else bench_training(args)
    if args.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
