"""utils.predict: the classes that evaluation would score, for images as evaluation prepares them."""

import json

import numpy as np
import pytest
import torch
from image_tree import make_tree
from PIL import Image

from cifar import data as small
from imagenet import data as large
from models import build_model
from utils import checkpoint, predict
from utils.checkpoint import open_model
from utils.images import read_image

DIGITS = "checkpoints/digits"


def answer(capsys, *argv):
    """(printed lines, JSON object) of a prediction."""
    predict.main([*map(str, argv), "--json"])
    *lines, last = capsys.readouterr().out.splitlines()
    return lines, json.loads(last)


@pytest.fixture
def pictures(tmp_path):
    """24 test images of the digits as files, and their ImageSet."""
    (test,) = small.load("digits", splits=("test",))
    paths = []
    for i in range(24):
        paths.append(tmp_path / f"{i}.png")
        Image.fromarray(test.images[i].permute(1, 2, 0).numpy()).save(paths[-1])
    return paths, test


@pytest.mark.parametrize("name", ["fp.pt", "ir2net.packed"])
def test_small_images_as_evaluation_scores_them(name, pictures, pytestconfig, capsys):
    paths, test = pictures
    path = pytestconfig.rootpath / DIGITS / name
    lines, result = answer(capsys, "--checkpoint", path, *paths, "--top", 3, "--batch-size", 10)
    model, _ = open_model(path)
    with torch.inference_mode():
        images = torch.cat([images for images, _ in small.Batches(test, 24)])[:24]
        expected = model(images).softmax(1).topk(3)
    assert [image["image"] for image in result["images"]] == list(map(str, paths))
    for line, image, values, labels in zip(lines, result["images"], *expected):
        assert [top["label"] for top in image["top"]] == labels.tolist()
        assert [top["class"] for top in image["top"]] == [str(label) for label in labels.tolist()]
        assert [top["probability"] for top in image["top"]] == pytest.approx(values.tolist(), abs=1e-4)
        assert line.startswith(f"{image['image']}: {labels[0]} {values[0]:.1%}")


def save(path, network, **data):
    model = build_model(**network).eval()
    checkpoint.save(path, {"network": network, "model": model.state_dict(), "data": data})
    return model


def test_imagenet_is_resized_and_cropped_as_in_evaluation(tmp_path, capsys):
    root = make_tree(tmp_path / "tree", 1, 2)
    classes = ["a", "b", "n02123045", "d"]
    network = {"arch": "resnet18", "dataset": "imagenet", "num_classes": 4}
    model = save(tmp_path / "x.pt", network, classes=classes, image_size=64)
    paths = [path for path, _ in large.open_split(root, "val").samples]
    lines, result = answer(capsys, "--checkpoint", tmp_path / "x.pt", *paths)
    images = torch.stack([large.eval_transform(64)(read_image(path)) for path in paths])
    with torch.inference_mode():
        expected = model(images).softmax(1)
    for image, row in zip(result["images"], expected):
        assert len(image["top"]) == 4
        assert [top["probability"] for top in image["top"]] == pytest.approx(row.sort(descending=True)[0].tolist())
        assert all(top["class"] == classes[top["label"]] for top in image["top"])
        assert [top["name"] for top in image["top"] if top["class"] == "n02123045"] == ["tabby"]
    assert "n02123045 (tabby)" in lines[0]


def test_the_size_that_the_network_learned_at_and_names_it_knows(tmp_path, capsys):
    network = {"arch": "resnet20", "num_classes": 2}
    model = save(tmp_path / "x.pt", network, classes=["no", "yes"], image_size=[16, 40])
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 80, 3), dtype=np.uint8))
    image.save(tmp_path / "x.png")
    for flags, (height, width) in (((), (16, 40)), (("--image-size", "24x20"), (24, 20))):
        _, result = answer(capsys, "--checkpoint", tmp_path / "x.pt", tmp_path / "x.png", *flags)
        resized = np.array(image.resize((width, height), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
        held = small.ImageSet(torch.from_numpy(resized)[None], torch.zeros(1), ["no", "yes"])
        with torch.inference_mode():
            expected = model(next(iter(small.Batches(held, 1)))[0]).softmax(1)[0]
        found = {top["class"]: top["probability"] for top in result["images"][0]["top"]}
        assert found == pytest.approx({"no": expected[0].item(), "yes": expected[1].item()}, abs=1e-5)


def test_names_of_what_was_released():
    def names(dataset, release, count, **data):
        description = checkpoint.Contents("x", {"dataset": dataset}, {}, data, release=release)
        return predict.class_names(description, count)

    assert names("cifar10", "IR-Net", 10)[3] == "cat"
    assert names("cifar10", None, 10)[3] == "3"  # a folder's network says cifar10 too
    assert names("imagenet", None, 1000)[281] == "n02123045"
    assert names("imagenet", "IR-Net", 4, classes=["a", "b", "c", "d"]) == ["a", "b", "c", "d"]


def test_mistakes_get_one_line(tmp_path, pytestconfig, fails):
    flags = ("--checkpoint", pytestconfig.rootpath / DIGITS / "fp.pt")
    assert fails(predict.main)[0] == 2
    assert fails(predict.main, *flags, tmp_path / "none.png") == (2, f"error: no image {tmp_path}/none.png")
    path = tmp_path / "text.png"
    path.write_text("no image")
    status, line = fails(predict.main, *flags, path)
    assert (status, f"{path} is not an image" in line) == (1, True)
    Image.new("I;16", (8, 8)).save(path)
    assert "8 bits" in fails(predict.main, *flags, path)[1]
    Image.new("RGB", (8, 8)).save(path)
    assert fails(predict.main, "--checkpoint", tmp_path / "none.pt", path)[0] == 1
    packed = ("--checkpoint", pytestconfig.rootpath / DIGITS / "ir2net.packed", "--device", "cuda")
    assert "runs on the CPU" in fails(predict.main, *packed, path)[1]
    network = {"arch": "resnet20"}
    model = build_model(**network)
    torch.nn.init.constant_(model.fc.bias, float("nan"))
    checkpoint.save(tmp_path / "nan.pt", {"network": network, "model": model.state_dict()})
    assert "not finite" in fails(predict.main, "--checkpoint", tmp_path / "nan.pt", path)[1]
