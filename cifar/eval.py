"""Evaluate a checkpoint on every test image of CIFAR-10, CIFAR-100, a folder of small images, or digits."""

from cifar import data
from models import CIFAR
from utils.command import Parser, answering, command, image_size, positive_int
from utils.training import evaluation
from utils.training.losses import cross_entropy
from utils.training.metrics import evaluate


def build_parser():
    parser = Parser(prog="cifar.eval", description=__doc__)
    evaluation.add_flags(parser)
    parser.add_argument("--dataset", choices=data.DATASETS, help="default: the network's own; of a release, cifar10")
    parser.add_argument("--data-dir", metavar="DIR", help="where the data set lies (digits needs none)")
    parser.add_argument("--download", action="store_true", help="fetch CIFAR into --data-dir if it is not there")
    parser.add_argument("--image-size", type=image_size, metavar="N|HxW", help="resize a folder's images")
    parser.add_argument("--batch-size", type=positive_int, default=500)
    parser.add_argument("--skip-corrupt", action="store_true", help="go on without a folder's images that are damaged")
    return parser


@command
def main(argv=None):
    args = build_parser().parse_args(argv)
    model, precision, contents = evaluation.open_checkpoint(args)
    evaluation.check_family(contents, CIFAR)
    progress = not args.no_progress
    options = {"download": args.download, "progress": progress, "skip_corrupt": args.skip_corrupt}
    test, dataset = data.load_for(contents, args, "test", **options)
    evaluation.check_classes(contents, test.classes)
    dtype = evaluation.print_summary(contents, model, tuple(test.images.shape[2:]))
    batches = data.evaluation_batches(test, args.batch_size, precision.device, dtype)
    with answering(f"{args.checkpoint} does not fit {dataset}'s images or classes"):
        result = evaluate(model, batches, len(test), cross_entropy, precision, progress=progress)
    line = (
        f"top-1 {result['top1']:.2f} %, top-5 {result['top5']:.2f} %, "
        f"loss {result['loss']:.4f} over all {result['images']} test images of {dataset}"
        + (f" that can be read ({test.skipped} skipped)" if test.skipped else "")
    )
    evaluation.print_result(args, result, line)


if __name__ == "__main__":
    main()
