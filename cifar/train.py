"""Train a network on CIFAR-10, CIFAR-100, a folder of small images, or the digits that ship with scikit-learn."""

import sys
from pathlib import Path

import torch
from torch.optim import SGD

from cifar import data
from models import ARCHS, CIFAR
from modules.restriction import attention_mask
from utils.command import Parser, UsageError, command, image_size
from utils.training import distributed, runtime
from utils.training.flags import (
    add_network_flags,
    add_runtime_flags,
    add_training_flags,
    check_ires_flags,
    flag_values,
    given_flags,
    network_config,
    runtime_flag,
    take_recipe,
)
from utils.training.initial import start_from
from utils.training.resume import command_line, set_resume_folder, take_flags
from utils.training.run import LAST, Run, check_new
from utils.training.schedule import schedule
from utils.training.step import build_step, check_t_min, new_network
from utils.training.teacher import NONE, check_resumed, load_teacher
from utils.training.trainer import Trainer

# IR²Net, section V-A, and the released code: epochs and learning rate per architecture.
IR2NET = {
    "resnet20": {"epochs": 500, "lr": 0.11},
    "resnet18": {"epochs": 600, "lr": 0.08},
    "vgg_small": {"epochs": 400, "lr": 0.08},
}
COMMON = {"batch_size": 128, "warmup_epochs": 0, "momentum": 0.9, "weight_decay": 1e-4, "t_min": 1e-3}
# What a method's own recipe changes on every architecture, and on one; t_min is that of annealed estimators.
# RBNN's rate goes with its batch: late in training, where its estimator is narrow, gradients grow from layer to layer,
# and a larger rate for the same number of images ends in noise.
METHOD_RECIPES = {
    "rbnn": {"epochs": 1000, "lr": 0.1, "lr_batch": 256, "batch_size": 256, "warmup_epochs": 5, "t_min": 1e-2},
    "recu": {"epochs": 600, "lr": 0.1, "batch_size": 256, "warmup_epochs": 5, "weight_decay": 5e-4},
    "adabin": {"epochs": 400, "lr": 0.1},
}
RECIPES = {
    ("irnet", "resnet20"): {"epochs": 400, "lr": 0.1},
    ("irnet", "vgg_small"): {"epochs": 300, "lr": 0.007, "t_min": 1e-1},
    ("sdbnn", "vgg_small"): {"t_min": 1e-1},
    ("adabin", "vgg_small"): {"lr": 0.007},  # IR-Net's, as its paper gives none: at 0.1 the first steps diverge
}
IRNET_1W32A = {"resnet20": {"t_min": 1e-1}}


def recipe(arch, method, activation_bits=1):
    """Hyper-parameters of `method` on `arch`: {flag: value}, as `take_recipe` reads them."""
    real = IRNET_1W32A.get(arch, {}) if method == "irnet" and activation_bits == 32 else {}
    own = {**METHOD_RECIPES.get(method, {}), **RECIPES.get((method, arch), {})}
    return {**COMMON, **IR2NET[arch], **own, **real}


def build_parser():
    parser = Parser(prog="cifar.train", description=__doc__)
    parser.add_argument("--dataset", choices=data.DATASETS, default="cifar10", help="folder: DIR/{train,test}/<class>/")
    runtime_flag(parser, "--data-dir", kept=True, metavar="DIR", help="where the data set lies (digits needs none)")
    runtime_flag(parser, "--download", action="store_true", help="fetch CIFAR into --data-dir if it is not there")
    parser.add_argument("--image-size", type=image_size, metavar="SIZE", help="resize a folder's images: N or HxW")
    skip = "go on without a folder's images that cannot be read"
    runtime_flag(parser, "--skip-corrupt", kept=True, action="store_true", help=skip)
    add_network_flags(parser, ARCHS[CIFAR], arch_default="resnet20")
    group = add_training_flags(parser)
    teacher = "checkpoint whose logits replace the labels"
    runtime_flag(group, "--teacher", kept=True, default=NONE, metavar="PATH", help=teacher)
    group.add_argument("--init-from", metavar="PATH", help="checkpoint of the same network whose weights to start from")
    add_runtime_flags(parser)
    return parser


def resolve(argv):
    """Parsed flags, with a resumed run's own where none is given, and the recipe's where neither says; the checkpoint.

    Raises UsageError if a given flag contradicts the run that is resumed.
    """
    parser = build_parser()
    args = parser.parse_args(argv)
    stored = None
    if args.resume is not None:
        found = Path(args.resume or Path(args.output_dir) / LAST)
        stored = take_flags(parser, argv, args, found)
        set_resume_folder(found.parent, parser, argv, args)
        check_resumed(args, stored)
    take_recipe(args, recipe(args.arch, args.method, args.activation_bits))
    given = given_flags(parser, argv)
    check_ires_flags(args, given)
    check_t_min(args, given)
    return args, stored


def load_batches(args, device):
    """(training batches, test batches, what the run keeps of its data). Raises UsageError for unfit images."""
    options = {"progress": not args.no_progress, "skip_corrupt": args.skip_corrupt}
    train_set, test_set = data.load(args.dataset, args.data_dir, args.download, args.image_size, **options)
    height, width = train_set.images.shape[2:]
    if args.arch == "vgg_small" and height != width:
        raise UsageError(f"vgg_small needs square images, not {height}x{width}: --image-size N makes them so")
    train = data.Batches(train_set, args.batch_size, device, train=True, seed=args.seed)
    if train.batch_size == 1:
        raise UsageError("BatchNorm needs batches of 2 images or more: give a larger --batch-size, or more images")
    if train.batch_size < args.batch_size:
        if "lr_batch" in recipe(args.arch, args.method):
            few = f"there are {train.batch_size} training images, and {args.method}'s rate goes with the batch"
            raise UsageError(f"{few}: give --batch-size {train.batch_size}")
        print(f"batches of {train.batch_size}: there are no more training images")
    print(f"data: {args.dataset}, {len(train_set)} training and {len(test_set)} test images of {height}x{width}")
    test = data.Batches(test_set, max(args.batch_size, 500), device)
    return train, test, data.labels(args.dataset, train_set, test_set)


def mask_grid(step, batches, rows=8):
    """Images beside what IRes leaves of them, one grid (3, H, W) in [0, 1]."""
    from torchvision.utils import make_grid  # seconds, as torchvision comes with all its networks

    images = next(iter(batches))[0][:rows]
    with torch.inference_mode():
        mask = attention_mask(step.model.eval().features(images)[-1], images.shape[2:], step.lam, step.variant)
    shown = data.unnormalise(images)
    return make_grid(torch.stack([shown, shown * mask], 1).flatten(0, 1), nrow=2)


@command
def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    args, stored = resolve(argv)
    if distributed.launched():
        raise UsageError("cifar.train is one process: start it without torchrun")
    if stored is None:
        check_new(args.output_dir)
    device = runtime.choose_device(args.device)
    precision = runtime.choose_precision(args.amp, device)
    args.amp = precision.amp  # what "auto" has become: a resumed run goes on with it, on whatever machine
    runtime.seed_everything(args.seed, args.deterministic)

    train, test, images = load_batches(args, device)
    classes = images["classes"]
    network = network_config(args, num_classes=len(classes), image_size=images["image_size"][0])
    model = new_network(network)
    if args.init_from and stored is None:
        print(start_from(model, network, args.init_from, new_classes=True))
    teacher = None if args.teacher == NONE else load_teacher(args.teacher, classes, train.size, device)

    last = stored and stored["last"]
    with Run(args.output_dir, stored is not None, command_line("cifar.train", argv), last) as run:
        step = build_step(args, model.to(device))
        optimizer = SGD(model.parameters(), args.lr, momentum=args.momentum, weight_decay=args.weight_decay)
        scheduler = schedule(optimizer, "cosine", args.epochs, len(train), args.warmup_epochs)
        kept = {"network": network, "args": flag_values(args), "data": images}
        trainer = Trainer(step, optimizer, scheduler, precision, run, args, kept, teacher)
        if stored is not None:
            trainer.resume(stored)

        def show_masks(epoch, board):
            if epoch == 0 and args.ires:
                board.add_image("ires/images_and_masked", mask_grid(step, test), epoch + 1)

        trainer.fit(train, test, show_masks)


if __name__ == "__main__":
    main()
