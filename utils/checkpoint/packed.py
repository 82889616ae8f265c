"""Packed files: a network for 1-bit inference in one safetensors file, read without running code, whole or not at all.

The metadata hold the format's name and version, build_model's arguments, the images that the network expects, and a
SHA-256 of the whole file, computed with the digest's own 64 characters as zeros. The tensors are those of
`models.inference.pack_network`: bits of binary weights as uint64 words along the input channels (C_out, k, k, words),
the rest float32, or float16 where --half was given, for weights of full-precision layers alone.
"""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from cifar.data import MEAN, STD
from models import build_model, family_of
from models.inference import pack_network
from utils.checkpoint import load_state
from utils.command import RunError

FORMAT = "ir2net-packed"
VERSION = 1
DIGEST = "sha256"
_BLANK = "0" * 64


@dataclass(frozen=True)
class Packed:
    """A packed file's content: the network in evaluation mode, build_model's arguments, the preprocessing."""

    model: nn.Module
    network: dict
    preprocessing: dict


def _safetensors():
    try:
        import safetensors.torch
    except ImportError:
        raise RunError("packed files need safetensors: pip install safetensors") from None
    return safetensors.torch


def preprocessing_of(network):
    """What an image must be before the network sees it: size in pixels, mean and std of RGB in [0, 1]."""
    sizes = {"image_size": network.get("image_size", 32)}
    if family_of(network.get("dataset", "cifar10")) == "imagenet":
        sizes = {"resize": 256, "image_size": 224}
    return {**sizes, "mean": MEAN, "std": STD}


def is_half(key):
    """Whether --half rounds the tensor `key`: weights of full-precision layers, and nothing that is per channel."""
    return key.endswith(".weight")


def packed_content(model, network, half=False):
    """The bytes of the packed file of `model`, a network of build_model(**network).

    Raises RunError if the network has no 1-bit weights.
    """
    safetensors = _safetensors()
    try:
        state = pack_network(model).state_dict()
    except ValueError as error:
        raise RunError(str(error)) from None
    state = {key: value.half() if half and is_half(key) else value for key, value in state.items()}
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "network": json.dumps({key: value for key, value in network.items() if value is not None}),
        "preprocessing": json.dumps(preprocessing_of(network)),
        DIGEST: _BLANK,
    }
    content = safetensors.save({key: value.contiguous() for key, value in state.items()}, metadata)
    return content.replace(_BLANK.encode(), hashlib.sha256(content).hexdigest().encode(), 1)


def write_packed(path, model, network, half=False):
    """Write `packed_content` to `path`, whole or not at all."""
    content = packed_content(model, network, half)
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def is_packed(path):
    """Whether the file looks like a packed network, or like any safetensors file; False if there is none."""
    try:
        with open(path, "rb") as file:
            return file.read(9)[8:] == b"{"
    except OSError:
        return False


def _metadata(content, path):
    """The metadata of a safetensors file; RunError unless they are a packed network's, of a version that is known."""
    length = int.from_bytes(content[:8], "little")
    try:
        metadata = json.loads(content[8 : 8 + length])["__metadata__"]
        named = metadata["format"] == FORMAT
        version = int(metadata["version"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise RunError(f"{path} is no packed network, or is damaged") from None
    if not named:
        raise RunError(f"{path} is not a packed network")
    if version != VERSION:
        raise RunError(f"{path} has version {version}; this code reads version {VERSION}")
    return metadata


def read_packed(path):
    """The content of a packed file, a Packed.

    Raises RunError in one line if it is missing, damaged in a single bit, truncated, of a newer version, or not a
    packed network.
    """
    safetensors = _safetensors()
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror}") from None
    metadata = _metadata(content, path)
    digest = str(metadata.get(DIGEST)).encode()
    blank = content.replace(digest, _BLANK.encode(), 1) if len(digest) == len(_BLANK) else b""
    if hashlib.sha256(blank).hexdigest().encode() != digest:
        raise RunError(f"{path} is damaged: its checksum does not match its content")
    try:
        network, preprocessing = json.loads(metadata["network"]), json.loads(metadata["preprocessing"])
        model = pack_network(build_model(**network))
        state = safetensors.load(content)
    except (ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
        raise RunError(f"{path} does not describe a packed network: {error}") from None
    own = model.state_dict()
    for key, value in state.items():
        widened = value.float() if value.dtype == torch.float16 and is_half(key) else value
        if key in own and widened.dtype != own[key].dtype:
            raise RunError(f"{path} does not fit the network: {key} has dtype {value.dtype}")
        state[key] = widened
    load_state(model, state, path)
    return Packed(model.eval(), network, preprocessing)


def load_packed(path):
    """The network of a packed file, in evaluation mode: model(images (N, 3, H, W)) -> logits; see `read_packed`."""
    return read_packed(path).model
