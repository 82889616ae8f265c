"""Measure what this code costs: the training step and the data path, beside plain ones (`utils.bench.reference`)."""

import itertools
import json
import statistics
import time

import torch

from cifar import data
from models import ARCHS, CIFAR, IMAGENET, build_model
from modules.restriction import VARIANTS, IResLoss, PlainLoss
from utils.bench.reference import ImageLoopIResLoss, pil_loader, use_mask_chains
from utils.command import Parser, UsageError, command, fraction, positive_int
from utils.training import runtime
from utils.training.flags import add_network_flags, network_config
from utils.training.losses import cross_entropy
from utils.training.run import versions

IMAGENET_SIZE, IMAGENET_CLASSES = 224, 1000
LEAST_SECONDS = 3.0  # that a data path is timed in one turn

CONTENDERS = {
    "step": "IRes at --lam; eager on a CPU its second pass is left out where nothing is masked",
    "two_passes": "where that may be so: IRes at lambda 1, which always masks",
    "no_ires": "the same network without IRes",
    "full_precision": "its full-precision twin, without IRes and head, computed as ours is",
    "plain_full_precision": "the twin as plain PyTorch has it: eager, float32, contiguous",
    "reference": "the plain reference, with IRes at --lam",
    "reference_pil": "the same, fed by a DataLoader with PIL transforms",
}


def saved_bytes(step, images, labels, precision):
    """Bytes that the forward pass of `step` holds for its backward pass; parameters and the input not counted."""
    own = {t.untyped_storage().data_ptr() for t in (*step.parameters(), *step.buffers(), images, labels)}
    held = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            held[storage.data_ptr()] = (storage.nbytes(), tensor)  # the tensor keeps its address from being used again
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), precision.autocast():
        step(images, labels)
    return sum(size for size, _ in held.values())


class Contender:
    """One variant of the training step, with its own network and optimizer, fed by an endless stream of batches.

    plain: images and weights stay contiguous, as they are where nobody has thought of it; else channels_last.
    """

    def __init__(self, step, stream, precision, plain=False, compiled=False):
        self.step = step.train()
        self.stream = stream
        self.plain = plain
        self.precision = precision
        self.device = precision.device
        if not plain:
            step.to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.SGD(step.model.parameters(), 0.01, momentum=0.9, weight_decay=1e-4)
        self.scaler = precision.scaler()
        self.parts = {"data": [], "forward": [], "backward": [], "optimizer": []}
        self.rates = []
        self.metrics = {}
        if compiled:
            runtime.compile_step(step, self.device)

    def _clock(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def run(self, steps, record=True):
        """Time `steps` steps, part by part; keeps the images/s of the whole."""
        images_seen, start = 0, self._clock()
        for _ in range(steps):
            times = [self._clock()]
            images, labels = next(self.stream)
            if self.plain:
                images = images.contiguous()
            times.append(self._clock())
            with self.precision.autocast():
                loss, _, metrics = self.step(images, labels)
            times.append(self._clock())
            self.optimizer.zero_grad(set_to_none=True)
            self.scaler.scale(loss).backward()
            times.append(self._clock())
            self.scaler.step(self.optimizer)
            self.scaler.update()
            times.append(self._clock())
            images_seen += len(labels)
            if record:
                for part, before, after in zip(self.parts.values(), times, times[1:]):
                    part.append(after - before)
        if record:
            self.rates.append(images_seen / (self._clock() - start))
        self.metrics = {name: value.item() for name, value in metrics.items()}

    def images_per_s(self):
        return statistics.median(self.rates)

    def shares(self):
        medians = {name: statistics.median(times) for name, times in self.parts.items()}
        return {name: value / sum(medians.values()) for name, value in medians.items()}


def matmul_peak(device, dtype, size=2048, repeats=5):
    """FLOP/s of a size x size matrix product in `dtype` on `device`: the best of `repeats`."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return 2 * size**3 / min(times[1:])


def step_flops(step, images, labels):
    """Floating-point operations of one training step's convolutions and matrix products, forward and backward."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        step(images, labels)[0].backward()
    step.zero_grad(set_to_none=True)
    return counter.get_total_flops()


def endless(batches):
    epoch = 0
    while True:
        yield from batches.epoch(epoch)
        epoch += 1


def endless_loader(loader, device):
    while True:
        for images, labels in loader:
            yield images.to(device), labels.to(device)


def random_data(count):
    """An ImageSet of random pixels: speed does not depend on what the images show."""
    images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8)
    return data.ImageSet(images, torch.randint(0, 10, (count,)), [str(i) for i in range(10)])


def training_stream(args, device):
    """(endless batches, number of classes, image size) of --dataset; of ImageNet one random batch, over and over."""
    if args.dataset == "imagenet":
        images = torch.randn(args.batch_size, 3, IMAGENET_SIZE, IMAGENET_SIZE, device=device)
        batch = images, torch.randint(0, IMAGENET_CLASSES, (args.batch_size,), device=device)
        return itertools.repeat(batch), IMAGENET_CLASSES, IMAGENET_SIZE
    if args.dataset == "random":
        train_set = random_data(max(5000, 4 * args.batch_size))
    else:
        (train_set,) = data.load(args.dataset, args.data_dir, splits=("train",))
    batches = data.Batches(train_set, args.batch_size, device, train=True)
    return endless(batches), len(train_set.classes), batches.size[0]


def bench_train(args):
    device = runtime.choose_device(args.device)
    precision = runtime.choose_precision(args.amp, device)
    compiled, reason = runtime.choose_compile(args.compile, device, steps=10**6)
    stream, num_classes, image_size = training_stream(args, device)
    if args.dataset != "imagenet" and args.recovery is None:
        args.recovery = "cirec"
    if args.dataset == "imagenet" and args.recovery is None and args.variant is None:
        args.variant = "c"
    network = network_config(args, num_classes=num_classes, image_size=image_size)
    headless = {"recovery": None, "ratio": None, "groups": None, "variant": None}
    twin = network | headless | {"weight_bits": 32, "activation_bits": 32}

    def build(config):
        torch.manual_seed(0)
        return build_model(**config).to(device)

    def ours(lam):
        return IResLoss(build(network), cross_entropy, lam, variant=args.ires_variant)

    def reference():
        return ImageLoopIResLoss(use_mask_chains(build(network)), cross_entropy, args.lam)

    float32 = runtime.Precision(device, None)
    contenders = {
        "step": Contender(ours(args.lam), stream, precision, compiled=compiled),
        "no_ires": Contender(PlainLoss(build(network), cross_entropy), stream, precision, compiled=compiled),
        "full_precision": Contender(PlainLoss(build(twin), cross_entropy), stream, precision, compiled=compiled),
        "plain_full_precision": Contender(PlainLoss(build(twin), cross_entropy), stream, float32, plain=True),
        "reference": Contender(reference(), stream, float32, plain=True),
    }
    if device.type == "cpu" and not compiled:
        contenders["two_passes"] = Contender(ours(1.0), stream, precision)
    if args.dataset not in ("random", "imagenet"):
        loader = pil_loader(args.dataset, args.data_dir, args.batch_size, args.workers, image_size)
        contenders["reference_pil"] = Contender(reference(), endless_loader(loader, device), float32, plain=True)
    images, labels = next(stream)
    held = {name: saved_bytes(contenders[name].step, images, labels, contenders[name].precision)
            for name in ("step", "two_passes", "reference") if name in contenders}  # fmt: skip
    flops = step_flops(contenders["reference"].step, images, labels)
    for contender in contenders.values():
        contender.run(args.warmup, record=False)
    for _ in range(args.rounds):
        for contender in contenders.values():
            contender.run(args.steps)
    peak = matmul_peak(device, precision.dtype or torch.float32)
    rates = {name: contenders[name].images_per_s() for name in CONTENDERS if name in contenders}
    result = {
        "what": "train",
        "network": network,
        "images_per_s": rates,
        "ratios": {name: rates["step"] / rate for name, rate in rates.items() if name != "step"},
        "masked_fraction": contenders["step"].metrics["masked_fraction"],
        "lam": args.lam,
        "ires_variant": args.ires_variant,
        "backward_bytes": held,
        "shares": contenders["step"].shares(),
        "floor": {
            "two_passes_gflops": flops / 1e9,
            "matmul_gflops_per_s": peak / 1e9,
            "images_per_s": len(labels) * peak / flops,
        },
        "batch_size": len(labels),
        "precision": str(precision),
        "compiled": compiled,
        "threads": torch.get_num_threads(),
        "versions": versions(device),
    }
    if device.type == "cuda":
        result["max_memory_allocated"] = torch.cuda.max_memory_allocated()
    floor = result["floor"]
    print(f"{args.arch}, batch {len(labels)}, {device}, {precision}, {'compiled' if compiled else 'eager'} ({reason})")
    for name, rate in rates.items():
        print(f"  {name:20s} {rate:9.0f} images/s   ours is {rates['step'] / rate:5.2f}x   {CONTENDERS[name]}")
    print(f"  masked at lambda {args.lam}: {result['masked_fraction']:.1%} of the pixels")
    print(f"  floor of arithmetic for two passes: {floor['images_per_s']:.0f} images/s, "
          f"{flops / 1e9:.1f} GFLOP a step at {peak / 1e9:.0f} GFLOP/s")  # fmt: skip
    print("  time: " + ", ".join(f"{name} {share:.0%}" for name, share in result["shares"].items()))
    print("  held for backward: " + ", ".join(f"{name} {size / 1e6:.0f} MB" for name, size in held.items()))
    return result


def bench_imagenet_data(args, device):
    """Images/s of ImageNet's loader alone: decoding and augmenting JPEGs in --workers processes."""
    from imagenet.batches import Batches, measure_loader
    from imagenet.data import open_split, train_transform

    folder = open_split(args.data_dir, "train")
    batches = Batches(
        folder, train_transform(IMAGENET_SIZE, 0.1, False), args.batch_size, device, train=True, workers=args.workers
    )
    rate = measure_loader(batches, args.steps)
    print(f"  loader {rate:.0f} images/s with {args.workers} workers, {IMAGENET_SIZE}x{IMAGENET_SIZE}")
    return {
        "what": "imagenet data",
        "images_per_s": {"ours": rate},
        "workers": args.workers,
        "versions": versions(device),
    }


def bench_data(args):
    """Images/s of our batches against a DataLoader with PIL transforms, in turn."""
    device = runtime.choose_device(args.device)
    if args.dataset == "imagenet":
        return bench_imagenet_data(args, device)
    if args.dataset == "random":
        raise UsageError("bench data needs images to decode: --dataset digits, cifar10 or folder")
    (train_set,) = data.load(args.dataset, args.data_dir, splits=("train",))
    batches = data.Batches(train_set, args.batch_size, device, train=True)
    loader = pil_loader(args.dataset, args.data_dir, args.batch_size, args.workers, batches.size[0])

    def rate(stream):
        next(stream)  # start-up
        count, start = 0, time.perf_counter()
        while time.perf_counter() - start < LEAST_SECONDS:
            count += len(next(stream)[1])
        return count / (time.perf_counter() - start)

    streams = {"ours": endless(batches), "pil_loader": endless_loader(loader, device)}
    rates = {name: [] for name in streams}
    for _ in range(args.rounds):
        for name, stream in streams.items():
            rates[name].append(rate(stream))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    result = {
        "what": "data",
        "dataset": args.dataset,
        "images_per_s": medians,
        "ratio": medians["ours"] / medians["pil_loader"],
        "workers": args.workers,
        "batch_size": args.batch_size,
        "versions": versions(device),
    }
    for name, value in medians.items():
        print(f"  {name:12s} {value:9.0f} images/s")
    print(f"  ratio {result['ratio']:.1f}, against {args.workers} workers")
    return result


def build_parser():
    parser = Parser(prog="utils.bench", description=__doc__)
    parser.add_argument("what", choices=("train", "data"), help="the training step, or the data path alone")
    parser.add_argument("--dataset", choices=("random", *data.DATASETS, "imagenet"), default="random")
    parser.add_argument("--data-dir", metavar="DIR")
    archs = dict.fromkeys(ARCHS[CIFAR] + ARCHS[IMAGENET])
    add_network_flags(parser, list(archs), variants=True)
    parser.add_argument("--lam", type=fraction, default=0.15)
    parser.add_argument("--ires-variant", choices=VARIANTS, default="paper")
    parser.add_argument("--batch-size", type=positive_int, default=128)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--amp", choices=("auto", *runtime.AMP), default="auto")
    parser.add_argument("--compile", choices=("auto", "off", "on"), default="auto")
    parser.add_argument("--workers", type=positive_int, default=2, help="of the PIL loader")
    parser.add_argument("--warmup", type=positive_int, default=3, help="steps that are not counted")
    parser.add_argument("--rounds", type=positive_int, default=5, help="turns that every contender gets")
    parser.add_argument("--steps", type=positive_int, default=5, help="steps in a turn")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    return parser


@command
def main(argv=None):
    args = build_parser().parse_args(argv)
    args.arch = args.arch or ("resnet18" if args.dataset == "imagenet" else "resnet20")
    try:
        result = bench_train(args) if args.what == "train" else bench_data(args)
    except ValueError as error:
        raise UsageError(str(error)) from None
    if args.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
