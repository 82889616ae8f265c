"""Whether a packed network is the training graph: integers of every binary convolution, logits, predictions."""

import torch
import torch.nn.functional as F

from cifar.data import Batches, load
from imagenet.data import val_batches
from models import describe_network
from models.inference import binary_convs
from modules.inference.values import ValuesConv2d
from utils.checkpoint import open_model
from utils.checkpoint.network import differences_text, few
from utils.checkpoint.packed import is_half
from utils.command import RunError, UsageError, answering
from utils.deploy.networks import named_network, packed_network, random_images, use_fast
from utils.training.evaluation import check_classes

TOLERANCE = 1e-4
"""Largest difference of logits that is accepted, relative to the largest logit of the image."""
ROUNDING = 1e-5
"""Largest difference of a packed convolution's output from the exact one, relative to the largest output."""

RANDOM_IMAGES = 16
"""How many random images where no flag says."""


@torch.no_grad()
def round_to_half(model):
    """What --half does to a network, done to its training graph: weights of full-precision layers through float16."""
    binary = {f"{name}.weight" for name, _ in binary_convs(model)}
    for name, value in model.named_parameters():
        if name not in binary and is_half(name) and value.ndim > 1:
            value.copy_(value.half())
    return model


def _agree(conv, ours, x, output):
    """(whether the packed convolution gives the training graph's integers and, but for rounding, its output; the
    packed convolution's output), both for the training graph's input x."""
    signs, scale, _ = conv.binary_weight()
    sums = ours(x)
    same = torch.equal(F.conv2d(conv.input_signs(x), signs, None, conv.stride, conv.padding), sums)
    values = isinstance(ours, ValuesConv2d)
    if values or scale is not None:
        sums = ours.values(x) if values else sums * scale.view(-1, 1, 1)
        # In float64: how far the training graph's own sums are from it in float32 depends on the CPU.
        activations, weights = conv.quantized_input(x).double(), conv.quantized_weight().double()
        output = F.conv2d(activations, weights, None, conv.stride, conv.padding)
    near = (sums - output).abs().max() <= ROUNDING * output.abs().max()
    return same and bool(near), sums.contiguous()


@torch.no_grad()
def check_sums(model, packed, images):
    """(names of the convolutions whose packed form is wrong, the training graph's logits without their rounding).

    Each is fed what the training graph feeds it for `images`. The sums of products of signs must be the same integers,
    and with their scales and offsets the training graph's output, but for its rounding. Then the training graph goes on
    with the packed form's output: else a value that rounding brought to the other side of a threshold would turn a
    sign, and with it all that follows. Without scales and offsets there is no rounding.
    """
    wrong, hooks = set(), []

    def compare(name, ours):
        def hook(conv, args, output):
            agree, exact = _agree(conv, ours, args[0], output)
            if not agree:
                wrong.add(name)
            return exact

        return hook

    for (name, conv), (_, ours) in zip(binary_convs(model), binary_convs(packed), strict=True):
        if conv.activation_bits == 1:
            hooks.append(conv.register_forward_hook(compare(name, ours)))
    logits = model(images)
    for hook in hooks:
        hook.remove()
    return sorted(wrong), logits


def relative_errors(expected, logits):
    """(N,): the largest difference of each image's logits, relative to the largest; infinite where one is not finite.

    A maximum would let a NaN pass: max(0.0, nan) is 0.0.
    """
    errors = (expected - logits).abs().amax(1) / expected.abs().amax(1)
    return errors.nan_to_num(nan=torch.inf)


def images_for(args, contents, model):
    """Yield (images, labels or None): the test images of --data-dir or digits, else --images random ones.

    They come one by one unless --batch-size says otherwise: torch sums full-precision convolutions in an order that
    depends on the batch, and the packed network passes the images of a batch one by one.
    """
    dataset = args.dataset
    size = args.batch_size
    is_random = args.data_dir is None and dataset != "digits"
    if args.images and not is_random:
        raise UsageError("--images says how many random ones: all of a data set's are taken")
    if is_random:
        images = random_images(contents.image_size, args.images or RANDOM_IMAGES, args.seed)
        yield from ((batch, None) for batch in images.split(size))
    elif dataset == "imagenet":
        yield from val_batches(args.data_dir, contents, model, size)
    elif dataset is None:
        raise UsageError("--data-dir needs --dataset, which says how to read it")
    else:
        resized = contents.image_size if dataset == "folder" else None
        (test,) = load(dataset, args.data_dir, image_size=resized, splits=("test",))
        check_classes(contents, test.classes)
        yield from Batches(test, size)


class _Accuracies:
    """Top-1 accuracies of several networks on the same images; of those that come with labels."""

    def __init__(self, *names):
        self.labelled, self.right = 0, dict.fromkeys(names, 0)

    def update(self, labels, *logits):
        if labels is not None:
            self.labelled += len(labels)
            for name, of_network in zip(self.right, logits, strict=True):
                self.right[name] += (of_network.argmax(1) == labels).sum().item()

    def result(self):
        """{"labelled": how many, name: % or None without labels}."""
        shares = {name: 100 * right / self.labelled if self.labelled else None for name, right in self.right.items()}
        return {"labelled": self.labelled, **shares}


@torch.no_grad()
def compare(model, packed, batches):
    """What the two networks give for `batches` of (images, labels or None): plain values.

    relative_error and same_top1 are of the logits that `check_sums` gives; rounded: images whose logits from the
    training graph as it is differ by more than TOLERANCE; top1_float: its accuracy.
    """
    found = {"relative_error": 0.0, "images": 0, "same_top1": 0, "rounded": 0}
    accuracies, wrong = _Accuracies("top1_float", "top1_packed"), set()
    for images, labels in batches:
        own, logits = model(images), packed(images)
        names, expected = check_sums(model, packed, images)
        wrong.update(names)
        found["images"] += len(images)
        found["rounded"] += (relative_errors(own, logits) > TOLERANCE).sum().item()
        found["relative_error"] = max(found["relative_error"], relative_errors(expected, logits).max().item())
        found["same_top1"] += (expected.argmax(1) == logits.argmax(1)).sum().item()
        accuracies.update(labels, own, logits)
    return found | accuracies.result() | {"wrong_convs": sorted(wrong)}


@torch.no_grad()
def compare_fast(packed, batches):
    """What --fast changes: the largest relative difference of logits, and the images whose top-1 stays the same."""
    found = {"images": 0, "fast_error": 0.0, "fast_same_top1": 0}
    accuracies = _Accuracies("top1_packed", "top1_fast")
    for images, labels in batches:
        packed.fast = False
        expected = packed(images)
        packed.fast = True
        logits = packed(images)
        found["images"] += len(images)
        found["fast_error"] = max(found["fast_error"], relative_errors(expected, logits).max().item())
        found["fast_same_top1"] += (expected.argmax(1) == logits.argmax(1)).sum().item()
        accuracies.update(labels, expected, logits)
    return found | accuracies.result()


def verify_fast(packed, size, batches):
    """Report what --fast changes, which need not be exact. Raises RunError where there is no bfloat16."""
    use_fast(packed, size)
    found = compare_fast(packed, batches)
    print(f"--fast: largest relative difference of logits: {found['fast_error']:.2e}")
    print(f"--fast: same top-1: {found['fast_same_top1']} of {found['images']} images")
    if found["labelled"]:
        print(f"top-1 accuracy: packed {found['top1_packed']:.2f} %, with --fast {found['top1_fast']:.2f} %")
    return found


def packed_file(path, network):
    """(network of a packed file, whether it has weights in float16).

    network: build_model's arguments that it must have. Raises RunError for any other file, or another network.
    """
    packed, contents = open_model(path)
    if not contents.packed:
        raise RunError(f"{path} is not packed: python -m utils.deploy pack writes such a file")
    differences = describe_network(**contents.network).differences(describe_network(**network))
    if differences:
        raise RunError(f"{path} is of another network: it has {differences_text(differences)}")
    return packed, any(tensor.dtype == torch.float16 for tensor in contents.state.values())


def verify(args):
    """Compare the packed network with the training graph; raises RunError if they are not the same."""
    model, contents = named_network(args)
    packed, half = packed_file(args.packed, contents.network) if args.packed else (None, args.half)
    if args.half and not half:
        raise UsageError(f"{args.packed} was packed without --half: leave it out")
    if half:
        round_to_half(model)
    packed = packed or packed_network(model)
    with answering("the two networks or the images do not fit together"):
        if args.fast:
            return verify_fast(packed, contents.image_size, images_for(args, contents, model))
        found = compare(model, packed, images_for(args, contents, model))
    wrong = found["wrong_convs"]
    convs = [conv for _, conv in binary_convs(model) if conv.activation_bits == 1]
    print(f"binary convolutions with exactly the training graph's integers: {len(convs) - len(wrong)} of {len(convs)}")
    print(f"largest relative difference of logits: {found['relative_error']:.2e} (accepted: {TOLERANCE:.0e})")
    print(f"same top-1: {found['same_top1']} of {found['images']} images")
    if found["rounded"]:
        print(f"images on which the training graph's rounding turns a sign: {found['rounded']}")
    if found["labelled"]:
        print(f"top-1 accuracy: training graph {found['top1_float']:.2f} %, packed {found['top1_packed']:.2f} %")
    found |= {"network": contents.network, "convs": len(convs)}
    found["passed"] = not wrong and found["relative_error"] <= TOLERANCE and found["same_top1"] == found["images"]
    if not found["passed"]:
        named = f"; wrong: {few(wrong, what='convolutions')}" if wrong else ""
        raise RunError(f"the packed network is not the same: see above{named}")
    return found
