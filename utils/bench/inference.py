"""Print what `utils.bench deploy --json` and `utils.deploy verify --json` measured as Markdown tables."""

import json
import statistics
from pathlib import Path

from utils.command import Parser, RunError, command
from utils.tables.markdown import markdown_table
from utils.tables.paper import TABLES as PAPER

NAMES = {"resnet18": "ResNet-18", "mobilenet_v3_small": "MobileNetV3-small"}


def read(path):
    """The result in the last line of a file. Raises RunError if there is none."""
    try:
        result = json.loads(Path(path).read_text().splitlines()[-1])
    except (UnicodeDecodeError, ValueError, LookupError):
        result = None
    if not isinstance(result, dict):
        raise RunError(f"{path} holds no result of --json")
    return result


def network_of(network):
    """How readers call a network: of torchvision by its name, of ours by build_model's arguments."""
    if isinstance(network, str):
        return NAMES.get(network, network)
    if network.get("variant"):
        return f"IR²Net-{network['variant'].upper()}"
    return ", ".join(value for value in network.values() if isinstance(value, str))


def published_top1(row):
    """The top-1 accuracy on ImageNet, in %, that the row's network was published with; "-" if not known."""
    cited = {cell.method: cell.top1 for cell in PAPER["4"][1]}
    top1 = row.get("published_top1", cited.get(network_of(row["network"])))
    return "-" if top1 is None else f"{top1:.1f}"


def setting_of(result):
    batch = f", batch {result['batch']}" if result["batch"] > 1 else ""
    return f"{result['threads']} thread{'s' * (result['threads'] > 1)}{batch}"


def rivals(results):
    """Time, loading and memory of the packed network and of what else one would use; a pair of columns per result."""
    first = results[0]["rivals"]
    height, width = first["image_size"]
    versions = ", ".join(f"{name} {version}" for name, version in first["versions"].items())
    yield f"{results[0]['cpu']}; images of {height}x{width}; {versions}.\n"
    times = [{_key(row): row["ms"] for row in result["rivals"]["rows"]} for result in results]
    header = ["network", "engine", "computes in"]
    for result in results:
        header += [f"{setting_of(result)}, ms", "packed is faster by"]
    header += ["import, ms", "load, ms", "memory: engine imported, MB", "network run, MB more"]
    rows = []
    for row in first["rows"]:
        cells = [network_of(row["network"]), row["engine"], row["precision"]]
        for result, found in zip(results, times, strict=True):
            ms, ours = found.get(_key(row)), result["rivals"]["rows"][0]["ms"]
            cells += ["-", "-"] if ms is None else [f"{ms:.2f}", f"{ms / ours:.2f}"]
        cells += ["-" if row[name] is None else f"{row[name]:.0f}" for name in LOADING]
        rows.append(cells)
    yield from markdown_table(header, rows)
    yield ""
    yield from map(_told, results)


LOADING = ("import_ms", "load_ms", "runtime_mb", "added_mb")


def _key(row):
    return str(row["network"]), row["engine"], row["precision"]


def _told(result):
    """A sentence with what the table says in the end."""
    ours, *others = result["rivals"]["rows"]
    others = [row for row in others if isinstance(row["network"], str)]
    told = []
    for name in dict.fromkeys(row["network"] for row in others):
        rows = sorted((row for row in others if row["network"] == name), key=lambda row: row["ms"])
        shown = [row for row in rows if row["engine"].startswith("torchvision")] + rows[:1]
        for row in {_key(row): row for row in shown}.values():
            ratio = f"{row['ms'] / ours['ms']:.2f} times"
            told.append(f"{ratio} as fast as {NAMES[name]} in {row['engine']}, {row['precision']}")
    return f"- {setting_of(result)}: {network_of(ours['network'])} is {'; '.join(told)}."


def sizes(results):
    """Files, and the accuracy that their networks were published with."""
    ours, *others = results[0]["rivals"]["rows"]
    others = [row for row in others if isinstance(row["network"], str)]
    files = [{**ours, "bytes": results[0]["bytes"]["float32"], "engine": "torch", "precision": "float32"}]
    files += [ours, {**ours, "bytes": results[0]["bytes"]["packed_half"], "engine": "packed, `--half`"}]
    rows = []
    for row in files + [row for row in others if row["precision"] != "bf16"]:
        size = [f"{row['bytes'] / 1e6:.2f}", f"{row['bytes'] / ours['bytes']:.2f}"]
        rows.append([network_of(row["network"]), row["engine"], row["precision"], *size, published_top1(row)])
    yield from markdown_table(["network", "file of", "weights", "MB", "of packed", "published top-1, %"], rows)


def layers(results):
    """The binary convolutions by themselves."""
    for result in results:
        rows = result["layers"]
        ratios = sorted(row["float_ms"] / row["packed_ms"] for row in rows)
        ours, floats = (sum(row[name] for row in rows) for name in ("packed_ms", "float_ms"))
        yield (
            f"- {setting_of(result)}: one by one its {len(rows)} binary convolutions are {ratios[0]:.1f} to "
            f"{ratios[-1]:.1f} times (median {statistics.median(ratios):.1f}) as fast as torch's in float32; "
            f"together {ours:.2f} ms against {floats:.1f}."
        )


def parts(results):
    """Where the time goes."""
    total = results[0]["parts"]["total"]
    rows = [[name, f"{ms:.3f}", f"{ms / total:.0%}"] for name, ms in results[0]["parts"].items()]
    yield from markdown_table([f"part of the packed network, {setting_of(results[0])}", "ms", "share"], rows)


def verified(results):
    """What `utils.deploy verify --json` found."""
    rows = []
    for found in results:
        wrong = len(found["wrong_convs"])
        same = f"{found['same_top1']} of {found['images']}"
        exact = f"{found['convs'] - wrong} of {found['convs']}"
        rows.append([network_of(found["network"]), exact, f"{found['relative_error']:.1e}", same])
    header = ["network", "convolutions with equal integers", "largest relative difference of logits", "same top-1"]
    yield from markdown_table(header, rows)


TABLES = {"rivals": rivals, "sizes": sizes, "layers": layers, "parts": parts, "verified": verified}


def build_parser():
    parser = Parser(prog="utils.bench.inference", description=__doc__)
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("results", nargs="+", metavar="FILE")
    return parser


@command
def main(argv=None):
    args = build_parser().parse_args(argv)
    results = [read(path) for path in args.results]
    try:
        lines = list(TABLES[args.table](results))
    except (LookupError, AttributeError, TypeError, ValueError, ZeroDivisionError):
        raise RunError(f"{', '.join(args.results)}: not what the table {args.table} shows") from None
    print(*lines, sep="\n")


if __name__ == "__main__":
    main()
