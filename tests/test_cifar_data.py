"""Data: decoding, caching, splits, augmentation."""

import fcntl
import hashlib
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_images
from PIL import Image

from cifar import data, folder
from utils import images
from utils.command import RunError, UsageError
from utils.images import scan

PLAIN = "7bea7a7d3b5c"


def image_set(n=64, size=32, flip=True):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, 3, size, size), generator=generator, dtype=torch.uint8)
    return data.ImageSet(images, torch.arange(n), [str(i) for i in range(n)], flip=flip)


def test_digits_split_is_fixed_and_stratified():
    train, test = data.load("digits")
    assert (len(train), len(test)) == (1437, 360)
    assert train.images.shape[1:] == (3, 32, 32)
    counts = torch.bincount(test.labels)
    assert counts.min() >= 34
    assert counts.max() <= 38
    assert not train.flip, "a mirrored digit is another digit, or none"
    again, _ = data.load("digits")
    assert torch.equal(train.images, again.images)
    assert train.fingerprint() == again.fingerprint() != test.fingerprint()


def test_folder_is_read_as_classes(tiny_folder):
    train, test = data.load("folder", tiny_folder, progress=False)
    assert train.classes == test.classes == ["dark", "light"]
    assert (len(train), len(test)) == (48, 10)
    assert train.labels.tolist() == [0] * 24 + [1] * 24
    pixels = np.asarray(Image.open(tiny_folder / "train" / "light" / "3.png")).transpose(2, 0, 1)
    assert any(np.array_equal(image, pixels) for image in train.images[24:].numpy())


def test_a_changed_folder_is_decoded_again(tmp_path, tiny_folder, monkeypatch):
    root = tmp_path / "copy"
    shutil.copytree(tiny_folder, root, ignore=shutil.ignore_patterns(".*"))
    before, _ = data.load("folder", root, progress=False)
    monkeypatch.setattr(folder, "decode_all", None)  # a second load must not decode
    again, _ = data.load("folder", root, progress=False)
    assert torch.equal(before.images, again.images)
    monkeypatch.undo()
    Image.new("RGB", (32, 32), "red").save(root / "train" / "dark" / "0.png")
    changed, _ = data.load("folder", root, progress=False)
    assert not torch.equal(before.images, changed.images)


def test_a_damaged_cache_is_decoded_again(tmp_path):
    write_images(tmp_path / "train", 2)
    write_images(tmp_path / "test", 2)
    before, _ = data.load("folder", tmp_path, progress=False)
    (cache,) = tmp_path.glob(".train*")
    cache.write_bytes(cache.read_bytes()[:1000])
    again, _ = data.load("folder", tmp_path, progress=False)
    assert torch.equal(before.images, again.images)


def test_modes_and_sizes_of_images(tmp_path):
    write_images(tmp_path / "train", 2)
    write_images(tmp_path / "test", 2)
    Image.new("L", (32, 32), 100).save(tmp_path / "train" / "dark" / "grey.png")
    Image.new("P", (32, 32), 3).save(tmp_path / "train" / "dark" / "palette.png")
    Image.new("CMYK", (32, 32)).save(tmp_path / "train" / "dark" / "print.jpg")
    assert len(data.load("folder", tmp_path, progress=False)[0]) == 7
    Image.new("RGB", (40, 32)).save(tmp_path / "train" / "dark" / "wide.png")
    with pytest.raises(RunError, match="--image-size"):
        data.load("folder", tmp_path, progress=False)
    resized, _ = data.load("folder", tmp_path, image_size=16, progress=False)
    assert resized.images.shape == (8, 3, 16, 16)


@pytest.mark.parametrize(
    ("dataset", "options"),
    [
        ("digits", {"data_dir": "images"}),
        ("digits", {"skip_corrupt": True}),
        ("cifar10", {"data_dir": "data", "skip_corrupt": True}),
        ("folder", {"data_dir": "images", "download": True}),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(dataset, options):
    with pytest.raises(UsageError, match="goes with"):
        data.load(dataset, **options)


def test_missing_pieces_of_a_folder(tmp_path):
    with pytest.raises(UsageError, match="--data-dir"):
        data.load("folder")
    with pytest.raises(UsageError, match="no folder"):
        data.load("folder", tmp_path / "nowhere")
    with pytest.raises(UsageError, match="train"):
        data.load("folder", tmp_path)
    write_images(tmp_path / "train", 1)
    with pytest.raises(UsageError, match="test"):
        data.load("folder", tmp_path)
    write_images(tmp_path / "test", 1, classes=("dark", "other"))
    with pytest.raises(UsageError, match=r"light, other"):
        data.load("folder", tmp_path)
    (tmp_path / "train" / "empty").mkdir()
    with pytest.raises(UsageError, match="empty"):
        data.load("folder", tmp_path)


def test_an_image_that_is_none_is_named(tmp_path):
    write_images(tmp_path / "train", 2)
    write_images(tmp_path / "test", 1)
    (tmp_path / "train" / "dark" / "zz.png").write_text("not an image")
    with pytest.raises(RunError, match=r"zz\.png is not an image"):
        data.load("folder", tmp_path, progress=False)


@pytest.mark.parametrize(("size", "expected"), [(None, (32, 48)), (16, (16, 16)), ([8, 24], (8, 24)), ((9, 9), (9, 9))])
def test_images_have_the_height_and_width_that_is_asked_for(size, expected, tmp_path, monkeypatch):
    write_images(tmp_path / "train", 2, size=(48, 32))
    write_images(tmp_path / "test", 2, size=(48, 32))
    train, test = data.load("folder", tmp_path, image_size=size, progress=False)
    assert train.images.shape == (4, 3, *expected)
    image = Image.open(tmp_path / "test" / "dark" / "1.png").resize(expected[::-1], Image.Resampling.BILINEAR)
    assert torch.equal(test.images[1], torch.from_numpy(np.array(image)).permute(2, 0, 1))
    monkeypatch.setattr(folder, "decode_all", None)  # from the cache
    assert torch.equal(data.load("folder", tmp_path, image_size=size, progress=False)[0].images, train.images)
    assert data.labels("folder", train, test)["image_size"] == list(expected)


def test_a_size_that_the_data_have_is_no_mistake():
    assert data.load("digits", image_size=(32, 32))[0].images.shape[2:] == (32, 32)
    with pytest.raises(UsageError, match="--image-size goes with --dataset folder"):
        data.load("digits", image_size=64)


def test_fingerprints_and_keys_of_a_plain_folder_are_for_ever(tmp_path):
    """Runs resume by the one, and folders are decoded once by the other."""
    write_images(tmp_path / "train", 3, size=(40, 30), classes=("dark", "Light.x", "10"))
    for file in tmp_path.rglob("*.png"):
        os.utime(file, ns=(1, 10**18))
    (train,) = data.load("folder", tmp_path, progress=False, splits=("train",))
    assert train.fingerprint() == PLAIN
    files = [file for file, _ in scan(tmp_path / "train")[1]]
    for size, said in ((None, "None"), ((16, 16), "16")):
        digest = hashlib.sha256(said.encode())
        for file in map(Path, files):
            digest.update(f"{file.relative_to(tmp_path / 'train')}|{file.stat().st_size}|{10**18}\n".encode())
        assert folder._key(tmp_path / "train", files, size) == digest.hexdigest()


def test_corrupt_images_are_left_out_on_request(tmp_path, capsys):
    write_images(tmp_path / "train", 3)
    write_images(tmp_path / "test", 3)
    (tmp_path / "train" / "dark" / "0.png").write_text("not an image")
    os.symlink("nowhere", tmp_path / "train" / "light" / "broken.png")
    for _ in range(2):  # the second time from the cache
        train, test = data.load("folder", tmp_path, progress=False, skip_corrupt=True)
        assert (len(train), train.skipped, test.skipped) == (5, 2, 0)
        assert train.labels.tolist() == [0, 0, 1, 1, 1]
        assert "skipped: 2 images that cannot be read" in capsys.readouterr().err
    with pytest.raises(RunError, match=r"dark/0\.png is not an image .*--skip-corrupt"):
        data.load("folder", tmp_path, progress=False, skip_corrupt=False)


def test_an_image_that_the_system_refuses_for_once_is_not_left_out_for_ever(tmp_path, monkeypatch):
    write_images(tmp_path / "train", 3)
    whole = images.Image.open

    def refuse(path):
        if str(path).endswith("dark/1.png"):
            raise PermissionError(13, "Permission denied")
        return whole(path)

    monkeypatch.setattr(images.Image, "open", refuse)
    options = {"progress": False, "splits": ("train",), "skip_corrupt": True}
    assert len(data.load("folder", tmp_path, **options)[0]) == 5
    monkeypatch.undo()
    assert len(data.load("folder", tmp_path, **options)[0]) == 6


def interrupted_savez(file, **content):
    file.write(b"half of it")
    raise KeyboardInterrupt


def test_an_interrupted_cache_leaves_nothing_behind(tmp_path, monkeypatch):
    write_images(tmp_path / "train", 2)
    stale = tmp_path / ".train-own.cache.99.tmp.npz"
    stale.write_bytes(b"of a process that was killed")
    written = tmp_path / ".train-own.cache.98.tmp.npz"
    with open(written, "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        monkeypatch.setattr(folder.np, "savez", interrupted_savez)
        with pytest.raises(KeyboardInterrupt):
            data.load("folder", tmp_path, progress=False, splits=("train",))
        assert [path.name for path in tmp_path.glob(".*")] == [written.name]
    monkeypatch.undo()
    data.load("folder", tmp_path, progress=False, splits=("train",))
    assert [path.name for path in tmp_path.glob(".*")] == [".train-own.cache.npz"]


def test_read_only_data_and_no_home(tmp_path, monkeypatch):
    write_images(tmp_path / "train", 2)

    def refuse(*args, **kwargs):
        raise OSError(30, "Read-only file system")

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    monkeypatch.setattr(Path, "unlink", refuse)
    monkeypatch.setattr(folder, "open", refuse, raising=False)
    assert len(data.load("folder", tmp_path, progress=False, splits=("train",))[0]) == 4
    assert not list(tmp_path.glob(".*"))


def test_want_of_memory_says_how_much_the_data_need(tmp_path, monkeypatch, fails):
    write_images(tmp_path / "train", 2)
    monkeypatch.setattr(folder.np, "empty", lambda *args: (_ for _ in ()).throw(MemoryError))
    with pytest.raises(RunError, match=r"4 images of 32x32 need 0\.0 GB on cpu.*smaller --image-size"):
        data.load("folder", tmp_path, progress=False, splits=("train",))
    monkeypatch.undo()

    def too_large(*args):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(torch.Tensor, "to", too_large)
    with pytest.raises(RunError, match=r"out of memory: 64 images of 40x40 need"):
        data.Batches(image_set(), 32, train=True)
    with pytest.raises(RuntimeError, match="another"), folder.memory_for(1, (1, 1)):
        raise RuntimeError("another")


def test_missing_cifar_says_what_to_do(tmp_path):
    with pytest.raises(UsageError, match="--download"):
        data.load("cifar10", tmp_path)


def test_evaluation_yields_every_image_once_in_order():
    held = image_set(50)
    batches = list(data.Batches(held, 16))
    assert [len(labels) for _, labels in batches] == [16, 16, 16, 2]
    assert torch.cat([labels for _, labels in batches]).tolist() == list(range(50))
    images = data.unnormalise(torch.cat([images for images, _ in batches]))
    assert torch.allclose(images * 255, held.images.float(), atol=1e-3)


def test_normalisation_is_torchvisions():
    from torchvision.transforms.v2.functional import normalize

    held = image_set(4)
    images, _ = next(iter(data.Batches(held, 4)))
    assert torch.allclose(images, normalize(held.images / 255, data.MEAN, data.STD), atol=1e-5)


def test_training_crops_mirrors_and_drops_the_partial_batch():
    held = image_set(70)
    batches = data.Batches(held, 32, train=True, seed=3)
    assert len(batches) == 2
    assert batches.images_per_epoch == 64
    order, top, left, mirrored = batches.draw(5)
    padded = torch.nn.functional.pad(held.images, (4,) * 4)
    images = torch.cat([images for images, _ in batches.epoch(5)])
    pixels = (data.unnormalise(images) * 255).round().to(torch.uint8)
    for i in range(64):
        crop = padded[order[i], :, top[i] : top[i] + 32, left[i] : left[i] + 32]
        assert torch.equal(pixels[i], crop.flip(2) if mirrored[i] else crop)
    assert torch.equal(torch.cat([labels for _, labels in batches.epoch(5)]), order[:64])


def test_fewer_images_than_a_batch():
    batches = data.Batches(image_set(10), 32, train=True)
    assert [len(labels) for _, labels in batches.epoch(0)] == [10]


def test_epochs_and_seeds_differ_and_repeat():
    def orders(seed, epoch):
        return data.Batches(image_set(), 16, train=True, seed=seed).draw(epoch)

    assert all(torch.equal(a, b) for a, b in zip(orders(1, 2), orders(1, 2)))
    assert not torch.equal(orders(1, 2)[0], orders(1, 3)[0])
    assert not torch.equal(orders(1, 2)[0], orders(2, 2)[0])


def test_offsets_and_mirrors_are_uniform_and_independent():
    # Chi-square against the uniform distribution over (top, left, mirrored): 161 degrees of freedom; 99.9 % of
    # samples stay below 222.
    n = 50_000
    held = data.ImageSet(torch.zeros(n, 3, 1, 1, dtype=torch.uint8), torch.zeros(n, dtype=torch.long), ["0"])
    _, top, left, mirrored = data.Batches(held, 128, train=True).draw(0)
    cells = torch.bincount((top * 9 + left) * 2 + mirrored, minlength=162).double()
    expected = n / 162
    assert ((cells - expected) ** 2 / expected).sum() < 222


def test_no_mirrors_where_the_set_forbids_them():
    assert not data.Batches(image_set(flip=False), 16, train=True).draw(0)[3].any()
