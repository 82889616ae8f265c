"""How flat the attention of trained networks is over an image, and what each of IRes' thresholds would mask.

    python -m utils.tables.flatness --checkpoint checkpoints/cifar10_jpeg/*/seed0.* --dataset folder --data-dir DIR \\
        --output results/flatness_cifar10.csv --force
    python -m utils.tables.flatness --show results/flatness_cifar10.csv
"""

import csv
import functools
from pathlib import Path

import torch
import torch.nn.functional as F

from cifar import data
from imagenet.data import val_batches
from modules.restriction import attention_map, attention_mask
from utils.checkpoint import open_model
from utils.checkpoint.network import check_takes
from utils.command import Parser, RunError, UsageError, command
from utils.files import output_path, replacing
from utils.tables.markdown import markdown_table

THRESHOLDS = (("paper", 0.15), ("paper", 0.9), ("released", 0.15), ("released", 0.9), ("quantile", 0.15))
COLUMNS = ("network", "data", "images", "saturated", "smallest", "median", *(f"{v}_{lam}" for v, lam in THRESHOLDS))
HEADER = ("network", "data", "at ±1 or beyond", "smallest / mean", "its median")
MASKED = tuple(f"{variant} {lam}" for variant, lam in THRESHOLDS)
NOTE = (
    "Over all test images. At ±1 or beyond: so many of the last stage's features. Smallest / mean: the smallest "
    "attention of an image over its mean, in the image where it is lowest, and in the median image. Last columns: the "
    "fraction of pixels that a threshold masks, by variant and λ."
)


@torch.inference_mode()
def flatness(model, batches):
    """One network's figures, {column: text} of COLUMNS from `images` on, over batches of normalised (N, 3, H, W)."""
    ratios, saturated, masked, count = [], 0.0, dict.fromkeys(THRESHOLDS, 0.0), 0
    for images, _ in batches:
        features = model.features(images)[-1]
        attention = attention_map(features).unsqueeze(1)
        attention = F.interpolate(attention, size=images.shape[2:], mode="bilinear", align_corners=False)
        ratios.append(attention.amin((1, 2, 3)) / attention.mean((1, 2, 3)))
        saturated += len(images) * (features.abs() >= 1).double().mean().item()
        for variant, lam in THRESHOLDS:
            mask = attention_mask(features, images.shape[2:], lam, variant)
            masked[variant, lam] += len(images) * (1 - mask.double().mean().item())
        count += len(images)
    ratios = torch.cat(ratios)
    figures = [str(count), *(f"{x:.3f}" for x in (saturated / count, ratios.min(), ratios.median()))]
    return dict(zip(COLUMNS[2:], [*figures, *(f"{masked[key] / count:.4f}" for key in THRESHOLDS)]))


def measure(paths, dataset, data_dir, folder="checkpoints"):
    """Rows of COLUMNS, a dict per checkpoint, which goes by its path below `folder` without the suffix."""
    name = Path(data_dir).resolve().name if data_dir and dataset in ("folder", "imagenet") else dataset
    load = functools.cache(lambda size: data.load(dataset, data_dir, image_size=size, progress=False, splits=("test",)))
    rows = []
    for path in map(Path, paths):
        model, contents = open_model(path)
        model.float()  # a released file may have another precision, the images have this one
        if dataset == "imagenet":
            batches = val_batches(data_dir, contents, model, 100)
        else:
            (test,) = load(contents.image_size if dataset == "folder" else None)
            check_takes(model, test.images.shape[2:], path)
            batches = data.Batches(test, 500)
        label = path.with_suffix("")
        label = label.relative_to(folder) if label.is_relative_to(folder) else label
        rows.append({"network": str(label), "data": name, **flatness(model, batches)})
    return rows


def read(path):
    """The rows that `measure` gave, from a CSV file. Raises RunError for another file."""
    try:
        with open(path, newline="") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
        if tuple(reader.fieldnames or ()) != COLUMNS or any(None in row or None in row.values() for row in rows):
            raise ValueError("it has other columns")
    except (ValueError, csv.Error) as error:
        raise RunError(f"{path} is not what --output writes: {error}") from None
    return rows


def markdown(rows):
    """Markdown of what was measured, a line per network."""
    lines = []
    for row in rows:
        name = f"{row['data']}, {int(row['images']):,} images"
        masked = (f"{float(row[column]):.2%}" for column in COLUMNS[6:])
        lines.append([row["network"], name, f"{float(row['saturated']):.0%}", row["smallest"], row["median"], *masked])
    return "\n".join([*markdown_table((*HEADER, *MASKED), lines), "", NOTE])


def build_parser():
    parser = Parser(prog="utils.tables.flatness", description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", nargs="+", metavar="PATH", default=[], help="networks")
    parser.add_argument("--dataset", choices=(*data.DATASETS, "imagenet"), default="digits", help="whose test images")
    parser.add_argument("--data-dir", metavar="DIR", help="where the data set lies (digits needs none)")
    parser.add_argument("--output", metavar="CSV", help="write what was measured")
    parser.add_argument("--force", action="store_true", help="replace --output if it exists")
    parser.add_argument("--show", nargs="+", metavar="CSV", default=[], help="print what was measured before")
    return parser


@command
def main(argv=None):
    args = build_parser().parse_args(argv)
    if bool(args.checkpoint) == bool(args.show):
        raise UsageError("give --checkpoint PATH ..., or --show CSV ...")
    if args.show and (args.data_dir or args.dataset != "digits"):
        raise UsageError("--dataset and --data-dir go with --checkpoint")
    output = output_path(args.output, args.force) if args.output else None
    rows = [row for path in args.show for row in read(path)]
    rows += measure(args.checkpoint, args.dataset, args.data_dir) if args.checkpoint else []
    try:
        print(markdown(rows))
    except ValueError as error:
        raise RunError(f"not what --output writes: {error}") from None
    if output:
        with replacing(output) as path, open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
