"""What an accuracy costs: full precision, then the binary networks from the cheapest on."""

import statistics

from utils.tables.accuracy import heading
from utils.tables.leaderboard import packed_bytes
from utils.tables.markdown import markdown_table, mean_std
from utils.tables.results import by_images, identity
from utils.tables.runs import is_full_precision, network_name

HEADER = ("network", "last %", "gap to FP", "OPs 1e6", "MB")
NOTE = (
    "Top-1 accuracy in % after the last epoch, mean ± standard deviation (number of seeds); gap: from full precision, "
    "on the same images for as many epochs (those of the last of two stages). OPs = BOPs / 64 + FLOPs of an image of "
    "this size; MB: the packed file, and of full precision 4 bytes a parameter. Networks with real weights and 1-bit "
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
    return sorted(networks, key=lambda runs: (not is_full_precision(runs[0].args), _ops(runs[0]) or 0))


def _ops(result):
    """OPs of one image, or None where nobody counted them."""
    bops, flops = (result.summary.get(key) for key in ("bops", "flops"))
    return None if None in (bops, flops) else bops / 64 + flops


def _megabytes(result):
    """Size of the packed file, or of real weights by the counter; None where neither is known."""
    packed = packed_bytes(result)
    return result.summary.get("model_mb") if packed is None else packed / 1e6


def _mean(runs):
    return statistics.mean(r.top1 for r in runs)


def _row(runs, twin):
    gap = f"{_mean(runs) - _mean(twin):+.2f}" if twin and twin is not runs else "-"
    ops, megabytes = _ops(runs[0]), _megabytes(runs[0])
    costs = ["-" if ops is None else f"{ops / 1e6:.1f}", "-" if megabytes is None else f"{megabytes:.2f}"]
    return [network_name(runs[0].args), mean_std([r.top1 for r in runs]), gap, *costs]


def _table(group):
    """Lines of one set of images; none where nothing is shown."""
    networks = _networks(group)
    if not networks:
        return []
    twin = networks[0] if is_full_precision(networks[0][0].args) else None
    rows = [_row(runs, twin) for runs in networks]
    return [f"{heading(group)} At {group[0].image_size}.", "", *markdown_table(HEADER, rows), ""]


def costs_table(results):
    """Markdown of accuracy beside cost: a table per set of images, their size and number of epochs."""
    lines = [line for group in by_images(results) for line in _table(group)]
    return "\n".join([*lines, NOTE]) if lines else "No runs yet."
