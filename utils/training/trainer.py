"""The trainer that all data sets share: epochs of training and evaluation, and what a run keeps of them."""

import sys
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from modules.progress import set_progress, set_t_min, start_epoch
from utils import complexity
from utils.checkpoint import load_state
from utils.command import RunError, UsageError, height_width
from utils.training import distributed, runtime
from utils.training.board import Board
from utils.training.flags import flag_values
from utils.training.losses import cross_entropy
from utils.training.metrics import Meters, evaluate, finite, progress_bar
from utils.training.resume import check_optimizer, check_state
from utils.training.run import BEST, LAST, Run, versions
from utils.training.signals import StopSignal


@dataclass
class Progress:
    """How far a run is: epochs done, best top-1 so far (%), seconds of training and evaluation behind it.

    Of the current epoch: the learning rate at its start, optimizer steps done, what its Meters hold, (count, sums).
    """

    epoch: int = 0
    best: float = -1.0
    seconds: float = 0.0
    lr: float = 0.0
    step: int = 0
    meters: tuple = (0, {})


@dataclass
class Trainer:
    """A training: what learns, by what, in which precision, and the run's folder.

    step: module that owns `model`: step(images, targets) -> loss, logits, metrics. scheduler: stepped after every
    optimizer step. args: the run's flags. description: plain values that every checkpoint holds besides the training's
    state: network (build_model's arguments), args, data, and the stage if there are several. teacher: function of
    images, whose logits replace the labels as the step's targets.

    Under torchrun all ranks call it alike, and rank 0 alone writes. After SIGTERM or Ctrl-C on any rank last.pt is
    saved at the next step, and SystemExit is raised.
    """

    step: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    precision: runtime.Precision
    run: Run
    args: Namespace
    description: dict
    teacher: Callable[[torch.Tensor], torch.Tensor] | None = None
    progress: Progress = field(default_factory=Progress, init=False)
    scaler: Any = field(init=False)
    resumed: bool = field(default=False, init=False)

    def __post_init__(self):
        self.model = self.step.model
        self.step.to(memory_format=torch.channels_last)
        self.scaler = self.precision.scaler()
        self.accumulate = getattr(self.args, "accumulate", 1)
        self.show_progress = not self.args.no_progress and distributed.is_main()
        set_t_min(self.model, self.args.t_min)

    # A run from its start to its summary -----------------------------------------------------------------------------

    def resume(self, checkpoint):
        """Take up the state that `checkpoint`, what a last.pt of this run holds, was saved in.

        Raises UsageError if the run began with other images, RunError if the state does not fit.
        """
        if checkpoint["data"] != self.description["data"]:
            raise UsageError(f"the images are not those that the run in {self.run.folder} began with: check --data-dir")
        load_state(self.model, checkpoint["model"], self.run.last)
        try:
            check_optimizer(self.optimizer, checkpoint["optimizer"])
            check_state(self.scheduler.state_dict(), checkpoint["scheduler"])
            self.optimizer.load_state_dict(checkpoint["optimizer"])
            self.scheduler.load_state_dict(checkpoint["scheduler"])
            if checkpoint["scaler"] and self.scaler.is_enabled():  # another --amp may have none
                self.scaler.load_state_dict(checkpoint["scaler"])
            runtime.set_rng_state(checkpoint["rng"])
            self.progress = Progress(**{name: checkpoint[name] for name in vars(self.progress)})
        except Exception as error:  # a damaged state can fail anywhere in them
            raise RunError(f"{self.run.last} holds no state to go on from: {type(error).__name__}: {error}") from None
        before = checkpoint["args"]["amp"]
        if before != self.precision.amp and distributed.is_main():
            print(f"precision: --amp {self.precision.amp} from here on, where the run began with {before}")
        self.run.rows = checkpoint["rows"]
        self.resumed = True

    def fit(self, train, test, on_epoch=None):
        """Train until args.epochs are done, evaluating after each; write the run's summary.

        train, test: have `images_per_epoch`; train has `epoch(e, start)`, the batches of epoch e from optimizer step
        `start` on; test iterates. on_epoch(epoch, board): called after every epoch, on every rank.
        """
        steps_left = (self.args.epochs - self.progress.epoch) * len(train) - self.progress.step
        compiled, reason = runtime.choose_compile(self.args.compile, self.precision.device, steps_left)
        if compiled:
            runtime.compile_step(self.step, self.precision.device, self.accumulate)
        counts = self._announce(f"{'compiled' if compiled else 'not compiled'} ({reason})", len(train))
        self.parallel_step = distributed.wrap(self.step, self.precision.device)
        self.counted = self.saved = time.monotonic()
        is_over = self.progress.epoch == self.args.epochs
        with StopSignal() as self.stop, Board(self.run.folder, self.progress.epoch + 1) as board:
            if (self.progress.epoch, self.progress.step) == (0, 0):
                self.save(LAST)
            for epoch in range(self.progress.epoch, self.args.epochs):
                followed = set_progress(self.model, epoch / self.args.epochs)
                trained, images_per_s = self.train_epoch(epoch, train)
                tested = self.evaluate(epoch, test)
                row = self._finish_epoch(trained, tested, followed)
                if distributed.is_main():
                    self._print_row(row, images_per_s)
                board.add_row(row, images_per_s)
                if on_epoch:
                    on_epoch(epoch, board)
                self._stop_if_asked()
        if distributed.is_main():
            self._summarise(counts, keep=is_over)

    # An epoch --------------------------------------------------------------------------------------------------------

    def train_epoch(self, epoch, train):
        """Train on what is left of an epoch: ({name: mean over all its images}, images/s).

        Raises RunError if the loss is not finite: what was saved before stays as it is.
        """
        title, start = self._title(epoch), time.perf_counter()
        if self.progress.step == 0:
            self.progress.lr = self.scheduler.get_last_lr()[0]
            start_epoch(self.model)
            distributed.share_buffers(self.model)  # what rank 0 has made of them
        seen = self.progress.meters[0]
        # A checkpoint holds the sums of all ranks: one rank takes them up.
        meters = Meters(*self.progress.meters) if distributed.is_main() else Meters()
        self.step.train()
        self.optimizer.zero_grad(set_to_none=True)
        with progress_bar(train.images_per_epoch, title, self.show_progress) as bar:
            bar.update(meters.count)
            for i, (images, labels) in enumerate(train.epoch(epoch, self.progress.step), start=1):
                self._train_batch(images, labels, meters, last_part=i % self.accumulate == 0)
                bar.update(len(labels) * distributed.world_size())
                if i % self.accumulate == 0:
                    self._after_step(meters, title)
                if i % self.args.print_freq == 0:
                    means = meters.finite_means(title)
                    bar.set_postfix(loss=f"{means['loss']:.3f}", top1=f"{means['top1']:.1f}%")
        meters = meters.over_ranks()
        self.progress.meters = meters.state()
        images_per_s = (train.images_per_epoch - seen) / (time.perf_counter() - start)
        return meters.finite_means(title), images_per_s

    def _train_batch(self, images, labels, meters, last_part):
        """Forward and backward; after the last of `accumulate` parts the optimizer steps."""
        # Ranks exchange gradients with the last part alone.
        with distributed.no_sync(self.parallel_step, skip=not last_part):
            with self.precision.autocast():
                targets = labels if self.teacher is None else self.teacher(images)
                loss, logits, metrics = self.parallel_step(images, targets)
            self.scaler.scale(loss / self.accumulate).backward()
        meters.update(logits, labels, loss=loss, **metrics)
        if last_part:
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.optimizer.zero_grad(set_to_none=True)

    def _after_step(self, meters, title):
        self.scheduler.step()
        self.progress.step += 1
        due = time.monotonic() - self.saved >= 60 * self.args.checkpoint_minutes
        stopping, due = distributed.largest(self.stop.received, int(due))
        if stopping or due:
            everywhere = meters.over_ranks()
            everywhere.finite_means(title)
            self.progress.meters = everywhere.state()
            self._stop(stopping) if stopping else self.save(LAST)

    def evaluate(self, epoch, test):
        """top1, top5 (%), loss and number of images over all test images, in float32."""
        distributed.share_buffers(self.model)
        title = f"{self._title(epoch)} test"
        tested = evaluate(
            self.model, test, test.images_per_epoch, cross_entropy, runtime.Precision(self.precision.device),
            on_batch=self._stop_if_asked, title=title, progress=self.show_progress,
        )  # fmt: skip
        return finite(tested, title)

    def _finish_epoch(self, trained, tested, followed):
        """Write the epoch's row, last.pt, and best.pt if it is the best so far; the row."""
        progress = self.progress
        row = {"epoch": progress.epoch + 1, "lr": progress.lr}
        row |= {f"train_{name}": value for name, value in trained.items()}
        row |= {f"test_{name}": value for name, value in tested.items()}
        row |= followed
        improved = tested["top1"] > progress.best
        progress.epoch, progress.step, progress.meters = progress.epoch + 1, 0, (0, {})
        progress.best = max(progress.best, tested["top1"])
        if distributed.is_main():
            self.run.add_row(row)
        if improved:
            self.save(BEST)
        self.save(LAST)
        return row

    # What is kept and printed ----------------------------------------------------------------------------------------

    def save(self, name):
        """Write a checkpoint, LAST or BEST, with all that the training needs to go on; rank 0 alone does."""
        now = time.monotonic()
        self.progress.seconds += now - self.counted
        self.counted = now
        if name == LAST:
            self.saved = now
        if distributed.is_main():
            parts = ("model", "optimizer", "scheduler", "scaler")
            state = {part: getattr(self, part).state_dict() for part in parts}
            state |= {"rng": runtime.rng_state(), **vars(self.progress), "rows": self.run.rows}
            self.run.save(name, {**self.description, **state})

    def _stop_if_asked(self):
        (number,) = distributed.largest(self.stop.received)
        if number:
            self._stop(number)

    def _stop(self, number):
        self.save(LAST)
        if distributed.is_main():
            name = "SIGTERM" if number == 15 else "Ctrl-C"
            print(f"stopped by {name}; {self.run.last} is saved, --resume continues", file=sys.stderr, flush=True)
        raise SystemExit(128 + number)

    def _title(self, epoch):
        return f"epoch {epoch + 1}/{self.args.epochs}"

    def _announce(self, compilation, steps):
        """Print what the run is, and write it into its folder; returns what its network costs."""
        if not distributed.is_main():
            return None
        size = self.description["data"]["image_size"]
        line, counts = complexity.of_run(self.model, height_width(size))
        flags = flag_values(self.args)
        print(line)
        print("flags:", " ".join(f"{name}={value}" for name, value in flags.items() if value is not None))
        print(f"computing on {self.precision.device} in {self.precision}, {compilation}", flush=True)
        progress = self.progress
        if not self.resumed:
            self.run.save_args(flags)
        else:
            within = f", step {progress.step} of {steps} of the next" if progress.step else ""
            print(f"resuming after epoch {progress.epoch} of {self.args.epochs}{within}", flush=True)
            self.run.set_rows(self.run.rows)
            if progress.epoch < self.args.epochs:
                self.run.forget_summary()  # from best.pt a finished run becomes an unfinished one
        return counts

    def _print_row(self, row, images_per_s):
        print(
            f"{self._title(row['epoch'] - 1)}  lr {row['lr']:.4g}  loss {row['train_loss']:.4f}  "
            f"train {row['train_top1']:.2f} %  test {row['test_top1']:.2f} % of {row['test_images']} images  "
            f"best {self.progress.best:.2f} %  {images_per_s:.0f} images/s",
            flush=True,
        )

    def _summarise(self, counts, keep):
        """Write the summary, unless it is there and to be kept: nothing was trained. Print its figures."""
        last = self.run.rows[-1]
        summary = {
            "top1_last": last["test_top1"],
            "top1_best": self.progress.best,
            "images": last["test_images"],
            "epochs": self.progress.epoch,
            "seconds": round(self.progress.seconds, 1),
            **counts,
            "data": self.description["data"],
            "versions": versions(self.precision.device),
        }
        if not (keep and self.run.has_summary()):
            self.run.save_summary(summary)
        images = summary["images"]
        print(f"last {summary['top1_last']:.2f} %, best {summary['top1_best']:.2f} % of {images} test images")
