"""A packed network as one program: the numbers of the modules one by one, for any size, batch and number of threads."""

import copy
import pickle
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from packing import (
    IMAGENET,
    RESNET20,
    check_a_forked_process,
    name_of,
    random_images,
    random_network,
    relative_error,
    run_python,
)
from torch import nn

from models import build_model, inference
from models.blocks import Network
from models.inference import pack_network
from models.program import _Lowering, _where, lower
from modules.inference import native
from modules.inference.maps import external
from modules.inference.program import neutral
from modules.inference.runtime import kernels, maps_at
from modules.inference.threads import Pace, execute, for_each
from utils.deploy.verify import compare_fast, relative_errors

NETWORKS = [
    *({**IMAGENET, "variant": variant} for variant in "ad"),
    {**IMAGENET, "method": "irnet"},
    {"arch": "resnet20", "method": "reactnet", "structure": "normal", "recovery": "irec"},
    {"arch": "resnet18", "recovery": "cirec"},
    {"arch": "vgg_small", "method": "xnor", "recovery": "cirec"},
]
SIZES = [(64, 64), (32, 96), (30, 30), (34, 64)]


@pytest.fixture(params=[1, 2])
def thread_count(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("network", NETWORKS, ids=name_of)
@torch.no_grad()
def test_a_program_gives_what_its_modules_give(network, size, thread_count):
    """Sizes whose stem is pooled in one pass, and sizes where it is not."""
    if network["arch"] == "vgg_small":
        size = (32, 32)
    torch.manual_seed(0)
    packed, images = pack_network(random_network(network)), torch.randn(3, 3, *size)
    try:
        Network.forward(packed, images[:1])
    except (RuntimeError, ValueError):  # a shortcut's average pooling cannot halve odd sizes
        with pytest.raises(ValueError, match="do not fit"):
            packed(images)
        return
    assert packed.program(size) is not None
    for i in range(3):  # the memory of the first call serves the others
        expected = Network.forward(packed, images[i : i + 1])
        assert relative_error(expected, packed(images[i : i + 1])) < 1e-5


@pytest.mark.parametrize("network", [{**IMAGENET, "variant": "c"}, RESNET20], ids=name_of)
@torch.no_grad()
def test_logits_do_not_depend_on_batch_threads_or_memory_format(network):
    packed, images = pack_network(random_network(network)), random_images(network, 5)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = torch.cat([packed(image[None]) for image in images])
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert torch.equal(packed(images), expected)
            assert torch.equal(packed(images.to(memory_format=torch.channels_last)), expected)
            assert torch.equal(packed(images[:1].expand(4, -1, -1, -1)), expected[:1].expand(4, -1))
            for i in range(5):  # with helpers, once it is known what a call takes without
                assert torch.equal(packed(images[i : i + 1]), expected[i : i + 1])
    finally:
        torch.set_num_threads(before)


@torch.no_grad()
def test_threads_that_call_at_once_do_not_disturb_each_other():
    packed, images = pack_network(random_network(RESNET20)), random_images(RESNET20, 8)
    expected, found = packed(images), {}

    def call(i):
        with torch.no_grad():
            found[i] = [packed(images[i : i + 1]) for _ in range(50)]

    callers = [threading.Thread(target=call, args=(i,)) for i in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert all(torch.equal(logits, expected[i : i + 1]) for i in range(8) for logits in found[i])


@torch.no_grad()
def test_programs_follow_new_weights_and_are_not_copied():
    packed, other = pack_network(random_network(RESNET20)), pack_network(random_network(RESNET20, seed=1))
    images = random_images(RESNET20, 2)
    before, expected = packed(images), other(images)
    for copied in (copy.deepcopy(packed), pickle.loads(pickle.dumps(packed))):
        assert "_programs" not in copied.__dict__
        assert torch.equal(copied(images), before)
    packed.load_state_dict(other.state_dict())
    assert torch.equal(packed(images), expected)


@torch.no_grad()
def test_sizes_that_alternate_are_lowered_once_each(monkeypatch):
    packed, lowered = pack_network(random_network(RESNET20)), []
    monkeypatch.setattr(inference, "lower", lambda *args: (lowered.append(args[1:]), lower(*args))[1])
    first, second = torch.randn(1, 3, 32, 32), torch.randn(1, 3, 24, 40)
    expected = [packed(images) for images in (first, second)]
    for _ in range(2):
        assert all(torch.equal(packed(x), y) for x, y in zip((first, second), expected))
    assert lowered == [(32, 32, False), (24, 40, False)]


@torch.no_grad()
def test_images_that_are_too_small_are_refused():
    packed = pack_network(random_network({**IMAGENET, "variant": "c"}))
    for side in (1, 16):
        with pytest.raises(ValueError, match="too small"):
            packed(torch.randn(1, 3, side, side))


@torch.no_grad()
def test_images_that_are_none_are_refused():
    packed = pack_network(random_network(RESNET20))
    with pytest.raises(ValueError, match="float32"):
        packed(torch.randn(1, 3, 32, 32, dtype=torch.float64))
    with pytest.raises(ValueError, match="3 channels"):
        packed(torch.randn(1, 4, 32, 32))
    with pytest.raises(ValueError, match="3 channels"):
        packed(torch.randn(3, 32, 32))
    with pytest.raises(ValueError, match="run on the CPU"):
        packed(torch.empty(1, 3, 32, 32, device="meta"))
    assert packed(torch.empty(0, 3, 32, 32)).shape == (0, 10)


@pytest.mark.parametrize("method", ["bireal", "adabin"])
@torch.no_grad()
def test_torchs_defaults_change_nothing(method):
    model = build_model("resnet20", method=method).eval()
    images = torch.randn(2, 3, 32, 32)
    expected = pack_network(model)(images)
    before = torch.get_default_dtype()
    try:
        for dtype in (torch.float64, torch.bfloat16):
            torch.set_default_dtype(dtype)
            with torch.device("meta"):
                assert torch.equal(pack_network(model)(images), expected)
    finally:
        torch.set_default_dtype(before)


@torch.no_grad()
def test_images_that_torch_negates_lazily_are_read_as_they_are():
    packed, values = pack_network(random_network(RESNET20)), torch.randn(1, 3, 32, 32, dtype=torch.complex64)
    lazy = values.conj().imag
    assert lazy.is_neg()
    assert torch.equal(packed(lazy), packed(lazy.clone()))


@torch.no_grad()
def test_fast_without_bfloat16_is_refused(monkeypatch):
    packed = pack_network(random_network(RESNET20))
    packed.fast = True
    monkeypatch.setattr(native, "has_bf16", lambda: False)
    with pytest.raises(RuntimeError, match="avx512_bf16"):
        packed(random_images(RESNET20, 1))


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize(("kernel", "stride"), [(7, 2), (3, 1)])
@torch.no_grad()
def test_stem_and_1x1_convolution_are_those_of_rounded_numbers_with_fast(kernel, stride, fast):
    """Each is compared with float64 from what the kernels read: a sum in bfloat16's precision would be far off."""
    image, stem = torch.randn(1, 3, 38, 75), nn.Conv2d(3, 24, kernel, stride, kernel // 2, bias=False)
    point = nn.Conv2d(24, 40, 1, bias=False)
    lowering = _Lowering(None, *image.shape[2:], fast)
    x = lowering.stem(stem, SimpleNamespace(table=torch.from_numpy(neutral(24))), large=False)
    outs = [torch.zeros(x.height, x.width, 32), torch.zeros(x.height, x.width, 48)]
    first, second = (maps_at(external(i), out.shape) for i, out in enumerate(outs, start=1))
    lowering.program.copy(x, neutral(24), out=first)
    lowering.pointwise(x, point, neutral(40), out=second)
    instance = lowering.program.instance()
    instance.bind(*(out.data_ptr() for out in outs))
    execute(kernels(), instance, 1, _where(image[0]))

    def read(values):
        return (values.bfloat16() if fast else values).double()

    found = [out[..., :channels].permute(2, 0, 1)[None].double() for out, channels in zip(outs, (24, 40))]
    expected = F.conv2d(read(image), read(stem.weight), stride=stride, padding=kernel // 2)
    torch.testing.assert_close(found[0], expected, rtol=0, atol=1e-5)
    expected = F.conv2d(read(found[0].float()), read(point.weight))
    torch.testing.assert_close(found[1], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("network", [RESNET20, {**IMAGENET, "variant": "c"}], ids=name_of)
@torch.no_grad()
def test_fast_is_the_network_whose_stem_and_1x1_convolutions_are_rounded(network, monkeypatch):
    monkeypatch.setattr(native, "has_bf16", lambda: True)  # where it is not, the kernels compute the same slowly
    packed, images = pack_network(random_network(network)), random_images(network, 4)
    rounded = copy.deepcopy(packed)
    for module in rounded.modules():
        if isinstance(module, nn.Conv2d) and (module.kernel_size == (1, 1) or module.in_channels == 3):
            module.weight.copy_(module.weight.bfloat16())
            module.register_forward_pre_hook(lambda module, inputs: inputs[0].bfloat16().float())
    expected = Network.forward(rounded, images)
    packed.fast = True
    close = relative_errors(expected, packed(images)) < 1e-4
    assert close.sum() >= 3  # sums in another order may turn a sign on one image, and with it everything
    found = compare_fast(packed, [(images, torch.zeros(4, dtype=torch.long))])
    assert found["fast_error"] > 0
    assert found["images"] == found["labelled"] == 4


def test_helpers_are_left_out_after_calls_that_they_made_no_faster():
    pace = Pace()
    assert not pace.wants_helpers()
    pace.learn(False, 1.0)
    assert pace.wants_helpers()
    pace.learn(True, 1.2)
    assert [pace.wants_helpers() for _ in range(3)] == [False, False, True]
    pace.learn(True, 0.6)
    assert pace.wants_helpers()


def test_each_task_is_done_once():
    done = []
    for_each(done.append, 100, 3)
    assert sorted(done) == list(range(100))


def test_a_task_that_fails_in_any_thread_is_told_and_helpers_go_on():
    def fail(i):
        if i % 10 == 9:
            raise MemoryError(i)

    for _ in range(20):
        with pytest.raises(MemoryError):
            for_each(fail, 100, 3)
    done = []
    for_each(done.append, 100, 3)
    assert sorted(done) == list(range(100))


def test_a_process_forked_after_helpers_have_started_computes_too():
    check_a_forked_process("""
from packing import RESNET20, random_images, random_network
from models.inference import pack_network
packed, images = pack_network(random_network(RESNET20)), random_images(RESNET20, 4)
compute = lambda: packed(images)
""")


def test_code_is_read_whole_or_not_at_all(tmp_path, monkeypatch):
    kernels()
    path = next(folder / native.name() for folder in native.folders() if (folder / native.name()).exists())
    content = path.read_bytes()
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    (tmp_path / native.name()).write_bytes(content)
    native.mapped(tmp_path / native.name())
    for damaged in (b"", content[:-1], b"\0" + content[1:]):
        other = tmp_path / f"{len(damaged)}-{damaged[:1].hex()}"
        other.write_bytes(damaged)
        with pytest.raises(ValueError, match="damaged"):
            native.mapped(other)


def test_a_user_without_a_home_has_the_folder_beside_the_source(monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    for name in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert len(native.folders()) == 2
    monkeypatch.setattr(Path, "home", homeless)
    assert native.folders() == [native.HERE / "__pycache__"]


def test_numba_is_not_imported_where_the_code_is_known():
    kernels()
    code = "import sys; from modules.inference.runtime import kernels; assert kernels(); print('numba' in sys.modules)"
    done = run_python(code)
    assert done.stdout.strip() == "False", done.stderr
