"""What is measured while a network trains, and over every test image."""

import math

import torch
from tqdm import tqdm

from utils.command import RunError
from utils.training import distributed


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

    def finite_means(self, title):
        """`means`, or RunError if the loss among them is not a finite number."""
        return finite(self.means(), title)

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


def finite(means, title):
    """`means`, or RunError if the loss among them is not a finite number."""
    if not math.isfinite(means["loss"]):
        raise RunError(f"{title}: the loss is {means['loss']}; start again in another --output-dir with a lower --lr")
    return means


def progress_bar(total, title, show):
    """A bar with images/s and the time left, on a terminal; nothing elsewhere, or if `show` is False."""
    return tqdm(total=total, desc=title, unit="img", unit_scale=True, disable=None if show else True, leave=False)


@torch.inference_mode()
def evaluate(model, batches, total, criterion, precision, *, on_batch=None, title="evaluating", progress=True):
    """top1 and top5 (%), loss (per image) and the number of images, over every image of `batches` on all ranks.

    on_batch(): called after every batch. Ranks may have different numbers of images, none in a batch even, but must
    have the same number of batches. Raises RunError, on all ranks, if none had an image.
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
    if not meters.count:
        raise RunError(f"{title}: none of the {total} images can be read")
    return {**meters.means(), "images": meters.count}
