"""Print what `utils.bench --json` measured, of one machine or several, as Markdown tables."""

import json
from pathlib import Path

from utils.bench.step import CONTENDERS
from utils.command import Parser, RunError, command
from utils.tables.markdown import markdown_table

RATIOS = (
    ("step", "reference"),
    ("two_passes", "reference"),
    ("no_ires", "reference"),
    ("step", "plain_full_precision"),
    ("step", "full_precision"),
)
CIFAR_IMAGES = 50_000


def read(path):
    """The result in the last line of a file, whole enough for its tables. Raises RunError if there is none."""
    try:
        result = json.loads(Path(path).read_text().splitlines()[-1])
        machine_of(result)
        for table in TABLES.get(result["what"], ()):
            table([result])
    except (UnicodeDecodeError, ValueError, LookupError, AttributeError, TypeError):
        raise RunError(f"{path} holds no result of utils.bench --json") from None
    return result


def machine_of(result):
    stored = result["versions"]
    return f"{stored['device']}, torch {stored['torch']}"


def network_of(result):
    network = result["network"]
    return " + ".join(filter(None, (network["arch"], network.get("variant") or network.get("recovery"))))


def training_table(results):
    rows = []
    for result in results:
        rates = result["images_per_s"]
        how = f"{result['precision']}, {'compiled' if result['compiled'] else 'eager'}"
        cells = [f"{rates[name]:,.0f}" if name in rates else "-" for name in CONTENDERS]
        rows.append([network_of(result), result["batch_size"], how, *cells])
    return markdown_table(["network", "batch", "computed", *CONTENDERS], rows)


def ratio_table(results):
    rows = []
    for result in results:
        rates, stored = result["images_per_s"], result["backward_bytes"]
        twice = "two_passes" if "two_passes" in rates else "step"
        memory = " / ".join(f"{stored[name] / stored['reference']:.2f}" for name in dict.fromkeys(("step", twice)))
        floor = rates[twice] / result["floor"]["images_per_s"]
        ratios = [f"{rates[ours] / rates[other]:.2f}" if ours in rates else "-" for ours, other in RATIOS]
        masked, seconds = f"{result['masked_fraction']:.1%}", f"{CIFAR_IMAGES / rates['step']:.1f}"
        rows.append([network_of(result), *ratios, masked, memory, f"{floor:.3f}", seconds])
    header = ["network", *(f"{ours} : {other}" for ours, other in RATIOS), "pixels masked in step"]
    header += ["bytes held for backward: reference's", "two passes : floor of arithmetic"]
    return markdown_table([*header, f"seconds for {CIFAR_IMAGES:,} images"], rows)


def data_table(results):
    rows = []
    for result in results:
        rates = result["images_per_s"]
        plain = f"{rates['pil_loader']:,.0f} ({result['workers']} workers)"
        rows.append([result["dataset"], f"{rates['ours']:,.0f}", plain, f"{result['ratio']:.1f}"])
    return markdown_table(["data path alone", "ours", "DataLoader with PIL transforms", "ratio"], rows)


def paired_table(results):
    rows = []
    for result in results:
        size, rates = result["image_size"], result["images_per_s"]
        what = [f"IR²Net-{result['variant'].upper()}", f"{size}x{size}", result["batch_size"], result["precision"]]
        compared = " : ".join(result["commits"].values())
        rows.append([*what, compared, *(f"{rates[side]:.0f}" for side in ("this", "other")), f"{result['ratio']:.2f}"])
    header = ["ImageNet step, one thread", "images", "batch", "computed", "commits", "the first", "the second", "ratio"]
    return markdown_table(header, rows)


TABLES = {"train": (training_table, ratio_table), "data": (data_table,), "paired": (paired_table,)}
"""What was measured -> the tables that show it."""


def build_parser():
    parser = Parser(prog="utils.bench.speed", description=__doc__)
    parser.add_argument("results", nargs="+", metavar="FILE")
    return parser


@command
def main(argv=None):
    results = [read(path) for path in build_parser().parse_args(argv).results]
    for machine in dict.fromkeys(map(machine_of, results)):
        measured = [result for result in results if machine_of(result) == machine]
        print(f"### {machine}\n\nImages/s, medians:\n")
        for what, shown in TABLES.items():
            rows = [result for result in measured if result["what"] == what]
            for table in shown if rows else ():
                print(*table(rows), "", sep="\n")
    print(*(f"- `{name}`: {text}" for name, text in CONTENDERS.items()), sep="\n")


if __name__ == "__main__":
    main()
