"""Folders of finished runs, as training leaves them, and tables of them."""

import json

from utils.tables import __main__ as tables
from utils.tables.results import CIFAR10_CLASSES

FP = {"weight_bits": 32, "activation_bits": 32, "structure": "normal", "activation": "relu"}
CIFAR10 = {"dataset": "folder", "data_dir": "data/copy"}


def write_run(folder, top1, seed=0, epochs=5, **flags):
    folder.mkdir(parents=True)
    args = {"dataset": "digits", "arch": "resnet20", "seed": seed, "method": "bireal", "weight_bits": 1}
    args |= {"activation_bits": 1, "ires": False, "recovery": None, **flags}
    args["command"] = f"python -m cifar.train --dataset digits --seed {seed} --output-dir {folder}"
    (folder / "args.json").write_text(json.dumps(args))
    summary = {"top1_last": top1, "top1_best": top1 + 1, "images": 360, "epochs": epochs, "seconds": 12.5}
    classes = CIFAR10_CLASSES if args["dataset"] != "digits" else list("0123456789")
    data = {"dataset": args["dataset"], "test_fingerprint": "abc", "classes": classes, "image_size": [32, 32]}
    if args["dataset"] == "imagenet":
        del data["test_fingerprint"]
    summary |= {"bops": 4e7, "flops": 5e5, "data": data}
    summary["versions"] = {"device": "cpu"}
    (folder / "summary.json").write_text(json.dumps(summary))
    rows = [f"{epoch},{top1 - epochs + epoch},0.0\n" for epoch in range(1, epochs + 1)]
    (folder / "metrics.csv").write_text("epoch,test_top1,train_masked_fraction\n" + "".join(rows))


def make_runs(tmp_path):
    """FP, three seeds of IR²Net, and another schedule of it, on a copy of CIFAR-10."""
    write_run(tmp_path / "fp", 99.0, **FP, **CIFAR10)
    for seed, top1 in enumerate((95.0, 96.0, 97.0)):
        write_run(tmp_path / "ir2net" / f"seed{seed}", top1, seed, ires=True, recovery="cirec", lam=0.15, **CIFAR10)
    write_run(tmp_path / "longer", 98.0, epochs=9, ires=True, recovery="cirec", **CIFAR10)
    return tmp_path


def lines(capsys, *argv):
    tables.main([str(a) for a in argv])
    return capsys.readouterr().out.splitlines()
