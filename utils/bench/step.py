"""The training step, measured beside its variants and a plain implementation."""

import itertools
import statistics
import time

import torch

from cifar import data
from models import build_model
from modules.restriction import PlainLoss, ThriftyIResLoss
from utils.bench.loading import endless, endless_loader
from utils.bench.reference import ImageLoopIResLoss, pil_loader, use_mask_chains
from utils.training import runtime
from utils.training.flags import network_config
from utils.training.losses import cross_entropy
from utils.training.run import versions

IMAGENET_SIZE, IMAGENET_CLASSES = 224, 1000

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
    stored = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            stored[storage.data_ptr()] = (
                storage.nbytes(),
                tensor,
            )  # so that no other takes its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), precision.autocast():
        step(images, labels)
    return sum(size for size, _ in stored.values())


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


def plain_reference(network, lam, device):
    """The step as a straightforward script has it: masks made of booleans, a loop over the images."""
    return ImageLoopIResLoss(use_mask_chains(new_model(network, device)), cross_entropy, lam)


def new_model(network, device):
    """build_model(**network) on the device, always with the same weights."""
    torch.manual_seed(0)
    return build_model(**network).to(device)


def contenders_of(args, network, stream, precision, compiled):
    """{name: Contender}, all of CONTENDERS but `reference_pil`."""
    device, float32 = precision.device, runtime.Precision(precision.device)
    headless = {"recovery": None, "ratio": None, "groups": None, "variant": None}
    twin = network | headless | {"weight_bits": 32, "activation_bits": 32}

    def ours(lam):
        return ThriftyIResLoss(new_model(network, device), cross_entropy, lam, variant=args.ires_variant)

    def without_ires(network):
        return PlainLoss(new_model(network, device), cross_entropy)

    found = {
        "step": Contender(ours(args.lam), stream, precision, compiled=compiled),
        "no_ires": Contender(without_ires(network), stream, precision, compiled=compiled),
        "full_precision": Contender(without_ires(twin), stream, precision, compiled=compiled),
        "plain_full_precision": Contender(without_ires(twin), stream, float32, plain=True),
        "reference": Contender(plain_reference(network, args.lam, device), stream, float32, plain=True),
    }
    if device.type == "cpu" and not compiled:
        found["two_passes"] = Contender(ours(1.0), stream, precision)
    return found


def measured_network(args, num_classes, image_size):
    """build_model's arguments of the flags; where they name no head it is IR²Net's, of ImageNet C."""
    given = network_config(args, num_classes=num_classes, image_size=image_size)
    if args.recovery is None and args.dataset != "imagenet":
        return given | {"recovery": "cirec"}
    if args.recovery is None and args.variant is None:
        return given | {"variant": "c"}
    return given


def bench_train(args):
    device = runtime.choose_device(args.device)
    precision = runtime.choose_precision(args.amp, device)
    compiled, reason = runtime.choose_compile(args.compile, device, steps=10**6)
    stream, num_classes, image_size = training_stream(args, device)
    network = measured_network(args, num_classes, image_size)
    contenders = contenders_of(args, network, stream, precision, compiled)
    if args.dataset not in ("random", "imagenet"):
        loader = pil_loader(args.dataset, args.data_dir, args.batch_size, args.workers, image_size)
        step, stream_of_pil = plain_reference(network, args.lam, device), endless_loader(loader, device)
        contenders["reference_pil"] = Contender(step, stream_of_pil, runtime.Precision(device), plain=True)
    images, labels = next(stream)
    result = {
        "what": "train",
        "network": network,
        "lam": args.lam,
        "ires_variant": args.ires_variant,
        "batch_size": len(labels),
        "precision": str(precision),
        "compiled": compiled,
        "threads": torch.get_num_threads(),
        "versions": versions(device),
        "backward_bytes": {
            name: saved_bytes(contenders[name].step, images, labels, contenders[name].precision)
            for name in ("step", "two_passes", "reference")
            if name in contenders
        },
        "floor": floor_of(contenders["reference"].step, images, labels, precision),
    }
    result |= measure(contenders, args.warmup, args.rounds, args.steps)
    if device.type == "cuda":
        result["max_memory_allocated"] = torch.cuda.max_memory_allocated()
    mode = "compiled" if compiled else "eager"
    print(f"{args.arch}, batch {len(labels)}, {device}, {precision}, {mode} ({reason})")
    print_train(result)
    return result


def floor_of(step, images, labels, precision):
    """What the arithmetic of two passes would take at the speed of large matrix products."""
    flops = step_flops(step, images, labels)
    peak = matmul_peak(precision.device, precision.dtype or torch.float32)
    return {
        "two_passes_gflops": flops / 1e9,
        "matmul_gflops_per_s": peak / 1e9,
        "images_per_s": len(labels) * peak / flops,
    }


def measure(contenders, warmup, rounds, steps):
    """Let all contenders run in turn: their images/s, and where the step's time goes."""
    for contender in contenders.values():
        contender.run(warmup, record=False)
    for _ in range(rounds):
        for contender in contenders.values():
            contender.run(steps)
    rates = {name: contenders[name].images_per_s() for name in CONTENDERS if name in contenders}
    return {
        "images_per_s": rates,
        "ratios": {name: rates["step"] / rate for name, rate in rates.items() if name != "step"},
        "masked_fraction": contenders["step"].metrics["masked_fraction"],
        "shares": contenders["step"].shares(),
    }


def print_train(result):
    rates, floor = result["images_per_s"], result["floor"]
    for name, rate in rates.items():
        print(f"  {name:20s} {rate:9.0f} images/s   ours is {rates['step'] / rate:5.2f}x   {CONTENDERS[name]}")
    print(f"  masked at lambda {result['lam']}: {result['masked_fraction']:.1%} of the pixels")
    print(f"  floor of arithmetic for two passes: {floor['images_per_s']:.0f} images/s, "
          f"{floor['two_passes_gflops']:.1f} GFLOP a step at {floor['matmul_gflops_per_s']:.0f} GFLOP/s")  # fmt: skip
    print("  time: " + ", ".join(f"{name} {share:.0%}" for name, share in result["shares"].items()))
    sizes = result["backward_bytes"].items()
    print("  held for backward: " + ", ".join(f"{name} {size / 1e6:.0f} MB" for name, size in sizes))
