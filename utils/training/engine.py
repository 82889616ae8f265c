"""The training loop that all data sets share: `fit`, `train_one_epoch`, `evaluate`."""

import contextlib
import random
import sys
import time
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from modules.progress import set_progress, set_t_min, start_epoch
from utils.command import RunError, UsageError
from utils.training import distributed
from utils.training.losses import cross_entropy

AMP = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Value of --amp, besides "auto" -> the dtype of autocast."""


@dataclass
class Precision:
    """What a step computes in: autocast to `dtype`, or float32 where it is None. fp16 needs a gradient scaler."""

    device: torch.device
    dtype: torch.dtype | None

    def __str__(self):
        return str(self.dtype or torch.float32).removeprefix("torch.")

    @property
    def amp(self):
        """The value of --amp that asks for it."""
        return next(name for name, dtype in AMP.items() if dtype is self.dtype)

    def autocast(self):
        if self.dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def scaler(self):
        return torch.amp.GradScaler(self.device.type, enabled=self.dtype is torch.float16)


def choose_device(name):
    """torch.device of --device; "auto" takes a GPU if there is one, and each rank takes its own.

    Raises UsageError for one that is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.split(":")[0] not in ("cpu", "cuda"):
        raise UsageError(f"--device {name} is not one of auto, cpu, cuda, cuda:N")
    if distributed.world_size() > 1 and name.startswith("cuda"):
        if name != "cuda":
            raise UsageError(
                f"--device {name} is one GPU, and this job has {distributed.world_size()} ranks: give cuda"
            )
        name = f"cuda:{distributed.local_rank()}"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise UsageError(f"--device {name} is not to be had here") from None
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # NCCL works on the current device
    if device.type == "cpu":
        torch.set_flush_denormal(True)  # denormal numbers slow full-precision networks down tenfold
    return device


def choose_precision(amp, device):
    """Precision of --amp; "auto" is bfloat16 where the device computes in it, else float32."""
    if amp == "auto":
        native = torch.cuda.is_bf16_supported if device.type == "cuda" else torch.cpu._is_avx512_bf16_supported
        amp = "bf16" if native() else "off"
    if amp == "fp16" and device.type == "cpu":
        raise UsageError("--amp fp16 needs a GPU; on a CPU use --amp bf16 or off")
    return Precision(device, AMP[amp])


def seed_everything(seed, deterministic):
    """Seed all generators; deterministic: refuse operations whose result may differ from run to run."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    if deterministic:
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    elif torch.cuda.is_available():
        torch.backends.cudnn.benchmark = True


def choose_compile(choice, device, steps):
    """Whether to torch.compile the step, and why: (bool, reason). steps: how many the run will take."""
    if choice != "auto":
        return choice == "on", f"--compile {choice}"
    if device.type != "cuda":
        return False, "auto: on a CPU convolutions take nearly all the time, and compiling leaves them as they are"
    if steps < 5000:
        return False, f"auto: {steps} steps are too few to win the compilation's time back"
    return True, "auto: a GPU and a long run"


def compile_step(step, device, accumulate=1):
    """torch.compile `step` in place; on one GPU as CUDA graphs, which spare a small network most of its launches.

    Gradients that are summed over several batches, or exchanged between ranks, must not live in a graph's own memory.
    All batches have one size: shapes are never symbolic, with which the CPU's generated code has given wrong losses.
    """
    graphs = device.type == "cuda" and accumulate == 1 and distributed.world_size() == 1
    step.compile(mode="reduce-overhead" if graphs else "default", dynamic=False)


def rng_state():
    """State of torch's generators, as a checkpoint keeps it."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"torch": torch.get_rng_state(), "cuda": cuda}


def set_rng_state(state):
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


class Meters:
    """Means over images, summed on the device in float64: reading them is the only host synchronisation.

    A sum of losses in float32 is exact in float64, whatever the order, as long as the losses do not differ by more than
    a factor of millions: so a resumed epoch, and any number of ranks, give the same means.
    """

    def __init__(self, count=0, sums=()):
        self.count = count
        self.sums = dict(sums)

    @torch.no_grad()
    def update(self, logits, labels, **means):
        """Count a batch: how many labels (N,) are the highest, and among the five highest, of logits (N, classes).

        means: scalars on the device, each a mean over the batch.
        """
        count = len(labels)
        ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
        sums = {name: value.detach().double() * count for name, value in means.items()}
        sums["top1"] = 100 * ranked[:, 0].sum().double()
        sums["top5"] = 100 * ranked.sum().double()
        self.count += count
        for name, value in sums.items():
            self.sums[name] = self.sums.get(name, 0) + value

    def means(self):
        """{name: mean over all images so far}; top1 and top5 in percent."""
        return {name: float(value) / max(self.count, 1) for name, value in self.sums.items()}

    def state(self):
        """(count, sums) in plain numbers, which `Meters(count, sums)` goes on from."""
        return self.count, {name: float(value) for name, value in self.sums.items()}

    def over_ranks(self):
        """The Meters of all ranks' images, in plain numbers; ranks wait for each other."""
        total = Meters()
        for count, sums in distributed.gather(self.state()):
            total.count += count
            for name, value in sums.items():
                total.sums[name] = total.sums.get(name, 0) + value
        return total


def progress_bar(total, title, show):
    """A bar with images/s and the time left, on a terminal; nothing elsewhere, or if `show` is False."""
    return tqdm(total=total, desc=title, unit="img", unit_scale=True, disable=None if show else True, leave=False)


def train_one_epoch(
    step, batches, total, optimizer, scaler, precision, *,
    teacher=None, accumulate=1, meters=None, on_step=None, title="", print_freq=50, progress=True,
):  # fmt: skip
    """Train `step` on `batches` of (images, labels), `total` images over all ranks; the Meters of all of them.

    teacher: function of images, whose logits, taken once for a batch, replace the labels as the step's targets.
    accumulate: batches whose gradients are averaged into one optimizer step; ranks exchange gradients at the last one.
    meters: those of the epoch's images before `batches`. on_step(meters): called after every optimizer step.
    Raises RunError if the loss is not finite: what was saved before stays as it is.
    """
    step.train()
    meters = meters or Meters()
    optimizer.zero_grad(set_to_none=True)
    with progress_bar(total, title, progress) as bar:
        bar.update(meters.count)
        for i, (images, labels) in enumerate(batches, start=1):
            complete = i % accumulate == 0
            with distributed.no_sync(step, skip=not complete):
                with precision.autocast():
                    targets = labels if teacher is None else teacher(images)
                    loss, logits, metrics = step(images, targets)
                scaler.scale(loss / accumulate).backward()
            meters.update(logits, labels, loss=loss, **metrics)
            bar.update(len(labels) * distributed.world_size())
            if complete:
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad(set_to_none=True)
                if on_step:
                    on_step(meters)
            if i % print_freq == 0:
                means = finite(meters.means(), title)
                bar.set_postfix(loss=f"{means['loss']:.3f}", top1=f"{means['top1']:.1f}%")
    meters = meters.over_ranks()
    finite(meters.means(), title)
    return meters


def finite(means, title):
    """`means`, or RunError if the loss in it is not a finite number."""
    if not np.isfinite(means["loss"]):
        raise RunError(f"{title}: the loss is {means['loss']}; lower --lr. The last checkpoint is intact")
    return means


@torch.inference_mode()
def evaluate(model, batches, total, criterion, precision, *, on_batch=None, title="evaluating", progress=True):
    """top1 and top5 (%), loss (per image) and the number of images, over every image of `batches` on all ranks.

    on_batch(): called after every batch. Ranks may have different numbers of images, none in a batch even, but must
    have the same number of batches.
    """
    model.eval()
    meters = Meters()
    with progress_bar(total, title, progress) as bar:
        for images, labels in batches:
            if len(labels):
                with precision.autocast():
                    logits = model(images)
                meters.update(logits, labels, loss=criterion(logits, labels))
                bar.update(len(labels) * distributed.world_size())
            if on_batch:
                on_batch()
    meters = meters.over_ranks()
    return {**meters.means(), "images": meters.count}


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


class Saver:
    """Writes a run's last.pt and best.pt, on rank 0 alone: all that the training needs to go on.

    describe(): what every checkpoint holds besides. minutes: how often to save within an epoch, or None.
    training: the objects whose state_dict is kept, {"model": ..., "optimizer": ..., ...}.
    """

    def __init__(self, run, state, describe, minutes=None, **training):
        self.run = run
        self.state = state
        self.describe = describe
        self.every = minutes * 60 if minutes else float("inf")
        self.training = training
        self.counted = self.saved = time.monotonic()

    def payload(self):
        now = time.monotonic()
        self.state.seconds += now - self.counted
        self.counted = now
        states = {name: held.state_dict() for name, held in self.training.items()}
        return {**self.describe(), **states, "rng": rng_state(), **vars(self.state), "rows": self.run.rows}

    def save_last(self):
        if distributed.is_main():
            self.run.save_last(self.payload())
        self.saved = time.monotonic()

    def save_best(self):
        if distributed.is_main():
            self.run.save_best(self.payload())

    def due(self):
        """Whether it is time to save within the epoch."""
        return time.monotonic() - self.saved >= self.every

    def stop(self):
        """Save last.pt and end this rank, as SIGTERM asks."""
        self.save_last()
        if distributed.is_main():
            print(
                f"stopped by SIGTERM; {self.run.last} is saved, --resume goes on from it", file=sys.stderr, flush=True
            )
        raise SystemExit(distributed.StopSignal.STATUS)


def fit(
    step, train, test, optimizer, scheduler, scaler, precision, run, *,
    epochs, describe, state=None, teacher=None, accumulate=1, t_min=1e-3, checkpoint_minutes=None,
    print_freq=50, progress=True, writer=None, on_epoch=None,
):  # fmt: skip
    """Train `step` for `epochs`, evaluate its model after each, in float32, and keep the run's folder up to date.

    train, test: have `images_per_epoch`; train has `epoch(e, start)`, the batches of epoch e from optimizer step
    `start` on, test iterates. describe(): what every checkpoint holds besides state (the network's description and the
    flags). scheduler: stepped after every optimizer step. state: Progress of a resumed run. teacher, accumulate: as in
    train_one_epoch. checkpoint_minutes: save within an epoch too, that often. writer: SummaryWriter.
    on_epoch(epoch): called after each, on every rank.

    Under torchrun all ranks call it alike, and rank 0 alone writes. After a SIGTERM to any rank last.pt is saved at the
    next step, and SystemExit is raised. Returns the Progress; `run.rows` holds the metrics of every epoch.
    """
    state = state or Progress()
    model = step.model
    set_t_min(model, t_min)
    parallel = distributed.wrap(step, precision.device)
    progress = progress and distributed.is_main()
    saver = Saver(
        run, state, describe, checkpoint_minutes, model=model, optimizer=optimizer, scheduler=scheduler, scaler=scaler
    )

    def after_step(meters):
        scheduler.step()
        state.step += 1
        stopping, due = distributed.any_rank(stop.received, saver.due())
        if stopping or due:
            state.meters = meters.over_ranks().state()
            finite(Meters(*state.meters).means(), title)
            saver.stop() if stopping else saver.save_last()

    def after_test_batch():
        if distributed.any_rank(stop.received)[0]:
            saver.stop()

    with distributed.StopSignal() as stop:
        if (state.epoch, state.step) == (0, 0):
            saver.save_last()
        for epoch in range(state.epoch, epochs):
            start, seen = time.perf_counter(), state.meters[0]
            followed = set_progress(model, epoch / epochs)
            title = f"epoch {epoch + 1}/{epochs}"
            if state.step == 0:
                start_epoch(model)
                state.lr = scheduler.get_last_lr()[0]
            # A checkpoint holds the sums of all ranks: one rank takes them up.
            meters = Meters(*state.meters) if distributed.is_main() else Meters()
            meters = train_one_epoch(
                parallel, train.epoch(epoch, state.step), train.images_per_epoch, optimizer, scaler, precision,
                teacher=teacher, accumulate=accumulate, meters=meters, on_step=after_step,
                title=title, print_freq=print_freq, progress=progress,
            )  # fmt: skip
            state.meters = meters.state()
            trained = meters.means()
            speed = (train.images_per_epoch - seen) / (time.perf_counter() - start)
            distributed.share_buffers(model)
            tested = evaluate(
                model, test, test.images_per_epoch, cross_entropy, Precision(precision.device, None),
                on_batch=after_test_batch, title=f"{title} test", progress=progress,
            )  # fmt: skip
            finite(tested, f"{title} test")
            improved = tested["top1"] > state.best
            state.epoch, state.step, state.meters = epoch + 1, 0, (0, {})
            state.best = max(state.best, tested["top1"])

            row = {"epoch": epoch + 1, "lr": state.lr}
            row |= {f"train_{name}": value for name, value in trained.items()}
            row |= {f"test_{name}": value for name, value in tested.items()}
            row |= followed
            if distributed.is_main():
                run.add_row(row)
                report(row, title, state.best, speed, writer)
            if on_epoch:
                on_epoch(epoch)
            if improved:
                saver.save_best()
            saver.save_last()
            if distributed.any_rank(stop.received)[0]:
                saver.stop()
    return state


def report(row, title, best, speed, writer):
    """An epoch's row on standard output, and in TensorBoard; speed: training images/s."""
    print(
        f"{title}  lr {row['lr']:.4g}  loss {row['train_loss']:.4f}  train {row['train_top1']:.2f} %  "
        f"test {row['test_top1']:.2f} % of {row['test_images']} images  best {best:.2f} %  {speed:.0f} images/s",
        flush=True,
    )
    if writer:
        for name, value in row.items():
            if name != "epoch":
                writer.add_scalar(name.replace("_", "/", 1), value, row["epoch"])
        writer.add_scalar("train/images_per_s", speed, row["epoch"])
        writer.flush()
