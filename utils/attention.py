"""Draw where networks look: the attention map of every stage over an image, and the mask that IRes would make.

Figures 1 and 8 of the paper: several checkpoints (full precision, baseline, IR²Net) side by side.
"""

from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps

from cifar import data
from modules.restriction import VARIANTS, attention_map, attention_mask
from utils import images as image_files
from utils.checkpoint import network_text, open_model
from utils.checkpoint.network import check_takes
from utils.command import Parser, UsageError, command, fraction, height_width, image_size, non_negative_int
from utils.files import output_path, replacing
from utils.images import MEAN, STD
from utils.training.flags import add_bits_flags


def read_image(path, size):
    """An image file as float32 (3, H, W) in [0, 1]: scaled to cover the size, N or (H, W), centre cropped."""
    if not Path(path).exists():
        raise UsageError(f"no image {path}")
    image = ImageOps.fit(image_files.read_image(path), height_width(size)[::-1], Image.Resampling.BILINEAR)
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 255


@torch.inference_mode()
def attention_of(model, images, lam=0.15, variant="paper"):
    """(maps, mask) for images (N, 3, H, W) in [0, 1].

    maps: one (N, H, W) per tap of the network, each image's scaled to [0, 1]: equation (5), upsampled as by (6).
    mask: (N, H, W) of what IRes keeps, equation (8).
    """
    dtype = next(model.parameters()).dtype
    mean, std = (torch.tensor(x, dtype=dtype).view(1, 3, 1, 1) for x in (MEAN, STD))
    taps = model.features((images.to(dtype) - mean) / std)
    size = images.shape[2:]
    maps = []
    for tap in taps:
        attention = attention_map(tap).unsqueeze(1)
        attention = F.interpolate(attention, size=size, mode="bilinear", align_corners=False).squeeze(1)
        low, high = attention.amin((1, 2), keepdim=True), attention.amax((1, 2), keepdim=True)
        maps.append((attention - low) / (high - low).clamp_min(torch.finfo(dtype).tiny))
    return maps, attention_mask(taps[-1], size, lam, variant).squeeze(1)


def pictures_of(args):
    """[(title, function of a size, which gives the image as `read_image` does)] of the flags."""
    pictures = [(Path(file).stem, partial(read_image, file)) for file in args.images]
    if args.pick:
        dataset = args.dataset or "digits"
        size = args.image_size if dataset == "folder" else None
        (test,) = data.load(dataset, args.data_dir, image_size=size, splits=("test",))
        if max(args.pick) >= len(test):
            raise UsageError(f"--pick {max(args.pick)}: {dataset} has {len(test)} test images")

        def picked(index, size):
            image = test.images[index].float() / 255
            return F.interpolate(image[None], height_width(size), mode="bilinear", align_corners=False)[0]

        for index in args.pick:
            pictures.append((f"{test.classes[test.labels[index]]} (test image {index})", partial(picked, index)))
    return pictures


def _panels(rows, columns, width=1.6, height=1.7):
    """A figure of rows x columns bare axes, and these axes as an array; width, height: of each, in inches."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    size = (width * columns, height * rows)
    figure, axes = pyplot.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[], frame_on=False)
    return figure, axes


def _draw(axis, image, attention=None):
    """An image (3, H, W), under its attention map (H, W) if there is one."""
    axis.imshow(image.permute(1, 2, 0).numpy())
    if attention is not None:
        axis.imshow(attention, cmap="jet", alpha=0.5, vmin=0, vmax=1)


def figure_of(networks, pictures, lam, variant):
    """The figure: a row per image and network; input, maps from stem to last stage, input under the mask.

    networks: [(name, model, image size)]; pictures: as `pictures_of` gives them.
    """
    rows = []
    for title, picture in pictures:
        for name, model, size in networks:
            image = picture(size)
            maps, mask = attention_of(model, image[None], lam, variant)
            rows.append((f"{title}\n{name}", image, [m[0].numpy() for m in maps], mask[0]))
    figure, axes = _panels(len(rows), 2 + max(len(maps) for _, _, maps, _ in rows))
    for line, (title, image, maps, mask) in zip(axes, rows):
        _draw(line[0], image)
        line[0].set_ylabel(title, fontsize=7)
        for i, attention in enumerate(maps):
            _draw(line[1 + i], image, attention)
            line[1 + i].set_title("stem" if i == 0 else f"stage {i}" if i < len(maps) - 1 else "last", fontsize=7)
        _draw(line[-1], image * mask)
        line[-1].set_title(f"IRes: {1 - mask.mean().item():.0%} masked", fontsize=7)
    return figure


def overview_of(networks, pictures, lam, variant):
    """The figure at a glance: a row per image; input, every network's last map, input under the last one's mask."""
    figure, axes = _panels(len(pictures), 2 + len(networks), height=1.75)
    for line, (_, picture) in zip(axes, pictures):
        _draw(line[0], picture(networks[0][2]))
        for axis, (_, model, size) in zip(line[1:], networks):
            image = picture(size)
            maps, mask = attention_of(model, image[None], lam, variant)
            _draw(axis, image, maps[-1][0].numpy())
        _draw(line[-1], image * mask[0])
        line[-1].set_title(f"{1 - mask.mean().item():.0%} masked", fontsize=13)
    for axis, title in zip(axes[0], ["image", *(name for name, _, _ in networks)]):
        axis.set_title(title, fontsize=13)
    return figure


def build_parser():
    parser = Parser(prog="utils.attention", description=__doc__)
    parser.add_argument("--checkpoint", nargs="+", metavar="PATH", default=[], help="networks, side by side")
    parser.add_argument("--names", nargs="+", metavar="NAME", help="what to call them; default: their paths and bits")
    parser.add_argument("--images", nargs="+", metavar="FILE", default=[])
    parser.add_argument("--image-size", type=image_size, metavar="SIZE", help="N or HxW; default: each network's own")
    parser.add_argument("--overview", action="store_true", help="a row per image: the networks' last maps side by side")
    parser.add_argument("--dataset", choices=data.DATASETS, help="whose test images --pick takes; default: digits")
    parser.add_argument("--data-dir", metavar="DIR", help="where the data set lies (digits needs none)")
    parser.add_argument("--pick", nargs="+", type=non_negative_int, metavar="N", default=[], help="test images to draw")
    parser.add_argument("--output", metavar="PNG", default="attention.png", help="the figure, replaced if it is there")
    parser.add_argument("--lam", type=fraction, default=0.15, help="IRes: mask below lam times the mean attention")
    parser.add_argument("--ires-variant", choices=VARIANTS, default="paper", help="whose mask; ours: quantile")
    add_bits_flags(parser)
    return parser


@command
def main(argv=None):
    args = build_parser().parse_args(argv)
    if not args.checkpoint or not (args.images or args.pick):
        raise UsageError("--checkpoint PATH ... and --images FILE ..., or --pick N ..., are needed")
    if not args.pick and (args.data_dir or args.dataset):
        raise UsageError("--dataset and --data-dir go with --pick N ...")
    output = output_path(args.output, force=True, sources=(*args.checkpoint, *args.images))
    if output.suffix not in (".png", ".pdf", ".svg"):
        raise UsageError(f"--output {output}: name a .png, .pdf or .svg file")
    if args.names and len(args.names) != len(args.checkpoint):
        raise UsageError(f"--names gives {len(args.names)} names to {len(args.checkpoint)} networks")
    networks = []
    for i, path in enumerate(args.checkpoint):
        model, contents = open_model(path, args.weight_bits, args.activation_bits, args.structure)
        bits = "/".join(str(contents.network.get(f"{side}_bits", 1)) for side in ("weight", "activation"))
        name = args.names[i] if args.names else f"{'/'.join(Path(path).with_suffix('').parts[-2:])} {bits}"
        size = args.image_size or contents.image_size
        check_takes(model, height_width(size), path)
        networks.append((name, model, size))
        print(f"{path}: {network_text(contents.network)}")
    pictures = pictures_of(args)
    draw = overview_of if args.overview else figure_of
    figure = draw(networks, pictures, args.lam, args.ires_variant)
    with replacing(output) as temporary:
        figure.savefig(temporary, dpi=90, format=output.suffix[1:])
    print(f"{args.output}: {len(pictures)} images, {len(networks)} networks")


if __name__ == "__main__":
    main()
