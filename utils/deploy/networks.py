"""What the deployment commands work on: a checkpoint's network, or one with random weights, and images for it."""

import torch

from models import build_model
from models.inference import pack_network
from modules.activations import LearnedShift, Maxout
from modules.binarize import AdaptiveSign
from modules.inference import native
from modules.inference.runtime import kernels
from modules.weights import RectifiedClamp, Rotation
from utils.checkpoint import Contents, open_model, read_contents
from utils.checkpoint.network import check_bits
from utils.command import RunError, UsageError
from utils.training.flags import network_config


def _randomise(module):
    """Random values, as training may leave them, for what a module learns beside its weights."""
    if isinstance(module, torch.nn.PReLU):
        torch.nn.init.uniform_(module.weight, 0, 0.5)
    elif isinstance(module, LearnedShift):
        torch.nn.init.normal_(module.bias, 0, 0.2)
    elif isinstance(module, Maxout):
        torch.nn.init.normal_(module.pos, 1, 0.5)
        torch.nn.init.normal_(module.neg, 0.25, 0.5)
    elif isinstance(module, RectifiedClamp | Rotation):
        torch.nn.init.normal_(module.alpha)
    elif isinstance(module, AdaptiveSign):
        torch.nn.init.normal_(module.alpha)
        torch.nn.init.normal_(module.beta, 0, 0.3)


def random_network(network, size=(32, 32), seed=0):
    """`lively` of build_model(**network)."""
    torch.manual_seed(seed)
    return lively(build_model(**network), size, seed)


def lively(model, size, seed=0):
    """`model` in evaluation mode, with BatchNorm statistics as of random images of `size` (H, W), and random values,
    negative ones where training may leave such, of all that is learned beside the weights."""
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.momentum = None  # the statistics of the one batch below, as they are
            torch.nn.init.normal_(module.weight, 1, 0.2)
            torch.nn.init.normal_(module.bias, 0, 0.3)
        else:
            _randomise(module)
    with torch.no_grad():
        model.train()(random_images(size, 8, seed))
    return model.eval()


def random_images(size, count, seed=0):
    """float32 (count, 3, H, W), standard normal; size: (H, W)."""
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(seed))


def named_network(args):
    """(network in evaluation mode, Contents) of the flags: --checkpoint's, or random weights.

    --image-size takes the place of the size that the checkpoint was trained at.
    """
    if args.checkpoint:
        check_network_flags(args)
        model, contents = open_model(args.checkpoint, args.weight_bits, args.activation_bits, args.structure)
        if contents.packed:
            raise RunError(f"{args.checkpoint} is packed already: the checkpoint that it was made from is needed")
        return model.float(), with_data(contents, size_flag(args))
    contents = described_network(args, size_flag(args))
    try:
        return random_network(contents.network, contents.image_size, args.seed), contents
    except (ValueError, RuntimeError) as error:
        raise UsageError(f"no such network: {error}") from None


def packed_contents(args):
    """The Contents of --checkpoint, a packed file, whose weights cannot be had back. Raises as `named_network` does."""
    check_network_flags(args)
    contents = read_contents(args.checkpoint)
    check_bits(contents, args.weight_bits, args.activation_bits, args.structure)
    return with_data(contents, size_flag(args))


def check_network_flags(args):
    """Raise UsageError if a flag says what --checkpoint's file says itself."""
    names = ("arch", "method", "activation", "recovery", "ratio", "groups", "variant")
    if given := [f"--{name}" for name in names if getattr(args, name) is not None]:
        raise UsageError(f"{', '.join(given)}: --checkpoint names the network")


def size_flag(args):
    """--image-size as a checkpoint's data have it, or nothing."""
    return {"image_size": [args.image_size] * 2} if args.image_size else {}


def described_network(args, data):
    """The Contents, without weights, of the network flags. Raises UsageError if they name none."""
    if not args.arch and not args.variant:
        raise UsageError("--checkpoint PATH is needed, or --dataset and --arch for random weights")
    network = network_config(args, arch=args.arch or "resnet18", dataset=args.dataset or "cifar10")
    if data and network["arch"] == "vgg_small":
        network["image_size"] = data["image_size"][0]
    return Contents("random weights", {k: v for k, v in network.items() if v is not None}, {}, data)


def with_data(contents, data):
    """Contents with more known of its images."""
    return Contents(**{**vars(contents), "data": {**contents.data, **data}})


def packed_network(model):
    """The packed form of `model`. Raises RunError if it has none."""
    try:
        return pack_network(model)
    except ValueError as error:
        raise RunError(str(error)) from None


def use_fast(packed, size):
    """Let the first convolution of images of `size` (H, W) be computed in bfloat16. Raises RunError where it cannot."""
    if kernels() is None or not native.has_bf16():
        raise RunError("--fast needs a CPU with avx512_bf16 instructions, and the compiled kernels")
    if packed.program(size) is None:
        raise RunError("--fast is for networks that run as one program: this one's activations need torch in between")
    packed.fast = True


def float_size(model):
    """Bytes of all parameters and buffers."""
    return sum(value.numel() * value.element_size() for value in model.state_dict().values())


def megabytes(size):
    return f"{size / 1e6:.3f} MB"
