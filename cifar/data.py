"""Small-image data sets as one uint8 tensor, and batches of it, augmented and normalised where the tensor lives.

No worker processes: a whole data set of 32x32 images fits on any device, and a batch is one gather.
"""

import hashlib
import warnings
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from cifar.folder import load_split, memory_for
from utils.command import RunError, UsageError, height_width
from utils.images import MEAN, STD

DATASETS = ("cifar10", "cifar100", "folder", "digits")


@dataclass
class ImageSet:
    """images: uint8 (N, 3, H, W); labels: int64 (N,); classes: their names; flip: whether a mirror image is as good.

    skipped: how many images could not be read, and are left out.
    """

    images: torch.Tensor
    labels: torch.Tensor
    classes: list
    flip: bool = True
    skipped: int = 0

    def __len__(self):
        return len(self.labels)

    def fingerprint(self):
        """First 12 digits of a SHA-256 over images and labels: tells whether two runs saw the same data."""
        digest = hashlib.sha256(np.ascontiguousarray(self.images))  # no copy: the images may fill the memory
        digest.update(np.ascontiguousarray(self.labels))
        return digest.hexdigest()[:12]


def load(
    dataset, data_dir=None, download=False, image_size=None, progress=True, splits=("train", "test"), skip_corrupt=None
):
    """[ImageSet of each split], on the CPU.

    dataset: one of DATASETS; data_dir: where it lies (not for digits); image_size: N or (H, W), to which a folder's
    images are resized; by default they stay as they are. skip_corrupt: leave out, and name, a folder's images that
    cannot be read; None: there is no such flag to name. Raises UsageError for missing data, and for options that do not
    go with them; RunError for images that cannot be used, or more than memory holds.
    """
    if dataset not in DATASETS:
        raise UsageError(f"no data set {dataset!r}: give --dataset, one of {', '.join(DATASETS)}")
    if image_size and dataset != "folder" and height_width(image_size) != (32, 32):
        raise UsageError(f"--image-size goes with --dataset folder: images of {dataset} are 32x32")
    if download and not dataset.startswith("cifar"):
        raise UsageError("--download goes with --dataset cifar10 or cifar100")
    if skip_corrupt and dataset != "folder":
        raise UsageError("--skip-corrupt goes with --dataset folder")
    if dataset == "digits":
        if data_dir is not None:
            raise UsageError("--data-dir goes with another --dataset: digits come with scikit-learn")
        return _load_digits(splits)
    if data_dir is None:
        raise UsageError(f"--dataset {dataset} needs --data-dir")
    if dataset == "folder":
        return _load_folder(data_dir, image_size, progress, splits, skip_corrupt)
    return _load_cifar(dataset, data_dir, download, splits)


def load_for(contents, args, split, **options):
    """(ImageSet of a split of the data set that a network is scored or averaged on, the data set's name).

    That is what --dataset, --data-dir and --image-size in `args` name; without them what the network in `contents` was
    trained on. options: `load`'s others. Raises as `load` does; the line says which data set was the network's own.
    """
    dataset = args.dataset or contents.dataset
    size = args.image_size or (contents.image_size if dataset == "folder" else None)
    try:
        (images,) = load(dataset, args.data_dir, image_size=size, splits=(split,), **options)
    except UsageError as error:
        own = "" if args.dataset else f"{contents.path} was trained with --dataset {dataset}, which is taken: "
        raise UsageError(f"{own}{error}") from None
    return images, dataset


def _load_digits(splits):
    """scikit-learn's 1,797 handwritten digits, 8x8 -> 32x32: a fixed stratified split, 1,437 to train, 360 to test."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = torch.from_numpy(digits.images).float()[:, None] / 16
    images = F.interpolate(images, size=(32, 32), mode="bilinear", align_corners=False)
    images = (images * 255).round().to(torch.uint8).expand(-1, 3, -1, -1)
    labels = torch.from_numpy(digits.target).long()
    indices = train_test_split(np.arange(len(labels)), test_size=360, stratify=digits.target, random_state=0)
    rows = dict(zip(("train", "test"), indices))
    classes = [str(i) for i in range(10)]
    return [ImageSet(images[rows[s]].contiguous(), labels[rows[s]], classes, flip=False) for s in splits]


def _load_cifar(dataset, data_dir, download, splits):
    from torchvision.datasets import CIFAR10, CIFAR100

    reader = {"cifar10": CIFAR10, "cifar100": CIFAR100}[dataset]
    sets = []
    for split in splits:
        try:
            with memory_for(60_000, (32, 32)), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torchvision's pickles predate NumPy 2's names
                data = reader(data_dir, train=split == "train", download=download)
        except RuntimeError as error:
            if download:
                raise UsageError(f"cannot get {dataset} into {data_dir}: {error}") from None
            hint = "give another --data-dir, or let cifar.train or cifar.eval fetch it, with --download"
            raise UsageError(f"no {dataset} in {data_dir}: {hint}") from None
        except OSError as error:
            raise UsageError(f"cannot get {dataset} into {data_dir}: {error}") from None
        images = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()
        sets.append(ImageSet(images, torch.tensor(data.targets), data.classes))
    return sets


def _load_folder(data_dir, image_size, progress, splits, skip_corrupt):
    """DIR/{train,test}/<class>/**/<image>."""
    sets = [ImageSet(**load_split(data_dir, split, image_size, progress, skip_corrupt)) for split in splits]
    different = sorted(set(sets[-1].classes) ^ set(sets[0].classes))
    if different:
        raise UsageError(f"train and test of {data_dir} differ in their classes: {', '.join(different)}")
    if sets[-1].images.shape[2:] != sets[0].images.shape[2:]:
        raise RunError(f"train and test images of {data_dir} differ in size; --image-size N or HxW resizes all of them")
    return sets


def labels(dataset, train, test):
    """What a run keeps of its data: plain values."""
    return {
        "dataset": dataset,
        "train_images": len(train),
        "test_images": len(test),
        "classes": train.classes,
        "image_size": list(train.images.shape[2:]),
        "train_fingerprint": train.fingerprint(),
        "test_fingerprint": test.fingerprint(),
    }


class Batches:
    """Batches (images (B, 3, H, W), normalised, in `dtype`; labels int64 (B,)) of an ImageSet, on `device`.

    train: `epoch(e)` yields the images in the order that (seed, e) gives, each cropped at an offset of its own from
    the image padded by 4 black pixels and, where the set allows, mirrored with probability 1/2; the last partial
    batch is left out (unless it is the only one), so that all batches have one size. Else every image is yielded
    once, in order, as it is.
    """

    PADDING = 4

    def __init__(self, data, batch_size, device="cpu", train=False, seed=0, dtype=torch.float32):
        self.batch_size = min(batch_size, len(data))
        self.count = len(data)
        self.train = train
        self.seed = seed
        self.flip = data.flip
        self.device = torch.device(device)
        self.size = tuple(data.images.shape[2:])
        padding = self.PADDING if train else 0
        self.stored_size = tuple(side + 2 * padding for side in self.size)
        with memory_for(len(data), self.stored_size, device):
            images = F.pad(data.images, (padding,) * 4) if train else data.images
            self.pixels = images.flatten(2).to(self.device)
            self.labels = data.labels.to(self.device)
        self.dtype = dtype
        scale, shift = [1 / (255 * s) for s in STD], [m / s for m, s in zip(MEAN, STD)]
        self.scale = torch.tensor(scale, dtype=dtype, device=self.device).view(1, 3, 1, 1)
        self.shift = torch.tensor(shift, dtype=dtype, device=self.device).view(1, 3, 1, 1)

    def __len__(self):
        if self.train:
            return self.count // self.batch_size
        return -(-self.count // self.batch_size)

    @property
    def images_per_epoch(self):
        return len(self) * self.batch_size if self.train else self.count

    def __iter__(self):
        for start in range(0, self.count, self.batch_size):
            rows = slice(start, start + self.batch_size)
            yield self._normalise(self.pixels[rows].unflatten(2, self.size)), self.labels[rows]

    def epoch(self, epoch, start=0):
        """The augmented batches of epoch `epoch` from batch `start` on; the same for (seed, epoch), on every device."""
        order, top, left, mirrored = (x.to(self.device) for x in self.draw(epoch))
        for first in range(start * self.batch_size, len(self) * self.batch_size, self.batch_size):
            at = slice(first, first + self.batch_size)
            images = self._crop(self.pixels[order[at]], top[at], left[at], mirrored[at])
            yield self._normalise(images), self.labels[order[at]]

    def draw(self, epoch):
        """Order, top and left crop offsets (0 to 8), and mirror flags of an epoch: four tensors (N,)."""
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + epoch) % 2**63)
        n = self.count
        order = torch.randperm(n, generator=generator)
        offsets = torch.randint(0, 2 * self.PADDING + 1, (2, n), generator=generator)
        mirrored = torch.rand(n, generator=generator) < 0.5
        return order, offsets[0], offsets[1], mirrored & self.flip

    def _crop(self, pixels, top, left, mirrored):
        """(B, 3, stored H * stored W) -> (B, 3, H, W): one gather for all images, each at its own place."""
        height, width = self.size
        columns = torch.arange(width, device=self.device)
        columns = torch.where(mirrored[:, None], width - 1 - columns, columns) + left[:, None]
        rows = torch.arange(height, device=self.device) + top[:, None]
        where = (rows[:, :, None] * self.stored_size[1] + columns[:, None, :]).view(len(top), 1, -1)
        return pixels.gather(2, where.expand(-1, 3, -1)).view(-1, 3, height, width)

    def _normalise(self, images):
        return images.to(self.dtype, memory_format=torch.channels_last).mul_(self.scale).sub_(self.shift)


def evaluation_batches(data, batch_size, device="cpu", dtype=torch.float32):
    """`Batches` of every image once, in order, normalised as torchvision's transforms do it, in contiguous memory.

    Sums come out in another order than in channels_last, and a sign that hangs on the last bit with them: this is how
    released networks were scored.
    """
    mean, std = (torch.tensor(x, dtype=dtype, device=device).view(1, 3, 1, 1) for x in (MEAN, STD))
    for first in range(0, len(data), batch_size):
        rows = slice(first, first + batch_size)
        images = data.images[rows].to(device, dtype) / 255
        yield (images - mean) / std, data.labels[rows].to(device)


def unnormalise(images):
    """Normalised images (N, 3, H, W) back to [0, 1], to be shown."""
    mean, std = (torch.tensor(x, device=images.device).view(1, 3, 1, 1) for x in (MEAN, STD))
    return (images * std + mean).clamp(0, 1)
