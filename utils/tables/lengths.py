"""Accuracy, and gap to full precision, over the length of training."""

from utils.command import RunError
from utils.tables.accuracy import filled_by, scored_on
from utils.tables.markdown import markdown_table
from utils.tables.paper import TABLES
from utils.tables.results import by_images, mean_top1, seeds_of


def _accuracies(results, cell):
    """{epochs: accuracy after the last one, the mean of the seeds} of the runs that a cell asks for.

    Raises RunError for several recipes of one length."""
    found = {}
    for seeds in seeds_of(results, cell.flags).values():
        runs = list(seeds.values())
        epochs = runs[0].summary["epochs"]
        if epochs in found:
            raise RunError(f"the runs of {cell.method} for {epochs} epochs have different recipes: give --runs of one")
        found[epochs] = mean_top1(runs)
    return found


def _pair(accuracy, twin):
    """An accuracy, and its gap to the twin's, as text; either may be None."""
    if accuracy is None:
        return ["-", "-"]
    return [f"{accuracy:.2f}", "-" if twin is None else f"{accuracy - twin:+.2f}"]


def _rows(results, lengths):
    full, *cells = TABLES["1"][1]
    twins = _accuracies(results, full)
    for cell in (full, *cells):
        found, of = _accuracies(results, cell), {} if cell is full else twins
        paper = f"{cell.top1 - full.top1:+.1f}" if cell is not full and cell.top1 and results[0].is_cifar10 else "-"
        if found:
            yield [cell.method, *(text for n in lengths for text in _pair(found.get(n), of.get(n))), paper]


def lengths_table(results):
    """Markdown of Table I's networks, a line each: accuracy and gap after every number of epochs that was run."""
    lines = []
    for group in by_images(filled_by(TABLES["1"][1], results), same_epochs=False):
        lengths = sorted({run.summary["epochs"] for run in group})
        columns = [text for n in lengths for text in (f"{n} epochs, %", "gap")]
        header = ["ResNet-20", *columns, "paper's gap, 500 epochs"]
        lines += [f"{scored_on(group)}.", "", *markdown_table(header, _rows(group, lengths)), ""]
    return "\n".join(lines[:-1]) or "No runs yet."
