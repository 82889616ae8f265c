"""What follows the training's progress, and what has a scale or an offset of its own: values and every gradient.

The expected ones come from plain formulas in float64, differentiated by autograd: `surrogate(...)` stands for a sign
whose gradient is written down as a polynomial or hyperbolic function.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models import build_model
from models.methods import CIFAR, METHODS
from modules.activations import ImageScale, ImageStandardization, Maxout
from modules.binarize import AdaptiveSign, IdentitySTE, TrainingAwareSTE
from modules.conv import BinaryConv2d
from modules.progress import set_progress, start_epoch
from modules.weights import ChannelDistribution, RectifiedClamp, Rotation

STAGES = (0.0, 0.3, 0.8, 0.99)


def sign(x):
    return torch.where(x >= 0, 1.0, -1.0).to(x.dtype)


def surrogate(x, slope):
    """sign(x), with slope(x) as its gradient."""
    return sign(x).detach() + slope(x.detach()) * (x - x.detach())


def bireal(x):
    return surrogate(x, lambda v: (2 - 2 * v.abs()).clamp(min=0))


def triangle(x, progress, floor=0.0):
    t = max(1e-2 * (10 / 1e-2) ** progress, floor)
    k = 1 if floor else max(1 / t, 1)
    return surrogate(x, lambda v: (k * (math.sqrt(2) * t - t**2 * v.abs())).clamp(min=0))


def standard(x, dims=(1, 2, 3)):
    return (x - x.mean(dims, keepdim=True)) / x.var(dims, keepdim=True).sqrt()


def plain_rbnn(conv, x, progress):
    own = conv.weight_transform
    w = standard(conv.weight)
    turned = torch.stack([own.left.T @ v.reshape(len(own.left), -1) @ own.right for v in w]).view_as(w).detach()
    w = w + own.theta.sin().abs() * (turned - w)
    out = F.conv2d(triangle(standard(x), progress, floor=1.0), triangle(w, progress), padding=1)
    return out * own.alpha


def plain_recu(conv, x, progress):
    own = conv.weight_transform
    w = conv.weight - conv.weight.mean((1, 2, 3), keepdim=True)
    w = 2 * math.sqrt(2) * w / (w.var((1, 2, 3), keepdim=True) + 1e-5).sqrt()
    tau = 0.85 + 0.14 * (math.exp(progress) - 1) / (math.e - 1)
    bound = -w.abs().mean().detach() * math.log(2 - 2 * tau)
    w = torch.where(w.abs() <= bound, w, w.sign().detach() * bound)
    w = surrogate(w, torch.ones_like)
    if conv.training:
        x = x / (x.var((1, 2, 3), keepdim=True) + 1e-5).sqrt()
    return F.conv2d(bireal(x), w, padding=1) * own.alpha


def plain_adabin(conv, x, progress):
    t = 1e-3 * (10 / 1e-3) ** progress
    k = max(1 / t, 1)
    beta = conv.weight.mean((1, 2, 3), keepdim=True)
    alpha = (conv.weight - beta).square().mean((1, 2, 3), keepdim=True).sqrt()
    w = surrogate((conv.weight - beta) / alpha, lambda v: k * t * (1 - torch.tanh(t * v) ** 2)) * alpha + beta
    own = conv.activation_binarizer
    return F.conv2d(own.alpha * (bireal((x - own.beta) / own.alpha) + own.beta), w, padding=1)


def disturb(conv):
    """Parameters as after some training: not where they start."""
    with torch.no_grad():
        conv.weight.add_(0.05)
        for name, value in conv.named_parameters():
            if name.endswith(("alpha", "beta", "theta")):
                value.add_(torch.randn_like(value) * 0.2)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("progress", STAGES)
@pytest.mark.parametrize(("method", "plain"), [("rbnn", plain_rbnn), ("recu", plain_recu), ("adabin", plain_adabin)])
def test_outputs_and_all_gradients_are_the_formulas(method, plain, progress, training):
    torch.manual_seed(0)
    conv = METHODS[method].conv_factory(CIFAR, 1, 1)(6, 8, 3, padding=1).double().train(training)
    disturb(conv)
    set_progress(conv, progress)
    start_epoch(conv)
    x = (torch.randn(3, 6, 7, 5, dtype=torch.double) * 0.7 + 0.1).requires_grad_()
    leaves = {"input": x, **dict(conv.named_parameters())}
    cotangent = torch.randn(3, 8, 7, 5, dtype=torch.double)
    ours, theirs = conv(x), plain(conv, x, progress)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    got, expected = (torch.autograd.grad((out * cotangent).sum(), list(leaves.values())) for out in (ours, theirs))
    for name, mine, wanted in zip(leaves, got, expected):
        assert wanted.abs().max() > 0, name
        torch.testing.assert_close(mine, wanted, rtol=1e-6, atol=1e-8, msg=lambda text, name=name: f"{name}: {text}")


def test_training_aware_estimator():
    points = torch.tensor([-200.0, -2.0, -0.5, 0.0, 0.5, 1.0, 200.0], dtype=torch.double)
    for floor in (0.0, 1.0):
        for progress in STAGES:
            estimator = TrainingAwareSTE(floor=floor).double()
            assert estimator.set_progress(progress) == {"sign_t": pytest.approx(1e-2 * 1000**progress)}
            x, y = (points.clone().requires_grad_() for _ in range(2))
            estimator(x).sum().backward()
            triangle(y, progress, floor).sum().backward()
            torch.testing.assert_close(x.grad, y.grad, rtol=1e-6, atol=1e-8)
    assert not TrainingAwareSTE().state_dict(), "k and t are no part of a checkpoint"


def test_identity_and_adaptive_sign():
    x = torch.tensor([-3.0, -0.0, 0.0, 3.0], requires_grad=True)
    out = IdentitySTE()(x)
    out.sum().backward()
    assert out.tolist() == [-1, 1, 1, 1]
    assert x.grad.tolist() == [1] * 4
    estimator = AdaptiveSign()
    assert torch.equal(estimator(x), out), "it starts as plain signs"
    assert not hasattr(estimator, "returns_signs")


def test_maxout_is_two_slopes():
    act = Maxout(3)
    x = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(act(x), F.leaky_relu(x, 0.25))
    with torch.no_grad():
        act.pos[1], act.neg[1] = -0.5, -2.0
    torch.testing.assert_close(act(x)[:, 1], -0.5 * x[:, 1].clamp(min=0) - 2.0 * x[:, 1].clamp(max=0))


def test_statistics_of_images():
    x = torch.randn(2, 3, 5, 5) * 4 + 1
    scaled = ImageScale(3)
    torch.testing.assert_close(scaled(x).var((1, 2, 3)), torch.ones(2), rtol=1e-4, atol=1e-4)
    assert scaled.eval()(x) is x
    for module in (ImageStandardization(3), ImageStandardization(3).eval()):
        torch.testing.assert_close(module(x).mean((1, 2, 3)), torch.zeros(2), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("channels", "kernel", "rows", "columns"),
    [(16, 3, 12, 12), (32, 3, 16, 18), (64, 3, 24, 24), (128, 3, 32, 36), (512, 3, 64, 72), (64, 1, 8, 8)],
)
def test_shapes_of_the_rotations(channels, kernel, rows, columns):
    rotation = Rotation((4, channels, kernel, kernel))
    assert (len(rotation.left), len(rotation.right)) == (rows, columns)
    for matrix in (rotation.left, rotation.right):
        torch.testing.assert_close(matrix @ matrix.T, torch.eye(len(matrix)), rtol=1e-4, atol=1e-5)


def plain_rotation(x, left, right):
    for _ in range(3):
        signs = [sign(left.T @ v @ right) for v in x]
        u, _, v = torch.svd(sum(b @ right.T @ m.T for b, m in zip(signs, x)))
        left = v @ u.T
        u, _, v = torch.svd(sum(m.T @ left @ b for b, m in zip(signs, x)))
        right = u @ v.T
    return left, right


def test_rotation_turns_weights_towards_their_signs():
    torch.manual_seed(0)
    rotation, w = Rotation((8, 4, 3, 3)).double(), torch.randn(8, 4, 3, 3, dtype=torch.double) + 0.3
    x = standard(w).view(8, 6, 6)
    left, right = plain_rotation(x, rotation.left.clone(), rotation.right.clone())

    def error():
        turned = rotation.left.T @ x @ rotation.right
        return (turned - sign(turned)).square().sum()

    before = error()
    rotation.fit_to(w)
    torch.testing.assert_close(rotation.left, left)
    torch.testing.assert_close(rotation.right, right)
    torch.testing.assert_close(rotation.left @ rotation.left.T, torch.eye(6, dtype=torch.double))
    assert error() < before


def test_rotation_does_not_depend_on_the_memory_format():
    torch.manual_seed(0)
    convs = [METHODS["rbnn"].conv_factory(CIFAR, 1, 1)(8, 4, 3) for _ in range(2)]
    convs[1].load_state_dict(convs[0].state_dict())
    convs[1].to(memory_format=torch.channels_last)
    for conv in convs:
        conv.start_epoch()
    torch.testing.assert_close(convs[0].weight_transform.left, convs[1].weight_transform.left, rtol=1e-4, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(convs[0].binary_weight()[0], convs[0].binary_weight()[0])
        assert convs[1].binary_weight()[0].dtype == torch.float32


def test_weights_stand_still_where_theta_starts():
    """The gradient to w is exactly 0 at pi/2, and nearly so to theta: training starts by theta's weight decay."""
    conv = METHODS["rbnn"].conv_factory(CIFAR, 1, 1)(4, 8, 3)
    conv(torch.randn(2, 4, 6, 6)).square().sum().backward()
    assert conv.weight_transform.theta.detach().allclose(torch.tensor(math.pi / 2))
    assert not conv.weight.grad.any()
    assert conv.weight_transform.theta.grad.abs().max() < 1e-3
    optimizer = torch.optim.SGD(conv.parameters(), 0.1, weight_decay=1e-2)
    optimizer.step()
    optimizer.zero_grad()
    conv(torch.randn(2, 4, 6, 6)).square().sum().backward()
    assert conv.weight.grad.any()


def test_learned_scales_start_where_they_should():
    for arch in ("resnet20", "vgg_small"):
        for conv in (m for m in build_model(arch, method="rbnn").modules() if isinstance(m, BinaryConv2d)):
            torch.testing.assert_close(conv.weight_transform.alpha.flatten(), conv.weight.abs().mean((1, 2, 3)))
    alpha = RectifiedClamp((512, 8, 3, 3)).alpha
    assert 0 <= alpha.min() < 0.1 < 0.9 < alpha.max() <= 1


def test_quantile_follows_progress_and_is_kept():
    model = nn.Sequential(BinaryConv2d(3, 4, 3, weight_transform=RectifiedClamp))
    assert set_progress(model, 0.0) == {"tau": pytest.approx(0.85)}
    assert set_progress(model, 1.0) == {"tau": pytest.approx(0.99)}
    assert model.state_dict()["0.weight_transform.tau"].shape == (1,)


def test_two_values_of_a_channel():
    w = torch.randn(5, 4, 3, 3) + 0.5
    conv = BinaryConv2d(4, 5, 3, weight_transform=ChannelDistribution)
    with torch.no_grad():
        conv.weight.copy_(w)
    used = conv.quantized_weight()
    for ours, theirs in zip(used, w):
        values = torch.stack([theirs.mean() - theirs.std(correction=0), theirs.mean() + theirs.std(correction=0)])
        torch.testing.assert_close(ours.unique(), values.detach(), rtol=1e-5, atol=1e-6)


def test_networks_as_published():
    gains = {
        ("resnet20", "cifar10", "rbnn"): 1e-8,
        ("resnet18", "cifar10", "rbnn"): 1.0,
        ("resnet18", "imagenet", "rbnn"): 1e-8,
        ("resnet20", "cifar10", "recu"): 1.0,
        ("resnet20", "cifar10", "adabin"): 1.0,
    }
    for (arch, dataset, method), gain in gains.items():
        for recovery, expected in (("none", gain), ("irec", max(gain, 1e-2)), ("cirec", max(gain, 1e-2))):
            model = build_model(arch, dataset, method, recovery=recovery)
            head = set(model.recovery.modules()) if model.recovery else ()
            norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
            assert all((m.weight == (1 if m in head else expected)).all() for m in norms)
    shortcuts = [m for m in build_model("resnet18", method="rbnn").modules() if isinstance(m, BinaryConv2d)]
    assert sum(conv.kernel_size == (1, 1) for conv in shortcuts) == 3
    shortcut = build_model("resnet20", method="recu").stages[1][0].shortcut
    x = torch.randn(2, 16, 8, 8)
    expected = F.pad(F.avg_pool2d(x, 2), (0, 0, 0, 0, 8, 8))
    assert torch.equal(shortcut(x), expected)


@pytest.mark.parametrize("recovery", ["none", "irec", "cirec"])
def test_first_gradients_have_an_ordinary_size(recovery):
    """Features of 1e-8 before BatchNorms in a row would make them millions under CIRec."""
    torch.manual_seed(0)
    model = build_model("resnet20", method="rbnn", recovery=recovery)
    F.cross_entropy(model(torch.randn(8, 3, 32, 32)), torch.arange(8)).backward()
    assert max(parameter.grad.abs().max() for parameter in model.parameters()) < 100
