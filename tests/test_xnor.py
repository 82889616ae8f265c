"""Binary convolution by XOR and popcount: the integers of the floating-point convolution, exactly."""

import copy
import os
import pickle

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from packing import check_a_forked_process, run_python
from torch import nn

from models.methods import METHODS
from modules.activations import ACTIVATIONS, LearnedShift
from modules.binarize import binary_sign
from modules.inference import native, runtime, xnor
from modules.inference.bits import pack_signs, unpack_signs
from modules.inference.kernels import HAS_TABLES
from modules.inference.values import ValuesConv2d, finish_after
from modules.inference.xnor import Finish, XnorConv2d, batch_norm_affine

CASES = [
    # images, C_in, C_out, height, width, kernel, stride, padding
    (1, 64, 64, 14, 14, 3, 1, 1),
    (3, 33, 17, 9, 11, 3, 2, 1),
    (3, 70, 40, 7, 5, 1, 2, 0),
    (2, 128, 96, 13, 13, 3, 2, 1),
    (2, 1, 1, 1, 1, 3, 1, 1),
    (1, 65, 16, 8, 20, 3, 1, 0),
    (1, 16, 33, 2, 3, 3, 2, 2),
]


def make_conv(channels, out_channels, kernel, stride, padding, method="bireal", family="imagenet"):
    return METHODS[method].conv_factory(family, 1, 1)(channels, out_channels, kernel, stride=stride, padding=padding)


def expected_sums(conv, x):
    return F.conv2d(conv.quantized_input(x), conv.binary_weight()[0], None, conv.stride, conv.padding)


def count_by_tables(monkeypatch, tables):
    if tables and not HAS_TABLES:
        pytest.skip("no AVX2")
    monkeypatch.setattr(native, "has_tables", lambda: tables)


@pytest.fixture(params=["words", "tables", "torch"])
def any_path(request, monkeypatch):
    """The two compiled kernels, and what stands in for them where numba is missing."""
    count_by_tables(monkeypatch, request.param == "tables")
    if request.param == "torch":
        for module in (runtime, xnor):
            monkeypatch.setattr(module, "kernels", lambda: None)


@pytest.fixture(params=[1, 2])
def thread_count(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("channels", [1, 3, 63, 64, 65, 130])
def test_signs_survive_packing(channels):
    x = torch.randn(2, channels, 3, 4)
    bits = pack_signs(x)
    assert bits.dtype == torch.uint64
    assert bits.shape == (2, 3, 4, -(-channels // 64))
    assert torch.equal(unpack_signs(bits, channels), binary_sign(x))


def test_bits_lie_along_the_channels_and_zero_is_positive():
    x = -torch.ones(1, 70, 1, 1)
    x[0, [0, 5, 69], 0, 0] = torch.tensor([1.0, 0.0, -0.0])
    assert pack_signs(x).flatten().tolist() == [1 + 2**5, 2**5]


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_sums_are_those_of_the_float_convolution(case, any_path, thread_count):
    images, channels, out_channels, height, width, *shape = case
    conv = make_conv(channels, out_channels, *shape)
    x = torch.randn(images, channels, height, width)
    x[x.abs() < 0.1] = 0
    sums = XnorConv2d(conv)(x)
    assert sums.dtype == torch.float32
    assert torch.equal(sums, expected_sums(conv, x))


@pytest.mark.parametrize("channels", [16, 512, 7281, 7282])  # the last have 2^16 - 7 and 2^16 + 2 bits
@torch.no_grad()
def test_no_count_overflows_where_all_bits_differ(channels, any_path):
    conv = make_conv(channels, 112, 3, 1, 0)
    conv.weight.fill_(1)
    assert (XnorConv2d(conv)(-torch.ones(1, channels, 5, 9)) == -9 * channels).all()


@settings(max_examples=60, deadline=None)
@given(data=st.data(), tables=st.just(False) | st.just(HAS_TABLES))
@torch.no_grad()
def test_any_shape(data, tables):
    kernel = data.draw(st.sampled_from([1, 3, 5]))
    padding = data.draw(st.integers(0, 2))
    smallest = max(1, kernel - 2 * padding)
    height, width = (data.draw(st.integers(smallest, smallest + 17)) for _ in range(2))
    images, channels, out_channels = (data.draw(st.integers(1, n)) for n in (3, 140, 150))
    torch.manual_seed(data.draw(st.integers(0, 2**31)))
    conv = make_conv(channels, out_channels, kernel, data.draw(st.integers(1, 3)), padding)
    x = torch.randn(images, channels, height, width)
    if data.draw(st.booleans()):
        x = x.to(memory_format=torch.channels_last)
    with pytest.MonkeyPatch.context() as patch:
        count_by_tables(patch, tables)
        assert torch.equal(XnorConv2d(conv)(x), expected_sums(conv, x))


@pytest.mark.parametrize("method", ["bnn", "xnor", "irnet", "reactnet", "sdbnn", "rbnn", "recu_twostage"])
@torch.no_grad()
def test_methods_shift_and_scale(method, any_path):
    conv = make_conv(48, 24, 3, 1, 1, method)
    conv.eval()
    for module in conv.modules():
        if isinstance(module, LearnedShift):
            nn.init.normal_(module.bias)
    x = torch.randn(3, 48, 6, 6) - 0.4
    packed, scale = XnorConv2d(conv), conv.binary_weight()[1]
    assert torch.equal(packed(x), expected_sums(conv, x))
    out = packed(x, Finish.after(scale=scale) if scale is not None else None)
    torch.testing.assert_close(out, conv(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("factor", [0.7, -1.3])
@torch.no_grad()
def test_learned_values(case, factor, any_path, thread_count):
    """Values other than -1 and +1 on both sides, in whose convolution the borders are unlike the middle."""
    images, channels, out_channels, height, width, *shape = case
    conv = make_conv(channels, out_channels, *shape, method="adabin")
    nn.init.normal_(conv.weight, 0.3)
    nn.init.constant_(conv.activation_binarizer.alpha, factor)
    nn.init.constant_(conv.activation_binarizer.beta, 0.2)
    x = torch.randn(images, channels, height, width)
    sums = F.conv2d(conv.input_signs(x), conv.binary_weight()[0], None, conv.stride, conv.padding)
    used = conv.quantized_input(x).double(), conv.quantized_weight().double()
    expected = F.conv2d(*used, None, conv.stride, conv.padding)
    packed, finish = ValuesConv2d(conv), Finish.after(make_norm(out_channels))
    for _ in range(2):  # the second time it knows the borders
        assert torch.equal(packed(x), sums)
        assert (packed.values(x) - expected).abs().max() < 2e-6 * expected.abs().max()
        assert torch.equal(packed(x, finish), finish(packed.values(x)))


@torch.no_grad()
def test_an_activation_at_its_threshold():
    """x = beta is +1 whatever the sign of alpha, and the numbers next to it are on their sides."""
    conv = make_conv(1, 1, 1, 1, 0, method="adabin")
    nn.init.constant_(conv.weight, -1)
    conv.weight_transform = None
    nn.init.constant_(conv.activation_binarizer.beta, 0.3)
    beta = torch.tensor(0.3)
    x = torch.stack([torch.nextafter(beta, beta - 1), beta, torch.nextafter(beta, beta + 1)]).view(1, 1, 1, 3)
    for alpha, signs in ((0.5, [-1, 1, 1]), (-0.5, [1, 1, -1])):
        nn.init.constant_(conv.activation_binarizer.alpha, alpha)
        assert conv.input_signs(x).flatten().tolist() == signs
        assert ValuesConv2d(conv)(x).neg().flatten().tolist() == signs


@pytest.mark.parametrize("images", [1, 2])
@torch.no_grad()
def test_an_image_s_mean_is_the_training_graph_s(images, thread_count):
    """A large image's mean is taken in as many parts as torch has threads."""
    conv = make_conv(64, 32, 3, 1, 1, "rbnn").eval()
    packed = XnorConv2d(conv)
    for _ in range(20):
        x = torch.randn(images, 64, 56, 56)
        expected = -x.mean((1, 2, 3))
        assert torch.equal(packed.shift(x)[:, 0], expected)


def make_norm(channels):
    norm = nn.BatchNorm2d(channels).eval()
    for value in (norm.weight, norm.bias, norm.running_mean):
        nn.init.normal_(value)
    nn.init.uniform_(norm.running_var, 0.1, 4)
    return norm


@torch.no_grad()
def test_batch_norm_folds_to_the_bit():
    norm, x = make_norm(40), 50 * torch.randn(4, 40, 7, 7)
    alpha, beta = (row.double().view(1, -1, 1, 1) for row in batch_norm_affine(norm))
    assert torch.equal(Finish.after(norm)(x), norm(x))
    torch.testing.assert_close((x * alpha + beta).float(), norm(x))


@pytest.mark.parametrize("act", [*ACTIVATIONS, "none"])
@pytest.mark.parametrize("shortcut", ["none", "plain", "norm"])
@torch.no_grad()
def test_what_follows_the_convolution(act, shortcut, any_path):
    channels = 24
    conv, norm = make_conv(40, channels, 3, 1, 1), make_norm(channels)
    shortcut_norm = make_norm(channels) if shortcut == "norm" else None
    activation = ACTIVATIONS[act](channels) if act != "none" else nn.Identity()
    for parameter in activation.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(2, 40, 5, 9)
    residual = None if shortcut == "none" else torch.randn(2, channels, 5, 9)
    expected = norm(conv(x))
    if residual is not None:
        expected += residual if shortcut_norm is None else shortcut_norm(residual)
    expected = activation(expected)
    finish = finish_after(norm, activation, shortcut_norm)
    packed = XnorConv2d(conv)
    assert torch.equal(packed(x, finish, residual), expected)
    assert torch.equal(finish(packed(x), residual), expected)


def test_an_unknown_activation_is_refused():
    with pytest.raises(ValueError, match="no kernel for Tanh"):
        Finish.after(act=nn.Tanh())


@torch.no_grad()
def test_wrong_maps_are_refused():
    conv = XnorConv2d(make_conv(20, 24, 3, 1, 1))
    with pytest.raises(ValueError, match="takes 20 channels, not 21"):
        conv(torch.randn(1, 21, 4, 4))
    with pytest.raises(ValueError, match="does not fit"):
        conv(torch.randn(1, 20, 4, 4), residual=torch.randn(1, 24, 4, 3))
    with pytest.raises(ValueError, match="float32"):
        conv(torch.randn(1, 20, 4, 4, dtype=torch.float64))


@torch.no_grad()
def test_operators_have_fake_kernels_and_are_exported():
    torch.manual_seed(0)
    network = nn.Sequential(XnorConv2d(make_conv(20, 24, 3, 2, 1)), Finish.after(make_norm(24), nn.PReLU(24)))
    x = torch.randn(2, 20, 8, 8)
    conv, finish = network
    arguments = (x, conv.blocks, conv.tap_counts, conv.no_shift, 2, 1, conv.no_finish, None)
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(xnor.binary_conv2d, arguments, test_utils=tests)
    torch.library.opcheck(xnor.finish_maps, (network[0](x), finish.table, None), test_utils=tests)
    exported = torch.export.export(network, (x,))
    assert "ir2net.binary_conv2d" in str(exported.graph)
    assert torch.equal(exported.module()(x), network(x))


def test_without_numba_one_warning_says_so(monkeypatch):
    def missing():
        raise ImportError("No module named 'numba'")

    monkeypatch.setattr(native, "load", missing)
    runtime.kernels.cache_clear()
    try:
        with pytest.warns(UserWarning, match="numba"):
            assert runtime.kernels() is None
    finally:
        runtime.kernels.cache_clear()


@torch.no_grad()
def test_copies_and_pickles_have_arrays_of_their_own():
    network = nn.Sequential(XnorConv2d(make_conv(20, 32, 3, 2, 1)), Finish.after(make_norm(32), nn.PReLU(32)))
    x = torch.randn(2, 20, 8, 8)
    expected = network(x)
    copies = copy.deepcopy(network), pickle.loads(pickle.dumps(network))
    network[0].bits.zero_()
    network[0].prepare()
    for other in copies:
        assert torch.equal(other(x), expected)
        assert other[0].blocks.data_ptr() != network[0].blocks.data_ptr()
    assert not torch.equal(network(x), expected)


def test_a_process_forked_after_threads_computes_too():
    check_a_forked_process("""
from modules.inference.xnor import Finish
finish, x = Finish({"alpha": torch.full((16,), 2.0)}), torch.randn(1, 16, 4, 4)
compute = lambda: finish(x)
""")


NO_CACHE = """
import torch
from modules.inference.xnor import Finish
finish, x = Finish({"alpha": torch.full((16,), 2.0)}), torch.randn(2, 16, 4, 4)
assert torch.equal(finish(x), 2 * x) and torch.equal(finish(x), 2 * x)
"""


def test_without_a_place_for_the_code_it_is_compiled_and_says_so_once():
    done = run_python(NO_CACHE, NUMBA_CACHE_DIR=os.devnull)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("compiling the kernels") == 1
