"""Checkpoints of every format: ours, packed to 1 bit, and those that others have released.

from utils.checkpoint import load_model
model = load_model("last.pt")          # evaluation mode; model(images (N, 3, H, W)) -> logits (N, classes)
"""

from utils.checkpoint.files import read, write
from utils.checkpoint.load import load_model, open_model, read_contents
from utils.checkpoint.network import Contents, build_network, dtype_of, load_state, network_text
from utils.checkpoint.ours import TRAINING_STATE, check_version, is_ours, network_of, read_ours, save

__all__ = [
    "TRAINING_STATE",
    "Contents",
    "build_network",
    "check_version",
    "dtype_of",
    "is_ours",
    "load_model",
    "load_state",
    "network_of",
    "network_text",
    "open_model",
    "read",
    "read_contents",
    "read_ours",
    "save",
    "write",
]
