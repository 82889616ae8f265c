"""The binary convolution and the weight transforms of the methods."""

import pytest
import torch
from torch import nn

import modules.conv as conv_module
from models.methods import METHODS
from modules.activations import LearnedShift, SelfDistributionShift
from modules.binarize import BiRealSTE
from modules.conv import BinaryConv2d
from modules.weights import ChannelScale, LibraPB, SelfDistribution


@pytest.mark.parametrize("bias", [True, False])
def test_32_bits_is_an_ordinary_convolution_exactly(bias):
    arguments = dict(in_channels=5, out_channels=7, kernel_size=3, stride=2, padding=1, bias=bias)
    ours = BinaryConv2d(**arguments, weight_bits=32, activation_bits=32, weight_transform=LibraPB)
    theirs = nn.Conv2d(**arguments)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 5, 9, 8)
    ours(x).square().sum().backward()
    theirs(x).square().sum().backward()
    assert torch.equal(ours(x), theirs(x))
    assert torch.equal(ours.weight.grad, theirs.weight.grad)


def test_bits_decide_which_side_is_binary():
    x = torch.randn(1, 3, 6, 6)
    for weight_bits, activation_bits in ((1, 1), (1, 32), (32, 1), (32, 32)):
        conv = BinaryConv2d(3, 4, 3, weight_bits=weight_bits, activation_bits=activation_bits)
        assert (conv.quantized_weight().abs() == 1).all() == (weight_bits == 1)
        assert (conv.quantized_input(x).abs() == 1).all() == (activation_bits == 1)
        assert f"bits={weight_bits}/{activation_bits}" in repr(conv)


def test_binary_convolution_of_signs_is_an_integer_and_padding_is_zero():
    conv = BinaryConv2d(33, 4, 3, padding=1, bias=False)
    x = torch.randn(2, 33, 5, 5)
    out = conv(x)
    assert torch.equal(out, out.round())
    signs = torch.where(x >= 0, 1.0, -1.0)
    weight = torch.where(conv.weight >= 0, 1.0, -1.0)
    assert torch.equal(out, nn.functional.conv2d(signs, weight, padding=1))


@pytest.mark.parametrize(("size", "kernel_size", "stride", "padding"), [
    ((2, 2), 3, 1, 1), ((7, 5), 3, 2, 1), ((6, 9), (3, 1), (1, 2), (2, 0)), ((4, 4), 1, 2, 0),
])  # fmt: skip
@pytest.mark.parametrize("frozen_input", [False, True])
def test_the_weights_gradient_as_a_product_of_matrices(size, kernel_size, stride, padding, frozen_input, monkeypatch):
    """Against autograd's of an ordinary convolution of the same signs, in float64; wide enough to take the product."""
    taken = []
    product = conv_module._weight_gradient
    monkeypatch.setattr(conv_module, "_weight_gradient", lambda *args: taken.append(args) or product(*args))
    conv = BinaryConv2d(40, 96, kernel_size, stride, padding).double().to(memory_format=torch.channels_last)
    x = torch.randn(3, 40, *size, dtype=torch.float64).to(memory_format=torch.channels_last)
    x.requires_grad_(not frozen_input)
    out = conv(x)
    grad = torch.randn_like(out)
    wanted = [conv.weight, conv.bias] if frozen_input else [conv.weight, conv.bias, x]
    ours = torch.autograd.grad(out, wanted, grad)
    plain = nn.functional.conv2d(conv.quantized_input(x), conv.quantized_weight(), conv.bias, stride, padding)
    theirs = torch.autograd.grad(plain, wanted, grad)
    assert len(taken) == 1
    for a, b in zip(ours, theirs):
        assert a.stride() == b.stride()
        assert (a - b).abs().max() < 1e-12 * b.abs().max()


@pytest.mark.parametrize("bits", [0, 2, 8])
def test_other_bits_are_refused(bits):
    with pytest.raises(ValueError, match="1 or 32"):
        BinaryConv2d(3, 4, 3, weight_bits=bits)


def test_libra_pb_against_float64():
    w = torch.randn(6, 4, 3, 3) * 0.3 + 0.1
    standard, scale, _ = LibraPB(w.shape)(w)
    flat = w.double().flatten(1)
    centred = flat - flat.mean(1, keepdim=True)
    expected = centred / (centred.square().sum(1, keepdim=True) / (flat.shape[1] - 1)).sqrt()
    assert torch.allclose(standard.double().flatten(1), expected, atol=1e-6)
    assert torch.allclose(standard.flatten(1).mean(1), torch.zeros(6), atol=1e-6)
    assert torch.allclose(standard.flatten(1).std(1), torch.ones(6), atol=1e-6)
    assert torch.equal(scale.flatten().double(), 2 ** expected.abs().mean(1).log2().round())


def test_libra_pb_scale_carries_no_gradient():
    w = torch.randn(6, 4, 3, 3, requires_grad=True)
    assert not LibraPB(w.shape)(w)[1].requires_grad


def test_channel_scale_is_the_mean_magnitude():
    w = torch.randn(6, 4, 3, 3, requires_grad=True)
    for detach in (False, True):
        weights, scale, _ = ChannelScale(w.shape, detach=detach)(w)
        assert weights is w
        assert scale.requires_grad is not detach
        for channel in range(6):
            assert scale[channel].item() == pytest.approx(w[channel].abs().mean().item(), rel=1e-6)


def test_self_distribution_of_weights():
    w = torch.randn(6, 4, 3, 3) + 1
    transform = SelfDistribution(w.shape)
    shifted, scale, _ = transform(w)
    assert scale is None
    assert torch.allclose(shifted, w + 0.5 * 0.01 * w.mean((1, 2, 3), keepdim=True))
    shifted.sum().backward()
    assert (transform.alpha.grad != 0).all()


def test_self_distribution_of_activations():
    transform = SelfDistributionShift(16, reduction=8)
    x = torch.randn(3, 16, 5, 4)
    hidden = torch.relu(x.mean((2, 3)) @ transform.squeeze.weight.T)
    shift = torch.sigmoid(hidden @ transform.excite.weight.T)
    assert torch.allclose(transform(x), x + shift[:, :, None, None])
    assert transform.squeeze.weight.shape == (2, 16)


def test_learned_shift_starts_at_nothing():
    x = torch.randn(2, 4, 3, 3)
    assert torch.equal(LearnedShift(4)(x), x)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_gradients_are_those_of_an_ordinary_convolution_of_signs(bias, dtype):
    conv = BinaryConv2d(6, 8, 3, stride=2, padding=1, groups=2, bias=bias).to(dtype)
    x = torch.randn(2, 6, 7, 7, dtype=dtype, requires_grad=True)
    signs = conv.quantized_input(x)
    theirs = nn.functional.conv2d(signs, conv.quantized_weight(), conv.bias, stride=2, padding=1, groups=2)
    leaves = [x, *conv.parameters()]
    expected = torch.autograd.grad(theirs.square().sum(), leaves)
    ours = conv(x)
    assert torch.equal(ours, theirs)
    for got, want in zip(torch.autograd.grad(ours.square().sum(), leaves), expected):
        assert got.dtype == want.dtype
        assert torch.allclose(got, want, rtol=1e-2 if dtype is torch.bfloat16 else 1e-5)


def test_a_second_derivative_is_refused():
    conv = BinaryConv2d(6, 8, 3)
    x = torch.randn(2, 6, 5, 5, requires_grad=True)
    (grad,) = torch.autograd.grad(conv(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.square().sum().backward()


def test_without_gradients_the_output_is_the_same():
    conv = BinaryConv2d(6, 8, 3, padding=1)
    x = torch.randn(2, 6, 5, 5)
    with torch.no_grad():
        expected = conv(x)
    assert torch.equal(conv(x), expected)


def test_mixed_precision_reaches_float32_weights():
    conv = BinaryConv2d(6, 8, 3, padding=1)
    x = torch.randn(2, 6, 5, 5, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = conv(x)
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert conv.weight.grad.dtype == x.grad.dtype == torch.float32


def test_signs_are_kept_in_8_bits():
    conv = BinaryConv2d(6, 8, 3)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        conv(torch.randn(2, 6, 5, 5, requires_grad=True))
    assert sorted(t.element_size() for t in saved if t.shape == (2, 6, 5, 5)) == [1, 4]  # signs; x, for the estimator


class ScaledSign(nn.Module):
    """alpha * sign(x) + beta, with learned scalars: activations that are not signs."""

    def __init__(self):
        super().__init__()
        self.sign = BiRealSTE()
        self.alpha = nn.Parameter(torch.tensor(0.3))
        self.beta = nn.Parameter(torch.tensor(-0.2))

    def forward(self, x):
        return self.alpha * self.sign(x) + self.beta


def test_gradients_are_right_where_activations_are_not_signs():
    """8 bits would hold neither 0.1 nor -0.5: the plain convolution must run."""
    conv = BinaryConv2d(6, 8, 3, padding=1, bias=False, activation_binarizer=ScaledSign).double()
    x = torch.randn(2, 6, 7, 7, dtype=torch.double, requires_grad=True)
    alpha, beta = conv.activation_binarizer.alpha, conv.activation_binarizer.beta
    leaves = [x, conv.weight, alpha, beta]
    ours = conv(x)
    got = torch.autograd.grad(ours.square().sum(), leaves)

    def through(signs, surrogate):
        """The values of `signs` with the gradient of `surrogate`, by plain operations."""
        return surrogate + (signs - surrogate).detach()

    inside = x.clamp(-1, 1)
    signs = through(torch.where(x >= 0, 1.0, -1.0).double(), 2 * inside - inside * inside.abs())
    weight = through(torch.where(conv.weight >= 0, 1.0, -1.0).double(), conv.weight.clamp(-1, 1))
    theirs = nn.functional.conv2d(alpha * signs + beta, weight, padding=1)
    torch.testing.assert_close(ours, theirs)
    for mine, plain in zip(got, torch.autograd.grad(theirs.square().sum(), leaves)):
        assert plain.abs().max() > 0
        torch.testing.assert_close(mine, plain)


def test_a_convolution_knows_whether_its_inputs_are_signs():
    assert BinaryConv2d(3, 4, 3).has_sign_inputs
    assert not BinaryConv2d(3, 4, 3, activation_binarizer=ScaledSign).has_sign_inputs
    assert not BinaryConv2d(3, 4, 3, activation_bits=32).has_sign_inputs


@pytest.mark.parametrize("method", list(METHODS))
@pytest.mark.parametrize("where", [{"dtype": torch.float64}, {"device": "meta"}])
def test_all_of_a_convolution_has_its_dtype_and_device(method, where):
    conv = BinaryConv2d(16, 16, 3, padding=1, **where, **METHODS[method].conv["cifar"])
    assert {tensor.dtype for tensor in conv.state_dict().values()} == {where.get("dtype", torch.float32)}
    assert {tensor.device.type for tensor in conv.state_dict().values()} == {where.get("device", "cpu")}
    assert conv(torch.randn(2, 16, 8, 8, **where)).shape == (2, 16, 8, 8)


def test_an_image_without_a_batch():
    conv, x = BinaryConv2d(3, 4, 3), torch.randn(3, 8, 8)
    conv(x).sum().backward()
    alone, conv.weight.grad = conv.weight.grad, None
    conv(x.unsqueeze(0)).sum().backward()
    torch.testing.assert_close(alone, conv.weight.grad)
