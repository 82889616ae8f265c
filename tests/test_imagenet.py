"""ImageNet: data, recipes, teachers, the two stages, resuming within an epoch, and evaluation."""

import json
import os
import signal
import warnings
from argparse import Namespace

import pytest
import torch
from image_tree import COLORS, draw, make_tree, save
from PIL import Image
from torch import nn
from torchvision.models import ResNet18_Weights, resnet34

from imagenet import batches, cost, data, train
from imagenet import eval as evaluation
from models import build_model
from utils import checkpoint
from utils.command import RunError, UsageError
from utils.training.initial import start_from
from utils.training.losses import cross_entropy, distillation
from utils.training.schedule import schedule as make_schedule
from utils.training.signals import StopSignal
from utils.training.teacher import load_teacher
from utils.training.trainer import Trainer

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """DIR/{train,val} of 4 classes, 40 and 15 images each, of all sizes, modes and orientations."""
    return make_tree(tmp_path_factory.mktemp("tree"), 40, 15)


@pytest.fixture
def small_tree(tmp_path):
    return make_tree(tmp_path / "small", 6, 4)


# ---------------------------------------------------------------- reading and transforming


@pytest.mark.parametrize("size", [(500, 375), (224, 224), (300, 301), (256, 640), (97, 131)])
def test_eval_transform_is_torchvisions_reference(tmp_path, rng, size):
    path = tmp_path / "x.jpg"
    draw("circle", size, rng).save(path, quality=85)
    reference = ResNet18_Weights.IMAGENET1K_V1.transforms()(Image.open(path).convert("RGB"))
    assert torch.equal(data.eval_transform(224)(data.read_image(path)), reference)


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
        read = data.read_image(path)
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


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("unable to mmap: Cannot allocate memory")])
def test_want_of_memory_in_loading_says_what_helps(small_tree, monkeypatch, error):
    def too_large(path):
        raise error

    monkeypatch.setattr(batches, "read_image", too_large)
    with pytest.raises(RunError, match=r"out of memory while loading images: 0 workers .* fewer --workers"):
        list(build(small_tree).epoch(0))


# ---------------------------------------------------------------- losses, recipes, teachers


def test_distillation_is_the_cross_entropy_of_two_softmaxes():
    student, teacher = torch.randn(5, 7), torch.randn(5, 7)
    expected = -(teacher.softmax(1) * student.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(distillation(student, teacher), expected)
    assert distillation(student.bfloat16(), teacher.bfloat16()).dtype == torch.float32


def test_label_smoothing():
    logits, labels = torch.randn(5, 4), torch.tensor([0, 1, 2, 3, 0])
    spread = torch.full((5, 4), 0.1 / 4).scatter_add_(1, labels[:, None], torch.full((5, 1), 0.9))
    expected = -(spread * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(cross_entropy(logits, labels, smoothing=0.1), expected)


def resolve(*argv):
    return train.resolve([str(a) for a in ("--data-dir", "x", *argv)])[0]


def test_recipes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ours = resolve("--variant", "b")
    assert (ours.stage, ours.epochs, ours.lr, ours.batch_size, ours.schedule) == ("both", 256, 1e-3, 512, "cosine")
    assert (ours.teacher, ours.ires, ours.lighting, ours.optimizer) == ("resnet34", True, 0.1, "adam")
    assert not resolve().ires
    assert not resolve("--variant", "a", "--no-ires").ires
    stages = [train.stage_flags(ours, stage) for stage in "12"]
    assert [(s.weight_bits, s.activation_bits, s.weight_decay) for s in stages] == [(32, 1, 1e-5), (1, 1, 0.0)]
    irnet = resolve("--method", "irnet", "--activation-bits", 32)
    assert (irnet.stage, irnet.weight_bits, irnet.activation_bits, irnet.teacher) == ("single", 1, 32, "none")
    assert (irnet.epochs, irnet.optimizer, irnet.schedule, irnet.color_jitter) == (100, "sgd", "step", True)
    reactnet = resolve("--method", "reactnet")
    assert (reactnet.epochs, reactnet.lr, reactnet.schedule) == (128, 2.5e-3, "linear")
    for argv, line in (
        (("--weight-bits", 32), "go with --stage single"),
        (("--momentum", 0.9), "goes with --optimizer sgd"),
        (("--resume",), "there is no run"),
    ):
        with pytest.raises(UsageError, match=line):
            resolve(*argv)


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("cosine", [1, 0.904508, 0.654508, 0.345492, 0.095492]),
        ("linear", [1, 0.8, 0.6, 0.4, 0.2]),
        ("step", [1] * 3 + [0.1] * 3 + [0.01] * 3 + [0.001]),
    ],
)
def test_schedules(schedule, rates):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make_schedule(optimizer, schedule, len(rates))
    seen = []
    for _ in rates:
        seen.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert seen == pytest.approx(rates, abs=1e-6)


def test_adam_decays_the_weights_of_convolutions_alone():
    model = build_model("resnet18", dataset="imagenet", method="reactnet", num_classes=4)
    groups = train.build_optimizer(Namespace(optimizer="adam", lr=1e-3, weight_decay=1e-5), model).param_groups
    assert [group["weight_decay"] for group in groups] == [1e-5, 0]
    assert {id(p) for p in groups[0]["params"]} == {id(m.weight) for m in model.modules() if isinstance(m, nn.Conv2d)}
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


def test_teachers(tmp_path, small_tree):
    classes = sorted(COLORS)
    torch.manual_seed(0)
    network = resnet34(num_classes=4)
    torch.save(network.state_dict(), tmp_path / "resnet34.pth")
    teacher = load_teacher("resnet34", classes, CPU, tmp_path / "resnet34.pth")
    images = torch.randn(2, 3, 32, 32, requires_grad=True)
    assert torch.equal(teacher(images), network.eval()(images))
    assert not teacher(images).requires_grad
    (tmp_path / "broken.pth").write_bytes(b"PK")
    for name, weights, error, line in (
        ("resnet34", "default", UsageError, "teacher resnet34 has 1000 classes, the data have 4"),
        ("resnet34", tmp_path / "none.pth", RunError, "no checkpoint at"),
        ("resnet34", tmp_path / "broken.pth", RunError, "broken.pth is no checkpoint"),
        ("resnet50", tmp_path / "resnet34.pth", RunError, "does not fit the network"),
        ("resnet43", "default", UsageError, "no teacher 'resnet43'"),
    ):
        with pytest.raises(error, match=line):
            load_teacher(name, classes, CPU, weights)
    config = {"arch": "resnet18", "dataset": "imagenet", "num_classes": 4}
    kept = {"network": config, "model": build_model(**config).state_dict()}
    checkpoint.save(tmp_path / "ours.pt", {**kept, "data": {"classes": classes[::-1]}})
    with pytest.raises(UsageError, match="learned other classes"):
        load_teacher(str(tmp_path / "ours.pt"), classes, CPU)


# ---------------------------------------------------------------- training


def test_stage_2_starts_from_stage_1_and_names_what_is_new(tmp_path):
    network = {"arch": "resnet18", "dataset": "imagenet", "method": "sdbnn", "num_classes": 4}
    first, second = (network | {"weight_bits": bits, "activation_bits": 1} for bits in (32, 1))
    path = tmp_path / "last.pt"
    model = build_model(**second)
    with pytest.raises(UsageError, match="no checkpoint"):
        start_from(model, first, path)
    state = build_model(**first).state_dict()
    checkpoint.save(path, {"network": first, "model": state})
    told = start_from(model, first, path)
    assert "weight_transform.alpha" in told.partition("new parameters:")[2]
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in state.items())
    checkpoint.save(path, {"network": second, "model": model.state_dict()})
    with pytest.raises(UsageError, match="not of this network: it has weight_bits 1 instead of 32"):
        start_from(model, first, path)


def flags(tree, output, *argv):
    common = ["--data-dir", tree, "--output-dir", output, "--workers", 0, "--no-progress", "--device", "cpu"]
    return [str(a) for a in (*common, *argv)]


def test_two_stages_from_a_trained_teacher(tree, tmp_path, monkeypatch, capsys):
    """The smallest real run: a full-precision teacher, both stages with IRes and distillation, and the evaluation."""
    short = ["--image-size", 64, "--batch-size", 10, "--epochs", 3]
    real = ["--stage", "single", "--weight-bits", 32, "--activation-bits", 32, "--teacher", "none"]
    train.main(flags(tree, tmp_path / "teacher", *short, *real, "--epochs", 2))
    assert "no teacher: cross-entropy with labels, smoothed by 0.1" in capsys.readouterr().out

    starts = []
    fit = Trainer.fit

    def noting_fit(trainer, *args, **kwargs):
        starts.append({name: value.clone() for name, value in trainer.model.state_dict().items()})
        return fit(trainer, *args, **kwargs)

    monkeypatch.setattr(Trainer, "fit", noting_fit)
    teacher = tmp_path / "teacher" / "last.pt"
    train.main(flags(tree, tmp_path / "run", *short, "--variant", "d", "--teacher", teacher))
    stage1 = checkpoint.read(tmp_path / "run" / "stage1" / "last.pt")
    assert all(torch.equal(value, starts[1][name]) for name, value in stage1["model"].items())
    summaries = [json.loads((tmp_path / "run" / f"stage{i}" / "summary.json").read_text()) for i in "12"]
    assert [summary["images"] for summary in summaries] == [60, 60]
    assert summaries[1]["top1_last"] >= 80
    assert not any("teacher" in name for name in stage1["model"])

    evaluation.main([
        *("--checkpoint", str(tmp_path / "run" / "stage2" / "last.pt"), "--data-dir", str(tree)),
        *("--workers", "0", "--json", "--device", "cpu", "--no-progress"),
    ])  # fmt: skip
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {"top1", "top5", "loss", "images", "images_per_s"} <= set(result)
    assert (result["top1"], result["images"]) == (summaries[1]["top1_last"], 60)


TINY = [
    "--image-size",
    32,
    "--batch-size",
    8,
    "--epochs",
    2,
    "--teacher",
    "none",
    "--deterministic",
    "--stage",
    "single",
]


def same_runs(one, other):
    assert (one / "metrics.csv").read_bytes() == (other / "metrics.csv").read_bytes()
    models = [checkpoint.read(folder / "last.pt")["model"] for folder in (one, other)]
    assert all(torch.equal(value, models[1][name]) for name, value in models[0].items())


def test_resuming_at_the_exact_sample(small_tree, tmp_path, monkeypatch, capsys):
    train.main(flags(small_tree, tmp_path / "whole", *TINY, "--variant", "d"))
    interrupted = flags(small_tree, tmp_path / "parts", *TINY, "--variant", "d", "--checkpoint-minutes", 1e-6)
    step = torch.optim.Adam.step
    steps = []

    def interrupting_step(self, *args, **kwargs):
        steps.append(None)
        if len(steps) == 2:
            os.kill(os.getpid(), signal.SIGTERM)  # is answered after the step
        if len(steps) == 5:
            raise KeyboardInterrupt  # as sudden as kill -9: nothing is saved any more
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.Adam, "step", interrupting_step)
    for status in (143, 130, None):
        if status is None:
            train.main([*interrupted, "--resume"])
        else:
            with pytest.raises(SystemExit) as stopped:
                train.main([*interrupted, *(["--resume"] if steps else [])])
            assert stopped.value.code == status
    output = capsys.readouterr()
    assert "stopped by SIGTERM" in output.err
    assert "resuming after epoch 0 of 2, step 2 of 3 of the next" in output.out
    assert "resuming after epoch 1 of 2, step 1 of 3 of the next" in output.out
    same_runs(tmp_path / "whole", tmp_path / "parts")


def test_the_latest_stage_is_resumed(small_tree, tmp_path, monkeypatch, capsys):
    short = [*TINY[:-2], "--epochs", 1, "--stage", "both", "--method", "bnn"]
    monkeypatch.setattr(StopSignal, "received", signal.SIGTERM)
    with pytest.raises(SystemExit):
        train.main(flags(small_tree, tmp_path / "run", *short))
    monkeypatch.undo()
    train.main(flags(small_tree, tmp_path / "run", "--resume"))
    output = capsys.readouterr().out
    assert "resuming after epoch 0 of 1, step 1 of 3 of the next" in output
    assert (output.count("stage 1: "), output.count("stage 2: ")) == (2, 1)
    train.main(flags(small_tree, tmp_path / "run", "--auto-resume"))
    output = capsys.readouterr().out
    assert "resuming after epoch 1 of 1" in output
    assert (output.count("stage 1: "), output.count("stage 2: ")) == (0, 1)


def test_mistakes_are_one_line(small_tree, tmp_path, fails):
    run = flags(small_tree, tmp_path / "run", "--image-size", 32, "--batch-size", 8, "--epochs", 1, "--teacher", "none")
    assert fails(train.main, *run, "--stage", "2") == (
        2, f"error: stage 2 starts from stage 1's weights, and there are none at {tmp_path}/run/stage1/last.pt: "
        "train --stage 1 first",
    )  # fmt: skip
    for changed, line in (
        (("--method", "xnor", "--stage", "1"), "use --method bnn"),
        (("--teacher", "resnet34"), "has 1000 classes, the data have 4"),
        (("--teacher", "resnet34", "--teacher-weights", "none.pth"), "no checkpoint at none.pth"),
        (("--data-dir", tmp_path / "none"), "no folder"),
        (("--batch-size", "512"), "more than the 24 images"),
    ):
        assert line in fails(train.main, *run, *changed)[1]
    evaluate = ("--checkpoint", tmp_path / "none.pt", "--data-dir", small_tree)
    assert "no checkpoint at" in fails(evaluation.main, *evaluate)[1]


def test_the_cost_of_a_full_run():
    epochs, hours = cost.full_run("bireal", images_per_s=1000, gpus=4)
    assert epochs == 512
    assert hours == pytest.approx(512 * (1_281_167 + 12_500) / 4000 / 3600)
    assert cost.full_run("irnet", 1000)[0] == 100
