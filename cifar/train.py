"""Train a network on CIFAR-10, CIFAR-100, a folder of small images, or the digits that ship with scikit-learn."""

import shlex
import sys
from pathlib import Path

import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR

from cifar import data
from models import ARCHS, CIFAR, build_model
from modules.restriction import IResLoss, PlainLoss, attention_mask
from utils import checkpoint, engine
from utils.command import Parser, RunError, UsageError, command
from utils.losses import cross_entropy
from utils.options import add_network_flags, add_runtime_flags, add_training_flags, given_flags, network_config
from utils.run import Run, versions

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
# Flags that may differ between a run and its resumption: they change how it is computed, not what.
RUNTIME = {"device", "print_freq", "no_progress", "resume", "output_dir", "data_dir", "download", "compile"}


def recipe(arch, method):
    """Hyper-parameters of `method` on `arch`: {flag: value}."""
    return {**COMMON, **IR2NET[arch], **RECIPES.get((method, arch), {})}


def build_parser():
    parser = Parser(prog="cifar.train", description=__doc__)
    parser.add_argument("--dataset", choices=data.DATASETS, default="cifar10", help="folder: DIR/{train,test}/<class>/")
    parser.add_argument("--data-dir", metavar="DIR", help="where the data set lies (digits needs none)")
    parser.add_argument("--download", action="store_true", help="fetch CIFAR into --data-dir if it is not there")
    parser.add_argument("--image-size", type=int, metavar="N", help="resize a folder's images to NxN")
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
        path = Path(args.resume or Path(args.output_dir) / "last.pt")
        payload = checkpoint.read(path)
        if not checkpoint.is_ours(payload) or "optimizer" not in payload:
            raise RunError(f"{path} is not a checkpoint that training can go on from")
        given = given_flags(parser, argv)
        for name, value in payload["args"].items():
            if name in RUNTIME:
                if name not in given and name in ("data_dir", "compile"):
                    setattr(args, name, value)
            elif name in given and given[name] != value:
                flag = "--" + name.replace("_", "-")
                raise UsageError(f"the run in {path} has {flag} {value}, not {given[name]}: leave {flag} out")
            else:
                setattr(args, name, value)
    for name, value in recipe(args.arch, args.method).items():
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
    engine.seed_everything(args.seed, args.deterministic)
    progress = not args.no_progress

    train_set, test_set = data.load(args.dataset, args.data_dir, args.download, args.image_size, progress)
    size = tuple(train_set.images.shape[2:])
    network = network_config(args, num_classes=len(train_set.classes), image_size=size[0])
    try:
        model = build_model(**network)
    except ValueError as error:
        raise UsageError(str(error)) from None
    run = Run(args.output_dir, resume=payload is not None)
    model.to(device)
    train = data.Batches(train_set, args.batch_size, device, train=True, seed=args.seed)
    test = data.Batches(test_set, max(args.batch_size, 500), device)

    step = build_step(args, model)
    optimizer = SGD(model.parameters(), args.lr, momentum=args.momentum, weight_decay=args.weight_decay)
    scheduler = CosineAnnealingLR(optimizer, args.epochs)
    scaler = precision.scaler()
    state = engine.Progress()
    if payload is not None:
        checkpoint.load_state(model, payload["model"], run.last)
        optimizer.load_state_dict(payload["optimizer"])
        scheduler.load_state_dict(payload["scheduler"])
        scaler.load_state_dict(payload["scaler"])
        engine.set_rng_state(payload["rng"])
        state = engine.Progress(payload["epoch"], payload["best"], payload["seconds"])

    saved_args = {name: value for name, value in vars(args).items() if name != "resume"}
    labels = data.labels(args.dataset, train_set, test_set)
    compiled, reason = engine.choose_compile(args.compile, device, (args.epochs - state.epoch) * len(train))
    if compiled:
        step.compile()
    print(f"data: {args.dataset}, {len(train_set)} training and {len(test_set)} test images of {size[0]}x{size[1]}")
    print("flags:", " ".join(f"{name}={value}" for name, value in saved_args.items() if value is not None))
    print(f"computing on {device} in {precision}, {'compiled' if compiled else 'not compiled'} ({reason})")
    if payload is not None:
        print(f"resuming after epoch {state.epoch} of {args.epochs}")
        run.set_rows(payload["rows"])
    else:
        run.save_args({**saved_args, "command": shlex.join(["python", "-m", "cifar.train", *(argv or sys.argv[1:])])})

    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(run.folder, purge_step=state.epoch + 1 if payload else None)

    def after_epoch(epoch):
        if epoch == 0 and args.ires:
            writer.add_image("ires/images_and_masked", mask_grid(step, test), epoch + 1)

    try:
        state = engine.fit(
            step, train, test, optimizer, scheduler, scaler, precision, run,
            epochs=args.epochs, state=state, t_min=args.t_min, print_freq=args.print_freq, progress=progress,
            writer=writer, on_epoch=after_epoch,
            describe=lambda: {"network": network, "args": saved_args, "data": labels},
        )  # fmt: skip
    finally:
        writer.close()
    last = run.rows[-1]
    summary = {
        "top1_last": last["test_top1"],
        "top1_best": state.best,
        "images": last["test_images"],
        "epochs": state.epoch,
        "seconds": round(state.seconds, 1),
        "data": labels,
        "versions": versions(),
    }
    run.save_summary(summary)
    print(f"last {summary['top1_last']:.2f} %, best {summary['top1_best']:.2f} % of {summary['images']} test images")


if __name__ == "__main__":
    main()
