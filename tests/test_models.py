"""Every network: shapes, gradients, parameter counts, and what is refused."""

import json
import math
from pathlib import Path

import pytest
import torch

from models import ARCHS, CIFAR, METHODS, RECOVERIES, build_model
from models.description import RESNET
from models.resnet import ResNet
from modules.activations import ACTIVATIONS
from modules.binarize import EDE, BiRealSTE, ClipSTE
from modules.conv import BinaryConv2d

BITS = ((1, 1), (1, 32), (32, 1), (32, 32))
LEGAL = [(method, *bits) for method in METHODS for bits in BITS if bits not in METHODS[method].refused]


def awake(model):
    """The model with gains of 1 and RBNN's angle off its start, where by design hardly any gradient gets through."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("theta"):
                parameter.fill_(1.0)
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.fill_(1.0)
    return model


def without_gradient(model):
    """Names of the parameters whose gradient is missing or zero; one hidden unit of SD-BNN's may rest on few images."""
    hidden = ("squeeze.weight", "excite.weight")
    return [
        name for name, p in model.named_parameters() if p.grad is None or not (p.grad.any() or name.endswith(hidden))
    ]


@pytest.mark.parametrize(("method", "weight_bits", "activation_bits"), LEGAL)
@pytest.mark.parametrize("arch", ARCHS[CIFAR])
def test_every_parameter_of_every_cifar_network_gets_a_gradient(arch, method, weight_bits, activation_bits):
    torch.manual_seed(0)
    model = build_model(arch, method=method, weight_bits=weight_bits, activation_bits=activation_bits, recovery="cirec")
    images = torch.randn(2, 3, 32, 32)
    logits = awake(model)(images)
    assert logits.shape == (2, 10)
    logits.square().sum().backward()
    assert without_gradient(model) == []
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(("method", "weight_bits", "activation_bits"), LEGAL)
def test_every_parameter_of_every_imagenet_network_gets_a_gradient(method, weight_bits, activation_bits):
    torch.manual_seed(0)
    bits = {"weight_bits": weight_bits, "activation_bits": activation_bits}
    model = build_model("resnet18", dataset="imagenet", method=method, variant="d", **bits)
    logits = awake(model)(torch.randn(2, 3, 64, 64))
    assert logits.shape == (2, 1000)
    logits.square().sum().backward()
    assert without_gradient(model) == []


@pytest.mark.parametrize("arch", ARCHS[CIFAR])
@pytest.mark.parametrize("recovery", RECOVERIES)
def test_features_and_classify_make_the_network(arch, recovery):
    model = build_model(arch, recovery=recovery).eval()
    images = torch.randn(2, 3, 32, 32)
    maps = model.features(images)
    assert torch.equal(model.classify(maps), model(images))
    assert maps[-1].shape == (2, {"resnet20": 64}.get(arch, 512), *((8, 8) if arch == "resnet20" else (4, 4)))


@pytest.mark.parametrize(
    ("layout", "config"),
    [
        ("ir2net_cifar_resnet20", {"arch": "resnet20", "recovery": "cirec"}),
        ("ir2net_cifar_resnet18", {"arch": "resnet18", "recovery": "cirec"}),
        ("ir2net_cifar_vgg_small", {"arch": "vgg_small", "recovery": "cirec"}),
        ("irnet_cifar_resnet20", {"arch": "resnet20", "method": "irnet"}),
        ("irnet_cifar_vgg_small", {"arch": "vgg_small", "method": "irnet"}),
        ("sdbnn_cifar_resnet20", {"arch": "resnet20", "method": "sdbnn"}),
        ("sdbnn_cifar_resnet18", {"arch": "resnet18", "method": "sdbnn"}),
        ("sdbnn_cifar_vgg_small", {"arch": "vgg_small", "method": "sdbnn"}),
        ("reactnet_imagenet_resnet18", {"arch": "resnet18", "dataset": "imagenet", "method": "reactnet"}),
        ("sdbnn_imagenet_resnet18", {"arch": "resnet18", "dataset": "imagenet", "method": "sdbnn"}),
        ("ir2net_imagenet_a", {"arch": "resnet18", "dataset": "imagenet", "variant": "a"}),
        ("ir2net_imagenet_b", {"arch": "resnet18", "dataset": "imagenet", "variant": "b"}),
        ("ir2net_imagenet_c", {"arch": "resnet18", "dataset": "imagenet", "variant": "c"}),
        ("ir2net_imagenet_d", {"arch": "resnet18", "dataset": "imagenet", "variant": "d"}),
    ],
)
def test_shapes_are_those_of_the_released_networks(layout, config):
    def flat(shape):  # some releases keep a binary convolution's weights as (N, 1)
        return (math.prod(shape),) if len(shape) == 4 or list(shape)[1:] == [1] else tuple(shape)

    layouts = json.loads((Path(__file__).parent / "data" / "released_layouts.json").read_text())
    released = sorted(flat(shape) for _, shape in layouts[layout]["keys"])
    ours = sorted(flat(value.shape) for value in build_model(**config).state_dict().values())
    assert ours == released


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        ({"arch": "resnet20"}, 269_850),
        ({"arch": "resnet20", "recovery": "cirec"}, 272_458),
        ({"arch": "resnet18", "recovery": "cirec"}, 11_207_096),
        ({"arch": "vgg_small", "recovery": "cirec"}, 4_675_834),
    ],
)
def test_parameter_counts(config, parameters):
    assert sum(p.numel() for p in build_model(**config).parameters()) == parameters


@pytest.mark.parametrize("structure", ["bireal", "normal"])
@pytest.mark.parametrize("arch", ["resnet20", "resnet18"])
def test_structures_have_the_same_convolutions(arch, structure):
    model = build_model(arch, structure=structure)
    binary = [m for m in model.modules() if isinstance(m, BinaryConv2d)]
    assert len(binary) == {"resnet20": 18, "resnet18": 16}[arch]
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 10)


def test_every_stage_but_the_first_halves_the_size():
    """Whatever its width: a packed network's head counts on it."""
    network = ResNet((8, 8, 16), (1, 1, 1), num_classes=10, conv=BinaryConv2d, act=ACTIVATIONS["hardtanh"], **RESNET)
    assert [maps.shape[1:] for maps in network.features(torch.randn(2, 3, 32, 32))] == [
        (8, 32, 32), (8, 32, 32), (8, 16, 16), (16, 8, 8),
    ]  # fmt: skip


def test_first_and_last_layers_stay_full_precision():
    for arch in ARCHS[CIFAR]:
        model = build_model(arch, recovery="cirec")
        first = next(m for m in model.modules() if isinstance(m, torch.nn.Conv2d))
        assert not isinstance(first, BinaryConv2d)
        assert not any(isinstance(m, BinaryConv2d) for m in model.recovery.modules())
        assert isinstance(model.fc, torch.nn.Linear)


def test_methods_bring_their_estimators():
    expected = {"bireal": (ClipSTE, BiRealSTE), "bnn": (ClipSTE, ClipSTE), "irnet": (EDE, EDE), "sdbnn": (EDE, EDE)}
    for method, (weight, activation) in expected.items():
        convs = [m for m in build_model("resnet20", method=method).modules() if isinstance(m, BinaryConv2d)]
        assert all(type(c.weight_binarizer) is weight and type(c.activation_binarizer) is activation for c in convs)


def test_resnet18_cirec_gives_512_channels():
    model = build_model("resnet18", recovery="cirec")
    assert model.recovery(model.features(torch.randn(2, 3, 32, 32))).shape == (2, 512, 4, 4)


def test_binary_and_full_precision_twins_share_their_shapes():
    binary, twin = build_model("resnet20"), build_model("resnet20", weight_bits=32, activation_bits=32)
    assert {k: v.shape for k, v in binary.state_dict().items()} == {k: v.shape for k, v in twin.state_dict().items()}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"arch": "resnet50"}, "arch"),
        ({"arch": "resnet20", "method": "mine"}, "method"),
        ({"arch": "resnet20", "variant": "a"}, "variant"),
        ({"arch": "resnet20", "recovery": "more"}, "recovery"),
        ({"arch": "resnet20", "ratio": 2}, "cirec"),
        ({"arch": "resnet20", "weight_bits": 4}, "bits"),
        ({"arch": "vgg_small", "structure": "normal"}, "structure"),
        ({"arch": "vgg_small", "image_size": 30}, "multiple of 8"),
        ({"arch": "vgg_small", "image_size": 0}, "multiple of 8"),
        ({"arch": "vgg_small", "image_size": -8}, "multiple of 8"),
        ({"arch": "resnet20", "num_classes": 0}, "one class"),
        ({"arch": "resnet20", "recovery": "cirec", "groups": 0}, "groups"),
        ({"arch": "resnet20", "recovery": "cirec", "groups": "depth"}, "groups"),
        ({"arch": "resnet20", "method": "xnor", "weight_bits": 32}, "bnn"),
        ({"arch": "resnet20", "method": "reactnet", "activation_bits": 32}, "reactnet"),
        ({"arch": "resnet18", "dataset": "imagenet", "variant": "a", "ratio": 2}, "variant"),
    ],
)
def test_what_does_not_exist_is_refused_with_a_reason(config, message):
    with pytest.raises(ValueError, match=message):
        build_model(**config)


@pytest.mark.parametrize("arch", ARCHS[CIFAR])
def test_bfloat16_leaves_batchnorm_and_logits_in_float32(arch):
    model = build_model(arch, recovery="cirec")
    with torch.autocast("cpu", torch.bfloat16):
        maps = model.features(torch.randn(2, 3, 32, 32))
        logits = model.classify(maps)
    assert maps[-1].dtype == torch.bfloat16
    assert logits.dtype == torch.float32
    logits.sum().backward()
    norms = [module for module in model.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)]
    assert {t.dtype for norm in norms for t in (norm.weight.grad, norm.running_mean, norm.running_var)} == {
        torch.float32
    }


@pytest.mark.parametrize("arch", ["resnet20", "resnet18"])
def test_gradients_stay_channels_last_through_the_backbone(arch):
    """BatchNorm's backward pass takes several times as long where its gradient lies otherwise than its input."""
    model = build_model(arch, weight_bits=32, activation_bits=32).to(memory_format=torch.channels_last)
    seen = []

    def watch(module, inputs, output):
        output.register_hook(lambda grad: seen.append(grad.is_contiguous(memory_format=torch.channels_last)))

    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.register_forward_hook(watch)
    model(torch.randn(4, 3, 32, 32).to(memory_format=torch.channels_last)).sum().backward()
    assert len(seen) >= 19
    assert all(seen)
