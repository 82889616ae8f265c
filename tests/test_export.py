"""The floating-point graph for other runtimes: what of it they take, and a file that is written only if they do.

onnx, onnxscript and onnxruntime are no requirements: without them the tests of the whole way are skipped.
"""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from packing import IMAGENET, RESNET20, name_of

from models import build_model
from models.methods import CIFAR, methods_of
from utils import checkpoint
from utils.command import RunError
from utils.deploy import __main__ as deploy
from utils.deploy.export import check
from utils.deploy.networks import random_images, random_network

SHORTCUTS = [  # every kind of them, and none
    *({"arch": "resnet20", "method": method, "recovery": "cirec"} for method in ("bireal", "recu")),
    {"arch": "vgg_small", "recovery": "irec"},
    {**IMAGENET, "variant": "c"},
]
NETWORKS = [{"arch": "resnet20", "method": method} for method in methods_of(CIFAR)]


def size_of(network):
    return (64, 64) if "dataset" in network else (32, 32)


def save(path, network):
    """A checkpoint with random weights; its path."""
    size = size_of(network)
    weights = random_network(network, size).state_dict()
    checkpoint.save(path, {"network": network, "model": weights, "data": {"image_size": list(size)}})
    return path


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save(tmp_path_factory.mktemp("export") / "x.pt", RESNET20)


@pytest.fixture
def without_onnx(monkeypatch):
    """In the packages' place: an exporter that writes "graph" to the file, and for each test its onnxruntime."""
    program = SimpleNamespace(model=SimpleNamespace(metadata_props={}), save=lambda path, **_: path.write_text("graph"))
    monkeypatch.setitem(sys.modules, "onnxscript", SimpleNamespace())
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: program)

    def runtime(session):
        monkeypatch.setitem(sys.modules, "onnxruntime", SimpleNamespace(InferenceSession=session, __version__="0"))

    return runtime


def poolings(graph):
    """(window, stride, ceil_mode) of every average pooling of an exported graph."""
    for node in graph.nodes:
        if node.target is torch.ops.aten.avg_pool2d.default:
            values = dict(zip(("x", "kernel_size", "stride", "padding", "ceil_mode"), node.args)) | node.kwargs
            window = values["kernel_size"]
            yield window, values.get("stride") or window, values.get("ceil_mode", False)


@pytest.mark.parametrize("network", SHORTCUTS, ids=name_of)
@torch.no_grad()
def test_the_graph_takes_any_batch_and_no_pixel_beyond_the_image(network, small_resnet20):
    """onnxruntime counts a window that begins behind the image's end, torch does not: with ceil_mode, where the stride
    is larger than the window."""
    model = random_network(network, size_of(network))
    pair, images = (random_images(size_of(network), count) for count in (2, 3))
    program = torch.export.export(model, (pair,), dynamic_shapes=({0: torch.export.Dim("N")},))
    torch.testing.assert_close(program.module()(images), model(images), rtol=1e-5, atol=1e-5)
    for window, stride, ceil_mode in poolings(program.graph):
        assert not ceil_mode or window == stride


def test_poolings_of_a_graph_are_found():
    model = build_model("resnet20", method="recu").eval()  # two shortcuts, over 2x2 pixels, and the pooling at the end
    found = list(poolings(torch.export.export(model, (torch.zeros(2, 3, 32, 32),)).graph))
    assert found == [([2, 2], [2, 2], True)] * 2 + [([8, 8], [8, 8], False)]


@pytest.mark.parametrize("network", [*SHORTCUTS, *NETWORKS, {"arch": "resnet18"}], ids=name_of)
def test_onnxruntime_gives_the_same_logits(network, tmp_path, capsys):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    path = save(tmp_path / "x.pt", network)
    deploy.main(["onnx", "--checkpoint", str(path), "--output", str(tmp_path / "x.onnx"), "--json"])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (found["checked"], found["images"]) == (True, 16)
    assert found["relative_error"] < 1e-4


def test_onnx(saved, tmp_path, capsys):
    """On real images; and the file says what images it expects."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    path = tmp_path / "net.onnx"
    deploy.main(["onnx", "--checkpoint", str(saved), "--output", str(path), "--dataset", "digits", "--json"])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (found["checked"], found["images"]) == (True, 360)
    assert found["same"] >= 270
    assert found["relative_error"] < 1e-4
    metadata = {entry.key: json.loads(entry.value) for entry in onnx.load(path).metadata_props}
    assert metadata["image_size"] == [32, 32]
    assert metadata["mean"] == [0.485, 0.456, 0.406]


@pytest.mark.parametrize("spoil", [lambda logits: logits + 1, lambda logits: np.full_like(logits, np.nan)])
def test_other_logits_are_refused(spoil, saved, without_onnx):
    model, contents = checkpoint.open_model(saved)

    class Session:
        def __init__(self, path, providers):
            pass

        def run(self, names, inputs):
            with torch.no_grad():
                return [spoil(model(torch.from_numpy(inputs["images"])).numpy())]

    without_onnx(Session)
    args = SimpleNamespace(dataset=None, data_dir=None, images=16, batch_size=4, seed=1)
    with pytest.raises(RunError, match="on 0 of 16 images"):
        check(args, "net.onnx", contents, model)


def test_a_graph_that_onnxruntime_refuses_replaces_nothing(saved, tmp_path, without_onnx, fails):
    class Refusal(Exception):
        pass

    def refuse(path, providers):
        with open(path) as file:
            assert file.read() == "graph"
        raise Refusal("Incompatible dimensions")

    without_onnx(refuse)
    path = tmp_path / "x.onnx"
    path.write_text("of before")
    status, line = fails(deploy.main, "onnx", "--checkpoint", saved, "--output", path, "--force")
    assert (status, "refuses the exported graph: Incompatible dimensions" in line) == (1, True)
    assert path.read_text() == "of before"
    assert list(tmp_path.iterdir()) == [path]
