"""Packed networks give the training graph's numbers, and the commands that make, check and measure them."""

import json

import pytest
import torch
from conftest import write_images
from packing import IMAGENET, RESNET20, VALUES, name_of, random_images, random_network, relative_error
from torch import nn

from cifar import eval as cifar_eval
from models import build_model
from models.inference import binary_convs, pack_network
from models.methods import METHODS, Method
from modules.binarize import BiRealSTE, ClipSTE
from modules.conv import BinaryConv2d
from modules.inference import native
from utils import checkpoint
from utils.checkpoint.packed import read_packed, write_packed
from utils.checkpoint.released import export
from utils.deploy import __main__ as deploy
from utils.deploy import networks
from utils.deploy.verify import check_sums, relative_errors

NETWORKS = [
    *({**IMAGENET, "variant": variant} for variant in "abcd"),
    *({"arch": arch, "recovery": "cirec"} for arch in ("resnet20", "resnet18", "vgg_small")),
    {"arch": "resnet20", "structure": "normal"},
    {"arch": "resnet20", "activation": "relu"},
    *({"arch": "resnet20", "method": method} for method in ("bnn", "xnor", "irnet", "sdbnn", "reactnet")),
    *({"arch": "vgg_small", "method": method} for method in ("xnor", "reactnet")),
    {**IMAGENET, "method": "irnet"},
    *({"arch": arch, "method": "irnet", "activation_bits": 32} for arch in ("resnet20", "vgg_small")),
    *({"arch": arch, "method": method} for arch in ("resnet20", "resnet18", "vgg_small") for method in VALUES),
    *({"arch": "resnet20", "method": method, "structure": "normal", "recovery": "cirec"} for method in VALUES),
    {"arch": "resnet18", "method": "adabin", "structure": "normal"},
    *({**IMAGENET, "method": method} for method in VALUES),
    {**IMAGENET, "method": "adabin", "variant": "d"},
    *({"arch": "resnet20", "method": method, "activation_bits": 32} for method in ("rbnn", "recu", "adabin")),
    *({"arch": "vgg_small", "method": method, "activation_bits": 32} for method in ("recu", "adabin")),
]


@pytest.mark.parametrize("network", NETWORKS, ids=name_of)
@torch.no_grad()
def test_packed_network_is_the_training_graph(network):
    model = random_network(network)
    packed = pack_network(model)
    images = random_images(network, 2 if network.get("dataset") else 3, seed=1)
    wrong, expected = check_sums(model, packed, images)
    logits = packed(images)
    assert wrong == []
    assert relative_error(expected, logits) < 1e-4
    assert torch.equal(expected.argmax(1), logits.argmax(1))
    if network.get("method") not in VALUES:  # whose rounding may turn a sign
        assert relative_error(model(images), logits) < 1e-4


@pytest.mark.parametrize("arch", ["resnet20", "resnet18"])
@torch.no_grad()
def test_odd_image_sizes(arch):
    network = {"arch": arch, "recovery": "cirec"}
    model = random_network(network)
    images = torch.randn(3, 3, 27, 35)
    packed = pack_network(model)
    assert check_sums(model, packed, images)[0] == []
    assert relative_error(model(images), packed(images)) < 1e-4


def test_a_wrong_bit_is_found():
    model = random_network(RESNET20)
    packed = pack_network(model)
    _, conv = binary_convs(packed)[4]
    conv.bits.view(torch.int64)[0, 0, 0, 0] ^= 1
    conv.prepare()
    assert check_sums(model, packed, random_images(RESNET20, 1))[0] == [binary_convs(model)[4][0]]


@pytest.mark.parametrize("values", ["weight_values", "input_values"])
def test_a_wrong_value_is_found(values):
    """A scale or an offset of the weights or the activations, whose signs and sums are right."""
    network = {"arch": "resnet20", "method": "adabin"}
    model = random_network(network)
    packed = pack_network(model)
    _, conv = binary_convs(packed)[4]
    getattr(conv, values)[1] += 1e-3
    conv.prepare()
    assert check_sums(model, packed, random_images(network, 1))[0] == [binary_convs(model)[4][0]]


def test_learned_values_are_negative_in_places():
    """In the networks that are compared here."""
    for method, name in (
        ("adabin", "alpha"),
        ("adabin", "pos"),
        ("adabin", "neg"),
        ("recu", "alpha"),
        ("rbnn", "alpha"),
    ):
        values = [v.flatten() for k, v in random_network({"arch": "resnet20", "method": method}).named_parameters()
                  if k.endswith(name)]  # fmt: skip
        assert 0 < (torch.cat(values) < 0).float().mean() < 1


@pytest.mark.parametrize("method", VALUES)
@torch.no_grad()
def test_images_of_several_sizes_one_after_the_other(method):
    network = {"arch": "resnet20", "method": method}
    model = random_network(network)
    packed = pack_network(model)
    for size in ((32, 32), (19, 24), (32, 32)):
        images = torch.randn(1, 3, *size)
        wrong, expected = check_sums(model, packed, images)
        assert wrong == []
        assert relative_error(expected, packed(images)) < 1e-4


def test_packing_leaves_the_model_alone():
    model = random_network(RESNET20)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    pack_network(model)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("bits", [(32, 1), (32, 32)])
def test_real_weights_are_refused(bits):
    model = build_model("resnet20", weight_bits=bits[0], activation_bits=bits[1])
    with pytest.raises(ValueError, match="1-bit weights"):
        pack_network(model)


@pytest.mark.parametrize("activation_bits", [1, 32])
@pytest.mark.parametrize(
    "options",
    [{"bias": True}, {"groups": 2}, {"dilation": 2}, {"stride": (1, 2)}, {"padding_mode": "reflect"}],
    ids=str,
)
def test_convolutions_that_no_packed_one_computes_are_refused(options, activation_bits):
    model = build_model("resnet20")
    block = model.stages[0][0]
    block.conv = BinaryConv2d(16, 16, 3, **{"padding": 1, "bias": False, **options}, activation_bits=activation_bits)
    with pytest.raises(ValueError, match="no packed form"):
        pack_network(model)


class SignedScale(nn.Module):
    def __init__(self, shape):
        super().__init__()

    def forward(self, w):
        return w, torch.where(w[:, :1, :1, :1] < 0, -1.0, 1.0), None


@torch.no_grad()
def test_negative_scales_without_parameters_and_other_networks(monkeypatch):
    conv = {"weight_binarizer": ClipSTE, "activation_binarizer": BiRealSTE, "weight_transform": SignedScale}
    monkeypatch.setitem(METHODS, "signed", Method(conv={"cifar": conv}, network={"cifar": {"act": "hardtanh"}}))
    model, images = build_model("vgg_small", method="signed").eval(), torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(pack_network(model)(images), model(images), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="no packed form of Sequential"):
        pack_network(nn.Sequential(model))


@pytest.mark.parametrize("method", ["bireal", *VALUES])
@torch.no_grad()
def test_compiled_whole(method):
    packed = pack_network(random_network({**RESNET20, "method": method}))
    images = random_images(RESNET20, 2)
    compiled = torch.compile(packed, backend="eager", fullgraph=True)
    assert relative_error(compiled(images), packed(images)) < 1e-5


@torch.no_grad()
def test_tracing_and_autocast_are_refused():
    packed, images = pack_network(random_network(RESNET20)), random_images(RESNET20, 1)
    with pytest.raises(RuntimeError, match="packed network"):
        torch.jit.trace(packed, (images,))
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(RuntimeError, match="leave autocast off"):
        packed(images)


def test_evaluation_of_a_packed_network_in_bf16_ends_in_one_line(tmp_path, fails):
    write_packed(tmp_path / "net.packed", build_model("resnet20"), {"arch": "resnet20"})
    argv = ("--checkpoint", tmp_path / "net.packed", "--dataset", "digits", "--amp", "bf16", "--no-progress")
    status, line = fails(cifar_eval.main, *argv)
    assert (status, "packed network computes in float32" in line) == (2, True)


@pytest.fixture
def saved(tmp_path):
    """Path of a checkpoint with random weights."""
    path = tmp_path / "last.pt"
    checkpoint.save(path, {"network": RESNET20, "model": random_network(RESNET20).state_dict()})
    return path


def run(capsys, *argv):
    deploy.main([str(a) for a in argv] + ["--json"])
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_pack_and_verify(saved, tmp_path, capsys, fails):
    output = tmp_path / "packed.safetensors"
    assert run(capsys, "pack", "--checkpoint", saved, "--output", output)["bytes"] == output.stat().st_size
    found = run(capsys, "verify", "--checkpoint", saved, "--packed", output, "--dataset", "digits")
    assert found["passed"]
    assert found["images"] == found["labelled"] == found["same_top1"] == 360
    assert found["top1_float"] == found["top1_packed"]
    assert found["convs"] == 18
    verify = ("verify", "--checkpoint", saved, "--images", 4)
    assert run(capsys, *verify, "--half")["passed"]
    assert "packed without --half" in fails(deploy.main, *verify, "--packed", output, "--half")[1]
    halved, other = tmp_path / "half.packed", tmp_path / "other.packed"
    run(capsys, "pack", "--checkpoint", saved, "--output", halved, "--half")
    assert run(capsys, *verify, "--packed", halved)["passed"]
    other_network = {**RESNET20, "num_classes": 3, "structure": "normal"}
    write_packed(other, random_network(other_network), other_network)
    different = "it has num_classes 3 instead of 10, structure normal instead of bireal"
    assert different in fails(deploy.main, *verify, "--packed", other)[1]
    assert fails(deploy.main, "pack", "--checkpoint", saved, "--output", output)[0] == 2
    assert "would be lost" in fails(deploy.main, "pack", "--checkpoint", saved, "--output", saved, "--force")[1]
    assert "random ones" in fails(deploy.main, "verify", "--checkpoint", saved, "--images", 4, "--dataset", "digits")[1]
    assert "--packed: is empty" in fails(deploy.main, *verify, "--packed", "")[1]
    assert "packed already" in fails(deploy.main, "verify", "--checkpoint", output)[1]
    assert "--checkpoint" in fails(deploy.main, "verify")[1]


def test_verify_refuses_another_network(saved, tmp_path, capsys, fails):
    other = tmp_path / "other.safetensors"
    write_packed(other, random_network(RESNET20, seed=5), RESNET20)
    status, line = fails(deploy.main, "verify", "--checkpoint", saved, "--packed", other, "--images", "2")
    assert status == 1
    assert "not the same" in line


def test_a_network_with_nan_is_not_the_same(saved, tmp_path, fails):
    assert relative_errors(torch.ones(1, 2), torch.tensor([[1, float("nan")]])).tolist() == [torch.inf]
    payload = checkpoint.read(saved)
    payload["model"]["fc.bias"][3] = float("nan")
    checkpoint.save(tmp_path / "nan.pt", payload)
    assert "not the same" in fails(deploy.main, "verify", "--checkpoint", tmp_path / "nan.pt", "--images", 2)[1]
    pack = ("pack", "--checkpoint", tmp_path / "nan.pt", "--output", tmp_path / "nan.packed")
    assert "numbers that are not finite: fc.bias" in fails(deploy.main, *pack)[1]
    payload["model"]["fc.bias"][3], payload["model"]["fc.weight"][0, 0] = 0, 1e5
    checkpoint.save(tmp_path / "nan.pt", payload)
    assert "not finite in float16: fc.weight" in fails(deploy.main, *pack, "--half")[1]
    assert not (tmp_path / "nan.packed").exists()


def test_size_and_classes_stay_with_a_packed_file(tmp_path, capsys, fails):
    """Images of 32x48, as cifar.train keeps them, are verified and evaluated as they are; other classes are refused."""
    write_images(tmp_path / "data" / "test", 4, size=(48, 32))
    data = {"dataset": "folder", "classes": ["dark", "light"], "image_size": [32, 48]}
    network = RESNET20 | {"num_classes": 2}
    payload = {"network": network, "model": random_network(network).state_dict(), "data": data}
    checkpoint.save(tmp_path / "last.pt", payload)
    run(capsys, "pack", "--checkpoint", tmp_path / "last.pt", "--output", tmp_path / "net.packed")
    opened = read_packed(tmp_path / "net.packed")
    assert (opened.image_size, opened.data["classes"]) == ((32, 48), ["dark", "light"])
    folder = ("--dataset", "folder", "--data-dir", tmp_path / "data")
    verified = run(capsys, "verify", "--checkpoint", tmp_path / "last.pt", "--packed", tmp_path / "net.packed", *folder)
    assert (verified["passed"], verified["labelled"]) == (True, 8)
    for name in ("last.pt", "net.packed"):
        cifar_eval.main([*map(str, ("--checkpoint", tmp_path / name, *folder)), "--json", "--no-progress"])
        result = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert result["top1"] == verified["top1_float"]
        assert "classes" in fails(cifar_eval.main, "--checkpoint", tmp_path / name, "--dataset", "digits")[1]


def test_an_imagenet_network_is_verified_at_its_own_size(tmp_path, capsys, fails):
    network = {**IMAGENET, "variant": "d", "num_classes": 3}
    payload = {"network": network, "model": networks.random_network(network, (64, 64)).state_dict()}
    checkpoint.save(tmp_path / "last.pt", {**payload, "data": {"classes": ["a", "b", "c"], "image_size": 64}})
    run(capsys, "pack", "--checkpoint", tmp_path / "last.pt", "--output", tmp_path / "net.packed")
    assert read_packed(tmp_path / "net.packed").image_size == (64, 64)
    assert run(capsys, "verify", "--checkpoint", tmp_path / "last.pt", "--images", 2)["passed"]
    for name in ("last.pt", "net.packed"):
        status, line = fails(deploy.main, "bench", "--checkpoint", tmp_path / name, "--image-size", 16)
        assert (status, "does not run on images (16, 16)" in line) == (1, True)


def test_warm_compiles_what_inference_needs(capsys, monkeypatch):
    assert run(capsys, "warm")["seconds"] > 0
    monkeypatch.setattr(native, "_compile", None)
    assert callable(native.load())


def test_fast_is_compared_with_exact_or_refused(saved, capsys, fails, monkeypatch):
    flags = ("verify", "--checkpoint", saved, "--images", "4", "--fast")
    monkeypatch.setattr(native, "has_bf16", lambda: True)
    found = run(capsys, *flags)
    assert found["images"] == 4
    assert 0 <= found["fast_same_top1"] <= 4
    assert "one program" in fails(deploy.main, "verify", "--arch", "resnet20", "--method", "rbnn", "--fast")[1]
    monkeypatch.setattr(native, "has_bf16", lambda: False)
    assert "avx512_bf16" in fails(deploy.main, *flags)[1]


def test_bench(saved, capsys):
    found = run(capsys, "bench", "--checkpoint", saved, "--threads", "1", "--batch-size", "2", "--repeats", "1")
    assert found["threads"] == 1
    assert found["batch"] == 2
    assert set(found["end_to_end"]) == {"packed_ms", "float_ms", "torchvision_ms"}
    assert [row["name"] for row in found["layers"]] == [name for name, _ in binary_convs(build_model(**RESNET20))]
    assert all(row["packed_ms"] > 0 and row["float_ms"] > 0 for row in found["layers"])
    assert found["bytes"]["packed_half"] < found["bytes"]["packed"] < found["bytes"]["float32"]


def test_random_networks_have_lively_batch_norms():
    norms = [m for m in random_network(RESNET20).modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(norm.bias.std() > 0.1 and norm.running_var.max() != 1 for norm in norms)


def test_a_checkpoint_says_itself_which_network_it_holds(saved, tmp_path, fails):
    out = tmp_path / "other.packed"
    flags = ("--arch", "vgg_small", "--method", "rbnn", "--recovery", "irec")
    status, line = fails(deploy.main, "pack", "--checkpoint", saved, *flags, "--output", out)
    assert (status, not out.exists()) == (2, True)
    assert "--arch, --method, --recovery: --checkpoint names the network" in line
    deploy.main(["pack", "--checkpoint", str(saved), "--output", str(out)])
    assert "names the network" in fails(deploy.main, "bench", "--checkpoint", out, *flags)[1]
    assert "weight_bits 1, not 32" in fails(deploy.main, "bench", "--checkpoint", out, "--weight-bits", 32)[1]


def test_a_file_that_fits_several_networks_is_not_packed_as_one_of_them(tmp_path, fails):
    model = build_model("resnet18", dataset="imagenet", variant="c", weight_bits=32)
    network = {"arch": "resnet18", "dataset": "imagenet", "variant": "c", "weight_bits": 32, "activation_bits": 1}
    checkpoint.save(tmp_path / "last.pt", {"network": network, "model": model.state_dict()})
    released = export(checkpoint.read(tmp_path / "last.pt"), "last.pt", "ir2net_imagenet_c_stage1")
    torch.save({"state_dict": released}, tmp_path / "stage1.pth.tar")
    line = fails(deploy.main, "pack", "--checkpoint", tmp_path / "stage1.pth.tar", "--output", tmp_path / "out")[1]
    assert "--weight-bits" in line


def test_verify_takes_packed_files_alone(saved, fails):
    assert "is not packed" in fails(deploy.main, "verify", "--checkpoint", saved, "--packed", saved)[1]
