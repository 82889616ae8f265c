"""1-bit deployment: pack a network, verify it against the training graph, measure it, export it to ONNX."""

import json
import time

from cifar.data import DATASETS
from models import ARCHS
from modules.inference.runtime import kernels
from utils.checkpoint.packed import write_packed
from utils.command import Parser, RunError, bounded_int, command, non_negative_int, positive_int, side, threads
from utils.deploy.bench import bench
from utils.deploy.export import onnx
from utils.deploy.networks import float_size, megabytes, named_network
from utils.deploy.verify import verify
from utils.files import output_path
from utils.training.flags import add_network_flags


def pack(args):
    """Write a packed file."""
    output = output_path(args.output, args.force, [args.checkpoint])
    model, contents = named_network(args)
    write_packed(output, model, contents.network, {**contents.data, "image_size": list(contents.image_size)}, args.half)
    size, before = output.stat().st_size, float_size(model)
    print(f"{output}: {megabytes(size)}; in float32 {megabytes(before)}, {before / size:.1f} times as much")
    return {"path": str(output), "bytes": size, "float_bytes": before, "half": args.half}


def warm(args):
    """Compile the kernels, or find their code where an earlier process has left it."""
    start = time.perf_counter()
    if kernels() is None:
        raise RunError("there are no kernels to compile: pip install numba")
    seconds = time.perf_counter() - start
    print(f"the kernels' code is ready, after {seconds:.1f} s")
    return {"seconds": seconds}


def build_parser():
    parser = Parser(prog="utils.deploy", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Parser)
    sub = commands.add_parser("warm", help="compile the kernels, so that no later process has to")
    sub.add_argument("--json", action="store_true", help="one JSON object as the last line")
    for name, help in (
        ("pack", "write a packed file"),
        ("verify", "compare a packed network with the training graph"),
        ("bench", "measure inference"),
        ("onnx", "export the floating-point graph"),
    ):
        add_flags(commands.add_parser(name, help=help), name)
    return parser


def add_flags(sub, name):
    """The flags of the command `name`, which works on a network."""
    archs = sorted({arch for known in ARCHS.values() for arch in known})
    sub.add_argument("--checkpoint", metavar="PATH", help="ours, or a released one; default: random weights")
    sub.add_argument("--dataset", choices=(*DATASETS, "imagenet"), help="of the network, and of verify's images")
    add_network_flags(sub, archs, variants=True)
    sub.set_defaults(method=None, weight_bits=None, activation_bits=None)  # a checkpoint's own, or build_model's
    sub.add_argument("--image-size", type=side, metavar="N", help="NxN images; default: the checkpoint's own")
    sub.add_argument("--seed", type=non_negative_int, default=0, help="of random weights and images")
    sub.add_argument("--json", action="store_true", help="one JSON object as the last line")
    if name in ("pack", "onnx"):
        sub.add_argument("--output", metavar="PATH", required=True)
        sub.add_argument("--force", action="store_true", help="replace --output if it exists")
    if name in ("pack", "verify"):
        sub.add_argument("--half", action="store_true", help="float16 for weights of full-precision layers")
    if name == "verify":
        sub.add_argument("--packed", metavar="PATH", help="a packed file of --checkpoint; default: pack it anew")
    if name in ("verify", "bench"):
        sub.add_argument(
            "--fast", action="store_true", help="the first and the 1x1 convolutions in bfloat16: not exact"
        )
    if name in ("verify", "onnx"):
        sub.add_argument("--data-dir", metavar="DIR", help="where --dataset lies; default: random images")
        sub.add_argument(
            "--images", type=bounded_int(1, 10**6), metavar="N", help="how many random images; default: 16"
        )
        sub.add_argument("--batch-size", type=positive_int, default=1, help="default: 1")
    if name == "bench":
        sub.add_argument("--threads", type=threads, help="default: one per core")
        sub.add_argument("--batch-size", type=positive_int, default=1)
        sub.add_argument("--repeats", type=positive_int, default=20, help="rounds that the medians are taken over")
        sub.add_argument("--compile", action="store_true", help="measure torchvision's network compiled, too")


@command
def main(argv=None):
    args = build_parser().parse_args(argv)
    result = {"pack": pack, "verify": verify, "bench": bench, "onnx": onnx, "warm": warm}[args.command](args)
    if args.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
