"""What a network is, in full: the one place where what the user leaves out is decided, and all is checked."""

from dataclasses import dataclass

from models.methods import CIFAR, IMAGENET, METHODS, methods_of
from models.resnet import CIFAR_STAGES, IMAGENET_STAGES, STRUCTURES
from modules.activations import ACTIVATIONS
from modules.conv import BITS

RECOVERIES = ("none", "irec", "cirec")
ARCHS = {CIFAR: (*CIFAR_STAGES, "vgg_small"), IMAGENET: tuple(IMAGENET_STAGES)}

VARIANTS = {"a": (1, "depthwise"), "b": (2, "depthwise"), "c": (4, 8), "d": (20, "depthwise")}
"""ImageNet: (r, groups) of IR²Net-A to D (Table V)."""

CIREC = {
    (CIFAR, "resnet20"): (4, "depthwise"),
    (CIFAR, "resnet18"): (20, "depthwise"),
    (CIFAR, "vgg_small"): (32, "depthwise"),
    (IMAGENET, "resnet18"): VARIANTS["c"],
    (IMAGENET, "resnet34"): VARIANTS["c"],
}
"""(r, groups) of CIRec where the user gives none (Table II; on ImageNet IR²Net-C)."""

RESNET = {
    "structure": "bireal",
    "shortcut": "pad",
    "large_input": False,
    "stem_act": True,
    "feature_norm": True,
    "feature_relu": False,
    "log_softmax": False,
    "norm_gain": 1.0,
    "kaiming": True,
}
BACKBONES = {
    (CIFAR, "resnet20"): RESNET,
    (CIFAR, "resnet18"): {**RESNET, "structure": "normal", "shortcut": "conv"},
    (CIFAR, "vgg_small"): {},
    (IMAGENET, "resnet18"): {**RESNET, "large_input": True},
    (IMAGENET, "resnet34"): {**RESNET, "large_input": True},
}
"""The backbones' options, where neither the method nor the user says otherwise."""


@dataclass(frozen=True)
class NetworkDescription:
    """A network with nothing left open; two that are equal are one network.

    family: "cifar" (small images) or "imagenet". activation: a name in `modules.activations.ACTIVATIONS`.
    ratio, groups: of CIRec, else None. backbone: (name, value) pairs, the keyword arguments of the backbone's class
    that the architecture and the method choose. image_size: of vgg_small alone, else None.
    """

    family: str
    arch: str
    method: str
    weight_bits: int
    activation_bits: int
    activation: str
    recovery: str
    ratio: int | None
    groups: int | str | None
    num_classes: int
    image_size: int | None
    backbone: tuple

    @property
    def structure(self):
        """Which convolutions a shortcut goes around, a name in STRUCTURES; None where there are no shortcuts."""
        return dict(self.backbone).get("structure")

    def differences(self, other):
        """{name: (this one's, the other's)} of what sets two networks apart, the backbone's options by their names; of
        two architectures nothing else."""
        own, others = ({**vars(each), **dict(each.backbone)} for each in (self, other))
        names = ["family", "arch"]
        if all(own[name] == others[name] for name in names):
            names = sorted(own.keys() - {"backbone"})
        return {name: (own[name], others[name]) for name in names if own[name] != others[name]}


def family_of(dataset):
    """The family of networks, "cifar" (32x32 images) or "imagenet", that a data set belongs to."""
    return IMAGENET if dataset == "imagenet" else CIFAR


def describe_network(
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
    """The NetworkDescription that these arguments mean.

    dataset: "imagenet", or any other name for the networks for small images. variant: "a" to "d", IR²Net on ImageNet;
    it sets recovery, ratio and groups. What is None takes the method's published network, and Table II's or V's ratio
    and groups. image_size matters to vgg_small alone. All arguments are plain values: a checkpoint keeps them.
    Raises ValueError for what does not exist or does not fit together.
    """
    family = family_of(dataset)
    _check_names(family, arch=arch, method=method, structure=structure, activation=activation, variant=variant)
    if not {weight_bits, activation_bits} <= set(BITS):
        raise ValueError(f"bits must be 1 or 32, not {weight_bits} (weights) and {activation_bits} (activations)")
    for name, value in {"ratio": ratio, "num_classes": num_classes, "image_size": image_size}.items():
        if isinstance(value, bool) or not (value is None or hasattr(value, "__index__")):
            raise ValueError(f"{name} must be a whole number, not {value!r}")
    if arch == "vgg_small" and structure:
        raise ValueError("vgg_small has no residual structure: leave --structure out")
    usual_activation, network = _network_of(method, family, arch, weight_bits, activation_bits)
    backbone = BACKBONES[family, arch]
    chosen = network | ({"structure": structure} if structure else {})
    backbone = backbone | {name: value for name, value in chosen.items() if name in backbone}
    recovery, ratio, groups = _recovery(family, arch, recovery, ratio, groups, variant)
    return NetworkDescription(
        family=family,
        arch=arch,
        method=method,
        weight_bits=weight_bits,
        activation_bits=activation_bits,
        activation=activation or usual_activation,
        recovery=recovery,
        ratio=ratio,
        groups=groups,
        num_classes=_classes(family, num_classes),
        image_size=image_size if arch == "vgg_small" else None,
        backbone=tuple(backbone.items()),
    )


def _check_names(family, **names):
    known = {
        "arch": ARCHS[family],
        "method": methods_of(family),
        "structure": (None, *STRUCTURES),
        "activation": (None, *ACTIVATIONS),
        "variant": (None, *VARIANTS) if family == IMAGENET else (None,),
    }
    for name, value in names.items():
        if value not in known[name]:
            choices = ", ".join(choice for choice in known[name] if choice)
            raise ValueError(f"no {name} {value!r} for {family} networks" + (f"; known: {choices}" if choices else ""))


def _network_of(method, family, arch, weight_bits, activation_bits):
    """(name of the activation, options of the backbone) that the method has for these bits."""
    METHODS[method].check_bits(weight_bits, activation_bits)
    options = METHODS[method].network_for(family, arch, weight_bits, activation_bits)
    act = options.pop("act", None)
    if act not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise ValueError(f"method {method} has no activation for {family}'s {arch}: {act!r} is none of {known}")
    if unknown := options.keys() - RESNET.keys():
        raise ValueError(f"method {method} has options that no backbone knows: {', '.join(sorted(unknown))}")
    return act, options


def _classes(family, num_classes):
    """num_classes, or the family's usual number where none is given."""
    if num_classes is None:
        return 1000 if family == IMAGENET else 10
    if num_classes < 1:
        raise ValueError(f"a network has one class at least, not {num_classes}")
    return num_classes


def _recovery(family, arch, recovery, ratio, groups, variant):
    """(recovery, ratio, groups) with nothing left open."""
    if variant:
        if recovery not in (None, "cirec") or ratio is not None or groups is not None:
            raise ValueError("--variant sets recovery, ratio and groups: give one or the other")
        return "cirec", *VARIANTS[variant]
    recovery = "none" if recovery is None else recovery
    if recovery not in RECOVERIES:
        raise ValueError(f"recovery must be one of {', '.join(RECOVERIES)}, not {recovery!r}")
    if recovery != "cirec":
        if ratio is not None or groups is not None:
            raise ValueError("a ratio or groups need --recovery cirec")
        return recovery, None, None
    usual = CIREC[family, arch]
    return recovery, usual[0] if ratio is None else ratio, usual[1] if groups is None else groups
