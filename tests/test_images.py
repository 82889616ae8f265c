"""One reader and one scan of image files, for both families."""

import contextlib
import os
import re
import struct
import zlib

import numpy as np
import pytest
import torch
from conftest import write_images
from image_tree import ORIENTATION
from PIL import Image, ImageOps
from torchvision.datasets import ImageFolder

from cifar import data as small
from imagenet import batches
from imagenet import data as large
from utils.command import RunError, UsageError
from utils.images import UnreadableImage, read_image, scan
from utils.training import metrics

FAMILIES = ("small", "large")


def load(root, family, **options):
    """Every test image of `family`'s own way to read root/{train,test or val}."""
    if family == "small":
        return [*small.load("folder", root, progress=False, splits=("test",), **options)[0].images]
    if not (root / "val").exists():
        os.symlink(root / "test", root / "val")
    folder = large.open_split(root, "val")
    return [*batches.Batches(folder, large.eval_transform(32), 4, torch.device("cpu"), **options)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("mode", "suffix"), [("I;16", "png"), ("I", "tif"), ("F", "tif")])
def test_more_than_8_bits_are_refused_rather_than_clipped(mode, suffix, family, tmp_path):
    write_images(tmp_path / "test", 1)
    Image.new(mode, (32, 32)).save(tmp_path / "test" / "dark" / f"deep.{suffix}")
    with pytest.raises(RunError, match=rf"deep\.{suffix} has more than 8 bits per channel.*--skip-corrupt"):
        load(tmp_path, family, skip_corrupt=False)
    with pytest.raises(RunError, match=r"convert it to 8$"):  # of a command without the flag
        load(tmp_path, family)


def test_16_bits_of_colour_become_8(tmp_path):
    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    pixels = zlib.compress(b"\0" + struct.pack(">3H", 0x80FF, 0x0102, 0xFFFF))  # Pillow writes no such file
    header = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    assert read_image(tmp_path / "x.png").getpixel((0, 0)) == (0x80, 0x01, 0xFF)


def test_an_image_is_turned_upright_and_made_rgb(tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    Image.new("LA", (20, 10)).convert("L").save(tmp_path / "x.jpg", exif=exif)
    image = read_image(tmp_path / "x.jpg")
    assert (image.mode, image.size) == ("RGB", (10, 20))


def test_damaged_exif_data_lose_no_image(tmp_path):
    image = Image.new("RGB", (20, 10))
    exif = Image.Exif()
    exif[ORIENTATION], exif[0x0213] = 6, 1  # YCbCrPositioning, two bytes long
    content = exif.tobytes()
    image.save(tmp_path / "x.jpg", exif=content.replace(b"\x02\x13\x00\x03", b"\x02\x13\x00\x01"))
    with Image.open(tmp_path / "x.jpg") as odd, pytest.raises(struct.error):
        ImageOps.exif_transpose(odd)
    assert read_image(tmp_path / "x.jpg").size == (10, 20)
    image.save(tmp_path / "x.png", exif=b"Exif\0\0no EXIF data")
    assert read_image(tmp_path / "x.png").size == (20, 10)


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_images_are_turned_as_pillow_turns_them(orientation, suffix, tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    pixels = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / f"x.{suffix}", exif=exif)
    with Image.open(tmp_path / f"x.{suffix}") as image:
        expected = ImageOps.exif_transpose(image).convert("RGB")
    assert np.array_equal(read_image(tmp_path / f"x.{suffix}"), expected)


def test_any_damage_is_one_error(tmp_path):
    rng = np.random.default_rng(0)
    for suffix in ("png", "jpg", "gif", "tif", "webp", "bmp", "ppm"):
        path = tmp_path / f"x.{suffix}"
        Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(path)
        content = path.read_bytes()
        for _ in range(40):
            damaged = bytearray(content)
            for at in rng.integers(0, min(len(content), 200), 4):
                damaged[at] = rng.integers(0, 256)
            path.write_bytes(damaged[: rng.integers(1, len(content))])
            with contextlib.suppress(UnreadableImage):
                assert read_image(path).mode == "RGB"


def test_a_plain_folder_is_scanned_as_torchvision_does(tmp_path):
    write_images(tmp_path, 12, classes=("b", "B", "10", "9.x"))
    for name in ("sub-1", "sub"):
        write_images(tmp_path / "b" / name, 2, classes=("deep",))
    reference = ImageFolder(tmp_path)
    assert scan(tmp_path) == (reference.classes, reference.samples)


@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_entries_are_no_data_and_subfolders_are(family, tmp_path):
    write_images(tmp_path / "test", 2)
    dark = tmp_path / "test" / "dark"
    for folder in (tmp_path / "test" / ".ipynb_checkpoints", dark / ".ipynb_checkpoints", dark / "more" / "of it"):
        folder.mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(folder / "1.png")
    (dark / "._1.png").write_bytes(b"what macOS leaves behind")
    (dark / "notes.txt").write_text("none")
    os.symlink(dark, dark / "more" / "loop")
    seen = load(tmp_path, family)
    assert (len(seen) if family == "small" else sum(len(labels) for _, labels in seen)) == 5
    assert scan(tmp_path / "test")[0] == ["dark", "light"]


def test_what_cannot_be_scanned(tmp_path):
    with pytest.raises(UsageError, match="no class folders"):
        scan(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="class folders without images: empty"):
        scan(tmp_path)


@pytest.mark.parametrize("family", FAMILIES)
def test_names_that_are_not_utf8(family, tmp_path, capfd):
    write_images(tmp_path / "test", 2)
    dark = os.fsencode(tmp_path / "test" / "dark")
    os.rename(dark + b"/1.png", dark + b"/\xff\xe9.png")
    for _ in range(2):  # the second time from the cache
        assert load(tmp_path, family)
    with open(dark + b"/\xfe.png", "w") as file:
        file.write("no image")
    assert load(tmp_path, family, skip_corrupt=True)
    assert re.search(r"skipped: .*(\\udcfe|\?)\.png", capfd.readouterr().err)


@pytest.mark.parametrize("family", FAMILIES)
def test_without_a_readable_image_there_is_one_line(family, tmp_path):
    for name in ("dark", "light"):
        (tmp_path / "test" / name).mkdir(parents=True)
        (tmp_path / "test" / name / "1.png").write_text("no image")

    def evaluate():
        metrics.evaluate(torch.nn.Identity(), load(tmp_path, family, skip_corrupt=True), 2, None, None, progress=False)

    with pytest.raises(RunError, match="none of the 2 images"):
        evaluate()
