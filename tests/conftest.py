"""What several tests share: tiny data sets and runs that take seconds."""

import os

import numpy as np
import pytest
import torch
from image_tree import make_tree
from PIL import Image
from small_networks import RESNET18, RESNET20

from models.resnet import CIFAR_STAGES, IMAGENET_STAGES
from utils.training.runtime import keep_freed_memory

keep_freed_memory()  # as training does: a tenth of the time of what builds many networks
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))


def write_images(folder, per_class, size=(32, 32), classes=("dark", "light"), seed=0):
    """Class folders of PNG files: noise around a brightness of the class's own."""
    rng = np.random.default_rng(seed)
    for i, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for j in range(per_class):
            level = 60 + 130 * i
            pixels = rng.integers(level - 50, level + 50, (size[1], size[0], 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{j}.png")


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """DIR/{train,test}/{dark,light}: 48 and 10 images of 32x32."""
    root = tmp_path_factory.mktemp("tiny")
    write_images(root / "train", 24)
    write_images(root / "test", 5, seed=1)
    return root


@pytest.fixture
def fails(capsys):
    """fails(main, *argv) -> (status, line): the command ends with one line on standard error, which is returned."""

    def run(main, *argv):
        with pytest.raises(SystemExit) as stopped:
            main([str(a) for a in argv])
        lines = capsys.readouterr().err.strip().splitlines()
        lines = [line for line in lines if "Warning" not in line]
        assert len(lines) == 1, lines
        assert lines[0].startswith("error:")
        assert stopped.value.code in (1, 2)
        return stopped.value.code, lines[0]

    return run


@pytest.fixture
def small_tree(tmp_path):
    return make_tree(tmp_path / "small", 6, 4)


@pytest.fixture
def small_resnet20():
    """RESNET20 for `resnet20`, put there apart from the test's own `monkeypatch`, whose undo() leaves it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(CIFAR_STAGES, "resnet20", RESNET20)
        yield


@pytest.fixture
def small_resnet18():
    """The like for ImageNet's `resnet18`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(IMAGENET_STAGES, "resnet18", RESNET18)
        yield
