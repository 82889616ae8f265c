"""The mean of several checkpoints' weights, with BatchNorm statistics of its own."""

import torch

from models import CIFAR, family_of
from utils.checkpoint import build_network, dtype_of, network_of, network_text, read_ours
from utils.command import RunError


def average(paths, batches, device="cpu"):
    """A checkpoint of ours (`utils.checkpoint.save` writes it) with the mean of the weights of those at `paths`.

    Mean weights do not have the mean of the networks' statistics, so BatchNorm's are estimated anew, in training mode,
    on `batches`: (images (N, 3, H, W), ...) tuples. Raises RunError if the checkpoints' networks differ.
    """
    payloads = [read_ours(path) for path in paths]
    network = payloads[0]["network"]
    for path, payload in zip(paths, payloads):
        network_of(payload, path)
        if payload["network"] != network:
            texts = network_text(network), network_text(payload["network"])
            raise RunError(f"{paths[0]} and {path} hold different networks: {texts[0]}; {texts[1]}")
    states = [payload["model"] for payload in payloads]
    dtype = dtype_of(states[0])
    mean = {
        key: torch.stack([state[key].double() for state in states]).mean(0).to(dtype)
        if value.is_floating_point()
        else value
        for key, value in states[0].items()
    }
    model = build_network(network, mean, paths[0]).to(device)
    torch.optim.swa_utils.update_bn(batches, model.train(), device)
    state = {key: value.cpu() for key, value in model.state_dict().items()}
    return {"network": network, "model": state, "averaged": [str(path) for path in paths]}


def average_on_training_images(paths, dataset, data_dir, image_size, batch_size, seed, device):
    """`average` on one epoch of a small-image data set's augmented training images, as training sees them."""
    from cifar import data
    from utils.training.engine import choose_device

    device = choose_device(device)
    payload = read_ours(paths[0])
    model = network_of(payload, paths[0])
    if family_of(payload["network"].get("dataset")) != CIFAR:
        raise RunError(f"{paths[0]} holds a network for ImageNet, and {dataset} has small images")
    (train,) = data.load(dataset, data_dir, image_size=image_size, splits=("train",))
    if model.fc.out_features != len(train.classes):
        raise RunError(f"{paths[0]} tells {model.fc.out_features} classes apart, {dataset} has {len(train.classes)}")
    batches = data.Batches(train, batch_size, device, train=True, seed=seed, dtype=dtype_of(payload["model"]))
    try:
        return average(paths, batches.epoch(0), device)
    except (RuntimeError, IndexError) as error:
        raise RunError(f"{paths[0]} does not fit {dataset}'s images: {error}") from None
