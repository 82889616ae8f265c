"""The counter: Table VI, equations (17) and (18), other people's counters, and a model that stays as it was."""

import itertools
import json
import re
import sys
from collections import Counter

import pytest
import torch
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from models import ARCHS, CIFAR, IMAGENET, METHODS, build_model
from models.inference import pack_network
from models.methods import methods_of
from modules.conv import BinaryConv2d, weights_binarized_once
from modules.weights import ChannelDistribution
from utils.command import RunError, UsageError
from utils.complexity import __main__ as command
from utils.complexity import count
from utils.complexity.rules import FREE, HANDLERS, handlers_of
from utils.tables import __main__ as tables
from utils.tables import table6

BITS = ((1, 1), (1, 32), (32, 1), (32, 32))
LEGAL = [(method, *bits) for method in METHODS for bits in BITS if bits not in METHODS[method].refused]
BOPS = 1_676_279_808  # 16 binary 3x3 convolutions of ResNet-18 at 224x224


def build(*args, **kwargs):
    with torch.device("meta"):
        return build_model(*args, **kwargs)


def resnet18(**kwargs):
    return build("resnet18", dataset="imagenet", **kwargs)


def multiply_adds(model, size):
    """Convolutions and linear layers, by PyTorch's own counter, which counts two operations each."""
    model.eval().requires_grad_(False)  # its hooks fail on views of parameters
    # What weights go through before their sign is done once, before inference.
    with weights_binarized_once(model), FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, size, size, device="meta"))
    return counter.get_total_flops() // 2


@pytest.mark.parametrize(
    ("config", "paper", "conv"),
    [
        ({"variant": "a"}, 1.72, 1.6348),  # the paper prints 1.70
        ({"variant": "b"}, 1.59, 1.5075),
        ({"variant": "c"}, 1.55, 1.4693),
        ({"variant": "d"}, 1.48, 1.3932),
        ({}, 1.45, 1.3779),
    ],
)
def test_table6_to_the_printed_digit(config, paper, conv):
    model = resnet18(**config)
    by_paper, by_conv = count(model, 224), count(model, 224, "conv")
    assert by_paper.bops == by_conv.bops == BOPS
    assert round(by_paper.flops / 1e8, 2) == paper
    assert round(by_conv.flops / 1e8, 4) == conv
    assert by_paper.ops == by_paper.bops / 64 + by_paper.flops


def test_paper_rule_term_by_term():
    convs, norms, acts, pools = 1.50751488e8, 2_509_312, 2_333_184, 1_154_048
    assert count(resnet18(variant="b"), 224).flops == convs + 2 * norms + acts + pools


@pytest.mark.parametrize("row", [row for row in table6.ROWS if row[0] in {"IR²Net-B", "IR²Net-C", "IR²Net-D"}])
def test_rows_of_table6_equal_the_papers(row):
    bops, flops, ops, _ = table6.imagenet_figures(row[4])
    assert (f"{bops:.2f}", f"{flops:.2f}", f"{ops:.2f}") == row[1:4]


NETWORKS = [(dataset, arch, *legal) for dataset in (CIFAR, IMAGENET) for arch in ARCHS[dataset] for legal in LEGAL]
# ResNet-34 is ResNet-18 with more of the same blocks: the methods that it was published with are enough.
NETWORKS = [network for network in NETWORKS if network[1] != "resnet34" or network[2] in ("bireal", "irnet")]


@pytest.mark.parametrize(("dataset", "arch", "method", "weight_bits", "activation_bits"), NETWORKS)
def test_multiply_adds_agree_with_pytorchs_counter(dataset, arch, method, weight_bits, activation_bits):
    model = build(arch, dataset, method, weight_bits, activation_bits, recovery="cirec")
    size = 64 if dataset == IMAGENET else 32
    counts = count(model, size, "conv")
    expected = multiply_adds(model, size)
    if method == "adabin" and weight_bits == 1:  # the offsets are one filter of ones more
        binary = [layer for layer in counts.layers if layer.type == "BinaryConv2d"]
        expected += sum((layer.bops + layer.flops) // (layer.output[0] + 1) for layer in binary)
    assert counts.bops + counts.flops == expected
    assert (counts.bops > 0) == (weight_bits == activation_bits == 1)


@pytest.mark.parametrize("config", [{}, {"recovery": "irec"}, *({"variant": v} for v in "abcd")])
def test_multiply_adds_of_every_head_agree_with_pytorchs_counter(config):
    model = resnet18(**config)
    counts = count(model, 224, "conv")
    assert counts.bops + counts.flops == multiply_adds(model, 224)


def test_full_precision_resnet18_differs_from_torchvisions_in_the_norm_of_its_features_alone(monkeypatch):
    """torchvision has no BatchNorm before its linear layer. Our shortcuts pool before their 1x1 convolution, where
    torchvision's stride: the same multiply-adds, and neither rule prices the pooling."""
    for module in (torchvision.models.ResNet, torchvision.models.resnet.BasicBlock, nn.AdaptiveAvgPool2d):
        monkeypatch.setitem(HANDLERS, module, (FREE, lambda *_: 0))
    with torch.device("meta"):
        theirs = count(torchvision.models.resnet18(), 224)
    ours = count(resnet18(weight_bits=32, activation_bits=32, structure="normal", activation="relu"), 224)

    def costs(counts):
        kinds = {"BinaryConv2d": "Conv2d"}  # 32/32 bits
        return Counter((kinds.get(x.type, x.type), x.output, x.flops, x.params) for x in counts.layers)

    assert costs(theirs) - costs(ours) == Counter()
    assert costs(ours) - costs(theirs) == Counter({("BatchNorm1d", (512,), 2 * 512, 2 * 512): 1})
    assert theirs.params == 11_689_512
    assert ours.bops == theirs.bops == ours.params_1bit == 0


def test_bireal_twin_differs_from_the_normal_one_in_its_activations_alone():
    bits = {"weight_bits": 32, "activation_bits": 32}
    bireal, normal = count(resnet18(**bits), 224), count(resnet18(**bits, structure="normal", activation="relu"), 224)
    prelu = sum(layer.flops for layer in bireal.layers if layer.type == "PReLU")
    assert bireal.flops - normal.flops == prelu == 2_308_096  # ReLU is free
    assert count(resnet18(**bits), 224, "conv").flops == 1_814_073_344


@pytest.mark.parametrize(
    ("arch", "head", "scaling"),
    [("resnet20", 0.1587, 0.1720), ("resnet18", 0.4971, 0.4915), ("vgg_small", 0.2353, 0.3277)],
)
def test_cifar_heads_beside_scaling_factors(arch, head, scaling):
    counts = count(build(arch, recovery="cirec"), 32, "conv")
    assert round(table6.head_flops(counts) / 1e6, 4) == head
    assert round(table6.scaling_flops(counts) / 1e6, 4) == scaling
    assert counts.flops - count(build(arch), 32, "conv").flops == table6.head_flops(counts)


def test_resnet18_head_is_within_scaling_factors_before_m_is_rounded_up():
    channels, m, positions = 512, 512 / 20, 4 * 4
    assert round((m * 1024 + (channels - m) * 9) * positions / 1e6, 4) == 0.4895


@pytest.mark.parametrize(("weight_bits", "activation_bits"), [(1, 32), (32, 1), (32, 32)])
def test_convolutions_that_are_not_binary_on_both_sides_count_as_flops(weight_bits, activation_bits):
    counts = count(build("resnet20", weight_bits=weight_bits, activation_bits=activation_bits), 32, "conv")
    binary = count(build("resnet20"), 32, "conv")
    assert counts.bops == 0
    assert counts.flops == binary.bops + binary.flops
    assert counts.params_1bit == (binary.params_1bit if weight_bits == 1 else 0)
    assert f"of {weight_bits}/{activation_bits} bits as FLOPs" in counts.convolutions


def test_parameters_and_size():
    counts = count(build("resnet20"), 32)
    one_bit = 9 * (6 * 16 * 16 + 16 * 32 + 5 * 32 * 32 + 32 * 64 + 5 * 64 * 64)
    channels = 16 * 7 + 32 * 6 + 64 * 6 + 64  # of all BatchNorms
    other = 3 * 16 * 9 + 64 * 10 + 10 + 2 * channels
    assert (counts.params, counts.params_1bit) == (one_bit + other, one_bit)
    assert counts.model_mb == (one_bit / 8 + 4 * (other + 2 * channels)) / 1e6


def test_what_only_training_needs_is_no_part_of_the_packed_size():
    rotated = build("resnet20", method="rbnn")
    buffers = sum(b.numel() for name, b in rotated.named_buffers() if "weight_transform" in name)
    plain, counts = count(build("resnet20", weight_bits=1), 32), count(rotated, 32)
    assert buffers > 0
    assert counts.model_mb - plain.model_mb == pytest.approx(4 * (counts.params - plain.params) / 1e6)


def test_cost_follows_the_image_size():
    model = build("resnet20")
    square, wide = count(model, 32, "conv"), count(model, (32, 64), "conv")
    linear = 640
    assert wide.bops == 2 * square.bops
    assert wide.flops - linear == 2 * (square.flops - linear)
    assert wide.input_size == (32, 64)
    assert count(model, (32, 32), "conv").flops == square.flops


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_model_stays_as_it_was(dtype):
    torch.manual_seed(0)
    model = build_model("resnet20", method="sdbnn", recovery="cirec").to(dtype)
    model.stages[0].eval()  # modes differ
    hook = model.fc.register_forward_hook(lambda *_: None)
    state = {name: t.clone() for name, t in model.state_dict().items()}
    buffers = [name for name, _ in model.named_buffers()]
    modes = [module.training for module in model.modules()]
    hooks = [len(module._forward_hooks) for module in model.modules()]
    rng = torch.get_rng_state()
    images = torch.ones(2, 3, 32, 32, dtype=dtype)

    counts = count(model, 32)

    assert torch.equal(torch.get_rng_state(), rng)
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(t, state[name]) and t.dtype == state[name].dtype for name, t in model.state_dict().items())
    assert [name for name, _ in model.named_buffers()] == buffers
    assert [module.training for module in model.modules()] == modes
    assert [len(module._forward_hooks) for module in model.modules()] == hooks
    assert not any(hasattr(module, "total_ops") or hasattr(module, "total_params") for module in model.modules())
    assert {p.device.type for p in model.parameters()} == {"cpu"}
    hook.remove()
    fresh = build_model("resnet20", method="sdbnn", recovery="cirec").to(dtype)
    fresh.load_state_dict(state)
    assert torch.equal(model.eval()(images), fresh.eval()(images))
    assert counts == count(fresh, 32)


class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return x * self.factor


class Unpriced(nn.BatchNorm2d):
    """A subclass may compute something else: its base's handler must not stand in for it."""


@pytest.mark.parametrize("module", [Scale(), nn.GELU(), Unpriced(16)], ids=lambda m: type(m).__name__)
def test_unknown_modules_are_errors_that_name_them(module):
    model = build_model("resnet20")
    model.stages[0][1].act = module
    with pytest.raises(RunError, match=rf"{type(module).__name__} \(stages\.0\.1\.act\)"):
        count(model, 32)
    assert not any("total_ops" in name for name in model.state_dict())


def test_weights_of_other_values_than_signs_are_neither_counted_nor_packed():
    class Ternary(nn.Module):
        def forward(self, w):
            return w.sign() * (w.abs() > w.abs().mean())

    model = build_model("resnet20").eval()
    model.stages[0][1].conv.weight_binarizer = Ternary()
    with pytest.raises(RunError, match=r"Ternary \(stages\.0\.1\.conv\.weight_binarizer\) has no entry"):
        count(model, 32)
    with pytest.raises(ValueError, match="no packed form of weights by Ternary"):
        pack_network(model)


def test_offsets_of_groups_take_a_filter_each():
    conv = BinaryConv2d(16, 32, 3, padding=1, groups=4, bias=False, weight_transform=ChannelDistribution)
    conv = nn.Sequential(nn.Conv2d(3, 16, 1, bias=False), conv, nn.BatchNorm2d(32, track_running_stats=False))
    assert count(conv, 16).bops == (32 + 4) * 16 * 16 * 4 * 9


def test_modules_that_stand_in_two_places_are_errors():
    model = build_model("resnet20")
    model.stages[0][1].act = model.act1
    with pytest.raises(RunError, match=r"act1 and stages\.0\.1\.act are one Hardtanh"):
        count(model, 32)


def test_every_module_of_every_network_is_known():
    for family, archs in ARCHS.items():
        for arch, method in itertools.product(archs, methods_of(family)):
            handlers_of(build(arch, family, method, recovery="irec"))  # an error if one is not


def test_other_errors(monkeypatch):
    with pytest.raises(UsageError, match="does not run on images"):
        count(build("vgg_small"), 64)
    with pytest.raises(ValueError, match="rule must be one of paper, conv"):
        count(build("resnet20"), 32, "mine")
    monkeypatch.setitem(sys.modules, "thop", None)
    with pytest.raises(RunError, match="counting needs thop"):
        count(build("resnet20"), 32)


def command_json(capsys, *argv):
    command.main([*argv, "--json"])
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_command_json(capsys):
    flags = ("--dataset", "imagenet", "--arch", "resnet18", "--variant", "b")
    result = command_json(capsys, *flags, "--rule", "paper")
    keys = {"bops", "flops", "ops", "params", "params_1bit", "model_mb", "rule", "input_size"}
    assert result.keys() == keys | {"convolutions"}
    assert (result["bops"], result["rule"], result["input_size"]) == (BOPS, "paper", 224)
    assert round(result["flops"] / 1e8, 2) == 1.59

    detailed = command_json(capsys, *flags, "--per-layer", "--input-size", "64")
    assert detailed["input_size"] == 64
    for key in ("bops", "flops", "params", "params_1bit"):
        assert sum(layer[key] for layer in detailed["layers"]) == detailed[key]


def test_command_text(capsys):
    command.main(["--dataset", "cifar100", "--arch", "vgg_small", "--weight-bits", "32", "--per-layer"])
    out = capsys.readouterr().out
    assert "3x32x32" in out
    assert "rule        paper: FLOPs = 1 per multiply-add" in out
    assert "5 of 32/1 bits as FLOPs" in out
    assert re.search(r"^fc +Linear +32/32 +100 ", out, re.MULTILINE)


def test_one_line_for_a_training_run():
    line = str(count(build("resnet20"), 32))
    assert "\n" not in line
    assert "18 of 1/1 bits as BOPs, 1 of 32/32 bits as FLOPs" in line


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ((), "give --arch"),
        (("--dataset", "imagenet", "--arch", "resnet20"), "no arch 'resnet20' for imagenet"),
        (("--arch", "resnet20", "--variant", "a"), "no variant 'a' for cifar"),
        (("--arch", "vgg_small", "--input-size", "20"), "multiple of 8"),
        (("--arch", "resnet20", "--input-size", "0"), "must be 1 or more"),
        (("--dataset", "imagenet", "--arch", "resnet18", "--input-size", "4"), "does not run on images (3, 4, 4)"),
    ],
)
def test_wrong_usage_is_one_line(fails, argv, message):
    status, line = fails(command.main, *argv)
    assert status == 2
    assert message in line


def test_table6_prints_every_row(capsys):
    tables.main(["6"])
    out = capsys.readouterr().out
    for method, *_ in table6.ROWS:
        assert f"| {method} |" in out
    assert "| IR²Net-A | 1.68 | 1.68 | 1.70 | 1.72 | 1.63 | 1.96 | 1.98 | `--variant a` |" in out
    assert "| Real-to-Bin | 1.68 | - | 1.56 | - | - | 1.82 | - | cited |" in out
    assert "| resnet20 | 0.1587M | 0.1720M |" in out
    for flags in re.findall(r"`(--.*?)`", out):
        command.build_parser().parse_args(["--arch", "resnet18", *flags.split()])
