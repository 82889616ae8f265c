"""Evaluate a checkpoint on every test image of CIFAR-10, CIFAR-100, a folder of small images, or digits."""

import json

from cifar import data
from models import CIFAR
from utils.command import Parser, RunError, command, image_size, positive_int
from utils.training import engine, evaluation
from utils.training.losses import cross_entropy


def build_parser():
    parser = Parser(prog="cifar.eval", description=__doc__)
    evaluation.add_flags(parser)
    parser.add_argument("--dataset", choices=data.DATASETS, default="cifar10")
    parser.add_argument("--data-dir", metavar="DIR", help="where the data set lies (digits needs none)")
    parser.add_argument("--download", action="store_true", help="fetch CIFAR into --data-dir if it is not there")
    parser.add_argument("--image-size", type=image_size, metavar="N|HxW", help="resize a folder's images")
    parser.add_argument("--batch-size", type=positive_int, default=500)
    parser.add_argument("--skip-corrupt", action="store_true", help="go on without a folder's images that are damaged")
    return parser


@command
def main(argv=None):
    args = build_parser().parse_args(argv)
    model, device, description = evaluation.open_checkpoint(args)
    evaluation.check_family(description, CIFAR)
    progress = not args.no_progress
    held = description.data.get("image_size", [None])[0] if args.dataset == "folder" else None
    size = args.image_size or held
    (test,) = data.load(
        args.dataset, args.data_dir, args.download, size, progress, splits=("test",), skip_corrupt=args.skip_corrupt
    )
    evaluation.check_classes(description, test.classes)
    dtype = evaluation.tell(description, model, tuple(test.images.shape[2:]))
    batches = data.Batches(test, args.batch_size, device, dtype=dtype)
    try:
        result = engine.evaluate(
            model, batches, len(test), cross_entropy, engine.choose_precision(args.amp, device), progress=progress
        )
    except (RuntimeError, IndexError) as error:
        raise RunError(f"{args.checkpoint} does not fit {args.dataset}'s images or classes: {error}") from None
    print(
        f"top-1 {result['top1']:.2f} %, top-5 {result['top5']:.2f} %, "
        f"loss {result['loss']:.4f} over all {result['images']} test images of {args.dataset}"
        + (f" that can be read ({test.skipped} skipped)" if test.skipped else "")
    )
    if args.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
