"""1-bit deployment: pack a network, verify it against the training graph, measure it, export it to ONNX."""

import json
import os

import torch
import torch.nn.functional as F

from cifar.data import DATASETS, Batches
from cifar.data import load as load_small
from models import ARCHS, build_model, family_of
from models.inference import binary_convs, pack_network
from utils.checkpoint import Contents, open_model, read_contents
from utils.checkpoint.packed import is_half, is_packed, packed_content, write_packed
from utils.command import Parser, RunError, UsageError, command, cpu_name, non_negative_int, positive_int
from utils.deploy import latency
from utils.files import output_path
from utils.training.flags import add_network_flags, network_config

TOLERANCE = 1e-4
"""Largest difference of logits that verify accepts, relative to the largest logit."""


def random_network(network, seed=0):
    """build_model(**network) in evaluation mode, with BatchNorm statistics as of random images, and random BatchNorm
    and PReLU parameters."""
    torch.manual_seed(seed)
    model = build_model(**network)
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.momentum = None  # the statistics of the one batch below, as they are
            torch.nn.init.normal_(module.weight, 1, 0.2)
            torch.nn.init.normal_(module.bias, 0, 0.3)
        elif isinstance(module, torch.nn.PReLU):
            torch.nn.init.uniform_(module.weight, 0, 0.5)
    with torch.no_grad():
        model.train()(random_images(network, 8, seed))
    return model.eval()


def random_images(network, count, seed=0):
    """float32 (count, 3, size, size), standard normal, of the network's size."""
    return torch.randn(count, 3, *Contents("", network, {}).image_size, generator=torch.Generator().manual_seed(seed))


def _network_of(args):
    """(network in evaluation mode, build_model's arguments) that the flags name: a checkpoint, or random weights."""
    if args.checkpoint:
        if is_packed(args.checkpoint):
            raise RunError(f"{args.checkpoint} is packed already: the checkpoint that it was made from is needed")
        model, description = open_model(args.checkpoint, args.weight_bits, args.activation_bits, args.structure)
        return model.float(), description.network
    if not args.arch and not args.variant:
        raise UsageError("--checkpoint PATH is needed, or --dataset and --arch for random weights")
    network = network_config(args, arch=args.arch or "resnet18", dataset=args.dataset or "cifar10")
    network = {name: value for name, value in network.items() if value is not None}
    try:
        return random_network(network, args.seed), network
    except ValueError as error:
        raise UsageError(str(error)) from None


def _packed(model):
    try:
        return pack_network(model)
    except ValueError as error:
        raise RunError(str(error)) from None


def _mb(size):
    return f"{size / 1e6:.3f} MB"


def pack(args):
    output = output_path(args.output, args.force)
    model, network = _network_of(args)
    write_packed(output, model, network, half=args.half)
    size, before = output.stat().st_size, _float_size(model)
    print(f"{output}: {_mb(size)}; the weights in float32 take {_mb(before)}, {before / size:.1f} times as much")
    return {"path": str(output), "bytes": size, "float_bytes": before, "half": args.half}


def _float_size(model):
    return sum(value.numel() * value.element_size() for value in model.state_dict().values())


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
    """
    wrong, hooks = set(), []

    def compare(name, ours):
        def hook(conv, args):
            signs = conv.binary_weight()[0]
            sums = F.conv2d(conv.quantized_input(args[0]), signs, None, conv.stride, conv.padding)
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


def _batches(args, network, model):
    """Yield (images, labels or None): the test images of --data-dir or digits, else random ones.

    Large images come one by one: torch sums full-precision convolutions in an order that depends on the batch, and the
    packed network passes a batch in parts.
    """
    dataset = args.dataset
    size = args.batch_size or (1 if family_of(network.get("dataset", "cifar10")) == "imagenet" else 16)
    if args.data_dir is None and dataset != "digits":
        images = random_images(network, args.images, args.seed)
        yield from ((batch, None) for batch in images.split(size))
    elif dataset == "imagenet":
        yield from _imagenet_batches(args, network, model, size)
    elif dataset is None:
        raise UsageError("--data-dir needs --dataset, which says how to read it")
    else:
        (test,) = load_small(dataset, args.data_dir, image_size=network.get("image_size"), splits=("test",))
        yield from Batches(test, size)


def _imagenet_batches(args, network, model, size):
    from imagenet.data import eval_transform, open_split, read_image, use_labels_of

    folder = open_split(args.data_dir, "val")
    use_labels_of(folder, None, model.fc.out_features)
    transform = eval_transform(Contents("", network, {}).image_size[0])
    for start in range(0, len(folder.samples), size):
        samples = folder.samples[start : start + size]
        yield torch.stack([transform(read_image(path)) for path, _ in samples]), torch.tensor([y for _, y in samples])


@torch.no_grad()
def verify(args):
    model, network = _network_of(args)
    if args.half:
        round_to_half(model)
    packed = open_model(args.packed)[0] if args.packed else _packed(model)
    found = {"images": 0, "relative_error": 0.0, "same_top1": 0, "labelled": 0, "top1_float": 0, "top1_packed": 0}
    wrong = set()
    try:
        for images, labels in _batches(args, network, model):
            expected, logits = model(images), packed(images)
            error = (expected - logits).abs().amax(1) / expected.abs().amax(1)
            found["images"] += len(images)
            found["relative_error"] = max(found["relative_error"], error.max().item())
            found["same_top1"] += (expected.argmax(1) == logits.argmax(1)).sum().item()
            if labels is not None:
                found["labelled"] += len(labels)
                found["top1_float"] += (expected.argmax(1) == labels).sum().item()
                found["top1_packed"] += (logits.argmax(1) == labels).sum().item()
            wrong.update(wrong_sums(model, packed, images))
    except (RuntimeError, ValueError) as error:
        raise RunError(f"the two networks or the images do not fit together: {error}") from None
    for name in ("top1_float", "top1_packed"):
        found[name] = 100 * found[name] / found["labelled"] if found["labelled"] else None
    convs = [conv for _, conv in binary_convs(model) if conv.activation_bits == 1]
    print(f"binary convolutions with exactly the training graph's integers: {len(convs) - len(wrong)} of {len(convs)}")
    print(f"largest relative difference of logits: {found['relative_error']:.2e} (accepted: {TOLERANCE:.0e})")
    print(f"same top-1: {found['same_top1']} of {found['images']} images")
    if found["labelled"]:
        print(f"top-1 accuracy: training graph {found['top1_float']:.2f} %, packed {found['top1_packed']:.2f} %")
    found |= {"convs": len(convs), "wrong_convs": sorted(wrong)}
    found["passed"] = not wrong and found["relative_error"] <= TOLERANCE and found["same_top1"] == found["images"]
    if not found["passed"]:
        raise RunError("the packed network is not the same: see above" + "; wrong: ".join(["", *sorted(wrong)]))
    return found


def bench(args):
    if args.checkpoint and is_packed(args.checkpoint):
        network = read_contents(args.checkpoint).network
        model = random_network(network)  # its floating-point weights are gone, and time does not depend on them
    else:
        model, network = _network_of(args)
    packed = _packed(model)
    count = args.threads or os.cpu_count()
    images = random_images(network, args.batch_size)
    with latency.threads(count):
        result = {
            "end_to_end": latency.end_to_end(packed, model, images, args.repeats, args.compile),
            "layers": latency.layers(packed, images, args.repeats),
            "parts": latency.parts(packed, images, args.repeats),
        }
    result |= {"threads": count, "batch": args.batch_size, "cpu": cpu_name(), "torch": torch.__version__}
    result["bytes"] = {
        "float32": _float_size(model),
        "packed": len(packed_content(model, network)),
        "packed_half": len(packed_content(model, network, half=True)),
    }
    _print_bench(result)
    return result


def _print_bench(result):
    time = "processor time" if result["threads"] == 1 else "wall time"
    print("{cpu}, threads: {threads}, batch {batch}, torch {torch}; ".format(**result) + f"medians of {time}, ms")
    print("\n| binary convolution | packed | float32 | ratio |\n|---|---|---|---|")
    for row in result["layers"]:
        ratio = row["float_ms"] / row["packed_ms"]
        print(f"| {row['name']} {row['shape']} | {row['packed_ms']:.3f} | {row['float_ms']:.3f} | {ratio:.1f} |")
    print("\n| network | ms | packed is faster by |\n|---|---|---|")
    packed_ms = result["end_to_end"]["packed_ms"]
    for name, value in result["end_to_end"].items():
        print(f"| {name.removesuffix('_ms')} | {value:.2f} | {value / packed_ms:.2f} |")
    print("\n| part of the packed network | ms |\n|---|---|")
    for name, value in result["parts"].items():
        print(f"| {name} | {value:.3f} |")
    print("\n" + "; ".join(f"{name}: {_mb(size)}" for name, size in result["bytes"].items()))


def onnx(args):
    output = output_path(args.output, args.force)
    try:
        import onnxscript  # noqa: F401  torch.onnx needs it
    except ImportError as error:
        raise RunError(f"ONNX export needs onnx and onnxscript ({error}): pip install onnx onnxscript") from None
    model, network = _network_of(args)
    images = random_images(network, 2)
    batch = {0: torch.export.Dim("batch")}
    torch.onnx.export(
        model,
        (images,),
        output,
        dynamo=True,
        external_data=False,
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=(batch,),
        verbose=False,
    )
    print(f"{output}: {_mb(output.stat().st_size)}, the floating-point graph, images {tuple(images.shape[1:])}")
    try:
        import onnxruntime
    except ImportError:
        print("not checked: onnxruntime is not installed")
        return {"path": str(output), "checked": False}
    session = onnxruntime.InferenceSession(str(output), providers=["CPUExecutionProvider"])
    images = random_images(network, 3, seed=1)
    with torch.no_grad():
        expected = model(images)
    logits = torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
    error = ((expected - logits).abs().max() / expected.abs().max()).item()
    same = torch.equal(expected.argmax(1), logits.argmax(1))
    print(f"onnxruntime {onnxruntime.__version__}: largest relative difference of logits {error:.1e}")
    if not same:
        raise RunError("onnxruntime's predictions differ from torch's")
    return {"path": str(output), "checked": True, "relative_error": error}


def build_parser():
    parser = Parser(prog="utils.deploy", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Parser)
    archs = sorted({arch for known in ARCHS.values() for arch in known})
    for name, help in (
        ("pack", "write a packed file"),
        ("verify", "compare a packed network with the training graph"),
        ("bench", "measure inference"),
        ("onnx", "export the floating-point graph"),
    ):
        sub = commands.add_parser(name, help=help)
        sub.add_argument("--checkpoint", metavar="PATH", help="ours, or a released one; default: random weights")
        sub.add_argument("--dataset", choices=(*DATASETS, "imagenet"), help="of the network, and of verify's images")
        add_network_flags(sub, archs, variants=True)
        sub.add_argument("--seed", type=non_negative_int, default=0, help="of random weights and images")
        sub.add_argument("--json", action="store_true", help="one JSON object as the last line")
        if name in ("pack", "onnx"):
            sub.add_argument("--output", metavar="PATH", required=True)
            sub.add_argument("--force", action="store_true", help="replace --output if it exists")
        if name in ("pack", "verify"):
            sub.add_argument("--half", action="store_true", help="float16 for weights of full-precision layers")
        if name == "verify":
            sub.add_argument("--packed", metavar="PATH", help="a packed file of --checkpoint; default: pack it anew")
            sub.add_argument("--data-dir", metavar="DIR", help="where --dataset lies; default: random images")
            sub.add_argument("--images", type=positive_int, default=16, help="how many random images")
            sub.add_argument("--batch-size", type=positive_int, help="default: 1 for imagenet, else 16")
        if name == "bench":
            sub.add_argument("--threads", type=positive_int, help="default: one per core")
            sub.add_argument("--batch-size", type=positive_int, default=1)
            sub.add_argument("--repeats", type=positive_int, default=20, help="rounds that the medians are taken over")
            sub.add_argument("--compile", action="store_true", help="measure torchvision's network compiled, too")
    return parser


@command
def main(argv=None):
    args = build_parser().parse_args(argv)
    result = {"pack": pack, "verify": verify, "bench": bench, "onnx": onnx}[args.command](args)
    if args.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
