"""Inference beside other engines: each measured in a process of its own if it is installed, and skipped with a line."""

import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from packing import RESNET20, random_network

from modules.inference import native
from utils.bench import __main__ as bench
from utils.bench import engines, inference, rivals, turns
from utils.checkpoint.packed import write_packed
from utils.command import RunError

FLAGS = ("--threads", "1", "--repeats", "1", "--json")


@pytest.fixture(scope="module")
def packed_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("rivals") / "net.packed"
    write_packed(path, random_network(RESNET20), RESNET20)
    return path


@pytest.fixture
def no_engines(monkeypatch):
    """Nothing is installed but what this project requires."""
    found = importlib.util.find_spec
    absent = {name for rival in rivals.RIVALS for name in rival.needs} - {"torchvision"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in absent else found(name))


def test_without_other_engines_torchvision_alone_is_measured(packed_file, no_engines, monkeypatch, capsys):
    monkeypatch.setattr(turns, "LOADS", 1)
    bench.main(["deploy", "--checkpoint", str(packed_file), *FLAGS])
    printed = capsys.readouterr()
    result = json.loads(printed.out.splitlines()[-1])
    assert {"end_to_end", "layers", "parts", "threads", "batch", "bytes"} <= result.keys()
    rows = result["rivals"]["rows"]
    with_fast = ["packed, `--fast`"] if native.has_bf16() else []
    assert [row["engine"] for row in rows] == ["packed", *with_fast, "torchvision, eager"]
    assert all(row[name] > 0 for row in rows for name in ("ms", "import_ms", "load_ms", "runtime_mb", "added_mb"))
    assert rows[0]["bytes"] == packed_file.stat().st_size
    skipped = [line for line in printed.err.splitlines() if "--fast" not in line]
    assert len(skipped) == 3
    assert all(line.startswith("skipped: ") and "pip install" in line for line in skipped)
    assert "resnet18 in ONNX Runtime INT8" in skipped[0]
    for table in ("rivals", "sizes", "layers", "parts"):
        assert all(isinstance(line, str) for line in inference.TABLES[table]([result]))


FAKE = """
import time
import numpy as np

class SessionOptions:
    pass

class InferenceSession:
    def __init__(self, path, options, providers):
        if open(path).read() != "whole":
            raise ValueError("a damaged file")

    def run(self, names, inputs):
        time.sleep(0.001)
        print("what an engine prints is no answer")
        return [inputs["images"].mean((2, 3))]
"""


@pytest.fixture
def contender(tmp_path, monkeypatch):
    """One whose engine is a fake that gives the means of the images' channels; its process ends with the test."""
    (tmp_path / "onnxruntime.py").write_text(FAKE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "net.onnx").write_text("whole")
    images = np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype(np.float32)
    np.save(tmp_path / "images.npy", images)
    row = {"network": "net", "engine": "ONNX Runtime", "precision": "INT8"}
    contender = turns.Contender("onnxruntime", tmp_path / "net.onnx", row, torch.from_numpy(images.mean((2, 3))[0]))
    yield contender
    contender.stop()


def test_an_engine_answers_in_a_process_of_its_own(contender, tmp_path, monkeypatch):
    monkeypatch.setattr(turns, "BURST", 0.005)
    contender.start(tmp_path / "images.npy", 2)
    contender.turn()
    first = contender.process
    contender.start(tmp_path / "images.npy", 1)
    contender.turn()
    result = contender.result()
    assert len(contender.times) >= 4
    assert result["ms"] > 0
    assert result.keys() == {*contender.row, "ms", "bytes", *inference.LOADING}
    assert result["runtime_mb"] < 100  # there is no torch in it
    assert first.returncode is not None
    contender.stop()
    assert contender.process.returncode is not None


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a stopped process with its parent")
def test_a_stopped_engine_ends_with_the_process_that_started_it(contender, tmp_path):
    words = [sys.executable, "-m", "utils.bench.engines", "onnxruntime", contender.path, tmp_path / "images.npy", "1"]
    code = f"""
import os, signal, subprocess
engine = subprocess.Popen({[str(word) for word in words]}, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
engine.stdout.readline()
engine.send_signal(signal.SIGSTOP)
print(engine.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=turns.ROOT, capture_output=True, text=True)
    status = Path("/proc", done.stdout.strip(), "status")
    deadline = time.monotonic() + 10
    while status.exists() and "zombie" not in status.read_text() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert done.stdout.strip().isdigit(), done.stderr
    assert not status.exists() or "zombie" in status.read_text()


def test_other_logits_are_refused(contender, tmp_path):
    contender.expected = -contender.expected
    with pytest.raises(RunError, match=r"does not give torch's logits: cosine -1\.000"):
        contender.start(tmp_path / "images.npy", 1)


def test_an_engine_that_ends_between_its_turns_is_named(contender, tmp_path):
    contender.start(tmp_path / "images.npy", 1)
    contender.process.kill()
    contender.process.wait()
    with pytest.raises(RunError, match="net in ONNX Runtime, INT8 ended with status -9: "):
        contender.turn()


def test_an_engine_that_fails_says_why_in_one_line(contender, tmp_path):
    contender.path.write_text("half")
    with pytest.raises(RunError, match=r"^net in ONNX Runtime, INT8 ended with status 1: ValueError: a damaged file$"):
        contender.start(tmp_path / "images.npy", 1)


def test_a_turn_ends_after_its_seconds():
    ticks = iter(range(100))
    assert engines.burst(lambda: None, 5, lambda: next(ticks)) == [1000.0] * 5
    assert engines.burst(lambda: None, 0.1, lambda: next(ticks)) == [1000.0] * 2


@pytest.mark.parametrize("rival", rivals.RIVALS[1:], ids=str)
def test_every_engine_that_is_installed_computes_its_network(rival, tmp_path, monkeypatch):
    for name in rival.needs:
        pytest.importorskip(name)
    monkeypatch.setattr(rivals, "RIVALS", [rival])
    if not rivals.installed():
        pytest.skip("the processor has no bf16")
    batches = torch.randn(2, 1, 3, 64, 64)
    np.save(tmp_path / "images.npy", batches[0].numpy())
    for written, path, row, expected in rivals.written((64, 64), batches, tmp_path):
        contender = turns.Contender(written.engine, path, row, expected)
        try:
            contender.start(tmp_path / "images.npy", 1)  # compares the logits
        finally:
            contender.stop()
        assert 0 < contender.loads[0]["added_mb"] < 1000


def row(network, engine, precision, ms, **more):
    found = {"network": network, "engine": engine, "precision": precision, "ms": ms, "bytes": 5_000_000}
    return found | dict.fromkeys(inference.LOADING, 10.0) | more


RESULT = {
    "rivals": {
        "image_size": [224, 224],
        "versions": {"torch": "2"},
        "rows": [
            row({"arch": "resnet18", "dataset": "imagenet", "variant": "c"}, "packed", "1 bit", 4.0),
            row("resnet18", "torchvision, eager", "float32", 40.0, published_top1=69.758),
            row("resnet18", "OpenVINO", "INT8", 8.0, published_top1=69.758, bytes=11_000_000),
            row("mobilenet_v3_small", "OpenVINO", "INT8", 1.0, published_top1=67.668, added_mb=None),
        ],
    },
    "layers": [{"packed_ms": 1.0, "float_ms": 10.0}, {"packed_ms": 2.0, "float_ms": 40.0}],
    "parts": {"stem": 1.0, "total": 4.0},
    "bytes": {"float32": 47_000_000, "packed_half": 3_000_000},
    "cpu": "a processor",
    "threads": 1,
    "batch": 1,
}


def test_tables(tmp_path, capsys, fails):
    """Of two results, the second of which lacks an engine."""
    second = json.loads(json.dumps(RESULT)) | {"threads": 2, "batch": 8}
    del second["rivals"]["rows"][2]
    paths = [str(tmp_path / name) for name in ("one", "two")]
    for path, result in zip(paths, (RESULT, second)):
        with open(path, "w") as file:
            print("other lines", json.dumps(result), sep="\n", file=file)
    inference.main(["rivals", *paths])
    out = capsys.readouterr().out
    assert "| ms, 2 threads" not in out
    assert "| 1 thread, ms | packed is faster by | 2 threads, batch 8, ms | packed is faster by |" in out
    assert "| IR²Net-C | packed | 1 bit | 4.00 | 1.00 | 4.00 | 1.00 | 10 | 10 | 10 | 10 |" in out
    assert "| ResNet-18 | OpenVINO | INT8 | 8.00 | 2.00 | - | - | 10 | 10 | 10 | 10 |" in out
    assert "| MobileNetV3-small | OpenVINO | INT8 | 1.00 | 0.25 | 1.00 | 0.25 | 10 | 10 | 10 | - |" in out
    assert "IR²Net-C is 10.00 times as fast as ResNet-18 in torchvision, eager, float32; 2.00 times" in out
    inference.main(["sizes", *paths])
    out = capsys.readouterr().out
    assert "| IR²Net-C | packed, `--half` | 1 bit | 3.00 | 0.60 | 66.6 |" in out
    assert "| ResNet-18 | OpenVINO | INT8 | 11.00 | 2.20 | 69.8 |" in out
    inference.main(["layers", *paths[:1]])
    assert "10.0 to 20.0 times (median 15.0)" in capsys.readouterr().out
    inference.main(["parts", *paths[:1]])
    assert "| stem | 1.000 | 25% |" in capsys.readouterr().out
    for text in ("", "[]", "{}", "text", '{"rivals": 3}'):
        (tmp_path / "bad").write_text(text)
        assert fails(inference.main, "rivals", tmp_path / "bad")[0] == 1
    assert fails(inference.main, "rivals", tmp_path / "missing")[0] == 1


def test_engines_that_need_no_torch_do_not_import_it():
    """Else their memory would hold it."""
    lines = Path(engines.__file__).read_text().splitlines()
    names = [line.split()[1] for line in lines if line.startswith(("import ", "from "))]
    assert names
    assert all(name in sys.stdlib_module_names or name == "numpy" for name in names)
