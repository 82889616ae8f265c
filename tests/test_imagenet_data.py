"""ImageNet's folders, images, augmentation and batches."""

import multiprocessing
import subprocess
import threading
import time
import warnings

import pytest
import torch
from image_tree import COLORS, draw, save
from PIL import Image
from torchvision.models import ResNet18_Weights

from imagenet import batches, data
from utils.command import RunError, UsageError
from utils.images import read_image

CPU = torch.device("cpu")


# ---------------------------------------------------------------- reading and transforming


@pytest.mark.parametrize("size", [(500, 375), (224, 224), (300, 301), (256, 640), (97, 131)])
def test_eval_transform_is_torchvisions_reference(tmp_path, rng, size):
    path = tmp_path / "x.jpg"
    draw("circle", size, rng).save(path, quality=85)
    reference = ResNet18_Weights.IMAGENET1K_V1.transforms()(Image.open(path).convert("RGB"))
    assert torch.equal(data.eval_transform(224)(read_image(path)), reference)


@pytest.fixture
def rng():
    import numpy as np

    return np.random.default_rng(0)


@pytest.mark.parametrize("kind", range(5))
def test_every_mode_is_read_as_an_upright_rgb_image_without_a_warning(tmp_path, rng, kind):
    image = draw("triangle", (90, 60), rng)
    path = save(image, tmp_path / "x.jpg", kind)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read = read_image(path)
    assert (read.mode, read.size) == ("RGB", (90, 60))
    difference = torch.tensor(list(read.convert("L").tobytes())) - torch.tensor(list(image.convert("L").tobytes()))
    assert difference.abs().float().mean() < 12


def test_lighting_moves_an_image_along_the_principal_components():
    torch.manual_seed(0)
    moved = torch.stack([data.Lighting(0.1)(torch.zeros(3, 2, 2)) for _ in range(4000)])
    assert torch.equal(moved, moved[..., :1, :1].expand_as(moved))  # one shift for all pixels
    vectors, values = torch.tensor(data.Lighting.EIGENVECTORS), torch.tensor(data.Lighting.EIGENVALUES)
    along = moved[..., 0, 0] @ vectors
    torch.testing.assert_close(along.std(0), 0.1 * values, rtol=0.05, atol=0)
    assert torch.equal(data.Lighting(0.0)(torch.ones(3, 2, 2)), torch.ones(3, 2, 2))


def test_synsets_are_the_sorted_1000():
    names = data.synsets()
    assert len(set(names)) == 1000
    assert names == sorted(names)
    assert (names[0], names[207], names[999]) == ("n01440764", "n02099601", "n15075141")


# ---------------------------------------------------------------- folders


def test_released_layout(small_tree):
    (small_tree / "train").rename(small_tree / "ILSVRC2012_img_train")
    (small_tree / "val").rename(small_tree / "ILSVRC2012_img_val")
    folders = data.open_splits(small_tree)
    assert [len(folder) for folder in folders] == [24, 16]
    assert folders[0].classes == sorted(COLORS)


def test_folders_that_cannot_be_used(small_tree):
    with pytest.raises(UsageError, match=r"no folder .*val or .*ILSVRC2012_img_val"):
        data.open_split(small_tree / "train", "val")
    (small_tree / "val" / "circle").rename(small_tree / "val" / "round")
    with pytest.raises(UsageError, match=r"differ in 2 class folders: circle, round"):
        data.open_splits(small_tree)
    for file in (small_tree / "train" / "cross").iterdir():
        file.unlink()
    with pytest.raises(UsageError, match="class folders without images: cross"):
        data.open_split(small_tree, "train")


def test_labels_of_a_network_with_more_classes(tmp_path):
    names = ["n02099601", "n01440764"]
    for name in names:
        (tmp_path / "val" / name).mkdir(parents=True)
        Image.new("RGB", (40, 40)).save(tmp_path / "val" / name / "x.jpg")
    labels = []
    for classes, count in ((None, 2), (None, 1000), (["x", *names], 3)):
        folder = data.open_split(tmp_path, "val")
        data.use_labels_of(folder, classes, count)
        labels.append([label for _, label in folder.samples])
    assert labels == [[0, 1], [0, 207], [2, 1]]
    with pytest.raises(UsageError, match="has 5 classes"):
        data.use_labels_of(folder, None, 5)
    with pytest.raises(UsageError, match="does not know: n01440764"):
        data.use_labels_of(folder, ["n02099601"], 1)


# ---------------------------------------------------------------- batches


def build(tree, split="train", rank=0, ranks=1, monkeypatch=None, **options):
    if monkeypatch:
        monkeypatch.setattr(batches.distributed, "rank", lambda: rank)
        monkeypatch.setattr(batches.distributed, "world_size", lambda: ranks)
    transform = data.train_transform(32) if split == "train" else data.eval_transform(32)
    options = {"batch_size": 8, "train": split == "train", **options}
    return batches.Batches(data.open_split(tree, split), transform, device=CPU, **options)


def test_batches_do_not_depend_on_workers_ranks_or_the_start(small_tree, monkeypatch):
    whole = list(build(small_tree, seed=3).epoch(2))
    assert [len(labels) for _, labels in whole] == [8, 8, 8]
    parallel = build(small_tree, seed=3, workers=2)
    for _ in range(2):  # the second time with the same workers
        for (images, labels), (own, own_labels) in zip(whole, parallel.epoch(2), strict=True):
            assert torch.equal(images, own)
            assert torch.equal(labels, own_labels)
    resumed = list(build(small_tree, seed=3).epoch(2, start=2))
    assert len(resumed) == 1
    assert torch.equal(resumed[0][0], whole[2][0])
    by_rank = [list(build(small_tree, seed=3, rank=r, ranks=2, monkeypatch=monkeypatch).epoch(2)) for r in (0, 1)]
    assert torch.equal(torch.cat([by_rank[0][1][0], by_rank[1][1][0]]), whole[1][0])
    parts = list(build(small_tree, seed=3, accumulate=4, ranks=1, monkeypatch=monkeypatch).epoch(2))
    assert torch.equal(torch.cat([images for images, _ in parts]), torch.cat([images for images, _ in whole]))
    other = next(build(small_tree, seed=3, ranks=1, monkeypatch=monkeypatch).epoch(1))
    assert not torch.equal(other[0], whole[0][0])


def test_an_augmented_image_leaves_the_generator_as_it_was(small_tree):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    next(build(small_tree).epoch(0))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(("ranks", "batch_size"), [(1, 5), (2, 5), (3, 16), (7, 2), (16, 1)])
def test_an_evaluation_sees_each_image_once(small_tree, monkeypatch, ranks, batch_size):
    monkeypatch.setattr(batches.Images, "__getitem__", lambda self, key: (torch.tensor([[[key[1]]]]), 0, []))
    seen, lengths = [], set()
    for rank in range(ranks):
        own = build(small_tree, "val", rank, ranks, monkeypatch, batch_size=batch_size)
        shards = [images.flatten().int().tolist() for images, _ in own]
        assert len(shards) == len(own)
        lengths.add(len(shards))
        seen += [index for shard in shards for index in shard]
    assert len(lengths) == 1
    assert sorted(seen) == list(range(16))


def test_batches_that_do_not_fit(small_tree, monkeypatch):
    with pytest.raises(UsageError, match="25 ranks are more than the 24 images"):
        build(small_tree, ranks=25, monkeypatch=monkeypatch)
    for ranks, options, line in (
        (1, {"batch_size": 32}, "more than the 24 images"),
        (3, {}, "does not divide into 3 rank"),
        (2, {"accumulate": 4}, "one image at a time"),
    ):
        with pytest.raises(UsageError, match=line):
            build(small_tree, ranks=ranks, monkeypatch=monkeypatch, **options)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_corrupt_image_is_named_or_counted(small_tree, capsys, workers):
    broken = [small_tree / "val" / "cross" / "1.jpg", small_tree / "train" / "cross" / "1.jpg"]
    broken[0].write_bytes(b"not an image")
    broken[1].write_bytes(broken[1].read_bytes()[:300])
    for split, path in zip(("val", "train"), broken):
        own = build(small_tree, split, workers=workers)
        with pytest.raises(RunError, match=rf"{path} is not an image that can be read"):
            list(own.epoch(0) if split == "train" else own)
    test = build(small_tree, "val", workers=workers, skip_corrupt=True)
    assert sum(len(labels) for _, labels in test) == 15
    assert len(test.skipped) == 1
    training = build(small_tree, workers=workers, skip_corrupt=True)
    for epoch in range(2):
        assert [len(labels) for _, labels in training.epoch(epoch)] == [8, 8, 8]
    assert len(training.skipped) == 1
    assert capsys.readouterr().err.count(str(broken[1])) == 1


def test_without_a_readable_image_training_ends_too(small_tree):
    for path in (small_tree / "train").rglob("*.*"):
        path.write_bytes(b"not an image")
    with pytest.raises(RunError, match=r"none of the 24 images of .*train can be read"):
        list(build(small_tree, skip_corrupt=True).epoch(0))


def test_workers_end_at_their_trainers_sigterm_alone(small_tree, monkeypatch):
    """Whichever of their threads gets the signal: torch may start some before ours."""
    start = batches._leave_signals_to_trainer

    def start_after_a_thread(worker):
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
        start(worker)

    monkeypatch.setattr(batches, "_leave_signals_to_trainer", start_after_a_thread)
    others = multiprocessing.active_children()
    training = build(small_tree, workers=2)
    first = training.epoch(0)
    next(first), next(first)  # one of each worker, which has started then
    workers = set(multiprocessing.active_children()).difference(others)
    assert len(workers) == 2
    subprocess.run(["kill", "-TERM", *(str(worker.pid) for worker in workers)], check=True)
    assert [len(labels) for _, labels in (*first, *training.epoch(1))] == [8] * 4
    for worker in workers:
        worker.terminate()
        worker.join(10)
        assert worker.exitcode == 0


@pytest.mark.parametrize(
    ("error", "workers"),
    [(MemoryError(), 0), (RuntimeError("unable to mmap: Cannot allocate memory"), 0), (RunError("out of memory"), 1)],
)
def test_want_of_memory_in_loading_says_what_helps(small_tree, monkeypatch, error, workers):
    def too_large(path):
        raise error

    monkeypatch.setattr(batches, "read_image", too_large)
    with pytest.raises(RunError, match=f"^out of memory while loading images: {workers} workers .* fewer --workers"):
        list(build(small_tree, workers=workers).epoch(0))
