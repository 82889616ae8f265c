"""Released checkpoints: every layout is recognised, loads strictly, and comes back bit for bit."""

import json
import os

import pytest
import torch
from released_files import LAYOUTS, SMALL, bits, choices, fill, same_bits, save

from models import build_model
from utils import checkpoint
from utils import released as command
from utils.checkpoint import load_model, released
from utils.checkpoint.ours import FORMAT, VERSION
from utils.command import RunError


@pytest.fixture
def refused(fails):
    """refused(*argv) -> the one line with which `python -m utils.released` ends."""

    def run(*argv, status=1):
        code, line = fails(command.main, *argv)
        assert code == status
        return line

    return run


# Every layout there and back -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYOUTS)
def test_layout_is_the_recorded_one(name):
    entries = released.layout(name, 1000 if "imagenet" in name else 10)
    assert {key: list(entry.shape) for key, entry in entries.items()} == dict(LAYOUTS[name]["keys"])


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_tensor_comes_back_bit_for_bit(name):
    state = fill(name)
    payload = released.convert(state, "released.pth", *choices(name))
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
    command.main(["convert", str(path), str(tmp_path / "ours.pt"), "--activation-bits", "32"])
    assert {p.dtype for p in load_model(tmp_path / "ours.pt").parameters()} == {torch.float32}
    command.main(["export", str(tmp_path / "ours.pt"), str(tmp_path / "back.pth"), "--layout", name])
    back = torch.load(tmp_path / "back.pth", weights_only=True)["state_dict"]
    assert back.keys() == state.keys()
    assert all(same_bits(back[key], state[key]) for key in state)
    assert "there already" in refused("convert", path, tmp_path / "ours.pt", "--activation-bits", 32, status=2)
    command.main(["convert", str(path), str(tmp_path / "ours.pt"), "--activation-bits", "32", "--force"])


def ours(tmp_path, **network):
    path = tmp_path / "ours.pt"
    checkpoint.save(path, {"network": network, "model": build_model(**network).state_dict()})
    return path


def test_our_own_network_exports_with_what_the_released_one_never_uses(tmp_path):
    network = {"arch": "resnet18", "dataset": "imagenet", "method": "irnet", "num_classes": 5}
    path, out = ours(tmp_path, **network), tmp_path / "out.pth"
    command.main(["export", str(path), str(out), "--layout", "irnet_imagenet_resnet18", "--data-parallel"])
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
    command.main(["export", str(path), str(out), "--layout", "irnet_cifar_resnet20_1w32a"])


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


def test_a_layout_of_two_structures_needs_the_structure(tmp_path, refused):
    name = "rbnn_cifar_resnet20"
    path = save(tmp_path, fill(name))
    with pytest.raises(RunError, match="structure must be said: --structure normal or --structure bireal"):
        load_model(path)
    models = {structure: load_model(path, structure=structure) for structure in ("normal", "bireal")}
    assert {structure: len(model.stages[0]) for structure, model in models.items()} == {"normal": 3, "bireal": 6}
    with pytest.raises(RunError, match="not with the bits given"):
        load_model(path, 32, 1)
    with pytest.raises(RunError, match="not with the structure given"):
        load_model(save(tmp_path, fill("adabin_cifar_resnet20"), "adabin.th"), structure="normal")
    command.main(["convert", str(path), str(tmp_path / "ours.pt"), "--structure", "normal"])
    assert len(load_model(tmp_path / "ours.pt", structure="normal").stages[0]) == 3
    with pytest.raises(RunError, match="structure normal, not bireal"):
        load_model(tmp_path / "ours.pt", structure="bireal")
    assert "does not fit the layout" in refused(
        "export", tmp_path / "ours.pt", tmp_path / "out.th", "--layout", "rbnn_cifar_resnet20_bireal"
    )
    command.main(["export", str(tmp_path / "ours.pt"), str(tmp_path / "out.th"), "--layout", name])


def test_inspect_says_what_a_file_is_taken_for(tmp_path, capsys):
    path = save(tmp_path, fill("sdbnn_imagenet_resnet18"))
    command.main(["inspect", str(path)])
    shown = capsys.readouterr().out
    command.main(["convert", str(path), str(tmp_path / "ours.pt")])
    taken = capsys.readouterr().out.split(": ")[1].split(", ")[0]
    assert f"say --weight-bits and --activation-bits, else it is taken for {taken}" in shown


def test_bits_of_a_layout_of_one_network(tmp_path):
    path = save(tmp_path, fill(SMALL))
    assert load_model(path, 1, 1).stages[0][0].conv.weight_bits == 1
    with pytest.raises(RunError, match="exists with --weight-bits 1 --activation-bits 1"):
        load_model(path, weight_bits=32)


def test_a_packed_network_is_inspected_too(capsys):
    command.main(["inspect", "checkpoints/digits/ir2net.packed", "--json"])
    printed = capsys.readouterr().out
    assert "digits/ir2net.packed: a packed network\n" in printed
    found = json.loads(printed.splitlines()[-1])
    assert (found["kind"], found["classes"], found["networks"][0]["recovery"]) == ("packed", 10, "cirec")


def test_inspect(tmp_path, capsys):
    command.main(["inspect", str(save(tmp_path, fill("irnet_cifar_resnet20"))), "--json"])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [n["layout"] for n in found["networks"]] == ["irnet_cifar_resnet20", "irnet_cifar_resnet20_1w32a"]
    assert (found["kind"], found["tensors"], found["dtype"], found["classes"]) == ("released", 121, "float64", 10)
    command.main(["inspect", str(ours(tmp_path, arch="resnet20")), "--json"])
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
