"""Count what a network costs: BOPs, FLOPs, OPs = BOPs / 64 + FLOPs, parameters, and the size of the packed model.

A BOP is a multiply-add of a convolution whose weights and activations both have 1 bit. All else that a rule prices is
a FLOP, convolutions of 1/32 and 32/1 bits (weights/activations) too: their arithmetic is real-valued. Counts are
per image, at inference. Two rules price the FLOPs: utils/complexity/rules.py. OPs: Bi-Real Net, Liu et al., ECCV 2018.
"""

import copy
from collections import Counter
from dataclasses import dataclass

import torch
from torch import nn

from utils.command import RunError, UsageError, height_width
from utils.complexity.rules import PRICES, handlers_of


@dataclass(frozen=True)
class Layer:
    """One module's own share. bits: weights/activations. output: its shape (C, H, W) or (C,); () where it is free."""

    name: str
    type: str
    bits: str
    output: tuple
    bops: int
    flops: int
    params: int
    params_1bit: int


@dataclass(frozen=True)
class Complexity:
    """Counts per image. model_mb: 1e6 bytes. input_size: as given. layers: those with a cost or parameters."""

    bops: int
    flops: int
    ops: float
    params: int
    params_1bit: int
    model_mb: float
    rule: str
    input_size: int | tuple
    layers: tuple

    @property
    def image(self):
        return "x".join(map(str, (3, *height_width(self.input_size))))

    @property
    def convolutions(self):
        """How many convolutions of which bits there are, and what they count as, in words."""
        bits = Counter(layer.bits for layer in self.layers if layer.type.endswith("Conv2d"))
        return ", ".join(f"{n} of {b} bits as {'BOPs' if b == '1/1' else 'FLOPs'}" for b, n in sorted(bits.items()))

    def __str__(self):
        return (
            f"{self.bops:.3e} BOPs / 64 + {self.flops:.3e} FLOPs = {self.ops:.3e} OPs "
            f"(rule {self.rule}, {self.image}; convolutions: {self.convolutions}); "
            f"{self.params:,} parameters, {self.params_1bit:,} of 1 bit, {self.model_mb:.2f} MB"
        )


def count(model, input_size, rule="paper"):
    """The Complexity of `model` on one image (3, H, W), by hooking a forward pass. The model stays as it is.

    input_size: H = W in pixels, or (H, W). rule: a key of PRICES. params: all parameters, as trained; params_1bit:
    weights of binary convolutions with 1-bit weights. model_mb: these packed, 8 to a byte, and 32 bits for each other
    parameter and for BatchNorm's running means and variances, whatever the model's dtype is; neither BatchNorm's step
    counter, nor scales, which follow from the latent weights and fold into BatchNorm.
    Raises RunError if thop is missing, or for a module that HANDLERS does not know; UsageError if the network does not
    run on images of this size; ValueError for another rule.
    """
    if rule not in PRICES:
        raise ValueError(f"rule must be one of {', '.join(PRICES)}, not {rule!r}")
    try:
        from thop import profile
    except ImportError as error:
        raise RunError(f"counting needs thop ({error}): pip install -r requirements.txt") from None

    # thop changes modes, and leaves hooks and buffers behind where a pass fails. A copy without data takes them all.
    twin = copy.deepcopy(model).to("meta")
    _check_shared(twin)
    handlers = handlers_of(twin)
    amounts, outputs = Counter(), {}

    def record(module, inputs, output):
        if amount := handlers[module][1](module, inputs, output):
            amounts[module] += amount
            outputs[module] = tuple(output.shape[1:])

    dtype = next((p.dtype for p in twin.parameters()), None)
    try:
        images = torch.empty(1, 3, *height_width(input_size), dtype=dtype, device="meta")
        with torch.device("cpu"):  # where thop's own counters live
            profile(twin, (images,), custom_ops=dict.fromkeys(map(type, handlers), record), verbose=False)
    except (RuntimeError, TypeError) as error:
        shape = tuple(images.shape[1:])
        raise UsageError(f"the network does not run on images {shape}, or not without data: {error}") from None

    prices = {module: PRICES[rule].get(kind, 0) for module, (kind, _) in handlers.items()}
    layers = [_layer(name, m, amounts[m], outputs.get(m, ()), prices[m]) for name, m in twin.named_modules()]
    totals = {field: sum(getattr(x, field) for x in layers) for field in ("bops", "flops", "params", "params_1bit")}
    norms = [module for module in twin.modules() if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d))]
    stored = totals["params"] + sum(2 * norm.num_features for norm in norms if norm.track_running_stats)
    return Complexity(
        **totals,
        ops=totals["bops"] / 64 + totals["flops"],
        model_mb=(32 * stored - 31 * totals["params_1bit"]) / 8 / 1e6,
        rule=rule,
        input_size=input_size,
        layers=tuple(layer for layer in layers if layer.bops or layer.flops or layer.params),
    )


def of_run(model, input_size):
    """(line to print, what summary.json keeps) of a run's network, by rule `paper`.

    Training needs no thop: without it the line says so, and the counts are None.
    """
    fields = ("bops", "flops", "ops", "params", "params_1bit", "model_mb", "rule")
    try:
        counts = count(model, input_size)
    except RunError as error:
        return f"operations: {error}", dict.fromkeys(fields)
    return f"operations: {counts}", {name: getattr(counts, name) for name in fields}


def _check_shared(model):
    names = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if module in names:
            kind = type(module).__name__
            raise RunError(f"{names[module]} and {name} are one {kind}, which thop would count twice: make two")
        names[module] = name


def _layer(name, module, amount, output, price):
    bits = f"{getattr(module, 'weight_bits', 32)}/{getattr(module, 'activation_bits', 32)}"
    return Layer(
        name=name,
        type=type(module).__name__,
        bits=bits,
        output=output,
        bops=amount if bits == "1/1" else 0,
        flops=0 if bits == "1/1" else amount * price,
        params=sum(p.numel() for p in module.parameters(recurse=False)),
        params_1bit=module.weight.numel() if bits.startswith("1/") else 0,
    )
