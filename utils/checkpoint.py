"""Checkpoints: written whole or not at all, read without running any code, and turned back into a network."""

import os
import pickle
from pathlib import Path

import torch

from models import build_model
from utils.command import RunError

FORMAT = "ir2net"
VERSION = 1


def save(path, payload):
    """Write `payload` (tensors and plain values) to a temporary name beside `path`, then rename it."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        torch.save({"format": FORMAT, "version": VERSION, **payload}, temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read(path):
    """What a file written by torch.save holds, on the CPU; weights only, so no code in a pickle ever runs.

    Raises RunError in one line if there is no such file, or it is damaged, or holds more than tensors and values.
    """
    path = Path(path)
    if not path.exists():
        raise RunError(f"no checkpoint at {path}")
    if path.is_dir():
        raise RunError(f"{path} is a directory, not a checkpoint")
    if path.stat().st_size == 0:
        raise RunError(f"{path} is empty (0 bytes)")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Unsupported" in str(error) or "global" in str(error).lower():
            raise RunError(f"{path} holds more than tensors and plain values: refused, nothing in it was run") from None
        raise RunError(f"{path} is no checkpoint, or is damaged") from None
    except (RuntimeError, EOFError, ValueError, KeyError, IndexError, AttributeError, TypeError, OSError) as error:
        raise RunError(f"{path} is no checkpoint, or is truncated ({type(error).__name__})") from None


def load_state(model, state, path):
    """model.load_state_dict, strictly, with every difference in one RunError."""
    own = model.state_dict()
    problems = [f"missing {key}" for key in own if key not in state]
    problems += [f"unknown {key}" for key in state if key not in own]
    problems += [
        f"{key} has shape {tuple(state[key].shape)} instead of {tuple(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    if problems:
        raise RunError(f"{path} does not fit the network: {'; '.join(problems)}")
    model.load_state_dict(state)


def is_ours(payload):
    """Whether `read` gave a checkpoint of this codebase."""
    return isinstance(payload, dict) and payload.get("format") == FORMAT


def network_of(payload, path):
    """The network, in evaluation mode, of a checkpoint of ours."""
    if payload.get("version") != VERSION:
        raise RunError(f"{path} has version {payload.get('version')}; this code reads version {VERSION}")
    try:
        model = build_model(**payload["network"])
        state = payload["model"]
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{path} does not describe a network: {error}") from None
    floats = next((v.dtype for v in state.values() if v.is_floating_point()), torch.float32)
    model.to(floats)
    load_state(model, state, path)
    return model.eval()


def load_model(path, weight_bits=None, activation_bits=None):
    """The network of a checkpoint, in evaluation mode, on the CPU: model(images (N, 3, H, W)) -> logits.

    It takes the dtype of the file's weights. weight_bits, activation_bits: needed only where a released layout fits
    two networks. Raises RunError in one line for anything that is not a whole checkpoint of a known network.
    """
    payload = read(path)
    if not is_ours(payload):
        raise RunError(f"{path} is not a checkpoint of this codebase")
    return network_of(payload, path)
