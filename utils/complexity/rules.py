"""What each module's arithmetic is, and what it costs: the data behind `utils.complexity`."""

from torch import nn

from models.blocks import BasicBlock, BiRealBlock, PadShortcut
from models.resnet import ResNet
from models.vgg import VGGSmall
from modules.activations import (
    ImageScale,
    ImageStandardization,
    LearnedShift,
    Maxout,
    PReLU,
    RPReLU,
    SelfDistributionShift,
    ShiftedImageScale,
)
from modules.binarize import EDE, AdaptiveSign, BiRealSTE, ClipSTE, IdentitySTE, TrainingAwareSTE
from modules.conv import BinaryConv2d
from modules.recovery import CIRec, IRec
from utils.command import RunError

MULTIPLY_ADD, NORM, ACTIVATION = "multiply-add", "BatchNorm output", "PReLU or Hardtanh output"
HEAD_POOLING, FREE = "input element of the head's pooling", "free"

PRICES = {
    "paper": {MULTIPLY_ADD: 1, NORM: 2, ACTIVATION: 1, HEAD_POOLING: 1},
    "conv": {MULTIPLY_ADD: 1},
}
"""{rule: {kind: FLOPs}}; a kind that a rule does not name costs nothing. paper: gives IR²Net-B to D of Table VI to the
printed digit. conv: convolutions and linear layers alone, as ReActNet (Liu et al., ECCV 2020) counts."""


def _multiply_adds(module, inputs, output):
    """One per output and weight that enters it. A bias is where the sum starts, and adds none."""
    return output.numel() * module.weight[0].numel()


def _binary_multiply_adds(module, inputs, output):
    """Weights signs * scale + offset are convolved by their signs, and by one filter of ones for a group's offsets."""
    has_offset = module.weight_bits == 1 and module.binary_weight()[2] is not None
    return output[:, :1].numel() * (output.shape[1] + has_offset * module.groups) * module.weight[0].numel()


def _outputs(module, inputs, output):
    return output.numel()


def _pooled_inputs(module, inputs, output):
    """Elements of the maps that the head pools; those that have A_l's size already are left as they are."""
    (maps,) = inputs
    size = maps[-1].shape[2:]
    return sum(x.numel() for x in maps if x.shape[2:] != size)


# Arithmetic that both rules hold to be free, and modules that only hold others, which are counted by themselves.
FREE_MODULES = (
    (nn.Sequential, nn.ModuleList, nn.Identity, RPReLU),
    (BiRealBlock, BasicBlock, PadShortcut),  # residual additions, zero channels
    (ResNet, VGGSmall),  # global average pooling, flattening
    (nn.MaxPool2d, nn.AvgPool2d, nn.ReLU, nn.LogSoftmax),
    (LearnedShift, SelfDistributionShift),  # additions and SE's pooling; SE's linear layers are counted
    (ImageStandardization, ImageScale, ShiftedImageScale),  # a mean and additions; no sign depends on the division
    (BiRealSTE, ClipSTE, EDE, IdentitySTE, TrainingAwareSTE),  # a comparison each
    (AdaptiveSign,),  # a comparison; its two values are one scale and one constant map, which fold into the BatchNorm
)

FREE_HANDLER = (FREE, lambda *_: 0)
HANDLERS = {
    **{cls: (MULTIPLY_ADD, _multiply_adds) for cls in (nn.Conv2d, nn.Linear)},
    BinaryConv2d: (MULTIPLY_ADD, _binary_multiply_adds),
    **{cls: (NORM, _outputs) for cls in (nn.BatchNorm1d, nn.BatchNorm2d)},
    **{cls: (ACTIVATION, _outputs) for cls in (nn.PReLU, PReLU, nn.Hardtanh, Maxout)},
    **{cls: (HEAD_POOLING, _pooled_inputs) for cls in (CIRec, IRec)},
    **{cls: FREE_HANDLER for group in FREE_MODULES for cls in group},
}
"""{module class: (kind, function of (module, inputs, output) -> how many)}. A class stands for itself, not for its
subclasses, and for its own arithmetic, not for its children's; one that is missing is an error, never a silent 0."""


def handlers_of(model):
    """{module: its entry of HANDLERS}, of all modules of `model`. Weight transforms are free, whatever their class:
    they run once, before inference; a scale folds into the BatchNorm that follows, an offset is one filter more.

    Raises RunError for any other module that HANDLERS does not know.
    """
    convs = [module for module in model.modules() if isinstance(module, BinaryConv2d)]
    transforms = [conv.weight_transform for conv in convs if conv.weight_transform is not None]
    handlers = {part: FREE_HANDLER for transform in transforms for part in transform.modules()}
    for name, module in model.named_modules():
        if module in handlers:
            continue
        kind = type(module)
        if kind not in HANDLERS:
            where = name or "the model itself"
            raise RunError(f"{kind.__name__} ({where}) has no entry in HANDLERS of utils/complexity/rules.py")
        handlers[module] = HANDLERS[kind]
    return handlers
