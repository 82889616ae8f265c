"""Released checkpoints: which network a file holds, and its tensors under our names and back.

A release is a table: build_model's arguments, and their names for our keys. What a file must hold, key by key and
shape by shape, follows from the table and from the network itself, so loading is strict and export is its inverse.
"""

import json
import math
import re
from dataclasses import dataclass, field
from functools import cache

import torch

from models import VARIANTS, build_model
from models.vgg import VGGSmall
from utils.checkpoint import files, ours
from utils.checkpoint.network import Contents, bits_text, build_network, dtype_of, few, network_text
from utils.command import Parser, RunError, UsageError, command
from utils.files import output_path
from utils.training.flags import add_bits_flags

COUNTER = "num_batches_tracked"  # of BatchNorm: PyTorch 0.4's first files have none, and inference needs none


@dataclass(frozen=True)
class Release:
    """One released network.

    network: build_model's arguments, without num_classes, which the file's last layer tells.
    names: {prefix of our key: their prefix}; the longest that fits is replaced. block: the same inside a residual
    block, where {n} counts our blocks within theirs, from 1; per_block: how many of ours theirs holds.
    unused: BatchNorms over the classes that the released network has and never runs.
    layout_bits: (weight, activation) bits of the network whose keys the file has, where the network itself has fewer.
    if_said: the network shares its layout with one that is far more usual, and is meant only where its bits are said.
    """

    title: str
    network: dict
    names: dict
    block: dict = field(default_factory=dict)
    per_block: int = 1
    unused: tuple = ()
    layout_bits: tuple = ()
    if_said: bool = False

    @property
    def bits(self):
        return self.network["weight_bits"], self.network["activation_bits"]

    @property
    def full_title(self):
        return f"{self.title} with {bits_text(self.network)}"

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


# The tables ----------------------------------------------------------------------------------------------------------


def _self_distribution(ours, theirs, gate):
    """SD-BNN's names inside one convolution; `gate` is what it calls the squeeze-and-excitation."""
    return {
        f"{ours}.weight_transform": theirs,
        f"{ours}.input_transform.squeeze": f"{theirs}.{gate}.fc.0",
        f"{ours}.input_transform.excite": f"{theirs}.{gate}.fc.2",
    }


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
_SD_VGG = {k: v for ours, theirs in _VGG_CONVS.items() for k, v in _self_distribution(ours, theirs, "dybeta").items()}


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
            unused=("bn3",),
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
}


# What a release's file holds -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """A tensor of a released file: our key (None: the network does not use it), our shape, and the released one."""

    ours: str | None
    our_shape: tuple
    shape: tuple


def _their_shape(key, shape):
    """Convolutions that name their parameter `weights` keep it flat, as (number of weights, 1)."""
    return (math.prod(shape), 1) if key.endswith(".weights") else shape


def _shapes(network):
    with torch.device("meta"):
        return {key: tuple(value.shape) for key, value in build_model(**network).state_dict().items()}


@cache
def layout(name, num_classes):
    """{their key: Entry} of the release `name` with `num_classes` classes."""
    release = RELEASES[name]
    network = {**release.network, "num_classes": num_classes}
    used = _shapes(network)
    stored = used
    if release.layout_bits:
        weight_bits, activation_bits = release.layout_bits
        stored = _shapes({**network, "weight_bits": weight_bits, "activation_bits": activation_bits})
    entries = {}
    for key, shape in stored.items():
        theirs = release.their_key(key)
        entries[theirs] = Entry(key if key in used else None, shape, _their_shape(theirs, shape))
    for norm in release.unused:
        for leaf in ("weight", "bias", "running_mean", "running_var", COUNTER):
            shape = () if leaf == COUNTER else (num_classes,)
            entries[f"{norm}.{leaf}"] = Entry(None, shape, shape)
    return entries


def state_of(payload, path):
    """{key: tensor} of what a file holds: bare or under "state_dict" or "model", with or without DataParallel's prefix.

    Raises RunError if there is no such thing.
    """
    for candidate in (payload, *(payload.get(name) for name in ("state_dict", "model") if isinstance(payload, dict))):
        if isinstance(candidate, dict) and candidate and all(torch.is_tensor(v) for v in candidate.values()):
            state = {str(key): value.detach() for key, value in candidate.items()}
            while all(key.startswith("module.") for key in state):
                state = {key.removeprefix("module."): value for key, value in state.items()}
            return state
    raise RunError(f"{path} holds no network's weights, neither bare nor under 'state_dict' or 'model'")


def _classes(release, state):
    last = state.get(release.their_key("fc.weight"))
    return last.shape[0] if last is not None and last.ndim == 2 else None


def _differences(name, state):
    """(missing, unknown, wrongly shaped) keys of `state`, the last as sentences."""
    entries = layout(name, _classes(RELEASES[name], state))
    missing = [key for key in entries if key not in state and not key.endswith(COUNTER)]
    unknown = [key for key in state if key not in entries]
    shapes = [
        f"{key} has shape {tuple(state[key].shape)} instead of {entry.shape}"
        for key, entry in entries.items()
        if key in state and tuple(state[key].shape) != entry.shape
    ]
    return missing, unknown, shapes


def recognise(state, path):
    """Names of the releases whose layout `state` has, key by key and shape by shape: one, or several that share it.

    Raises RunError that names the nearest release and every difference from it.
    """
    found = {name: _differences(name, state) for name in RELEASES}
    names = [name for name, differences in found.items() if not any(differences)]
    if names:
        return names
    name = min(found, key=lambda name: sum(map(len, found[name])))
    missing, unknown, shapes = found[name]
    title = RELEASES[name].title
    if len(missing) + len(shapes) > len(layout(name, _classes(RELEASES[name], state))) // 2:
        raise RunError(
            f"{path} is of no known release: of its {len(state)} tensors {len(unknown)} are unknown even to the "
            f"nearest, {title}, which misses {len(missing)} ({', '.join([*missing, *shapes][:3])}, ...)"
        )
    problems = ["missing " + few(missing)] if missing else []
    problems += ["unknown " + few(unknown)] if unknown else []
    raise RunError(f"{path} looks like {title}, but: {'; '.join(problems + ([few(shapes)] if shapes else []))}")


def _flags(release):
    return "--weight-bits {} --activation-bits {}".format(*release.bits)


def choose(names, path, weight_bits=None, activation_bits=None):
    """The one of `names`, which share a layout, that has the bits. Raises RunError where none or several do."""
    said = (weight_bits, activation_bits)
    fits = [n for n in names if all(b in (None, own) for b, own in zip(said, RELEASES[n].bits))]
    fits = [n for n in fits if not RELEASES[n].if_said] or fits
    if len(fits) == 1:
        return fits[0]
    choices = " or ".join(_flags(RELEASES[n]) for n in fits or names)
    title = RELEASES[names[0]].title
    if not fits:
        raise RunError(f"{path} is {title}, which exists with {choices}: not with the bits that were given")
    raise RunError(f"{path} is {title}, whose layout fits {len(fits)} networks, so its bits must be said: {choices}")


def convert(state, path, weight_bits=None, activation_bits=None):
    """A checkpoint of ours (`utils.checkpoint.save` writes it) with the weights of a released `state`.

    It keeps what an export needs to give every tensor back: those unused, and which counters the file did not have.
    Raises RunError as `recognise` and `choose` do.
    """
    name = choose(recognise(state, path), path, weight_bits, activation_bits)
    release = RELEASES[name]
    num_classes = _classes(release, state)
    entries = layout(name, num_classes)
    model, unused, absent = {}, {}, []
    for theirs, entry in entries.items():
        if theirs not in state:
            absent.append(theirs)
            value = torch.tensor(0)
        else:
            value = state[theirs].reshape(entry.our_shape)
        if entry.ours is not None:
            model[entry.ours] = value
        elif theirs in state:
            unused[theirs] = value
    return {
        "network": {**release.network, "num_classes": num_classes},
        "model": model,
        "released": {"name": name, "unused": unused, "absent": absent},
    }


def contents(payload, path, weight_bits=None, activation_bits=None):
    """The Contents of what `utils.checkpoint.read` gave of a released file. Raises RunError as `convert` does."""
    state = state_of(payload, path)
    converted = convert(state, path, weight_bits, activation_bits)
    name, unused = converted["released"]["name"], tuple(converted["released"]["unused"])
    return Contents(
        str(path), converted["network"], converted["model"],
        release=RELEASES[name].title, layout=name, unused=unused, tensors=len(state),
    )  # fmt: skip


def _default(key, shape, dtype):
    """What a released network starts with where it never uses the tensor."""
    if key.endswith(COUNTER):
        return torch.tensor(0)
    return (torch.ones if key.endswith((".weight", ".running_var")) else torch.zeros)(shape, dtype=dtype)


def export(payload, path, name):
    """The released layout `name` of a checkpoint of ours: {their key: tensor}.

    Raises RunError if the checkpoint's network is not the layout's, UsageError if there is no such layout.
    """
    if name not in RELEASES:
        raise UsageError(f"no layout {name!r}; known: {', '.join(RELEASES)}")
    ours.network_of(payload, path)
    state, release = payload["model"], RELEASES[name]
    num_classes = state["fc.weight"].shape[0]
    network = {**release.network, "num_classes": num_classes}
    with torch.device("meta"):
        same = str(build_model(**payload["network"])) == str(build_model(**network))
    if not same:
        own, wanted = network_text(payload["network"]), network_text(network)
        raise RunError(f"{path} does not fit the layout {name}: it holds {own}; the layout holds {wanted}")
    kept = payload.get("released", {})
    kept = kept if kept.get("name") == name else {}
    exported = {}
    for theirs, entry in layout(name, num_classes).items():
        if theirs in kept.get("absent", ()):
            continue
        if entry.ours is not None:
            exported[theirs] = state[entry.ours].reshape(entry.shape)
        elif theirs in kept.get("unused", ()):
            exported[theirs] = kept["unused"][theirs].reshape(entry.shape)
        else:
            exported[theirs] = _default(theirs, entry.shape, state["fc.weight"].dtype)
    return exported


# The command ---------------------------------------------------------------------------------------------------------


def inspect(path):
    """What a file is, as plain values: {"path", "kind", "networks", "tensors", "unused", "dtype", "classes"}.

    "networks" has one entry per network that the file may hold; several mean that the bits must be said.
    Raises RunError if it is neither a checkpoint of ours nor of a known release.
    """
    payload = files.read(path)
    if ours.is_ours(payload):
        model = ours.network_of(payload, path)
        networks = [{"layout": None, "title": network_text(payload["network"]), **payload["network"]}]
        state, unused, kind, classes = payload["model"], [], "ours", model.fc.out_features
    else:
        state = state_of(payload, path)
        names = recognise(state, path)
        networks = [{"layout": n, "title": RELEASES[n].full_title, **RELEASES[n].network} for n in names]
        classes = _classes(RELEASES[names[0]], state)
        entries = layout(names[0], classes)
        unused, kind = [key for key in state if entries[key].ours is None], "released"
    return {
        "path": str(path),
        "kind": kind,
        "networks": networks,
        "tensors": len(state),
        "unused": unused,
        "dtype": str(dtype_of(state)).removeprefix("torch."),
        "classes": classes,
    }


def _print_inspected(found):
    networks = found["networks"]
    print(f"{found['path']}: {'a checkpoint of ours' if found['kind'] == 'ours' else 'a released checkpoint'}")
    for network in networks:
        layout_name = f" (layout {network['layout']})" if network["layout"] else ""
        print(f"  {'or ' if network is not networks[0] else ''}{network['title']}{layout_name}")
    unused = f", {len(found['unused'])} of them unused ({', '.join(found['unused'])})" if found["unused"] else ""
    print(f"  {found['tensors']} tensors, all matched{unused}; {found['dtype']}; {found['classes']} classes")
    if len(networks) > 1:
        print("  one layout, several networks: say --weight-bits and --activation-bits")


def build_parser():
    parser = Parser(prog="utils.released", description="Released checkpoints: what they are, to our format, and back.")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Parser)
    sub = commands.add_parser("inspect", help="what is this file?")
    sub.add_argument("path")
    sub.add_argument("--json", action="store_true", help="one JSON object as the last line")
    sub = commands.add_parser("convert", help="a released file to our format")
    sub.add_argument("path")
    sub.add_argument("out")
    add_bits_flags(sub)
    sub.add_argument("--force", action="store_true", help="replace OUT if it exists")
    sub = commands.add_parser("export", help="a checkpoint of ours to a released layout, for the released code")
    sub.add_argument("path")
    sub.add_argument("out")
    sub.add_argument("--layout", required=True, metavar="NAME", help="one of " + ", ".join(RELEASES))
    sub.add_argument("--data-parallel", action="store_true", help="prefix keys with 'module.', as ImageNet code loads")
    sub.add_argument("--force", action="store_true", help="replace OUT if it exists")
    return parser


@command
def main(argv=None):
    args = build_parser().parse_args(argv)
    if args.command == "inspect":
        found = inspect(args.path)
        _print_inspected(found)
        if args.json:
            print(json.dumps(found))
        return
    out = output_path(args.out, args.force)
    payload = files.read(args.path)
    if args.command == "convert":
        if ours.is_ours(payload):
            raise RunError(f"{args.path} is a checkpoint of ours already")
        payload = convert(state_of(payload, args.path), args.path, args.weight_bits, args.activation_bits)
        build_network(payload["network"], payload["model"], args.path)
        ours.save(out, payload)
        print(f"{out}: {RELEASES[payload['released']['name']].full_title}, {len(payload['model'])} tensors")
        return
    if not ours.is_ours(payload):
        raise RunError(f"{args.path} is not a checkpoint of ours: convert it first")
    state = export(payload, args.path, args.layout)
    prefix = "module." if args.data_parallel else ""
    # The released code runs on PyTorch 0.4 to 1.3, which reads the old file format alone.
    files.write(out, {"state_dict": {prefix + key: value for key, value in state.items()}}, legacy=True)
    print(f"{out}: {RELEASES[args.layout].full_title}, {len(state)} tensors in the layout {args.layout}")


if __name__ == "__main__":
    main()
