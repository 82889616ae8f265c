"""Finished runs, read back from their folders, and which of them are the same experiment."""

import csv
import json
import statistics
from dataclasses import dataclass
from pathlib import Path

from models import describe_network
from utils.command import RunError, UsageError
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

OPTIMIZER = ("lr", "batch_size", "momentum", "weight_decay", "t_min", "image_size", "amp")
NEEDED = {"top1_last", "top1_best", "images", "epochs", "seconds", "data", "versions"}
"""What summary.json must hold."""


@dataclass(frozen=True)
class Result:
    """A finished run: its name (path below the folder searched), flags (args.json) and outcome (summary.json)."""

    name: str
    path: Path
    args: dict
    summary: dict

    @property
    def data_name(self):
        """What the data are called: a folder of images by its own name."""
        if self.args["dataset"] != "folder":
            return self.args["dataset"]
        return Path(self.args.get("data_dir") or "folder").resolve().name

    def column(self, name):
        """A column of metrics.csv, a number per epoch. Raises RunError if it is not there, or has no rows."""
        try:
            with open(self.path / METRICS, newline="") as file:
                values = [float(row[name]) for row in csv.DictReader(file)]
        except (OSError, KeyError, TypeError, ValueError):
            values = []
        if not values:
            raise RunError(f"{self.path} is not a whole run: its {METRICS} has no column {name}")
        return values

    @property
    def schedule(self):
        """What two runs must share to be seeds of one figure: the data, the epochs, and the optimizer's settings."""
        data = str(self.summary["data"].get("test_fingerprint"))
        return (self.args["dataset"], data, self.summary["epochs"], *(str(self.args.get(name)) for name in OPTIMIZER))


def collect(folders):
    """All finished runs below `folders`, sorted by path. Raises UsageError for a folder that does not exist."""
    found, seen = [], set()
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise UsageError(f"no folder {folder}")
        for path in sorted(folder.rglob(SUMMARY)):
            if path.resolve() in seen:
                continue
            seen.add(path.resolve())
            try:
                args, summary = (json.loads((path.parent / name).read_text()) for name in (ARGS, SUMMARY))
                missing = {"dataset", "arch", "seed"} - args.keys() | NEEDED - summary.keys()
                if missing:
                    raise ValueError(f"it does not tell {', '.join(sorted(missing))}")
            except (OSError, ValueError, AttributeError, TypeError) as error:
                raise RunError(f"{path.parent} is not a whole run: {error}") from None
            found.append(Result(str(path.parent.relative_to(folder)), path.parent, args, summary))
    return found


def identity(flags):
    """A key that is equal for the same network and loss, however its flags were written."""
    flags = {**DEFAULTS, **{k: v for k, v in flags.items() if v is not None}}
    network = describe_network(**{name: flags[name] for name in ("arch", *DEFAULTS) if name not in LOSS})
    return network, tuple(flags[name] for name in LOSS) if flags["ires"] else ("plain",)


def grouped(results):
    """{(identity, schedule): [Result of each seed]}; of two runs with one seed the later counts."""
    groups = {}
    for result in results:
        groups.setdefault((identity(result.args), result.schedule), {})[result.args["seed"]] = result
    return {key: list(seeds.values()) for key, seeds in groups.items()}


def mean_std(values):
    """ "87.2 ± 0.1 (3)": mean, sample standard deviation, count; the value alone if there is one."""
    if len(values) == 1:
        return f"{values[0]:.2f} (1)"
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f} ({len(values)})"
