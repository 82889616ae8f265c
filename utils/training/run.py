"""A run's folder: args.json, metrics.csv, TensorBoard events, last.pt, best.pt, summary.json."""

import csv
import fcntl
import json
import os
import platform
import subprocess
from pathlib import Path

import torch

from utils.checkpoint import save
from utils.command import RunError, UsageError, cpu_name
from utils.files import replacing, write_text
from utils.training import distributed

SUMMARY = "summary.json"
ARGS = "args.json"
METRICS = "metrics.csv"
LAST = "last.pt"
BEST = "best.pt"
LOCK = ".lock"


def check_new(folder):
    """Raise UsageError if no new run can begin in the folder, as it holds one."""
    stored = [name for name in (LAST, BEST, METRICS, SUMMARY) if os.path.exists(Path(folder, name))]
    if stored:
        raise UsageError(f"{folder} already holds a run ({stored[0]}): add --resume, or give another --output-dir")


def check_whole(folder):
    """Raise RunError if a run in the folder has lost the checkpoint that it goes on from."""
    last, best, summary = (Path(folder, name) for name in (LAST, BEST, SUMMARY))
    if not last.exists() and best.exists():
        raise RunError(f"no checkpoint at {last}; --resume {best} goes on from the best epoch, which is there")
    if not last.exists() and summary.exists():
        raise RunError(f"no checkpoint at {last}, but {summary}: give another --output-dir")


def last_of(folder):
    """What tells the folder's last.pt from a later one; () if there is none."""
    try:
        status = os.stat(Path(folder, LAST))
    except FileNotFoundError:
        return ()
    return status.st_ino, status.st_size, status.st_mtime_ns


class Run:
    """The folder of one run, which no other process may train in meanwhile: use it in a `with` block.

    folder: made if it is missing. A new run refuses a folder that already holds one; a resumed run continues in it.
    command: the command line, kept in args.json. last: what `last_of` gave before the checkpoint to go on from was
    read. Raises UsageError for a folder that holds a run, is in use, or went on since then; RunError for one that
    cannot be written.
    """

    def __init__(self, folder, resume=False, command=None, last=None):
        if not resume:
            check_new(folder)
        self.folder = Path(folder)
        self.command = command
        self.rows = []
        self._lock = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if distributed.is_main():
                self._lock = self._locked()
                self._check_unchanged(last)
                self._clean()
        except OSError as error:
            raise RunError(f"cannot write to --output-dir {folder}: {error.strerror}") from None

    def _locked(self):
        """A file that this process holds the lock of: it goes with the process, however that ends."""
        lock = open(self.folder / LOCK, "a+")  # noqa: SIM115  it stays open as long as the run
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            owner = lock.read().strip()
            lock.close()
            who = f"another process ({owner})" if owner else "another process"
            raise UsageError(f"{who} is training in {self.folder}: wait for it, or stop it") from None
        lock.truncate(0)
        lock.write(f"{os.getpid()} on {platform.node()}")
        lock.flush()
        return lock

    def _check_unchanged(self, last):
        if last is not None and last != last_of(self.folder):
            self.close()
            raise UsageError(f"another process has trained in {self.folder} meanwhile: --resume once more")

    def _clean(self):
        """Remove what a killed process left half written: nobody else writes here while this one holds the lock."""
        for name in (LAST, BEST, METRICS, ARGS, SUMMARY):
            for half in self.folder.glob(f".{name}.*.tmp"):
                half.unlink()

    def close(self):
        if self._lock:
            self._lock.close()
            self._lock = None

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    @property
    def last(self):
        return self.folder / LAST

    def save_args(self, args):
        """args: the flags, {name: value}."""
        write_text(self.folder / ARGS, json.dumps({**args, "command": self.command}, indent=2) + "\n")

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
        with replacing(self.folder / METRICS) as temporary, temporary.open("w", newline="") as file:
            columns = dict.fromkeys(name for row in self.rows for name in row)
            writer = csv.DictWriter(file, list(columns), lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)

    def save(self, name, checkpoint):
        """Write a checkpoint, LAST or BEST."""
        save(self.folder / name, checkpoint)

    def has_summary(self):
        return (self.folder / SUMMARY).exists()

    def forget_summary(self):
        (self.folder / SUMMARY).unlink(missing_ok=True)

    def save_summary(self, summary):
        write_text(self.folder / SUMMARY, json.dumps(summary, indent=2) + "\n")


def versions(device):
    """What a result depends on besides the code: {name: version}; device: the torch.device that computed it."""
    import torchvision

    cpu = f"{cpu_name()}, {torch.get_num_threads()} threads"
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu,
        "git_commit": git_commit(),
    }


def git_commit():
    """The commit of this code, with "+" if files differ from it; None outside a clone."""
    here = Path(__file__).parent

    def git(*arguments):
        return subprocess.run(
            ["git", "-C", here, *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
