"""Where mixed precision must not reach."""

import contextlib

import torch


def no_autocast(device):
    """Context in which operations compute in the dtype of their inputs, whatever autocast is on around it."""
    if device.type == "meta":  # nothing is computed there, and autocast does not know it
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)
