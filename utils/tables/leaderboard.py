"""Every method of METHODS under one recipe, plain and with CIRec, beside the full-precision network."""

import math
import statistics

import torch

from models import METHODS, build_model
from utils.checkpoint.packed import packed_content
from utils.command import RunError, height_width
from utils.tables.accuracy import heading
from utils.tables.markdown import markdown_table, mean_std
from utils.tables.paper import FP, LEADERBOARD, NORMAL
from utils.tables.results import by_images, mean_top1, seeds_of

HEADER = ["method", "paper", "last %", "gap to FP", "BOPs 1e6", "FLOPs 1e6", "packed kB", "CIRec gains (95 %)"]
NOTE = (
    "Accuracy in % after the last epoch, mean ± standard deviation (number of seeds); gap: from the standard "
    "full-precision network under the same recipe. CIRec's gain is the mean difference between the two runs of a seed, "
    "with the 95 % confidence interval of Student's t distribution. The paper's figure is each method's own, under its "
    "own recipe."
)


def paired_gain(plain, other):
    """(mean, half width of the 95 % confidence interval) of other - plain over the seeds that both have.

    plain, other: {seed: Result}. The half width is None for a single seed; None in place of both for no seed.
    """
    gains = [other[seed].top1 - plain[seed].top1 for seed in sorted(plain.keys() & other.keys())]
    if len(gains) < 2:
        return (gains[0], None) if gains else None
    from scipy.stats import t

    return statistics.mean(gains), t.ppf(0.975, len(gains) - 1) * statistics.stdev(gains) / math.sqrt(len(gains))


def packed_bytes(result):
    """The size of a run's network packed to 1 bit; None for a network that cannot be packed."""
    names = ("arch", "dataset", "method", "weight_bits", "activation_bits", "structure", "activation", "recovery")
    network = {name: result.args[name] for name in (*names, "ratio", "groups", "variant")}
    data = result.summary["data"]
    try:
        network |= {"num_classes": len(data["classes"]), "image_size": height_width(data["image_size"])[0]}
        with torch.random.fork_rng([]):  # whatever its weights are, the size is the same
            return len(packed_content(build_model(**network), network, data))
    except (RunError, ValueError, TypeError, LookupError):
        return None


def _only(schedules, name):
    """{seed: Result} of the one schedule; {} of none. Raises RunError for several: they are no one recipe."""
    if len(schedules) > 1:
        raise RunError(f"the runs of {name} have {len(schedules)} different recipes: give --runs of one")
    return next(iter(schedules.values()), {})


def _row(name, paper, seeds, twin, gain):
    runs = list(seeds.values())
    last = mean_std([r.top1 for r in runs])
    gap = "-"
    if twin and twin is not seeds:
        gap = f"{mean_top1(runs) - mean_top1(twin.values()):+.2f}"
    costs = [runs[0].summary.get(key) for key in ("bops", "flops")]
    packed = packed_bytes(runs[0])
    return [
        name,
        "-" if paper is None else f"{paper:.1f}",
        last,
        gap,
        *("-" if cost is None else f"{cost / 1e6:.2f}" for cost in costs),
        "-" if packed is None else f"{packed / 1e3:.1f}",
        gain,
    ]


def _gain_text(gain):
    if gain is None:
        return "-"
    mean, half = gain
    return f"{mean:+.2f}" + ("" if half is None else f" [{mean - half:+.2f}, {mean + half:+.2f}]")


def _rows(group):
    """Rows of one set of images: the full-precision network, then each method that was run, plain and with CIRec."""
    base = {"arch": "resnet20"}
    twin = _only(seeds_of(group, {**base, **FP, **NORMAL}), "FP")
    if twin:
        yield _row("FP (ReLU, 32/32)", 90.8, twin, twin, "-")
    for method in METHODS:
        flags = {**base, "method": method}
        plain = _only(seeds_of(group, flags), method)
        other = _only(seeds_of(group, {**flags, "recovery": "cirec"}), f"{method} + CIRec")
        figures = LEADERBOARD.get(method, (None, None))
        if plain:
            yield _row(method, figures[0], plain, twin, "-")
        if other:
            yield _row(f"{method} + CIRec", figures[1], other, twin, _gain_text(paired_gain(plain, other)))


def leaderboard(results):
    """Markdown of all methods: a table per set of images and number of epochs. Beside other images than CIFAR-10's the
    papers' figures are left out."""
    lines = ["### Methods on ResNet-20, one recipe"]
    for group in by_images(results) or [[]]:
        table = [HEADER, *_rows(group)]
        if not all(r.is_cifar10 for r in group):
            table = [[*row[:1], *row[2:]] for row in table]
        lines += ["", heading(group), "", *markdown_table(table[0], table[1:])]
    return "\n".join([*lines, "", NOTE])
