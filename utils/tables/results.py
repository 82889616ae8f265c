"""Finished runs, read back from their folders, and which of them are the same experiment."""

import csv
import json
import math
import os
import statistics
from dataclasses import dataclass
from pathlib import Path

from models import describe_network
from utils.command import RunError, UsageError, height_width
from utils.training.run import ARGS, METRICS, SUMMARY

DEFAULTS = {
    "dataset": "cifar10",
    "method": "bireal",
    "weight_bits": 1,
    "activation_bits": 1,
    "structure": None,
    "activation": None,
    "recovery": None,
    "ratio": None,
    "groups": None,
    "variant": None,
    "ires": False,
    "lam": 0.15,
    "mu": 0.5,
    "ires_variant": "paper",
}
"""The flags that make an experiment what it is, besides --arch, and what they are where they are not given."""

LOSS = ("ires", "lam", "mu", "ires_variant")
"""Those of them that are the loss's; the others are the network's."""

RECIPE = (
    "lr", "batch_size", "momentum", "weight_decay", "t_min", "image_size", "amp", "warmup_epochs", "optimizer",
    "schedule", "decay", "accumulate", "stage", "lighting", "color_jitter", "label_smoothing", "teacher", "init_from",
)  # fmt: skip
"""The flags that runs share which are seeds of one figure, besides the above."""
CIFAR10_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]

_NUMBER, _TEXT = (int, float), (str,)
ARGS_TYPES = {
    "dataset": _TEXT, "arch": _TEXT, "seed": (int,), "method": _TEXT, "weight_bits": (int,), "activation_bits": (int,),
    "structure": _TEXT, "activation": _TEXT, "recovery": _TEXT, "ratio": (int,), "groups": (int, str),
    "variant": _TEXT, "ires": (bool,), "lam": _NUMBER, "mu": _NUMBER, "ires_variant": _TEXT, "data_dir": _TEXT,
    "command": _TEXT, "image_size": (int, list),
}  # fmt: skip
SUMMARY_TYPES = {
    "top1_last": _NUMBER, "top1_best": _NUMBER, "images": (int,), "epochs": (int,), "seconds": _NUMBER,
    "data": (dict,), "versions": (dict,), "bops": _NUMBER, "flops": _NUMBER,
}  # fmt: skip
"""What a run's files hold, by type; `NEEDED` may not be missing."""
NEEDED = {"dataset", "arch", "seed", *SUMMARY_TYPES} - {"bops", "flops"}


@dataclass(frozen=True)
class Result:
    """A finished run: its name (path below the folders searched), flags (args.json) and outcome (summary.json)."""

    name: str
    path: Path
    args: dict
    summary: dict

    @property
    def data_name(self):
        """What the data are called: a folder of images by its own name."""
        if self.args["dataset"] not in ("folder", "imagenet") or self.is_imagenet:
            return self.args["dataset"]
        return Path(self.args.get("data_dir") or "folder").resolve().name

    @property
    def is_cifar10(self):
        """Whether the images are CIFAR-10's, as torchvision has them or in a folder of ten classes of those names."""
        classes = self.summary["data"].get("classes")
        return self.args["dataset"] == "cifar10" or (self.args["dataset"] == "folder" and classes == CIFAR10_CLASSES)

    @property
    def is_imagenet(self):
        """Whether the images are ILSVRC-2012's: other trees of class folders have other numbers of classes."""
        classes = self.summary["data"].get("classes")
        return self.args["dataset"] == "imagenet" and isinstance(classes, list) and len(classes) == 1000

    @property
    def image_size(self):
        """Of the images that the network saw, as text: "32x32"."""
        size = self.summary["data"].get("image_size")
        return "x".join(map(str, height_width(size))) if isinstance(size, (int, list)) else "unknown size"

    @property
    def top1(self):
        """Accuracy after the last epoch, in percent."""
        return self.summary["top1_last"]

    def column(self, name):
        """A column of metrics.csv, a number per epoch. Raises RunError if it is not there, or has no rows."""
        try:
            with open(self.path / METRICS, newline="") as file:
                values = [float(row[name]) for row in csv.DictReader(file)]
        except (OSError, KeyError, TypeError, ValueError, csv.Error):
            values = []
        if not values or not all(map(math.isfinite, values)):
            raise RunError(f"{self.path} is not a whole run: its {METRICS} has no column {name} of numbers")
        return values

    @property
    def images_of(self):
        """What two runs share whose accuracies are of the same images: the data, and the test images themselves."""
        data = self.summary["data"]
        tree = (self.data_name, self.image_size, *(data.get(name) for name in ("classes", "train_images")))
        images = data.get("test_fingerprint") or (*tree, self.summary["images"])
        return (self.args["dataset"], str(images))

    @property
    def recipe(self):
        """{name: text} of what a run was trained by, and on; "-" for what it does without."""
        found = {name: self.args.get(name) for name in RECIPE}
        found["training images"] = str(self.summary["data"].get("train_fingerprint", "-"))[:8]
        found = {name: "-" if value in (None, 0, False, "none") else str(value) for name, value in found.items()}
        moving = {name: "yes" for name in ("teacher", "init_from") if found[name] != "-"}  # files may have moved
        return found | moving

    @property
    def schedule(self):
        """What two runs must share to be seeds of one figure: test images, epochs, and the recipe."""
        return (*self.images_of, self.summary["epochs"], *self.recipe.items())


def _fits(value, known):
    """Whether a value is of the types `known`, and can be printed: a number of a size that makes sense, plain text."""
    if not isinstance(value, known) or (isinstance(value, bool) and bool not in known):
        return False
    if isinstance(value, str):
        return value.isprintable()
    return not isinstance(value, (int, float)) or abs(value) < 1e18  # nor is it NaN


def _read(path, types):
    """The JSON object in a file. Raises ValueError, RecursionError or OSError for anything else, or of other types."""
    content = json.loads(path.read_text())
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} holds no JSON object")
    content = {name: value for name, value in content.items() if value is not None}
    for name, known in types.items():
        if name in content and not _fits(content[name], known):
            raise ValueError(f"{path.name} has {name} {str(content[name])[:40]!r}")
        if name in NEEDED and name not in content:
            raise ValueError(f"{path.name} does not tell {name}")
    return content


def _result(folder, path):
    args = {**DEFAULTS, **_read(path / ARGS, ARGS_TYPES)}
    summary = _read(path / SUMMARY, SUMMARY_TYPES)
    identity(args)  # it is a network at all
    return Result(os.path.relpath(path, folder), path, args, summary)


def collect(folders):
    """All finished runs below `folders`, sorted by path, named from the folder that all of these are in. Raises
    UsageError for a folder that does not exist, RunError for a run whose files are damaged."""
    found, seen = [], set()
    common = os.path.commonpath([os.path.abspath(folder) for folder in folders])
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise UsageError(f"no folder {folder}")
        for path in sorted(folder.rglob(SUMMARY)):
            if path.resolve() in seen:
                continue
            seen.add(path.resolve())
            try:
                found.append(_result(common, path.parent))
            except (OSError, ValueError, RecursionError) as error:
                raise RunError(f"{path.parent} is not a whole run: {error}") from None
    return found


def of_data(results, name):
    """The runs on the data `name`: a data set, or a folder of images by its name."""
    return [r for r in results if name in (r.data_name, r.args["dataset"])]


def identity(flags):
    """A key that is equal for the same network and loss, however its flags were written. Raises ValueError for flags
    of no network."""
    flags = {**DEFAULTS, **{k: v for k, v in flags.items() if v is not None}}
    network = describe_network(**{name: flags[name] for name in ("arch", *DEFAULTS) if name not in LOSS})
    return network, tuple(flags[name] for name in LOSS) if flags["ires"] else ("plain",)


def seeds_of(results, flags):
    """{schedule: {seed: Result}} of the runs that `flags` describe; of two runs with one seed the later counts."""
    groups = {}
    for result in results:
        if identity(result.args) == identity(flags):
            groups.setdefault(result.schedule, {})[result.args["seed"]] = result
    return dict(sorted(groups.items()))


def mean_top1(runs):
    """The mean of the runs' accuracies after the last epoch, in percent."""
    return statistics.mean(run.top1 for run in runs)


def by_images(results, same_epochs=True):
    """[[Result, ...], ...]: the runs on the same images and, with same_epochs, for as many epochs: of those on the same
    images the longest first."""
    groups = {}
    for result in results:
        groups.setdefault((*result.images_of, -result.summary["epochs"] if same_epochs else 0), []).append(result)
    return [groups[key] for key in sorted(groups)]
