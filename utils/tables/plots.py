"""Plots of finished runs, each with its points in a CSV file beside it."""

import csv

from utils.command import RunError, UsageError
from utils.files import output_path, replacing
from utils.tables.accuracy import differing
from utils.tables.markdown import markdown_table
from utils.tables.paper import TABLES
from utils.tables.results import by_images, mean_top1, seeds_of
from utils.tables.runs import network_name

LAMBDA_COLUMNS = ("method", "data", "epochs", "lambda", "top1_last", "seeds")
CURVE_COLUMNS = ("run", "epoch", "test_top1")
LINES = ("-", "--", ":", "-.")
"""Line styles, from the longest runs on."""


def output_paths(path):
    """Paths of a plot and of the CSV file beside it. Raises UsageError for another format, and for what may not be
    replaced: a CSV file that is no plot's."""
    picture = output_path(path, force=True)
    if picture.suffix not in (".png", ".pdf", ".svg"):
        raise UsageError(f"--plot {path}: name a .png, .pdf or .svg file")
    table = output_path(picture.with_suffix(".csv"), force=True)
    headers = {",".join(columns) for columns in (LAMBDA_COLUMNS, CURVE_COLUMNS)}
    if table.exists() and table.read_text(errors="replace").partition("\n")[0] not in headers:
        raise UsageError(f"--plot {path}: its points would take the place of {table}, which are none")
    return picture, table


def lambda_points(results):
    """Figure 7's points, rows of LAMBDA_COLUMNS: accuracy over lambda, a curve per method, data and epochs."""
    points = []
    for group in by_images(results):
        for cell in TABLES["fig7"][1]:
            found = seeds_of(group, cell.flags)
            for schedule, seeds in found.items():
                runs = list(seeds.values())
                name = cell.method.rsplit(", lambda", 1)[0] + differing(schedule, found)
                accuracy = mean_top1(runs)
                curve = (name, runs[0].data_name, runs[0].summary["epochs"])
                points.append((*curve, cell.flags["lam"], f"{accuracy:.2f}", len(runs)))
    return sorted(points)


def curve_points(results):
    """Rows of CURVE_COLUMNS: test accuracy after every epoch of every run."""
    return [
        (r.name, epoch, f"{value:.2f}") for r in results for epoch, value in enumerate(r.column("test_top1"), start=1)
    ]


def curves_table(results):
    """Markdown of what the plot shows, a line per run."""
    rows = []
    for r in results:
        values = r.column("test_top1")
        rows.append(
            [r.name, r.data_name, len(values), *(f"{v:.2f}" for v in (values[(len(values) - 1) // 2], values[-1]))]
        )
    return "\n".join(markdown_table(["run", "data", "epochs", "half-way %", "last %"], rows))


def _draw(curves, xlabel, ylabel, paths, columns, points, xscale="linear"):
    """Lines {label: (xs, ys, style)} into an image file, `points` into a CSV file; paths: what `output_paths` gave.

    Raises RunError without points: there may be an earlier plot.
    """
    if not points:
        raise RunError(f"no runs for {paths[0]}")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for label, (xs, ys, style) in curves.items():
        axes.plot(xs, ys, label=label, **style)
    axes.set(xlabel=xlabel, ylabel=ylabel, xscale=xscale)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    picture, table = paths
    with replacing(picture) as drawn, replacing(table) as written:
        figure.savefig(drawn, dpi=110, format=picture.suffix[1:])
        with open(written, "w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(columns)
            writer.writerows(points)


def plot_lambda(results, paths):
    """Draw figure 7, accuracy over lambda, from the runs of its cells."""
    points, curves = lambda_points(results), {}
    for name, data, epochs, lam, accuracy, _ in points:
        xs, ys, _ = curves.setdefault(f"{name}: {data}, {epochs} epochs", ([], [], {"marker": "o"}))
        xs.append(lam)
        ys.append(float(accuracy))
    _draw(curves, "λ", "top-1 accuracy after the last epoch (%)", paths, LAMBDA_COLUMNS, points)


def plot_curves(results, paths):
    """Draw the test accuracy over the epochs, a line per run, a colour per network; where some runs are longer than
    others on a logarithmic axis, a line style per length."""
    networks = list(dict.fromkeys((r.args["arch"], network_name(r.args)) for r in results))
    lengths = sorted({r.summary["epochs"] for r in results}, reverse=True)
    styles = {}
    for r in results:
        color = f"C{networks.index((r.args['arch'], network_name(r.args)))}"
        styles[r.name] = {"color": color, "linestyle": LINES[lengths.index(r.summary["epochs"]) % len(LINES)]}
    points, curves = curve_points(results), {}
    for name, epoch, accuracy in points:
        xs, ys, _ = curves.setdefault(name.removesuffix("/seed0"), ([], [], styles[name]))
        xs.append(epoch)
        ys.append(float(accuracy))
    scale = "log" if len(lengths) > 1 else "linear"
    _draw(curves, "epoch", "top-1 accuracy on the test images (%)", paths, CURVE_COLUMNS, points, scale)
