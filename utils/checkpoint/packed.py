"""Packed files: a network for 1-bit inference in one safetensors file, read without running code, whole or not at all.

The metadata hold the format's name and version, build_model's arguments, what is known of the images, and a SHA-256 of
the whole file, computed with the digest's own 64 characters as zeros. The tensors are those of
`models.inference.pack_network`: bits of binary weights as uint64 words along the input channels (C_out, k, k, words),
the rest float32, or float16 where --half was given, for weights of full-precision layers alone.
"""

import contextlib
import ctypes
import hashlib
import json
from pathlib import Path

import torch

from models.inference import blank_network, pack_network
from utils.checkpoint.network import Contents, check_data, empty_network, load_state
from utils.command import RunError
from utils.files import replacing

FORMAT = "ir2net-packed"
VERSION = 1
DIGEST = "sha256"
_BLANK = "0" * 64


def _safetensors():
    try:
        import safetensors.torch
    except ImportError:
        raise RunError("packed files need safetensors: pip install safetensors") from None
    return safetensors.torch


KEPT = ("dataset", "classes", "image_size")
"""What a packed file keeps of its checkpoint's data."""


def is_half(key):
    """Whether --half rounds the tensor `key`: weights of full-precision layers, and nothing that is per channel."""
    return key.endswith(".weight")


def packed_content(model, network, data=None, half=False):
    """The bytes of the packed file of `model`, a network of build_model(**network); data: what is known of its images.

    Raises RunError if the network has no 1-bit weights, or numbers that are not finite.
    """
    safetensors = _safetensors()
    try:
        state = pack_network(model).state_dict()
    except ValueError as error:
        raise RunError(str(error)) from None
    state = {key: value.half() if half and is_half(key) else value for key, value in state.items()}
    unfit = [key for key, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if unfit:
        raise RunError(f"the network has numbers that are not finite{' in float16' * half}: {unfit[0]}")
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "network": json.dumps({key: value for key, value in network.items() if value is not None}),
        "data": json.dumps({name: data[name] for name in KEPT if name in (data or {})}),
        DIGEST: _BLANK,
    }
    content = safetensors.save({key: value.contiguous() for key, value in state.items()}, metadata)
    return content.replace(_BLANK.encode(), hashlib.sha256(content).hexdigest().encode(), 1)


def write_packed(path, model, network, data=None, half=False):
    """Write `packed_content` to `path`, whole or not at all."""
    content = packed_content(model, network, data, half)
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def _metadata(content, path):
    """The metadata of a safetensors file; RunError unless they are a packed network's, of a version that is known."""
    length = int.from_bytes(content[:8], "little")
    try:
        metadata = json.loads(content[8 : 8 + length])["__metadata__"]
        named = metadata["format"] == FORMAT
        version = int(metadata["version"])
    except Exception:  # whatever a file may hold
        raise RunError(f"{path} is no packed network, or is damaged") from None
    if not named:
        raise RunError(f"{path} is not a packed network")
    if version != VERSION:
        raise RunError(f"{path} has version {version}; this code reads version {VERSION}")
    return metadata


def read_packed(path):
    """The Contents of a packed file.

    Raises RunError in one line if it is missing, damaged in a single bit, truncated, of another version, or not a
    packed network.
    """
    safetensors = _safetensors()
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror}") from None
    metadata = _metadata(content, path)
    digest = str(metadata.get(DIGEST)).encode("utf-8", "replace")
    blank = content.replace(digest, _BLANK.encode(), 1) if len(digest) == len(_BLANK) else b""
    if hashlib.sha256(blank).hexdigest().encode() != digest:
        raise RunError(f"{path} is damaged: its checksum does not match its content")
    try:
        network = json.loads(metadata["network"])
        data = json.loads(metadata.get("data", "{}"))  # files of before have none
        state = safetensors.load(content)
    except Exception as error:  # whatever a file may hold
        raise RunError(f"{path} does not describe a packed network: {type(error).__name__}: {error}") from None
    if not isinstance(network, dict):
        raise RunError(f"{path} does not describe a packed network: it has no table of build_model's arguments")
    check_data(data, path)
    return Contents(str(path), network, state, data, packed=True, tensors=len(state))


def build_packed(network, state, path):
    """The packed network of build_model(**network), in evaluation mode, with the tensors of `state`.

    Raises RunError if there is no such network, or `state` differs from it in anything.
    """
    empty_network(network, path)  # before a file may ask for any amount of memory
    try:
        model = blank_network(**network)
    except (ValueError, RuntimeError) as error:
        raise RunError(f"{path} does not describe a packed network: {error}") from None
    own = model.state_dict()
    widened = {}
    for key, value in state.items():
        widened[key] = value.float() if value.dtype == torch.float16 and is_half(key) else value
        if key in own and widened[key].dtype != own[key].dtype:
            raise RunError(f"{path} does not fit the network: {key} has dtype {value.dtype}")
    load_state(model, widened, path)
    _give_back_memory()
    return model.eval()


def _give_back_memory():
    """Return to the system what floating-point weights took while the network was built; glibc would keep it."""
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library has no such function
        ctypes.CDLL(None).malloc_trim(0)
