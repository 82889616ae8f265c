"""The training loop that all data sets share: `fit`, `train_one_epoch`, `evaluate`."""

import contextlib
import random
import time
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from modules.binarize import anneal_estimators
from utils.command import RunError, UsageError


@dataclass
class Precision:
    """What a step computes in: autocast to `dtype`, or float32 where it is None. fp16 needs a gradient scaler."""

    device: torch.device
    dtype: torch.dtype | None

    def __str__(self):
        return str(self.dtype or torch.float32).removeprefix("torch.")

    def autocast(self):
        if self.dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def scaler(self):
        return torch.amp.GradScaler(self.device.type, enabled=self.dtype is torch.float16)


def choose_device(name):
    """torch.device of --device; "auto" takes a GPU if there is one. Raises UsageError for one that is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise UsageError(f"--device {name} is not to be had here") from None
    if device.type == "cpu":
        torch.set_flush_denormal(True)  # denormal numbers slow full-precision networks down tenfold
    return device


def choose_precision(amp, device):
    """Precision of --amp; "auto" is bfloat16 on a GPU that computes in it, else float32."""
    if amp == "auto":
        amp = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "off"
    if amp == "fp16" and device.type == "cpu":
        raise UsageError("--amp fp16 needs a GPU; on a CPU use --amp bf16 or off")
    return Precision(device, {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}[amp])


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


def rng_state():
    """State of torch's generators, as a checkpoint keeps it."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"torch": torch.get_rng_state(), "cuda": cuda}


def set_rng_state(state):
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


class Meters:
    """Means over images, summed on the device in float64: reading them is the only host synchronisation."""

    def __init__(self):
        self.sums = {}
        self.count = 0

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
        return {name: value.item() / max(self.count, 1) for name, value in self.sums.items()}


def progress_bar(total, title, show):
    """A bar with images/s and the time left, on a terminal; nothing elsewhere, or if `show` is False."""
    return tqdm(total=total, desc=title, unit="img", unit_scale=True, disable=None if show else True, leave=False)


def train_one_epoch(step, batches, total, optimizer, scaler, precision, *, title="", print_freq=50, progress=True):
    """One pass over `batches` of (images, labels), `total` images; returns {metric: mean over the images}.

    Raises RunError if the loss is not finite: what was saved before stays as it is.
    """
    step.train()
    meters = Meters()
    with progress_bar(total, title, progress) as bar:
        for i, (images, labels) in enumerate(batches):
            with precision.autocast():
                loss, logits, metrics = step(images, labels)
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            meters.update(logits, labels, loss=loss, **metrics)
            bar.update(len(labels))
            if i % print_freq == print_freq - 1:
                means = finite(meters.means(), title)
                bar.set_postfix(loss=f"{means['loss']:.3f}", top1=f"{means['top1']:.1f}%")
    return finite(meters.means(), title)


def finite(means, title):
    """`means`, or RunError if the loss in it is not a finite number."""
    if not np.isfinite(means["loss"]):
        raise RunError(f"{title}: the loss is {means['loss']}; lower --lr. The last checkpoint is intact")
    return means


@torch.inference_mode()
def evaluate(model, batches, total, criterion, precision, *, title="evaluating", progress=True):
    """top1 and top5 (%), loss (per image) and the number of images, over every image of `batches`."""
    model.eval()
    meters = Meters()
    with progress_bar(total, title, progress) as bar:
        for images, labels in batches:
            with precision.autocast():
                logits = model(images)
            loss = criterion(logits, labels)
            meters.update(logits, labels, loss=loss)
            bar.update(len(labels))
    return {**meters.means(), "images": meters.count}


@dataclass
class Progress:
    """How far a run is: epochs done, best top-1 so far (%), seconds of training and evaluation behind it."""

    epoch: int = 0
    best: float = -1.0
    seconds: float = 0.0


def fit(
    step, train, test, optimizer, scheduler, scaler, precision, run, *,
    epochs, describe, state=None, t_min=1e-3, print_freq=50, progress=True, writer=None, on_epoch=None,
):  # fmt: skip
    """Train `step` for `epochs`, evaluate its model after each, and keep the run's folder up to date.

    train, test: have `images_per_epoch`; train has `epoch(e)`, test iterates. describe(): what every checkpoint holds
    besides state (the network's description and the flags). state: Progress of a resumed run. writer: SummaryWriter.
    on_epoch(epoch): called after each. Returns the Progress; `run.rows` holds the metrics of every epoch.
    """
    state = state or Progress()
    model = step.model

    def payload():
        return {
            **describe(),
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "scheduler": scheduler.state_dict(),
            "scaler": scaler.state_dict(),
            "rng": rng_state(),
            "epoch": state.epoch,
            "best": state.best,
            "seconds": state.seconds,
            "rows": run.rows,
        }

    if state.epoch == 0:
        run.save_last(payload())
    for epoch in range(state.epoch, epochs):
        start = time.perf_counter()
        ede = anneal_estimators(model, epoch, epochs, t_min)
        title = f"epoch {epoch + 1}/{epochs}"
        rate = scheduler.get_last_lr()[0]
        total = train.images_per_epoch
        trained = train_one_epoch(
            step, train.epoch(epoch), total, optimizer, scaler, precision,
            title=title, print_freq=print_freq, progress=progress,
        )  # fmt: skip
        scheduler.step()
        seconds = time.perf_counter() - start
        tested = evaluate(
            model, test, test.images_per_epoch, step.criterion, precision, title=f"{title} test", progress=progress
        )
        state.seconds += time.perf_counter() - start
        state.epoch = epoch + 1
        improved = tested["top1"] > state.best
        state.best = max(state.best, tested["top1"])

        row = {"epoch": epoch + 1, "lr": rate}
        row |= {f"train_{name}": value for name, value in trained.items()}
        row |= {f"test_{name}": value for name, value in tested.items()}
        if ede:
            row |= {"ede_k": ede[0], "ede_t": ede[1]}
        run.add_row(row)
        if writer:
            for name, value in row.items():
                if name != "epoch":
                    writer.add_scalar(name.replace("_", "/", 1), value, epoch + 1)
            writer.add_scalar("train/images_per_s", total / seconds, epoch + 1)
            writer.flush()
        print(
            f"{title}  lr {rate:.4g}  loss {trained['loss']:.4f}  train {trained['top1']:.2f} %  "
            f"test {tested['top1']:.2f} % of {tested['images']} images  best {state.best:.2f} %  "
            f"{total / seconds:.0f} images/s",
            flush=True,
        )
        if on_epoch:
            on_epoch(epoch)
        if improved:
            run.save_best(payload())
        run.save_last(payload())
    return state
