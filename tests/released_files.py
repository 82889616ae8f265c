"""What the tests of released checkpoints share: the recorded layouts, filled with reproducible numbers.

data/released_layouts.json: {layout: {"keys": [[name, shape], ...], "seed", "input_seed", "input_size"}}; where it has
"logits_first10" too, they are what the released code gave in float64, in evaluation mode, for the weights of `fill` and
two images.
"""

import json
from pathlib import Path

import numpy as np
import torch

from utils.checkpoint import released

LAYOUTS = json.loads((Path(__file__).parent / "data" / "released_layouts.json").read_text())
RECORDED = [name for name, layout in LAYOUTS.items() if "logits_first10" in layout]
SMALL = "ir2net_cifar_resnet20"


def numbers(key, shape, seed):
    """The reproducible values of one tensor: a generator per key, and a distribution per kind of tensor."""
    leaf = key.split(".")[-1]
    generator = np.random.default_rng([seed, *key.encode()])
    if leaf == "num_batches_tracked":
        return np.int64(1)
    if leaf == "running_var":
        return generator.uniform(0.5, 1.5, shape)
    if leaf == "tau":  # a quantile
        return np.full(shape, 0.9)
    if leaf == "alpha_a":
        return generator.uniform(0.5, 1.0)
    if leaf in ("running_mean", "bias", "alpha", "beta_a"):
        return generator.normal(0, 0.1, shape)
    if len(shape) == 1:
        return generator.uniform(0.2, 1.0, shape)
    flat = len(shape) == 2 and shape[1] == 1
    return generator.normal(0.01, np.sqrt(2 / (576 if flat else np.prod(shape[1:]))), shape)


def fill(name):
    """{key: tensor} of the layout `name`, in float64."""
    layout = LAYOUTS[name]
    return {key: torch.as_tensor(numbers(key, shape, layout["seed"])) for key, shape in layout["keys"]}


def images(name, size=None):
    """(2, 3, size, size) float64."""
    size = size or LAYOUTS[name]["input_size"]
    generator = np.random.default_rng(LAYOUTS[name]["input_seed"])
    return torch.from_numpy(generator.normal(0, 1, (2, 3, size, size)))


def bits(name):
    return released.RELEASES[name].bits


def choices(name):
    """What may have to be given to load the release `name`."""
    return (*bits(name), released.RELEASES[name].structure)


def same_bits(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)


def save(tmp_path, content, name="released.pth", **kwargs):
    path = tmp_path / name
    torch.save(content, path, **kwargs)
    return path
