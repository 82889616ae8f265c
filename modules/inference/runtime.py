"""What every module of inference shares: the compiled kernels, their threads, and the memory of maps."""

import functools
import threading
import warnings
from contextlib import contextmanager

import torch
from torch import nn


@functools.cache
def kernels():
    """`modules.inference.kernels`, or None, with one warning, where numba is missing."""
    try:
        from modules.inference import kernels as compiled
    except ImportError as error:
        warnings.warn(f"{error}: binary convolutions run in floating point, slowly; pip install numba", stacklevel=2)
        return None
    return compiled


_state = threading.local()


@contextmanager
def kernels_alone():
    """Within it the compiled kernels have torch's threads for themselves, and torch's own operators one.

    The two have pools of their own, whose threads wait busily for a while after each operator: in turn, on the same
    cores, each would keep the other from running.
    """
    count = torch.get_num_threads()
    if count == 1 or kernels() is None:
        yield
        return
    _state.threads = count
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(count)
        _state.threads = None


def thread_count():
    """How many threads a kernel may use."""
    return getattr(_state, "threads", None) or torch.get_num_threads()


def image_means(x):
    """Means of x (N, C, H, W) over (C, H, W), (N,): of one image in as many parts as torch has threads elsewhere."""
    if torch.compiler.is_compiling() or len(x) > 1 or getattr(_state, "threads", None) is None:
        return x.mean((1, 2, 3))
    torch.set_num_threads(_state.threads)
    try:
        return x.mean((1, 2, 3))
    finally:
        torch.set_num_threads(1)


def empty_maps(shape):
    """(maps, array): uninitialised float32 maps of shape (N, C, H, W), and the array (N, H, W, C) of their memory."""
    images, channels, height, width = shape
    memory = torch.empty((images, height, width, channels))
    return memory.permute(0, 3, 1, 2), memory.numpy()


def array_of(maps):
    """NumPy view (N, H, W, C) of maps (N, C, H, W), a copy unless they are in channels-last memory.

    Raises ValueError unless they are float32: the kernels read nothing else.
    """
    if maps.dtype != torch.float32:
        raise ValueError(f"packed networks compute in float32, not in {maps.dtype}")
    return maps.permute(0, 2, 3, 1).contiguous().numpy()


def empty_like_last(x, shape):
    """Uninitialised maps of `shape` (N, C, H, W) in channels-last memory, else like x: for fake kernels."""
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def compiled():
    """Whether to call the kernels directly, past the operators' dispatch: they exist, and nothing is being traced."""
    return not torch.compiler.is_compiling() and kernels() is not None


class Prepared(nn.Module):
    """A module whose `prepare` derives what the kernels read from its buffers: at the start, and when they are loaded.

    It fills the buffers that are not persistent, and ARRAYS, attributes that share their memory: copies and pickles
    go without both, and derive their own.
    """

    ARRAYS = ()

    def __init__(self):
        super().__init__()
        self.register_load_state_dict_post_hook(_prepare)

    def __getstate__(self):
        state = {name: value for name, value in self.__dict__.items() if name not in self.ARRAYS}
        derived = dict.fromkeys(self._non_persistent_buffers_set)
        state["_buffers"] = {name: _signed(value) for name, value in self._buffers.items()} | derived
        return state

    def __setstate__(self, state):
        super().__setstate__(state)
        if "bits" in self._buffers:
            self.bits = self.bits.view(torch.uint64)
        self.prepare()


def _signed(words):
    """uint64 tensors as int64: torch cannot pickle the former."""
    return words.view(torch.int64) if words is not None and words.dtype == torch.uint64 else words


def _prepare(module, incompatible_keys):
    module.prepare()
