"""Draw the method, results/method.png: IRes' two passes and the recovery heads, on IR²Net ResNet-20.

    python -m scripts.method_figure [OUTPUT.png]

Image, attention and mask are real: a test image of the digits, and checkpoints/digits/ir2net.packed.
"""

from pathlib import Path

import matplotlib
import torch
from matplotlib import pyplot
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Polygon, Rectangle

from cifar import data
from cifar.data import MEAN
from utils.attention import attention_of
from utils.checkpoint import load_model
from utils.command import Parser, UsageError, command
from utils.files import output_path, replacing

matplotlib.use("Agg")
ROOT = Path(__file__).resolve().parents[1]
PICTURE, LAM = 8, 0.3  # a test image, and the fraction that the quantile threshold masks: enough of it to be seen
INK, SOFT, BLUE, ORANGE, GREEN = "#1f2933", "#7b8794", "#2b6cb0", "#d2571b", "#1f8a5f"
CHANNEL = 1.35 / 128  # height of one in a bar of channels
TAPS = {"stem": (16, "#9aa5b1"), "stage 1": (16, "#90cdf4"), "stage 2": (32, "#4299e1"), "stage 3": (64, BLUE)}


def pictures():
    """Four images (32, 32, 3) or (32, 32): the input, its attention map, the mask, and what the mask leaves."""
    model = load_model(ROOT / "checkpoints" / "digits" / "ir2net.packed")
    (test,) = data.load("digits", None, splits=("test",))
    image = test.images[PICTURE : PICTURE + 1].float() / 255
    maps, mask = attention_of(model, image, LAM, "quantile")
    mean = torch.tensor(MEAN).view(3, 1, 1)  # the network sees normalised images: a masked pixel is the mean colour
    masked = image[0] * mask + mean * (1 - mask)
    return image[0].permute(1, 2, 0), maps[-1][0], mask[0], masked.permute(1, 2, 0)


class Canvas:
    """A figure of 16 x 8.4 units; text large enough to be read at half size."""

    def __init__(self):
        self.figure = pyplot.figure(figsize=(16, 8.4), dpi=100, facecolor="white")
        self.axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set(xlim=(0, 16), ylim=(0, 8.4), frame_on=False, xticks=[], yticks=[])

    def text(self, x, y, words, color=INK, size=17, **options):
        options = {"ha": "center", "va": "center", "linespacing": 1.25, **options}
        self.axes.text(x, y, words, color=color, fontsize=size, **options)

    def picture(self, x, y, image, title, edge=INK, **options):
        """An image of 1.7 units with its lower left corner at (x, y), its title below."""
        inset = self.axes.inset_axes((x, y, 1.7, 1.7), transform=self.axes.transData)
        inset.imshow(image, **options)
        inset.set(xticks=[], yticks=[])
        inset.spines[:].set(color=edge, linewidth=2)
        self.text(x + 0.85, y - 0.3, title)

    def box(self, x, y, width, height, words="", edge=INK, face="white", size=17):
        style = "round,pad=0,rounding_size=0.14"
        self.axes.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=style, ec=edge, fc=face, lw=2))
        self.text(x + width / 2, y + height / 2, words, size=size)

    def arrow(self, *points, color=INK, dashed=False, head=True, width=2.4):
        """A line through the points with an arrow's head at its end."""
        style = "--" if dashed else "-"
        *rest, last = points
        if len(rest) > 1:
            self.axes.plot(*zip(*rest), color=color, lw=width, ls=style, solid_joinstyle="round", zorder=1)
        shape = "-|>" if head else "-"
        arrow = FancyArrowPatch(
            rest[-1], last, arrowstyle=shape, mutation_scale=20, color=color, lw=width, ls=style, shrinkA=0, shrinkB=0
        )
        self.axes.add_patch(arrow)

    def maps(self, x, y, width, height, color):
        """Feature maps centred at (x, y), a slab in perspective."""
        depth = 0.3 * height / 1.7
        w, h = width / 2, height / 2
        front = [(x - w, y - h), (x + w, y - h), (x + w, y + h), (x - w, y + h)]
        top = [(x - w, y + h), (x + w, y + h), (x + w + depth, y + h + depth), (x - w + depth, y + h + depth)]
        side = [(x + w, y - h), (x + w + depth, y - h + depth), (x + w + depth, y + h + depth), (x + w, y + h)]
        for corners, shade in ((front, 1.0), (top, 0.75), (side, 0.55)):
            self.axes.add_patch(Polygon(corners, fc=(color, shade), ec="white", lw=1.2))

    def channels(self, x, y, parts):
        """A bar of channels centred at (x, y): parts [(channels, colour)] from its top down."""
        heights = [channels * CHANNEL for channels, _ in parts]
        top = y + sum(heights) / 2
        for height, (_, color) in zip(heights, parts):
            top -= height
            self.axes.add_patch(Rectangle((x - 0.16, top), 0.32, height, fc=color, ec="white"))


def draw_network(canvas):
    """The one network that both passes go through, the taps, the head, and the loss."""
    y = 6.1
    for (name, (_, color)), x, size in zip(TAPS.items(), (3.9, 5.3, 6.7, 8.1), (1.7, 1.7, 1.25, 0.8)):
        canvas.maps(x, y, 0.42, size, color)
        canvas.text(x + 0.1, y - 1.25, name)
        depth = 0.3 * size / 1.7
        canvas.arrow((x + depth / 2, y + size / 2 + depth), (x + depth / 2, 7.75), color=GREEN, head=False)
    for left, right in ((4.47, 5.03), (5.87, 6.43), (7.2, 7.83)):
        canvas.arrow((left, y), (right, y), color=BLUE)
    canvas.text(5.85, 4.3, "binary stages: sign(x) ∗ sign(w)", BLUE, 16)
    canvas.arrow((8.52, y), (9.35, y))
    canvas.text(8.88, y + 0.27, "$A_l$", size=19)
    canvas.arrow((4.05, 7.75), (10.15, 7.75), (10.15, 6.72), color=GREEN)
    canvas.text(7.1, 8.05, "taps, pooled to the size of $A_l$", GREEN)
    canvas.box(9.4, 5.5, 1.5, 1.2, "IRec or\nCIRec", GREEN, "#e6f5ee")
    canvas.arrow((10.95, y), (11.4, y))
    canvas.box(11.45, 5.5, 1.25, 1.2, "linear\nlayer", INK, "#f1f3f5")
    canvas.arrow((12.75, 6.35), (13.2, 6.85))
    canvas.arrow((12.75, 5.85), (13.2, 5.35), color=ORANGE, dashed=True)
    canvas.text(14.5, 6.95, "μ · loss(original)", size=16)
    canvas.text(14.5, 6.1, "+", size=22)
    canvas.text(14.55, 5.25, "(1 − μ) · loss(masked)", ORANGE, 16)


def draw_restriction(canvas, image, attention, mask, masked):
    canvas.picture(0.35, 5.55, image, "image")
    canvas.arrow((2.1, 6.4), (3.6, 6.4))
    canvas.text(2.8, 6.68, "pass 1")
    canvas.arrow((8.1, 4.6), (8.1, 3.28), color=ORANGE, dashed=True)
    canvas.text(8.42, 4.05, "$A_l$", ORANGE, 19)
    canvas.picture(7.25, 1.5, attention, "attention: $\\Sigma A_l^2$", ORANGE, cmap="magma")
    canvas.arrow((7.15, 2.35), (5.65, 2.35), color=ORANGE, dashed=True)
    canvas.text(6.4, 2.65, "≥ τ", ORANGE)
    canvas.picture(3.85, 1.5, mask, "mask", ORANGE, cmap="gray", vmin=0, vmax=1)
    canvas.arrow((3.75, 2.35), (2.15, 2.35), color=ORANGE, dashed=True)
    canvas.text(2.95, 2.65, "⊙ image", ORANGE)
    canvas.picture(0.35, 1.5, masked, "masked image", ORANGE)
    canvas.arrow((1.2, 3.25), (1.2, 4.3), (2.5, 4.3), (2.5, 5.8), (3.6, 5.8), color=ORANGE, dashed=True)
    canvas.text(2.97, 5.5, "pass 2", ORANGE)
    canvas.text(4.65, 0.45, "IRes, in training only: learn from what you attend to", ORANGE, 19, weight="bold")


def draw_recovery(canvas):
    canvas.box(10.0, 0.85, 5.7, 3.75, edge="#b8dfcc", face="#f3faf6")
    canvas.arrow((10.15, 5.45), (10.15, 4.65), color=GREEN, head=False, width=1.6, dashed=True)
    for y, name in ((3.7, "IRec"), (1.75, "CIRec")):
        canvas.text(10.62, y, name, GREEN, 18, weight="bold")
        canvas.channels(11.6, y, TAPS.values())
    canvas.text(11.6, 2.72, "128", SOFT, 15)
    canvas.arrow((11.9, 3.7), (14.9, 3.7), color=GREEN)
    canvas.text(13.4, 3.98, "1×1 convolution")
    canvas.channels(15.2, 3.7, [(64, GREEN)])
    canvas.text(15.2, 2.72, "64", SOFT, 15)
    canvas.arrow((11.9, 1.75), (12.75, 1.75), color=GREEN)
    canvas.text(12.3, 2.03, "1×1")
    canvas.channels(13.05, 1.75, [(16, GREEN)])
    canvas.text(13.05, 1.4, "16", SOFT, 15)
    canvas.arrow((13.3, 1.66), (14.9, 1.66), color=GREEN)
    canvas.text(14.1, 1.36, "3×3, groups", size=16)
    canvas.arrow((13.05, 1.92), (13.05, 2.35), (15.2, 2.35), (15.2, 2.14), color=GREEN)
    canvas.channels(15.2, 1.75, [(16, GREEN), (48, "#7fc9a4")])
    canvas.text(12.85, 0.45, "Recovery: shallow features come back", GREEN, 19, weight="bold")


@command
def main(argv=None):
    parser = Parser(prog="scripts.method_figure", description=__doc__.splitlines()[0])
    parser.add_argument("output", nargs="?", default=ROOT / "results" / "method.png", metavar="OUTPUT.png")
    output = output_path(parser.parse_args(argv).output, force=True)
    if output.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise UsageError(f"{output} is no .png, .svg or .pdf")
    canvas = Canvas()
    draw_network(canvas)
    draw_restriction(canvas, *pictures())
    draw_recovery(canvas)
    with replacing(output) as drawn:
        canvas.figure.savefig(drawn, format=output.suffix[1:])
    print(f"{output}: {output.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
