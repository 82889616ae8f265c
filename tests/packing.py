"""Networks with random weights, and images for them, that the tests of packing share."""

import os
import subprocess
import sys
from pathlib import Path

from utils.deploy import networks

IMAGENET = {"arch": "resnet18", "dataset": "imagenet"}


RESNET20 = {"arch": "resnet20", "method": "bireal", "recovery": "cirec"}
VALUES = ("rbnn", "recu", "recu_twostage", "adabin")
"""Methods whose learned values may be negative."""


def size_of(network):
    if network.get("dataset") != "imagenet":
        return (32, 32)
    return (64, 64) if network.get("method") in VALUES else (224, 224)


def random_network(network, seed=0):
    return networks.random_network(network, size_of(network), seed)


def random_images(network, count, seed=0):
    return networks.random_images(size_of(network), count, seed)


def name_of(network):
    return "-".join(str(value) for value in network.values())


def relative_error(expected, logits):
    return ((expected - logits).abs().max() / expected.abs().max()).item()


def run_python(code, **env):
    """A process of its own, which a fault in compiled code would end; it can import what tests can."""
    paths = os.pathsep.join(str(path) for path in (Path(__file__).parent, Path(__file__).parent.parent))
    env = {**os.environ, "PYTHONPATH": paths, **env}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, env=env)


def check_a_forked_process(setup):
    """A process forked after `compute()`, which the code `setup` defines, has run on two threads gives the same."""
    done = run_python(f"""
import os, torch
torch.set_num_threads(2)
torch.set_grad_enabled(False)
{setup}
expected = compute()
child = os.fork()
if not child:
    os._exit(0 if torch.equal(compute(), expected) else 3)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
""")
    assert done.returncode == 0, done.stderr
