"""The data path alone, measured beside a DataLoader with PIL transforms."""

import statistics
import time

from cifar import data
from imagenet.batches import Batches, measure_loader
from imagenet.data import open_split, train_transform
from utils.bench.reference import pil_loader
from utils.command import UsageError
from utils.training import runtime
from utils.training.run import versions

LEAST_SECONDS = 3.0  # that a data path is timed in one turn
IMAGENET_SIZE = 224


def endless(batches):
    epoch = 0
    while True:
        yield from batches.epoch(epoch)
        epoch += 1


def endless_loader(loader, device):
    while True:
        for images, labels in loader:
            yield images.to(device), labels.to(device)


def bench_imagenet_data(args, device):
    """Images/s of ImageNet's loader alone: decoding and augmenting JPEGs in --workers processes."""
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
