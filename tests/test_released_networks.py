"""Released networks compute what the released code computed: recorded logits, and plain formulas for what has none."""

import pytest
import torch
import torch.nn.functional as F
from released_files import LAYOUTS, RECORDED, choices, fill, images, save

from utils.checkpoint import load_model


@pytest.mark.parametrize("name", RECORDED)
def test_logits_are_those_the_released_code_gave(name, tmp_path):
    path = save(tmp_path, {"state_dict": {f"module.{key}": value for key, value in fill(name).items()}})
    model = load_model(path, *choices(name))
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    with torch.inference_mode():
        logits = model(images(name))[:, :10]
    torch.testing.assert_close(logits, torch.tensor(LAYOUTS[name]["logits_first10"]).double(), rtol=1e-6, atol=0)


def norm(state, name, x):
    """BatchNorm in evaluation mode."""
    mean, var, weight, bias = (state[f"{name}.{leaf}"] for leaf in ("running_mean", "running_var", "weight", "bias"))
    return F.batch_norm(x, mean, var, weight, bias)


def sign(x):
    return 1.0 - 2.0 * (x < 0).double()


def libra(w):
    """IR-Net's binary weights."""
    w = w - w.mean((1, 2, 3), keepdim=True)
    w = w / w.flatten(1).std(1).view(-1, 1, 1, 1)
    return sign(w) * 2 ** torch.log2(w.abs().mean((1, 2, 3), keepdim=True)).round()


def widen(x, channels):
    """CIFAR ResNet-20's shortcut where the size halves."""
    side = (channels - x.shape[1]) // 2
    return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, side, side)) if side else x


def irnet_cifar_1w32a(s, x):
    """No activation after the stem, a ReLU between the last BatchNorm and the linear layer."""
    x = norm(s, "bn1", F.conv2d(x, s["conv1.weight"], padding=1))
    for block in (f"layer{i}.{j}" for i in (1, 2, 3) for j in range(3)):
        w1, w2 = libra(s[f"{block}.conv1.weight"]), libra(s[f"{block}.conv2.weight"])
        stride = w1.shape[0] // x.shape[1]
        out = F.relu(norm(s, f"{block}.bn1", F.conv2d(x, w1, stride=stride, padding=1)))
        x = F.relu(norm(s, f"{block}.bn2", F.conv2d(out, w2, padding=1)) + widen(x, w1.shape[0]))
    return F.linear(F.relu(norm(s, "bn2", x.mean((2, 3)))), s["linear.weight"], s["linear.bias"])


def irnet_imagenet(s, x, binary_activations=True, depths=(2, 2, 2, 2)):
    """1W1A: Hardtanh, a shortcut around every convolution; 1W32A: ReLU, one around every two. bn3 has no part."""
    act = F.hardtanh if binary_activations else F.relu
    x = F.max_pool2d(act(norm(s, "bn1", F.conv2d(x, s["conv1.weight"], stride=2, padding=3))), 3, 2, 1)
    for block in (f"layer{i + 1}.{j}" for i, depth in enumerate(depths) for j in range(depth)):
        w1, w2 = libra(s[f"{block}.conv1.weight"]), libra(s[f"{block}.conv2.weight"])
        stride, shortcut = w1.shape[0] // x.shape[1], x
        if stride > 1:
            shortcut = F.conv2d(x, s[f"{block}.downsample.0.weight"], stride=stride)
            shortcut = norm(s, f"{block}.downsample.1", shortcut)
        if binary_activations:
            x = act(norm(s, f"{block}.bn1", F.conv2d(sign(x), w1, stride=stride, padding=1)) + shortcut)
            x = act(norm(s, f"{block}.bn2", F.conv2d(sign(x), w2, padding=1)) + x)
        else:
            out = act(norm(s, f"{block}.bn1", F.conv2d(x, w1, stride=stride, padding=1)))
            x = act(norm(s, f"{block}.bn2", F.conv2d(out, w2, padding=1)) + shortcut)
    return F.linear(norm(s, "bn2", x.mean((2, 3))), s["fc.weight"], s["fc.bias"]).log_softmax(1)


def sdbnn_imagenet(s, x, binary_weights=True):
    """Nothing between the stem's BatchNorm and its pooling, nor before the linear layer; flat weights."""
    x = F.max_pool2d(norm(s, "bn1", F.conv2d(x, s["conv1.weight"], stride=2, padding=3)), 3, 2, 1)
    for block in (f"layer{i}.{j}" for i in (1, 2, 3, 4) for j in range(4)):
        alpha = torch.sigmoid(s[f"{block}.binary_conv.alpha"]).view(-1, 1, 1, 1)
        w = s[f"{block}.binary_conv.weights"].view(len(alpha), x.shape[1], 3, 3)
        if binary_weights:
            w = sign(w + 0.01 * alpha * w.mean((1, 2, 3), keepdim=True))
        gate = F.linear(x.mean((2, 3)), s[f"{block}.binary_conv.beta.fc.0.weight"]).relu()
        gate = torch.sigmoid(F.linear(gate, s[f"{block}.binary_conv.beta.fc.2.weight"]))[:, :, None, None]
        stride, shortcut = len(alpha) // x.shape[1], x
        if stride > 1:
            shortcut = F.conv2d(F.avg_pool2d(x, 2), s[f"{block}.downsample.1.weight"])
            shortcut = norm(s, f"{block}.downsample.2", shortcut)
        out = norm(s, f"{block}.bn1", F.conv2d(sign(x + gate), w, stride=stride, padding=1)) + shortcut
        x = F.prelu(out, s[f"{block}.prelu.weight"])
    return F.linear(x.mean((2, 3)), s["fc.weight"], s["fc.bias"])


def residual(s, x, conv, act, shortcut, depths, per_conv, last, stem_act=True):
    """A network of blocks of two convolutions; conv(s, prefix, x, stride), act(s, prefix, x), shortcut(s, block, x, C).

    per_conv: a shortcut around each convolution, or around both. last: the linear layer's name.
    """
    large = s["conv1.weight"].shape[-1] == 7
    x = norm(s, "bn1", F.conv2d(x, s["conv1.weight"], stride=2 if large else 1, padding=3 if large else 1))
    x = act(s, "nonlinear1", x) if stem_act else x
    x = F.max_pool2d(x, 3, 2, 1) if large else x
    for block in (f"layer{i + 1}.{j}" for i, depth in enumerate(depths) for j in range(depth)):
        width = s[f"{block}.conv1.weight"].shape[0]
        stride, around = width // x.shape[1], x
        if stride > 1:
            around = shortcut(s, block, x, width)
        x = norm(s, f"{block}.bn1", conv(s, f"{block}.conv1", x, stride))
        x = act(s, f"{block}.nonlinear1", x + around if per_conv else x)
        around = x if per_conv else around
        x = norm(s, f"{block}.bn2", conv(s, f"{block}.conv2", x, 1)) + around
        x = act(s, f"{block}.nonlinear2", x)
    return F.linear(norm(s, "bn2", x.mean((2, 3))), s[f"{last}.weight"], s[f"{last}.bias"])


def hardtanh(s, name, x):
    return F.hardtanh(x)


def two_slopes(s, name, x):
    pos, neg = (s[f"{name}.{leaf}_scale"].view(-1, 1, 1) for leaf in ("pos", "neg"))
    return pos * x.clamp(min=0) + neg * x.clamp(max=0)


def rotated(s, name, x, stride):
    w = s[f"{name}.weight"]
    w = (w - w.mean((1, 2, 3), keepdim=True)) / w.flatten(1).std(1).view(-1, 1, 1, 1)
    left, right = s[f"{name}.R1"], s[f"{name}.R2"]
    turned = torch.stack([left.T @ v.reshape(len(left), len(right)) @ right for v in w]).view_as(w)
    w = sign(w + s[f"{name}.rotate"].sin().abs() * (turned - w))
    x = sign(x - x.mean((1, 2, 3), keepdim=True))
    return F.conv2d(x, w, stride=stride, padding=w.shape[-1] // 2) * s[f"{name}.alpha"]


def clamped(s, name, x, stride):
    w = s[f"{name}.weight"]
    return F.conv2d(sign(x), sign(w - w.mean((1, 2, 3), keepdim=True)), stride=stride, padding=1) * s[f"{name}.alpha"]


def two_values(s, name, x, stride):
    w, alpha, beta = s[f"{name}.weight"], s[f"{name}.binary_a.alpha_a"], s[f"{name}.binary_a.beta_a"]
    mean, std = w.mean((1, 2, 3), keepdim=True), w.flatten(1).std(1, correction=0).view(-1, 1, 1, 1)
    return F.conv2d(alpha * (sign(x - beta) + beta), sign(w - mean) * std + mean, stride=stride, padding=1)


def averaged(s, block, x, width):
    return F.pad(F.avg_pool2d(x, 2), (0, 0, 0, 0, (width - x.shape[1]) // 2, (width - x.shape[1]) // 2))


def strided(s, block, x, width):
    name = "shortcut" if f"{block}.shortcut.0.weight" in s else "downsample"
    return norm(s, f"{block}.{name}.1", F.conv2d(x, s[f"{block}.{name}.0.weight"], stride=2))


def pooled(s, block, x, width):
    return norm(s, f"{block}.downsample.2", F.conv2d(F.avg_pool2d(x, 2), s[f"{block}.downsample.1.weight"]))


def binary(s, block, x, width):
    return norm(s, f"{block}.shortcut.1", rotated(s, f"{block}.shortcut.0", x, 2))


SMALL20, WIDE18 = (3, 3, 3), (2, 2, 2, 2)
LATER = {
    # layout: conv, act, shortcut, depths, per_conv, last, stem_act
    "rbnn_cifar_resnet20": (rotated, hardtanh, lambda s, b, x, c: widen(x, c), SMALL20, False, "linear"),
    "rbnn_cifar_resnet20_bireal": (rotated, hardtanh, lambda s, b, x, c: widen(x, c), SMALL20, True, "linear"),
    "rbnn_cifar_resnet18": (rotated, hardtanh, binary, WIDE18, False, "linear", False),
    "rbnn_imagenet_resnet34": (rotated, hardtanh, strided, (3, 4, 6, 3), True, "fc"),
    "recu_cifar_resnet20": (clamped, hardtanh, averaged, SMALL20, True, "linear"),
    "recu_cifar_resnet18": (clamped, hardtanh, averaged, WIDE18, False, "linear", False),
    "recu_imagenet_resnet18": (clamped, hardtanh, strided, WIDE18, True, "fc"),
    "adabin_cifar_resnet18": (two_values, two_slopes, strided, WIDE18, True, "linear"),
    "adabin_imagenet_resnet18": (two_values, two_slopes, pooled, WIDE18, True, "fc"),
}


@pytest.mark.parametrize("name", LATER)
def test_later_releases_are_the_networks_of_their_papers(name, tmp_path):
    state, x = fill(name), images(name, 32 if "cifar" in name else 64)
    model = load_model(save(tmp_path, state), *choices(name))
    with torch.inference_mode():
        torch.testing.assert_close(model(x), residual(state, x, *LATER[name]), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "forward", "said"),
    [
        ("irnet_cifar_resnet20_1w32a", irnet_cifar_1w32a, (1, 32)),
        ("irnet_imagenet_resnet18", irnet_imagenet, (1, 1)),
        ("irnet_imagenet_resnet18_1w32a", lambda s, x: irnet_imagenet(s, x, False), (1, 32)),
        ("irnet_imagenet_resnet34", lambda s, x: irnet_imagenet(s, x, depths=(3, 4, 6, 3)), (1, 1)),
        ("sdbnn_imagenet_resnet18", sdbnn_imagenet, (None, None)),
        ("sdbnn_imagenet_resnet18", lambda s, x: sdbnn_imagenet(s, x, False), (32, 1)),
    ],
)
def test_quirks_of_a_release_are_kept(name, forward, said, tmp_path):
    state, x = fill(name), images(name, 32 if "cifar" in name else 64)
    if "bn2.weight" in state:
        state["bn2.weight"][::2] *= -1  # features of both signs, so that an activation behind them shows
    model = load_model(save(tmp_path, state), *said)
    with torch.inference_mode():
        torch.testing.assert_close(model(x), forward(state, x), rtol=1e-9, atol=1e-9)
