"""How long inference takes: the packed network, the same one in floating point, and torchvision's, measured in turn."""

import copy
import functools
import statistics
import time
from contextlib import contextmanager

import torch
import torch.nn.functional as F

from models.inference import binary_convs
from utils.command import RunError

LAST = torch.channels_last
BURST = 0.01


@contextmanager
def threads(count):
    """Within it torch, and so the packed network, uses `count` threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def clock():
    """The function that tells the time: of the one thread that computes, without what other programs took of its core;
    or, with more threads, the wall's."""
    return time.thread_time if torch.get_num_threads() == 1 else time.perf_counter


def medians(contenders, repeats):
    """{name: median milliseconds} of {name: function}, measured in turn, so that a busy machine slows all alike.

    In each of `repeats` rounds each runs for BURST seconds, twice at least. The first call is not counted: the others
    have used the caches. See `clock`.
    """
    now = clock()
    times = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, run in contenders.items():
            run()
            start = before = now()
            while before == start or before - start < BURST:
                run()
                after = now()
                times[name].append(1000 * (after - before))
                before = after
    return {name: statistics.median(values) for name, values in times.items()}


def _torchvision(compile):
    try:
        import torchvision
    except ImportError:
        raise RunError("bench compares with torchvision's ResNet-18: pip install torchvision") from None
    model = torchvision.models.resnet18().eval()
    return torch.compile(model) if compile else model


def _run(model, images):
    return lambda: model(images)


@torch.inference_mode()
def end_to_end(packed, floating, images, repeats, compile=False):
    """Median milliseconds of a batch `images` (N, 3, H, W), each network in the better memory format of two.

    packed: the packed network; floating: the same one in floating point, or any of its kind; compile: also measure
    torchvision's ResNet-18 after torch.compile. Keys: packed_ms, float_ms, torchvision_ms[, torchvision_compiled_ms].
    """
    formats = {"contiguous": images, "channels_last": images.to(memory_format=LAST)}
    networks = {"packed": packed, "float": floating, "torchvision": _torchvision(False)}
    if compile:
        networks["torchvision_compiled"] = _torchvision(True)
    contenders = {}
    for name, model in networks.items():
        for layout, batch in formats.items():
            if layout == "channels_last" and name != "packed":
                model = copy.deepcopy(model).to(memory_format=LAST)
            contenders[name, layout] = _run(model, batch)
    try:
        found = medians(contenders, repeats)
    except Exception as error:
        if "torch._inductor" in type(error).__module__ or "torch._dynamo" in type(error).__module__:
            raise RunError(f"torch.compile failed; it needs a C++ compiler: {type(error).__name__}") from None
        raise
    best = {}
    for (name, _), value in found.items():
        best[f"{name}_ms"] = min(value, best.get(f"{name}_ms", value))
    return best


@torch.inference_mode()
def layers(packed, images, repeats):
    """[{name, shape, packed_ms, float_ms}] of the packed network's binary convolutions, on inputs as they occur.

    packed_ms: from float maps to float sums, packing of the signs included. float_ms: torch's convolution of the same
    shape, in the better memory format of two. shape: "C_in x H x W -> C_out, k x k / stride".
    """
    rows = []
    for name, conv, x in _inputs(packed, images):
        weight = torch.randn(conv.bits.shape[0], conv.in_channels, *conv.bits.shape[1:3])
        last = (x, weight.to(memory_format=LAST))
        first = (x.contiguous(), weight)
        found = medians(
            {
                "packed": _run(conv, x),
                "last": lambda pair=last, conv=conv: F.conv2d(*pair, None, conv.stride, conv.padding),
                "first": lambda pair=first, conv=conv: F.conv2d(*pair, None, conv.stride, conv.padding),
            },
            repeats,
        )
        channels, height, width = x.shape[1:]
        kernel = "x".join(map(str, weight.shape[2:]))
        shape = f"{channels}x{height}x{width} -> {len(weight)}, {kernel}/{conv.stride}"
        float_ms = min(found["last"], found["first"])
        rows.append({"name": name, "shape": shape, "packed_ms": found["packed"], "float_ms": float_ms})
    return rows


def _inputs(packed, images):
    """[(name, binary convolution, its input)] of a forward pass."""
    found, hooks = [], []
    for name, conv in binary_convs(packed):
        hook = functools.partial(lambda name, module, args: found.append((name, module, args[0])), name)
        hooks.append(conv.register_forward_pre_hook(hook))
    packed.classify(packed.features(images))  # the whole batch at once
    for hook in hooks:
        hook.remove()
    return found


@torch.inference_mode()
def parts(packed, images, repeats):
    """{part: median milliseconds} of the packed network: where the time of one image goes, on one thread.

    "total" is the sum. A network that runs module by module has no other part.
    """
    program = packed.program(images.shape[2:])
    if program is None:
        return {"total": medians({"total": _run(packed, images[:1])}, repeats)["total"]}
    with threads(1):
        found = medians(program.parts(images[0]), repeats)
    return {**found, "total": sum(found.values())}
