"""Estimators and weight transforms that change while a network learns, and how training tells them how far it is.

A module takes part by having one of these methods; none is needed:
    set_progress(progress) -> {name: number}   before every epoch; progress in [0, 1); what it returns is logged
    start_epoch()                              once per epoch, before its first step; changes only buffers
and an attribute `t_min` if it starts at a t that the recipe chooses.
"""


def set_progress(model, progress):
    """Call set_progress of every module that has it; returns what they report, {name: number}, one of each name."""
    reported = {}
    for module in model.modules():
        if hasattr(module, "set_progress"):
            reported.update(module.set_progress(progress))
    return reported


def start_epoch(model):
    """Call start_epoch of every module that has it."""
    for module in model.modules():
        if hasattr(module, "start_epoch"):
            module.start_epoch()


def set_t_min(model, t_min):
    """Let every annealed estimator of `model` start at t_min."""
    for module in model.modules():
        if hasattr(module, "t_min"):
            module.t_min = t_min
            module.set_progress(0.0)
