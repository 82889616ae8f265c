"""torch.hub's entry points."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from released_files import fill, save

from models import build_model
from modules.recovery import CIRec
from utils import checkpoint
from utils.command import UsageError

REPO = str(Path(__file__).parents[1])


def hub(entry, **kwargs):
    return torch.hub.load(REPO, entry, source="local", **kwargs)


def test_random_weights():
    assert isinstance(hub("ir2net").recovery, CIRec)
    assert hub("ir2net", arch="resnet18", dataset="imagenet", variant="a").recovery.spatial is None
    for entry in ("irnet", "sdbnn", "reactnet", "rbnn", "recu", "adabin"):
        assert hub(entry, arch="resnet20", num_classes=7)(torch.randn(2, 3, 32, 32)).shape == (2, 7)
    with pytest.raises(ValueError, match="bits must be 1 or 32, not 0"):
        hub("ir2net", weight_bits=0)


def test_a_checkpoint(tmp_path):
    network = {"arch": "vgg_small", "method": "irnet", "dataset": "digits"}
    model = build_model(**network)
    checkpoint.save(tmp_path / "a.pt", {"network": network, "model": model.state_dict()})
    loaded = hub("irnet", arch="vgg_small", checkpoint=tmp_path / "a.pt", dataset="cifar10")
    assert not loaded.training
    assert torch.equal(loaded.fc.weight, model.fc.weight)
    assert hub("irnet", checkpoint=tmp_path / "a.pt", image_size=32)
    with pytest.raises(UsageError, match="image_size 32, not 64"):
        hub("irnet", checkpoint=tmp_path / "a.pt", image_size=64)
    with pytest.raises(UsageError, match="method irnet, not sdbnn"):
        hub("sdbnn", checkpoint=tmp_path / "a.pt")
    with pytest.raises(UsageError, match="arch vgg_small, not resnet20"):
        hub("irnet", arch="resnet20", checkpoint=tmp_path / "a.pt")


def test_a_released_file_of_two_structures(tmp_path):
    path = save(tmp_path, fill("rbnn_cifar_resnet20"))
    assert len(hub("rbnn", checkpoint=path, structure="normal").stages[0]) == 3
    assert len(hub("rbnn", checkpoint=path, structure="bireal", dataset="digits").stages[0]) == 6
    with pytest.raises(UsageError, match="family cifar, not imagenet"):
        hub("rbnn", checkpoint=path, structure="normal", dataset="imagenet")


def test_what_is_left_open_in_a_checkpoint_counts_as_what_it_means(tmp_path):
    network = {"arch": "resnet20", "structure": None, "recovery": None}
    checkpoint.save(tmp_path / "a.pt", {"network": network, "model": build_model(**network).state_dict()})
    assert hub("ir2net", checkpoint=tmp_path / "a.pt", structure="bireal", recovery="none", num_classes=10)
    with pytest.raises(UsageError, match="recovery none, not cirec"):
        hub("ir2net", checkpoint=tmp_path / "a.pt", recovery="cirec")


@pytest.mark.parametrize("package", ["utils", "models"])
def test_a_package_of_the_users_that_hides_ours_is_named(package, tmp_path):
    own = tmp_path / package
    own.mkdir()
    (own / "__init__.py").touch()
    code = f"import torch, {package}; torch.hub.load({REPO!r}, 'ir2net', source='local')"
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    line = result.stderr.strip().splitlines()[-1]
    assert line.startswith(f"ImportError: IR²Net's package '{package}' is hidden by {own / '__init__.py'}")
    assert "rename" in line
