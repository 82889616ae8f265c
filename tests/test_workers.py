"""A packed network gives the same logits from threads that share it, forked processes and DataLoaders' workers."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import os, sys, threading, time
from concurrent.futures import ThreadPoolExecutor

import torch
from packing import IMAGENET

from models.inference import pack_network
from utils.deploy.networks import random_images, random_network

NETWORKS = {
    "imagenet": ({**IMAGENET, "variant": "c"}, (64, 64)),
    "cifar": ({"arch": "resnet20", "method": "sdbnn", "recovery": "cirec"}, (32, 32)),
}

class Logits(torch.utils.data.Dataset):
    def __init__(self, network, images):
        self.network, self.images = network, images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        with torch.no_grad():
            return self.network(self.images[i : i + 1])[0]

def together(logits):
    return torch.stack([logits[i] for i in range(len(logits))])

def loaded(logits, workers, context):
    loader = torch.utils.data.DataLoader(logits, 3, num_workers=workers, multiprocessing_context=context)
    return torch.cat(list(loader))

def forked(logits):
    child = os.fork()
    if not child:
        os._exit(0 if torch.equal(together(logits), expected) else 3)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

if __name__ == "__main__":
    torch.set_num_threads(2)
    network, size = NETWORKS[sys.argv[1]]
    logits = Logits(pack_network(random_network(network, size)), random_images(size, 6))
    expected = together(logits)
    started = []
    with ThreadPoolExecutor(6, initializer=lambda: started.append(threading.get_native_id())) as pool:
        for turn in range(10):
            assert torch.equal(torch.stack(list(pool.map(logits.__getitem__, range(6)))), expected), "threads"
    while any(os.path.exists(f"/proc/self/task/{thread}") for thread in started):
        time.sleep(0.01)  # a thread that Python has joined still runs for a moment, and may hold a lock of MKL's
    assert torch.get_num_threads() == 2
    assert forked(logits) == 0, "a forked process"
    assert torch.equal(loaded(logits, 2, "fork"), expected), "workers that are forked"
    if sys.argv[1] == "cifar":
        assert torch.equal(loaded(logits, 1, "spawn"), expected), "workers that start anew"
    assert torch.equal(together(logits), expected), "again, after them"
"""


@pytest.mark.parametrize("network", ["imagenet", "cifar"])
def test_equal_logits_wherever_it_runs(network, tmp_path):
    """In a process of its own, which a fault in the threads of kernels would end."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    tests = Path(__file__).parent
    # numba has as many threads as there are cores: one, perhaps.
    env = {**os.environ, "NUMBA_NUM_THREADS": "2", "PYTHONPATH": os.pathsep.join([str(tests), str(tests.parent)])}
    done = subprocess.run([sys.executable, script, network], capture_output=True, text=True, timeout=300, env=env)
    assert done.returncode == 0, done.stderr
