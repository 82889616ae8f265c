"""A tree of class folders as people have them: images of all sizes, modes and orientations, of four easy classes."""

import numpy as np
from PIL import Image, ImageDraw

COLORS = {"circle": (220, 60, 50), "cross": (230, 200, 40), "square": (60, 180, 70), "triangle": (70, 90, 220)}
ORIENTATION = 0x0112  # EXIF tag


def draw(name, size, rng):
    """An RGB image (width, height) with one `name` in its colour on a noisy ground."""
    pixels = rng.integers(90, 150, (size[1], size[0], 3)).astype(np.uint8)
    image = Image.fromarray(pixels)
    r = int(min(size) * rng.uniform(0.28, 0.42))
    x, y = (int(rng.integers(r, s - r + 1)) for s in size)
    pen = ImageDraw.Draw(image)
    color = COLORS[name]
    if name == "circle":
        pen.ellipse((x - r, y - r, x + r, y + r), fill=color)
    elif name == "square":
        pen.rectangle((x - r, y - r, x + r, y + r), fill=color)
    elif name == "triangle":
        pen.polygon([(x, y - r), (x - r, y + r), (x + r, y + r)], fill=color)
    else:
        pen.rectangle((x - r, y - r // 3, x + r, y + r // 3), fill=color)
        pen.rectangle((x - r // 3, y - r, x + r // 3, y + r), fill=color)
    return image


def save(image, path, kind):
    """Write `image` in the file format and mode that `kind` (0 to 9) picks: mostly RGB JPEGs; returns the path."""
    if kind == 0:
        path = path.with_suffix(".png")
        image = image.quantize(32)
        image.save(path, transparency=bytes([255] * 31 + [0]))
    elif kind == 1:
        image.convert("CMYK").save(path, quality=90)
    elif kind == 2:
        image.convert("L").save(path, quality=90)
    elif kind == 3:
        exif = Image.Exif()
        exif[ORIENTATION] = 6  # turned a quarter to the left: a viewer turns it back
        image.transpose(Image.Transpose.ROTATE_90).save(path, quality=90, exif=exif)
    else:
        image.save(path, quality=90)
    return path


def make_tree(root, train_per_class, val_per_class, seed=0, low=48, high=120, plain=False):
    """root/{train,val}/<class>/<n>.jpg (or .png); plain: RGB JPEGs alone. val_per_class: a number, or one per class."""
    rng = np.random.default_rng(seed)
    per_split = {"train": [train_per_class] * 4, "val": val_per_class}
    if isinstance(val_per_class, int):
        per_split["val"] = [val_per_class] * 4
    for split, counts in per_split.items():
        for name, count in zip(COLORS, counts):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                size = tuple(int(s) for s in rng.integers(low, high, 2))
                save(draw(name, size, rng), folder / f"{i}.jpg", 9 if plain else i % 10)
    return root


def flags(tree, output, *argv):
    """Flags of imagenet.train, as texts."""
    common = ["--data-dir", tree, "--output-dir", output, "--workers", 0, "--no-progress", "--device", "cpu"]
    return [str(a) for a in (*common, *argv)]
