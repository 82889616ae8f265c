"""How the learning rate falls."""

import math

from torch.optim.lr_scheduler import LambdaLR

SCHEDULES = {
    "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
    "linear": lambda done: 1 - done,
    "step": lambda done: 0.1 ** sum(done >= at for at in (0.3, 0.6, 0.9)),
}
"""Name -> factor of the learning rate where a fraction `done` of the training lies behind."""


def schedule(optimizer, name, steps):
    """Scheduler to be stepped after each of `steps` optimizer steps.

    At the start of every epoch the rate is that of the papers' schedules, which step once an epoch. In between it goes
    on falling, so that a short training ends at a rate of nearly 0 too: after 500 epochs there is no difference, after
    2 there is a large one.
    """
    return LambdaLR(optimizer, lambda step: SCHEDULES[name](min(step / steps, 1)))
