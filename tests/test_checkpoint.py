"""What `python -m utils.checkpoint` tells of a checkpoint, leaves out of it, and makes of several."""

import json

import pytest
import torch

from models import build_model
from utils import checkpoint
from utils import released as released_files
from utils.checkpoint import __main__ as command
from utils.checkpoint.average import average
from utils.command import RunError

NETWORK = {"arch": "resnet20", "num_classes": 10}


@pytest.fixture
def paths(tmp_path):
    """Two checkpoints of one network, as training leaves them."""
    made = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = build_model(**NETWORK)
        training = {"optimizer": {"state": {}}, "scheduler": {}, "scaler": {}, "rng": {"torch": torch.get_rng_state()}}
        made.append(tmp_path / f"{seed}.pt")
        checkpoint.save(
            made[-1], {"network": NETWORK, "model": model.state_dict(), "epoch": 3, "best": 50.0, **training}
        )
    return made


def test_info(paths, capsys):
    command.main(["info", str(paths[0]), "--json"])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["network"] == NETWORK
    assert (found["epoch"], found["best"], found["dtype"]) == (3, 50.0, "float32")
    assert found["training_state"] == ["optimizer", "scheduler", "scaler", "rng"]


def test_strip_leaves_the_network_alone(paths, tmp_path, fails, capsys):
    out = tmp_path / "small.pt"
    command.main(["strip", str(paths[0]), str(out)])
    assert not checkpoint.read(out).keys() & set(checkpoint.TRAINING_STATE)
    before, after = (checkpoint.load_model(path).state_dict() for path in (paths[0], out))
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert fails(command.main, "strip", paths[0], out)[0] == 2
    assert fails(command.main, "strip", paths[0], paths[0])[0] == 2
    command.main(["strip", str(paths[1]), str(out), "--force"])
    before = out.stat().st_size
    command.main(["strip", "--half", str(out), str(out), "--force"])
    sizes = [f"{size / 1e6:.2f} MB" for size in (before, out.stat().st_size)]
    assert sizes[0] != sizes[1]
    assert " -> ".join(sizes) in capsys.readouterr().out


def test_what_is_read_is_never_replaced(paths, tmp_path, fails):
    before = paths[0].read_bytes()
    assert "would be lost" in fails(command.main, "average", paths[0], *paths, "--force")[1]
    assert "would be lost" in fails(released_files.main, "export", paths[0], paths[0], "--layout", "x", "--force")[1]
    assert paths[0].read_bytes() == before


def test_strip_in_half_precision_moves_no_sign(paths, tmp_path):
    payload = checkpoint.read(paths[0])
    small = payload["model"]["stages.1.0.conv.weight"]
    small.view(-1)[0] = -1e-9  # 0 in float16, and the sign of 0 is +1
    checkpoint.save(paths[0], payload)
    out = tmp_path / "half.pt"
    command.main(["strip", "--half", str(paths[0]), str(out)])
    assert out.stat().st_size < 0.6 * paths[0].stat().st_size
    before, after = (checkpoint.load_model(path).state_dict() for path in (paths[0], out))
    assert torch.equal(before["stages.1.0.conv.weight"], after["stages.1.0.conv.weight"])
    for key, value in before.items():
        assert after[key].dtype == value.dtype
        assert torch.equal(after[key] >= 0, value >= 0)
        assert torch.allclose(after[key].double(), value.double(), rtol=1e-3, atol=1e-6)


def test_average_is_the_mean_with_statistics_of_its_own(paths):
    batches = [(torch.randn(8, 3, 32, 32),) for _ in range(2)]
    payload = average(paths, batches)
    a, b = (checkpoint.read(path)["model"] for path in paths)
    torch.testing.assert_close(payload["model"]["fc.weight"], (a["fc.weight"] + b["fc.weight"]) / 2)
    stem = torch.nn.functional.conv2d(batches[0][0], payload["model"]["conv1.weight"], padding=1)
    stem = [stem, torch.nn.functional.conv2d(batches[1][0], payload["model"]["conv1.weight"], padding=1)]
    mean = torch.stack([x.mean((0, 2, 3)) for x in stem]).mean(0)
    torch.testing.assert_close(payload["model"]["bn1.running_mean"], mean, rtol=1e-4, atol=1e-5)
    assert payload["model"]["bn1.num_batches_tracked"] == 2


def test_average_by_command(paths, tmp_path, tiny_folder, fails):
    out, where = tmp_path / "mean.pt", ["--dataset", "folder", "--data-dir", str(tiny_folder)]
    assert "10 classes" in fails(command.main, "average", out, *paths, *where)[1]
    line = fails(command.main, "average", out, *paths)[1]
    assert "cifar10, which is taken: " in line
    assert line.endswith("needs --data-dir")
    network = {**NETWORK, "num_classes": 2}
    for path in paths:
        payload = {"network": network, "data": {"classes": ["dark", "light"], "image_size": [48, 48]}}
        checkpoint.save(path, payload | {"model": build_model(**network).state_dict()})
    command.main(["average", str(out), *map(str, paths), *where, "--batch-size", "16"])
    averaged = checkpoint.read(out)
    assert averaged["averaged"] == [str(path) for path in paths]
    assert averaged["data"] == {"classes": ["dark", "light"], "image_size": [48, 48]}
    command.main(["average", str(out), *map(str, paths), *where, "--image-size", "40", "--force", "--skip-corrupt"])
    assert checkpoint.read(out)["data"]["image_size"] == [40, 40]
    assert not checkpoint.load_model(out).training


def test_different_networks_have_no_mean(paths):
    other = {**NETWORK, "method": "bnn"}
    checkpoint.save(paths[1], {"network": other, "model": build_model(**other).state_dict()})
    with pytest.raises(RunError, match="different networks"):
        average(paths, [])


def test_networks_of_different_images_have_no_mean(paths):
    checkpoint.save(paths[1], {**checkpoint.read(paths[1]), "data": {"image_size": [48, 48]}})
    with pytest.raises(RunError, match="different images"):
        average(paths, [])


def test_a_checkpoint_of_ours_contradicts_other_bits(paths):
    assert checkpoint.load_model(paths[0], 1, 1).fc.out_features == 10
    with pytest.raises(RunError, match="weight_bits 1, not 32"):
        checkpoint.load_model(paths[0], weight_bits=32)


def test_float64_stays_float64(paths):
    payload = checkpoint.read(paths[0])
    state = {k: v.double() + 1e-12 if v.is_floating_point() else v for k, v in payload["model"].items()}
    checkpoint.save(paths[0], {**payload, "model": state})
    again = checkpoint.load_model(paths[0]).state_dict()
    assert all(torch.equal(again[key], state[key]) for key in state)


@pytest.mark.parametrize("released", ["x", {"name": 1}, {"absent": 3}, {"unused": []}])
def test_a_damaged_note_of_a_release_is_one_line(paths, released, fails):
    checkpoint.save(paths[0], {**checkpoint.read(paths[0]), "released": released})
    assert "converted from" in fails(command.main, "info", paths[0])[1]


def test_info_of_a_packed_network_says_where_to_look(fails):
    assert "utils.released inspect" in fails(command.main, "info", "checkpoints/digits/ir2net.packed")[1]
