"""imagenet.train: recipes, teachers, two stages, mistakes."""

import json
from argparse import Namespace
from urllib.error import URLError

import pytest
import torch
from image_tree import COLORS, flags, make_tree
from torch import nn
from torchvision.models import resnet34

from imagenet import cost, train
from imagenet import eval as evaluation
from models import build_model
from utils import checkpoint
from utils.command import RunError, UsageError
from utils.training import teacher
from utils.training.initial import start_from
from utils.training.losses import cross_entropy, distillation
from utils.training.schedule import schedule as make_schedule
from utils.training.teacher import load_teacher
from utils.training.trainer import Trainer

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """DIR/{train,val} of 4 classes, 40 and 15 images each, of all sizes, modes and orientations."""
    return make_tree(tmp_path_factory.mktemp("tree"), 40, 15)


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
    ):
        with pytest.raises(UsageError, match=line):
            resolve(*argv)
    with pytest.raises(RunError, match="there is no run"):
        resolve("--resume")


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
    scheduler = make_schedule(optimizer, schedule, len(rates), 1)
    seen = []
    for _ in rates:
        seen.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert seen == pytest.approx(rates, abs=1e-6)


def test_the_rate_rises_in_equal_steps_before_the_schedule():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make_schedule(optimizer, "linear", 7, 2, warmup_epochs=5)
    seen = []
    for _ in range(14):
        seen.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert seen == pytest.approx([0.2, 0.2, 0.4, 0.4, 0.6, 0.6, 0.8, 0.8, 1, 1, 1, 0.75, 0.5, 0.25])
    with pytest.raises(UsageError, match="leaves nothing"):
        make_schedule(optimizer, "linear", 5, 2, warmup_epochs=5)


@pytest.mark.parametrize(
    ("decay", "decayed"),
    [
        ("all", {"conv1.weight", "bn1.weight", "stages.0.0.conv.weight_transform.alpha", "fc.bias"}),
        ("convs", {"conv1.weight", "stages.0.0.conv.weight"}),
        ("conv-fc", {"conv1.weight", "stages.0.0.conv.weight_transform.alpha", "fc.bias"}),
    ],
)
def test_weight_decay_by_name(decay, decayed):
    model = build_model("resnet18", dataset="imagenet", method="recu", num_classes=4)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    args = Namespace(optimizer="sgd", lr=0.1, momentum=0.9, weight_decay=1e-4, decay=decay)
    groups = train.build_optimizer(args, model).param_groups
    found = {names[id(p)] for group in groups if group["weight_decay"] for p in group["params"]}
    assert decayed <= found
    if decay != "all":
        assert not found & {"bn1.weight", "stages.0.0.bn.bias"}
    assert sum(len(group["params"]) for group in groups) == len(names)


def test_adam_decays_the_weights_of_convolutions_alone():
    model = build_model("resnet18", dataset="imagenet", method="reactnet", num_classes=4)
    groups = train.build_optimizer(
        Namespace(optimizer="adam", lr=1e-3, weight_decay=1e-5, decay=None), model
    ).param_groups
    assert [group["weight_decay"] for group in groups] == [1e-5, 0]
    assert {id(p) for p in groups[0]["params"]} == {id(m.weight) for m in model.modules() if isinstance(m, nn.Conv2d)}
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


def test_teachers(tmp_path, small_tree):
    classes = sorted(COLORS)
    torch.manual_seed(0)
    network = resnet34(num_classes=4)
    torch.save(network.state_dict(), tmp_path / "resnet34.pth")
    teacher = load_teacher("resnet34", classes, (64, 64), CPU, tmp_path / "resnet34.pth")
    images = torch.randn(2, 3, 32, 32, requires_grad=True)
    torch.testing.assert_close(teacher(images), network.eval()(images).detach(), rtol=1e-5, atol=1e-5)
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
            load_teacher(name, classes, (64, 64), CPU, weights)
    config = {"arch": "resnet18", "dataset": "imagenet", "num_classes": 4}
    kept = {"network": config, "model": build_model(**config).state_dict()}
    checkpoint.save(tmp_path / "ours.pt", {**kept, "data": {"classes": classes[::-1]}})
    with pytest.raises(UsageError, match="learned other classes"):
        load_teacher(str(tmp_path / "ours.pt"), classes, (64, 64), CPU)


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


def test_two_stages_from_a_trained_teacher(tree, small_resnet18, tmp_path, monkeypatch, capsys):
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
        (("--lam", "0.3"), "--lam goes with --ires"),
        (("--stage1-checkpoint", "last.pt"), "--stage1-checkpoint goes with --stage 2"),
        (("--stage", "2", "--init-from", "last.pt"), "--init-from goes with another --stage"),
        (("--teacher", "last.pt", "--label-smoothing", "0.2"), "--label-smoothing goes with --teacher none"),
        (("--teacher-weights", "resnet34.pth"), "--teacher-weights goes with --teacher resnet34"),
        (("--optimizer", "adam", "--momentum", "0.5"), "--momentum goes with --optimizer sgd"),
    ):
        assert line in fails(train.main, *run, *changed)[1]
    evaluate = ("--checkpoint", tmp_path / "none.pt", "--data-dir", small_tree)
    assert "no checkpoint at" in fails(evaluation.main, *evaluate)[1]


@pytest.mark.parametrize(
    ("damage", "said"), [(URLError("no network"), "no network"), (EOFError("Ran out of input"), "Ran out of input"),
                         (RuntimeError("invalid hash value"), "invalid hash value")],
)  # fmt: skip
def test_a_teacher_that_cannot_be_fetched_is_one_line(damage, said, monkeypatch):
    def fail(name, **options):
        raise damage

    monkeypatch.setattr(teacher, "_torchvision_network", fail)
    with pytest.raises(RunError, match=f"cannot download resnet34's weights: .*--teacher-weights PATH.*{said}"):
        load_teacher("resnet34", range(1000), (32, 32), CPU)


@pytest.mark.parametrize("method", ["bireal", "irnet", "rbnn", "adabin"])
def test_every_method_takes_either_optimizer(method):
    for optimizer, momentum in (("adam", None), ("sgd", 0.9)):
        args, _ = train.resolve(["--method", method, "--optimizer", optimizer])
        assert args.momentum == momentum


def test_the_cost_of_a_full_run():
    epochs, hours = cost.full_run("bireal", images_per_s=1000, gpus=4)
    assert epochs == 512
    assert hours == pytest.approx(512 * (1_281_167 + 12_500) / 4000 / 3600)
    assert cost.full_run("irnet", 1000)[0] == 100
