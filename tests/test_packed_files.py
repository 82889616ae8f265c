"""Packed files: small, read back to the bit, and refused if damaged or absurd."""

import pickle
import random

import pytest
import torch
from packing import IMAGENET, RESNET20, VALUES, name_of, random_images, random_network

from cifar import eval as cifar_eval
from models import build_model
from models.inference import pack_network
from utils import checkpoint
from utils.checkpoint.files import is_packed
from utils.checkpoint.packed import packed_content, read_packed, write_packed
from utils.command import RunError
from utils.deploy.verify import round_to_half


@pytest.mark.parametrize("method", ["reactnet", "rbnn", "adabin"])
@torch.no_grad()
def test_packed_networks_are_pickled(method):
    packed = pack_network(random_network({**RESNET20, "method": method}))
    images = random_images(RESNET20, 2)
    assert torch.equal(pickle.loads(pickle.dumps(packed))(images), packed(images))


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize(
    "network",
    [
        RESNET20,
        *({"arch": "resnet20", "method": method} for method in ("reactnet", *VALUES)),
        *({"arch": "vgg_small", "method": method} for method in ("recu", "adabin")),
        {"arch": "resnet18", "method": "rbnn"},
        {"arch": "resnet20", "method": "adabin", "activation_bits": 32},
    ],
    ids=name_of,
)
@torch.no_grad()
def test_files_round_trip(network, half, tmp_path):
    model = random_network(network)
    path = tmp_path / "packed.safetensors"
    write_packed(path, model, network, {"image_size": [48, 32], "classes": ["a"], "train_images": 7}, half)
    found = read_packed(path)
    assert is_packed(path)
    assert found.network == network
    assert (found.packed, found.image_size, found.data) == (True, (48, 32), {"image_size": [48, 32], "classes": ["a"]})
    opened = checkpoint.load_model(path)
    assert not opened.training
    reference = pack_network(round_to_half(model) if half else model)
    images = random_images(network, 2)
    assert torch.equal(opened(images), reference(images))
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_reading_draws_no_random_numbers(packed_file):
    before = torch.get_rng_state()
    checkpoint.load_model(packed_file)
    assert torch.equal(torch.get_rng_state(), before)


def test_sizes():
    resnet20 = build_model(**RESNET20)
    assert len(packed_content(resnet20, RESNET20)) <= 80e3
    network = {**IMAGENET, "variant": "c"}
    model = build_model(**network)
    assert len(packed_content(model, network)) <= 5.1e6
    assert len(packed_content(model, network, half=True)) <= 3.3e6


@pytest.fixture(scope="module")
def packed_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("packed") / "packed.safetensors"
    write_packed(path, build_model("resnet20"), {"arch": "resnet20"})
    return path


def test_every_corruption_is_refused(packed_file, tmp_path):
    content, rng = packed_file.read_bytes(), random.Random(0)
    header = 8 + int.from_bytes(content[:8], "little")
    path = tmp_path / "damaged.safetensors"
    for i in range(300):
        damaged = bytearray(content)
        kind = rng.choice(["flip", "flip", "header", "truncate", "append", "zero", "swap"])
        place = rng.randrange(header if kind == "header" else len(content))
        if kind in ("flip", "header"):
            damaged[place] ^= 1 << rng.randrange(8)
        elif kind == "truncate":
            del damaged[place:]
        elif kind == "append":
            damaged += rng.randbytes(rng.randint(1, 100))
        elif kind == "zero":
            damaged[place : place + 50] = bytes(len(damaged[place : place + 50]))
        else:
            other = rng.randrange(len(content))
            damaged[place], damaged[other] = damaged[other], damaged[place]
        if damaged == content:
            continue
        path.write_bytes(damaged)
        with pytest.raises(RunError) as refusal:
            read_packed(path)
        assert str(refusal.value).startswith(str(path)), (i, kind)
        assert "\n" not in str(refusal.value)


def test_other_files_are_refused(packed_file, tmp_path):
    content = packed_file.read_bytes()
    newer = tmp_path / "newer.safetensors"
    newer.write_bytes(content.replace(b'"version":"1"', b'"version":"2"'))
    with pytest.raises(RunError, match="has version 2; this code reads version 1"):
        read_packed(newer)
    empty = tmp_path / "empty.safetensors"
    empty.touch()
    with pytest.raises(RunError, match="no packed network"):
        read_packed(empty)
    with pytest.raises(RunError, match="cannot read"):
        read_packed(tmp_path / "missing.safetensors")
    pickled = tmp_path / "pickled.pt"
    torch.save({"a": torch.zeros(1)}, pickled)
    assert not is_packed(pickled)
    assert not is_packed(tmp_path / "missing.safetensors")
    with pytest.raises(RunError, match="no packed network"):
        read_packed(pickled)


ABSURD = (
    *({"arch": arch} for arch in ("resnet99", ["resnet20"], None)),
    *({"num_classes": count} for count in (10**15, -1, "x")),
    {"arch": "vgg_small", "image_size": 10**9},
    {"recovery": "cirec", "groups": 0},
    {"ratio": 0},
    {"weight_bits": 7},
    {"unknown": 1},
    {"structure": {}},
    {"method": "\ud800"},
)


@pytest.mark.parametrize("absurd", ABSURD, ids=ascii)
def test_files_with_right_checksums_and_absurd_networks(absurd, tmp_path, monkeypatch, fails):
    network = {"arch": "resnet20"}
    model = random_network(network)
    write_packed(tmp_path / "net.packed", model, network | absurd)
    checkpoint.save(tmp_path / "net.pt", {"network": network | absurd, "model": model.state_dict()})
    for name in ("net.packed", "net.pt"):
        status, line = fails(cifar_eval.main, "--checkpoint", tmp_path / name, "--dataset", "digits")
        assert status in (1, 2), line


@pytest.mark.parametrize("data", [[], {"classes": 3}, {"classes": [1]}, {"image_size": -1}, {"image_size": [10**9, 2]}])
def test_files_with_right_checksums_and_absurd_data(data, tmp_path):
    checkpoint.save(tmp_path / "net.pt", {"network": RESNET20, "model": {}, "data": data})
    with pytest.raises(RunError, match="damaged"):
        checkpoint.read_contents(tmp_path / "net.pt")


def test_a_packed_file_opens_as_any_checkpoint(tmp_path):
    network = {"arch": "resnet20", "recovery": "cirec", "num_classes": 7}
    model = build_model(**network).eval()
    write_packed(tmp_path / "net.packed", model, network)
    opened, description = checkpoint.open_model(tmp_path / "net.packed")
    images = torch.randn(2, 3, 32, 32)
    assert torch.allclose(opened(images), model(images), rtol=1e-4, atol=1e-5)
    assert description.parameters == sum(p.numel() for p in model.parameters())
    with pytest.raises(RunError, match="not 32"):
        checkpoint.open_model(tmp_path / "net.packed", weight_bits=32)
