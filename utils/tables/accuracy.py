"""A paper's table of accuracies beside those of our runs: network, method, paper, ours, gap to full precision."""

import statistics

from models import family_of
from models.methods import CIFAR, IMAGENET
from utils.tables.markdown import markdown_table, mean_std
from utils.tables.paper import TABLES
from utils.tables.results import by_images, identity, mean_top1, of_data, seeds_of

HEADER = ("network", "method", "paper", "ours", "gap to full precision")
OURS = "Top-1 accuracy in %{}; ours: after the last epoch, mean ± standard deviation (number of seeds)."
GAP = "The gap is the difference from the row FP, on the same images for as many epochs."
OWN_DATA = "An accuracy on other images, or after fewer epochs, is not the paper's experiment."


def _is_papers(result, family):
    """Whether the paper's figures may stand beside a run's: it saw the paper's images, or a copy of them."""
    return result.is_imagenet if family == IMAGENET else result.is_cifar10


def filled_by(cells, results):
    """Those of the results that some cell asks for."""
    wanted = {identity(cell.flags) for cell in cells if cell.flags is not None}
    return [r for r in results if identity(r.args) in wanted]


class _Images:
    """The cells of one family of networks, filled from runs on one set of images, for as many epochs."""

    def __init__(self, cells, results, with_paper, brief=False):
        brief = brief or not any(cell.top1 for cell in cells)  # a figure: what was not run has nothing to show
        if results and brief:
            cells = [cell for cell in cells if seeds_of(results, cell.flags)]
        self.cells = cells
        self.with_paper = with_paper and any(cell.top1 for cell in cells)
        self.found = [seeds_of(results, cell.flags) if cell.flags is not None else {} for cell in cells]
        self.with_gap = any(cell.method == "FP" for cell in cells)
        self.twins = {c.backbone: (c.top1, found) for c, found in zip(cells, self.found) if c.method == "FP"}

    def _gap(self, cell, schedule, runs):
        """What separates a cell from its backbone's full-precision network; the paper's in brackets."""
        paper, twins = self.twins.get(cell.backbone, (None, {}))
        if cell.method == "FP":
            return "-"
        gaps = []
        if runs and twins:
            twin = twins.get(schedule) or list(twins.values())[-1]
            gaps.append(f"{mean_top1(runs) - mean_top1(twin.values()):+.2f}")
        if self.with_paper and None not in (cell.top1, paper):
            gaps.append(f"(paper {cell.top1 - paper:+.1f})")
        return " ".join(gaps) or "-"

    def rows(self):
        for cell, found in zip(self.cells, self.found):
            method = cell.method + (f", {cell.bits}" if cell.bits not in ("1/1", "32/32") else "")
            paper = "-" if cell.top1 is None else f"{cell.top1:.1f}" + (f" / {cell.top5}" if cell.top5 else "")
            for schedule, seeds in found.items() or [(None, {})]:
                runs = list(seeds.values())
                ours = mean_std([r.top1 for r in runs]) if runs else "cited" if cell.flags is None else "not run"
                label = method + differing(schedule, found)
                yield [cell.backbone, label, paper, ours, self._gap(cell, schedule, runs)]

    def markdown(self):
        shown = (True, True, self.with_paper, True, self.with_gap)
        lines = [HEADER, *self.rows()]
        lines = [[text for text, is_shown in zip(line, shown) if is_shown] for line in lines]
        return markdown_table(lines[0], lines[1:])

    def commands(self):
        """What was run, a line per cell and schedule, as shell commands below their comments."""
        for cell, found in zip(self.cells, self.found):
            for seeds in found.values():
                runs = list(seeds.values())
                best = statistics.mean(r.summary["top1_best"] for r in runs)
                seconds = statistics.mean(r.summary["seconds"] for r in runs)
                device = str(runs[0].summary["versions"].get("device"))
                mean = f", means of {len(runs)} seeds, of which this is the first" if len(runs) > 1 else ""
                yield f"# {cell.backbone}, {cell.method}: best epoch {best:.2f} %, {seconds:.0f} s on {device!a}{mean}"
                yield runs[0].args.get("command", "")


def differing(schedule, schedules):
    """What sets a schedule apart from the others of one cell: ", lr 0.1"."""
    if len(schedules) < 2:
        return ""
    shared = set.intersection(*(set(other[3:]) for other in schedules))
    return "".join(f", {name} {value}" for name, value in schedule[3:] if (name, value) not in shared)


def scored_on(results):
    """The test images that runs have in common, in words."""
    papers = "" if all(_is_papers(r, family_of(r.args["dataset"])) for r in results) else ", not the paper's data"
    return f"{results[0].data_name}{papers}: {results[0].summary['images']:,} test images"


def heading(results):
    """What the runs of one table have in common."""
    return f"{scored_on(results)}, {results[0].summary['epochs']} epochs." if results else "No runs yet."


def _note(tables):
    """What the columns of the `_Images` mean, those that they have."""
    beside_paper = [cell for table in tables if table.with_paper for cell in table.cells]
    sentences = [OURS.format(" (paper: / top-5 where it is given)" if any(x.top5 for x in beside_paper) else "")]
    if any(row[-1] != "-" for table in tables if table.with_gap for row in table.rows()):
        sentences.append(GAP)
    if any(cell.family == CIFAR for cell in beside_paper):
        sentences.append(OWN_DATA)
    return " ".join(sentences)


def accuracy_table(table, results, data=None, commands=False, brief=False):
    """Markdown of a table of the paper: one per set of images and number of epochs, and of CIFAR and ImageNet cells.

    data: only runs on the data of that name. Without it only those on CIFAR-10's images, in torchvision's form or in a
    folder, and on ImageNet's; beside other images the paper's figures are left out, since they mean nothing there.
    commands: what was run, below. brief: only cells with runs, without the table's title and note.
    """
    title, cells = TABLES[table]
    lines, left_out, tables = [], set(), []
    for family in (CIFAR, IMAGENET):
        own = [cell for cell in cells if cell.family == family]
        if not own:
            continue
        runs = filled_by(own, [r for r in results if family_of(r.args["dataset"]) == family])
        if data is None:
            left_out |= {r.data_name for r in runs if not _is_papers(r, family)}
            runs = [r for r in runs if _is_papers(r, family)]
        else:
            runs = of_data(runs, data)
        for group in by_images(runs) or [[]]:
            with_paper = all(_is_papers(r, family) for r in group)
            images = _Images(own, group, with_paper, brief)
            tables.append(images)
            lines += ["", heading(group), "", *images.markdown()]
            if commands and group:
                lines += ["", "```", *images.commands(), "```"]
    if brief:
        return "\n".join(lines[1:])
    lines = [f"### {title}", *lines, "", _note(tables)]
    if left_out:
        names = ", ".join(f"`--data {name}`" for name in sorted(left_out))
        lines += ["", f"Runs on other data are left out: {names} shows them."]
    return "\n".join(lines)
