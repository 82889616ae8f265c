"""Flags that several commands share."""

from models import METHODS, RECOVERIES, STRUCTURES, VARIANTS
from modules.activations import ACTIVATIONS
from utils.command import positive_int


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
