"""Flags that several commands share."""

from argparse import BooleanOptionalAction, Namespace

from models import METHODS, RECOVERIES, STRUCTURES, VARIANTS
from modules.activations import ACTIVATIONS
from modules.restriction import VARIANTS as IRES_VARIANTS
from utils.command import (
    UsageError,
    ede_t,
    folder,
    fraction,
    non_negative_float,
    non_negative_int,
    positive_float,
    positive_int,
)
from utils.training.runtime import AMP


def groups_value(text):
    """argparse type: a number of groups, or "depthwise"."""
    return text if text == "depthwise" else positive_int(text)


groups_value.__name__ = "int or 'depthwise'"


def add_network_flags(parser, archs, variants=False, arch_default=None):
    """The flags that name a network; `network_config` turns them into build_model's arguments."""
    group = parser.add_argument_group("network")
    group.add_argument("--arch", choices=archs, default=arch_default, help="backbone")
    group.add_argument("--method", choices=list(METHODS), default="bireal", help="how the network is binarized")
    group.add_argument("--weight-bits", type=int, choices=(1, 32), default=1, help="32: real weights")
    group.add_argument("--activation-bits", type=int, choices=(1, 32), default=1, help="32: real activations")
    group.add_argument("--structure", choices=list(STRUCTURES), help="shortcut around every conv, or every two")
    group.add_argument("--activation", choices=list(ACTIVATIONS), help="nonlinearity; default: the method's own")
    group.add_argument("--recovery", choices=RECOVERIES, help="head that fuses shallow features; default: none")
    group.add_argument("--ratio", type=positive_int, help="CIRec's reduction ratio r; default: the architecture's")
    group.add_argument("--groups", type=groups_value, help="CIRec's groups g, a number or 'depthwise'")
    if variants:
        group.add_argument("--variant", choices=list(VARIANTS), help="IR²Net-A to D; sets recovery, ratio and groups")


def network_config(args, **extra):
    """build_model's keyword arguments from parsed network flags, and `extra`."""
    names = ("arch", "dataset", "method", "weight_bits", "activation_bits", "structure", "activation")
    names += ("recovery", "ratio", "groups", "variant")
    return {name: getattr(args, name) for name in names if hasattr(args, name)} | extra


def add_training_flags(parser):
    """Loss and optimizer, an argparse group. What is None is filled by the recipe of the architecture and method."""
    group = parser.add_argument_group("training (defaults: the recipe of the architecture and method)")
    group.add_argument("--ires", action=BooleanOptionalAction, default=False, help="information restriction")
    group.add_argument("--lam", type=fraction, default=0.15, help="IRes: times the mean attention; quantile: the share")
    group.add_argument("--mu", type=fraction, default=0.5, help="IRes: weight of the original image's loss")
    group.add_argument("--ires-variant", choices=IRES_VARIANTS, default="paper", help="whose mask; ours: quantile")
    group.add_argument("--epochs", type=positive_int)
    group.add_argument("--batch-size", type=positive_int)
    group.add_argument("--lr", type=positive_float, help="at the start; rbnn's grows with the batch")
    group.add_argument("--warmup-epochs", type=non_negative_int, metavar="N", help="the rate rises in N equal steps")
    group.add_argument("--momentum", type=fraction)
    group.add_argument("--weight-decay", type=non_negative_float)
    group.add_argument("--t-min", type=ede_t, help="EDE's and RBNN's t in the first epoch")
    group.add_argument("--seed", type=non_negative_int, default=0)
    return group


def check_ires_flags(args, given):
    """Raise UsageError if one of IRes' flags is among the given ones, {name: value}, and IRes is off."""
    if not args.ires and (idle := [name for name in ("lam", "mu", "ires_variant") if name in given]):
        raise UsageError(f"--{idle[0].replace('_', '-')} goes with --ires")


def take_recipe(args, recipe):
    """Give `args` what `recipe`, {flag: value}, says where no flag does.

    A warm-up leaves at least one epoch of a shorter run. A recipe with `lr_batch` has a learning rate for batches of so
    many images: for others it is in proportion (Goyal et al., 2017).
    """
    values = {name: value for name, value in recipe.items() if name != "lr_batch"}
    left = {name for name in values if getattr(args, name) is None}
    for name in left:
        setattr(args, name, values[name])
    if "warmup_epochs" in left:
        args.warmup_epochs = min(args.warmup_epochs, args.epochs - 1)
    if "lr" in left and "lr_batch" in recipe:
        args.lr *= args.batch_size / recipe["lr_batch"]


def runtime_flag(group, *names, kept=False, **options):
    """A flag that changes how a run is computed, not what: it may differ when the run is resumed.

    kept: a resumed run takes it over where it is not given.
    """
    group.add_argument(*names, **options).on_resume = "kept" if kept else "free"


def resume_rule(action):
    """What a resumed run does with a flag, an argparse action: "fixed", "kept" where it is not given, or "free"."""
    return getattr(action, "on_resume", "fixed")


def add_runtime_flags(parser):
    """Where and how to compute, and what to keep."""
    group = parser.add_argument_group("runtime")
    runtime_flag(group, "--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    runtime_flag(group, "--amp", kept=True, choices=("auto", *AMP), default="auto", help="mixed precision")
    runtime_flag(
        group, "--compile", kept=True, choices=("auto", "off", "on"), default="auto", help="torch.compile the step"
    )
    group.add_argument("--deterministic", action="store_true", help="the same bits in every run")
    runtime_flag(group, "--output-dir", type=folder, metavar="DIR", default="runs/latest", help="the run's folder")
    runtime_flag(group, "--resume", nargs="?", const="", metavar="PATH", help="go on; default: --output-dir's last.pt")
    runtime_flag(
        group,
        "--checkpoint-minutes",
        type=positive_float,
        default=30.0,
        help="save last.pt within an epoch too, that often",
    )
    runtime_flag(group, "--print-freq", type=positive_int, default=50, help="batches between looks at the running loss")
    runtime_flag(group, "--no-progress", action="store_true", help="no progress bars")


def add_bits_flags(parser):
    """--weight-bits, --activation-bits and --structure, for a released file whose layout fits several networks."""
    help = "for a released file that fits several networks"
    for name in ("weight", "activation"):
        parser.add_argument(f"--{name}-bits", type=int, choices=(1, 32), help=help)
    parser.add_argument("--structure", choices=list(STRUCTURES), help=help)


def flag_values(args):
    """{name: value} of the flags, as a run keeps them: --resume is no part of it."""
    return {name: value for name, value in vars(args).items() if name != "resume"}


def given_flags(parser, argv):
    """{name: value} of the flags that stand in argv, without those that only have a default."""
    unset = object()
    blank = Namespace(**dict.fromkeys(vars(parser.parse_args([])), unset))
    return {name: value for name, value in vars(parser.parse_args(argv, blank)).items() if value is not unset}
