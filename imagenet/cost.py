"""What a full run on ImageNet takes: hours and GPU-hours of each recipe, computed from a measured training speed.

    python -m imagenet.cost --images-per-s X [--gpus N --gpu NAME]

X is measured, per GPU: `python -m utils.bench train --dataset imagenet` prints it. All else is computed from it.
"""

from imagenet.recipes import recipe
from models.methods import IMAGENET, methods_of
from utils.command import Parser, command, positive_float, positive_int

TRAIN_IMAGES, VAL_IMAGES = 1_281_167, 50_000
EVALUATION_COST = 1 / 4
"""Of an evaluated image, in trained ones: a forward pass, against two with their backward passes and the teacher's."""
KILOBYTES_PER_IMAGE = 110
"""Mean size of a training JPEG (141 GB in all): what the disk must read."""


def full_run(method, images_per_s, gpus=1):
    """(epochs of all stages, hours) of `method`'s recipe, at images_per_s trained images per GPU and second.

    It takes speed to grow with the number of GPUs, which holds as long as the data keep up.
    """
    settings = recipe(method)
    epochs = settings["epochs"] * (2 if settings["stage"] == "both" else 1)
    images = epochs * (TRAIN_IMAGES + EVALUATION_COST * VAL_IMAGES)
    return epochs, images / (images_per_s * gpus) / 3600


def table(images_per_s, gpus, gpu):
    """Markdown: one row per method."""
    speed = images_per_s * gpus
    rows = [
        f"Measured: {images_per_s:g} training images/s on one {gpu}. Computed from it: everything below, for {gpus}, "
        f"whose data must come at {speed:g} images/s ({speed * KILOBYTES_PER_IMAGE / 1e3:.0f} MB/s of JPEGs).",
        "",
        "| method | epochs, all stages | hours | GPU-hours |",
        "|---|---|---|---|",
    ]
    for method in methods_of(IMAGENET):
        epochs, hours = full_run(method, images_per_s, gpus)
        rows.append(f"| {method} | {epochs} | {hours:.0f} | {hours * gpus:.0f} |")
    return "\n".join(rows)


def build_parser():
    parser = Parser(prog="imagenet.cost", description=__doc__.splitlines()[0])
    parser.add_argument("--images-per-s", type=positive_float, required=True, help="measured, per GPU")
    parser.add_argument("--gpus", type=positive_int, default=1)
    parser.add_argument("--gpu", default="GPU", metavar="NAME", help="what it was measured on")
    return parser


@command
def main(argv=None):
    args = build_parser().parse_args(argv)
    print(table(args.images_per_s, args.gpus, args.gpu))


if __name__ == "__main__":
    main()
