"""Evaluate the committed checkpoints, and compare each with what its run measured after its last epoch.

checkpoints/NAME.packed, or .pt, is the network that the run in results/NAME ended with. What a run on CIFAR-10 or on
photographs gave is verified where the same images are to be had; other images are scored, and nothing is concluded.
"""

from pathlib import Path

from cifar import data
from imagenet.data import val_batches
from utils.checkpoint import open_model
from utils.command import Parser, RunError, UsageError, answering, command
from utils.tables.markdown import markdown_table
from utils.tables.results import collect
from utils.training import metrics, runtime
from utils.training.losses import cross_entropy

SUFFIXES = (".packed", ".pt")


def pairs(checkpoints, results):
    """[(path of a checkpoint, Result of its run)], sorted. Raises UsageError for a folder without checkpoints or runs,
    RunError for a checkpoint without a run."""
    runs = {result.name: result for result in collect([results])}
    files = sorted(path for path in Path(checkpoints).rglob("*") if path.suffix in SUFFIXES)
    if not files:
        raise UsageError(f"no checkpoint in {checkpoints}")
    found = []
    for path in files:
        name = str(path.relative_to(checkpoints).with_suffix(""))
        if name not in runs:
            raise RunError(f"{path} has no run {Path(results) / name}")
        found.append((path, runs[name]))
    return found


def test_images(dataset, size, data_dir):
    """The test images of a data set, an ImageSet, a folder's resized to `size` if it is given; None if they need a
    folder and none is given. CIFAR-10 may lie in folders of images, and another folder's images may be CIFAR-10's.
    """
    if dataset == "digits":  # they come with scikit-learn, whatever folder the other runs' images lie in
        data_dir = None
    elif data_dir is None:
        return None
    if dataset in ("folder", "cifar10"):
        dataset = "folder" if (Path(data_dir) / "test").is_dir() else "cifar10"
    size = size if dataset == "folder" else None
    return data.load(dataset, data_dir, image_size=size, progress=False, splits=("test",))[0]


def top1(path, images):
    """Accuracy in % of a checkpoint over an ImageSet, or over DIR/val of photographs, and the number of these images.

    Raises RunError if it does not fit.
    """
    model, contents = open_model(path)
    float32 = runtime.Precision(runtime.choose_device("cpu"), None)
    if isinstance(images, data.ImageSet):
        batches, count = data.evaluation_batches(images, 500), len(images)
    else:
        batches, count = val_batches(images, contents, model, 100), None
    with answering(f"{path} does not fit the images or their classes"):
        tested = metrics.evaluate(model, batches, count, cross_entropy, float32)
    return tested["top1"], tested["images"]


def verdict(result, measured, count, fingerprint):
    """What an accuracy in % over `count` images says of a run: "as promised", "NOT as promised", or why nothing.

    fingerprint: of an ImageSet; None of photographs, which are known by their number alone.
    """
    known = result.summary["data"].get("test_fingerprint") if fingerprint else result.summary["images"]
    if known is None:
        return "its run does not say on which images"
    if known != (fingerprint or count):
        return "other images than the run's"
    kept = abs(measured - result.top1) <= 100 * may_differ(count) / count + 1e-9
    return "as promised" if kept else "NOT as promised"


def may_differ(images):
    """Images that rounding may classify otherwise on another machine: one in a thousand, and one at least."""
    return max(1, images // 1000)


def build_parser():
    parser = Parser(prog="utils.tables.verify", description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoints", metavar="DIR", default="checkpoints")
    parser.add_argument("--results", metavar="DIR", default="results")
    parser.add_argument("--photographs", metavar="DIR", help="Imagenette, DIR/val/<class>/")
    parser.add_argument("--data-dir", metavar="DIR", help="CIFAR-10, as torchvision has it or DIR/test/<class>/")
    return parser


@command
def main(argv=None):
    args = build_parser().parse_args(argv)
    sets, rows, wrong = {}, [], []
    for path, result in pairs(args.checkpoints, args.results):
        photographs = result.args["dataset"] == "imagenet"
        size = result.args.get("image_size")
        key = result.args["dataset"], tuple(size) if isinstance(size, list) else size
        if key not in sets:
            sets[key] = args.photographs if photographs else test_images(*key, args.data_dir)
        images, score = sets[key], "-"
        if images is None:
            said = f"not evaluated: it needs {'--photographs' if photographs else '--data-dir'}"
        else:
            measured, count = top1(path, images)
            score = f"{measured:.2f}"
            said = verdict(result, measured, count, None if photographs else images.fingerprint())
        if said == "NOT as promised":
            wrong.append(str(path))
        trained = f"{result.data_name}, {result.summary['epochs']} epochs"
        rows.append([path, f"{path.stat().st_size / 1e3:.0f}", trained, f"{result.top1:.2f}", score, said])
    header = ["checkpoint", "kB", "trained on", "promised %", "measured %", "verdict"]
    print(*markdown_table(header, rows), sep="\n")
    if wrong:
        raise RunError(f"not the accuracy of its run: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
