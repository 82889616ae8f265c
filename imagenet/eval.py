"""Evaluate a checkpoint on every image of DIR/val, in one process or under torchrun."""

import contextlib
import time

from imagenet import data
from imagenet.batches import Batches
from models import IMAGENET
from utils.command import Parser, RunError, answering, command, data_processes, positive_int
from utils.training import distributed, evaluation, metrics
from utils.training.losses import cross_entropy


def build_parser():
    parser = Parser(prog="imagenet.eval", description=__doc__)
    evaluation.add_flags(parser)
    parser.add_argument("--data-dir", metavar="DIR", help="holds val/<class>/<image> (or ILSVRC2012_img_val/)")
    parser.add_argument("--image-size", type=data.image_size, metavar="N", help="default: the checkpoint's, else 224")
    parser.add_argument("--batch-size", type=positive_int, default=256, help="images at a time, over all ranks")
    parser.add_argument("--workers", type=data_processes, metavar="N", help="data processes per rank")
    parser.add_argument("--skip-corrupt", action="store_true", help="go on without images that cannot be read")
    return parser


@command
def main(argv=None):
    with distributed.session():
        with distributed.fail_together():
            args = build_parser().parse_args(argv)
            model, precision, batches = load(args)
        result = score(args, model, batches, precision)
        if not distributed.is_main():
            return
        line = (
            f"{args.checkpoint}: top-1 {result['top1']:.2f} %, top-5 {result['top5']:.2f} %, loss {result['loss']:.4f} "
            f"over {result['images']} images ({result['skipped']} skipped), {result['images_per_s']:.0f} images/s"
        )
        evaluation.print_result(args, result, line)


def load(args):
    """The network of --checkpoint, and the batches of --data-dir with its labels, at its image size."""
    folder = data.open_split(args.data_dir, "val")
    model, precision, contents = evaluation.open_checkpoint(args)
    evaluation.check_family(contents, IMAGENET)
    data.use_labels_of(folder, contents.data.get("classes"), model.fc.out_features)
    size = args.image_size or contents.image_size[0]
    dtype = evaluation.print_summary(contents, model, size)
    workers = data.default_workers() if args.workers is None else args.workers
    batches = Batches(
        folder, data.eval_transform(size), args.batch_size, precision.device,
        workers=workers, skip_corrupt=args.skip_corrupt, dtype=dtype,
    )  # fmt: skip
    return model, precision, batches


def score(args, model, batches, precision):
    """top1, top5 (%), loss, images, skipped, and images_per_s over all ranks.

    Raises RunError if the network does not fit the images, or not every image was scored or skipped.
    """
    progress = distributed.is_main() and not args.no_progress
    start = time.perf_counter()
    fitting = answering(f"{args.checkpoint} does not fit the images or classes of {args.data_dir}")
    with fitting if distributed.world_size() == 1 else contextlib.nullcontext():  # a lost rank looks the same
        result = metrics.evaluate(model, batches, batches.count, cross_entropy, precision, progress=progress)
    seconds = time.perf_counter() - start
    skipped = len(set().union(*distributed.gather(batches.skipped)))
    if result["images"] + skipped != batches.count:
        raise RunError(f"scored {result['images']} of {batches.count} images, skipped {skipped}")
    return {**result, "skipped": skipped, "images_per_s": round(result["images"] / seconds, 1)}


if __name__ == "__main__":
    main()
