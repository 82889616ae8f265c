"""One way in for every file: recognise its format, read it, build its network."""

from utils.checkpoint import files, ours, packed, released
from utils.checkpoint.network import build_network, check_bits


def read_contents(path, weight_bits=None, activation_bits=None, structure=None):
    """The Contents of a checkpoint of ours, packed or not, or of a release; the other arguments as in `load_model`."""
    if files.is_packed(path):
        contents = packed.read_packed(path)
    else:
        payload = files.read(path)
        if ours.is_ours(payload):
            contents = ours.contents(payload, path)
        else:
            contents = released.contents(payload, path, weight_bits, activation_bits, structure)
    check_bits(contents, weight_bits, activation_bits, structure)
    return contents


def open_model(path, weight_bits=None, activation_bits=None, structure=None):
    """(network, Contents) of a file; see `load_model`."""
    contents = read_contents(path, weight_bits, activation_bits, structure)
    build = packed.build_packed if contents.packed else build_network
    return build(contents.network, contents.state, path), contents


def load_model(path, weight_bits=None, activation_bits=None, structure=None):
    """The network of a checkpoint, in evaluation mode, on the CPU: model(images (N, 3, H, W)) -> logits (N, classes).

    path: a checkpoint of ours, a packed file of `utils.deploy`, or a release that `utils.released` knows. The network
    takes the dtype of the file's weights. weight_bits, activation_bits, structure ("bireal" or "normal"): needed only
    where a released layout fits several networks. Raises RunError in one line for anything that is not, to the last
    tensor, a known network, and for bits or a structure that contradict it.
    """
    return open_model(path, weight_bits, activation_bits, structure)[0]
