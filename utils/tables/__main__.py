"""Print a table of the paper as Markdown, the paper's figures beside those of our finished runs."""

import csv
import shlex
import statistics
from pathlib import Path

from utils.command import Parser, UsageError, command
from utils.tables import table6
from utils.tables.paper import TABLES
from utils.tables.results import collect, grouped, identity, mean_std

HELP = "the paper's table; runs: every run found; masked: what IRes masked in each"


def markdown_table(header, rows):
    """Lines of a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(str(cell) for cell in line) + " |" for line in lines]


def _percent(value):
    return "-" if value is None else f"{value:.1f}"


def _data(results):
    seconds = statistics.mean(r.summary["seconds"] for r in results)
    device = results[0].summary["versions"]["device"]
    return [
        f"{results[0].data_name}, {results[0].summary['images']} images",
        results[0].summary["epochs"],
        f"{device}, {seconds:.0f} s",
    ]


def _command(result):
    """The command of a run without what differs between seeds and machines."""
    words, skip = [], False
    own = ("--output-dir", "--data-dir", "--seed")
    for word in shlex.split(result.args.get("command", "")):
        if not skip and not word.startswith(own):
            words.append(word)
        skip = word in own
    return f"`{shlex.join(words)}`"


def accuracy_table(table, results):
    """Markdown of an accuracy table: a line per cell, and per schedule where a cell was run with several."""
    title, cells = TABLES[table]
    groups = grouped(results)

    def runs_of(cell):
        if cell.flags is None:
            return {}
        key = identity(cell.flags)
        return {schedule: found for (other, schedule), found in groups.items() if other == key}

    def last(found):
        return statistics.mean(r.summary["top1_last"] for r in found)

    twins = {}  # the full-precision network of a backbone: its figure in the paper, and ours on each schedule
    for cell in cells:
        if cell.bits == "32/32":
            twins[cell.backbone] = (cell.top1, {schedule[:3]: last(found) for schedule, found in runs_of(cell).items()})
    rows = []
    for cell in cells:
        paper = _percent(cell.top1) + (f" / {cell.top5}" if cell.top5 else "")
        fixed = [cell.backbone, cell.method, cell.bits, paper]
        twin_paper, twin_ours = twins.get(cell.backbone, (None, {}))
        paper_gap = "-" if None in (cell.top1, twin_paper) else f"{cell.top1 - twin_paper:+.1f}"
        found = runs_of(cell)
        if not found:
            rows.append([*fixed, "cited" if cell.flags is None else "not run", "-", paper_gap, *["-"] * 5])
        for schedule, runs in sorted(found.items(), key=lambda item: item[0]):
            twin = twin_ours.get(schedule[:3])  # of the same data and epochs
            gap = "-" if twin is None else f"{last(runs) - twin:+.2f}"
            figures = [mean_std([r.summary[key] for r in runs]) for key in ("top1_last", "top1_best")]
            rows.append([*fixed, *figures, paper_gap, gap, *_data(runs), _command(runs[0])])
    header = ["backbone", "method", "W/A", "paper", "ours, last", "ours, best", "paper - FP", "ours - FP"]
    header += ["data", "epochs", "hardware, time", "command"]
    note = (
        "Top-1 accuracy in % (paper: / top-5 where it is given), after the last epoch and in the best one (chosen on "
        "the test images), mean ± standard deviation (number of seeds). - FP: difference from the full-precision "
        "network on the same data and epochs. "
        "Accuracies on another data set or schedule than the paper's are not the paper's experiment."
    )
    return "\n".join([f"### {title}\n", *markdown_table(header, rows), "", note])


def runs_table(results):
    """Markdown of the runs as they are, a line each."""
    rows = []
    for r in results:
        parts = ["IRes" if r.args["ires"] else "", {"irec": "IRec", "cirec": "CIRec"}.get(r.args["recovery"] or "", "")]
        method = " + ".join([r.args["method"], *filter(None, parts)])
        bops, flops = (r.summary.get(key) for key in ("bops", "flops"))
        rows.append(
            [
                r.name,
                r.data_name,
                r.summary["epochs"],
                f"{r.args['arch']}, {method}",
                f"{r.args['weight_bits']}/{r.args['activation_bits']}",
                f"{r.summary['top1_last']:.2f}",
                f"{r.summary['top1_best']:.2f}",
                r.summary["images"],
                "-" if bops is None else f"{bops / 1e6:.2f}",
                "-" if flops is None else f"{flops / 1e6:.2f}",
                f"{r.summary['seconds']:.0f}",
            ]
        )
    header = ["run", "data", "epochs", "network", "W/A", "last %", "best %", "images"]
    header += ["BOPs 1e6", "FLOPs 1e6", "seconds"]
    return "\n".join(markdown_table(header, rows))


def masked_table(results):
    """Markdown of what IRes masked: a line per run with it, and the fraction of pixels along the training."""
    parts = {"epoch 1": 0, "1/4": 0.25, "1/2": 0.5, "3/4": 0.75, "last": 1}
    rows = []
    for r in results:
        if r.args["ires"]:
            fractions = r.column("train_masked_fraction")
            at = [f"{fractions[round(part * (len(fractions) - 1))]:.2%}" for part in parts.values()]
            settings = [r.data_name, *(r.args[name] for name in ("ires_variant", "lam")), r.args["recovery"] or "none"]
            rows.append([r.name, *settings, *at, f"{max(fractions):.2%}", f"{r.summary['top1_last']:.2f}"])
    header = ["run", "data", "variant", "λ", "recovery", *parts, "most in an epoch", "last %"]
    return "\n".join(markdown_table(header, rows))


def build_parser():
    parser = Parser(prog="utils.tables", description=__doc__)
    parser.add_argument("table", choices=[*TABLES, "6", "runs", "masked"], help=HELP)
    parser.add_argument("--runs", nargs="+", metavar="DIR", default=["results"], help="folders with finished runs")
    parser.add_argument("--plot", metavar="PNG", help="fig7: also draw it, and write its points beside")
    return parser


def plot_lambda(results, path):
    """Draw figure 7, accuracy over lambda, from the runs of its cells; its points go into a CSV file beside it."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    groups = {}
    cells = {identity(cell.flags): cell for cell in TABLES["fig7"][1]}
    for (key, schedule), runs in grouped(results).items():
        if key in cells:
            name = cells[key].method.split(",")[0]
            accuracy = statistics.mean(r.summary["top1_last"] for r in runs)
            groups.setdefault((name, runs[0].data_name, schedule[2]), []).append(
                (cells[key].flags["lam"], accuracy, len(runs))
            )
    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for (name, data, epochs), points in sorted(groups.items()):
        lams, accuracies, _ = zip(*sorted(points))
        axes.plot(lams, accuracies, marker="o", label=f"{name}: {data}, {epochs} epochs")
    axes.set(xlabel="λ", ylabel="top-1 accuracy after the last epoch (%)")
    axes.grid(alpha=0.3)
    if groups:
        axes.legend()
    try:
        figure.savefig(path, dpi=120)
        with open(Path(path).with_suffix(".csv"), "w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["method", "data", "epochs", "lambda", "top1_last", "seeds"])
            for curve, points in sorted(groups.items()):
                writer.writerows([*curve, lam, f"{accuracy:.2f}", seeds] for lam, accuracy, seeds in sorted(points))
    except ValueError as error:
        raise UsageError(f"cannot write {path}: {error}") from None


@command
def main(argv=None):
    args = build_parser().parse_args(argv)
    if args.plot and args.table != "fig7":
        raise UsageError("--plot goes with fig7")
    if args.table == "6":
        print(table6.markdown())
        return
    results = collect(args.runs)
    if args.table == "runs":
        print(runs_table(results))
        return
    if args.table == "masked":
        print(masked_table(results))
        return
    print(accuracy_table(args.table, results))
    if args.plot:
        plot_lambda(results, args.plot)
        print(f"\nplot: {args.plot}")


if __name__ == "__main__":
    main()
