"""Released checkpoints: which network a file holds, and its tensors under our names and back.

The layouts are tables (`utils.checkpoint.layouts`), so loading is strict, and export is its inverse.
"""

import math
from dataclasses import dataclass
from functools import cache

import torch

from models import build_model
from utils.checkpoint import files, ours
from utils.checkpoint.layouts import CLASSES, COUNTER, RELEASES
from utils.checkpoint.network import Contents, dtype_of, few, network_text
from utils.checkpoint.packed import build_packed, read_packed
from utils.command import RunError, UsageError

CHOICES = ("weight_bits", "activation_bits", "structure")
"""What tells apart networks that share a layout."""


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
    for theirs, shape in release.unused.items():
        shape = tuple(num_classes if size == CLASSES else size for size in shape)
        entries[theirs] = Entry(None, shape, shape)
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


def own_choices(name):
    """The release's own values of CHOICES."""
    release = RELEASES[name]
    return dict(zip(CHOICES, (*release.bits, release.structure)))


def open_choices(names):
    """What must be given to choose between `names`: the bits, and where they do not decide, the structure."""
    found = CHOICES[:2] if len({RELEASES[name].bits for name in names}) > 1 else ()
    kinds = {(RELEASES[name].bits, RELEASES[name].structure) for name in names}
    return found if len(kinds) == len({bits for bits, _ in kinds}) else (*found, "structure")


def _flags_of(names, choices):
    """The values that `names` have of `choices`, as command lines give them."""
    flags = {name: f"--{name.replace('_', '-')}" for name in choices}
    texts = [
        " ".join(
            f"{flags[choice]} {value}" if value else f"no {choice}" for choice, value in own.items() if choice in flags
        )
        for own in map(own_choices, names)
    ]
    return " or ".join(dict.fromkeys(texts))


def _in_words(choices):
    return " and ".join(dict.fromkeys("structure" if name == "structure" else "bits" for name in choices))


def choose(names, path, weight_bits=None, activation_bits=None, structure=None):
    """The one of `names`, which share a layout, that has the bits and the structure.

    Raises RunError where none or several do.
    """
    given = dict(zip(CHOICES, (weight_bits, activation_bits, structure)))
    given = {name: value for name, value in given.items() if value is not None}
    fits = [name for name in names if given.items() <= own_choices(name).items()]
    fits = [name for name in fits if not RELEASES[name].if_said] or fits
    if len(fits) == 1:
        return fits[0]
    title = RELEASES[names[0]].title
    if fits:
        needed = open_choices(fits)
        what = f"so its {_in_words(needed)} must be said: {_flags_of(fits, needed)}"
        raise RunError(f"{path} is {title}, whose layout fits {len(fits)} networks, {what}")
    wrong = [name for name, value in given.items() if value not in {own_choices(n)[name] for n in names}] or list(given)
    shown = {*open_choices(names), *(CHOICES[:2] if set(wrong) & set(CHOICES[:2]) else ()), *wrong}
    there = _flags_of(names, shown)
    raise RunError(f"{path} is {title}, which exists with {there}: not with the {_in_words(wrong)} given")


def convert(state, path, weight_bits=None, activation_bits=None, structure=None):
    """A checkpoint of ours (`utils.checkpoint.save` writes it) with the weights of a released `state`.

    It keeps what an export needs to give every tensor back: those unused, and which counters the file did not have.
    Raises RunError as `recognise` and `choose` do.
    """
    name = choose(recognise(state, path), path, weight_bits, activation_bits, structure)
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


def contents(payload, path, weight_bits=None, activation_bits=None, structure=None):
    """The Contents of what `utils.checkpoint.read` gave of a released file. Raises RunError as `convert` does."""
    state = state_of(payload, path)
    converted = convert(state, path, weight_bits, activation_bits, structure)
    name, unused = converted["released"]["name"], tuple(converted["released"]["unused"])
    return Contents(
        str(path), converted["network"], converted["model"],
        release=RELEASES[name].title, layout=name, unused=unused, tensors=len(state),
    )  # fmt: skip


def _default(key, shape, dtype):
    """What a released network starts with where it never uses the tensor."""
    if key.endswith(COUNTER):
        return torch.tensor(0)
    first = {"weight": 1.0, "running_var": 1.0, "pos_scale": 1.0, "neg_scale": 0.25}
    return torch.full(shape, first.get(key.rpartition(".")[2], 0.0), dtype=dtype)


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


def inspect(path):
    """What a file is, as plain values.

    {"path", "kind", "networks", "tensors", "unused", "dtype", "classes", "choices", "taken"}; "networks" has one entry
    per network that the file may hold, and several mean that "choices" must be given, or it is "taken" for one of them.
    Raises RunError if it is neither a checkpoint of ours, packed or not, nor of a known release.
    """
    if files.is_packed(path):
        contents = read_packed(path)
        model = build_packed(contents.network, contents.state, path)
        networks = [{"layout": None, "title": network_text(contents.network), **contents.network}]
        state, unused, kind, classes, names = contents.state, [], "packed", model.fc.out_features, []
    elif ours.is_ours(payload := files.read(path)):
        model = ours.network_of(payload, path)
        networks = [{"layout": None, "title": network_text(payload["network"]), **payload["network"]}]
        state, unused, kind, classes, names = payload["model"], [], "ours", model.fc.out_features, []
    else:
        state = state_of(payload, path)
        names = recognise(state, path)
        networks = [{"layout": n, "title": RELEASES[n].full_title, **RELEASES[n].network} for n in names]
        classes = _classes(RELEASES[names[0]], state)
        entries = layout(names[0], classes)
        unused, kind = [key for key in state if entries[key].ours is None], "released"
    usual = [name for name in names if not RELEASES[name].if_said]
    return {
        "path": str(path),
        "kind": kind,
        "networks": networks,
        "tensors": len(state),
        "unused": unused,
        "dtype": str(dtype_of(state)).removeprefix("torch."),
        "classes": classes,
        "choices": list(open_choices(names)),
        "taken": RELEASES[usual[0]].full_title if len(usual) == 1 < len(names) else None,
    }
