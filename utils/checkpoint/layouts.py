"""Released networks, as tables: build_model's arguments, and the released names of our keys.

What a file must hold, key by key and shape by shape, follows from its table and from the network itself.
"""

import re
from dataclasses import dataclass, field
from functools import partial

from models import VARIANTS, describe_network
from models.vgg import VGGSmall

COUNTER = "num_batches_tracked"  # of BatchNorm: PyTorch 0.4's first files have none, and inference needs none
CLASSES = "classes"  # stands for the number of classes in the shapes of what a network does not use


@dataclass(frozen=True)
class Release:
    """One released network.

    network: build_model's arguments, without num_classes, which the file's last layer tells.
    names: {prefix of our key: their prefix}; the longest that fits is replaced. block: the same inside a residual
    block, where {n} counts our blocks within theirs, from 1; per_block: how many of ours theirs holds.
    unused: {their key: shape} of what the released network has and never runs, CLASSES for the number of classes.
    layout_bits: (weight, activation) bits of the network whose keys the file has, where the network itself has fewer.
    if_said: the network shares its layout with one that is far more usual, and is meant only where its bits are given.
    """

    title: str
    network: dict
    names: dict
    block: dict = field(default_factory=dict)
    per_block: int = 1
    unused: dict = field(default_factory=dict)
    layout_bits: tuple = ()
    if_said: bool = False

    @property
    def bits(self):
        return self.network["weight_bits"], self.network["activation_bits"]

    @property
    def structure(self):
        return describe_network(**self.network).structure

    @property
    def full_title(self):
        structure = f"{self.network['structure']} blocks, " if "structure" in self.network else ""
        return f"{self.title} with {structure}{self.bits[0]}-bit weights and {self.bits[1]}-bit activations"

    def their_key(self, key):
        """The released name of our `key`."""
        block = re.fullmatch(r"stages\.(\d+)\.(\d+)\.(.+)", key)
        if block is None:
            return _rename(key, self.names)
        stage, (index, n) = int(block[1]) + 1, divmod(int(block[2]), self.per_block)
        return f"layer{stage}.{index}." + _rename(block[3], self.block).format(n=n + 1)


def _rename(key, names):
    prefix = max((p for p in names if f"{key}.".startswith(f"{p}.")), key=len, default="")
    return names.get(prefix, "") + key[len(prefix) :]


def _self_distribution(ours, theirs, gate):
    """SD-BNN's names inside one convolution; `gate` is what it calls the squeeze-and-excitation."""
    return {
        f"{ours}.weight_transform": theirs,
        f"{ours}.input_transform.squeeze": f"{theirs}.{gate}.fc.0",
        f"{ours}.input_transform.excite": f"{theirs}.{gate}.fc.2",
    }


def _rotation(ours, theirs):
    """RBNN's names inside one convolution."""
    own = {"alpha": "alpha", "theta": "rotate", "left": "R1", "right": "R2"}
    return {f"{ours}.weight_transform.{name}": f"{theirs}.{their_name}" for name, their_name in own.items()}


def _clamp(ours, theirs):
    """ReCU's names inside one convolution."""
    return {f"{ours}.weight_transform": theirs}


def _two_slopes(ours, theirs):
    """AdaBin's names inside one nonlinearity."""
    return {f"{ours}.pos": f"{theirs}.pos_scale", f"{ours}.neg": f"{theirs}.neg_scale"}


def _every(inside, convs):
    """The names that `inside` gives to each of {our convolution: theirs}."""
    return {ours: theirs for pair in convs.items() for ours, theirs in inside(*pair).items()}


def _norm_over_classes(name):
    leaves = {leaf: (CLASSES,) for leaf in ("weight", "bias", "running_mean", "running_var")}
    return {f"{name}.{leaf}": shape for leaf, shape in {**leaves, COUNTER: ()}.items()}


_CIREC = {"recovery.channel": "fusion.primary_conv", "recovery.spatial": "fusion.cheap_operation"}
_IREC = {"recovery.channel.0": "fusion", "recovery.channel.1": "fbn", "recovery.channel.2": "fprelu"}
_CIFAR_RESNET = {"feature_norm": "bn2", "fc": "linear"}
_VGG_CONVS = {f"layers.{i}.0": f"conv{i + 1}" for i in range(len(VGGSmall.LAYERS))}
_VGG = _VGG_CONVS | {f"layers.{i}.{1 + pool}": f"bn{i + 1}" for i, (_, pool) in enumerate(VGGSmall.LAYERS)}

_PAIR = {"conv": "conv{n}", "bn": "bn{n}"}  # a shortcut around every convolution, stored as blocks of two
_DOWNSAMPLE = {"shortcut": "downsample"}
_SINGLE = {"conv": "binary_conv", "bn": "bn1", "act": "prelu", **_DOWNSAMPLE}
_SINGLE_FLAT = {**_SINGLE, "conv.weight": "binary_conv.weights"}  # all weights as one column, see _their_shape
_REACT = {**_SINGLE, "conv.input_transform": "move0", "act.0": "move1", "act.1": "prelu", "act.2": "move2"}
_SD_PAIR = {**_PAIR, **_self_distribution("conv", "conv{n}", "dybeta")}
_SD_NORMAL = _self_distribution("conv1", "conv1", "dybeta") | _self_distribution("conv2", "conv2", "dybeta")
_SD_FLAT = {**_SINGLE_FLAT, **_self_distribution("conv", "binary_conv", "beta")}
_SD_VGG = _every(partial(_self_distribution, gate="dybeta"), _VGG_CONVS)
_BASIC = {"conv1": "conv1", "conv2": "conv2", "shortcut.0": "shortcut.0"}
_ROTATED_PAIR = {**_PAIR, **_DOWNSAMPLE, **_rotation("conv", "conv{n}")}
_CLAMPED_PAIR = {**_PAIR, **_DOWNSAMPLE, **_clamp("conv", "conv{n}")}
_CLAMPED_REACT = {
    **{"conv": "conv", **_clamp("conv", "conv"), "conv.input_transform.0": "move0", "bn": "bn"},
    **{"act.0": "move1", "act.1": "nonlinear", "act.2": "move2", **_DOWNSAMPLE},
}
_ADA_PAIR = {
    **{**_PAIR, **_two_slopes("act", "nonlinear{n}")},
    **{f"conv.activation_binarizer.{name}": f"conv{{n}}.binary_a.{name}_a" for name in ("alpha", "beta")},
}
_ADA_STEM = _two_slopes("act1", "nonlinear1")
_UNUSED_SLOPES = {"nonlinear2.pos_scale": (512,), "nonlinear2.neg_scale": (512,)}


def _network(arch, method, weight_bits=1, activation_bits=1, **more):
    return {"arch": arch, "method": method, "weight_bits": weight_bits, "activation_bits": activation_bits, **more}


def _imagenet(*args, **more):
    return _network(*args, dataset="imagenet", **more)


RELEASES = {
    "ir2net_cifar_resnet20": Release(
        "IR²Net CIFAR ResNet-20",
        _network("resnet20", "bireal", recovery="cirec"),
        {**_CIFAR_RESNET, **_CIREC},
        _PAIR,
        per_block=2,
    ),
    "ir2net_cifar_resnet18": Release(
        "IR²Net CIFAR ResNet-18", _network("resnet18", "bireal", recovery="cirec"), {**_CIFAR_RESNET, **_CIREC}
    ),
    "ir2net_cifar_vgg_small": Release(
        "IR²Net CIFAR VGG-Small", _network("vgg_small", "bireal", recovery="cirec"), {**_VGG, **_CIREC}
    ),
    **{
        f"ir2net_imagenet_{variant}{suffix}": Release(
            f"IR²Net-{variant.upper()} ImageNet ResNet-18",
            _imagenet("resnet18", "bireal", weight_bits, 1, variant=variant),
            {"act1": "prelu", "feature_norm": "bn2", **(_IREC if variant == "a" else _CIREC)},
            _SINGLE_FLAT,
        )
        for variant in VARIANTS
        for suffix, weight_bits in (("", 1), ("_stage1", 32))
    },
    "irnet_cifar_resnet20": Release(
        "IR-Net CIFAR ResNet-20", _network("resnet20", "irnet"), _CIFAR_RESNET, _PAIR, per_block=2
    ),
    "irnet_cifar_resnet20_1w32a": Release(
        "IR-Net CIFAR ResNet-20", _network("resnet20", "irnet", 1, 32), _CIFAR_RESNET
    ),
    "irnet_cifar_vgg_small": Release("IR-Net CIFAR VGG-Small", _network("vgg_small", "irnet"), _VGG),
    **{
        f"irnet_imagenet_{arch}{suffix}": Release(
            f"IR-Net ImageNet ResNet-{arch.removeprefix('resnet')}",
            _imagenet(arch, "irnet", 1, activation_bits),
            {"feature_norm": "bn2"},
            {**_PAIR, **_DOWNSAMPLE} if activation_bits == 1 else _DOWNSAMPLE,
            per_block=2 if activation_bits == 1 else 1,
            unused=_norm_over_classes("bn3"),
        )
        for arch in ("resnet18", "resnet34")
        for suffix, activation_bits in (("", 1), ("_1w32a", 32))
    },
    "sdbnn_cifar_resnet20": Release(
        "SD-BNN CIFAR ResNet-20", _network("resnet20", "sdbnn"), _CIFAR_RESNET, _SD_PAIR, per_block=2
    ),
    "sdbnn_cifar_resnet18": Release("SD-BNN CIFAR ResNet-18", _network("resnet18", "sdbnn"), _CIFAR_RESNET, _SD_NORMAL),
    "sdbnn_cifar_vgg_small": Release("SD-BNN CIFAR VGG-Small", _network("vgg_small", "sdbnn"), {**_VGG, **_SD_VGG}),
    "sdbnn_imagenet_resnet18": Release("SD-BNN ImageNet ResNet-18", _imagenet("resnet18", "sdbnn"), {}, _SD_FLAT),
    # Its first stage, with real weights, keeps the second's alphas and never uses them.
    "sdbnn_imagenet_resnet18_stage1": Release(
        "SD-BNN ImageNet ResNet-18",
        _imagenet("resnet18", "sdbnn", 32, 1),
        {},
        _SD_FLAT,
        layout_bits=(1, 1),
        if_said=True,
    ),
    "reactnet_imagenet_resnet18": Release("ReActNet ImageNet ResNet-18", _imagenet("resnet18", "reactnet"), {}, _REACT),
    "reactnet_imagenet_resnet18_stage1": Release(
        "ReActNet ImageNet ResNet-18", _imagenet("resnet18", "reactnet", 32, 1), {}, _REACT
    ),
    **{
        f"rbnn_cifar_resnet20{suffix}": Release(
            "RBNN CIFAR ResNet-20",
            _network("resnet20", "rbnn", structure=structure),
            _CIFAR_RESNET,
            names,
            per_block=per_block,
        )
        for suffix, structure, names, per_block in (
            ("", "normal", _every(_rotation, _BASIC), 1),
            ("_bireal", "bireal", _ROTATED_PAIR, 2),
        )
    },
    "rbnn_cifar_resnet18": Release(
        "RBNN CIFAR ResNet-18", _network("resnet18", "rbnn"), _CIFAR_RESNET, _every(_rotation, _BASIC)
    ),
    "rbnn_cifar_vgg_small": Release(
        "RBNN CIFAR VGG-Small", _network("vgg_small", "rbnn"), {**_VGG, **_every(_rotation, _VGG_CONVS)}
    ),
    **{
        f"rbnn_imagenet_{arch}": Release(
            f"RBNN ImageNet ResNet-{arch.removeprefix('resnet')}",
            _imagenet(arch, "rbnn"),
            {"feature_norm": "bn2"},
            _ROTATED_PAIR,
            per_block=2,
            unused=_norm_over_classes("bn3"),
        )
        for arch in ("resnet18", "resnet34")
    },
    "recu_cifar_resnet20": Release(
        "ReCU CIFAR ResNet-20", _network("resnet20", "recu"), _CIFAR_RESNET, _CLAMPED_PAIR, per_block=2
    ),
    "recu_cifar_resnet18": Release(
        "ReCU CIFAR ResNet-18", _network("resnet18", "recu"), _CIFAR_RESNET, _every(_clamp, _BASIC)
    ),
    "recu_cifar_vgg_small": Release(
        "ReCU CIFAR VGG-Small", _network("vgg_small", "recu"), {**_VGG, **_every(_clamp, _VGG_CONVS)}
    ),
    **{
        f"recu_imagenet_{arch}": Release(
            f"ReCU ImageNet ResNet-{arch.removeprefix('resnet')}",
            _imagenet(arch, "recu"),
            {"feature_norm": "bn2"},
            _CLAMPED_PAIR,
            per_block=2,
        )
        for arch in ("resnet18", "resnet34")
    },
    "recu_imagenet_resnet18_twostage": Release(
        "ReCU two-stage ImageNet ResNet-18",
        _imagenet("resnet18", "recu_twostage"),
        {"conv1": "conv", "bn1": "bn"},
        _CLAMPED_REACT,
    ),
    **{
        f"adabin_cifar_{arch}": Release(
            f"AdaBin CIFAR ResNet-{arch.removeprefix('resnet')}",
            _network(arch, "adabin"),
            {**_CIFAR_RESNET, **_ADA_STEM},
            _ADA_PAIR,
            per_block=2,
        )
        for arch in ("resnet20", "resnet18")
    },
    "adabin_imagenet_resnet18": Release(
        "AdaBin ImageNet ResNet-18",
        _imagenet("resnet18", "adabin"),
        {"feature_norm": "bn2", **_ADA_STEM},
        {**_ADA_PAIR, **_DOWNSAMPLE},
        per_block=2,
        unused={**_norm_over_classes("bn3"), **_UNUSED_SLOPES},
    ),
}
