"""Going on with a run: its checkpoint, its flags, its folder."""

import shlex
from argparse import ArgumentTypeError
from pathlib import Path

import torch

from utils import checkpoint
from utils.command import RunError, UsageError
from utils.training.flags import given_flags, resume_rule
from utils.training.run import LAST, check_whole, last_of

FIELDS = {
    "args": dict,
    "data": dict,
    "network": dict,
    "model": dict,
    "optimizer": dict,
    "scheduler": dict,
    "scaler": dict,
    "rng": dict,
    "rows": list,
    "epoch": int,
    "best": float,
    "seconds": float,
    "lr": float,
    "step": int,
    "meters": (tuple, list),
}
"""What a checkpoint must hold for training to go on: {name: type}."""
ROW = {"epoch", "lr", "train_loss", "train_top1", "test_loss", "test_top1", "test_images"}
"""Columns that every row of metrics.csv has."""


def command_line(module, argv):
    """The command that runs `module` with argv, as a shell takes it."""
    return shlex.join(["python", "-m", module, *argv])


def read_run(path):
    """What the checkpoint of a run at `path` holds, and as `last` what `last_of` gave of its folder before.

    Raises RunError unless training can go on from it.
    """
    path = Path(path)
    if path.name == LAST:
        check_whole(path.parent)
    last = last_of(path.parent)
    stored = checkpoint.read(path)
    if not checkpoint.is_ours(stored) or not stored.keys() >= FIELDS.keys():
        raise RunError(f"{path} is not a checkpoint that training can go on from")
    checkpoint.check_version(stored, path)
    wrong = [name for name, kind in FIELDS.items() if not isinstance(stored[name], kind)]
    if not wrong:
        wrong = _impossible(stored)
    if wrong:
        raise RunError(f"{path} is damaged: no run has saved such {', '.join(wrong)}")
    return stored | {"last": last}


def _impossible(stored):
    """Names of the plain values that no run has saved, though their types are right."""
    rows, meters = stored["rows"], stored["meters"]
    good_rows = len(rows) == stored["epoch"] and all(isinstance(row, dict) and row.keys() >= ROW for row in rows)
    good_meters = len(meters) == 2 and isinstance(meters[0], int) and isinstance(meters[1], dict)
    numbers = [value for row in rows for value in row.values()] if good_rows else []
    numbers += list(meters[1].values()) if good_meters else []
    good_numbers = all(isinstance(value, int | float) for value in numbers)
    checks = {"rows": good_rows, "meters": good_meters, "numbers": good_numbers, "step": stored["step"] >= 0}
    return [name for name, good in checks.items() if not good]


def check_state(own, stored, name="state"):
    """Raise ValueError unless `stored`, read from a file, is built as `own`, of the same object: plain values and lists
    of the same kinds, under the same keys."""
    if isinstance(own, dict):
        if not isinstance(stored, dict) or stored.keys() != own.keys():
            raise ValueError(f"{name} has other keys")
        for key, value in own.items():
            check_state(value, stored[key], f"{name}.{key}")
    elif isinstance(own, list | tuple):
        if not isinstance(stored, list | tuple) or len(stored) != len(own):
            raise ValueError(f"{name} is no list of {len(own)}")
        for i, (mine, theirs) in enumerate(zip(own, stored)):
            check_state(mine, theirs, f"{name}[{i}]")
    elif isinstance(own, bool) or own is None or not isinstance(own, int | float):
        if type(stored) is not type(own):
            raise ValueError(f"{name} is no {type(own).__name__}")
    elif isinstance(stored, bool) or not isinstance(stored, int | float):
        raise ValueError(f"{name} is no number")


def check_optimizer(optimizer, stored):
    """Raise ValueError unless `stored` is a state_dict of `optimizer`: its groups, and tensors of its parameters."""
    own = optimizer.state_dict()
    for mine, theirs in zip(own["param_groups"], stored["param_groups"]):
        if isinstance(theirs.get("fused"), bool | None):
            mine["fused"] = theirs.get("fused")  # the same in another way: a run goes on in that it began in
    check_state(own["param_groups"], stored.get("param_groups"), "param_groups")
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for index, state in stored["state"].items():
        shape = parameters[index].shape
        for name, value in state.items():
            if value is not None and not (torch.is_tensor(value) and (value.shape == shape or value.numel() == 1)):
                raise ValueError(f"{name} of parameter {index} does not fit it")


def take_flags(parser, argv, args, path):
    """Give `args` the flags of the run whose checkpoint is at `path`; returns what the checkpoint holds.

    Raises UsageError if a flag that stands in argv contradicts the run, RunError for no such checkpoint.
    """
    stored = read_run(path)
    if not stored["args"].keys() <= vars(args).keys():
        raise UsageError(f"{path} is a checkpoint of another command than {parser.prog}")
    given = given_flags(parser, argv)
    actions = {action.dest: action for action in parser._actions}
    for name, value in stored["args"].items():
        action = actions.get(name)
        rule = resume_rule(action)
        if rule == "free" or (rule == "kept" and name in given):
            continue
        flag = "--" + name.replace("_", "-")
        if action and not _can_be(action, value):
            raise RunError(f"{path} is damaged: no run has {flag} {value!r}")
        if name in given and given[name] != value:
            raise UsageError(f"the run in {path} has {flag} {value}, not {given[name]}: leave {flag} out")
        setattr(args, name, value)
    return stored


def _can_be(action, value):
    """Whether the argparse action can have given `value`."""
    if value is None or value == action.default:
        return True
    if action.choices is not None:
        return value in action.choices
    if action.nargs == 0:
        return isinstance(value, bool)
    try:
        text = "x".join(map(str, value)) if isinstance(value, tuple) else str(value)  # an image size (H, W)
        return (action.type or str)(text) == value
    except (ValueError, TypeError, ArgumentTypeError):
        return False


def set_resume_folder(folder, parser, argv, args):
    """A run goes on in its own folder: set --output-dir to it. Raises UsageError if argv names another."""
    given = given_flags(parser, argv).get("output_dir")
    if given is not None and Path(given).resolve() != Path(folder).resolve():
        raise UsageError(f"a run goes on in its own folder, {folder}: leave --output-dir {given} out")
    args.output_dir = str(folder)
