"""Train a network on CIFAR-10, CIFAR-100, a folder of small images, or the digits that ship with scikit-learn."""

import sys
from pathlib import Path

import torch
from torch.optim import SGD

from cifar import data
from models import ARCHS, CIFAR, build_model
from modules.restriction import IResLoss, PlainLoss, attention_mask
from utils.command import Parser, UsageError, command, positive_int
from utils.training import engine
from utils.training import trainer as training
from utils.training.flags import add_network_flags, add_runtime_flags, add_training_flags, network_config
from utils.training.losses import cross_entropy
from utils.training.run import LAST, Run

# IR²Net, section V-A, and the released code: epochs and learning rate per architecture.
IR2NET = {
    "resnet20": {"epochs": 500, "lr": 0.11},
    "resnet18": {"epochs": 600, "lr": 0.08},
    "vgg_small": {"epochs": 400, "lr": 0.08},
}
COMMON = {"batch_size": 128, "momentum": 0.9, "weight_decay": 1e-4, "t_min": 1e-3}
# What a method's own recipe changes; t_min is EDE's.
RECIPES = {
    ("irnet", "resnet20"): {"epochs": 400, "lr": 0.1},
    ("irnet", "vgg_small"): {"epochs": 300, "lr": 0.007, "t_min": 1e-1},
    ("sdbnn", "vgg_small"): {"t_min": 1e-1},
}


IRNET_1W32A = {"resnet20": {"t_min": 1e-1}}


def recipe(arch, method, activation_bits=1):
    """Hyper-parameters of `method` on `arch`: {flag: value}."""
    real = IRNET_1W32A.get(arch, {}) if method == "irnet" and activation_bits == 32 else {}
    return {**COMMON, **IR2NET[arch], **RECIPES.get((method, arch), {}), **real}


def build_parser():
    parser = Parser(prog="cifar.train", description=__doc__)
    parser.add_argument("--dataset", choices=data.DATASETS, default="cifar10", help="folder: DIR/{train,test}/<class>/")
    parser.add_argument("--data-dir", metavar="DIR", help="where the data set lies (digits needs none)")
    parser.add_argument("--download", action="store_true", help="fetch CIFAR into --data-dir if it is not there")
    parser.add_argument("--image-size", type=positive_int, metavar="N", help="resize a folder's images to NxN")
    add_network_flags(parser, ARCHS[CIFAR], arch_default="resnet20")
    add_training_flags(parser)
    add_runtime_flags(parser)
    return parser


def resolve(argv):
    """Parsed flags, with a resumed run's own where none is given, and the recipe's where neither says; the checkpoint.

    Raises UsageError if a given flag contradicts the run that is resumed.
    """
    parser = build_parser()
    args = parser.parse_args(argv)
    payload = None
    if args.resume is not None:
        path = Path(args.resume or Path(args.output_dir) / LAST)
        payload = training.resume_flags(parser, argv, args, path)
        training.go_on_in(path.parent, parser, argv, args)
    for name, value in recipe(args.arch, args.method, args.activation_bits).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    return args, payload


def build_step(args, model):
    if args.ires:
        return IResLoss(model, cross_entropy, args.lam, args.mu, args.ires_variant)
    return PlainLoss(model, cross_entropy)


def mask_grid(step, batches, rows=8):
    """Images beside what IRes leaves of them, one grid (3, H, W) in [0, 1]."""
    from torchvision.utils import make_grid

    images = next(iter(batches))[0][:rows]
    with torch.inference_mode():
        mask = attention_mask(step.model.eval().features(images)[-1], images.shape[2:], step.lam, step.variant)
    shown = data.unnormalise(images)
    return make_grid(torch.stack([shown, shown * mask], 1).flatten(0, 1), nrow=2)


@command
def main(argv=None):
    args, payload = resolve(argv)
    device = engine.choose_device(args.device)
    precision = engine.choose_precision(args.amp, device)
    args.amp = precision.amp  # what "auto" has become: a resumed run goes on with it, on whatever machine
    engine.seed_everything(args.seed, args.deterministic)
    progress = not args.no_progress

    train_set, test_set = data.load(args.dataset, args.data_dir, args.download, args.image_size, progress)
    size = tuple(train_set.images.shape[2:])
    if args.arch == "vgg_small" and size[0] != size[1]:
        raise UsageError(f"vgg_small needs square images, not {size[0]}x{size[1]}: --image-size N makes them so")
    network = network_config(args, num_classes=len(train_set.classes), image_size=size[0])
    try:
        model = build_model(**network)
    except ValueError as error:
        raise UsageError(str(error)) from None
    run = Run(args.output_dir, resume=payload is not None)
    model.to(device)
    train = data.Batches(train_set, args.batch_size, device, train=True, seed=args.seed)
    if train.batch_size == 1:
        raise UsageError("BatchNorm needs batches of 2 images or more: give a larger --batch-size, or more images")
    if train.batch_size < args.batch_size:
        print(f"batches of {train.batch_size}: there are no more training images")
    test = data.Batches(test_set, max(args.batch_size, 500), device)

    step = build_step(args, model)
    optimizer = SGD(model.parameters(), args.lr, momentum=args.momentum, weight_decay=args.weight_decay)
    scheduler = training.schedule(optimizer, "cosine", args.epochs * len(train))

    def after_epoch(epoch, writer):
        if epoch == 0 and args.ires:
            writer.add_image("ires/images_and_masked", mask_grid(step, test), epoch + 1)

    print(f"data: {args.dataset}, {len(train_set)} training and {len(test_set)} test images of {size[0]}x{size[1]}")
    training.train(
        args, step, train, test, optimizer, scheduler, precision, run,
        payload=payload, network=network, data=data.labels(args.dataset, train_set, test_set),
        command=training.command_line("cifar.train", argv or sys.argv[1:]), on_epoch=after_epoch,
    )  # fmt: skip


if __name__ == "__main__":
    main()
