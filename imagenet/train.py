"""Train a network on ImageNet, or any tree of class folders, in two stages, from a teacher.

Stage 1 has 1-bit activations and real weights; stage 2, binary in both, starts from its last weights. It runs in one
process, or under torchrun in many: --batch-size counts the images of one optimizer step over all of them, and --lr is
taken as it is given.
"""

import os
import sys
from argparse import BooleanOptionalAction, Namespace
from pathlib import Path

from torch import nn
from torch.optim import SGD, Adam

from imagenet import data
from imagenet.batches import Batches
from imagenet.recipes import WEIGHT_DECAY, recipe
from models import ARCHS, IMAGENET
from utils.command import (
    Parser,
    RunError,
    UsageError,
    command,
    data_processes,
    fraction,
    non_negative_float,
    positive_int,
)
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
from utils.training.run import LAST, SUMMARY, Run, check_new, check_whole
from utils.training.schedule import SCHEDULES, schedule
from utils.training.step import build_step, check_t_min, new_network
from utils.training.teacher import DEFAULT, NONE, TORCHVISION, check_resumed, load_teacher
from utils.training.trainer import Trainer

STAGES = {"1": (32, 1), "2": (1, 1)}
"""Stage -> (weight bits, activation bits)."""


def build_parser():
    parser = Parser(prog="imagenet.train", description=__doc__)
    folders = "holds train/ and val/ (or ILSVRC2012_img_train/ and _val/)"
    runtime_flag(parser, "--data-dir", kept=True, metavar="DIR", help=folders)
    parser.add_argument("--image-size", type=data.image_size, default=224, metavar="N", help="train and test at NxN")
    workers = "data processes per rank; default: its CPUs"
    runtime_flag(parser, "--workers", type=data_processes, metavar="N", help=workers)
    skip = "go on without images that cannot be read"
    runtime_flag(parser, "--skip-corrupt", kept=True, action="store_true", help=skip)
    add_network_flags(parser, ARCHS[IMAGENET], variants=True, arch_default="resnet18")
    group = add_training_flags(parser)
    group.add_argument("--init-from", metavar="PATH", help="checkpoint whose weights the first stage starts from")
    add_imagenet_flags(parser)
    add_runtime_flags(parser)
    runtime_flag(parser, "--auto-resume", action="store_true", help="--resume if the output folder holds a run")
    parser.set_defaults(
        dataset="imagenet", weight_bits=None, activation_bits=None, ires=None, output_dir="runs/imagenet"
    )
    return parser


def add_imagenet_flags(parser):
    group = parser.add_argument_group("ImageNet (defaults: the recipe of the method)")
    group.add_argument("--stage", choices=(*STAGES, "both", "single"), help="single: one stage at the given bits")
    from_stage1 = "what stage 2 starts from; default: the output's"
    runtime_flag(group, "--stage1-checkpoint", metavar="PATH", help=from_stage1)
    teachers = f"a checkpoint's path, {', '.join(TORCHVISION)}, or none"
    runtime_flag(group, "--teacher", kept=True, metavar="NAME", help=teachers)
    weights = "of a torchvision teacher; default: torchvision downloads them"
    runtime_flag(group, "--teacher-weights", kept=True, default=DEFAULT, metavar="PATH", help=weights)
    group.add_argument("--label-smoothing", type=fraction, help="of the cross-entropy without a teacher")
    group.add_argument("--optimizer", choices=("adam", "sgd"), help="sgd has Nesterov's momentum, 0.9 by default")
    group.add_argument("--decay", choices=tuple(DECAY), help="what is decayed; default: adam convs, sgd all")
    group.add_argument("--schedule", choices=tuple(SCHEDULES), help="of the learning rate")
    group.add_argument("--lighting", type=non_negative_float, help="standard deviation of the PCA colour jitter")
    group.add_argument("--color-jitter", action=BooleanOptionalAction, help="brightness, contrast, saturation, hue")
    group.add_argument("--accumulate", type=positive_int, default=1, metavar="K", help="split a rank's batch into K")


def run_folders(stage, output_dir):
    """{stage: its run's folder}, in the order that they are trained in."""
    output_dir = Path(output_dir)
    if stage == "single":
        return {"single": output_dir}
    return {name: output_dir / f"stage{name}" for name in (STAGES if stage == "both" else stage)}


def possible_folders(args):
    """The folders that a run may have, the latest stage's first: of any --stage if none is given."""
    stages = ("both", "single") if args.stage is None else (args.stage,)
    return [folder for stage in stages for folder in reversed(run_folders(stage, args.output_dir).values())]


def find_checkpoint(args):
    """Path of the last.pt that --resume goes on from: the latest stage's. None if there is none."""
    return next((folder / LAST for folder in possible_folders(args) if (folder / LAST).exists()), None)


def resolve(argv):
    """Parsed flags, with a resumed run's own where none is given, and the recipe's where neither says; the checkpoint.

    Raises UsageError for flags that contradict each other, or the run that is resumed.
    """
    parser = build_parser()
    args = parser.parse_args(argv)
    stored = take_run(parser, argv, args)
    take_recipe(args, recipe(args.method))
    if args.ires is None:
        args.ires = args.variant is not None
    if args.stage == "single":
        args.weight_bits, args.activation_bits = args.weight_bits or 1, args.activation_bits or 1
    elif args.weight_bits or args.activation_bits:
        raise UsageError("--weight-bits and --activation-bits go with --stage single: the two stages set their own")
    if args.optimizer == "adam":
        args.momentum = None  # the recipe's was of its own optimizer
    elif args.momentum is None:
        args.momentum = 0.9
    check_idle_flags(args, given_flags(parser, argv))
    if args.workers is None:
        args.workers = data.default_workers()
    return args, stored


def check_idle_flags(args, given):
    """Raise UsageError if a flag of `given` would change nothing beside the others."""
    check_ires_flags(args, given)
    check_t_min(args, given)
    idle = [
        ("momentum", args.optimizer == "adam", "--optimizer sgd"),
        ("stage1_checkpoint", args.stage != "2", "--stage 2"),
        ("init_from", args.stage == "2", "another --stage: 2 starts from stage 1's weights"),
        ("label_smoothing", args.teacher != NONE, "--teacher none: a teacher's logits take the labels' place"),
        ("teacher_weights", args.teacher not in TORCHVISION, f"--teacher {', '.join(TORCHVISION)}"),
    ]
    for name, is_idle, partner in idle:
        if name in given and is_idle:
            raise UsageError(f"--{name.replace('_', '-')} goes with {partner}")


def take_run(parser, argv, args):
    """The checkpoint that this job goes on from, its flags given to `args`; None for a new run."""
    found = Path(args.resume) if args.resume else find_checkpoint(args)
    if args.resume is not None and found is None:
        for folder in possible_folders(args):
            check_whole(folder)
        raise RunError(f"--resume: there is no run in {args.output_dir}")
    if found is None or not is_resuming(args):
        return None
    stored = take_flags(parser, argv, args, found)
    if stored.get("stage") not in run_folders(args.stage, args.output_dir):
        raise UsageError(f"{found} is not a checkpoint of imagenet.train")
    check_resumed(args, stored)
    folder = found.parent if stored["stage"] == "single" else Path(os.path.normpath(found.parent / ".."))
    later = run_folders("2", folder)["2"]
    if stored["stage"] == "1" and stored["epoch"] < args.epochs and (later / LAST).exists():
        raise UsageError(f"stage 2 has begun from {found}, in {later}: resume that, or move it away")
    if args.resume:
        set_resume_folder(folder, parser, argv, args)
        own = run_folders(args.stage, args.output_dir)[stored["stage"]]
        if own.resolve() != found.parent.resolve():
            raise UsageError(f"stage {stored['stage']} of a run goes on in a folder {own.name}, not {found.parent}")
    return stored


def is_resuming(args):
    """Whether this is the resumption of a run, if there is one."""
    return args.resume is not None or args.auto_resume or distributed.restarted()


def stage_flags(args, stage):
    """The flags of one stage: its bits, and the weight decay that goes with them."""
    args = Namespace(**vars(args))
    if stage in STAGES:
        args.weight_bits, args.activation_bits = STAGES[stage]
    if args.weight_decay is None:
        args.weight_decay = WEIGHT_DECAY[args.weight_bits]
    return args


DECAY = {
    "all": lambda name, module: True,
    "convs": lambda name, module: isinstance(module, nn.Conv2d) and name.endswith(".weight"),
    "conv-fc": lambda name, module: "conv" in name or "fc" in name,
}
"""--decay -> whether the parameter `name`, which `module` owns, is decayed: ReActNet leaves out all but the weights of
convolutions, ReCU goes by the names."""


def build_optimizer(args, model):
    """Adam or SGD; the weight decay is for the parameters that --decay says.

    Fused: one pass over the weights instead of ten, which a CPU feels. It takes weights and gradients in the order that
    they have in memory, and relies on autograd to lay out a gradient as its parameter.
    """
    owners = dict(model.named_modules())
    is_decayed = DECAY[args.decay or ("all" if args.optimizer == "sgd" else "convs")]
    groups = {True: [], False: []}
    for name, parameter in model.named_parameters():
        groups[is_decayed(name, owners[name.rpartition(".")[0]])].append(parameter)
    options = [{"params": groups[True], "weight_decay": args.weight_decay}, {"params": groups[False]}]
    options = [group for group in options if group["params"]]
    if args.optimizer == "sgd":
        return SGD(options, args.lr, args.momentum, nesterov=args.momentum > 0, fused=True)
    return Adam(options, args.lr, fused=True)


@command
def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    with distributed.session():
        with distributed.fail_together():
            args, stored = resolve(argv)
            device = runtime.choose_device(args.device)
            args.amp = runtime.choose_precision(args.amp, device).amp  # a resumed run goes on with it
            folders = run_folders(args.stage, args.output_dir)
            stages = list(folders)
            if stored is not None:
                stages = stages[stages.index(stored["stage"]) :]
            for stage in stages[stored is not None :]:  # from a checkpoint its own stage goes on
                (check_whole if is_resuming(args) else check_new)(folders[stage])
        distributed.mark_begun()
        with distributed.fail_together():
            batches = build_batches(args, device)
            teacher = None
            if args.teacher != NONE:
                size = args.image_size, args.image_size
                teacher = load_teacher(args.teacher, batches[0].classes, size, device, args.teacher_weights)
        if distributed.is_main():
            print_setup(args, *batches)
        for stage in stages:
            train_stage(args, stage, folders[stage], batches, teacher, stored, argv)
            stored = None
            distributed.barrier()  # the next stage reads what rank 0 has written


def print_setup(args, train, test):
    counts = f"{train.count} training and {test.count} test images of {len(train.classes)} classes"
    print(f"data: {args.data_dir}, {counts}, at {args.image_size}x{args.image_size}")
    parts = f"{train.ranks} rank(s) x {args.accumulate} part(s) of {train.part}"
    print(f"a step: {args.batch_size} images, as {parts}")
    if args.teacher == NONE:
        print(f"no teacher: cross-entropy with labels, smoothed by {args.label_smoothing}")
    else:
        print(f"teacher: {args.teacher}; its logits are the targets, labels are not used")


def build_batches(args, device):
    """Batches to train on, and to test on. Raises UsageError for missing or unfit data."""
    train_folder, val_folder = data.open_splits(args.data_dir)
    options = {"seed": args.seed, "accumulate": args.accumulate, "workers": args.workers}
    options |= {"skip_corrupt": args.skip_corrupt}
    transform = data.train_transform(args.image_size, args.lighting, args.color_jitter)
    train = Batches(train_folder, transform, args.batch_size, device, train=True, **options)
    return train, Batches(val_folder, data.eval_transform(args.image_size), args.batch_size, device, **options)


def train_stage(given, stage, folder, batches, teacher, stored, argv):
    """One stage, of the flags `given`, from its start, or from `stored`, to its summary."""
    train, test = batches
    args = stage_flags(given, stage)
    with distributed.fail_together():
        precision = runtime.choose_precision(args.amp, train.device)
        runtime.seed_everything(args.seed, args.deterministic)
        network = network_config(args, num_classes=len(train.classes))
        model = new_network(network)
        bits = f"weights of {args.weight_bits}, activations of {args.activation_bits} bit(s)"
        lines = [f"stage {stage}: {bits}, in {folder}"]
        if stored is None:
            lines += initial_weights(args, stage, folder, model, network)
        # A job that died before its first checkpoint leaves a folder that holds no training to go on from.
        resume = stored is not None or (is_resuming(args) and not (folder / LAST).exists())
        run = Run(folder, resume, command_line("imagenet.train", argv), stored and stored["last"])
    with run:
        with distributed.fail_together():
            step = build_step(args, model.to(train.device))
            optimizer = build_optimizer(args, model)
            scheduler = schedule(optimizer, args.schedule, args.epochs, len(train), args.warmup_epochs)
            images = data.describe(train, test, args.image_size)
            kept = {"network": network, "args": flag_values(given), "data": images, "stage": stage}
            trainer = Trainer(step, optimizer, scheduler, precision, run, args, kept, teacher)
            if stored is not None:
                trainer.resume(stored)
        if distributed.is_main():
            print(*lines, sep="\n")
        trainer.fit(train, test, lambda epoch, board: print_skipped(args, train, test))


def initial_weights(args, stage, folder, model, network):
    """Give `model` the weights that the stage starts from, if it has any to start from; lines that say so."""
    if stage == "2":
        stage1 = Path(args.stage1_checkpoint or folder.parent / "stage1" / LAST)
        if not stage1.exists():
            raise UsageError(
                f"stage 2 starts from stage 1's weights, and there are none at {stage1}: train --stage 1 first"
            )
        if not args.stage1_checkpoint and not (stage1.parent / SUMMARY).exists():
            raise UsageError(f"stage 1 in {stage1.parent} is not finished: --resume it, or name --stage1-checkpoint")
        bits = dict(zip(("weight_bits", "activation_bits"), STAGES["1"]))
        return [start_from(model, network | bits, stage1)]
    return [start_from(model, network, args.init_from, new_classes=True)] if args.init_from else []


def print_skipped(args, train, test):
    """Say how many images could not be read so far, on any rank."""
    if args.skip_corrupt:
        names = set().union(*distributed.gather(train.skipped | test.skipped))
        if distributed.is_main():
            print(f"images skipped so far, as they cannot be read: {len(names)}")


if __name__ == "__main__":
    main()
