"""Where and how a run computes: device, precision, seeds, compilation."""

import contextlib
import ctypes
import os
import random
import shutil
import warnings
from dataclasses import dataclass

import numpy as np
import torch

from utils.command import UsageError
from utils.training import distributed

AMP = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Value of --amp, besides "auto" -> the dtype of autocast."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""glibc's names: from how many bytes on free memory goes back to the system, and is taken from it piece by piece."""


@dataclass(frozen=True)
class Precision:
    """What a step computes in: autocast to `dtype`, or float32 where it is None. fp16 needs a gradient scaler."""

    device: torch.device
    dtype: torch.dtype | None = None

    def __str__(self):
        return str(self.dtype or torch.float32).removeprefix("torch.")

    @property
    def amp(self):
        """The value of --amp that asks for it."""
        return next(name for name, dtype in AMP.items() if dtype is self.dtype)

    def autocast(self):
        if self.dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def scaler(self):
        return torch.amp.GradScaler(self.device.type, enabled=self.dtype is torch.float16)


def choose_device(name):
    """torch.device of --device; "auto" takes a GPU if there is one, and each rank takes its own.

    Raises UsageError for one that is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.split(":")[0] not in ("cpu", "cuda"):
        raise UsageError(f"--device {name} is not one of auto, cpu, cuda, cuda:N")
    if distributed.world_size() > 1 and name.startswith("cuda"):
        if name != "cuda":
            raise UsageError(
                f"--device {name} is one GPU, and this job has {distributed.world_size()} ranks: give cuda"
            )
        name = f"cuda:{distributed.local_rank()}"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise UsageError(f"--device {name} is not available on this machine") from None
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False  # else convolutions in float32 keep 10 bits, and signs near 0 flip
        if device.index is not None:
            torch.cuda.set_device(device)  # NCCL works on the current device
    if device.type == "cpu":
        torch.set_flush_denormal(True)  # denormal numbers slow full-precision networks down tenfold
        keep_freed_memory()
    return device


def keep_freed_memory():
    """Let the C library keep the memory of freed tensors for the next ones.

    glibc gives large pieces back to the system, and each step fetches them again page by page, zeroed, which takes up
    to a fifth of its time. Another C library than glibc is left as it is.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    # Older versions take 32 MiB at most; where neither is taken, the other threshold alone would make it worse.
    if mallopt and any(mallopt(M_MMAP_THRESHOLD, size) for size in (2**30, 2**25)):
        mallopt(M_TRIM_THRESHOLD, 2**30)


def choose_precision(amp, device):
    """Precision of --amp; "auto" is bfloat16 where the device computes in it, else float32."""
    if amp == "auto":
        if device.type == "cuda":
            native = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            native = torch.cpu._is_avx512_bf16_supported()
        amp = "bf16" if native else "off"
    if amp == "fp16" and device.type == "cpu":
        raise UsageError("--amp fp16 needs a GPU; on a CPU use --amp bf16 or off")
    return Precision(device, AMP[amp])


def seed_everything(seed, deterministic):
    """Seed all generators; deterministic: refuse operations whose result may differ from run to run."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS refuses matrix products without it
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = torch.cuda.is_available() and not deterministic


def rng_state():
    """State of torch's generators, as a checkpoint keeps it."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"torch": torch.get_rng_state(), "cuda": cuda}


def set_rng_state(state):
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


def has_compiler(device):
    """Whether torch.compile finds the compiler that it needs: on a CPU a C++ one; on a GPU a C one, for Triton."""
    if device.type == "cpu":
        names = (os.environ.get("CXX", "g++"), "clang++")
    else:
        names = (os.environ.get("CC", "gcc"), "cc", "clang")
    return any(map(shutil.which, names))


def choose_compile(choice, device, steps):
    """Whether to torch.compile the step, and why: (bool, reason). steps: how many the run will take.

    Raises UsageError for "on" where there is no compiler.
    """
    if choice == "off":
        return False, "--compile off"
    if choice == "on":
        if not has_compiler(device):
            raise UsageError("--compile on needs a C++ compiler, and none is installed: install g++, or leave it out")
        return True, "--compile on"
    if device.type != "cuda":
        return False, "auto: on a CPU convolutions take nearly all the time, and compiling leaves them as they are"
    if steps < 5000:
        return False, f"auto: {steps} steps are too few to win the compilation's time back"
    if not has_compiler(device):
        return False, "auto: torch.compile needs a C compiler, and none is installed"
    return True, "auto: a GPU and a long run"


def compile_step(step, device, accumulate=1):
    """torch.compile `step` in place; on one GPU as CUDA graphs, which spare a small network most of its launches.

    Gradients that are summed over several batches, or exchanged between ranks, must not live in a graph's own memory.
    All batches have one size: shapes are never symbolic, with which the CPU's generated code has given wrong losses.
    """
    graphs = device.type == "cuda" and accumulate == 1 and distributed.world_size() == 1
    warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores")  # advice to give up float32
    step.compile(mode="reduce-overhead" if graphs else "default", dynamic=False)
