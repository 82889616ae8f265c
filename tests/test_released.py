"""Released checkpoints: every layout loads, computes what the released network computes, and comes back bit for bit.

data/released_layouts.json: {layout: {"keys": [[name, shape], ...], "seed", "input_seed", "input_size"}}; where it has
"logits_first10" too, they are what the released code gave in float64, in evaluation mode, for the weights of `fill` and
two images.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from models import build_model
from utils import checkpoint, released
from utils.checkpoint import load_model
from utils.checkpoint.ours import FORMAT, VERSION
from utils.command import RunError

LAYOUTS = json.loads((Path(__file__).parent / "data" / "released_layouts.json").read_text())
RECORDED = [name for name, layout in LAYOUTS.items() if "logits_first10" in layout]
SMALL = "ir2net_cifar_resnet20"


def numbers(key, shape, seed):
    """The reproducible values of one tensor: a generator per key, and a distribution per kind of tensor."""
    leaf = key.split(".")[-1]
    generator = np.random.default_rng([seed, *key.encode()])
    if leaf == "num_batches_tracked":
        return np.int64(1)
    if leaf == "running_var":
        return generator.uniform(0.5, 1.5, shape)
    if leaf in ("running_mean", "bias", "alpha"):
        return generator.normal(0, 0.1, shape)
    if len(shape) == 1:
        return generator.uniform(0.2, 1.0, shape)
    flat = len(shape) == 2 and shape[1] == 1
    return generator.normal(0.01, np.sqrt(2 / (576 if flat else np.prod(shape[1:]))), shape)


def fill(name):
    """{key: tensor} of the layout `name`, in float64."""
    layout = LAYOUTS[name]
    return {key: torch.as_tensor(numbers(key, shape, layout["seed"])) for key, shape in layout["keys"]}


def images(name, size=None):
    """(2, 3, size, size) float64."""
    size = size or LAYOUTS[name]["input_size"]
    generator = np.random.default_rng(LAYOUTS[name]["input_seed"])
    return torch.from_numpy(generator.normal(0, 1, (2, 3, size, size)))


def bits(name):
    return released.RELEASES[name].bits


def same_bits(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)


def save(tmp_path, content, name="released.pth", **kwargs):
    path = tmp_path / name
    torch.save(content, path, **kwargs)
    return path


@pytest.fixture
def refused(fails):
    """refused(*argv) -> the one line with which `python -m utils.released` ends."""

    def run(*argv, status=1):
        code, line = fails(released.main, *argv)
        assert code == status
        return line

    return run


# What a released network computes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECORDED)
def test_logits_are_those_the_released_code_gave(name, tmp_path):
    path = save(tmp_path, {"state_dict": {f"module.{key}": value for key, value in fill(name).items()}})
    model = load_model(path, *bits(name))
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


# Every layout there and back -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYOUTS)
def test_layout_is_the_recorded_one(name):
    entries = released.layout(name, 1000 if "imagenet" in name else 10)
    assert {key: list(entry.shape) for key, entry in entries.items()} == dict(LAYOUTS[name]["keys"])


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_tensor_comes_back_bit_for_bit(name):
    state = fill(name)
    payload = released.convert(state, "released.pth", *bits(name))
    checkpoint.build_network(payload["network"], payload["model"], "released.pth")
    ours = {"format": FORMAT, "version": VERSION, **payload}
    back = released.export(ours, "ours.pt", name)
    assert back.keys() == state.keys()
    assert all(same_bits(back[key], state[key]) for key in state)


def test_convert_and_export_by_command(tmp_path, refused):
    """Through files: an old one without counters, of another number of classes, with tensors of two dtypes."""
    name = "irnet_imagenet_resnet18_1w32a"
    state = {key: value.half() for key, value in fill(name).items() if not key.endswith("num_batches_tracked")}
    state |= {key: value.float()[:7] for key, value in state.items() if key.startswith(("fc.", "bn3."))}
    path = save(tmp_path, {"state_dict": state, "epoch": 3, "optimizer": {}}, _use_new_zipfile_serialization=False)
    released.main(["convert", str(path), str(tmp_path / "ours.pt"), "--activation-bits", "32"])
    assert {p.dtype for p in load_model(tmp_path / "ours.pt").parameters()} == {torch.float32}
    released.main(["export", str(tmp_path / "ours.pt"), str(tmp_path / "back.pth"), "--layout", name])
    back = torch.load(tmp_path / "back.pth", weights_only=True)["state_dict"]
    assert back.keys() == state.keys()
    assert all(same_bits(back[key], state[key]) for key in state)
    assert "there already" in refused("convert", path, tmp_path / "ours.pt", "--activation-bits", 32, status=2)
    released.main(["convert", str(path), str(tmp_path / "ours.pt"), "--activation-bits", "32", "--force"])


def ours(tmp_path, **network):
    path = tmp_path / "ours.pt"
    checkpoint.save(path, {"network": network, "model": build_model(**network).state_dict()})
    return path


def test_our_own_network_exports_with_what_the_released_one_never_uses(tmp_path):
    network = {"arch": "resnet18", "dataset": "imagenet", "method": "irnet", "num_classes": 5}
    path, out = ours(tmp_path, **network), tmp_path / "out.pth"
    released.main(["export", str(path), str(out), "--layout", "irnet_imagenet_resnet18", "--data-parallel"])
    state = torch.load(out, weights_only=True)["state_dict"]
    assert all(key.startswith("module.") for key in state)
    assert torch.equal(state["module.bn3.running_var"], torch.ones(5))
    again = load_model(out, 1, 1).state_dict()
    assert all(same_bits(value, again[key]) for key, value in load_model(path).state_dict().items())


def test_a_network_that_does_not_fit_the_layout_is_refused(tmp_path, refused):
    out = tmp_path / "out.pth"
    path = ours(tmp_path, arch="resnet20", method="bnn")  # the keys and shapes of IR-Net's, another network
    assert "does not fit the layout" in refused("export", path, out, "--layout", "irnet_cifar_resnet20")
    path = ours(tmp_path, arch="resnet20", method="irnet", activation_bits=32)
    assert "does not fit the layout" in refused("export", path, out, "--layout", "irnet_cifar_resnet20")
    assert "no layout" in refused("export", path, out, "--layout", "resnet50", status=2)
    assert not out.exists()
    released.main(["export", str(path), str(out), "--layout", "irnet_cifar_resnet20_1w32a"])


# Recognition ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrapper", ["bare", "state_dict", "model", "legacy"])
def test_wrappers_prefixes_and_missing_counters(wrapper, tmp_path):
    state = {key: value.float() for key, value in fill(SMALL).items() if not key.endswith("num_batches_tracked")}
    content = {f"module.{key}": value for key, value in state.items()}
    if wrapper != "bare":
        key = wrapper.replace("legacy", "state_dict")
        content = {"epoch": 9, "best_prec1": torch.tensor(87.2), "optimizer": {"state": {}}, key: content}
    path = save(tmp_path, content, _use_new_zipfile_serialization=wrapper != "legacy")
    model, found = checkpoint.open_model(path)
    assert torch.equal(model.fc.weight, state["linear.weight"])
    assert (found.layout, found.tensors, found.unused) == (SMALL, len(state), ())
    assert "IR²Net CIFAR ResNet-20" in str(found)


def test_number_of_classes_is_the_files(tmp_path):
    state = fill("irnet_cifar_vgg_small")
    state |= {"fc.weight": torch.rand(100, 8192), "fc.bias": torch.rand(100)}
    assert load_model(save(tmp_path, state)).fc.out_features == 100


@pytest.mark.parametrize(
    ("name", "choices"),
    [
        ("ir2net_imagenet_a", [(1, 1), (32, 1)]),
        ("irnet_cifar_resnet20", [(1, 1), (1, 32)]),
        ("irnet_imagenet_resnet34", [(1, 1), (1, 32)]),
        ("reactnet_imagenet_resnet18", [(1, 1), (32, 1)]),
    ],
)
def test_a_layout_of_two_networks_needs_the_bits(name, choices):
    names = released.recognise(fill(name), "released.pth")
    assert [bits(n) for n in names] == choices
    with pytest.raises(RunError, match="bits must be said: --weight-bits 1 --activation-bits 1 or "):
        released.choose(names, "released.pth")
    for weight_bits, activation_bits in choices:
        assert bits(released.choose(names, "released.pth", weight_bits, activation_bits)) == (
            weight_bits,
            activation_bits,
        )
    with pytest.raises(RunError, match="not with the bits"):
        released.choose(names, "released.pth", 32, 32)


def test_bits_of_a_layout_of_one_network(tmp_path):
    path = save(tmp_path, fill(SMALL))
    assert load_model(path, 1, 1).stages[0][0].conv.weight_bits == 1
    with pytest.raises(RunError, match="exists with --weight-bits 1 --activation-bits 1"):
        load_model(path, weight_bits=32)


def test_inspect(tmp_path, capsys):
    released.main(["inspect", str(save(tmp_path, fill("irnet_cifar_resnet20"))), "--json"])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [n["layout"] for n in found["networks"]] == ["irnet_cifar_resnet20", "irnet_cifar_resnet20_1w32a"]
    assert (found["kind"], found["tensors"], found["dtype"], found["classes"]) == ("released", 121, "float64", 10)
    released.main(["inspect", str(ours(tmp_path, arch="resnet20")), "--json"])
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["kind"] == "ours"


# Files that must not load --------------------------------------------------------------------------------------------


class Trap:
    """A pickle of it makes a folder when it is loaded as Python's pickle loads."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_pickle_never_runs(legacy, tmp_path, refused):
    content = {"state_dict": fill(SMALL), "args": Trap(tmp_path / "trapped")}
    path = save(tmp_path, content, _use_new_zipfile_serialization=not legacy)
    assert "nothing in it was run" in refused("inspect", path)
    refused("convert", path, tmp_path / "out.pt")
    assert not (tmp_path / "trapped").exists()
    torch.load(path, weights_only=False)
    assert (tmp_path / "trapped").exists(), "the trap itself works"


def damaged():
    """{what is wrong: (change of a good state, words of the message)}"""
    return {
        "extra key": (lambda s: s | {"foo.weight": torch.ones(3)}, ["unknown foo.weight"]),
        "missing key": (lambda s: {k: v for k, v in s.items() if k != "bn2.bias"}, ["missing bn2.bias"]),
        "wrong shape": (lambda s: s | {"bn2.bias": torch.ones(3)}, ["bn2.bias has shape (3,) instead of (64,)"]),
        "two wrongs": (
            lambda s: {("fc" if k == "fusion.primary_conv.1.bias" else k): v for k, v in s.items()},
            ["missing fusion.primary_conv.1.bias", "unknown fc"],
        ),
    }


@pytest.mark.parametrize("wrong", damaged())
def test_a_difference_in_any_tensor_is_listed(wrong, tmp_path, refused):
    change, words = damaged()[wrong]
    path = save(tmp_path, change(fill(SMALL)))
    line = refused("convert", path, tmp_path / "out.pt")
    assert "looks like IR²Net CIFAR ResNet-20" in line
    assert all(word in line for word in words)
    assert not (tmp_path / "out.pt").exists()
    with pytest.raises(RunError):
        load_model(path)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("kept", [0, 1, 100, 5000, 0.5, 0.999])
def test_a_truncated_file_is_refused(legacy, kept, tmp_path, refused):
    whole = save(tmp_path, fill(SMALL), _use_new_zipfile_serialization=not legacy).read_bytes()
    path = tmp_path / "cut.pth"
    path.write_bytes(whole[: kept if isinstance(kept, int) else int(len(whole) * kept)])
    refused("inspect", path)


def test_what_is_no_network_is_refused(tmp_path, refused):
    assert "directory" in refused("inspect", tmp_path)
    assert "no checkpoint at" in refused("inspect", tmp_path / "nowhere.pth")
    for content in ({}, [1, 2], torch.ones(3), {"state_dict": 3}, {"state_dict": {"a": 3}}):
        assert "no network's weights" in refused("inspect", save(tmp_path, content))
    assert "no known release" in refused("inspect", save(tmp_path, torch.nn.Linear(2, 2).state_dict()))
    (tmp_path / "words.pth").write_text("not a checkpoint")
    refused("inspect", tmp_path / "words.pth")
