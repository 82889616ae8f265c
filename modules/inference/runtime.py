"""What every module of inference shares: the compiled kernels, how many threads, and the memory of maps."""

import functools
import warnings

import torch
import torch.nn.functional as F
from torch import nn

from modules.inference import native
from modules.inference.layout import LANES
from modules.inference.maps import Maps, blocks_of
from modules.inference.threads import execute

FLOATS = {"dtype": torch.float32, "device": "cpu"}
"""Of tensors that the kernels read and write: torch's defaults may be others."""


@functools.cache
def kernels():
    """`modules.inference.kernels.run`, or None, with one warning, where there is neither its code nor numba."""
    try:
        return native.load()
    except ImportError as error:
        warnings.warn(f"{error}: binary convolutions run in floating point, slowly; pip install numba", stacklevel=2)
        return None


def readable(maps):
    """`maps` as the kernels read them: as they lie in memory. Raises ValueError unless float32 and in the CPU's."""
    if maps.dtype != torch.float32:
        raise ValueError(f"packed networks compute in float32, not in {maps.dtype}")
    if maps.device.type != "cpu":
        raise ValueError(f"packed networks run on the CPU, and the images are on {maps.device}")
    return maps.detach().resolve_neg()


def array_of(maps):
    """Contiguous tensor (N, H, W, C) of maps (N, C, H, W), C filled up to a multiple of LANES with zeros.

    Raises ValueError unless they are float32, in the CPU's memory.
    """
    maps = readable(maps).permute(0, 2, 3, 1)
    if maps.shape[3] % LANES:
        maps = F.pad(maps, (0, -maps.shape[3] % LANES))
    return maps.contiguous()


def maps_at(address, shape):
    """The Maps, in a program, of an array (..., H, W, C) at the address."""
    *_, height, width, channels = shape
    pixel = 4 * LANES * blocks_of(channels)
    return Maps(address, height, width, channels, width * pixel, pixel)


def run_each(program, shape, arrays):
    """Execute a program for each image: new maps (N, C, H, W) of `shape`, the program's external array 1.

    arrays: tensors, external arrays from 2 on, (N, ...) each, or (1, ...) where all images have the same.
    """
    images, channels, height, width = shape
    out = torch.empty(images, height, width, blocks_of(channels) * LANES, **FLOATS)
    instance, threads = program.instance(), torch.get_num_threads()
    steps = [(array.data_ptr(), 4 * array.stride(0) if len(array) > 1 else 0) for array in (out, *arrays)]
    for i in range(images):
        instance.bind(*(address + i * step for address, step in steps))
        execute(kernels(), instance, threads)
    program.idle.append(instance)
    return out[..., :channels].permute(0, 3, 1, 2)


def empty_like_last(x, shape):
    """Uninitialised maps of `shape` (N, C, H, W) in channels-last memory, else like x: for fake kernels."""
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def compiled():
    """Whether to call the kernels directly, past the operators' dispatch: they exist, and nothing is being traced."""
    return not torch.compiler.is_compiling() and kernels() is not None


class Prepared(nn.Module):
    """A module that derives what the kernels read from its buffers: at the start, and when they are loaded.

    `derive` fills the buffers that are not persistent: copies and pickles go without, and derive their own.
    """

    changes = 0
    """How often any of them has prepared: what was built of the derived buffers before is out of date."""

    def __init__(self):
        super().__init__()
        self.register_load_state_dict_post_hook(_prepare)

    def prepare(self):
        """Derive the buffers that are not persistent: the others have other values."""
        Prepared.changes += 1
        self.program = None, None
        self.derive()

    def program_for(self, key, build):
        """build(), kept as long as the key, whose tensors must be the same ones, does not change."""
        known, program = self.program
        if known is None or len(known) != len(key) or any(a is not b and not _equal(a, b) for a, b in zip(known, key)):
            program = build()
            self.program = key, program
        return program

    def __getstate__(self):
        state = self.__dict__ | {"program": (None, None)}
        derived = dict.fromkeys(self._non_persistent_buffers_set)
        state["_buffers"] = {name: _signed(value) for name, value in self._buffers.items()} | derived
        return state

    def __setstate__(self, state):
        super().__setstate__(state)
        if "bits" in self._buffers:
            self.bits = self.bits.view(torch.uint64)
        self.prepare()


def _equal(a, b):
    return not isinstance(a, torch.Tensor) and a == b


def _signed(words):
    """uint64 tensors as int64: torch cannot pickle the former."""
    return words.view(torch.int64) if words is not None and words.dtype == torch.uint64 else words


def _prepare(module, incompatible_keys):
    module.prepare()
