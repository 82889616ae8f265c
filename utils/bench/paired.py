"""Compare the ImageNet step with another checkout's, in turns: images per second of processor time, on one thread.

git worktree add ../before COMMIT
python -m utils.bench.paired --other ../before --json
"""

import json
import os
import statistics
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import torch

from imagenet.data import image_size
from models import VARIANTS
from utils.bench import one_step
from utils.command import Parser, RunError, UsageError, command, positive_int
from utils.training.run import versions
from utils.training.runtime import AMP, choose_precision

ROOT = Path(__file__).resolve().parents[2]


class Side:
    """A process that trains with the code of the checkout `folder`; options: of `one_step.make_step`."""

    def __init__(self, folder, options):
        self.folder = folder
        environment = {**os.environ, "PYTHONPATH": str(folder)}
        arguments = [sys.executable, one_step.__file__, json.dumps(options)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen(arguments, cwd=folder, env=environment, text=True, **pipes)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.process.kill()
        self.process.communicate()

    def seconds(self, steps):
        """Seconds of processor time that `steps` steps take. Raises RunError if the process has ended."""
        try:
            print(steps, file=self.process.stdin, flush=True)
            return float(self.process.stdout.readline())
        except (OSError, ValueError):
            raise RunError(f"the step of {self.folder} cannot be measured: what it says stands above") from None


def commit_of(folder):
    """The abbreviated commit of a checkout, or its name where git does not know it."""
    call = ["git", "-C", str(folder), "rev-parse", "--short", "HEAD"]
    found = subprocess.run(call, capture_output=True, text=True, check=False)
    return found.stdout.strip() or Path(folder).name


def measure(other, options, rounds, steps):
    """{"this": images/s per round, "other": images/s per round}, in turns, after two steps to warm up."""
    images = steps * options["batch_size"]
    with ExitStack() as stack:
        folders = {"this": ROOT, "other": other}
        sides = {name: stack.enter_context(Side(folder, options)) for name, folder in folders.items()}
        for side in sides.values():
            side.seconds(2)
        rates = [{name: images / side.seconds(steps) for name, side in sides.items()} for _ in range(rounds)]
    return {name: [rate[name] for rate in rates] for name in sides}


def build_parser():
    parser = Parser(prog="utils.bench.paired", description=__doc__.splitlines()[0])
    parser.add_argument("--other", required=True, metavar="DIR", help="the checkout to compare with")
    parser.add_argument("--variant", choices=list(VARIANTS), default="c")
    parser.add_argument("--image-size", type=image_size, default=96, metavar="N")
    parser.add_argument("--batch-size", type=positive_int, default=32)
    parser.add_argument("--amp", choices=("auto", *AMP), default="auto")
    parser.add_argument("--rounds", type=positive_int, default=7, help="turns that each gets")
    parser.add_argument("--steps", type=positive_int, default=3, help="steps in a turn")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    return parser


@command
def main(argv=None):
    args = build_parser().parse_args(argv)
    if not (Path(args.other) / "imagenet" / "train.py").exists():
        raise UsageError(f"--other {args.other} is no checkout of this project")
    device = torch.device("cpu")
    precision = choose_precision(args.amp, device)
    options = {"variant": args.variant, "image_size": args.image_size, "batch_size": args.batch_size}
    rates = measure(Path(args.other).resolve(), {**options, "amp": precision.amp}, args.rounds, args.steps)
    result = {
        "what": "paired",
        **options,
        "precision": str(precision),
        "commits": {"this": commit_of(ROOT), "other": commit_of(args.other)},
        "images_per_s": {name: statistics.median(values) for name, values in rates.items()},
        "ratio": statistics.median(ours / theirs for ours, theirs in zip(rates["this"], rates["other"])),
        "versions": versions(device),
    }
    this, other = result["images_per_s"].values()
    print(f"{this:.0f} images/s, {other:.0f} at {result['commits']['other']}: {result['ratio']:.2f} times as many")
    if args.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
