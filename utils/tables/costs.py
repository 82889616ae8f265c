"""What an accuracy costs: full precision, then the binary networks from the cheapest on."""

from utils.tables.accuracy import scored_on
from utils.tables.leaderboard import packed_bytes
from utils.tables.markdown import markdown_table, mean_std
from utils.tables.results import by_images, identity, mean_top1
from utils.tables.runs import is_full_precision, network_name

HEADER = ("network", "epochs", "last %", "gap to FP", "OPs 1e6", "MB")
NOTE = (
    "Top-1 accuracy in % after the last epoch, mean ± standard deviation (number of seeds); gap: from the "
    "full-precision network that was trained longest on the same images. OPs = BOPs / 64 + FLOPs of an image of this "
    "size; MB: the packed file, and of full precision 4 bytes a parameter. Networks with real weights and 1-bit "
    "activations, the first of two stages, are left out."
)


def _is_shown(result):
    return result.args["weight_bits"] == 1 or is_full_precision(result.args)


def _networks(group):
    """[[Result of each seed], ...] of one set of images: full precision first, then by OPs."""
    found = {}
    for result in filter(_is_shown, group):
        found.setdefault((identity(result.args), result.schedule), {})[result.args["seed"]] = result
    networks = [list(seeds.values()) for seeds in found.values()]
    return sorted(networks, key=lambda runs: (_is_binary(runs), _ops(runs[0]) or 0))


def _is_binary(runs):
    return not is_full_precision(runs[0].args)


def _epochs(runs):
    """Of a run, as text; of two stages "10 + 10"."""
    epochs, stage = runs[0].summary["epochs"], runs[0].args.get("stage")
    return {"both": f"{epochs} + ", "2": "stage 1 + "}.get(stage, "") + str(epochs)


def _ops(result):
    """OPs of one image, or None where nobody counted them."""
    bops, flops = (result.summary.get(key) for key in ("bops", "flops"))
    return None if None in (bops, flops) else bops / 64 + flops


def _megabytes(result):
    """Size of the packed file, or of real weights by the counter; None where neither is known."""
    packed = packed_bytes(result)
    return result.summary.get("model_mb") if packed is None else packed / 1e6


def _row(runs, twin):
    gap = f"{mean_top1(runs) - mean_top1(twin):+.2f}" if twin and twin is not runs else "-"
    ops, megabytes = _ops(runs[0]), _megabytes(runs[0])
    costs = ["-" if ops is None else f"{ops / 1e6:.1f}", "-" if megabytes is None else f"{megabytes:.2f}"]
    return [network_name(runs[0].args), _epochs(runs), mean_std([r.top1 for r in runs]), gap, *costs]


def _table(group):
    """Lines of one set of images; none where nothing is shown."""
    networks = _networks(group)
    if not networks:
        return []
    real = [runs for runs in networks if not _is_binary(runs)]
    twin = max(real, key=lambda runs: runs[0].summary["epochs"], default=None)
    rows = [_row(runs, twin) for runs in networks]
    return [f"{scored_on(group)} at {group[0].image_size}.", "", *markdown_table(HEADER, rows), ""]


def costs_table(results):
    """Markdown of accuracy beside cost: a table per set of images and their size."""
    lines = [line for group in by_images(results, same_epochs=False) for line in _table(group)]
    return "\n".join([*lines, NOTE]) if lines else "No runs yet."
