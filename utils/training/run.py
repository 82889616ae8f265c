"""A run's folder: args.json, metrics.csv, TensorBoard events, last.pt, best.pt, summary.json."""

import contextlib
import csv
import json
import os
import platform
import re
import subprocess
from pathlib import Path

import torch

from utils import checkpoint
from utils.command import RunError, UsageError

SUMMARY = "summary.json"
ARGS = "args.json"
METRICS = "metrics.csv"
LAST = "last.pt"
BEST = "best.pt"


def write_atomic(path, text):
    """Write text to a temporary name beside `path`, then rename it."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


class Run:
    """The folder of one run. A new run refuses a folder that already holds one; a resumed run continues in it."""

    def __init__(self, folder, resume=False):
        if not str(folder):
            raise UsageError("--output-dir needs a folder")
        self.folder = Path(folder)
        held = [name for name in (LAST, BEST, METRICS, SUMMARY) if (self.folder / name).exists()]
        if held and not resume:
            raise UsageError(f"{folder} already holds a run ({held[0]}): add --resume, or give another --output-dir")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            probe = self.folder / f".{os.getpid()}.probe"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise RunError(f"cannot write to --output-dir {folder}: {error.strerror}") from None
        self.rows = []

    @property
    def last(self):
        return self.folder / LAST

    def save_args(self, args):
        write_atomic(self.folder / ARGS, json.dumps(args, indent=2) + "\n")

    def set_rows(self, rows):
        """Start metrics.csv from the rows that a checkpoint holds; what came after it is forgotten."""
        self.rows = rows
        self._write_rows()

    def add_row(self, row):
        """One epoch's row. It holds nothing that depends on the clock, so that a resumed run's rows are the same."""
        self.rows = [*self.rows, row]
        self._write_rows()

    def _write_rows(self):
        if not self.rows:
            (self.folder / METRICS).unlink(missing_ok=True)
            return
        temporary = self.folder / f".{METRICS}.tmp"
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(self.rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)
        os.replace(temporary, self.folder / METRICS)

    def save_last(self, payload):
        checkpoint.save(self.last, payload)

    def save_best(self, payload):
        checkpoint.save(self.folder / BEST, payload)

    def save_summary(self, summary):
        write_atomic(self.folder / SUMMARY, json.dumps(summary, indent=2) + "\n")


def versions(device):
    """What a result depends on besides the code: {name: version}; device: the torch.device that computed it."""
    import torchvision

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "device": name,
        "git_commit": git_commit(),
    }


def cpu_name():
    """The processor's name and the number of cores that this process may use."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, TypeError):  # not Linux, or it does not tell
        name = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())[1]
    return f"{name}, {torch.get_num_threads()} threads"


def git_commit():
    """The commit of this code, with "+" if files differ from it; None outside a clone."""
    here = Path(__file__).parent

    def git(*arguments):
        return subprocess.run(
            ["git", "-C", here, *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD").strip() + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
