"""Checkpoints of this codebase: tensors and plain values under names of our own."""

from utils.checkpoint.files import read, write
from utils.checkpoint.network import Contents, build_network, check_data
from utils.command import RunError

FORMAT = "ir2net"
VERSION = 1
TRAINING_STATE = ("optimizer", "scheduler", "scaler", "rng")
"""What a checkpoint holds for training to go on; the network needs none of it."""


def save(path, payload):
    """Write a checkpoint of ours: `payload` is tensors and plain values."""
    write(path, {"format": FORMAT, "version": VERSION, **payload})


def is_ours(payload):
    """Whether `read` gave a checkpoint of this codebase."""
    return isinstance(payload, dict) and payload.get("format") == FORMAT


def check_version(payload, path):
    """Raise RunError for a checkpoint of a format that this code does not know."""
    if payload.get("version") != VERSION:
        raise RunError(f"{path} has version {payload.get('version')}; this code reads version {VERSION}")


def read_ours(path):
    """`read`, or RunError if the file is not a checkpoint of ours."""
    payload = read(path)
    if not is_ours(payload):
        raise RunError(f"{path} is not a checkpoint of ours; python -m utils.released inspect tells what it is")
    return payload


def contents(payload, path):
    """The Contents of what `read` gave. Raises RunError for another version, or if it describes no network."""
    check_version(payload, path)
    network, state = payload.get("network"), payload.get("model")
    if not isinstance(network, dict) or not isinstance(state, dict):
        raise RunError(f"{path} does not hold a network and its weights")
    data = payload.get("data", {})
    check_data(data, path)
    check_released(payload.get("released", {}), path)
    return Contents(str(path), network, state, data, tensors=len(state))


def check_released(released, path):
    """Raise RunError unless `released` can be what `utils.checkpoint.released.convert` keeps of a released file."""
    kinds = {"name": str, "unused": dict, "absent": list}
    good = isinstance(released, dict) and all(isinstance(released.get(k, kind()), kind) for k, kind in kinds.items())
    if not good:
        raise RunError(f"{path} is damaged: it does not say what its network was converted from")


def network_of(payload, path):
    """The network, in evaluation mode, of a checkpoint of ours."""
    stored = contents(payload, path)
    return build_network(stored.network, stored.state, path)
