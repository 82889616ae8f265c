"""ImageNet, or any tree of class folders: its splits and labels, decoding, augmentation."""

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from utils.command import UsageError, available_cpus, bounded_int
from utils.images import MEAN, STD, read_image, scan
from utils.training import distributed

FOLDERS = {"train": ("train", "ILSVRC2012_img_train"), "val": ("val", "ILSVRC2012_img_val")}
"""Split -> the folders that may hold it: ours, and that of the released code."""


class Lighting(nn.Module):
    """AlexNet's colour jitter: moves an image (3, H, W) in [0, 1] along the principal components of ImageNet's colours.

    std: standard deviation of each component's random weight. Source: Krizhevsky et al., NeurIPS 2012, section 4.1.
    """

    EIGENVALUES = (0.2175, 0.0188, 0.0045)
    EIGENVECTORS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))

    def __init__(self, std):
        super().__init__()
        self.std = std
        self.components = torch.tensor(self.EIGENVECTORS) * torch.tensor(self.EIGENVALUES)

    def forward(self, image):
        return image + (self.components @ (torch.randn(3) * self.std)).view(3, 1, 1)


def _to_normalised(steps, *between):
    """The transform that takes `steps` on the PIL image and those `between` on its values in [0, 1]."""
    from torchvision.transforms import ConvertImageDtype, v2

    # Not v2.ToDtype: it multiplies by 1/255, where the reference transform divides by 255.
    values = [v2.PILToTensor(), ConvertImageDtype(torch.float32), *between, v2.Normalize(MEAN, STD)]
    return v2.Compose([*steps, *values])


def train_transform(size, lighting=0.1, color_jitter=False):
    """PIL image -> (3, size, size): random resized crop (scale 0.08 to 1), flip, colours."""
    from torchvision.transforms import v2  # seconds, which a refusal and --help need not wait

    steps = [v2.RandomResizedCrop(size, scale=(0.08, 1)), v2.RandomHorizontalFlip()]
    if color_jitter:
        steps.append(v2.ColorJitter(0.2, 0.2, 0.2, 0.1))
    return _to_normalised(steps, *([Lighting(lighting)] if lighting else []))


def eval_transform(size):
    """PIL image -> (3, size, size): at 224 the shorter side becomes 256 pixels, then the centre is cut out.

    At 224 it equals torchvision's reference transform for ResNet weights to the bit.
    """
    from torchvision.transforms import v2

    return _to_normalised([v2.Resize(round(size * 256 / 224)), v2.CenterCrop(size)])


def image_size(text):
    """argparse type: height and width of the images, a multiple of 32, by which the networks shrink them."""
    size = bounded_int(32, 4096)(text)
    if size % 32:
        raise argparse.ArgumentTypeError(f"must be a multiple of 32, not {size}")
    return size


image_size.__name__ = "int"


def default_workers():
    """Data processes that give each of this rank's CPUs one."""
    return max(1, available_cpus() // distributed.local_world_size())


@dataclass
class Folder:
    """root/<class>/**/<image>; samples: [(file, label)]; labels count `classes` until `use_labels_of` says else."""

    root: Path
    classes: list
    samples: list

    def __len__(self):
        return len(self.samples)


def open_split(data_dir, split):
    """The Folder of DIR/<split>; split: "train" or "val".

    Raises UsageError if the folder is missing, or a class folder in it is empty.
    """
    if data_dir is None:
        raise UsageError("--data-dir DIR is needed")
    for name in FOLDERS[split]:
        folder = Path(data_dir) / name
        if folder.is_dir():
            break
    else:
        raise UsageError(f"no folder {' or '.join(str(Path(data_dir) / name) for name in FOLDERS[split])}")
    return Folder(folder, *scan(folder))


def open_splits(data_dir):
    """The Folders of train and val. Raises UsageError if their class folders differ."""
    train, val = open_split(data_dir, "train"), open_split(data_dir, "val")
    different = sorted(set(train.classes) ^ set(val.classes))
    if different:
        names = ", ".join(different[:5]) + (", ..." if len(different) > 5 else "")
        raise UsageError(f"{train.root} and {val.root} differ in {len(different)} class folders: {names}")
    return train, val


def synsets():
    """The 1,000 WordNet ids of ILSVRC-2012's classes, in the order of their labels."""
    return (Path(__file__).parent / "synsets.txt").read_text().split()


def use_labels_of(folder, classes, num_classes):
    """Give a Folder, whose labels count its own folders, the labels of a network with `num_classes` outputs.

    classes: the names of the network's classes, or None. Without them a folder per output is taken in sorted order, and
    fewer folders of ImageNet's names by their place among the 1,000. Raises UsageError if the folders do not fit.
    """
    if classes is None:
        if len(folder.classes) == num_classes:
            return
        if num_classes != 1000:
            raise UsageError(f"the network has {num_classes} classes, {folder.root} has {len(folder.classes)}")
        classes = synsets()
    labels = {name: label for label, name in enumerate(classes)}
    unknown = [name for name in folder.classes if name not in labels]
    if unknown:
        raise UsageError(f"{folder.root} has class folders that the network does not know: {', '.join(unknown[:5])}")
    folder.samples = [(path, labels[folder.classes[label]]) for path, label in folder.samples]


def val_batches(data_dir, contents, model, batch_size):
    """Yield (images (N, 3, size, size), labels (N,)) of DIR/val as a checkpoint's network takes them, in this process.

    Raises UsageError if the folder is none, or its classes are not the network's.
    """
    folder = open_split(data_dir, "val")
    use_labels_of(folder, contents.data.get("classes"), model.fc.out_features)
    transform = eval_transform(contents.image_size[0])
    for start in range(0, len(folder), batch_size):
        samples = folder.samples[start : start + batch_size]
        yield torch.stack([transform(read_image(path)) for path, _ in samples]), torch.tensor([y for _, y in samples])


def describe(train, test, size):
    """What a run keeps of its data: plain values."""
    return {
        "dataset": "imagenet",
        "train_images": train.count,
        "test_images": test.count,
        "classes": train.classes,
        "image_size": size,
    }
