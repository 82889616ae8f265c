"""Table VI, complexity on ImageNet, and the CIFAR heads against equation (17): the paper's figures beside ours."""

import math

import torch

from models import build_model
from utils.complexity import count
from utils.tables.markdown import markdown_table

FULL_PRECISION = {"weight_bits": 32, "activation_bits": 32}

# Method, the paper's BOPs (1e9), FLOPs (1e8) and OPs (1e8) as printed, and how it is built here; None: only cited.
ROWS = (
    ("IR²Net-D", "1.68", "1.48", "1.74", {"variant": "d"}),
    ("BNN", "1.70", "1.31", "1.58", {"method": "bnn"}),
    ("XNOR-Net", "1.70", "1.33", "1.60", {"method": "xnor"}),
    ("Bi-Real Net", "1.68", "1.49", "1.75", {"method": "bireal"}),
    ("IR²Net-C", "1.68", "1.55", "1.81", {"variant": "c"}),
    ("Real-to-Bin", "1.68", "1.56", "1.82", None),
    ("ReActNet", "1.68", "1.55", "1.81", {"method": "reactnet"}),
    ("IR²Net-B", "1.68", "1.59", "1.85", {"variant": "b"}),
    ("MeliusNet29/2", "-", "-", "1.96", None),
    ("MeliusNet29", "-", "-", "2.14", None),
    ("IR²Net-A", "1.68", "1.70", "1.96", {"variant": "a"}),
    ("FP", "0", "18.3", "18.3", FULL_PRECISION),
    ("IR-Net (not in the paper's table)", "-", "-", "-", {"method": "irnet"}),
    ("SD-BNN (not in the paper's table)", "-", "-", "-", {"method": "sdbnn"}),
)

NOTES = """\
- Rule `paper`: multiply-adds of full-precision convolutions and linear layers + 2 per BatchNorm output + 1 per PReLU or
  Hardtanh output + 1 per input element of the head's poolings. Rule `conv`: the multiply-adds alone.
- OPs come from the figures as printed, BOPs / 64 + FLOPs, as the paper's do: C's unrounded OPs are 1.816.
- IR²Net-A: 1.72 here, 1.70 in the paper. By equation (18) A's head costs 0.127 more than B's, and the paper prints 0.11
  more: no rule that counts those multiply-adds gives both B's 1.59 and A's 1.70.
- BNN, XNOR-Net, Bi-Real Net: our methods on one backbone, IR²Net's without the head, so their counts are one. The paper
  does not say which networks it counts in these rows. Three 1x1 shortcuts that are binary too would make 1.70 BOPs, as
  it has for BNN and XNOR-Net. XNOR-Net's scales fold into BatchNorm, and cost nothing here.
- ReActNet and SD-BNN: their network has no activation after the stem and no BatchNorm before the linear layer; learned
  shifts are additions, which the rule does not price. The paper does not say how its 1.55 for ReActNet was counted.
- FP: our twin with 32/32 bits. Its convolutions and linear layer alone make 18.14; the paper does not say what its 18.3
  counts.
- Cited rows are networks that are not built here."""

HEADS = ("resnet20", "resnet18", "vgg_small")
HEAD_NOTES = """\
Equation (17) sums C x H x W over the outputs of the binary 3x3 convolutions, before a pooling. ResNet-18's head is
above it because C_n / r = 512 / 20 is rounded up to 26 channels; equation (18) with 25.6 gives 0.4895M."""


def _count(dataset, arch, size, rule, **config):
    with torch.device("meta"):  # shapes are all that counts
        return count(build_model(arch, dataset, **config), size, rule)


def scaling_flops(complexity):
    """Q_scale, equation (17): sum of C_i * H_i * W_i over the layers i = 2 ... l_N - 1, one multiplication per output.

    The layers are the binary convolutions, all but the stem and the linear layer; full-precision 1x1 shortcuts are
    none of them. C, H, W are those of the convolution's own output: VGG-Small's are taken before its max-pooling.
    """
    return sum(math.prod(layer.output) for layer in complexity.layers if layer.type == "BinaryConv2d")


def head_flops(complexity):
    """Q_CIRec, equation (18), of the head as built, where m is C_n / r rounded up: for a count by rule `conv`."""
    return sum(layer.flops for layer in complexity.layers if layer.name.startswith("recovery."))


def imagenet_figures(config):
    """Our (BOPs 1e9, FLOPs 1e8, OPs 1e8, FLOPs 1e8 by rule `conv`) at 224x224; OPs from the rounded BOPs and FLOPs."""
    paper, conv = (_count("imagenet", "resnet18", 224, rule, **config) for rule in ("paper", "conv"))
    bops, flops = round(paper.bops / 1e9, 2), round(paper.flops / 1e8, 2)
    return bops, flops, bops * 10 / 64 + flops, conv.flops / 1e8


def _flags(config):
    return " ".join(f"--{name.replace('_', '-')} {value}" for name, value in config.items())


def _imagenet_table():
    header = ("method", "BOPs 1e9", "ours", "FLOPs 1e8", "ours", "ours, rule `conv`", "OPs 1e8", "ours", "FLAGS")
    rows = []
    for method, bops, flops, ops, config in ROWS:
        ours = ["-"] * 4 if config is None else [f"{x:.2f}" for x in imagenet_figures(config)]
        flags = "cited" if config is None else f"`{_flags(config)}`"
        rows.append((method, bops, ours[0], flops, ours[1], ours[3], ops, ours[2], flags))
    return markdown_table(header, rows)


def _head_table():
    rows = []
    for arch in HEADS:
        counts = _count("cifar10", arch, 32, "conv", recovery="cirec")
        rows.append((arch, f"{head_flops(counts) / 1e6:.4f}M", f"{scaling_flops(counts) / 1e6:.4f}M"))
    return markdown_table(("network", "CIRec, equation (18) as built", "scaling factors, equation (17)"), rows)


def markdown():
    """Both tables with their notes; each row's command is the one above the table with its flags."""
    return "\n".join(
        [
            "### Table VI: ResNet-18, ImageNet, 224x224\n",
            "The paper's figure, then ours. Each row: "
            "`python -m utils.complexity --dataset imagenet --arch resnet18 FLAGS`.\n",
            *_imagenet_table(),
            "",
            NOTES,
            "\n### CIFAR heads: extra multiply-adds, 32x32\n",
            "Each row: `python -m utils.complexity --dataset cifar10 --arch NETWORK --recovery cirec --rule conv "
            "--per-layer`.\n",
            *_head_table(),
            "",
            HEAD_NOTES,
        ]
    )
