"""Steps of IR²Net on ImageNet, timed in the checkout that is the current folder; what utils.bench.paired starts twice.

Reads a number of steps per line from standard input, and answers with the seconds of processor time that they took.
"""

import importlib
import json
import sys
import time
from argparse import Namespace
from pathlib import Path

import torch


def make_step(variant, image_size, batch_size, amp):
    """A function without arguments: one step of training, forward to optimizer, on one random batch."""
    # Names that have changed since the checkouts that are worth comparing with.
    runtime = importlib.import_module("utils.training.runtime" if Path("utils/training").is_dir() else "utils.engine")
    restriction = importlib.import_module("modules.restriction")
    loss_of = getattr(restriction, "ThriftyIResLoss", restriction.IResLoss)
    build_model = importlib.import_module("models").build_model
    build_optimizer = importlib.import_module("imagenet.train").build_optimizer
    precision = runtime.choose_precision(amp, runtime.choose_device("cpu"))
    torch.manual_seed(0)
    model = build_model("resnet18", dataset="imagenet", variant=variant, num_classes=10)
    step = loss_of(model, torch.nn.functional.cross_entropy).to(memory_format=torch.channels_last).train()
    adam = Namespace(optimizer="adam", lr=1e-3, weight_decay=0.0, momentum=None, decay=None)
    optimizer = build_optimizer(adam, model)
    images = torch.randn(batch_size, 3, image_size, image_size).to(memory_format=torch.channels_last)
    labels = torch.randint(10, (batch_size,))

    def train():
        with precision.autocast():
            loss = step(images, labels)[0]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return train


def main():
    torch.set_num_threads(1)  # then processor time is the step's, whatever else the machine does
    train = make_step(**json.loads(sys.argv[1]))
    for line in sys.stdin:
        start = time.process_time()
        for _ in range(int(line)):
            train()
        print(time.process_time() - start, flush=True)


if __name__ == "__main__":
    main()
