"""How the learning rate falls."""

import math

from torch.optim.lr_scheduler import LambdaLR

from utils.command import UsageError

SCHEDULES = {
    "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
    "linear": lambda done: 1 - done,
    "step": lambda done: 0.1 ** sum(done >= at for at in (0.3, 0.6, 0.9)),
}
"""Name -> factor of the learning rate where a fraction `done` of the training lies behind."""


def schedule(optimizer, name, epochs, steps_per_epoch, warmup_epochs=0):
    """Scheduler to be stepped after each optimizer step.

    In epoch e of the warm-up, counted from 0, the rate is (e + 1) / warmup_epochs of the full one; the schedule called
    `name` spans the epochs after it. At the start of every epoch the rate is that of the papers' schedules, which step
    once an epoch. In between it goes on falling, so that a short training ends at a rate of nearly 0 too: after 500
    epochs there is no difference, after 2 there is a large one. Raises UsageError if nothing is left after the warm-up.
    """
    if warmup_epochs >= epochs:
        raise UsageError(f"--warmup-epochs {warmup_epochs} leaves nothing of {epochs} epochs")
    warmup_steps, steps = warmup_epochs * steps_per_epoch, (epochs - warmup_epochs) * steps_per_epoch

    def factor(step):
        if step < warmup_steps:
            return (step // steps_per_epoch + 1) / warmup_epochs
        return SCHEDULES[name](min((step - warmup_steps) / steps, 1))

    return LambdaLR(optimizer, factor)
