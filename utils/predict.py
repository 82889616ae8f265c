"""Classify images: the most likely classes of each, with their probabilities in percent.

Any checkpoint will do: one of ours, packed or not, or a released one. Images are prepared as evaluation does it.
"""

import functools
import json
import os

import numpy as np
import torch
from PIL import Image

from imagenet.data import eval_transform, synsets
from models import CIFAR, IMAGENET
from utils.checkpoint import dtype_of
from utils.command import Parser, RunError, UsageError, answering, command, height_width, image_size, positive_int
from utils.images import MEAN, STD, read_image
from utils.training.evaluation import open_checkpoint
from utils.training.flags import add_bits_flags

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def preparation(contents, size=None):
    """A function RGB PIL image -> normalised float32 (3, H, W), as the evaluation of the network has it.

    size: N or (H, W) in place of the size that the network was trained at. ImageNet's networks see the centre of a
    resized image, the others all of it. Raises UsageError for a size that the network's family does not take.
    """
    height, width = height_width(size or contents.image_size)
    if contents.family == IMAGENET:
        if height != width:
            raise UsageError(f"--image-size {height}x{width}: ImageNet's networks take square images")
        return eval_transform(height)
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (MEAN, STD))

    def prepare(image):
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.BILINEAR)
        return (torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255 - mean) / std

    return prepare


def class_names(contents, count):
    """Names of the network's `count` outputs: those it was trained on; of a release the data set's; else numbers."""
    known = contents.data.get("classes")
    if known and len(known) == count:
        return list(known)
    if contents.family == IMAGENET and count == 1000:
        return synsets()
    if contents.release and contents.family == CIFAR and count == 10:
        return list(CIFAR10)
    return [str(i) for i in range(count)]


@torch.inference_mode()
def probabilities(model, images):
    """softmax(model(images)) as float32 (N, classes), on the CPU; images: in any floating dtype, on the model's device.

    Raises RunError if the network does not run on images of this size, or gives values that are not finite.
    """
    with answering(f"the network does not run on images {tuple(images.shape[1:])}"):
        logits = model(images.to(dtype_of(model.state_dict())))
    if not logits.isfinite().all():
        raise RunError("the network's outputs are not finite: its weights are damaged, or the training diverged")
    return logits.float().softmax(1).cpu()


def build_parser():
    parser = Parser(prog="utils.predict", description=__doc__)
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files")
    parser.add_argument("--checkpoint", required=True, metavar="PATH", help="ours, packed or not, or a released one")
    parser.add_argument("--top", type=positive_int, default=5, metavar="K", help="how many classes per image, at most")
    parser.add_argument("--image-size", type=image_size, metavar="N|HxW", help="default: what the network learned at")
    parser.add_argument("--batch-size", type=positive_int, default=64, help="images at a time")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    add_bits_flags(parser)
    parser.set_defaults(packed=False, amp="off")
    return parser


@functools.cache
def in_words(names):
    """{synset: its name in words} of ImageNet's classes, if any is among the tuple `names`; else nothing."""
    if set(names).isdisjoint(synsets()):
        return {}
    from torchvision.models import ResNet18_Weights  # seconds, which other classes need not wait

    return dict(zip(synsets(), ResNet18_Weights.IMAGENET1K_V1.meta["categories"]))


def top_classes(row, names, count):
    """[{"class", "label", "probability"}] of the `count` most likely classes; ImageNet's with a "name" in words."""
    words = in_words(tuple(names))
    values, labels = row.topk(min(count, len(row)))
    found = []
    for value, label in zip(values.tolist(), labels.tolist()):
        found.append({"class": names[label], "label": label, "probability": value})
        if names[label] in words:
            found[-1]["name"] = words[names[label]]
    return found


def predict(args, model, device, contents):
    """Yields (path, `top_classes`) of every image of the flags, read and classified batch by batch."""
    prepare = preparation(contents, args.image_size)
    for start in range(0, len(args.images), args.batch_size):
        paths = args.images[start : start + args.batch_size]
        images = torch.stack([prepare(read_image(path)) for path in paths])
        scores = probabilities(model, images.to(device))
        names = class_names(contents, scores.shape[1])
        yield from ((path, top_classes(row, names, args.top)) for path, row in zip(paths, scores))


@command
def main(argv=None):
    args = build_parser().parse_args(argv)
    for path in args.images:
        if not os.path.exists(path):
            raise UsageError(f"no image {path}")
    model, precision, contents = open_checkpoint(args)
    found = []
    for path, top in predict(args, model, precision.device, contents):
        found.append({"image": path, "top": top})
        shown = (f"{one['class']}{f' ({n})' if (n := one.get('name')) else ''} {one['probability']:.1%}" for one in top)
        print(f"{path}: {', '.join(shown)}")
    if args.json:
        print(json.dumps({"checkpoint": args.checkpoint, "images": found}))


if __name__ == "__main__":
    main()
