"""One network in one inference engine, in a fresh process: what loading takes, what memory it adds, how fast it runs.

`python -m utils.bench.engines ENGINE FILE IMAGES THREADS` loads FILE, runs it on IMAGES (.npy, float32 (N, 3, H, W))
and prints one JSON object: import_ms, load_ms, runtime_mb, added_mb, logits. Then it answers every line on standard
input, a number of seconds, with the milliseconds of calls that take so long together. `utils.bench.turns` starts such
processes. Only engines that compute with torch import it: it takes more memory than the others.
"""

import contextlib
import ctypes
import importlib
import json
import os
import signal
import sys
import time

import numpy as np


def packed(path, images, threads, fast=False):
    """A packed file of ours; fast: its first and its 1x1 convolutions in bfloat16."""
    from utils.checkpoint import load_model

    model = load_model(path)
    model.fast = fast
    return _torch(model, images, threads)


def packed_fast(path, images, threads):
    return packed(path, images, threads, fast=True)


def torchvision(path, images, threads):
    """torchvision's ResNet-18 in eager mode, channels-last, which a CPU computes faster; path: its state."""
    import torch
    from torchvision.models import resnet18

    model = resnet18().eval()
    model.load_state_dict(torch.load(path, weights_only=True))
    return _torch(model.to(memory_format=torch.channels_last), images, threads)


def _torch(model, images, threads):
    import torch

    torch.set_num_threads(threads)
    batch = torch.from_numpy(images).to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def run():
        return model(batch).numpy()

    return run


def onnxruntime(path, images, threads):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"images": images})[0]


def openvino(path, images, threads, precision="f32"):
    """precision: of all that is not INT8 in the file; left alone, the engine takes bf16 where the CPU has it."""
    import openvino

    options = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
    request = openvino.Core().compile_model(path, "CPU", options).create_infer_request()
    return lambda: request.infer({0: images})[0]


def openvino_bf16(path, images, threads):
    return openvino(path, images, threads, "bf16")


ENGINES = {
    "packed": ("torch", packed),
    "packed_fast": ("torch", packed_fast),
    "torchvision": ("torchvision", torchvision),
    "onnxruntime": ("onnxruntime", onnxruntime),
    "openvino": ("openvino", openvino),
    "openvino_bf16": ("openvino", openvino_bf16),
}
"""Name -> (its runtime, function of (path, images, threads) that gives the function to time)."""


def end_with_parent():
    """Have the system end this process with the one that started it, which may have stopped it until its next turn."""
    set_parent_death_signal = 1
    with contextlib.suppress(OSError, AttributeError):  # Linux alone knows it
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


def resident_mb():
    """Resident memory of this process in 10^6 bytes; None where the system does not say."""
    with contextlib.suppress(OSError, AttributeError), open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    return None


def burst(run, seconds, now):
    """Milliseconds of calls that take `seconds` together, two at least; one before them is not counted: the others
    have used the caches."""
    run()
    times, start = [], now()
    before = start
    while len(times) < 2 or before - start < seconds:
        run()
        after = now()
        times.append(1000 * (after - before))
        before = after
    return times


def main(argv):
    name, path, images, threads = argv
    end_with_parent()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what engines print is no answer
    images, threads = np.load(images), int(threads)
    # With one thread what other programs take of its core does not count; with more only the wall's clock can tell.
    now = time.process_time if threads == 1 else time.perf_counter
    runtime, load = ENGINES[name]
    start = now()
    importlib.import_module(runtime)
    imported, before = now(), resident_mb()
    run = load(path, images, threads)
    logits = run()
    loaded, after = now(), resident_mb()
    answer = {"import_ms": 1000 * (imported - start), "load_ms": 1000 * (loaded - imported)}
    answer |= {"runtime_mb": before, "added_mb": after and after - before, "logits": logits[0].tolist()}
    print(json.dumps(answer), file=answers, flush=True)
    for seconds in sys.stdin:
        print(json.dumps(burst(run, float(seconds), now)), file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
