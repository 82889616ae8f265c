"""Networks by name: `build_model("resnet20", method="bireal", recovery="cirec")`."""

from functools import partial

from models.methods import CIFAR, IMAGENET, METHODS
from models.resnet import CIFAR_STAGES, IMAGENET_STAGES, STRUCTURES, ResNet
from models.vgg import VGGSmall
from modules.activations import ACTIVATIONS
from modules.recovery import CIRec, IRec

RECOVERIES = ("none", "irec", "cirec")
ARCHS = {CIFAR: (*CIFAR_STAGES, "vgg_small"), IMAGENET: tuple(IMAGENET_STAGES)}

CIREC_RATIO = {"resnet20": 4, "resnet18": 20, "vgg_small": 32}
"""CIFAR: r of CIRec per architecture; depthwise groups (Table II)."""

CIFAR_DEFAULTS = {"resnet20": {"shortcut": "pad"}, "resnet18": {"shortcut": "conv", "structure": "normal"}}
"""CIFAR ResNets: what they are where neither the method nor the user says otherwise."""

VARIANTS = {"a": (1, "depthwise"), "b": (2, "depthwise"), "c": (4, 8), "d": (20, "depthwise")}
"""ImageNet: (r, groups) of IR²Net-A to D (Table V)."""


def family_of(dataset):
    """The family of networks, "cifar" (32x32 images) or "imagenet", that a data set belongs to."""
    return IMAGENET if dataset == "imagenet" else CIFAR


def recovery_factory(arch, family, act, recovery, ratio=None, groups=None, variant=None):
    """Factory of the recovery head, given the channels of the taps; None for recovery "none"."""
    if recovery not in RECOVERIES:
        raise ValueError(f"recovery must be one of {', '.join(RECOVERIES)}, not {recovery!r}")
    if recovery != "cirec":
        if ratio is not None or groups is not None:
            raise ValueError("a ratio or groups need --recovery cirec")
        return partial(IRec, act=act) if recovery == "irec" else None
    default = VARIANTS[variant or "c"] if family == IMAGENET else (CIREC_RATIO[arch], "depthwise")
    ratio = default[0] if ratio is None else ratio
    groups = default[1] if groups is None else groups
    return partial(CIRec, ratio=ratio, groups=groups, act=act)


def build_model(
    arch,
    dataset="cifar10",
    method="bireal",
    weight_bits=1,
    activation_bits=1,
    recovery=None,
    ratio=None,
    groups=None,
    variant=None,
    structure=None,
    activation=None,
    num_classes=None,
    image_size=32,
):
    """A network with random weights, in training mode: model(images (N, 3, H, W)) -> logits (N, num_classes).

    dataset: "imagenet", or any other name for the 32x32 networks. variant: "a" to "d", IR²Net on ImageNet; it sets
    recovery, ratio and groups. What is None takes the method's published network, and Table II's or V's ratio and
    groups. image_size matters to vgg_small alone. All arguments are plain values: a checkpoint keeps them.
    Raises ValueError for what does not exist or does not fit together.
    """
    family = family_of(dataset)
    for name, value, known in (
        ("arch", arch, ARCHS[family]),
        ("method", method, METHODS),
        ("structure", structure, (None, *STRUCTURES)),
        ("activation", activation, (None, *ACTIVATIONS)),
        ("variant", variant, (None, *VARIANTS) if family == IMAGENET else (None,)),
    ):
        if value not in known:
            names = ", ".join(str(k) for k in known if k)
            raise ValueError(f"no {name} {value!r} for {family} networks" + (f"; known: {names}" if names else ""))
    if variant and (recovery not in (None, "cirec") or ratio is not None or groups is not None):
        raise ValueError("--variant sets recovery, ratio and groups: give one or the other")
    if recovery is None:
        recovery = "cirec" if variant else "none"

    conv = METHODS[method].conv_factory(family, weight_bits, activation_bits)
    network = METHODS[method].network_for(family, weight_bits, activation_bits)
    act = ACTIVATIONS[activation or network.pop("act")]
    network.pop("act", None)
    kwargs = {
        "num_classes": num_classes or (1000 if family == IMAGENET else 10),
        "conv": conv,
        "act": act,
        "recovery": recovery_factory(arch, family, act, recovery, ratio, groups, variant),
    }
    if arch == "vgg_small":
        if structure:
            raise ValueError("vgg_small has no residual structure: leave --structure out")
        return VGGSmall(image_size=image_size, **kwargs)
    if family == IMAGENET:
        return ResNet(*IMAGENET_STAGES[arch], **{"large_input": True, **network, **kwargs, **_given(structure)})
    return ResNet(*CIFAR_STAGES[arch], **{**CIFAR_DEFAULTS[arch], **network, **kwargs, **_given(structure)})


def _given(structure):
    return {"structure": structure} if structure else {}
