"""Whether a packed network is the training graph: integers of every binary convolution, logits, predictions."""

import torch
import torch.nn.functional as F

from cifar.data import Batches, load
from imagenet.data import eval_transform, open_split, use_labels_of
from models import IMAGENET
from models.inference import binary_convs
from utils.checkpoint import open_model
from utils.checkpoint.packed import is_half
from utils.command import RunError, UsageError
from utils.deploy.networks import named_network, packed_network, random_images
from utils.images import read_image
from utils.training.evaluation import check_classes

TOLERANCE = 1e-4
"""Largest difference of logits that is accepted, relative to the largest logit of the image."""


@torch.no_grad()
def round_to_half(model):
    """What --half does to a network, done to its training graph: weights of full-precision layers through float16."""
    binary = {f"{name}.weight" for name, _ in binary_convs(model)}
    for name, value in model.named_parameters():
        if name not in binary and is_half(name) and value.ndim > 1:
            value.copy_(value.half())
    return model


@torch.no_grad()
def wrong_sums(model, packed, images):
    """Names of the binary convolutions whose packed form gives other integers than the training graph's.

    Each is fed what the training graph feeds it for `images`; the sums of products of signs must be the same numbers.
    Scales and offsets of the signs are no part of them: where these are wrong, the logits are.
    """
    wrong, hooks = set(), []

    def compare(name, ours):
        def hook(conv, args):
            signs = conv.binary_weight()[0]
            sums = F.conv2d(conv.input_signs(args[0]), signs, None, conv.stride, conv.padding)
            if not torch.equal(sums, ours(args[0])):
                wrong.add(name)

        return hook

    for (name, conv), (_, ours) in zip(binary_convs(model), binary_convs(packed), strict=True):
        if conv.activation_bits == 1:
            hooks.append(conv.register_forward_pre_hook(compare(name, ours)))
    model(images)
    for hook in hooks:
        hook.remove()
    return sorted(wrong)


def relative_errors(expected, logits):
    """(N,): the largest difference of each image's logits, relative to the largest; infinite where one is not finite.

    A maximum would let a NaN pass: max(0.0, nan) is 0.0.
    """
    errors = (expected - logits).abs().amax(1) / expected.abs().amax(1)
    return errors.nan_to_num(nan=torch.inf)


def images_for(args, contents, model):
    """Yield (images, labels or None): the test images of --data-dir or digits, else --images random ones.

    Large images come one by one: torch sums full-precision convolutions in an order that depends on the batch, and the
    packed network passes a batch in parts.
    """
    dataset = args.dataset
    size = args.batch_size or (1 if contents.family == IMAGENET else 16)
    if args.data_dir is None and dataset != "digits":
        images = random_images(contents.image_size, args.images, args.seed)
        yield from ((batch, None) for batch in images.split(size))
    elif dataset == "imagenet":
        yield from _imagenet_batches(args, contents, model, size)
    elif dataset is None:
        raise UsageError("--data-dir needs --dataset, which says how to read it")
    else:
        resized = contents.image_size if dataset == "folder" else None
        (test,) = load(dataset, args.data_dir, image_size=resized, splits=("test",))
        check_classes(contents, test.classes)
        yield from Batches(test, size)


def _imagenet_batches(args, contents, model, size):
    folder = open_split(args.data_dir, "val")
    use_labels_of(folder, contents.data.get("classes"), model.fc.out_features)
    transform = eval_transform(contents.image_size[0])
    for start in range(0, len(folder.samples), size):
        samples = folder.samples[start : start + size]
        yield torch.stack([transform(read_image(path)) for path, _ in samples]), torch.tensor([y for _, y in samples])


@torch.no_grad()
def compare(model, packed, batches):
    """What the two networks give for `batches` of (images, labels or None): plain values."""
    found = {"images": 0, "relative_error": 0.0, "same_top1": 0, "labelled": 0, "top1_float": 0, "top1_packed": 0}
    wrong = set()
    for images, labels in batches:
        expected, logits = model(images), packed(images)
        found["images"] += len(images)
        found["relative_error"] = max(found["relative_error"], relative_errors(expected, logits).max().item())
        found["same_top1"] += (expected.argmax(1) == logits.argmax(1)).sum().item()
        if labels is not None:
            found["labelled"] += len(labels)
            found["top1_float"] += (expected.argmax(1) == labels).sum().item()
            found["top1_packed"] += (logits.argmax(1) == labels).sum().item()
        wrong.update(wrong_sums(model, packed, images))
    for name in ("top1_float", "top1_packed"):
        found[name] = 100 * found[name] / found["labelled"] if found["labelled"] else None
    return found | {"wrong_convs": sorted(wrong)}


def verify(args):
    """Compare the packed network with the training graph; raises RunError if they are not the same."""
    model, contents = named_network(args)
    if args.half:
        round_to_half(model)
    packed = open_model(args.packed)[0] if args.packed else packed_network(model)
    try:
        found = compare(model, packed, images_for(args, contents, model))
    except (RuntimeError, ValueError) as error:
        raise RunError(f"the two networks or the images do not fit together: {error}") from None
    wrong = found["wrong_convs"]
    convs = [conv for _, conv in binary_convs(model) if conv.activation_bits == 1]
    print(f"binary convolutions with exactly the training graph's integers: {len(convs) - len(wrong)} of {len(convs)}")
    print(f"largest relative difference of logits: {found['relative_error']:.2e} (accepted: {TOLERANCE:.0e})")
    print(f"same top-1: {found['same_top1']} of {found['images']} images")
    if found["labelled"]:
        print(f"top-1 accuracy: training graph {found['top1_float']:.2f} %, packed {found['top1_packed']:.2f} %")
    found["convs"] = len(convs)
    found["passed"] = not wrong and found["relative_error"] <= TOLERANCE and found["same_top1"] == found["images"]
    if not found["passed"]:
        raise RunError("the packed network is not the same: see above" + "; wrong: ".join(["", *wrong]))
    return found
