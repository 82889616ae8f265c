"""Entry points for torch.hub: `torch.hub.load(REPO, "ir2net", arch="resnet20", checkpoint=PATH, source="local")`."""

import sys as _sys
from pathlib import Path as _Path

try:
    from models import build_model as _build_model
    from models import describe_network as _describe_network
    from models import family_of as _family_of
    from utils.checkpoint import open_model as _open_model
    from utils.command import UsageError as _UsageError
except ImportError as _error:  # Python takes a package that is imported already, whoever it belongs to
    for _name in ("models", "modules", "utils", "cifar", "imagenet"):
        _other = _sys.modules.get(_name)
        _where = [getattr(_other, "__file__", None), *getattr(_other, "__path__", ())]
        _where = [_Path(_path).resolve() for _path in _where if _path]
        if _where and not any(_path.is_relative_to(_Path(__file__).resolve().parent) for _path in _where):
            raise ImportError(
                f"IR²Net's package {_name!r} is hidden by {_where[0]}, which is imported already under the same name: "
                f"rename that one, or load the network in a process that does not import it"
            ) from _error
    raise

dependencies = ["torch"]


def _network(method, arch, checkpoint, weight_bits, activation_bits, network):
    """A network of `method`: a checkpoint's, in evaluation mode, or one with random weights, in training mode."""
    if checkpoint is None:
        bits = {"weight_bits": weight_bits, "activation_bits": activation_bits}
        given = {name: value for name, value in bits.items() if value is not None}
        return _build_model(arch or "resnet20", method=method, **given, **network)
    model, contents = _open_model(checkpoint, weight_bits, activation_bits, network.get("structure"))
    stored = _describe_network(**contents.network)
    requested = {"method": method, "arch": arch, **network}
    family = requested.pop("dataset", None) and _family_of(network["dataset"])  # it may come from any of its family
    for name, value in {**requested, "family": family}.items():
        own = getattr(stored, name, None)
        own = contents.network.get(name) if own is None else own
        if value is not None and own != value:
            raise _UsageError(f"{checkpoint} has {name} {own}, not {value}")
    return model


def ir2net(arch=None, checkpoint=None, weight_bits=None, activation_bits=None, **network):
    """IR²Net. arch: "resnet20" (the default), "resnet18", "vgg_small"; with dataset="imagenet" "resnet18", "resnet34".

    checkpoint: path of one of ours, or of a released one; without it the weights are random, and the head is CIRec
    (on ImageNet variant="a" to "d", default "c"). weight_bits, activation_bits: 1 or 32; with a checkpoint they are
    needed only where a released layout fits several networks. network: more of `models.build_model`'s arguments.
    Raises ValueError, RunError or UsageError for what does not exist or does not fit together.
    """
    if checkpoint is None and not network.keys() & {"recovery", "variant"}:
        network["recovery"] = "cirec"
    return _network("bireal", arch, checkpoint, weight_bits, activation_bits, network)


def irnet(arch=None, checkpoint=None, weight_bits=None, activation_bits=None, **network):
    """IR-Net; arguments as of `ir2net`, without its head."""
    return _network("irnet", arch, checkpoint, weight_bits, activation_bits, network)


def sdbnn(arch=None, checkpoint=None, weight_bits=None, activation_bits=None, **network):
    """SD-BNN; arguments as of `ir2net`, without its head."""
    return _network("sdbnn", arch, checkpoint, weight_bits, activation_bits, network)


def reactnet(arch=None, checkpoint=None, weight_bits=None, activation_bits=None, **network):
    """ReActNet; arguments as of `ir2net`, without its head."""
    return _network("reactnet", arch, checkpoint, weight_bits, activation_bits, network)


def rbnn(arch=None, checkpoint=None, weight_bits=None, activation_bits=None, **network):
    """RBNN; arguments as of `ir2net`, without its head. A released ResNet-20 needs structure="normal" or "bireal"."""
    return _network("rbnn", arch, checkpoint, weight_bits, activation_bits, network)


def recu(arch=None, checkpoint=None, weight_bits=None, activation_bits=None, **network):
    """ReCU; arguments as of `ir2net`, without its head."""
    return _network("recu", arch, checkpoint, weight_bits, activation_bits, network)


def recu_twostage(arch=None, checkpoint=None, weight_bits=None, activation_bits=None, **network):
    """ReCU in ReActNet's network; arguments as of `ir2net`, without its head."""
    return _network("recu_twostage", arch, checkpoint, weight_bits, activation_bits, network)


def adabin(arch=None, checkpoint=None, weight_bits=None, activation_bits=None, **network):
    """AdaBin; arguments as of `ir2net`, without its head."""
    return _network("adabin", arch, checkpoint, weight_bits, activation_bits, network)
