"""Batches of a tree of images for one rank among many.

The order of the images and their augmentation follow from (seed, epoch, image) alone: not from the number of workers or
ranks, nor from where in an epoch a resumed run starts.
"""

import contextlib
import math
import os
import signal
import sys
import threading
import time

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from utils.command import RunError, UsageError, is_out_of_memory
from utils.images import UnreadableImage, read_image, remedy
from utils.training import distributed


def random_seed(*numbers):
    """32 well-mixed bits, the same for the same non-negative integers."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


class Images(Dataset):
    """Images of a Folder by (epoch, index): (image (3, H, W) or None, label, [what could not be read]).

    Each is transformed with random numbers of its own, seeded by (seed, epoch, index). replace: in the place of an
    image that cannot be read give the next one that can, so that batches keep their size.
    """

    def __init__(self, folder, transform, seed=0, replace=False):
        self.samples = folder.samples
        self.transform = transform
        self.seed = seed
        self.replace = replace

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, key):
        epoch, index = key
        errors = []
        for i in range(len(self) if self.replace else 1):
            path, label = self.samples[(index + i) % len(self)]
            try:
                image = read_image(path)
                break
            except UnreadableImage as error:
                errors.append(str(error))
            except RunError as error:
                if get_worker_info() is None:
                    raise
                raise MemoryError(str(error)) from None  # out of a worker a RunError comes with all its traceback
        else:
            return None, label, errors
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(random_seed(self.seed, epoch, index))
            return self.transform(image), label, errors


class _Order:
    """The batch sampler of a DataLoader that outlives epochs: the keys of the next epoch's batches, set before each."""

    batches = ()

    def __iter__(self):
        return iter(self.batches)


def _collate(items):
    images = [image for image, _, _ in items if image is not None]
    labels = [label for image, label, _ in items if image is not None]
    errors = [error for _, _, errors in items for error in errors]
    return torch.stack(images) if images else torch.empty(0, 3, 1, 1), torch.tensor(labels, dtype=torch.long), errors


@contextlib.contextmanager
def _sigterm_blocked():
    """Within it SIGTERM waits, also in processes that are started there, and in all of their threads: torch starts some
    in a worker before `_leave_signals_to_trainer` is called."""
    blocked = {signal.SIGTERM} if hasattr(signal, "sigwaitinfo") else set()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _leave_signals_to_trainer(worker):
    # A terminal's Ctrl-C goes to a whole process group, Slurm's SIGTERM to every process of a job. The trainer, which
    # answers them, still needs its workers. They end with it all the same, or when it says so.
    os.setpgid(0, 0)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_when_the_trainer_says_so, daemon=True).start()


def _end_when_the_trainer_says_so():
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


class Batches:
    """One rank's batches of a Folder, on `device`: (images (B, 3, H, W), labels (B,)).

    batch_size: images of one optimizer step, over all ranks and `accumulate` parts, each of which is a batch here.
    train: every epoch has the images in a new order, without those that do not fill a last step; else each comes once,
    and `len` counts this rank's batches. skip_corrupt: images that cannot be read are left out of an evaluation, and
    replaced by the next in training; each is named once on standard error and counted in `skipped`. Without it they
    raise RunError, which names the flag unless it is None. Raises UsageError if the images are too few, or the batch
    does not divide.
    """

    def __init__(
        self, folder, transform, batch_size, device, *,
        train=False, seed=0, accumulate=1, workers=0, skip_corrupt=None, dtype=torch.float32,
    ):  # fmt: skip
        self.rank, self.ranks = distributed.rank(), distributed.world_size()
        self.count = len(folder)
        self.classes = folder.classes
        self.root = folder.root
        self.workers = workers
        if self.ranks > self.count:
            raise UsageError(f"{self.ranks} ranks are more than the {self.count} images of {folder.root}")
        parts = self.ranks * accumulate
        if train:
            shares = f"{self.ranks} rank(s) x --accumulate {accumulate}"
            if batch_size > self.count:
                raise UsageError(f"--batch-size {batch_size} is more than the {self.count} images of {folder.root}")
            if batch_size % parts:
                raise UsageError(f"--batch-size {batch_size} does not divide into {shares}")
            if batch_size == parts:
                raise UsageError(f"--batch-size {batch_size} over {shares} leaves BatchNorm one image at a time")
        self.part = max(batch_size // parts, 1)
        self.batch_size = batch_size
        self.train = train
        self.seed = seed
        self.device = device
        self.dtype = dtype
        self.skip_corrupt = skip_corrupt
        self.skipped = set()
        self.order = _Order()
        self.loader = DataLoader(
            Images(folder, transform, seed, replace=train and skip_corrupt),
            batch_sampler=self.order,
            num_workers=workers,
            collate_fn=_collate,
            worker_init_fn=_leave_signals_to_trainer,
            persistent_workers=workers > 0,
            generator=torch.Generator(),  # else every epoch draws a seed, which nothing uses, from the global one
            pin_memory=device.type == "cuda",
        )

    def __len__(self):
        """Optimizer steps of an epoch (train), or batches."""
        if self.train:
            return self.count // self.batch_size
        largest_share = math.ceil(self.count / self.ranks)
        return math.ceil(largest_share / self.part)  # on all ranks: the last batch of a smaller share may be empty

    @property
    def images_per_epoch(self):
        """Over all ranks."""
        return len(self) * self.batch_size if self.train else self.count

    def epoch(self, epoch, start=0):
        """The augmented batches of epoch `epoch`, from optimizer step `start` on."""
        generator = torch.Generator().manual_seed(random_seed(self.seed, epoch))
        order = torch.randperm(self.count, generator=generator)
        share = self.batch_size // self.ranks

        def keys():
            for step in range(start, len(self)):
                first = step * self.batch_size + self.rank * share
                for at in range(first, first + share, self.part):
                    yield [(epoch, index) for index in order[at : at + self.part].tolist()]

        return self._load(keys())

    def __iter__(self):
        own = range(self.rank, self.count, self.ranks)
        first = range(0, len(self) * self.part, self.part)
        return self._load([[(0, index) for index in own[at : at + self.part]] for at in first])

    def _load(self, keys):
        self.order.batches = keys
        try:
            with _sigterm_blocked():
                batches = iter(self.loader)  # starts the workers
            for images, labels, errors in batches:
                self._report(errors)
                if self.train and not len(labels):  # each was to be replaced by the next that can be read
                    raise RunError(f"none of the {self.count} images of {self.root} can be read")
                images = images.to(self.device, self.dtype, non_blocking=True, memory_format=torch.channels_last)
                yield images, labels.to(self.device, non_blocking=True)
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error) or "shared memory" in str(error) or "Bus error" in str(error):
                raise self._out_of_memory() from None
            raise RunError(f"loading images failed: {error}") from None

    def _out_of_memory(self):
        held = max(1, 2 * self.workers)  # batches that the loader prepares ahead
        return RunError(
            f"out of memory while loading images: {self.workers} workers keep up to {held} batches of {self.part} "
            f"images; 1,000 images of 224x224 need {1000 * 3 * 224 * 224 * 4 / 1e9:.1f} GB: give fewer --workers, "
            "a smaller --batch-size, or more room in /dev/shm"
        )

    def _report(self, errors):
        for error in errors:
            if not self.skip_corrupt:
                raise RunError(f"{error}{remedy(self.skip_corrupt)}")
            if error not in self.skipped:
                self.skipped.add(error)
                print(f"skipped: {error}", file=sys.stderr, flush=True)


def measure_loader(batches, steps):
    """Images/s of this rank's loader alone, over `steps` optimizer steps of training batches, after one to warm up."""
    parts = batches.batch_size // batches.ranks // batches.part
    count = 0
    start = None
    for i, (_, labels) in enumerate(batches.epoch(0)):
        if i == parts * (steps + 1):
            break
        if i >= parts:
            count += len(labels)
        if i == parts - 1:
            start = time.perf_counter()
    if not count:
        raise UsageError(f"{batches.images_per_epoch} images are too few for a warm-up and a measured step")
    return count / (time.perf_counter() - start)
