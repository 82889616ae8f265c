"""The mean of several checkpoints' weights, with BatchNorm statistics of its own."""

import torch

from utils.checkpoint.network import build_network, dtype_of, network_text
from utils.checkpoint.ours import network_of, read_ours
from utils.command import RunError


def average(paths, batches, device="cpu"):
    """A checkpoint of ours (`utils.checkpoint.save` writes it) with the mean of the weights of those at `paths`.

    Mean weights do not have the mean of the networks' statistics, so BatchNorm's are estimated anew, in training mode,
    on `batches`: (images (N, 3, H, W), ...) tuples. Raises RunError if the checkpoints' networks or images differ.
    """
    payloads = [read_ours(path) for path in paths]
    network = payloads[0]["network"]
    for path, payload in zip(paths, payloads):
        network_of(payload, path)
        if payload["network"] != network:
            texts = network_text(network), network_text(payload["network"])
            raise RunError(f"{paths[0]} and {path} hold different networks: {texts[0]}; {texts[1]}")
        if payload.get("data") != payloads[0].get("data"):
            raise RunError(f"{paths[0]} and {path} were trained on different images")
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
    kept = {name: payloads[0][name] for name in ("network", "data") if name in payloads[0]}
    return {**kept, "model": state, "averaged": [str(path) for path in paths]}
