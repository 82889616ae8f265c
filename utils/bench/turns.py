"""A packed network and its rivals, each in a process of its own (`utils.bench.engines`), loaded and timed in turn."""

import contextlib
import importlib.metadata
import importlib.util
import json
import signal
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from utils.bench.rivals import RIVALS, written
from utils.checkpoint import load_model
from utils.checkpoint.files import is_packed
from utils.checkpoint.packed import write_packed
from utils.command import RunError
from utils.deploy.networks import named_network, packed_contents, random_images, use_fast

ROOT = Path(__file__).parents[2]
BURST = 0.05
"""Seconds of a turn."""
LOADS = 3
"""Fresh processes that the medians of import and loading are taken over."""
CALIBRATION = 8
"""Batches of random images that INT8's ranges are taken from."""
SAME = {"float32": 0.999, "bf16": 0.99, "INT8": 0.9}
"""Least cosine between an engine's logits and torch's float32 ones: with less it computes another network."""


class Contender:
    """A row of the result, the file that it is of, and the process that runs it, which stands still but in its turn."""

    def __init__(self, engine, path, row, expected=None):
        self.engine, self.path, self.row, self.expected = engine, path, row, expected
        self.loads, self.times, self.process = [], [], None

    def start(self, images, threads):
        """A fresh process, in the place of the last one. images: path of the .npy file that it runs on."""
        self.stop()
        self.log = images.with_name(f"{self.engine}-{self.path.name}.log")
        words = [sys.executable, "-m", "utils.bench.engines", self.engine, self.path, images, str(threads)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(words, cwd=ROOT, stderr=log, **pipes)
        self.loads.append(self._answer())
        self._check(self.loads[-1].pop("logits"))
        self.process.send_signal(signal.SIGSTOP)

    def turn(self):
        """Run it for BURST seconds."""
        self.process.send_signal(signal.SIGCONT)
        with contextlib.suppress(BrokenPipeError):  # of a process that has ended: what it told follows
            print(BURST, file=self.process.stdin, flush=True)
        self.times += self._answer()
        self.process.send_signal(signal.SIGSTOP)  # some engines' threads wait busily for what comes next

    def _answer(self):
        line = self.process.stdout.readline()
        if not line:
            told = self.log.read_text().strip().splitlines() or ["no word of why"]
            raise RunError(f"{self} ended with status {self.process.wait()}: {told[-1]}")
        return json.loads(line)

    def _check(self, logits):
        if self.expected is not None:
            same = torch.cosine_similarity(self.expected, torch.tensor(logits), dim=0).item()
            if not same >= SAME[self.row["precision"]]:
                raise RunError(f"{self} does not give torch's logits: cosine {same:.3f}")

    def __str__(self):
        return "{network} in {engine}, {precision}".format(**self.row)

    def stop(self):
        """End the process, if there is one."""
        if self.process is not None:
            self.process.kill()
            self.process.communicate()

    def result(self):
        """The row with the medians of what was measured, and the file's bytes."""
        found = {name: [load[name] for load in self.loads] for name in self.loads[0]}
        found = {name: None if None in values else statistics.median(values) for name, values in found.items()}
        size = self.path.stat().st_size
        if self.path.suffix == ".xml":  # OpenVINO's graph, beside which its weights lie
            size += self.path.with_suffix(".bin").stat().st_size
        return {**self.row, "ms": statistics.median(self.times), **found, "bytes": size}


def _packed(args, folder):
    """(Contender of the network that the flags name, its Contents)."""
    if args.checkpoint and is_packed(args.checkpoint):
        path, contents = Path(args.checkpoint).resolve(), packed_contents(args)
    else:
        model, contents = named_network(args)
        path = folder / "network.packed"
        write_packed(path, model, contents.network, contents.data)
    return Contender("packed", path, {"network": contents.network, "engine": "packed", "precision": "1 bit"}), contents


def _fast(packed, size):
    """[Contender of the same file with --fast], or [] and a line on standard error where that cannot be."""
    try:
        use_fast(load_model(packed.path), size)
    except RunError as error:
        print(f"skipped: {error}", file=sys.stderr)
        return []
    return [Contender("packed_fast", packed.path, {**packed.row, "engine": "packed, `--fast`"})]


def measure(args):
    """{"network", "image_size", "rows", "versions"}: a row per contender, with medians of ms, import_ms and load_ms.

    args: of `utils.deploy bench`, --threads given. Raises RunError if a contender fails.
    """
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        ours, contents = _packed(args, Path(folder))
        batches = random_images(contents.image_size, args.batch_size * CALIBRATION, args.seed).split(args.batch_size)
        images = Path(folder, "images.npy")
        np.save(images, batches[0].numpy())
        contenders = [ours, *_fast(ours, contents.image_size)]
        for rival, path, row, expected in written(contents.image_size, batches, Path(folder)):
            contenders.append(Contender(rival.engine, path, row, expected))
        for contender in contenders:
            stack.callback(contender.stop)
        for _ in range(LOADS):
            for contender in contenders:
                contender.start(images, args.threads)
        for _ in range(args.repeats):
            for contender in contenders:
                contender.turn()
        rows = [contender.result() for contender in contenders]
    return {
        "network": contents.network,
        "image_size": list(contents.image_size),
        "rows": rows,
        "versions": {name: importlib.metadata.version(name) for name in _packages()},
    }


def _packages():
    names = dict.fromkeys(["torch", "numba", *(name for rival in RIVALS for name in rival.needs)])
    return [name for name in names if importlib.util.find_spec(name)]
